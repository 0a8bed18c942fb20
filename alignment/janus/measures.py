"""What is in a collection: the numbers of report.html, and their rows.

Diversity is measured as the paper does (its statistics table, figure and Table 6): how the tree is covered, ROUGE-L of
the preferences' descriptions within a subdimension, and of the responses to one instruction. Added: the evenness of the
tree, as entropy over its highest possible; openings and near-duplicates of system messages; and leaks.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from alignment.command_line import UserError
from alignment.generation import record_seed
from alignment.janus.leaks import LeakRule
from alignment.janus.preferences import DIMENSIONS, Tree
from alignment.janus.rows import FILES, STAGES, published, stage_rows
from alignment.janus.splits import by_instruction, folded
from alignment.rouge import Pool, rouge_l

NEAR_MESSAGE = 0.7  # ROUGE-L F from which two system messages are shown as near-duplicates
DRAWN_PAIRS = 60  # of descriptions within a subdimension
COMPARED = 2_000  # system messages at most, drawn, among which near-duplicates are sought
LEAVES = 15  # preferences of a subdimension that the page names; the rest is one more
SHOWN = 30  # instructions with all that was written for them, and rows of each list


def newest(folder: Path) -> tuple[Path, list[dict]]:
    """The furthest of the collection's files, and its rows; imported ones with an id for each run of one prompt."""
    for mode in ("gr", "sm", "pa"):
        if (path := folder / STAGES[mode]).exists():
            return path, list(stage_rows(path, mode))
    for kind in ("sft", "small", "bench"):
        if (path := folder / FILES[kind]).exists():
            return path, imported(path)
    raise UserError(f"{folder} has no {STAGES['pa']} and no {FILES['sft']}; make them with --mode pa or import")


def imported(path: Path) -> list[dict]:
    found, number = [], -1
    for _, row in published(str(path)):
        number += not found or found[-1]["prompt"] != row["prompt"]
        own = sum(other["id"] == number for other in found[-9:])
        split = "bench" if "rubrics" in row else "train"
        output = {"output": row["reference_answer"]} if "rubrics" in row else {}
        found.append({"preference_set": []} | row | output | {"id": number, "set": own, "split": split})
    return found


def report(rows: Sequence[dict], tree: Tree, source: str, seed: int) -> dict[str, Any]:
    """All that the page shows, and under `counts` the numbers in a line each."""
    entries = [each for row in rows for each in row["preference_set"]]
    messages = [row for row in rows if "system" in row]
    covered, likenesses = coverage(entries, tree), within_subdimensions(entries, seed)
    twins, leaks, alike = near_duplicates(messages, seed), leaking(messages), likeness(rows)
    every = [pair["rouge_l"] for pair in likenesses]
    counts = {
        "instructions": len({str(row["id"]) for row in rows}),
        "of the bench": len({str(row["id"]) for row in rows if row["split"] == "bench"}),
        "preference sets": sum(bool(row["preference_set"]) for row in rows),
        "subdimensions": len({(each["dimension"], each["subdimension"]) for each in entries}),
        "different preferences": len({(each["dimension"], folded(each["preference"])) for each in entries}),
        "seed preferences used": f"{covered['used']} of {covered['seeds']}",
        "system messages": len(messages),
        "their mean length, characters": round(mean(len(row["system"]) for row in messages) or 0),
        f"near-duplicates (ROUGE-L {NEAR_MESSAGE} or more)": len(twins),
        "leaks": len(leaks),
        "ROUGE-L of descriptions within a subdimension": shown_number(mean(every)),
        "ROUGE-L of an instruction's responses": shown_number(alike["mean"]),
    }
    draw = random.Random(record_seed(seed, "report"))
    worlds = [own for own in by_instruction(rows) if len(own) > 1] or list(by_instruction(rows))
    keys = ("id", "split", "prompt", "preference_set", "system", "output")
    return {
        "source": source,
        "counts": counts,
        "tree": branches(entries),
        "coverage": covered["dimensions"],
        "within": likenesses,
        "lengths": [len(row["system"]) for row in draw.sample(messages, min(len(messages), COMPARED))],
        "openings": Counter(" ".join(row["system"].split()[:3]) for row in messages).most_common(20),
        "twins": twins[:SHOWN],
        "leaks": leaks[:SHOWN],
        "worlds": [
            [{key: row[key] for key in keys if key in row} for row in own]
            for own in draw.sample(worlds, min(len(worlds), SHOWN))
        ],
    }


def mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None


