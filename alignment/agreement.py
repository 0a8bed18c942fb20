"""How far two measurements of the same things agree."""

from __future__ import annotations

import numpy as np


def pearson(both: np.ndarray) -> float:
    """The correlation of two columns (n, 2); NaN where one is constant."""
    centred = both - both.mean(0)
    products = centred.T @ centred
    spread = np.sqrt(products[0, 0] * products[1, 1])
    return float(products[0, 1] / spread) if spread else np.nan


def spearman(both: np.ndarray) -> float:
    """The correlation of the ranks of two columns (n, 2); NaN where one is constant."""
    return pearson(np.stack([ranks(column) for column in both.T], axis=1))


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal values have the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]
