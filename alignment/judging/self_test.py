"""A judge is tested before it is believed: on pairs of which one knows the better answer, made of the answers at hand.

    report, warnings = self_test(judge, pairs, count=20, seed=42)

    order     the same two answers in both orders: does it go by the place?
    padded    an answer against the same answer said twice over: does it like length for itself?
    known     an answer against nothing, a refusal, or the answer to another question: does it see the difference?

The verdicts on real pairs are those of the run itself, asked once. What a judge makes of its own answers, where one of
the models is the judge, can be told from no pair of known worth: `of_its_own` says how often they win, and that is all.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from alignment.intervals import percent, with_interval
from alignment.judging.judges import SPENT
from alignment.judging.pairs import Compared, Pair
from alignment.judging.winrates import HALF, mean_of, place, share

REFUSAL = "I am sorry, but I cannot help with that."
KINDS = ("nothing", "a refusal", "the answer to another question")
ENOUGH = 0.8  # of the known pairs; who guesses or ties is right in fewer
Judge = Callable[[Sequence[Pair]], list[Compared]]


def padded(pair: Pair) -> Pair:
    """The first answer said twice over, against itself."""
    earlier = tuple((question, first, first) for question, first, _ in pair.earlier)
    return pair._replace(first=f"{pair.first}\n\n{pair.first}", second=pair.first, earlier=earlier)


def known(pairs: Sequence[Pair]) -> list[tuple[str, Pair]]:
    """(kind of the worse answer, pair), the first answer of which is the better one; the kinds by turns."""
    found = []
    for number, pair in enumerate(pairs):
        other = pairs[(number + 1) % len(pairs)].first
        kind = KINDS[number % len(KINDS)]
        worse = dict(zip(KINDS, ("", REFUSAL, other), strict=True))[kind]
        earlier = tuple((question, first, first) for question, first, _ in pair.earlier)
        found.append((kind, pair._replace(second=worse, earlier=earlier)))
    return found


def self_test(judge: Judge, pairs: Sequence[Pair], *, count: int, seed: int) -> tuple[dict[str, Any], list[str]]:
    """What came of it, and warnings in words; `count` pairs at most for each part, drawn from those of two answers that
    say something."""
    usable = [pair for pair in pairs if pair.first.strip() and pair.second.strip()]
    drawn = random.Random(seed).sample(usable, min(count, len(usable)))
    worse = known(drawn) if len(drawn) > 1 else []
    tested = judge([*drawn, *map(padded, drawn), *(pair for _, pair in worse)])
    own, twice, told = (tested[: len(drawn)], tested[len(drawn) : 2 * len(drawn)], tested[2 * len(drawn) :])
    right = {kind: [] for kind in KINDS}
    for (kind, _), each in zip(worse, told, strict=True):
        if each.value is not None:
            right[kind].append(each.value == 1)
    report = {
        "order": place(own, seed=seed),
        "flips": share([each.is_flip for each in own if each.value is not None and len(each.verdicts) > 1]),
        "padded": mean_of([each.credit for each in twice if each.credit is not None], seed),
        "padded_points": mean_of(
            [first - second for first, second in filter(None, (each.points for each in twice))], seed
        ),
        "known": share([hit for own in right.values() for hit in own]),
        "known_by_kind": {kind: share(hits) for kind, hits in right.items()},
        "without_verdict": share([each.value is None for each in tested if each.reason != SPENT]),
    }
    return report, warnings_of(report)


def warnings_of(report: dict[str, Any]) -> list[str]:
    found = []
    if report["order"]:
        found += leaning(report["order"])
    twice, points = report["padded"], report["padded_points"]
    if (twice and twice["interval"][0] > HALF) or (points and points["interval"][0] > 0):
        told = f"{percent(twice['mean'], twice['interval'])}% of the time"
        told += f", by {with_interval(points['mean'], points['interval'], '+z.2f')} points," if points else ""
        found.append(
            f"the judge likes length for itself: an answer said twice over wins {told} against the same said once; "
            "look at the length-controlled win rate"
        )
    if (right := report["known"]) and right["mean"] < ENOUGH:
        worst = min((own["mean"], kind) for kind, own in report["known_by_kind"].items() if own)
        found.append(
            f"the judge finds the better answer in {percent(right['mean'], right['interval'])}% of pairs where it is "
            f"known, and in {worst[0]:.0%} against {worst[1]}: its verdicts say little"
        )
    if (lost := report["without_verdict"]) and lost["mean"] > 0.1:
        found.append(f"{lost['mean']:.0%} of the test's pairs got no verdict that can be read")
    return found


def leaning(order: dict[str, Any]) -> list[str]:
    """A warning where the verdicts go by the place, whose interval is then without 0."""
    low, high = order["verdicts"]["interval"]
    if low <= 0 <= high:
        return []
    which = "first" if low > 0 else "second"
    told = with_interval(order["verdicts"]["mean"], (low, high), "+z.2f")
    return [
        f"the judge leans to the answer that is shown {which}: {told} on a scale from -1, always the second, to 1, "
        "always the first; both orders are asked, and a verdict that flips is a tie"
    ]


def of_its_own(judge: str, rates: dict[tuple[str, str], dict[str, Any] | None]) -> list[str]:
    """A warning for each win rate of a model that bears the judge's name and is above a half by its interval."""
    found = []
    for (first, second), own in rates.items():
        if own is None or judge not in (first, second):
            continue
        low, high = own["interval"] if first == judge else (1 - own["interval"][1], 1 - own["interval"][0])
        if low > HALF:
            mean = own["mean"] if first == judge else 1 - own["mean"]
            other = second if first == judge else first
            found.append(
                f"the judge prefers its own answers to those of {other}: {percent(mean, (low, high))}%; they may be "
                "better, or only its own: ask a judge that is neither"
            )
    return found
