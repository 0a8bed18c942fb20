"""The bench drawn and proven unseen in training, and the sets that train.py and the benchmark read.

    multifaceted_sft.json      every response to a training instruction
    multifaceted_small.json    one of an instruction's
    multifaceted_dpo.json, _orpo.json, _rm.json
                               one pair of an instruction: chosen is the response to a system message, rejected the one
                               written for another system message of the same instruction (section 3.1)
    multifaceted_rm_test.json  such pairs of the bench's instructions
    multifaceted_bench.json    the bench's responses as reference answers, with their rubrics

Unseen is proven by words, exact and near: no instruction of training has ROUGE-L F 0.7 or more against one of the
bench, no preference set 0.8 or more. Nothing here tells a paraphrase in other words.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from alignment.command_line import UserError
from alignment.generation import record_seed
from alignment.janus.preferences import DIMENSIONS, set_line
from alignment.rouge import Pool

NEAR_PROMPT = 0.7  # ROUGE-L F of two instructions that ask the same in nearly the same words
NEAR_SET = 0.8  # of two preference sets' lines: three of four preferences alike are below, three and a half above
PAIRS = ("dpo", "orpo", "rm", "rm_test")


def folded(text: str) -> str:
    """A text without what hides that two are the same: case and white space."""
    return " ".join(text.lower().split())


# Drawn in pa


def draw_bench(instructions: Sequence[dict], share: float, seed: int) -> set[str]:
    """The ids of the bench's instructions: `share` of all, one at least where it is above 0."""
    ids = [str(row["id"]) for row in instructions]
    count = min(len(ids), max(1, round(share * len(ids)))) if share else 0
    return set(random.Random(record_seed(seed, "bench")).sample(ids, count))


def without_duplicates(bench: list[dict], train: list[dict]) -> tuple[list[dict], list[dict], dict[str, int]]:
    """Bench and training instructions without those that come twice, and training without those near the bench; and
    how many were left out for which reason."""
    seen: set[str] = set()
    dropped = {"duplicate instruction": 0, "near one of the bench": 0}

    def new(row: dict) -> bool:
        known = (text := folded(row["prompt"])) in seen
        seen.add(text)
        dropped["duplicate instruction"] += known
        return not known

    bench, train = [row for row in bench if new(row)], [row for row in train if new(row)]
    pool = Pool((row["prompt"] for row in bench), threshold=NEAR_PROMPT)
    far = [row for row in train if not pool.is_duplicate(row["prompt"])]
    dropped["near one of the bench"] = len(train) - len(far)
    return bench, far, {reason: count for reason, count in dropped.items() if count}


# Proven in ds


class Unseen:
    """What the bench holds, and whether a row of training repeats it."""

    def __init__(self, bench: Sequence[dict]):
        self._prompts = {folded(row["prompt"]): row["id"] for row in bench}
        self._lines = {folded(in_order(row)): row["id"] for row in bench}
        self._near_prompts = Pool(self._prompts, threshold=NEAR_PROMPT)
        self._near_lines = Pool(self._lines, threshold=NEAR_SET)

    def fault(self, rows: Sequence[dict]) -> str | None:
        """What of an instruction's rows is in the bench, or None."""
        prompt = rows[0]["prompt"]
        if folded(prompt) in self._prompts:
            return f"its instruction is that of bench id {self._prompts[folded(prompt)]!r}"
        if self._near_prompts.is_duplicate(prompt):
            nearest = self._near_prompts.nearest(prompt)
            return f"its instruction is near one of the bench (ROUGE-L {nearest.score:.2f})"
        for row in rows:
            line = folded(in_order(row))
            if line in self._lines:
                return f"its preference set {row['set']} is that of bench id {self._lines[line]!r}"
            if self._near_lines.is_duplicate(line):
                return f"its preference set {row['set']} is near one of the bench"
        return None


def in_order(row: dict) -> str:
    return set_line(sorted(row["preference_set"], key=lambda each: DIMENSIONS.index(each["dimension"])))


def prove_unseen(rows: Iterable[dict], bench: Sequence[dict], update: Callable[[], None] = lambda: None) -> int:
    """How many training instructions were compared with the bench. Raises UserError where one repeats it."""
    unseen, compared, faults = Unseen(bench), 0, []
    for own in by_instruction(rows, "train"):
        compared += 1
        update()
        if fault := unseen.fault(own):
            faults.append(f"id {own[0]['id']!r}: {fault}")
    if faults:
        more = f", and {len(faults) - 1:,} more" if len(faults) > 1 else ""
        raise UserError(
            f"{len(faults):,} training instructions are not unseen by the bench: {faults[0]}{more}; remove their rows, "
            "or draw the bench again with --mode pa"
        )
    return compared


# Built in ds


def by_instruction(rows: Iterable[dict], split: str | None = None) -> Iterator[list[dict]]:
    """The rows of each instruction of a split, or of both, which stand together."""
    for _, own in groupby(rows, key=lambda row: str(row["id"])):
        if found := [row for row in own if split in (None, row["split"])]:
            yield found


def sources(row: dict) -> dict:
    return {key: row[key] for key in ("main_source", "original_source")}


def demonstration(row: dict) -> dict:
    return sources(row) | {key: row[key] for key in ("preference_set", "system", "prompt", "output")}


def demonstrations(rows: Iterable[dict]) -> Iterator[dict]:
    return (demonstration(row) for row in rows if row["split"] == "train")


def one_each(rows: Iterable[dict], seed: int) -> Iterator[dict]:
    """One of an instruction's responses, drawn by the seed and its id."""
    for own in by_instruction(rows, "train"):
        yield demonstration(random.Random(record_seed(seed, "small", own[0]["id"])).choice(own))


def draw_pair(own: Sequence[dict], kind: str, seed: int) -> tuple[dict, dict] | None:
    """(chosen, rejected) of an instruction's rows, of which the responses differ; None where none do."""
    draw = random.Random(record_seed(seed, kind, own[0]["id"]))
    for chosen in draw.sample(own, len(own)):
        others = [row for row in own if folded(row["output"]) != folded(chosen["output"])]
        if others:
            return chosen, draw.choice(others)
    return None


def pairs(rows: Iterable[dict], kind: str, seed: int) -> Iterator[dict]:
    """The pairs of dpo, orpo, rm (training) or rm_test (bench), an instruction one, in their published forms."""
    for own in by_instruction(rows, "bench" if kind == "rm_test" else "train"):
        drawn = draw_pair(own, kind, seed)
        if drawn is None:
            continue
        chosen, rejected = drawn
        if kind.startswith("rm"):
            asked = f"{chosen['system']}\n{chosen['prompt']}"
            yield {"input": asked, "chosen": chosen["output"], "rejected": rejected["output"]}
            continue
        kept = {key: chosen[key] for key in ("preference_set", "system", "prompt")}
        yield sources(chosen) | kept | {"chosen": dialogue(chosen), "rejected": dialogue(rejected)}


def dialogue(row: dict) -> list[dict]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["output"]}]


def bench_row(row: dict, rubrics: list[dict]) -> dict:
    kept = {key: row[key] for key in ("preference_set", "system", "prompt")}
    return {"source": row["main_source"]} | kept | {"reference_answer": row["output"], "rubrics": rubrics}
