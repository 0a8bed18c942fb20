"""What scores of pairs say: each number by hand, and intervals that hold the truth as often as they say."""

import functools
import math

import numpy as np
import pytest

from alignment import reward_measures as measures
from alignment.choices import SECOND, SECTIONS
from alignment.intervals import bootstrap, wilson


def test_credit():
    """Of two: right 1, wrong 0, a tie 1/2. Of four: two wrong ones at the top leave 0, one beside the right one 1/2."""
    better, worse = [[2.0], [1.0], [3.0], [5.0], [5.0]], [[1.0], [2.0], [3.0], [6.0, 6.0, 1.0], [5.0, 1.0, 1.0]]
    assert measures.credit(better, worse).tolist() == [1, 0, 0.5, 0, 0.5]


def test_accuracy_by_group():
    """Of prompts that differ, Wilson's of 2 of 3; the four pairs of one prompt that go together are worth one."""
    credits = np.array([1.0, 1.0, 0.0, 1.0])
    found = measures.by_group(["a", "a", "a", None], credits, ["p", "q", "r", "s"])
    assert found == {"a": {"accuracy": pytest.approx(2 / 3), "interval": pytest.approx(wilson(2, 3)), "n": 3}}
    alike = measures.accuracy(np.ones(4), ["p"] * 4)
    assert alike["interval"] == pytest.approx(wilson(1, 1)) and alike["n"] == 4


def test_lengths():
    """10% more is as long, a character more is longer; twice is longer, more is more than twice; and the same below.
    (55 over 50 and 100 over 50 are a hair more than 1.1 and 2 by their logarithms.)"""
    lengths = [(50, 50), (55, 50), (56, 50), (100, 50), (101, 50), (50, 55), (50, 100), (50, 101)]
    gaps = measures.length_gaps(["x" * a for a, _ in lengths], ["y" * b for _, b in lengths])
    assert gaps[3] == pytest.approx(math.log(2)) and gaps[6] == pytest.approx(-math.log(2))
    half, shorter, alike, longer, twice = measures.BUCKETS
    assert measures.length_buckets(gaps) == [alike, alike, longer, longer, twice, alike, shorter, half]


def test_longer_and_shorter_alike():
    """Right on 3 of the 4 longer and on 1 of the 2 shorter: (3/4 + 1/2) / 2. The one as long has no part in it. A rule
    of length gets 1 and 0, and so 1/2 in each sample; with one kind of pair alone there is nothing to weigh."""
    gaps = np.array([1.0, 2, 1, 1, -1, -1, 0] * 5)
    credits = np.array([1.0, 1, 1, 0, 1, 0, 1] * 5)
    found = measures.length_balanced(credits, gaps, range(35), seed=0)
    assert found["accuracy"] == pytest.approx(0.625) and found["n"] == 30
    low, high = found["interval"]
    assert 0.4 < low < 0.55 and 0.75 < high < 0.85  # its deviation is half of √(3/16/20 + 1/4/10) = 0.093
    assert measures.length_balanced((gaps > 0).astype(float), gaps, range(35), seed=0)["interval"] == (0.5, 0.5)
    assert measures.length_balanced(credits, np.abs(gaps), range(35), seed=0) is None


def test_calibration():
    """Three pairs at sigmoid 0.72, two of them right, and one at 0.93: the error is (3 x 0.0533 + 0.07) / 4 = 0.0575,
    the log loss -(2 log 0.72 + log 0.28 + log 0.93) / 4 = 0.5006. Where all is the same, so is every resample."""
    logit = {p: math.log(p / (1 - p)) for p in (0.72, 0.93)}
    differences = np.array([logit[0.72], logit[0.72], -logit[0.72], logit[0.93]])
    found = measures.calibration(differences, "pqrs", seed=0)
    assert [(each["n"], each["confidence"]) for each in found["bins"]] == [
        (3, pytest.approx(0.72)),
        (1, pytest.approx(0.93)),
    ]
    assert found["bins"][0]["accuracy"] == pytest.approx(2 / 3) and found["bins"][0]["interval"] == pytest.approx(
        wilson(2, 3)
    )
    assert found["error"] == pytest.approx(0.0575) and found["log_loss"]["value"] == pytest.approx(0.500636, abs=1e-6)
    same = measures.calibration(np.zeros(5), "pqrst", seed=0)
    assert same["error"] == 0 and same["log_loss"]["interval"] == pytest.approx((math.log(2), math.log(2)))
    sure = measures.calibration(np.array([800.0, -800.0]), "pq", seed=0)
    assert sure["error"] == 0.5 and sure["log_loss"]["value"] == 400


def test_correlations():
    """d = (3, 1, -1, 0), g = (2, 1, -1, -1): sums of d², g², d g, d, g are 11, 7, 8, 3, 1. So corr(d, g) = 8 / √77 =
    0.9117, corr(d, y) = 3 / √44 = 0.4523, corr(g, y) = 1 / √28 = 0.1890; given y 0.8262 / √(0.7955 x 0.9643) = 0.9434,
    and of d and y given g 0.2800 / √(0.1688 x 0.9643) = 0.6939. Twice the pairs of each prompt change nothing."""
    d, g = np.array([3.0, 1, -1, 0] * 10), np.array([2.0, 1, -1, -1] * 10)
    found = measures.correlations(d, g, range(40), seed=0)
    assert [each["value"] for each in found.values()] == pytest.approx([0.9117, 0.9434, 0.6939], abs=1e-4)
    again = measures.correlations(np.repeat(d, 2), np.repeat(g, 2), np.repeat(range(40), 2).tolist(), seed=0)
    for one, other in zip(found.values(), again.values(), strict=True):
        assert one["value"] == pytest.approx(other["value"])
        assert one["interval"] == pytest.approx(other["interval"])
    alike = measures.correlations(d, np.zeros(40), range(40), seed=0)
    assert set(alike.values()) == set(measures.correlations(d, g, ["p"] * 40, seed=0).values()) == {None}


