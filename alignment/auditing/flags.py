"""A number with its interval, and a flag in words.

A flag is raised where the 95% interval lies wholly beyond its threshold, so a file that is only small raises none.
Pairs of one prompt are no independent items: shares have `intervals.clustered`, other numbers a bootstrap over prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from alignment.auditing.pairs import Pair
from alignment.intervals import Interval, bootstrap, clustered, percent
from alignment.reward_measures import summed

SHOWN = 8  # examples of a flag


class Estimate(NamedTuple):
    value: float
    interval: Interval
    n: int

    def told(self) -> dict[str, Any]:
        return self._asdict() | {"text": percent(self.value, self.interval)}


@dataclass
class Flag:
    """A check in words. It is raised where the interval lies wholly above `above` or wholly below `below`, or does not
    lie wholly over `over`. Without an estimate `missing` says why there is none."""

    name: str
    said: str  # what the number is of
    reason: str  # for the threshold
    estimate: Estimate | None
    above: float | None = None
    below: float | None = None
    over: float | None = None
    missing: str = ""
    examples: list[dict] = field(default_factory=list)
    tables: dict[str, Any] = field(default_factory=dict)  # what the page shows beside, under names of its own

    @property
    def raised(self) -> bool | None:
        if self.estimate is None:
            return None
        value, (low, high), _ = self.estimate
        return (
            (self.above is not None and min(value, low) > self.above)
            or (self.below is not None and high < self.below)
            or (self.over is not None and low <= self.over)
        )

    @property
    def threshold(self) -> str:
        bounds = (("wholly above", self.above), ("wholly below", self.below), ("not wholly above", self.over))
        told = [f"{how} {100 * at:g}%" for how, at in bounds if at is not None]
        return f"raised where the interval lies {' or '.join(told)}"

    def told(self) -> dict[str, Any]:
        """For the page, and the JSON beside it."""
        words = {name: getattr(self, name) for name in ("name", "raised", "said", "threshold", "reason", "missing")}
        words["bounds"] = [bound for bound in (self.above, self.below, self.over) if bound is not None]
        return words | {"estimate": self.estimate and self.estimate.told(), "examples": self.examples[:SHOWN]}


def share(hits: Iterable[bool], groups: Iterable[Hashable]) -> Estimate | None:
    """The share of items that hit, in groups that belong together; None of no items."""
    hits = [float(hit) for hit in hits]
    return Estimate(sum(hits) / len(hits), clustered(hits, list(groups)), len(hits)) if hits else None


def prompts(pairs: Iterable[Pair]) -> list[str]:
    return [pair.prompt for pair in pairs]


def over_prompts(
    pairs: Sequence[Pair], columns: np.ndarray, statistic: Callable[[np.ndarray], float], seed: int
) -> Estimate | None:
    """A `statistic` of the sums (K,) of numbers (n, K), a row for each pair, bootstrapped over prompts; None where it
    has no value, or a resample has none."""
    sums = summed(columns, prompts(pairs))
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(sums.sum(0)))
        interval = bootstrap(sums, lambda rows: statistic(rows.sum(0)), seed=seed)
    return Estimate(value, interval, len(pairs)) if np.isfinite([value, *interval]).all() else None
