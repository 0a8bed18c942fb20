"""How sure a number is: its 95% interval, and the one way to print both.

    value, interval = 8 / 10, wilson(8, 10)
    percent(value, interval)                                      # 80.0 [49.0, 94.3]
    rows = np.array([[1.0], [2.0], [6.0]])
    with_interval(3.0, bootstrap(rows, np.mean, seed=0), ".1f")   # 3.0 [1.0, 6.0]

A share of independent items has Wilson's interval, and one of items in groups that go together `clustered`'s; any other
statistic of rows has a bootstrap's, in which the rows are drawn again with replacement. Two sides measured on the same
rows are compared row by row (`paired_bootstrap`), as what makes a row hard for both says nothing about which is better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

Interval = tuple[float, float]


def wilson(correct: float, total: int, z: float = 1.96) -> Interval:
    """The interval of a share of `total` items (Wilson 1927): right also for few items and near 0 and 1."""
    share, spread = correct / total, z * z / total
    centre = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total)) / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)


def clustered(hits: Sequence[float], groups: Sequence[Hashable]) -> Interval:
    """Wilson's interval of the share of `hits`, 1 or 0 each, whose items come in groups, as the pairs of one prompt do.

    n items are worth s (1 - s) n^2 / v independent ones, n at most, where v is the sum over groups of the squared sum
    of hit - s (Kish's design effect). Where all or none hit, each group is worth one.
    """
    share, sums = sum(hits) / len(hits), dict.fromkeys(groups, 0.0)
    for hit, group in zip(hits, groups, strict=True):
        sums[group] += hit - share
    spread = sum(value * value for value in sums.values())
    worth = share * (1 - share) * len(hits) ** 2 / spread if spread else len(hits)
    total = min(worth, len(hits)) if 0 < share < 1 else len(sums)
    return wilson(share * total, total)


def bootstrap(
    rows: np.ndarray, statistic: Callable[[np.ndarray], float], *, seed: int, resamples: int = 2000
) -> Interval:
    """The interval of `statistic(rows)`, rows (n, ...): its 2.5% and 97.5% quantiles over resampled rows (Efron 1979).

    Both are NaN where any resample has no value, as the mean of tokens that none of its rows has.
    """
    draw = np.random.default_rng(seed)
    values = [statistic(rows[draw.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    low, high = np.quantile(np.asarray(values, dtype=np.float64), [0.025, 0.975]).tolist()
    return low, high


def paired_bootstrap(
    first: np.ndarray, second: np.ndarray, statistic: Callable[[np.ndarray], float], *, seed: int, resamples: int = 2000
) -> Interval:
    """The interval of `statistic(first) - statistic(second)`, (n, ...) each of the same rows, drawn alike for both."""
    assert len(first) == len(second), "pairs are of the same rows"
    return bootstrap(
        np.arange(len(first)),
        lambda drawn: statistic(first[drawn]) - statistic(second[drawn]),
        seed=seed,
        resamples=resamples,
    )


def with_interval(value: float, interval: Interval, form: str = "z.3f") -> str:
    """`0.024 [0.006, 0.042]`; a difference wants a sign, "+z.3f". The z leaves no minus on what rounds to 0."""
    value, low, high = (format(number, form) for number in (value, *interval))
    return f"{value} [{low}, {high}]"


def percent(share: float, interval: Interval) -> str:
    """A share in percent: `71.0 [62.7, 78.1]`. The column's head says %."""
    return with_interval(100 * share, (100 * interval[0], 100 * interval[1]), ".1f")
