"""What a training would take (planning.py): all its rows are encoded, and some are trained on for a few steps.

The steps are the trainer's own, in a folder that goes, of one micro-batch each; the first is not timed. The time of all
is then tokens · (seconds a token) + steps · (seconds that the optimiser takes) + the start, and as much again at the
end, where a fresh process loads what was saved. With --hardware nothing is loaded: footprint.py tells.
"""

from __future__ import annotations

import math
import os
import resource
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import torch
from transformers import IntervalStrategy, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from alignment.footprint import ADAM, Shape, Training
from alignment.planning import GIB, Plan, number_of
from alignment.training.batches import Item, epoch_batches, pack, shuffled
from alignment.training.reward_specs import parse_rewards

TIMED = 3  # steps, after one that is not
LONG = 60.0  # seconds after which no further step is timed
LOOKED_AT = 200  # steps whose micro-batches are made up, to find the largest
CHECKED = 8 * 4 / 3  # rows that are asked at the end, in four passes without backward


class Rows(NamedTuple):
    """What is learned: items; how many make a step on so many ranks; and tokens of an item that are held at once."""

    items: Sequence[Item]
    per_step: Callable[[int], int]
    held: Callable[[Item], int]

    @property
    def tokens(self) -> int:
        return sum(map(length, self.items))


def length(item: Item) -> int:
    return sum(map(len, item))


def distinct(item: Item) -> int:
    """Tokens that go through the model: what all of an item's samples begin with goes once."""
    first, last = min(sample.ids for sample in item), max(sample.ids for sample in item)
    shared = next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
    return length(item) - (len(item) - 1) * shared


def plan_objective(
    args: Namespace, train_args: TrainingArguments, items: Sequence[Item], build: Callable[[Sequence[Item]], Any]
) -> NoReturn:
    """The plan of train.py, whose trainer of some items `build` makes."""
    half, each = 2 if args.bf16 or args.fp16 else 4, args.per_device_train_batch_size * args.gradient_accumulation_steps
    recipe = partial(
        Training,
        Shape.of(args.model_name_or_path, args.cache_dir),
        kept=half if args.lora_r else 4,
        computed=half,
        is_sharded=bool(args.fsdp),
        is_checkpointed=args.gradient_checkpointing,
        optimiser=str(train_args.optim),
        on="cuda" if args.plan.hardware else train_args.device.type,
        **lora_of(args),
    )

    def make(some: Sequence[Item]) -> Any:
        trainer = build([(sample,) for item in some for sample in item] if args.packing else some)
        if args.objective == "dpo":
            trainer.references["train"] = torch.zeros(len(some), 2)
        return trainer

    items = pack(shuffled(items, args.seed), args.model_max_length) if args.packing else items
    rows = Rows(items, lambda ranks: each * ranks, length if args.packing else distinct)
    plan_training(args, train_args, rows, recipe, make, before=args.objective == "dpo")


def plan_cut(
    args: Namespace, train_args: TrainingArguments, items: Sequence[Item], build: Callable[[Sequence[Item]], Any]
) -> NoReturn:
    """The plan of finetune_unlikelihood.py. A pass takes one line of each row; where LoRA's dropout makes them differ,
    both lines are seen once more."""
    size = 2 if (args.plan.hardware and not args.full_finetuning) or train_args.bf16 else 4
    recipe = partial(
        Training,
        Shape.of(args.base_model),
        kept=4 if args.full_finetuning else size,
        computed=size,
        on="cuda" if args.plan.hardware else train_args.device.type,
        **({} if args.full_finetuning else lora_of(args)),
    )
    rows = Rows(items, lambda ranks: args.batch_size, lambda item: max(map(len, item)))
    plan_training(args, train_args, rows, recipe, build, more=float(bool(args.lora_dropout)))


def lora_of(args: Namespace) -> dict[str, Any]:
    return {"lora_r": args.lora_r, "lora_targets": tuple(args.lora_target_modules), "lora_dropout": args.lora_dropout}


