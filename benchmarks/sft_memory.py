#!/usr/bin/env python
"""Supervised training, peak memory and time of a step: log-probabilities of labels alone, beside full logits.

    python benchmarks/sft_memory.py --model_name_or_path saved_models/SmolLM2-135M-Instruct
    python benchmarks/sft_memory.py --shape 7b --dtype bfloat16                        # random weights, on a GPU

Each way runs in a process of its own, on the same batch: `full` as transformers computes
its own loss from `labels`, `ours` as train.py does. Prints both and the ratio. Target: at most 0.6x at 1,024 tokens,
and no slower. Memory is the device's peak allocation, or the process's peak resident set on a CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time

from alignment.command_line import ArgumentParser, boolean, number, run, table

SHAPES = {
    "7b": dict(
        vocab_size=32_000,
        hidden_size=4096,
        intermediate_size=11_008,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
    ),
    "8b": dict(
        vocab_size=128_256,
        hidden_size=4096,
        intermediate_size=14_336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
    ),
}  # Llama 2 7B, Llama 3 8B
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bf16, by the makers' data sheets


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--model_name_or_path", default="saved_models/SmolLM2-135M-Instruct", help="a causal model's folder")
    flag("--shape", choices=SHAPES, help="random weights of this shape instead; default none")
    flag("--batch_size", type=number(int, 1), default=4, help="rows; default 4")
    flag("--length", type=number(int, 8), default=1024, help="tokens a row; default 1024")
    flag("--prompt_share", type=number(float, 0, 1), default=0.25, help="of the length, not learned; default 0.25")
    flag("--steps", type=number(int, 1), default=3, help="timed steps, the fastest counts; default 3")
    flag("--gradient_checkpointing", type=boolean, default=True, help="default True")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    flag("--way", choices=("full", "ours"), help="run this way only, in this process, and print JSON")
    return parser.parse_args(argv)


def measured_apart(script: str, args: argparse.Namespace, way: str) -> dict:
    """What one way of a benchmark prints when it is run alone in a process of its own, so that peaks are its own."""
    given = {name: value for name, value in vars(args).items() if value is not None} | {"way": way}
    command = [sys.executable, script, *(word for name, value in given.items() for word in (f"--{name}", str(value)))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(args: argparse.Namespace) -> None:
    if args.way:
        return print(json.dumps(measure(args)))
    found = {way: measured_apart(__file__, args, way) for way in ("full", "ours")}
    ratios = {key: found["ours"][key] / found["full"][key] for key in ("gib", "seconds")}
    print(
        table(
            [("way", "peak GiB", "seconds a step", "loss")]
            + [
                (way, f"{each['gib']:.2f}", f"{each['seconds']:.2f}", f"{each['loss']:.5f}")
                for way, each in found.items()
            ]
        )
    )
    print(f"ours: {found['ours']['utilisation']} (target at least 45%)")
    print(f"memory {ratios['gib']:.2f}x (target at most 0.60x), time {ratios['seconds']:.2f}x (target at most 1.00x)")


def load_model(args: argparse.Namespace, kind: str):
    """The model to measure, with `kind` an Auto class of transformers, in training mode."""
    import torch
    import transformers

    from alignment.pretrained import load_pretrained

    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, args.dtype)
    extra = {"num_labels": 1} if "Sequence" in kind else {}
    if args.shape:
        config = transformers.LlamaConfig(**SHAPES[args.shape], pad_token_id=0, **extra)
        with torch.device(device):
            model = getattr(transformers, kind).from_config(config, dtype=dtype)
    else:
        model = load_pretrained(kind, args.model_name_or_path, dtype=dtype, **extra).to(device)
    model.config.use_cache = False
    return model.train()


def clock_of(model):
    """Wall time on a GPU; on a CPU the processor time of this process, which other work on the machine leaves alone."""
    return time.perf_counter if model.device.type == "cuda" else time.process_time


def utilisation(flops: float, dtype: str) -> str:
    """Model FLOPs utilisation, of so many useful FLOPs a second on this machine's GPU, in words."""
    import torch

    if not torch.cuda.is_available():
        return "model FLOPs utilisation not measured: no GPU here"
    name = torch.cuda.get_device_name()
    peak = next((peak for key, peak in PEAK_FLOPS.items() if key in name), None)
    if peak is None or dtype != "bfloat16":
        return f"model FLOPs utilisation is known for bfloat16 on {', '.join(PEAK_FLOPS)} only; this is {dtype}, {name}"
    return f"model FLOPs utilisation {flops / peak:.1%} of {name}"


def useful_flops(model, length: int) -> int:
    """Of a token, forward and backward: 6 a weight, and attention's 12·layers·width·length, causal half of it."""
    weights = sum(p.numel() for n, p in model.named_parameters() if "embed_tokens" not in n)
    return 6 * weights + 6 * model.config.num_hidden_layers * model.config.hidden_size * length


def measure(args: argparse.Namespace) -> dict:
    """Peak memory, seconds and loss of forward and backward."""
    import resource

    import torch

    from alignment.training.batches import IGNORED, Sample, collate
    from alignment.training.logps import speak_logps, summed_logps
    from alignment.training.losses import sft
    from alignment.training.trainers import return_freed_memory

    return_freed_memory()  # as train.py does on a CPU; both ways
    model = load_model(args, "AutoModelForCausalLM")
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    draw = torch.Generator().manual_seed(0)
    prompt = int(args.length * args.prompt_share)
    ids = torch.randint(10, model.config.vocab_size, (args.batch_size, args.length), generator=draw).tolist()
    batch = collate([(Sample(row, line, prompt),) for row, line in enumerate(ids)], pad_id=0)
    batch = {name: value.to(model.device) for name, value in batch.items()}
    if args.way == "ours":
        speak_logps(model)
    times, clock, learned = [], clock_of(model), int((batch["labels"][:, 1:] != IGNORED).sum())
    for _ in range(args.steps + 1):
        model.zero_grad(set_to_none=True)
        started = clock()
        if args.way == "ours":
            loss = sft(summed_logps(model, batch), learned)
        else:
            loss = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
        loss.backward()
        value = loss.item()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(clock() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak
    flops = useful_flops(model, args.length) * args.batch_size * args.length / min(times[1:])
    found = {"gib": peak / 2**30, "seconds": min(times[1:]), "loss": value}
    return found | {"utilisation": utilisation(flops, args.dtype)}


if __name__ == "__main__":
    run(parse_args, main)
