#!/usr/bin/env python
"""A step of reinforcement split into generation, scoring and update: ours beside the plain way, ratios in one run.

    python benchmarks/rl.py --lora_r 16                                     # PPO of the embedded model, on CPUs
    python benchmarks/rl.py --shape 7b --dtype bfloat16 --lora_r 16 --replies 64 --algorithm grpo    # on a GPU

Each way runs in a process of its own. `plain` is a plain writing of what trainers do: transformers' generate on prompts
padded to the left, then the whole step in one width, prompts padded to the left and replies to the right; logits of all
positions, their log-softmax in fp32, and the token's taken out. `ours` is what train_rl.py does. `engine` only
generates: the decoder on a model that is not in training. Generation starts from real prompts and ends as the model
ends it; scoring (log-probabilities under policy and reference, values) and update, one epoch of one mini-batch with
AdamW, are of the same drawn replies both ways, of log-normal lengths as real ones have, in micro-batches of as many
tokens with padding.

Seconds are processor time on a CPU, else wall time. Memory is the peak of the device, or of the process on a CPU, over
what weights, gradients and the optimiser's state take. Targets: generation at least 0.9x of the engine's tokens a
second, memory at most 0.5x of the plain way's, update at least 1.4x as fast.
"""

from __future__ import annotations

import argparse
import json
import random
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from sft_memory import SHAPES, clock_of, measured_apart

from alignment.command_line import REPOSITORY, ArgumentParser, boolean, number, run, table

WAYS = ("plain", "ours", "engine")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag, positive = parser.add_argument, number(int, 1)
    flag("--model_name_or_path", default="saved_models/SmolLM2-135M-Instruct", help="a causal model's folder")
    flag("--shape", choices=SHAPES, help="random weights of this shape instead, with that tokenizer; default none")
    flag("--data_path", type=Path, default=REPOSITORY / "data" / "almost_prompts.txt", help="prompts, one a line")
    flag("--algorithm", choices=("ppo", "grpo"), default="ppo", help="grpo: no values, 8 replies a prompt; default ppo")
    flag("--lora_r", type=number(int, 0), default=0, help="rank; default 0: all weights, and a reference of its own")
    flag("--replies", type=positive, default=16, help="of a step; default 16")
    flag("--max_new_tokens", type=positive, default=128, help="tokens of a reply at most; default 128")
    flag("--micro_batch_size", type=positive, default=4, help="replies a pass of the plain way; default 4")
    switch = {"type": boolean, "nargs": "?", "const": True, "default": True}
    flag("--gradient_checkpointing", **switch, help="both ways; default True: else activations are most of the memory")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="what is computed in; default float32")
    flag("--seed", type=int, default=0, help="default 0")
    flag("--way", choices=WAYS, help="run this way only, in this process, and print JSON")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    if args.way:
        return print(json.dumps(measure(args)))
    plain, ours, _ = (found := {way: measured_apart(__file__, args, way) for way in WAYS}).values()
    rate = {way: each["tokens"] / each["generation"] for way, each in found.items()}
    rows = [("way", "generation, tokens/s", "scoring, s", "update, s", "GiB above what is kept", "gradient norm")]
    for way in ("plain", "ours"):
        each = found[way]
        seconds = (f"{each['scoring']:.2f}", f"{each['update']:.2f}", f"{each['above']:.2f} of {each['peak']:.2f}")
        rows.append((way, f"{rate[way]:.1f}", *seconds, f"{each['grad_norm']:.5f}"))
    rows.append(("engine", f"{rate['engine']:.1f}", "-", "-", "-", "-"))
    print(table(rows))
    seconds = {phase: ours[phase] for phase in ("generation", "scoring", "update")}
    print("of our step: " + ", ".join(f"{phase} {each / sum(seconds.values()):.0%}" for phase, each in seconds.items()))
    beside = f"{rate['ours'] / rate['plain']:.2f}x the plain way's"
    print(f"generation {rate['ours'] / rate['engine']:.2f}x the engine's own (target at least 0.90x), {beside}")
    print(f"memory above weights, gradients and optimiser {ours['above'] / plain['above']:.2f}x (target at most 0.50x)")
    beside = f"scoring {plain['scoring'] / ours['scoring']:.2f}x"
    print(f"update {plain['update'] / ours['update']:.2f}x as fast (target at least 1.40x), {beside}")


