"""What a training run shows and leaves: a bar on the terminal, history.jsonl and history.png in its folder, and what
--report_to names.

Each line of history.jsonl is what Trainer logged at a step: {"step", "epoch", "loss", "learning_rate", "grad_norm"},
and what the objective adds to them.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import get_available_reporting_integrations

from alignment.command_line import UserError, bar
from alignment.outputs import writing


def check_reports(names: Sequence[str]) -> None:
    """Raise UserError where --report_to names what transformers does not know, or what is not installed."""
    installed = get_available_reporting_integrations()
    for name in names:
        if name not in ("none", "all", *installed):
            here = ", ".join(installed) or "nothing"
            raise UserError(f"--report_to {name}: transformers knows no such report, or it is not installed; {here} is")


class History(TrainerCallback):
    """history.jsonl: one line a logged step, written as it comes; history.png: the same as one picture."""

    def __init__(self, folder: Path):
        self.path = folder / "history.jsonl"

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with writing(self.path):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.path.write_text("".join(json.dumps(line) + "\n" for line in state.log_history))

    def on_log(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            with writing(self.path), self.path.open("a") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_evaluate(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:  # the last one, when training has ended
            self.on_train_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            draw_history(state.log_history, self.path.with_suffix(".png"))


PANELS = ("loss", "accuracy", "margin", "learning_rate", "grad_norm")
ACROSS = 5  # panels in a line of the picture


def draw_history(history: Sequence[dict], path: Path, panels: Sequence[str] = PANELS) -> None:
    """Each panel's number over steps, those that the run has; eval as dots."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print("matplotlib is not installed: history.jsonl is written, history.png is not")
        return
    names = [name for name in panels if any(name in line for line in history)]
    across = min(max(len(names), 1), ACROSS)
    down = -(-len(names) // across)
    figure = Figure(figsize=(4 * across, 3 * max(down, 1)), layout="constrained")
    for place, name in enumerate(names):
        axes = figure.add_subplot(down, across, place + 1, title=name.replace("_", " "), xlabel="step")
        for key, style in ((name, "-"), (f"eval_{name}", "o"), (f"longer_wins_{name}", ":")):
            points = [(line["step"], line[key]) for line in history if key in line]
            if points:
                axes.plot(*zip(*points, strict=True), style, label=key)
        axes.legend(fontsize="x-small")
    with writing(path):
        figure.savefig(path, dpi=120)


class Bar(TrainerCallback):
    """A bar with loss, accuracy, tokens per second and ETA; off a terminal, a line every half minute."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = None
        if state.is_world_process_zero:
            self.bar = bar(total=state.max_steps, initial=state.global_step, desc="train", unit="step", leave=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if state.is_world_process_zero and logs and getattr(self, "bar", None) is not None and "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4f}", "tok/s": f"{logs['tokens_per_second']:,.0f}"}
            if "accuracy" in logs:
                shown["accuracy"] = f"{logs['accuracy']:.3f}"
            self.bar.set_postfix(shown, refresh=False)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero:
            shown = ", ".join(f"{name} {value:.4f}" for name, value in (metrics or {}).items() if "eval" in name)
            tqdm.write(f"step {state.global_step}: {shown}")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
