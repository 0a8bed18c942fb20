"""What a model could go by in place of quality: the length of a response, or its place.

A file whose longer responses win is no fault in itself, but a rule that counts characters does as well on it. So the
rank of the configurations is found on the pairs of unlike lengths, and looked for in those of like lengths; and a
reward model is to be right as often where the shorter response is the chosen one.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from alignment.auditing.configurations import strengths
from alignment.auditing.flags import Estimate, Flag, over_prompts, prompts, share
from alignment.auditing.pairs import Pair
from alignment.intervals import percent, with_interval
from alignment.reward_measures import BUCKETS, by_group, correlations, credit, length_buckets, length_gaps

AS_LONG = BUCKETS[2]
FEW = 50  # pairs on either side, under which two shares are not compared
BINS, WIDEST = 24, 3  # of the histogram: bars, and doublings on either side, beyond which all is in the last bar


def gaps_of(pairs: Sequence[Pair]) -> np.ndarray:
    """log(characters of chosen / of rejected) of each pair."""
    return length_gaps([pair.chosen for pair in pairs], [pair.rejected for pair in pairs])


def length_flag(pairs: Sequence[Pair], seed: int) -> Flag:
    gaps = gaps_of(pairs)
    unequal = [pair for pair, gap in zip(pairs, gaps, strict=True) if gap]
    effect = over_prompts(pairs, np.stack([np.ones(len(gaps)), gaps, gaps**2], axis=1), cohens_d, seed)
    size = with_interval(effect.value, effect.interval, "z.2f") if effect else "none"
    doublings = np.clip(gaps / math.log(2), -WIDEST, WIDEST)
    histogram = np.histogram(doublings, BINS, (-WIDEST, WIDEST))[0].tolist()
    counts = Counter(length_buckets(gaps))
    buckets = [{"name": name, "pairs": counts[name]} for name in BUCKETS]
    return Flag(
        name="the longer response is chosen",
        said="pairs of unequal length whose chosen response is the longer one, in characters; the median one has "
        f"{math.exp(np.median(gaps)):.2f} times those of its rejected one, and Cohen's d of the logarithm is {size}",
        reason="a rule that counts characters is right this often; from 60% on a reward model can do well by it (our "
        "choice). Under 40% the shorter one is chosen, which is learned as easily",
        estimate=share((len(pair.chosen) > len(pair.rejected) for pair in unequal), prompts(unequal)),
        above=0.6,
        below=0.4,
        missing="all pairs are of equal lengths",
        tables={"lengths": {"histogram": histogram, "widest": WIDEST, "buckets": buckets}},
    )


def cohens_d(sums: np.ndarray) -> float:
    """Mean over deviation, from a count, a sum and a sum of squares: paired, in deviations of the difference."""
    count, total, squares = sums
    return total / count / np.sqrt(squares / count - (total / count) ** 2)


def rank_flag(pairs: Sequence[Pair], seed: int) -> Flag:
    """Whether the configurations' rank, found on pairs of unlike lengths, holds in pairs of like lengths."""
    named = [pair for pair in pairs if pair.configurations]
    like = [name == AS_LONG for name in length_buckets(gaps_of(named))]
    strength = strengths(Counter(pair.configurations for pair, is_like in zip(named, like, strict=True) if not is_like))
    ranked = [
        (pair, is_like, strength[pair.configurations[0]] > strength[pair.configurations[1]])
        for pair, is_like in zip(named, like, strict=True)
        if all(name in strength for name in pair.configurations)
    ]
    kept = share(
        (right for _, is_like, right in ranked if is_like), (pair.prompt for pair, is_like, _ in ranked if is_like)
    )
    lost, told = None, ""
    if kept and FEW <= kept.n <= len(ranked) - FEW:
        columns = [(is_like, is_like and right, not is_like, right and not is_like) for _, is_like, right in ranked]
        lost = over_prompts([pair for pair, _, _ in ranked], np.array(columns, dtype=float), agreement_lost, seed)
        told = f", within 10%: of {kept.n:,} of these {percent(kept.value, kept.interval)} % go with it"
    return Flag(
        name="the configurations' rank fades at equal length",
        said="points by which the configurations' rank, found on pairs of unlike lengths, agrees less with those of "
        f"like lengths{told}",
        reason="a rank that holds only where lengths differ is one of lengths; 10 points are our choice. In pairs made "
        "by rank (--mode cs) all agree, whatever the responses are worth",
        estimate=lost,
        above=0.1,
        missing=f"under {FEW} pairs of like or of unlike lengths" if named else "no meta names configurations, a-vs-b",
    )


