"""Several models in one order, from who beat whom (Bradley and Terry 1952).

    found = ladder(["a", "b", "c"], wins, seed=42)    # wins (n, 3, 3): for each question the share that i won from j
    found[0]   # {"model", "points", "interval", "rank", "rank_interval", "n"}, the strongest first

The odds that i beats j are exp(strength_i - strength_j). A tie is half a win. Points are chess's, 400 for odds of
10 to 1, and their mean is 0. Intervals are bootstraps over questions, a question with all of its pairs.

A model that won, or lost, every comparison would have an infinite strength. So every two models get one tie more, which
600 questions do not feel: what is infinite becomes large, and two that never met are joined.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

CHESS = 400 / math.log(10)
RESAMPLES = 2000


def ladder(names: Sequence[str], wins: np.ndarray, *, seed: int) -> list[dict[str, Any]]:
    """Each model's points and rank, with intervals. wins (n, k, k); wins[q, i, j] + wins[q, j, i] is 1 where i and j
    were compared on q, else 0."""
    questions, k, _ = wins.shape
    points = CHESS * strengths(wins.sum(0)[None])[0]
    times = np.random.default_rng(seed).multinomial(questions, np.ones(questions) / questions, size=RESAMPLES)
    drawn = CHESS * strengths((times @ wins.reshape(questions, k * k)).reshape(RESAMPLES, k, k))  # (R, k)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    ranks = np.stack([ranks_of(points), *np.quantile(ranks_of(drawn), [0.025, 0.975], axis=0, method="nearest")])
    played = (wins + wins.transpose(0, 2, 1)).sum((0, 2))
    return [
        {
            "model": names[i],
            "points": float(points[i]),
            "interval": (float(low[i]), float(high[i])),
            "rank": int(ranks[0, i]),
            "rank_interval": (int(ranks[1, i]), int(ranks[2, i])),
            "n": int(played[i]),
        }
        for i in np.argsort(-points)
    ]


def strengths(wins: np.ndarray) -> np.ndarray:
    """The likeliest strengths (R, k), of mean 0, for wins (R, k, k) and one tie more of every two: Newton's method."""
    count, k, _ = wins.shape
    wins = wins + 0.5 * (1 - np.eye(k))
    met = wins + wins.transpose(0, 2, 1)
    found = np.zeros((count, k))
    for _ in range(200):
        odds = 1 / (1 + np.exp(found[:, None, :] - found[:, :, None]))  # (R, k, k): that i beats j
        slope = (wins - met * odds).sum(2)
        between = met * odds * (1 - odds)
        curve = between.sum(2)[:, :, None] * np.eye(k) - between + 1 / k  # the mean does not move
        step = np.linalg.solve(curve, slope[:, :, None])[:, :, 0].clip(-1, 1)
        found += step
        if np.abs(step).max() < 1e-9:
            break
    return found - found.mean(1, keepdims=True)


def ranks_of(points: np.ndarray) -> np.ndarray:
    """1 for the highest of the last axis; of equals each has the better rank."""
    return 1 + (points[..., None, :] > points[..., :, None]).sum(-1)
