"""The pairs of a preference file as an audit looks at them.

    pairs, dropped = read_pairs("comparison.json")
    pairs[0].configurations    # ("13b", "7b") of the meta "13b-vs-7b"

Of any form that train.py reads, by its reader. Pairs of one prompt are no independent measurements.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from alignment.generation import Message
from alignment.janus.splits import folded
from alignment.records import read_rows
from alignment.templates import messages
from alignment.training_data import SCORED, read_examples, usable


@dataclass(frozen=True)
class Pair:
    """A comparison. `prompt` is all that was said before it as one text, by which pairs belong together."""

    row: int  # from 0
    asked: dict  # as templates take it
    turns: tuple[str, ...]  # what was said, the system message left out
    prompt: str
    chosen: str
    rejected: str
    configurations: tuple[str, str] | None = None  # of `meta`, the better one first
    first: bool | None = None  # whether the chosen response stood first, in forms that have an order

    @cached_property
    def key(self) -> tuple[str, str, str]:
        """What is the same in two rows that say the same."""
        return folded(self.prompt), folded(self.chosen), folded(self.rejected)

    def example(self, note: str = "", *, response: str | None = None) -> dict[str, Any]:
        """As the page shows it: the pair, or one response to its prompt."""
        texts = {"chosen": self.chosen, "rejected": self.rejected} if response is None else {"response": response}
        return {"row": self.row, "note": note, "prompt": self.prompt} | texts


def read_pairs(source: str, limit: int | None = None) -> tuple[list[Pair], dict[str, list[int]]]:
    """The pairs that train.py --objective reward would learn from, and the dropped rows' numbers by reason."""
    kept, dropped = usable(read_examples(source, "reward", limit))
    rows, pairs = read_rows(source), []
    for each in kept:
        turns, row = messages(each.prompt), rows[each.row]
        said = tuple(turn["content"] for turn in turns if turn["role"] != "system")
        found = (configurations_of(row.get("meta")), stood_first(source, each.row, row))
        pairs.append(Pair(each.row, each.prompt, said, as_text(turns), *each.responses, *found))
    return pairs, dropped


def as_text(turns: Sequence[Message]) -> str:
    if [turn["role"] for turn in turns] == ["user"]:
        return turns[0]["content"]
    return "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns)


def stood_first(source: str, number: int, row: dict) -> bool | None:
    """Whether the better of a row's two scored responses is the first, or None for a row of another form."""
    read = next((read for columns, read in SCORED.items() if row.get(columns[0]) is not None), None)
    if row.get("chosen") is not None or not read:
        return None
    first, second = read(source, number, row)[2]
    return first > second


def configurations_of(meta: object) -> tuple[str, str] | None:
    """The better and the worse configuration of "a-vs-b", or None for anything else."""
    names = tuple(meta.split("-vs-")) if isinstance(meta, str) else ()
    return names if len(names) == 2 and all(names) and names[0] != names[1] else None
