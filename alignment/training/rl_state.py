"""A run of reinforcement on disk: checkpoints that it goes on from bit for bit, and the rollouts of the step in hand.

    checkpoint-<N>/model.pt            after N steps: weights in training, optimisers, schedules, running statistics, λ
    checkpoint-<N>/trainer_state.json  {"global_step", "log_history"}, written last
    rollouts.pt                        of the step in hand, once scored: a judge is not asked twice

Random numbers have no state: each is derived from the seed, the step and what it is for.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed

from alignment.command_line import UserError, is_first
from alignment.outputs import writing
from alignment.records import write_whole
from alignment.run_cards import ASIDE
from alignment.training.history import draw_history
from alignment.training.ppo import KLController
from alignment.training.rewards import Rewards
from alignment.training.rl_monitor import PANELS
from alignment.training.rl_update import Learner, Models
from alignment.training.rollouts import Rollout, of_all_ranks

STATE, WEIGHTS, ROLLOUTS, HISTORY = "trainer_state.json", "model.pt", "rollouts.pt", "history.jsonl"


def save_checkpoint(folder: Path, step: int, state: dict[str, Any], history: Sequence[dict], keep: int | None) -> None:
    """Write checkpoint-<step>, renamed into place when it is whole, and take away all but the newest `keep`."""
    if not is_first():
        return
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder))
    try:
        with writing(folder):
            save_tensors(aside / WEIGHTS, state)
            (aside / STATE).write_text(json.dumps({"global_step": step, "log_history": list(history)}))
            place = folder / f"checkpoint-{step}"
            shutil.rmtree(place, ignore_errors=True)
            aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: -int(path.name.partition("-")[2]))
    for path in found[keep:] if keep else ():
        shutil.rmtree(path, ignore_errors=True)


def load_checkpoint(checkpoint: Path) -> tuple[int, dict[str, Any], list[dict]]:
    """(steps made, state, history)."""
    told = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return told["global_step"], load_tensors(checkpoint / WEIGHTS), told["log_history"]


class Progressed:
    """How far a run has come, in memory and in its folder. `run` tells it from others, whose rollouts it leaves."""

    def __init__(self, folder: Path, models: Models, rewards: Rewards, controller: KLController, run: str):
        self.folder, self.models, self.rewards, self.controller, self.run = folder, models, rewards, controller, run
        self.step = 0  # steps made
        self.stopped: str | None = None  # why before the last
        self.history: list[dict[str, Any]] = []
        self.columns: list[dict[str, Any]] = []  # of the page of samples

    def learners(self) -> dict[str, Learner]:
        found = {"policy": self.models.policy, "value": self.models.value}
        return {name: learner for name, learner in found.items() if learner}

    def save(self, keep: int | None) -> None:
        """A checkpoint. All ranks call it, as all gather what is sharded."""
        state = {name: learner.state() for name, learner in self.learners().items()}
        state |= {"rewards": self.rewards.state_dict(), "kl_coef": self.controller.coef, "columns": self.columns}
        save_checkpoint(self.folder, self.step, state, self.history, keep)

    def load(self, checkpoint: Path) -> None:
        """Go on from a checkpoint. Raises UserError where it is of other models."""
        self.step, state, self.history = load_checkpoint(checkpoint)
        for name, learner in self.learners().items():
            try:
                learner.load(state[name])
            except (KeyError, RuntimeError, ValueError) as error:
                raise UserError(
                    f"{checkpoint} does not fit the {name} of this run: {str(error).splitlines()[0]}"
                ) from error
        self.rewards.load_state_dict(state["rewards"])
        self.controller.coef, self.columns = state["kl_coef"], state["columns"]
        if is_first():
            lines = [json.dumps(line) + "\n" for line in self.history]
            write_whole(self.folder / HISTORY, lines)

    def rollouts(self, make: Callable[[], list[Rollout]]) -> list[Rollout]:
        """The scored rollouts of the step in hand: those that a stopped run left of it, or else what `make` makes."""
        self.before = self.rewards.state_dict()  # the step's rollouts
        world = 1 if not distributed.is_initialized() else distributed.get_world_size()
        found = of_all_ranks(self._left() if is_first() else None, world)[0]
        if found:
            self.rewards.load_state_dict(found["rewards"])
            return [Rollout(**each) for each in found["rollouts"]]
        made = make()
        if is_first():
            kept = {"rollouts": [dict(vars(each)) for each in made], "rewards": self.rewards.state_dict()}
            with writing(self.folder / ROLLOUTS):
                save_tensors(self.folder / ROLLOUTS, {"run": self.run, "step": self.step, **kept})
        return made

    def without_step(self, error: UserError, keep: int | None) -> UserError:
        """What to raise where the step in hand has rollouts that are not the policy's: they are thrown away, and all
        that was made before them is in a checkpoint."""
        self.rewards.load_state_dict(self.before)
        (self.folder / ROLLOUTS).unlink(missing_ok=True)
        remedy = "give --rollouts decoding"
        if self.step:
            self.save(keep)
            remedy += f" and --resume_from_checkpoint {self.folder / f'checkpoint-{self.step}'}"
        return UserError(f"step {self.step + 1}: {error}; nothing was learned from these; {remedy}")

    def _left(self) -> dict[str, Any] | None:
        path = self.folder / ROLLOUTS
        found = load_tensors(path) if path.exists() else {}
        return found if (found.get("run"), found.get("step")) == (self.run, self.step) else None

    def log(self, line: dict[str, Any]) -> None:
        """A step is made: its numbers into the history."""
        self.history.append(line)
        self.step += 1
        if is_first():
            path = self.folder / HISTORY
            with writing(path), path.open("a" if self.step > 1 else "w") as file:
                file.write(json.dumps(line) + "\n")


def drawn(folder: Path) -> None:
    """At the end: history.png, and away with the rollouts of the step in hand."""
    history = (
        [json.loads(line) for line in (folder / HISTORY).read_text().splitlines()]
        if (folder / HISTORY).exists()
        else []
    )
    draw_history(history, folder / "history.png", PANELS)
    (folder / ROLLOUTS).unlink(missing_ok=True)


def save_tensors(path: Path, state: dict[str, Any]) -> None:
    """torch.save, whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_tensors(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)
