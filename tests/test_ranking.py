"""The ranker's cases, and a plain reading of its rule as the oracle."""

import random

import pytest

from alignment.ranking import binarise, mean_and_std


@pytest.mark.parametrize(
    ("ranks", "lengths", "pairs"),
    [
        ((0, 1, 2, 3), (400, 300, 200, 100), ["AB", "BC", "CD"]),
        ((0, 1, 2, 3), (100, 300, 300, 300), ["BC", "CD"]),  # A is shorter and not long enough
        ((0, 1, 2, 3), (100, 300, 90, 300), ["AC", "BC"]),  # A skips B; C may not meet D
        ((0, 0, 2, 3), (400, 300, 200, 100), ["AC", "CD"]),  # B's rank has had its choice
        ((0, 0), (400, 300), []),
        ((0,), (400,), []),
        ((), (), []),
        ((0, 1), (200, 200), ["AB"]),
    ],
)
def test_cases(ranks, lengths, pairs):
    assert ["ABCD"[high] + "ABCD"[low] for high, low in binarise(ranks, lengths)] == pairs


def test_mean_and_population_deviation():
    """(2, 4, 4, 4, 5, 5, 7, 9): mean 40/8 = 5, squared deviations 9+1+1+1+0+0+4+16 = 32, root of 32/8 = 2."""
    assert mean_and_std((2, 4, 4, 4, 5, 5, 7, 9)) == (5, 2)


def test_long_enough_is_half_a_deviation_below_the_mean():
    """(67, 100, 60): mean 75.67, deviation 17.44, edge 66.95, so 67 may be chosen over 100. (66, 100, 60): mean 75.33,
    deviation 17.61, edge 66.53: 66 may not, and meets the shorter one instead."""
    assert list(binarise((0, 1, 2), (67, 100, 60))) == [(0, 1), (1, 2)]
    assert list(binarise((0, 1, 2), (66, 100, 60))) == [(0, 2), (1, 2)]


def test_properties_on_random_prompts():
    draw = random.Random(0)
    for _ in range(500):
        ranks = sorted(draw.choices(range(4), k=draw.randint(2, 5)))
        lengths = [draw.randint(50, 400) for _ in ranks]
        pairs = list(binarise(ranks, lengths))
        mean, std = mean_and_std(lengths)
        assert all(ranks[high] < ranks[low] for high, low in pairs)
        assert len({ranks[high] for high, _ in pairs}) == len(pairs)
        assert all(lengths[high] >= min(lengths[low], mean - std / 2) for high, low in pairs)