def agreement_lost(sums: np.ndarray) -> float:
    """From counts of like pairs, of those that agree, of unlike pairs, and of those that agree."""
    return sums[3] / sums[2] - sums[1] / sums[0]


def position_flag(pairs: Sequence[Pair]) -> Flag:
    told = [pair for pair in pairs if pair.first is not None]
    found = share((pair.first for pair in told), prompts(told))
    missing = "" if told else "rows of chosen and rejected have no order"
    if found and found.value in (0, 1):
        found, missing = None, f"the {'first' if found.value else 'second'} is always the better one: that is the form"
    return Flag(
        name="the order decides",
        said="pairs of scored responses of which the first is the better one",
        reason="what was judged in a random order has a half; 10 points off are our choice",
        estimate=found,
        above=0.6,
        below=0.4,
        missing=missing,
    )


def reward_flag(pairs: Sequence[Pair], rewards: Sequence[tuple[float, float]], seed: int) -> Flag:
    """Whether a reward model knows anything that a length rule does not, from its rewards of chosen and rejected.

    A rule that takes the longer response is right where it is the chosen one and wrong where it is not, and one that
    takes the shorter the other way round: the mean of both accuracies is a half for either.
    """
    gaps, keys = gaps_of(pairs), prompts(pairs)
    right = credit([[chosen] for chosen, _ in rewards], [[rejected] for _, rejected in rewards])
    columns = np.stack([gaps > 0, right * (gaps > 0), gaps < 0, right * (gaps < 0)], axis=1)
    found = correlations(np.array([chosen - rejected for chosen, rejected in rewards]), gaps, keys, seed)
    told = {
        name: with_interval(each["value"], each["interval"], "z.2f") if each else "–" for name, each in found.items()
    }
    rule = credit([[len(pair.chosen)] for pair in pairs], [[len(pair.rejected)] for pair in pairs])
    sides = [f"the {'longer' if gap > 0 else 'shorter'} one is chosen" if gap else None for gap in gaps]
    groups = (["all pairs"] * len(pairs), sides, [f"chosen is {name}" for name in length_buckets(gaps)])
    ours, rules = ({n: each for names in groups for n, each in by_group(names, c, keys).items()} for c in (right, rule))
    order = ["all pairs", "the longer one is chosen", "the shorter one is chosen", *(f"chosen is {n}" for n in BUCKETS)]
    rows = [
        {"pairs": name, "n": ours[name]["n"], "model": accuracy_told(ours[name]), "rule": accuracy_told(rules[name])}
        for name in order
        if name in ours
    ]
    return Flag(
        name="the reward model may know length alone",
        said="accuracy of the reward model, mean of pairs whose chosen response is the longer and of those where it is "
        "the shorter one",
        reason="the rules that take the longer or the shorter one have a half, so what is not surely above it may be "
        "one of them",
        estimate=over_prompts(pairs, columns, balanced, seed),
        over=0.5,
        missing="the longer response is always chosen, or never",
        examples=[
            pair.example(f"reward {chosen:.2f} against {rejected:.2f}")
            for pair, (chosen, rejected) in sorted(
                zip(pairs, rewards, strict=True), key=lambda each: each[1][0] - each[1][1]
            )
            if chosen < rejected
        ],
        tables={"reward": {"groups": rows, "correlations": told}},
    )


def accuracy_told(found: dict[str, Any]) -> dict[str, Any]:
    return Estimate(found["accuracy"], found["interval"], found["n"]).told()


def balanced(sums: np.ndarray) -> float:
    """The mean of two accuracies, from counts and right ones of either kind."""
    return (sums[1] / sums[0] + sums[3] / sums[2]) / 2
