"""CUT's training step, ours beside the released code's: real tokens per second, peak memory, and their ratios.

    python benchmarks/cut_step.py --base_model saved_models/SmolLM2-135M-Instruct \\
        --data_path data/iter/train-alpaca-sample-iter1.json
    python benchmarks/cut_step.py ... --llama_7b_shapes      # one GPU, random weights, bf16

Each way runs in a process of its own on the same rows: LoRA as released, forward, backward and AdamW of whole steps.
The released way is a plain writing of it from its description (docs/cut.md, C4, C6, C21): judged and plain lines padded
to one width, in one batch, with a line of padding beside every satisfactory row; logits of all positions; fp32 softmax
over the vocabulary; eager attention. A *real token* is one that is not padding, and counted once for both ways.
"""

from __future__ import annotations

import json
import random
import resource
import time
from argparse import Namespace

import torch
from sft_memory import measured_apart, utilisation
from torch import Tensor

from alignment.command_line import ArgumentParser, UserError, boolean, number, run, table


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--base_model", required=True, help="folder of the model, or only of the tokenizer")
    parser.add_argument("--data_path", required=True, help="rows with judgments")
    parser.add_argument("--cutoff_len", type=number(int, 8), default=1024, help="default: 1024")
    parser.add_argument("--batch_size", type=number(int, 1), default=8, help="rows a step (default: 8)")
    parser.add_argument("--micro_batch_size", type=number(int, 1), default=4, help="rows a forward (default: 4)")
    parser.add_argument("--steps", type=number(int, 1), default=2, help="steps that are timed, after one that is not")
    parser.add_argument("--lora_dropout", type=number(float, 0, 0.99), default=0.05, help="default: 0.05, released")
    parser.add_argument(
        "--llama_7b_shapes",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="random weights in bf16 instead of the model's",
    )
    parser.add_argument("--way", choices=("released", "ours"), help="run one way here and print its numbers as JSON")
    return parser.parse_args(argv)


# The released step


def released_loss(
    logits: Tensor, labels: Tensor, labels_plain: Tensor, flawed: Tensor, *, threshold: float, weight: float
) -> Tensor:
    """The released loss, from its description: logits (2B, T, V) of the judged and then the plain lines, labels (B, T)
    of each with -100 where not learned, flawed (B,) bool. A satisfactory row's plain line is padding without labels.

    One softmax in fp32 over everything, and the logarithm of a copy of its first half; means over the micro-batch.
    """
    probabilities = torch.softmax(logits.float(), dim=-1)  # (2B, T, V)
    first, second = (half[:, :-1].contiguous() for half in probabilities.chunk(2))
    targets = labels[:, 1:]
    likelihood = torch.nn.functional.nll_loss(torch.log(first.flatten(0, 1)), targets.flatten())
    if not flawed.any():
        return likelihood

    def of_targets(of: Tensor, ids: Tensor) -> Tensor:
        return of.gather(2, ids.clamp(min=0)[..., None])[..., 0][flawed][(ids != -100)[flawed]]

    judged, plain = of_targets(first, targets), of_targets(second, labels_plain[:, 1:])  # (M,)
    blamed = (judged / plain).detach() > threshold
    kept = torch.where(blamed, 1 - plain, plain)
    logs = torch.where(kept == 0, kept + 1e-5, kept).log()
    unlikelihood = -torch.where(blamed, weight * logs, logs).sum() / len(logs)
    return (unlikelihood + likelihood) / 2


def released_batch(items: list, pad_id: int) -> dict[str, Tensor]:
    """(2B, T) ids, mask and labels: first each row's judged line, or its only one, then plain lines or padding."""
    width = -(-max(len(line) for item in items for line in item) // 8) * 8
    first = [item[-1] for item in items]
    second = [item[0] if len(item) == 2 else None for item in items]
    lines = [(line.ids, line.labels) if line else ([], []) for line in first + second]
    return {
        "input_ids": torch.tensor([ids + [pad_id] * (width - len(ids)) for ids, _ in lines]),
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in lines]),
        "labels": torch.tensor([labels + [-100] * (width - len(labels)) for _, labels in lines]),
        "flawed": torch.tensor([line is not None for line in second]),
    }


def released_step(model, items: list, args: Namespace, pad_id: int, device: str) -> None:
    micro_batches = [items[n : n + args.micro_batch_size] for n in range(0, len(items), args.micro_batch_size)]
    for part in micro_batches:
        batch = {name: tensor.to(device) for name, tensor in released_batch(part, pad_id).items()}
        labels, flawed = batch.pop("labels").chunk(2), batch.pop("flawed")
        logits = model(**batch, use_cache=False).logits
        loss = released_loss(logits, *labels, flawed, threshold=1.1, weight=1.0)
        (loss / len(micro_batches)).backward()


# Ours


