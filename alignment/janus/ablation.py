"""What a system message does: the same rows under their own message, none, another instruction's, the opposite one.

    true      the row's own message
    empty     none; what the template makes of a row without one (some chat templates put in a line of their own)
    shuffled  a message of another instruction: instructions are passed on along one circle, drawn by the seed, so that
              none keeps its own, and those with equally many messages lose none
    opposite  of the other messages of the same instruction the one least like the row's own

Likeness is ROUGE-L of the messages, not of the preference sets behind them: a message is what a model reads, and rows
of a collection may come without their sets. A row for which a condition has no message is left out of it, and counted.

A statistic is a mean over rows; its interval a bootstrap over instructions, since the rows of one instruction share
what makes it hard. Conditions are compared with `true` row by row, on the rows that have both.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from alignment.command_line import UserError
from alignment.generation import record_seed
from alignment.intervals import bootstrap
from alignment.janus.rows import published
from alignment.rouge import rouge_l

CONDITIONS = ("true", "empty", "shuffled", "opposite")
NUMBERS = ("logp_per_token", "logp", "score")  # what is measured of a row, beside its "output"
Values = Sequence[float | None]  # one a row, None where the row has none


def read_gold(source: str) -> list[dict]:
    """{"system", "prompt", "gold"} of each row of a bench or a collection. Raises UserError for pairs."""
    found = []
    for number, (kind, row) in enumerate(published(source)):
        gold = row.get("reference_answer", row.get("output"))
        if gold is None:
            raise UserError(
                f"data {source}, row {number} is one of {kind}, a pair; give a bench or rows with an output"
            )
        found.append({"system": row["system"], "prompt": row["prompt"], "gold": gold})
    return found


# Messages


def by_prompt(rows: Sequence[dict]) -> list[list[int]]:
    """The numbers of each instruction's rows, which have the same prompt, wherever they stand."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        found[row["prompt"]].append(number)
    return list(found.values())


def messages_under(condition: str, rows: Sequence[dict], seed: int) -> list[str | None]:
    """The system message of each row under a condition, "" for none; None where the condition leaves the row out."""
    if condition == "true":
        return [row["system"] for row in rows]
    if condition == "empty":
        return [""] * len(rows)
    return shuffled(rows, seed) if condition == "shuffled" else opposite(rows)


def shuffled(rows: Sequence[dict], seed: int) -> list[str | None]:
    """Each instruction's messages go, in their order, to the next on a circle through all; again from the first where
    that has more rows. None where the text is the row's own, as where there is one instruction."""
    circle = by_prompt(rows)
    random.Random(record_seed(seed, "shuffled")).shuffle(circle)
    found: list[str | None] = [None] * len(rows)
    for givers, takers in zip(circle, [*circle[1:], *circle[:1]], strict=True):
        for place, number in enumerate(takers):
            given = rows[givers[place % len(givers)]]["system"]
            found[number] = given if given != rows[number]["system"] else None
    return found


def opposite(rows: Sequence[dict]) -> list[str | None]:
    """Of the instruction's messages in other words the one with the lowest ROUGE-L to the row's own, the first of
    equals; nothing is drawn. None where there is no other."""
    found: list[str | None] = [None] * len(rows)
    for numbers in by_prompt(rows):
        told = [rows[number]["system"] for number in numbers]
        for number, own in zip(numbers, told, strict=True):
            others = [text for text in told if text != own]
            found[number] = min(others, key=lambda text: rouge_l(text, own), default=None)
    return found


# Statistics


def over_instructions(values: Values, groups: Sequence[Sequence[int]], seed: int) -> dict[str, Any]:
    """Mean over the rows that have a value, its interval over resampled instructions, and how many of both there are.
    `groups` are the numbers of each instruction's rows (`by_prompt`). Mean and interval are None without a value."""
    there = [[values[number] for number in group if values[number] is not None] for group in groups]
    sums = np.array([[sum(own), len(own)] for own in there if own])  # (instructions, 2)
    if not len(sums):
        return {"mean": None, "interval": None, "rows": 0, "instructions": 0}

    def mean(drawn: np.ndarray) -> float:
        total, rows = drawn.sum(0)
        return total / rows

    interval = bootstrap(sums, mean, seed=seed)
    return {"mean": mean(sums), "interval": interval, "rows": int(sums[:, 1].sum()), "instructions": len(sums)}


def minus(first: Values, second: Values) -> list[float | None]:
    """Their difference row by row, None where one of the two has no value."""
    return [None if None in (a, b) else a - b for a, b in zip(first, second, strict=True)]


def drops(values: dict[str, Values]) -> dict[str, list[float | None]]:
    """What each condition but `true` loses against it, row by row."""
    return {each: minus(values["true"], own) for each, own in values.items() if each != "true"}


def against_true(values: dict[str, Values], groups: Sequence[Sequence[int]], seed: int) -> dict[str, dict[str, Any]]:
    """What each condition of `values` gives (`over_instructions`), and under "drop" what is lost against `true`, row by
    row, and under "below" the share of rows in which it is less; a tie is half."""
    found = {each: over_instructions(own, groups, seed) for each, own in values.items()}
    for each, lost in drops(values).items():
        below = [None if drop is None else (np.sign(drop) + 1) / 2 for drop in lost]
        found[each]["drop"] = over_instructions(lost, groups, seed)
        found[each]["below"] = over_instructions(below, groups, seed)
    return found


def likeness(texts: Sequence[str | None], groups: Sequence[Sequence[int]]) -> dict[str, list[float | None]]:
    """How alike the texts of each instruction are, ROUGE-L of each two in their order (the paper's Table 6): "mean" and
    "max" of its pairs, None where it has fewer than two texts."""
    found: dict[str, list[float | None]] = {"mean": [], "max": []}
    for group in groups:
        own = [texts[number] for number in group if texts[number] is not None]
        scores = [rouge_l(second, first) for first, second in combinations(own, 2)]
        found["mean"].append(sum(scores) / len(scores) if scores else None)
        found["max"].append(max(scores, default=None))
    return found


def compared(rows: Sequence[dict], measured: dict[str, dict], seed: int) -> dict[str, Any]:
    """What was `measured`, {policy: {NUMBERS or "output": {condition: a value a row}}}, of rows of `read_gold`.

    Of each policy each number under each condition against `true`, and the likeness of its answers and of the gold
    ones; of the policies after the first how much more than it they lose in each condition, row by row.
    """
    groups = by_prompt(rows)
    gold, singly = likeness([row["gold"] for row in rows], groups), [[number] for number in range(len(groups))]
    found: dict[str, dict] = {}
    for name, own in measured.items():
        found[name] = {what: against_true(own[what], groups, seed) for what in NUMBERS if what in own}
        if "output" in own:
            alike = {each: likeness(texts, groups) for each, texts in own["output"].items()} | {"gold": gold}
            for part in gold:
                values = {each: pairs[part] for each, pairs in alike.items()}
                found[name][f"rouge_l_{part}"] = against_true(values, singly, seed)
    first, *others = measured
    lost = {name: {what: drops(own[what]) for what in NUMBERS if what in own} for name, own in measured.items()}
    more = [
        {"first": first, "second": other}
        | {
            what: {
                each: over_instructions(minus(drop, lost[first][what][each]), groups, seed)
                for each, drop in own.items()
            }
            for what, own in lost[other].items()
        }
        for other in others
    ]
    return {"instructions": len(groups), "policies": found, "compared": more}