def shown_number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def evenness(counts: Iterable[int]) -> float | None:
    """Entropy of counts over the highest that so many kinds can have, in [0, 1]; None for one kind, or none."""
    counts = [count for count in counts if count]
    total = sum(counts)
    if len(counts) < 2:
        return None
    return -sum(count / total * math.log(count / total) for count in counts) / math.log(len(counts))


def branches(entries: Sequence[dict]) -> list[dict]:
    """The tree with counts: dimensions in the paper's order, below them the most frequent first."""
    found: dict[str, dict[str, Counter]] = {dimension: defaultdict(Counter) for dimension in DIMENSIONS}
    for each in entries:
        found[each["dimension"]][each["subdimension"]][each["preference"]] += 1

    def leaves(counts: Counter) -> list[dict]:
        top = [{"name": name, "count": count} for name, count in counts.most_common(LEAVES)]
        rest = counts.total() - sum(leaf["count"] for leaf in top)
        return top + ([{"name": f"{len(counts) - LEAVES} more", "count": rest}] if rest else [])

    def part(name: str, children: list[dict]) -> dict:
        return {"name": name, "count": sum(child["count"] for child in children), "children": children}

    return [
        part(
            dimension, sorted((part(name, leaves(own)) for name, own in subs.items()), key=lambda each: -each["count"])
        )
        for dimension, subs in found.items()
    ]


def coverage(entries: Sequence[dict], tree: Tree) -> dict[str, Any]:
    """How much of the seeds is used, and for each dimension how evenly its subdimensions and preferences are."""
    dimensions, used, seeds = [], 0, 0
    for dimension in DIMENSIONS:
        own = [each for each in entries if each["dimension"] == dimension]
        names, preferences = tree.names(dimension), Counter(each["preference"] for each in own)
        there = sum(name in preferences for name in names)
        used, seeds = used + there, seeds + len(names)
        dimensions.append(
            {
                "dimension": dimension,
                "subdimensions": len({each["subdimension"] for each in own}),
                "preferences": len(preferences),
                "seeds": f"{there} of {len(names)}",
                "invented": sum(count for name, count in preferences.items() if name not in names) / (len(own) or 1),
                "evenness_sub": evenness(Counter(each["subdimension"] for each in own).values()),
                "evenness": evenness(preferences.values()),
            }
        )
    return {"dimensions": dimensions, "used": used, "seeds": seeds}


def within_subdimensions(entries: Sequence[dict], seed: int) -> list[dict]:
    """Mean ROUGE-L of pairs of different descriptions of one subdimension, of the 40 most frequent; drawn pairs."""
    found: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    counts = Counter((each["dimension"], each["subdimension"]) for each in entries)
    for each in entries:
        found[each["dimension"], each["subdimension"]][each["description"]] = None
    results = []
    for key, count in counts.most_common(40):
        texts, draw = list(found[key]), random.Random(record_seed(seed, *key))
        if len(texts) > 1:
            every = len(texts) * (len(texts) - 1) // 2
            pairs = (
                combinations(texts, 2) if every <= DRAWN_PAIRS else (draw.sample(texts, 2) for _ in range(DRAWN_PAIRS))
            )
            results.append({"name": " > ".join(key), "count": count, "rouge_l": mean(rouge_l(*two) for two in pairs)})
    return results


def likeness(rows: Sequence[dict]) -> dict[str, Any]:
    """ROUGE-L of the responses of one instruction, each two of them in their order (the paper's Table 6)."""
    scores = [
        rouge_l(second["output"], first["output"])
        for own in by_instruction(row for row in rows if "output" in row)
        for first, second in combinations(own, 2)
    ]
    return {"pairs": len(scores), "mean": mean(scores), "max": max(scores, default=None)}


def near_duplicates(messages: Sequence[dict], seed: int) -> list[dict]:
    """System messages near an earlier one, the nearest first."""
    drawn = random.Random(record_seed(seed, "twins")).sample(messages, min(len(messages), COMPARED))
    pool, found = Pool(threshold=NEAR_MESSAGE), []
    for row in drawn:
        near = pool.nearest(row["system"])
        if near and near.score >= NEAR_MESSAGE:
            other = drawn[near.index]
            found.append({"rouge_l": near.score, "first": other["system"], "second": row["system"]})
        pool.add(row["system"])
    return sorted(found, key=lambda each: -each["rouge_l"])


def leaking(messages: Sequence[dict]) -> list[dict]:
    rule = LeakRule({str(row["id"]): row["prompt"] for row in messages}.values())
    return [
        {"system": row["system"], "prompt": row["prompt"], "shared": shared}
        for row in messages
        if (shared := rule.leaks(row["system"], row["prompt"]))
    ]