# What both ways start from


def load(args: argparse.Namespace) -> SimpleNamespace:
    """Template, prompts, and the models of one way: `core` without PEFT around it, `policy`, `reference` or None where
    the policy without its adapter is it, `value` or None, and the clock."""
    import torch

    from alignment.adapters import ALL_LINEAR, add_lora
    from alignment.pretrained import fit_embeddings, training_tokenizer
    from alignment.records import read_prompts
    from alignment.templates import load_template
    from alignment.training.logps import speak_logps
    from alignment.training.rl_models import ValueHead, without_dropout

    device, half = "cuda" if torch.cuda.is_available() else "cpu", args.dtype == "bfloat16"
    template = load_template("almost", training_tokenizer(args.model_name_or_path))

    def one():
        model = causal(args, len(template.tokenizer), torch.bfloat16 if half and args.lora_r else torch.float32, device)
        fit_embeddings(model, template.tokenizer)
        model.config.use_cache = False
        sum(weight.sum().item() for weight in model.parameters())  # a mapped file is resident once it was read
        return without_dropout(speak_logps(model) if args.way == "ours" else model)

    torch.manual_seed(args.seed)
    core = policy = one()
    core.gradient_checkpointing_enable({"use_reentrant": False}) if args.gradient_checkpointing else None
    adapter = {"r": args.lora_r, "alpha": 16, "dropout": 0.0, "targets": [ALL_LINEAR]}
    adapter |= {"task_type": "CAUSAL_LM", "gradient_checkpointing": args.gradient_checkpointing}
    if args.lora_r and args.way != "engine":
        policy = add_lora(core, **adapter).train()
    rows = [{"prompt": line} for line in read_prompts(args.data_path)]
    repeated = 8 if args.algorithm == "grpo" else 1
    prompts = template.prompt_ids([rows[number // repeated % len(rows)] for number in range(args.replies)])
    return SimpleNamespace(
        template=template,
        prompts=prompts,
        core=core,
        policy=policy,
        reference=None if args.lora_r or args.way == "engine" else one().requires_grad_(False),
        value=ValueHead(core.config.hidden_size).to(device) if args.algorithm == "ppo" else None,
        device=device,
        clock=clock_of(core),
        autocast=partial(torch.autocast, device, torch.bfloat16) if half else nullcontext,
    )


def causal(args: argparse.Namespace, vocabulary: int, dtype: Any, device: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from alignment.pretrained import load_pretrained

    if not args.shape:
        return load_pretrained("AutoModelForCausalLM", args.model_name_or_path, dtype=dtype).to(device)
    shape = SHAPES[args.shape]
    config = LlamaConfig(**{**shape, "vocab_size": max(shape["vocab_size"], vocabulary)})
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def drawn_rollouts(args: argparse.Namespace, kit: SimpleNamespace) -> list:
    """Rollouts of random replies, as long as real ones are: log-normal, their median a third of the limit; with
    advantages and returns, so that only what a way computes differs."""
    import torch

    from alignment.training.rollouts import Rollout

    draw, noise, found = random.Random(args.seed), torch.Generator().manual_seed(args.seed), []
    for place, prompt in enumerate(kit.prompts):
        length = min(args.max_new_tokens, max(1, round(args.max_new_tokens / 3 * draw.lognormvariate(0, 0.7))))
        reply = [draw.randrange(10, kit.core.config.vocab_size) for _ in range(length)]
        rollout = Rollout(place, place, prompt, reply, True, "", score=draw.gauss())
        rollout.advantages, rollout.returns = (torch.randn(length, generator=noise) for _ in range(2))
        found.append(rollout)
    return found


# Ours


def our_way(args: argparse.Namespace, kit: SimpleNamespace, rollouts: list) -> SimpleNamespace:
    """generate() -> tokens; score(); step() -> the gradient's norm."""
    import torch

    from alignment.training.rl_update import Learner, Models, Settings, measure, update

    def learner(module):
        return Learner(
            module, partial(torch.optim.AdamW, lr=1e-6), lambda optimiser: SimpleNamespace(step=lambda: None)
        )

    width = max(len(each.prompt) for each in rollouts) + max(len(each.reply) for each in rollouts)
    flags = {"algorithm": args.algorithm, "gamma": 1.0, "gae_lambda": 0.95, "cliprange": 0.2, "cliprange_value": 0.2}
    flags |= {"missing_eos_penalty": 0.0, "scale_rewards": True, "num_ppo_epochs": 1, "mini_batch_size": len(rollouts)}
    flags |= {"micro_batch_tokens": args.micro_batch_size * width, "max_grad_norm": 1.0, "seed": args.seed}
    alone = SimpleNamespace(device=kit.device, process_index=0, num_processes=1)
    settings = Settings.of(SimpleNamespace(**flags), pad_id=kit.template.tokenizer.pad_token_id, accelerator=alone)
    models = Models(
        policy=learner(kit.core),
        value=learner(kit.value) if kit.value else None,
        reference=kit.reference,
        switch=kit.policy.disable_adapter if args.lora_r else None,
        autocast=kit.autocast,
    )
    return SimpleNamespace(
        generate=partial(decoded, args, kit),
        score=partial(measure, models, rollouts, settings),
        step=lambda: update(models, rollouts, settings, 0.0, 0)["grad_norm"],
        optimisers=[models.policy.optimizer, *([models.value.optimizer] if models.value else [])],
    )


def decoded(args: argparse.Namespace, kit: SimpleNamespace) -> int:
    """Tokens of the replies that our decoder gives, by the model in training or by the engine's."""
    from alignment.training.rollouts import Task, sample

    tasks = [Task(place, place, prompt, place) for place, prompt in enumerate(kit.prompts)]
    with kit.autocast():
        replies = sample(
            kit.core, tasks, template=kit.template, max_new_tokens=args.max_new_tokens, max_rows=args.replies
        )
    return sum(len(each.reply) for each in replies)


# The plain way


def plain_way(args: argparse.Namespace, kit: SimpleNamespace, rollouts: list) -> SimpleNamespace:
    """The same three by the plain way, whose rollouts get the log-probabilities and values that it finds."""
    import torch

    from alignment.training import ppo

    weights = [weight for weight in kit.core.parameters() if weight.requires_grad]
    groups = [weights, *([list(kit.value.parameters())] if kit.value else [])]
    optimisers = [torch.optim.AdamW(group, lr=1e-6) for group in groups]
    pad_id = kit.template.tokenizer.pad_token_id
    first, longest = (max(len(getattr(each, name)) for each in rollouts) for name in ("prompt", "reply"))
    micro = [rollouts[at : at + args.micro_batch_size] for at in range(0, len(rollouts), args.micro_batch_size)]

    def padded(values: list, filler: float, dtype: Any = torch.float32) -> torch.Tensor:
        rows = [[*each, *[filler] * (longest - len(each))] for each in values]
        return torch.tensor(rows, dtype=dtype, device=kit.device)  # (B, replies' width)

    def asked(model: Any, part: list) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities (B, R) of the replies' tokens, padding among them, and the states (B, R, H) before."""
        ids = [[*[pad_id] * (first - len(each.prompt)), *each.prompt] for each in part]
        ids = torch.cat([torch.tensor(ids, device=kit.device), padded([r.reply for r in part], pad_id, torch.long)], 1)
        real = torch.zeros_like(ids)
        for row, each in zip(real, part, strict=True):
            row[first - len(each.prompt) : first + len(each.reply)] = 1
        with kit.autocast():
            hidden = model.get_decoder()(input_ids=ids, attention_mask=real, use_cache=False)[0]  # (B, T, H)
            logits = model.get_output_embeddings()(hidden)  # (B, T, V)
        logps = logits[:, first - 1 : -1].float().log_softmax(-1)
        return logps.gather(2, ids[:, first:, None])[..., 0], hidden[:, first - 1 : -1].detach().float()

    @torch.no_grad()
    def score() -> None:
        for part in micro:
            logps, states = asked(kit.core, part)
            with kit.policy.disable_adapter() if args.lora_r else nullcontext():
                reference, _ = asked(kit.reference or kit.core, part)
            values = kit.value(states.flatten(0, 1)).view_as(logps) if kit.value else logps
            for row, each in enumerate(part):
                each.logps, each.reference, each.values = (
                    found[row, : len(each.reply)].cpu() for found in (logps, reference, values)
                )

    def step() -> float:
        tokens = sum(len(each.reply) for each in rollouts)
        for part in micro:
            mask = padded([[1.0] * len(each.reply) for each in part], 0.0)
            old, gains, values, returns = (
                padded([getattr(each, name).tolist() for each in part], 0.0)
                for name in ("logps", "advantages", "values", "returns")
            )
            logps, states = asked(kit.core, part)
            losses = ppo.clipped_policy_loss(torch.where(mask > 0, logps, old), old, gains, 0.2)
            ((losses * mask).sum() / tokens).backward()
            if kit.value:
                found = kit.value(states.flatten(0, 1)).view_as(values)
                losses = ppo.clipped_value_loss(found, values, returns, 0.2)
                ((losses * mask).sum() / tokens).backward()
        norm = torch.nn.utils.clip_grad_norm_(weights, 1.0).item()
        for group, optimiser in zip(groups, optimisers, strict=True):
            torch.nn.utils.clip_grad_norm_(group, 1.0)
            optimiser.step()
            optimiser.zero_grad()
        return norm

    def generate() -> int:
        ids = torch.tensor([[*[pad_id] * (first - len(prompt)), *prompt] for prompt in kit.prompts], device=kit.device)
        mask = torch.tensor([[0] * (first - len(prompt)) + [1] * len(prompt) for prompt in kit.prompts])
        how = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "use_cache": True}
        how |= {"eos_token_id": kit.template.end_id, "pad_token_id": pad_id, "max_new_tokens": args.max_new_tokens}
        with torch.no_grad(), kit.autocast():
            found = kit.core.eval().generate(input_ids=ids, attention_mask=mask.to(kit.device), **how)[:, first:]
        kit.core.train()
        ends = (found == kit.template.end_id).int()
        return int((ends.cumsum(1) - ends == 0).sum())  # to the first end, itself included

    return SimpleNamespace(generate=generate, score=score, step=step, optimisers=optimisers)


# Measuring


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Seconds of the three phases, tokens generated, the first step's gradient norm, and GiB: the peak of scoring and
    update, and how much of it is above weights, gradients and the optimiser's state."""
    import torch

    from alignment.training.trainers import return_freed_memory

    return_freed_memory()  # as train.py does on a CPU; all ways
    kit = load(args)
    peak_gib(reset=True)
    before = peak_gib() - gib_of_weights(kit)  # Python and libraries

    def timed(call: Any) -> tuple[float, Any]:
        started = kit.clock()
        found = call()
        if kit.device == "cuda":
            torch.cuda.synchronize()
        return kit.clock() - started, found

    torch.manual_seed(args.seed)
    if args.way == "engine":
        timed(partial(decoded, args, kit)) if kit.device == "cuda" else None
        seconds, tokens = timed(partial(decoded, args, kit))
        return {"generation": seconds, "tokens": tokens}
    rollouts = drawn_rollouts(args, kit)
    way = {"ours": our_way, "plain": plain_way}[args.way](args, kit, rollouts)
    way.generate() if kit.device == "cuda" else None  # once for the kernels to be chosen
    generation, tokens = timed(way.generate)
    way.score()
    grad_norm = way.step()  # the first, which makes the optimiser's state
    peak_gib(reset=True)
    scoring, _ = timed(way.score)
    update, _ = timed(way.step)
    peak = peak_gib()
    states = [value for optimiser in way.optimisers for state in optimiser.state.values() for value in state.values()]
    kept = gib_of_weights(kit, gradients=True) + sum(value.nbytes for value in states) / 2**30
    memory = {"peak": peak, "above": peak - before - kept, "grad_norm": grad_norm}
    return {"generation": generation, "tokens": tokens, "scoring": scoring, "update": update, **memory}


def gib_of_weights(kit: SimpleNamespace, gradients: bool = False) -> float:
    """Of all models, each tensor once; with the gradients of those in training."""
    modules = [module for module in (kit.core, kit.reference, kit.value) if module is not None]
    found = {id(each): each for module in modules for each in (*module.parameters(), *module.buffers())}
    return sum(each.nbytes * (1 + (gradients and each.requires_grad)) for each in found.values()) / 2**30


def peak_gib(reset: bool = False) -> float:
    """GiB at most since the last reset: what the GPU had allocated, or the process resident (Linux)."""
    import torch

    if torch.cuda.is_available():
        found = torch.cuda.max_memory_allocated()
        torch.cuda.reset_peak_memory_stats() if reset else None
        return found / 2**30
    if reset:
        Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    run(parse_args, main)
