"""Rows in which some responses to a prompt are better than others: preference files, public benches of reward models.

    prompt, chosen, rejected      and every other form that train.py reads; DSP's {"text": [a, b], "score": [1.0, 0.0]}
    chosen, rejected, type        static HHH
    ..., subset                   RewardBench: 23 subsets in four sections (Lambert et al. 2024)
    chosen: [1], rejected: [3]    RewardBench 2: the best of four; in its Ties several are right (Malik et al. 2025)

A choice belongs to groups: what its row says under `type`, `subset`, `source` and `meta`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.command_line import UserError
from alignment.records import read_rows
from alignment.static_hhh import TYPES
from alignment.training_data import prompt_of, read_examples, usable

GROUPS = ("type", "subset", "source", "meta")
# RewardBench: a subset's weight in its section is the number of its prompts, but of math-prm, which has 447, that of
# all code together
SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
    },
}
SECOND = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")  # RewardBench 2, averaged without weights
TIES = SECOND[-1]


@dataclass(frozen=True)
class Choice:
    """What a template takes for the prompt, the better responses and the worse ones. `id` is the row's."""

    prompt: dict
    better: tuple[str, ...]
    worse: tuple[str, ...]
    groups: dict[str, str]
    id: str = ""

    @property
    def key(self) -> str:
        """The same for all choices of a prompt, which are no independent measurements."""
        return json.dumps(self.prompt, sort_keys=True)


@dataclass(frozen=True)
class Choices:
    """The usable choices of a file, in order, and the dropped rows' numbers by reason."""

    items: list[Choice]
    dropped: dict[str, list[int]]  # also of ties that stand alone, which have no score

    @property
    def are_pairs(self) -> bool:
        return all(len(each.better) == len(each.worse) == 1 for each in self.items)

    @property
    def is_bench(self) -> bool:
        """Whether they are of a public bench, whose texts are scored whole, however short those of training were."""
        known = {*TYPES, *SECOND, *(subset for section in SECTIONS.values() for subset in section)}
        return any({each.groups.get("type"), each.groups.get("subset")} & known for each in self.items)


def read_choices(source: str | Path, limit: int | None = None) -> Choices:
    """The choices of the first `limit` rows. Raises UserError that names file, row and key; where none is left, and for
    a row that comes twice under one id."""
    rows = read_rows(source)[:limit]
    check_ids(source, rows)
    if any(is_list_of_texts(row.get("chosen")) or is_list_of_texts(row.get("rejected")) for row in rows):
        items = [best_of(str(source), number, row) for number, row in enumerate(rows)]
        dropped = lone_ties(items)
    else:
        kept, dropped = usable(read_examples(str(source), "reward", limit))
        items = [
            Choice(each.prompt, each.responses[:1], each.responses[1:], groups_of(rows[each.row])) for each in kept
        ]
    if not items:
        told = ", ".join(f"{len(numbers)} {reason}" for reason, numbers in dropped.items())
        raise UserError(f"data {source}: no row has two responses that differ ({told})")
    return Choices(items, dropped)


def check_ids(source: str | Path, rows: Sequence[dict]) -> None:
    seen: dict[str, int] = {}
    for number, row in enumerate(rows):
        if row.get("id") is None:
            continue
        whole = json.dumps({key: row.get(key) for key in ("id", "subset", "prompt", "chosen", "rejected")}, default=str)
        if whole in seen:
            raise UserError(
                f"data {source}, row {number}: id {row['id']!r} is row {seen[whole]} again; remove one of them"
            )
        seen[whole] = number


def groups_of(row: dict) -> dict[str, str]:
    return {key: row[key] for key in GROUPS if isinstance(row.get(key), str)}


def is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


def best_of(source: str, number: int, row: dict) -> Choice:
    """A row of RewardBench 2. Raises UserError for an empty side."""
    for key in ("chosen", "rejected"):
        if not is_list_of_texts(row.get(key)) or not all(text.strip() for text in row[key]):
            raise UserError(
                f"data {source}, row {number}: {key} is no list of responses, each a text that says something"
            )
    sides = tuple(row["chosen"]), tuple(row["rejected"])
    return Choice(prompt_of(source, number, row), *sides, groups_of(row), str(row.get("id") or ""))


def lone_ties(items: Sequence[Choice]) -> dict[str, list[int]]:
    """The numbers of Ties' rows, `ref:N` and `tied:N`, whose other row is not there."""
    ids = {each.id for each in items}
    other = {"ref": "tied", "tied": "ref"}
    alone = [
        number
        for number, (kind, _, prompt) in enumerate(each.id.partition(":") for each in items)
        if items[number].groups.get("subset") == TIES and f"{other.get(kind)}:{prompt}" not in ids
    ]
    return {"ties without their other row": alone} if alone else {}