def our_step(model, items: list, args: Namespace, pad_id: int, device: str) -> None:
    from alignment.training.batches import plan_step
    from alignment.training.cut_lines import collate_lines, has_dropout
    from alignment.training.cut_trainer import Loss, loss_passes

    loss = Loss("cut", threshold=1.1, alpha=1.0, gamma=1.0, floor=0.0, legacy=False, detect_apart=has_dropout(model))
    plan = plan_step([max(map(len, item)) for item in items], -(-len(items) // args.micro_batch_size))
    batches = [collate_lines([items[n] for n in numbers], pad_id) for numbers in plan if numbers]
    tokens, judgment_tokens = sum(batch["num_tokens"] for batch in batches).to(device)
    totals = {"tokens": tokens, "judgment_tokens": judgment_tokens}
    for batch in batches:
        for share, _ in loss_passes(model, {name: tensor.to(device) for name, tensor in batch.items()}, totals, loss):
            share.backward()


# Measuring


def load(args: Namespace, device: str):
    """The model under the released LoRA, in training mode; ours speaks log-probabilities."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    from alignment.adapters import add_lora
    from alignment.pretrained import load_pretrained, load_tokenizer
    from alignment.training.logps import speak_logps

    attention = {"attn_implementation": "eager" if args.way == "released" else "sdpa"}
    tokenizer = load_tokenizer(args.base_model)
    torch.manual_seed(0)
    if args.llama_7b_shapes:
        torch.set_default_dtype(torch.bfloat16)
        with torch.device(device):
            config = LlamaConfig(vocab_size=max(32_000, len(tokenizer)))  # its other defaults are Llama 7B's
            model = AutoModelForCausalLM.from_config(config, **attention)
        torch.set_default_dtype(torch.float32)
    else:
        settings = {"dtype": torch.float32, **attention}
        model = load_pretrained("AutoModelForCausalLM", args.base_model, **settings).to(device)
    if args.way == "ours":
        speak_logps(model)
    released = {"r": 16, "alpha": 16, "dropout": args.lora_dropout, "targets": ["gate_proj", "down_proj", "up_proj"]}
    return add_lora(model, task_type="CAUSAL_LM", **released).train(), tokenizer


def read_items(args: Namespace, tokenizer) -> list:
    """Shuffled items of the paper's mix, one satisfactory row to four flawed ones, for one step more than is timed."""
    from alignment.judging.judgments import downsampled, read_judgments
    from alignment.training.cut_lines import encode_rows, load_templates

    rows = downsampled(read_judgments(args.data_path), 0.25, 42)
    random.Random(0).shuffle(rows)
    needed = args.batch_size * (args.steps + 1)
    if len(rows) < needed:
        raise UserError(f"data {args.data_path}: {len(rows)} rows in the paper's mix, and {needed} are needed")
    rows = rows[:needed]
    return encode_rows(rows, "cut", load_templates("alpaca", tokenizer), args.cutoff_len).items


def peak_memory(device: str) -> float:
    """GiB: of the GPU what was allocated, of the CPU the process's largest resident size."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(args: Namespace) -> dict:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, tokenizer = load(args, device)
    items = read_items(args, tokenizer)
    before = peak_memory(device)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=4e-4)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    take_step = {"released": released_step, "ours": our_step}[args.way]
    started = cpu_started = tokens = 0
    for step in range(args.steps + 1):
        part = items[step * args.batch_size : (step + 1) * args.batch_size]
        take_step(model, part, args, pad_id, device)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if step == 0:
            started, cpu_started = time.perf_counter(), time.process_time()
        else:
            tokens += sum(len(line) for item in part for line in item)
    return {
        "tokens": tokens,
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu_started,
        "loaded": before,
        "peak": peak_memory(device),
        "weights": sum(weight.numel() for weight in model.parameters()),
    }


def main(args: Namespace) -> None:
    if args.way:
        print(json.dumps(measure(args)))
        return
    found = {way: measured_apart(__file__, args, way) for way in ("released", "ours")}
    rows = [("", "real tokens/s", "CPU seconds", "peak GiB", "above the loaded model")]
    rates = {way: numbers["tokens"] / numbers["seconds"] for way, numbers in found.items()}
    for way, numbers in found.items():
        shown = rates[way], numbers["cpu_seconds"], numbers["peak"], numbers["peak"] - numbers["loaded"]
        rows.append((way, *(f"{value:.2f}" for value in shown)))
    print(table(rows))
    ratio = rates["ours"] / rates["released"]
    memory = found["ours"]["peak"] / found["released"]["peak"]
    busy = found["released"]["cpu_seconds"] / found["ours"]["cpu_seconds"]  # other work on the machine moves it less
    print(f"ours / released: {ratio:.2f} x real tokens/s ({busy:.2f} x per CPU second), {memory:.2f} x peak GiB")
    # LoRA: 2 FLOPs a weight forward and 2 backward to the inputs; a pass for detection is not counted as useful
    flops = 4 * found["ours"]["weights"] * rates["ours"]
    print(f"ours: {utilisation(flops, 'bfloat16' if args.llama_7b_shapes else 'float32')}")


if __name__ == "__main__":
    run(parse_args, main)
