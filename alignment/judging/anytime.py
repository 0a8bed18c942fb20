"""A mean's interval that holds at all times together, so that one may look after every value and stop.

    low, high = confidence_sequence(np.array([1, 1, 0.5, 1, ...]))    # after each value, of all so far
    if low[-1] > 0.5: ...                                             # stop: it is more than a half

An interval for a fixed number of values is wrong far more often than its 5% where one stops as soon as it says so. Here
the chance is at most 5% that any of all intervals, however long one goes on, lies beside the mean.

It is a betting sequence (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
section 4): against each candidate m one bets on every next value, by stakes that depend on earlier values only. If m
is the mean no bet is favourable, and the chance that the capital ever comes to 20 times what it was is at most 1/20
(Ville). The interval is all m whose bets have not.
"""

from __future__ import annotations

import numpy as np

STEP = 1 / 400  # between candidates
MOST = 0.5  # of the capital that a bet can lose


def confidence_sequence(values: np.ndarray, alpha: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends (..., n) after each of `values` (..., n) in [0, 1], drawn one after the other with one mean."""
    rows = np.atleast_2d(values)
    stakes = stakes_of(rows, alpha)
    candidates = np.linspace(0, 1, round(1 / STEP) + 1)
    with np.errstate(divide="ignore"):
        up_to, down_to = MOST / candidates, MOST / (1 - candidates)
    above = np.full((len(rows), len(candidates)), np.log(0.5))  # capital that bets on more than m; half on each side
    below = above.copy()
    alive = np.ones(above.shape, bool)
    ends = np.empty((2, *rows.shape))
    for at in range(rows.shape[1]):
        gain, stake = rows[:, at, None] - candidates, stakes[:, at, None]
        above += np.log1p(np.minimum(stake, up_to) * gain)
        below += np.log1p(-np.minimum(stake, down_to) * gain)
        alive &= np.maximum(above, below) < np.log(1 / alpha)
        ends[0, :, at] = candidates[alive.argmax(1)] - STEP  # the end lies between two candidates
        ends[1, :, at] = candidates[-1 - alive[:, ::-1].argmax(1)] + STEP
    low, high = ends.clip(0, 1).reshape(2, *values.shape)
    return low, high


def stakes_of(rows: np.ndarray, alpha: float) -> np.ndarray:
    """The stake on each value (R, n), from the mean and the variance of those before it: section 4.2's, which narrows
    the interval about as fast as one could that knew the variance."""
    times = np.arange(1, rows.shape[1] + 1)
    means = (0.5 + rows.cumsum(1)) / (times + 1)
    variances = (0.25 + ((rows - means) ** 2).cumsum(1)) / (times + 1)
    before = np.concatenate([np.full((len(rows), 1), 0.25), variances[:, :-1]], axis=1)
    return np.sqrt(2 * np.log(2 / alpha) / (before * times * np.log1p(times)))
