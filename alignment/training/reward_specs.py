"""The words of --reward: what each means, and the Python functions among them.

    parse_rewards(["outputs/reward-model", "brief.py:short=0.1", "judge:rubric=2"])      # rewards.py says what they are
    function = load_function(spec)
    checked(function(rows, responses), len(rows), "reward function brief.py:short")

Imports no torch.
"""

from __future__ import annotations

import importlib.util
import inspect
import math
import os
import re
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.command_line import UserError, nearest
from alignment.judging.judgments import FORMS
from alignment.records import is_number


class Spec(NamedTuple):
    """One word of --reward. `place` is a model, a file or a judge's form; `name` what history calls it."""

    text: str
    kind: str  # model | function | judge
    name: str
    place: str
    function: str
    weight: float


def parse_rewards(texts: Sequence[str]) -> list[Spec]:
    """The words of --reward. UserError where one cannot be meant, or two have one name."""
    specs = [parse_reward(text) for text in texts]
    if not specs:
        raise UserError("--reward is missing: give a reward model, FILE.py:FUNCTION or judge:rubric")
    names = Counter(spec.name for spec in specs)
    specs = [spec if names[spec.name] == 1 else spec._replace(name=spec.place + spec.function) for spec in specs]
    twice = [name for name, times in Counter(spec.name for spec in specs).items() if times > 1]
    if twice:
        raise UserError(f"--reward names {twice[0]} twice; give it once, with the weight of both")
    return specs


def parse_reward(text: str) -> Spec:
    what, _, given = text.rpartition("=")
    if not what or os.path.exists(text):  # a path may have an = in it
        what, given = text, "1"
    try:
        weight = float(given)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise UserError(f"--reward {text}: its weight {given!r} is no number")
    if what.startswith("judge:"):
        form = what.removeprefix("judge:")
        if form not in ("rubric", *FORMS):
            known = ("rubric", *FORMS)
            raise UserError(f"--reward {text}: the form {form!r} is none of {', '.join(known)}{nearest(form, known)}")
        return Spec(text, "judge", what, form, "", weight)
    if found := re.fullmatch(r"(.+\.py):(\w+)", what):
        return Spec(text, "function", found[2], found[1], found[2], weight)
    if what.endswith(".py"):
        raise UserError(f"--reward {text}: name the function too, as {what}:FUNCTION")
    return Spec(text, "model", Path(what).name or what, what, "", weight)


# Functions


def load_function(spec: Spec) -> Callable:
    """The function of a file. Raises UserError where there is none that takes rows and responses."""
    path = Path(spec.place)
    if not path.is_file():
        raise UserError(f"--reward {spec.text}: {path} does not exist")
    found = importlib.util.spec_from_file_location(f"reward_{path.stem}", path)
    module = sys.modules[found.name] = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except Exception as error:  # the user's own code, which may raise anything
        raise UserError(f"--reward {spec.text}: importing {path} {told(error, spec.place)}") from error
    function = getattr(module, spec.function, None)
    if not callable(function):
        names = [name for name, value in vars(module).items() if callable(value)]
        raise UserError(f"--reward {spec.text}: {path} has no function {spec.function}{nearest(spec.function, names)}")
    try:
        inspect.signature(function).bind([], [])
    except (TypeError, ValueError):
        raise UserError(f"--reward {spec.text}: {spec.function} does not take (rows, responses)") from None
    return function


def told(error: Exception, file: str) -> str:
    """`raised KeyError: 'answer' (line 12)`, the line of the user's file that it passed last."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if os.path.abspath(frame.filename) == os.path.abspath(file)]
    message = (str(error).strip() or "no message").splitlines()[0]
    return f"raised {type(error).__name__}: {message}" + (f" (line {lines[-1]})" if lines else "")


def checked(found: Any, count: int, what: str) -> list[float | None]:
    """The rewards that a function gave: so many numbers, truth values among them as 1 and 0, or None."""
    if not isinstance(found, list):
        raise UserError(f"{what} gave a {type(found).__name__}, not a list of numbers")
    if len(found) != count:
        raise UserError(f"{what} gave {len(found)} rewards for {count} responses; give one for each, or None")
    values: list[float | None] = []
    for number, value in enumerate(found):
        value = value.item() if hasattr(value, "item") else value  # a NumPy or torch number
        if value is not None and not isinstance(value, bool) and not is_number(value):
            shown = repr(value) if isinstance(value, float) else f"a {type(value).__name__}"
            raise UserError(f"{what}, row {number}: {shown} is no number; give None for what cannot be scored")
        values.append(None if value is None else float(value))
    return values