def plan_training(
    args: Namespace,
    train_args: TrainingArguments,
    rows: Rows,
    recipe: Callable[..., Training],
    make: Callable[[Sequence[Item]], Any],
    *,
    before: float = 0.0,
    more: float = 0.0,
) -> NoReturn:
    """Fill args.plan, and end the rehearsal. `recipe(tokens=, ranks=, accumulates=)` is the training as footprint.py
    knows it, `make(items)` its trainer. `before` and `more` are passes without backward: before the first step over all
    tokens, and beside each."""
    plan: Plan = args.plan
    ranks = plan.hardware.count if plan.hardware else train_args.world_size
    per_step = rows.per_step(ranks)
    micro = train_args.per_device_train_batch_size
    accumulation = max(1, per_step // (micro * ranks))
    each_epoch = math.ceil(len(rows.items) / per_step)
    steps = train_args.max_steps if train_args.max_steps > 0 else math.ceil(each_epoch * train_args.num_train_epochs)
    epochs = steps / each_epoch
    held = largest(rows, per_step, accumulation, ranks, train_args.seed)
    training = recipe(tokens=held, ranks=ranks, accumulates=accumulation > 1)
    saved = disk(training, train_args, steps) + 4 * rows.tokens
    lines = [
        ("rows", f"{len(rows.items):,}"),
        ("tokens an epoch (all counted)", f"{rows.tokens:,}"),
        (f"optimiser steps ({number_of(epochs)} epochs, {per_step:,} rows a step)", f"{steps:,}"),
    ]
    if plan.hardware:
        told, where = training.peak(), f"memory of each of {ranks} ranks, GiB"
        mean = rows.tokens / len(rows.items)
        passes = epochs * (1 + more / 3) + before / 3
        seconds = passes * rows.tokens * training.flops(mean) / (plan.hardware.flops * ranks)
    else:
        probe = probed(plan, train_args, rows, make)
        tried = recipe(tokens=probe.held, ranks=ranks, accumulates=False)
        more_held = sum(training.peak().values()) - sum(tried.peak().values())
        told = {"the probe's": probe.peak, "largest batch": max(0.0, more_held)}
        where = "memory, GiB" if probe.on_cpu else f"memory of each of {ranks} ranks, GiB"
        passes = epochs + before / 3
        check = CHECKED / len(rows.items)
        seconds = (passes + check) * rows.tokens * probe.token + steps * probe.optimiser + 2 * probe.start
    lines.append((f"{where} ({shown(told)})", f"{sum(told.values()) / GIB:.2f}"))
    lines.append(("disk, MB (model, checkpoints, ids)", number_of(saved / 1e6)))
    lines.append((f"hours ({plan.where})", number_of(seconds / 3600)))
    if plan.prices:
        lines.append(plan.by_the_hour(seconds / 3600))
    plan.lines = lines
    plan.end()


def shown(told: dict[str, float]) -> str:
    return ", ".join(f"{name} {value / GIB:.2f}" for name, value in told.items() if value)


def largest(rows: Rows, per_step: int, accumulation: int, ranks: int, seed: int) -> int:
    """Tokens of the largest micro-batch of the first steps."""
    lengths = [max(map(len, item)) for item in rows.items]
    batches = epoch_batches(lengths, per_step, accumulation * ranks, 0, 1, seed)
    some = islice(batches, LOOKED_AT * accumulation * ranks)
    return max(sum(rows.held(rows.items[number]) for number in batch if number >= 0) for batch in some)


def disk(training: Training, args: TrainingArguments, steps: int) -> float:
    """Bytes of what is saved at the end, and of the checkpoints that are there at once, of which one is being made."""
    weights = training.trained * (4 if training.lora_r else 2 if args.bf16 or args.fp16 else 4)
    kind = getattr(args.save_strategy, "value", args.save_strategy)
    if kind == "no":
        return weights
    every = steps / max(1, args.num_train_epochs) if kind == "epoch" else args.save_steps
    every = max(1, every * steps if every < 1 else every)
    count = math.floor(steps / every) or 1  # HF Trainer makes one at the last step too
    kept = min(count, args.save_total_limit + 1) if args.save_total_limit else count
    return weights + kept * training.trained * (4 + ADAM)


class Probe(NamedTuple):
    """Seconds a token and an optimiser step, and of the start; the peak in bytes, with so many tokens held."""

    token: float
    optimiser: float
    start: float
    peak: float
    held: int
    on_cpu: bool


def probed(plan: Plan, args: TrainingArguments, rows: Rows, make: Callable[[Sequence[Item]], Any]) -> Probe:
    """Train for a few steps on rows that are drawn, and see."""
    micro = args.per_device_train_batch_size * args.world_size
    some = plan.draw.sample(list(rows.items), min(len(rows.items), micro * (1 + TIMED)))
    with tempfile.TemporaryDirectory(prefix="plan-") as folder:
        args.output_dir, args.gradient_accumulation_steps, args.max_steps, args.report_to = folder, 1, 1 + TIMED, []
        args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
        trainer = make(some)
        now = plan.clock(in_process=True)
        clock = Clock(trainer, rows.held, now)
        trainer.add_callback(clock)
        began = now()
        trainer.train()
    timed = clock.steps[1:] or clock.steps
    tokens = sum(each.tokens for each in timed)
    return Probe(
        token=sum(each.passes for each in timed) / tokens,
        optimiser=sum(each.optimiser for each in timed) / len(timed),
        start=began - plan.began[now],
        peak=clock.peak,
        held=clock.held,
        on_cpu=args.device.type == "cpu",
    )


class Step(NamedTuple):
    tokens: int
    passes: float  # seconds
    optimiser: float  # likewise


class Clock(TrainerCallback):
    """What each step took."""

    def __init__(self, trainer: Any, held: Callable[[Item], int], now: Callable[[], float]):
        self.trainer, self._held, self._now = trainer, held, now
        self.steps: list[Step] = []
        self.held, self.peak, self._began = 0, 0.0, time.monotonic()

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = self._now()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        synchronise()
        self._passed = self._now()

    def on_optimizer_step(self, args, state, control, **kwargs):
        synchronise()
        seconds = self._passed - self._start, self._now() - self._passed
        self.steps.append(Step(int(self.trainer.step_tokens), *seconds))

    def on_step_end(self, args, state, control, **kwargs):
        rows = {int(row) for batch in self.trainer.last_batches for row in batch["rows"]}
        items = [item for item in self.trainer.train_dataset.items if item[0].row in rows]
        self.held = max(self.held, sum(map(self._held, items)))
        self.peak = peak_here()
        if time.monotonic() - self._began > LONG and len(self.steps) > 1:
            control.should_training_stop = True


def peak_here() -> float:
    """Bytes at most so far: allocated on the GPU, or resident of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# Reinforcement

REHEARSED = 2  # steps that are made here


def plan_rl(args: Namespace, prompts: Sequence[Sequence[int]], steps: int, history: Sequence[dict] = ()) -> NoReturn:
    """Fill args.plan, and end the rehearsal: by the `history` of its first steps, or without one by data sheets, every
    reply as long as it may be."""
    plan: Plan = args.plan
    replies, prompt = steps * args.rollout_batch_size, sum(map(len, prompts)) / len(prompts)
    written = sum(line["length"] for line in history) / len(history) if history else args.max_new_tokens
    known = f"as {len(history)} steps here" if history else "at most"
    lines = [
        ("prompts", f"{len(prompts):,}"),
        (f"steps ({args.rollout_batch_size:,} replies each)", f"{steps:,}"),
        ("tokens read by the policy (all counted)", f"{replies * prompt:,.0f}"),
        (f"tokens written ({known})", f"{replies * written:,.0f}"),
    ]
    shape = Shape.of(args.model_name_or_path, args.cache_dir)
    training = rl_training(args, shape, prompt + args.max_new_tokens)
    if history:
        timed = history[1:] or history
        each = sum(line["sampling_seconds"] + line["update_seconds"] for line in timed) / len(timed)
        start = (
            time.perf_counter()
            - plan.began[time.perf_counter]
            - sum(line["sampling_seconds"] + line["update_seconds"] for line in history)
        )
        seconds, told = steps * each + 2 * start, {"measured": peak_here()}
    else:
        seconds = steps * rl_step_seconds(args, shape, prompt, training)
        told = training.peak()
    lines.append((f"memory of each rank, GiB ({shown(told)})", f"{sum(told.values()) / GIB:.2f}"))
    kept = min(steps // args.save_steps, args.save_total_limit + 1) if args.save_steps else 0
    saved = 4 * shape.weights if not args.lora_r else 4 * training.trained
    lines.append(("disk, MB (model, checkpoints)", number_of((saved + kept * training.trained * (4 + ADAM)) / 1e6)))
    lines.append((f"hours ({plan.where})", number_of(seconds / 3600)))
    if plan.prices:
        lines.append(plan.by_the_hour(seconds / 3600))
    plan.lines = lines
    plan.end()


def rl_training(args: Namespace, shape: Shape, length: float) -> Training:
    """The policy's training, and beside it the reference, the reward model and PPO's values, each as large as it."""
    models = sum(spec.kind == "model" for spec in parse_rewards(args.reward))
    kept = 2 if args.lora_r and args.bf16 else 4
    others = models * 4 * shape.weights
    if not args.lora_r:
        others += 4 * shape.weights
        others += 16 * shape.weights if args.algorithm == "ppo" and models and args.value_model != "policy" else 0
    ranks = args.plan.hardware.count if args.plan.hardware else int(os.environ.get("WORLD_SIZE", 1))
    return Training(
        shape,
        tokens=round(min(args.micro_batch_tokens, args.mini_batch_size / ranks * length)),
        kept=kept,
        computed=2 if args.bf16 else 4,
        ranks=ranks,
        is_sharded=bool(args.fsdp),
        is_checkpointed=args.gradient_checkpointing,
        accumulates=True,
        lora_r=args.lora_r,
        lora_targets=tuple(args.lora_target_modules),
        on="cuda" if args.plan.hardware or torch.cuda.is_available() else "cpu",
        others=others / (ranks if args.fsdp else 1),
    )


def rl_step_seconds(args: Namespace, shape: Shape, prompt: float, training: Training) -> float:
    """Replies are written, scored by each reward model, measured by policy, reference and values, and learned from."""
    sheet, replies, written = args.plan.hardware, args.rollout_batch_size, args.max_new_tokens
    rows = min(args.generation_batch_size, math.ceil(replies / sheet.count))
    rounds = math.ceil(replies / sheet.count / rows)
    step = max(
        training.computed * shape.weights / (sheet.tb_per_second * 1e12 * sheet.read),
        rows * shape.forward_flops(prompt + written) / sheet.flops,
    )
    values = args.algorithm == "ppo" and args.value_model != "policy"
    scored = sum(spec.kind == "model" for spec in parse_rewards(args.reward))
    passes = scored + 2 + values + 3 * args.num_ppo_epochs * (1 + values)
    tokens = replies * (prompt + written)
    return rounds * written * step + passes * tokens * shape.forward_flops(prompt + written) / (
        sheet.flops * sheet.count
    )
