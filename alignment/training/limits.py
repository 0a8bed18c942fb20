"""Training that stops after a step, where --budget_tokens or --max_hours say, with a checkpoint to go on from."""

from __future__ import annotations

import time
from argparse import Namespace
from typing import TYPE_CHECKING

from transformers import TrainerCallback

from alignment.training.ranks import of_all

if TYPE_CHECKING:
    from alignment.training.trainers import AlignmentTrainer


class StepLimits:
    """What a run has read and how long it has taken, beside what it may."""

    def __init__(self, args: Namespace):
        self._budget, self._hours, self._started = args.budget_tokens, args.max_hours, time.monotonic()

    def reached(self, tokens: int) -> str | None:
        """The flag that says to stop after a step that has read so many tokens on all ranks, or None. All ranks ask
        together, and one clock that says so is enough."""
        if self._budget:
            self._budget.spent += tokens
            if self._budget.spent >= self._budget.most:
                return f"--budget_tokens {self._budget}"
        if self._hours and any(of_all(time.monotonic() - self._started > 3600 * self._hours)):
            return f"--max_hours {self._hours:g}"
        return None


class StopAtLimit(TrainerCallback):
    """Tells the trainer to save and to stop; `trainer.stopped` is then what there is to say."""

    def __init__(self, trainer: AlignmentTrainer, args: Namespace):
        self.trainer, self.limits = trainer, StepLimits(args)

    def on_step_end(self, args, state, control, **kwargs):
        limit = self.limits.reached(int(self.trainer.step_tokens))
        if limit and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = True
            self.trainer.stopped = (
                f"stopped at {limit} after step {state.global_step} of {state.max_steps}; a checkpoint is saved, from "
                "which the same command with --resume_from_checkpoint True goes on"
            )
