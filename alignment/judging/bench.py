"""Multifaceted Bench: its rows, the responses to them, and what grades say of the models that responded.

    rows, faults = checked(read_bench("multifaceted_bench.json"))
    responses = responses_to(rows, "responses.json")         # a text for each row, None where there is none
    found = graded(list(zip(rows, responses)), ...)          # grades.py
    scores(rows, found.responses, seed=42)                   # mean of the instances' scores, by source, by dimension
    difference(rows, found.responses, other.responses, seed=42)

Intervals are bootstraps over instances. Models are compared on the instances that have a score for both, pair by pair.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from alignment.command_line import UserError
from alignment.intervals import bootstrap, wilson
from alignment.janus.rows import SCORES, published
from alignment.judging.answers import matched
from alignment.judging.grades import Graded, fault_of, near_in
from alignment.records import read_rows

# Rows and responses


def read_bench(source: str) -> list[dict]:
    """The bench's rows, each with an `id`, its number where it has none, and for each of its rubrics a name under
    `dimensions`: rubric i grades by the i-th preference of the row's set.

    Raises UserError for rows that are none of a bench, and for two that ask the same or have the same id.
    """
    rows: list[dict] = []
    ids, texts, there = {}, {}, read_rows(source, "bench")
    for number, row in enumerate(there):
        check_levels(row, f"bench {source}, row {number}")
    for number, (raw, (kind, row)) in enumerate(zip(there, published(source, "bench"), strict=True)):
        if kind != "bench":
            raise UserError(f"bench {source}, row {number} has no 'rubrics'; give multifaceted_bench.json")
        names = [each["dimension"] for each in row.get("preference_set", [])]
        row |= {"id": raw.get("id", number), "dimensions": names or [f"rubric {i}" for i in range(1, 5)]}
        for seen, key in ((ids, str(row["id"])), (texts, asked_by(row["system"], row["prompt"]))):
            if key in seen:
                raise UserError(f"bench {source}: rows {seen[key]} and {number} have the same id, or ask the same")
            seen[key] = number
        rows.append(row)
    return rows


def check_levels(row: dict, place: str) -> None:
    """Raise UserError that names the rubric, and the scores that it does not describe."""
    rubrics = row.get("rubrics")
    for number, each in enumerate(rubrics if isinstance(rubrics, list) else [], 1):
        levels = each.get("score_descriptions") if isinstance(each, dict) else None
        lacking = [score for score in SCORES if isinstance(levels, dict) and not isinstance(levels.get(score), str)]
        if lacking:
            told = f"rubric {number} ({str(each.get('criteria'))[:60]!r})"
            raise UserError(f"{place}, {told} has no description of the score {', '.join(lacking)}")


def checked(rows: Sequence[dict]) -> tuple[list[dict], list[tuple[object, str, str]]]:
    """The rows without rubrics that can tell no grades apart, and what is wrong with these and with others that nearly
    cannot: (id, dimension, fault)."""
    kept, faults = [], []
    for row in rows:
        own = list(zip(row["dimensions"], row["rubrics"], strict=True))
        faults += [
            (row["id"], name, f"{fault}: left out") if (fault := fault_of(rubric)) else (row["id"], name, near)
            for name, rubric in own
            if (near := fault_of(rubric) or near_in(rubric))
        ]
        good = [(name, rubric) for name, rubric in own if not fault_of(rubric)]
        kept.append(row | {"dimensions": [name for name, _ in good], "rubrics": [rubric for _, rubric in good]})
    return kept, faults


def asked_by(system: str, prompt: str) -> tuple[str, str]:
    return " ".join(system.split()), " ".join(prompt.split())


def responses_to(rows: Sequence[dict], path: str, limit: int | None = None) -> list[str | None]:
    """The response to each of the first `limit` rows, from generate.py's rows: by system message and instruction, and
    where a response has no system message by its id. Raises UserError that names what is missing, double or foreign."""
    by_text = {asked_by(row["system"], row["prompt"]): place for place, row in enumerate(rows)}
    by_id = {str(row["id"]): place for place, row in enumerate(rows)}
    there, places = read_rows(path, "responses"), []
    for number, row in enumerate(there):
        if not isinstance(row.get("output", 0), str | None):
            raise UserError(f"responses {path}, row {number} has no text under 'output', nor null")
        system, prompt = row.get("system"), row.get("instruction", row.get("prompt"))
        is_told = isinstance(system, str) and isinstance(prompt, str) and system.strip()
        places.append(by_text.get(asked_by(system, prompt)) if is_told else by_id.get(str(row.get("id"))))
    names = [row["id"] for row in rows[:limit]]
    what = f"responses {path} and the bench do not match"
    found = matched(places, names, what, f"of the bench's {len(names):,} rows have no response")
    return [there[found[place]]["output"] for place in range(len(names))]


# What the grades say


def scores(rows: Sequence[dict], found: Sequence[Graded], *, seed: int) -> dict[str, Any]:
    """A model's score, the mean over the instances that have one; by source and by dimension; how often each grade was
    given; and the instances without a score by reason. `score` is None where none has one."""
    there = [(row, each) for row, each in zip(rows, found, strict=True) if each.score is not None]
    by_source: dict[str, list] = {}
    by_dimension: dict[str, list] = {}
    for row, each in there:
        by_source.setdefault(row["source"], []).append(each.score)
        for name, grade in zip(row["dimensions"], each.grades, strict=True):
            by_dimension.setdefault(name, []).append(grade)
    given = Counter(given_in(found))
    return {
        "score": with_bootstrap([each.score for _, each in there], seed) if there else None,
        "by_source": {name: with_bootstrap(own, seed) for name, own in sorted(by_source.items())},
        "by_dimension": {name: with_bootstrap(own, seed) for name, own in by_dimension.items()},
        "grades": {str(grade): given[grade] for grade in sorted(given)},
        "without_score": dict(Counter(each.reason for each in found if each.score is None).most_common()),
    }


def given_in(found: Iterable[Graded]) -> list[int]:
    """Every grade that was given."""
    return [each.grade for one in found for runs in one.verdicts for each in runs if each.grade is not None]


def with_bootstrap(values: Sequence[float], seed: int) -> dict[str, Any]:
    array = np.array(values)
    return {"mean": float(array.mean()), "interval": bootstrap(array, np.mean, seed=seed), "n": len(values)}


def difference(rows: Sequence[dict], first: Sequence[Graded], second: Sequence[Graded], *, seed: int) -> dict[str, Any]:
    """How the first model's scores differ from the second's, on the instances that have one for both; overall and by
    dimension. `overall` is None where there is no such instance."""
    pairs: dict[str, list[tuple[float, float]]] = {"overall": []}
    for row, one, other in zip(rows, first, second, strict=True):
        if one.score is None or other.score is None:
            continue
        pairs["overall"].append((one.score, other.score))
        for name, both in zip(row["dimensions"], zip(one.grades, other.grades, strict=True), strict=True):
            pairs.setdefault(name, []).append(both)
    if not pairs["overall"]:
        return {"overall": None}
    return {name: paired(np.array(own), seed) for name, own in pairs.items()}


def paired(both: np.ndarray, seed: int) -> dict[str, Any]:
    """Of (n, 2) scores the mean difference, and how often the first is higher; a tie is half a win."""
    first, second = both.T
    apart = (first - second).round(9)  # sums of thirds differ in their last bits
    wins, ties = int((apart > 0).sum()), int((apart == 0).sum())
    won = wins + ties / 2
    return {
        "difference": float(apart.mean()),
        "interval": bootstrap(apart, np.mean, seed=seed),
        "wins": wins,
        "ties": ties,
        "losses": len(both) - wins - ties,
        "win_rate": won / len(both),
        "win_interval": wilson(won, len(both)),
        "n": len(both),
    }


def alike(row: dict, found: Sequence[Graded]) -> list[bool | None]:
    """For each rubric of a row: whether it gives the responses of all models the same grade. None where it did not
    grade them all, or there is but one."""
    grades = [each.grades or [None] * len(row["rubrics"]) for each in found]
    columns = list(zip(*grades, strict=True))
    return [None if None in own or len(own) < 2 else len(set(own)) == 1 for own in columns]
