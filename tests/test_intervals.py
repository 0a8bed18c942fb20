"""Intervals by hand, and that they hold the truth as often as they say."""

import numpy as np
import pytest

from alignment.intervals import bootstrap, paired_bootstrap, percent, wilson, with_interval


def test_wilson():
    """8 of 10: (0.8 + 0.19208) / 1.38416 = 0.7167, less and more 0.2266. 0 of 10 starts at 0, and ends at 0.2775."""
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=1e-4)
    assert wilson(10, 10) == pytest.approx((1 - 0.2775, 1), abs=1e-4)


def test_bootstrap():
    """One 1 among eight rows: a resample has k of them with the binomial's odds for 1/8, up to 0 34%, to 2 93.2%, to 3
    98.9%. So 2.5% lies at 0, and 97.5% at 3/8."""
    rows = np.array([1, 0, 0, 0, 0, 0, 0, 0])
    assert bootstrap(rows, np.mean, seed=0) == (0, 0.375)


def test_bootstrap_is_of_any_statistic_and_seeded():
    """Rows are drawn whole: of (n, 2), whose columns are alike, the difference of the columns' means is 0 in each."""
    rows = np.random.default_rng(0).normal(size=(20, 1)).repeat(2, axis=1)
    assert bootstrap(rows, lambda drawn: drawn[:, 0].mean() - drawn[:, 1].mean(), seed=0) == (0, 0)
    assert bootstrap(rows, np.mean, seed=1) == bootstrap(rows, np.mean, seed=1) != bootstrap(rows, np.mean, seed=2)


def test_a_resample_without_a_value_leaves_no_interval():
    def of_positive(rows):
        return rows[rows > 0].mean() if (rows > 0).any() else float("nan")

    low, high = bootstrap(np.array([1.0, -1.0]), of_positive, seed=0)
    assert np.isnan(low) and np.isnan(high)


def test_paired_bootstrap_draws_the_same_rows_of_both():
    """Two sides that are 1/2 apart in every row are so in every resample, however wide each spreads. With one row of
    eight where they are 1 apart, it is the interval of `test_bootstrap`."""
    second = np.arange(8.0) * 100
    assert paired_bootstrap(second + 0.5, second, np.mean, seed=0) == (0.5, 0.5)
    first = second + (np.arange(8) == 3)
    assert paired_bootstrap(first, second, np.mean, seed=0) == pytest.approx((0, 0.375), abs=1e-9)
    assert paired_bootstrap(second, first, np.mean, seed=0) == pytest.approx((-0.375, 0), abs=1e-9)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    """Of 200 samples of 40 rows with mean 3, and of 40 items of which 70% are right, 95% should; that share itself has
    a standard deviation of 1.5%, and a bootstrap of so few rows is a little narrow."""
    draw = np.random.default_rng(0)
    samples = draw.normal(3, 2, size=(200, 40))
    intervals = [bootstrap(rows, np.mean, seed=0, resamples=400) for rows in samples]
    assert 0.9 <= np.mean([low <= 3 <= high for low, high in intervals]) <= 0.99
    intervals = [wilson(right, 40) for right in draw.binomial(40, 0.7, size=200)]
    assert 0.9 <= np.mean([low <= 0.7 <= high for low, high in intervals]) <= 0.99


def test_a_number_with_its_interval():
    """93 of 131: 0.70992, centre 0.70394, half 0.07683. What rounds to nothing has no minus."""
    assert percent(93 / 131, wilson(93, 131)) == "71.0 [62.7, 78.1]"
    assert with_interval(0.0241, (0.0058, 0.0421), "+z.3f") == "+0.024 [+0.006, +0.042]"
    assert with_interval(-0.0001, (-0.0123, 0.0), "+z.3f") == "+0.000 [-0.012, +0.000]"
    assert with_interval(-0.0001, (-1, 2.25)) == "0.000 [-1.000, 2.250]"
