"""The length-controlled win rate of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475): what a judge would prefer if
both answers were as long.

    found = length_controlled(values, lengths_of_first - lengths_of_second, seed=42)
    found["win_rate"], found["interval"], found["weights"]["length"]

A logistic regression without an intercept explains the judge's values, 1 for the first answer and 0 for the second, by
three features: the difference in characters over its standard deviation, in tanh; the difficulty of the question, where
it is known; and 1, which stands for the models. The win rate is the mean of what it predicts with the first set to 0.

As in the package (alpaca_eval 0.6.6, metrics/glm_winrate.py) the weights are penalised by their absolute values, and of
ten strengths that one is taken whose predictions of held-out fifths are best. Two things of it are not here, as their
data exist for one judge and one set of questions only: annotations of two models that were told to be short or long,
which draw the weight of the length to theirs, and difficulties of any other questions than its 805.
"""

from __future__ import annotations

from typing import Any

import numpy as np

STRENGTHS = np.logspace(-4, 4, 10)  # of the data over the penalty: scikit-learn's, whose solver the package uses
FOLDS = 5
LEAST = 10  # values, for a regression at all
VARIED = 0.01  # standard deviation of the length's feature, below which it is one value but for noise
RESAMPLES = 500


def length_controlled(
    values: np.ndarray,
    longer: np.ndarray,
    difficulty: np.ndarray | None = None,
    questions: np.ndarray | None = None,
    *,
    seed: int,
) -> dict[str, Any] | None:
    """The win rate of the first answers, its bootstrap interval over questions, and the weights.

    `values` (n,) in [0, 1]; `longer` (n,), the characters that the first has more; `difficulty` (n,); `questions` (n,)
    says which go together, as turns do. The penalty's strength is not drawn again. None for fewer than ten values, and
    where one is always longer by about as much: then length and model are one feature, and any rate explains the
    values. Of few values the penalty may leave no weight: all are 0, and so the win rate is a half, whatever they are.
    """
    count = len(values)
    if count < LEAST:
        return None
    spread = longer.std(ddof=1)
    by_length = np.tanh(longer / spread) if spread else np.sign(longer)
    if by_length.any() and by_length.std() < VARIED:
        return None
    ones = np.ones(count)
    features = [by_length, *([] if difficulty is None else [difficulty]), ones]
    x, names = np.stack(features, axis=1), ["length", *([] if difficulty is None else ["difficulty"]), "model"]
    strength = best_strength(x, values)
    weights = fitted(x, values, ones[None], strength)
    without = x * (np.array(names) != "length")
    _, groups = np.unique(np.arange(count) if questions is None else questions, return_inverse=True)
    drawn = np.random.default_rng(seed).multinomial(total := groups.max() + 1, np.ones(total) / total, size=RESAMPLES)
    times = drawn[:, groups].astype(float)  # (R, n)
    rates = (sigmoid(fitted(x, values, times, strength, start=weights) @ without.T) * times).sum(1) / times.sum(1)
    return {
        "win_rate": float(sigmoid(without @ weights[0]).mean()),
        "interval": tuple(np.quantile(rates, [0.025, 0.975]).tolist()),
        "weights": dict(zip(names, weights[0].tolist(), strict=True)),
        "strength": float(strength),
        "n": count,
    }


def best_strength(x: np.ndarray, values: np.ndarray) -> float:
    """That of STRENGTHS which predicts each fifth best, by log loss, from the others; of equals the first."""
    folds = np.arange(len(values))[::-1] % FOLDS
    inside = (folds != np.arange(FOLDS)[:, None]).astype(float)  # (5, n)
    losses = []
    for strength in STRENGTHS:
        logits = fitted(x, values, inside, strength) @ x.T
        loss = (np.logaddexp(0, logits) - values * logits) * (1 - inside)
        losses.append((loss.sum(1) / (1 - inside).sum(1)).mean())
    return STRENGTHS[int(np.argmin(losses))]


def fitted(
    x: np.ndarray, values: np.ndarray, times: np.ndarray, strength: float, start: np.ndarray | None = None
) -> np.ndarray:
    """The w (R, k) that minimise |w|_1 + strength * sum_i times_ri * logloss(values_i, x_i w). x (n, k), times (R, n).

    A proximal Newton method: each step minimises the penalty and the loss's quadratic, coordinate by coordinate, and is
    halved as long as the sum would rise.
    """
    w = np.zeros((len(times), x.shape[1])) if start is None else np.repeat(start, len(times), axis=0)
    products = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)

    def cost(w: np.ndarray, times: np.ndarray) -> np.ndarray:
        logits = w @ x.T
        return np.abs(w).sum(1) + strength * (times * (np.logaddexp(0, logits) - values * logits)).sum(1)

    moving, best = np.arange(len(w)), cost(w, times)
    for _ in range(100):
        own, told = w[moving], times[moving]
        p = sigmoid(own @ x.T)
        slope = strength * ((told * (p - values)) @ x)  # (R, k)
        curve = strength * ((told * p * (1 - p)) @ products).reshape(len(own), x.shape[1], -1)
        step = nearest_minimum(own, slope, curve + 1e-9 * np.eye(x.shape[1])) - own
        rising = np.arange(len(own))
        for _ in range(30):
            now = cost(own[rising] + step[rising], told[rising])
            fell = now <= best[moving[rising]]
            best[moving[rising[fell]]] = now[fell]
            rising = rising[~fell]
            if not len(rising):
                break
            step[rising] /= 2
        step[rising] = 0
        w[moving] += step
        moving = moving[np.abs(step).max(1) > 1e-6]
        if not len(moving):
            break
    return w


def nearest_minimum(w: np.ndarray, slope: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """What minimises |v|_1 + slope (v - w) + (v - w) curve (v - w) / 2; all (R, k), the curve (R, k, k)."""
    v = w.copy()
    for _ in range(100):
        before = v.copy()
        for j in range(w.shape[1]):
            own = curve[:, j, j]
            pull = own * v[:, j] - slope[:, j] - (curve[:, j] * (v - w)).sum(1)
            v[:, j] = np.sign(pull) * np.maximum(np.abs(pull) - 1, 0) / own
        if np.abs(v - before).max() < 1e-10:
            break
    return v


def sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))
