"""The ranker's cases, and a plain reading of its rule as the oracle."""

import math
import random
import statistics
from itertools import combinations

import pytest

from alignment.ranking import best_of_n_curve, best_of_n_kl, binarise, choose, expected_best, mean_and_std


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


# Which is best


@pytest.mark.parametrize(
    ("how", "rewards", "lengths", "taken"),
    [
        ("reward", (0.5, 2.0, 1.0), (9, 1, 5), 1),
        ("reward", (2.0, 0.5, 2.0), (1, 2, 3), 0),  # the first of equals
        ("reward", (-3.0, -2.0), (5, 9), 1),
        ("longest", (0.5, 2.0, 1.0), (5, 1, 9), 2),
        ("longest", (None, None), (7, 7), 0),  # without rewards, the first of equals
    ],
)
def test_choose(how, rewards, lengths, taken):
    assert choose(how, rewards, lengths, seed=0) == taken


def test_a_random_choice_is_the_seeds_and_even():
    """3,000 seeds over 3: each 1,000 times, to 4 x sqrt(3000 x 1/3 x 2/3) = 103."""
    taken = [choose("random", (0.0, 5.0, 1.0), (1, 2, 3), seed) for seed in range(3000)]
    assert all(abs(taken.count(place) - 1000) < 103 for place in range(3))
    assert taken[:9] == [choose("random", (1.0, 0.0, 0.0), (3, 2, 1), seed) for seed in range(9)]


def mean_over_draws(keys, values, n):
    """The definition: for each set of n the mean value of those of its highest key, and the mean over all sets."""
    bests = []
    for drawn in combinations(range(len(keys)), n):
        top = max(keys[i] for i in drawn)
        bests.append(statistics.mean(values[i] for i in drawn if keys[i] == top))
    return statistics.mean(bests)


def test_expected_best_by_hand():
    """Of (1, 2, 4): pairs (1,2) (1,4) (2,4), whose best are 2, 4, 4: 10/3. Keyed by lengths (9, 5, 1) the longest of
    these pairs are worth 1, 1, 2: 4/3. One of three is their mean, 7/3, and three of three is the best, 4."""
    assert expected_best((1, 2, 4), (1, 2, 4), 2) == pytest.approx(10 / 3)
    assert expected_best((9, 5, 1), (1, 2, 4), 2) == pytest.approx(4 / 3)
    assert expected_best((1, 2, 4), (1, 2, 4), 1) == pytest.approx(7 / 3)
    assert expected_best((1, 2, 4), (1, 2, 4), 3) == 4


def test_expected_best_equals_enumeration():
    """Without ties, and with so many that most draws have one: where all equals of a key are drawn the value is their
    mean, and where some are, each is as likely to be among them."""
    draw = random.Random(0)
    for tied in (False, True) * 60:
        size = draw.randint(1, 7)
        keys = [draw.randrange(3) if tied else draw.gauss() for _ in range(size)]
        values = [draw.gauss() for _ in range(size)]
        for n in range(1, size + 1):
            assert expected_best(keys, values, n) == pytest.approx(mean_over_draws(keys, values, n), abs=1e-12)


def test_expected_best_of_many_stays_finite():
    """Of 1 ... N the expected best of n is n (N + 1) / (n + 1). Of N = 1,200 the counts of draws pass 10^308, the
    greatest float."""
    keys = range(1, 1201)
    for n in (2, 600):
        assert expected_best(keys, keys, n) == pytest.approx(n * 1201 / (n + 1))


def test_kl_bound():
    """n = 1: none. n = 4: log 4 - 3/4 = 0.636. It grows with n, and stays below log n."""
    assert best_of_n_kl(1) == 0 and best_of_n_kl(4) == pytest.approx(1.386294 - 0.75)
    bounds = [best_of_n_kl(n) for n in range(1, 50)]
    assert bounds == sorted(bounds)


def test_the_bound_is_the_divergence_of_best_of_n_over_many_answers():
    """Over K equally likely answers, ranked 1 ... K, the best of n is the k-th with ((k/K)^n - ((k-1)/K)^n). Its
    divergence from one sample is below the bound, and comes to it with K: of 4,000 answers within n / K."""
    kinds, n = 4000, 8
    share = [(k / kinds) ** n - ((k - 1) / kinds) ** n for k in range(1, kinds + 1)]
    divergence = sum(p * math.log(p * kinds) for p in share)
    assert best_of_n_kl(n) - n / kinds < divergence < best_of_n_kl(n)


def test_curve_equals_enumeration():
    """3 rows of 4: each point is the mean over the rows of the mean over all sets of n."""
    rewards = [[0.5, 2.0, -1.0, 2.0], [3.0, 1.0, 1.0, 0.0], [-2.0, -1.0, -3.0, 5.0]]
    lengths = [[10, 40, 40, 20], [5, 50, 7, 7], [90, 80, 70, 60]]
    curve = best_of_n_curve(rewards, lengths, seed=0)
    assert [point["n"] for point in curve] == [1, 2, 3, 4]
    for n, point in enumerate(curve, 1):
        for name, keys, values in (
            ("reward", rewards, rewards),
            ("longest_reward", lengths, rewards),
            ("length", rewards, lengths),
        ):
            of_rows = [mean_over_draws(key, value, n) for key, value in zip(keys, values, strict=True)]
            low, high = point[name]["interval"]
            assert point[name]["mean"] == pytest.approx(statistics.mean(of_rows))
            assert min(of_rows) - 1e-9 <= low < point[name]["mean"] < high <= max(of_rows) + 1e-9
        assert point["kl"] == best_of_n_kl(n)
    assert best_of_n_curve([], [], seed=0) == []


def test_best_of_4_by_a_noisy_reward_is_the_better_as_often_as_it_must():
    """Qualities and noise are standard normal: the reward q + e correlates 1/sqrt(2) with q, so the best of 4 has the
    mean quality 1.0294 / sqrt(2) = 0.728, where 1.0294 is the mean of the highest of 4 normals; and the mean reward
    1.0294 x sqrt(2) = 1.456. 4,000 rows: a row's best quality has a deviation of at most 1, so both means are right to
    4 x sqrt(2) / sqrt(4000) = 0.09. The curve from pools of 8 says the same of n = 4, to no worse."""
    draw = random.Random(1)
    pools = [[(quality := draw.gauss(), quality + draw.gauss()) for _ in range(8)] for _ in range(4000)]
    taken = [pool[choose("reward", [reward for _, reward in pool[:4]], [1] * 4, seed=0)] for pool in pools]
    assert abs(statistics.mean(quality for quality, _ in taken) - 0.728) < 0.09
    assert abs(statistics.mean(reward for _, reward in taken) - 1.456) < 0.09
    expected = [expected_best([r for _, r in pool], [q for q, _ in pool], 4) for pool in pools]
    assert abs(statistics.mean(expected) - 0.728) < 0.06
