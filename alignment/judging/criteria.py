"""Weighted criteria, each graded 0, 1 or 2: what a reward that a judge gives is made of.

A row may have `rubrics`, [{"description", "weight"}, ...]: what a response to it is graded by, one criterion a request.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from alignment.command_line import UserError
from alignment.judging.judgments import PROMPTS
from alignment.records import is_number, read_json

BEST_GRADE = 2
GRADE_SCHEMA = {
    "type": "object",
    "properties": {"grade": {"type": "integer", "enum": list(range(BEST_GRADE + 1))}},
    "required": ["grade"],
    "additionalProperties": False,
}


class Criterion(NamedTuple):
    description: str
    weight: float


def rubrics_of(row: dict, place: str) -> list[Criterion]:
    """What a row's responses are graded by: its `rubrics`, or where it has none those of assets/judge/rubrics.json. A
    missing weight is 1. Raises UserError, which opens with `place`."""
    found = row.get("rubrics")
    if found is None:
        found, place = read_json(PROMPTS / "rubrics.json", "rubrics"), str(PROMPTS / "rubrics.json")
    if not isinstance(found, list) or not found:
        raise UserError(f"{place}: 'rubrics' is no list of {{description, weight}}; leave it out for the general ones")
    for number, each in enumerate(found):
        if (
            not isinstance(each, dict)
            or not isinstance(each.get("description"), str)
            or not each["description"].strip()
        ):
            raise UserError(f"{place}: rubrics[{number}] has no text under 'description'")
        if not is_number(weight := each.get("weight", 1)) or weight <= 0:
            raise UserError(f"{place}: rubrics[{number}] has the weight {weight!r}; give a number above 0")
    return [Criterion(each["description"], each.get("weight", 1)) for each in found]


def parse_grade(reply: str | None) -> int | None:
    """The grade of a reply that follows GRADE_SCHEMA; None where none came."""
    return None if reply is None else int(json.loads(reply)["grade"])  # JSON's 1.0 is whole, too


def rubric_score(grades: Sequence[int | None], weights: Sequence[float]) -> float | None:
    """The weighted mean of grades from 0 to 2, halved: in [0, 1]. None where one is missing: a call that failed says
    nothing of the response, and as 0 it would punish it."""
    if None in grades:
        return None
    total = sum(weight * grade for weight, grade in zip(weights, grades, strict=True))
    return total / (BEST_GRADE * sum(weights))
