"""Many texts for one prompt: who beats whom, and may it be a pair (ALMoST, section 2.2)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations


def mean_and_std(lengths: Sequence[int]) -> tuple[float, float]:
    """Mean and population standard deviation of lengths."""
    mean = sum(lengths) / len(lengths)
    return mean, math.sqrt(sum((length - mean) ** 2 for length in lengths) / len(lengths))


def binarise(ranks: Sequence[int], lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs (chosen, rejected) of indices among one prompt's kept responses.

    `ranks` are ascending, 0 the best, equal for a tie; `lengths` are in characters. In the order of combinations, a
    response is chosen at most once, against the nearest worse one that it may meet: it may not where it is both
    shorter and not long enough (m - s/2). Once a rank has had its choice, its ties have none.
    """
    if len(ranks) < 2:
        return
    mean, std = mean_and_std(lengths)
    long_enough = mean - std / 2
    done = set()
    for high, low in combinations(range(len(ranks)), 2):
        if ranks[high] in done or ranks[high] == ranks[low]:
            continue
        if lengths[high] < lengths[low] and lengths[high] < long_enough:
            continue
        done.add(ranks[high])
        yield high, low
