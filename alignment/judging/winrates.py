"""What a judge's verdicts on two models' answers say of the models, and of the judge.

    of = [Outcome(question=0, turn=1, compared=found[0], lengths=(900, 400), category="math", difficulty=None), ...]
    standing(of, seed=42)["win_rate"]    # {"mean", "interval", "n"}
    place(of, seed=42)                   # how far the judge goes by the place

A question's value is the mean over its turns: 1 a win, 0 a loss, 0.5 a tie, and a verdict that flips with the order is
a tie. The interval is a bootstrap over questions, in each of which both models are compared. A question without a value
is counted by reason and in no mean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from alignment.intervals import bootstrap, wilson
from alignment.judging.anytime import confidence_sequence
from alignment.judging.length_control import length_controlled
from alignment.judging.pairs import Compared

HALF = 0.5


class Outcome(NamedTuple):
    """A turn of a question on which two models' answers were compared; `lengths` are theirs in characters."""

    question: int
    turn: int
    compared: Compared
    lengths: tuple[int, int]
    category: str | None = None
    difficulty: float | None = None


def standing(outcomes: Sequence[Outcome], *, seed: int) -> dict[str, Any]:
    """How the first model stands to the second. `win_rate` is None where no question has a value."""
    there = [each for each in outcomes if each.compared.value is not None]
    values = [each.compared.value for each in there]
    found: dict[str, Any] = {
        "win_rate": rate(there, seed),
        "anytime": None,
        "length_controlled": None,
        "wins": values.count(1),
        "ties": values.count(HALF),
        "losses": values.count(0),
        "flips": share([each.compared.is_flip for each in there if len(each.compared.verdicts) > 1]),
        "without_verdict": dict(Counter(each.compared.reason for each in outcomes if each.compared.value is None)),
        "one_by_one": one_by_one([each.compared for each in outcomes]),
    }
    if not there:
        return found
    lengths = np.array([each.lengths for each in there])
    points = [each.compared.points for each in there]
    difficulty = [each.difficulty for each in there]
    low, high = confidence_sequence(np.array(list(by_question(there).values())))
    found["anytime"] = (float(low[-1]), float(high[-1]))
    found["length_controlled"] = length_controlled(
        np.array(values),
        lengths[:, 0] - lengths[:, 1],
        None if None in difficulty else np.array(difficulty),
        np.array([each.question for each in there]),
        seed=seed,
    )
    found["characters"] = lengths.mean(0).tolist()
    found["longer"] = [float((lengths[:, i] > lengths[:, 1 - i]).mean()) for i in (0, 1)]
    found["points"] = None if None in points else np.mean(points, axis=0).tolist()
    for name in ("category", "turn"):
        groups = {getattr(each, name) for each in there}
        if len(groups) > 1:
            own = {group: [each for each in there if getattr(each, name) == group] for group in groups}
            found[f"by_{name}"] = {str(group): rate(own[group], seed) for group in sorted(own, key=str)}
    return found


def one_by_one(found: Sequence[Compared]) -> dict[str, Any]:
    """Every verdict that could be read, for itself, as Vicuna's evaluation counts them: 160 of 80 questions. `scores`
    are sums over both orders, None where none were given."""
    said = Counter(better for each in found for better in each.for_first)
    scores = [both for each in found for both in each.scores]
    counts = {"wins": said[1], "ties": said[0], "losses": said[-1]}
    return counts | {"scores": [sum(own) for own in zip(*scores, strict=True)] or None}


def by_question(outcomes: Sequence[Outcome]) -> dict[int, float]:
    """{question: the mean of its turns' values}, in the order in which they were asked, of those that have one."""
    found: dict[int, list[float]] = {}
    for each in outcomes:
        if each.compared.value is not None:
            found.setdefault(each.question, []).append(each.compared.value)
    return {question: sum(own) / len(own) for question, own in found.items()}


def rate(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any] | None:
    return mean_of(list(by_question(outcomes).values()), seed)


def mean_of(values: Sequence[float], seed: int) -> dict[str, Any] | None:
    """A mean with its bootstrap interval; None of none."""
    array = np.array(values)
    return (
        {"mean": float(array.mean()), "interval": bootstrap(array, np.mean, seed=seed), "n": len(array)}
        if len(array)
        else None
    )


def share(hits: Sequence[bool]) -> dict[str, Any] | None:
    return {"mean": sum(hits) / len(hits), "interval": wilson(sum(hits), len(hits)), "n": len(hits)} if hits else None


def side_of(outcomes: Sequence[Outcome]) -> int:
    """1 where the first model's win rate is more than a half by an interval that holds although one looks after every
    question, -1 where it is less, else 0."""
    values = list(by_question(outcomes).values())
    if not values:
        return 0
    low, high = confidence_sequence(np.array(values))
    return int(low[-1] > HALF) - int(high[-1] < HALF)


def place(found: Sequence[Compared], *, seed: int) -> dict[str, Any] | None:
    """How far verdicts go by the place, over pairs that have one in both orders: the mean of 1 for the answer that is
    shown first, -1 for the other and 0 for neither; and in points, where scores are given. None without such a pair."""
    leans = [each.lean for each in found if each.lean is not None]
    points = [each.lean_points for each in found if each.lean_points is not None]
    return {"verdicts": mean_of(leans, seed), "points": mean_of(points, seed)} if leans else None


def wins_of(names: Sequence[str], pairs: dict[tuple[str, str], Sequence[Outcome]], questions: int) -> np.ndarray:
    """The array that `ladder` ranks by: (questions, k, k), the share that i won from j on each."""
    wins = np.zeros((questions, len(names), len(names)))
    for (first, second), outcomes in pairs.items():
        i, j = names.index(first), names.index(second)
        for question, value in by_question(outcomes).items():
            wins[question, i, j], wins[question, j, i] = value, 1 - value
    return wins
