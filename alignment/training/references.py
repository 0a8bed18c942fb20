"""DPO's reference: log-probabilities under the model as it starts, computed once and kept beside the run's checkpoints.

`reference-train-<print>.pt` and, with an evaluation set, `reference-eval-<print>.pt`: tensors (pairs, 2) of sums of
log-probabilities, chosen and rejected, under a print of the model's contents and of all ids. A resumed run reads them.
The first process alone reads and writes files and tells the others, whose disk may be another.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast, broadcast_object_list
from torch import Tensor
from transformers import TrainerCallback

from alignment.command_line import UserError, is_first
from alignment.outputs import writing


class References(TrainerCallback):
    """Fills `trainer.references` before the first step. `weights` says what model it starts from (`contents`)."""

    def __init__(self, trainer, folder: Path, weights: Any):
        self.trainer = trainer
        sets = {"train": trainer.train_dataset} | ({"eval": trainer.eval_dataset} if trainer.eval_dataset else {})
        self.items = {name: data.items for name, data in sets.items()}
        self.paths = {
            name: folder / f"reference-{name}-{print_of(weights, items) if is_first() else ''}.pt"
            for name, items in self.items.items()
        }

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        for name, path in self.paths.items():
            (is_there,) = broadcast_object_list([path.exists()])
            if not is_there and state.global_step:
                raise UserError(f"cannot resume: {path} is missing, the reference's log-probabilities")
            self.trainer.references[name] = self.read(name, path) if is_there else self.compute(name, path)

    def read(self, name: str, path: Path) -> Tensor:
        found = torch.load(path) if is_first() else torch.zeros(len(self.items[name]), 2)
        return broadcast(found.to(self.trainer.args.device)).cpu()

    def compute(self, name: str, path: Path) -> Tensor:
        found = self.trainer.pair_logps(name)
        if is_first():
            path.parent.mkdir(parents=True, exist_ok=True)
            with writing(path):
                torch.save(found, path.with_suffix(".tmp"))
                path.with_suffix(".tmp").rename(path)
        return found


def print_of(weights: Any, items) -> str:
    """A print of a model's contents and of all ids."""
    digest = hashlib.sha256(json.dumps(weights).encode())
    for sample in (sample for item in items for sample in item):
        digest.update(f"{sample.row}{sample.prompt_length}{sample.ids}".encode())
    return digest.hexdigest()[:16]