def test_two_models_on_the_same_choices():
    """Right by the first alone 2, by the second alone 1, of 4: 1/4 more. Models that are alike differ by 0."""
    first, second = np.array([1.0, 1, 0, 1]), np.array([0.0, 0, 1, 1])
    found = measures.compared(first, second, "pqrs", seed=0)
    assert (found["value"], found["only_first"], found["only_second"]) == (0.25, 2, 1)
    assert found["interval"][0] < 0 < found["interval"][1]
    assert measures.compared(first, first, "pqrs", seed=0)["interval"] == (0, 0)


def test_sections_of_rewardbench():
    """All right but mt-bench-hard, 37 of Chat Hard's 456, and math-prm, half of Reasoning: 0.9189, 0.5, and the mean of
    the four sections 0.8547. A section of which a subset is missing is not given, and no score."""
    credits = {name: np.ones(8) for parts in SECTIONS.values() for name in parts}
    credits |= {"mt-bench-hard": np.zeros(4), "math-prm": np.zeros(3)}
    found = measures.sections(credits, seed=0)
    values = {name: each["accuracy"] for name, each in found.items()}
    hard = 1 - 37 / 456
    assert values == pytest.approx(
        {"Chat": 1, "Chat Hard": hard, "Safety": 1, "Reasoning": 0.5, "score": (2.5 + hard) / 4}
    )
    assert found["Chat Hard"]["interval"] == pytest.approx((hard, hard)) and found["Reasoning"]["n"] == 3 + 6 * 8
    del credits["donotanswer"]
    assert list(measures.sections(credits, seed=0)) == ["Chat", "Chat Hard", "Reasoning"]
    second = {name: np.full(2, share) for name, share in zip(SECOND, (0, 0, 0, 0.5, 0.5, 0.8), strict=True)}
    assert measures.sections(second, seed=0)["score, RewardBench 2"]["accuracy"] == pytest.approx(0.3)


def test_ties_of_rewardbench_2():
    """1: margins 1 and 2, spread 1: 0.3 + 0.3, nothing above the spread, tanh(1 - 1) = 0. 2: margins 1.5 and 0.25,
    spread 0.5: 0.3 + 0.3 + 0.2 and 0.01 tanh(0.5 - 1). 3: margins 0 and 1, spread 0: 0.3, and 0/0 is 0. 4: margins 1,
    spread 0: all that can be. 5 lacks its other row, 6 a second right answer."""
    scores = {
        "tied:1": ([3.0, 2.0], [1.0]),
        "ref:1": ([5.0], [3.0, 2.0]),
        "tied:2": ([3.0, 2.5], [1.0]),
        "ref:2": ([1.25], [1.0]),
        "tied:3": ([2.0, 2.0], [2.0]),
        "ref:3": ([1.0], [0.0]),
        "tied:4": ([2.0, 2.0], [1.0]),
        "ref:4": ([2.0], [1.0]),
        "tied:5": ([2.0, 2.0], [1.0]),
        "tied:6": ([2.0], [1.0]),
        "ref:6": ([2.0], [1.0]),
    }
    wanted = {"1": 0.6, "2": 0.8 + 0.01 * math.tanh(-0.5), "3": 0.3, "4": 1.01}
    assert measures.ties_scores(scores) == pytest.approx(wanted)


def test_intervals_hold_the_truth_as_often_as_they_say(monkeypatch):
    """Rewards that are length and noise alone, d = g/2 + e with g ~ N(1, 1): corr(d, g) = √2 / 2 / √(1 + 1/2), and what
    they know of the preference beyond length is exactly 0. Pairs come in threes of a prompt, whose noise is in part the
    same. Of 100 samples 95% should hold these, and the log loss, which a sample of 200,000 tells; 100 samples have a
    deviation of 2.2%, and a bootstrap of 60 prompts is a little narrow. Without the prompts it holds far too rarely."""
    monkeypatch.setattr(measures, "bootstrap", functools.partial(bootstrap, resamples=200))
    draw = np.random.default_rng(0)

    def sample(prompts):
        shared = draw.normal(size=prompts).repeat(3) * 0.8
        gaps = draw.normal(1, 1, size=3 * prompts)
        return gaps / 2 + shared + draw.normal(0, 0.6, size=3 * prompts), gaps

    truth = {"reward and length": math.sqrt(2) / 2 / math.sqrt(1.5), "reward and preference, partial": 0.0}
    loss = np.logaddexp(0, -sample(200_000)[0]).mean()
    held, careless = {name: [] for name in [*truth, "loss"]}, []
    prompts = np.arange(60).repeat(3).tolist()
    for seed in range(100):
        d, g = sample(60)
        found = measures.correlations(d, g, prompts, seed)
        for name, value in truth.items():
            held[name].append(found[name]["interval"][0] <= value <= found[name]["interval"][1])
        for keys, inside in ((prompts, held["loss"]), (range(180), careless)):
            low, high = measures.mean_of(np.logaddexp(0, -d), keys, seed)["interval"]
            inside.append(low <= loss <= high)
    assert all(0.88 <= np.mean(each) <= 1 for each in held.values()), {n: np.mean(each) for n, each in held.items()}
    assert np.mean(careless) < 0.88
