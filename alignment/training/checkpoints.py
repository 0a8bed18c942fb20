"""Checkpoints that many processes write and any number of them reads.

    checkpoint-<N>/pytorch_model_fsdp_0/, optimizer_0/   under FSDP: each process's shards; .metadata comes last
    checkpoint-<N>/config.json, tokenizer                beside them, for merge.py; of LoRA the adapter, whole
    checkpoint-<N>/step.json                             how many rows a step has, over all processes

Shards are written while training goes on: the next checkpoint and the end of training wait for them. What is older is
taken away once a checkpoint is whole, so that there is always one to go on from (`run_cards.why_not_whole`).
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from alignment.command_line import UserError, say
from alignment.outputs import writing
from alignment.pretrained import first_line
from alignment.run_cards import SHARDED
from alignment.training.ranks import PATIENCE, meet

MODEL, OPTIMISER = (f"{name}0" for name in SHARDED)
STEP, ADAPTER_WEIGHTS = "step.json", "adapter_model.safetensors"


def is_sharded(checkpoint: Path) -> bool:
    return any(checkpoint.glob(f"{SHARDED[0]}*"))


def check_checkpoint(trainer: Trainer, checkpoint: Path) -> None:
    """Raise UserError where the trainer cannot read a checkpoint: FSDP's go on anywhere, others not under FSDP."""
    if trainer.is_fsdp_enabled and not is_sharded(checkpoint):
        raise UserError(f"{checkpoint} is not sharded: go on as it was made, without --fsdp, or from another")


# A step has the same rows on any number of processes


def rows_per_step(args: TrainingArguments) -> int:
    return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size


def keep_step(args: TrainingArguments, checkpoint: Path) -> int:
    """How many rows a step has: what the arguments say, or what the steps before a checkpoint had. Then the
    accumulation becomes what these take on so many processes, which is said."""
    rows = told = rows_per_step(args)
    if (checkpoint / STEP).is_file():
        rows = json.loads((checkpoint / STEP).read_text(encoding="utf-8"))["rows"]
    if rows != told:
        args.gradient_accumulation_steps = math.ceil(rows / (args.per_device_train_batch_size * args.world_size))
        say(
            f"translated: a step of {checkpoint} has {rows} rows, not {told} -> --gradient_accumulation_steps "
            f"{args.gradient_accumulation_steps} on {args.world_size} processes, and the same rows in each step"
        )
    return rows


# Written


class Saving:
    """Checkpoints of an AlignmentTrainer, the last of which may still be on its way to the disk."""

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.place: Path | None = None  # the checkpoint that is being written
        self.parts: list[Future] = []
        self.groups: list[Any] = []  # of processes, one for each part: both are written at a time

    def begin(self, place: Path) -> None:
        """Make an empty folder for a checkpoint. All processes call it together."""
        self.place, args = place, self.trainer.args
        if args.should_save:
            shutil.rmtree(place, ignore_errors=True)  # of a run that went on from before it: it would look whole
            place.mkdir(parents=True)
            (place / STEP).write_text(json.dumps({"rows": self.trainer.rows_per_step, "processes": args.world_size}))
        meet()

    def shards(self, folder: Path) -> None:
        """Copy this process's shards, and begin to write them. All processes call it together."""
        trainer, model = self.trainer, self.trainer.model
        write_beside(trainer, folder)
        state = {
            MODEL: {"model": weights_in_training(model)},
            OPTIMISER: {"optimizer": get_optimizer_state_dict(model, trainer.optimizer)},
        }
        self.groups = self.groups or [distributed.new_group(backend="gloo", timeout=PATIENCE) for _ in state]
        for name in state:
            (folder / name).mkdir(parents=True, exist_ok=True)  # without .metadata: it is not whole
        for (name, part), group in zip(state.items(), self.groups, strict=True):
            self.parts.append(dcp.async_save(part, checkpoint_id=folder / name, process_group=group))

    def finish(self) -> None:
        """Wait until the last checkpoint is whole, and then take away what --save_total_limit leaves out. Raises
        UserError where it cannot be written, and removes it."""
        place, parts, self.place, self.parts = self.place, self.parts, None, []
        if place is None:
            return
        with removed_unless_written(place):
            for part in parts:
                result_of(part)
        args = self.trainer.args
        if args.should_save:
            best = self.trainer.state.best_model_checkpoint
            rotate_checkpoints(str(place.parent), args.save_total_limit, best, use_mtime=True)


@contextmanager
def removed_unless_written(place: Path) -> Iterator[None]:
    """UserError where a checkpoint cannot be written, of which nothing stays then."""
    try:
        with writing(place):
            yield
    except UserError:
        shutil.rmtree(place, ignore_errors=True)
        raise


def result_of(part: Future) -> None:
    """Wait for shards to be written. Raises what any process met."""
    try:
        part.result()
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from error


def weights_in_training(model: nn.Module) -> dict[str, Any]:
    """This process's shards of the weights, of LoRA of the adapter alone, under a plain checkpoint's names."""
    if hasattr(model, "peft_config"):
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(model, adapter_name=model.active_adapter)
    return get_model_state_dict(model)


def saved_dtype(trainer: Trainer) -> torch.dtype:
    args = trainer.args
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def write_beside(trainer: Trainer, folder: Path) -> None:
    """What a checkpoint of shards lacks to be read without the run: config and tokenizer, or LoRA's adapter, whole."""
    model = trainer.model
    if hasattr(model, "peft_config"):
        weights = weights_in_training(model)
        whole = {name: part.full_tensor() if isinstance(part, DTensor) else part for name, part in weights.items()}
    if not trainer.args.should_save:
        return
    trainer.processing_class.save_pretrained(folder)
    if hasattr(model, "peft_config"):
        save_file({name: part.cpu().contiguous() for name, part in whole.items()}, folder / ADAPTER_WEIGHTS)
        model.peft_config[model.active_adapter].save_pretrained(folder)
    else:
        config = copy.deepcopy(model.config)
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.dtype = saved_dtype(trainer)
        config.save_pretrained(folder)
        if model.can_generate():
            model.generation_config.save_pretrained(folder)


# Read


def load_weights(model: nn.Module, checkpoint: Path) -> None:
    """A checkpoint's shards into a model that is whole, or spread over any number of processes."""
    state = {"model": weights_in_training(model)}
    read_shards(state, checkpoint / MODEL)
    if hasattr(model, "peft_config"):
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, state["model"], adapter_name=model.active_adapter)
    else:
        set_model_state_dict(model, state["model"])


def load_optimiser(model: nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Path) -> None:
    state = {"optimizer": get_optimizer_state_dict(model, optimiser)}
    read_shards(state, checkpoint / OPTIMISER)
    set_optimizer_state_dict(model, optimiser, state["optimizer"])


def read_shards(state: dict[str, Any], folder: Path) -> None:
    """Fill the tensors of `state`. Raises UserError where these are of another model."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process reads all
            dcp.load(state, checkpoint_id=folder, no_dist=not distributed.is_initialized())
    except CheckpointException as error:
        cause = next(iter(error.failures.values()))[0]
        raise UserError(f"{folder.parent} does not fit this model: {first_line(cause)}") from error
