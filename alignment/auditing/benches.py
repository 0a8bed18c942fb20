"""The papers' benches in their released forms, and what of them stands in a text that somebody would train on.

    leaks = Leaks(read_bench(Path("TruthfulQA.csv")))
    leaks.of(["What happens to you if you eat watermelon seeds?"])   # [Leak(0, "exact", "What happens ...")]

    static HHH    chosen, rejected (dialogues), type: what was said before the answers
    TruthfulQA    TruthfulQA.csv, mc_task.json, or the hub's multiple_choice: the question
    Vicuna        question_id, category, text
    MT-Bench      question_id, category, turns: each turn
    AlpacaEval    instruction, output, generator (or dataset): the instruction

An item is found as it is; by a run of 13 words (as Brown et al. 2020 do), or by all its words where it has 8 to 12; and
from 13 words on nearly, by ROUGE-L, as the bench of Janus is kept out of training: shorter questions are near to many
that only begin alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from alignment.command_line import UserError
from alignment.janus.splits import NEAR_PROMPT, folded
from alignment.records import read_rows
from alignment.rouge import Pool
from alignment.static_hhh import read_comparisons
from alignment.templates import dialogue_messages
from alignment.truthfulqa import read_questions
from alignment.wording import grams, words

RUN = 13  # words in a row that are no chance
SHORTEST = 8  # words of an item that is looked for inside texts
WAYS = ("exact", "run of words", "near")


class Leak(NamedTuple):
    """The item of a bench that a text holds, by which of WAYS, and the words that tell it."""

    item: int  # from 0, in the file's order
    way: str
    shared: str


class Bench(NamedTuple):
    """A bench's name, and for each item what it asks: one text, or one for each turn."""

    name: str
    items: list[list[str]]


def read_bench(path: Path) -> Bench:
    """The questions of a bench file. Raises UserError for one of no known form."""
    rows = [] if path.suffix == ".csv" else read_rows(path, "benchmark")
    has = set(rows[0]) if rows else {"question", "mc1_targets"}
    if {"chosen", "rejected", "type"} <= has:
        return Bench(
            "static HHH", [[text] for text in dict.fromkeys(said_in(pair.prompt) for pair in read_comparisons(path))]
        )
    if {"question", "mc1_targets"} <= has:
        return Bench("TruthfulQA", [[question.text] for question in read_questions(path)])
    if {"question_id", "turns"} <= has:
        return Bench("MT-Bench", texts_of(path, rows, "turns"))
    if {"question_id", "text"} <= has:
        return Bench("Vicuna", texts_of(path, rows, "text"))
    if "instruction" in has and has & {"generator", "dataset"}:
        return Bench("AlpacaEval", texts_of(path, rows, "instruction"))
    raise UserError(
        f"benchmark {path} has {', '.join(rows[0])}: no released form of static HHH, TruthfulQA, Vicuna, MT-Bench or "
        "AlpacaEval"
    )


def texts_of(path: Path, rows: Sequence[dict], key: str) -> list[list[str]]:
    found = []
    for number, row in enumerate(rows):
        texts = row.get(key) if isinstance(row.get(key), list) else [row.get(key)]
        if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise UserError(f"benchmark {path}, row {number}: {key} is missing or no text")
        found.append(texts)
    return found


def said_in(dialogue: str) -> str:
    """What was said in a dialogue, without who said it."""
    return "\n".join(turn["content"] for turn in dialogue_messages(dialogue))


class Leaks:
    """What of a bench stands in texts."""

    def __init__(self, bench: Bench):
        self._texts = [(item, text) for item, texts in enumerate(bench.items) for text in texts]
        self._exact = {folded(text): item for item, text in self._texts}
        self._words = [words(text) for _, text in self._texts]
        self._starts: dict[tuple[str, ...], list[tuple[int, int]]] = defaultdict(list)  # of runs of SHORTEST words
        for index, own in enumerate(self._words):
            for at, gram in enumerate(grams(own, SHORTEST)):
                self._starts[gram].append((index, at))
        self._long = [place for place, own in enumerate(self._words) if len(own) >= RUN]
        self._near = Pool((self._texts[place][1] for place in self._long), threshold=NEAR_PROMPT)

    def of(self, whole: Iterable[str], inside: Iterable[str] = ()) -> list[Leak]:
        """The items that any text holds, each once, by the first of WAYS. `whole` texts may be an item, exactly or
        nearly; in these and in `inside` its runs are looked for."""
        whole, found = list(whole), {}
        for text in whole:
            if (item := self._exact.get(folded(text))) is not None:
                found.setdefault(item, Leak(item, "exact", text))
        for text in dict.fromkeys([*whole, *inside]):
            for item, run in self._runs(text):
                found.setdefault(item, Leak(item, "run of words", run))
        for text in whole:
            if self._near.is_duplicate(text) and (match := self._near.nearest(text)):
                item, theirs = self._texts[self._long[match.index]]
                found.setdefault(item, Leak(item, "near", f"ROUGE-L {match.score:.2f} with: {theirs}"))
        return list(found.values())

    def _runs(self, text: str) -> Iterable[tuple[int, str]]:
        own = words(text)
        for at, gram in enumerate(grams(own, SHORTEST)):
            for index, start in self._starts.get(gram, ()):
                theirs = self._words[index]
                needed = min(RUN, len(theirs))
                if start + needed <= len(theirs) and own[at : at + needed] == theirs[start : start + needed]:
                    yield self._texts[index][0], " ".join(own[at : at + needed])
