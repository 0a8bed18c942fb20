"""Many texts for one prompt: who beats whom, may it be a pair (ALMoST, section 2.2), which is best (section 2.3)."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import combinations, groupby


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


WAYS = ("reward", "random", "longest")


def choose(how: str, rewards: Sequence[float], lengths: Sequence[int], seed: int) -> int:
    """The index of the candidate taken: of the highest reward, of the greatest length, or any; the first of equals."""
    if how == "random":
        return random.Random(seed).randrange(len(rewards))
    keys = rewards if how == "reward" else lengths
    return max(range(len(keys)), key=keys.__getitem__)


def expected_best(keys: Sequence[float], values: Sequence[float], n: int) -> float:
    """The mean value of the item of the highest key among n, over all ways to draw n of these N without replacement.

    With the N in ascending order of key, the i-th is the highest of C(i-1, n-1) of the C(N, n) draws. So this is
    unbiased for best-of-n of what the N were drawn from, 1 <= n <= N. Equal keys share their draws.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    total, below, of = 0.0, 0, math.comb(len(keys), n)
    for _, group in groupby(order, key=keys.__getitem__):
        tied = list(group)
        draws = math.comb(below + len(tied), n) - math.comb(below, n)
        total += draws / of * sum(values[i] for i in tied) / len(tied)
        below += len(tied)
    return total


def best_of_n_kl(n: int) -> float:
    """An upper bound, in nats, of KL(best-of-n || one sample): log n - (n - 1) / n."""
    return math.log(n) - (n - 1) / n


def best_of_n_curve(rewards: Sequence[Sequence[float]], lengths: Sequence[Sequence[int]], *, seed: int) -> list[dict]:
    """What the choice among n brings, for n = 1 ... N, from the rewards and lengths of each row's N candidates (R, N).

    A point is {"n", "kl", "reward", "longest_reward", "length"}: the bound in nats, the reward of the best, that of the
    longest, and the length of the best, each {"mean", "interval"} over rows of `expected_best`. No rows, no points.
    """
    import numpy as np

    from alignment.intervals import bootstrap

    curve = []
    for n in range(1, len(rewards[0]) + 1 if rewards else 1):
        point: dict = {"n": n, "kl": best_of_n_kl(n)}
        for name, keys, values in (
            ("reward", rewards, rewards),
            ("longest_reward", lengths, rewards),
            ("length", rewards, lengths),
        ):
            rows = np.array([expected_best(*row, n) for row in zip(keys, values, strict=True)])
            point[name] = {"mean": rows.mean().item(), "interval": bootstrap(rows, np.mean, seed=seed)}
        curve.append(point)
    return curve
