"""Win rates, length control, stopping and ladders: numbers by hand, and against those of the published package."""

import numpy as np
import pytest

from alignment.judging import winrates
from alignment.judging.anytime import confidence_sequence
from alignment.judging.ladder import ladder, ranks_of, strengths
from alignment.judging.length_control import fitted, length_controlled
from alignment.judging.pairs import Compared, Verdict
from alignment.judging.winrates import Outcome, by_question, place, side_of, standing, wins_of

A, B, TIE = 1, -1, 0


def outcome(question, *verdicts, turn=1, lengths=(30, 10), category=None, scores=None):
    """A turn whose verdicts are for A, B, or neither, the first answer being A in the first; None is unread."""
    said = [Verdict(each, scores, reason=None if each is not None else "no verdict") for each in verdicts]
    return Outcome(question, turn, Compared(tuple(said)), lengths, category)


# Win rates


def test_a_standing_by_hand():
    """Two wins, a loss, a flip and a half-hearted tie of five: (1 + 1 + 0 + 0.5 + 0.5) / 5; the sixth is unread."""
    some = [outcome(0, A, B), outcome(1, A, B), outcome(2, B, A), outcome(3, A, A), outcome(4, A, TIE)]
    found = standing([*some, outcome(5, A, None, lengths=(999, 999))], seed=0)
    assert found["win_rate"]["mean"] == 0.6 and found["win_rate"]["n"] == 5
    assert (found["wins"], found["ties"], found["losses"]) == (2, 2, 1)
    assert found["flips"]["mean"] == 0.2 and found["without_verdict"] == {"no verdict": 1}
    assert found["characters"] == [30, 10] and found["longer"] == [1, 0]
    assert found["points"] is None and found["length_controlled"] is None
    none = standing([outcome(0, None, None)], seed=0)
    assert none["win_rate"] is None and none["flips"] is None and none["without_verdict"] == {"no verdict": 1}


def test_turns_of_a_question_are_one_value():
    """Won and tied: 0.75. So two questions, not three values, are drawn again; and turns and categories apart."""
    some = [
        outcome(0, A, B, category="math"),
        outcome(0, TIE, TIE, turn=2, category="math"),
        outcome(1, B, A, category="writing"),
    ]
    assert by_question(some) == {0: 0.75, 1: 0}
    found = standing(some, seed=0)
    assert found["win_rate"]["mean"] == 0.375 and found["win_rate"]["n"] == 2
    assert found["by_turn"]["1"]["mean"] == 0.5 and found["by_turn"]["2"]["n"] == 1
    assert list(found["by_category"]) == ["math", "writing"] and found["by_category"]["math"]["mean"] == 0.75


def test_the_lean_is_that_of_the_place():
    """A in both, a win, and A with a tie: (1 + 0 + 1/2) / 3. Points: 8 and 6 in both orders, A has 2 more."""
    some = [outcome(0, A, A, scores=(8, 6)), outcome(1, A, B, scores=(8, 6)), outcome(2, A, TIE, scores=(8, 6))]
    found = place([each.compared for each in some], seed=0)
    assert found["verdicts"]["mean"] == 0.5 and found["points"]["mean"] == 2
    assert place([outcome(0, A).compared], seed=0) is None  # a judge that sees no order


def test_wins_are_shares_of_questions():
    pairs = {("a", "b"): [outcome(0, A, B), outcome(1, A, A)], ("b", "c"): [outcome(0, None, A)]}
    wins = wins_of(["a", "b", "c"], pairs, 2)
    assert wins[:, 0, 1].tolist() == [1, 0.5] and wins[:, 1, 0].tolist() == [0, 0.5] and wins[:, 1:, 2].sum() == 0


# Length control


def made(model, bias):
    """120 values of a judge that likes length by `bias`; every tenth a tie."""
    i = np.arange(120)
    longer, difficulty = (i * 7919) % 1000 - 300, ((i * 31) % 17 - 8) / 8
    odds = model + bias * np.tanh(longer / 300) + 0.5 * difficulty
    values = ((i * 97) % 101 / 101 < 1 / (1 + np.exp(-odds))).astype(float)
    values[::10] = 0.5
    return values, longer, difficulty


@pytest.mark.parametrize(
    ("how", "raw", "minimal", "with_difficulty"),
    [
        ((0.4, 1.2), 0.558333, 0.522044, 0.520968),
        ((-0.8, 0.0), 0.308333, 0.374113, 0.372979),
        ((0.0, 3.0), 0.675000, 0.586029, 0.583425),
    ],
)
def test_the_length_controlled_rate_is_the_packages(how, raw, minimal, with_difficulty):
    """What get_length_controlled_winrate of alpaca_eval 0.6.6 (scikit-learn 1.9.1) gives for these values, by its
    regressions length_controlled_minimal and length_controlled_noreg, whose hub file of difficulties was replaced by
    these: its solver stops at 1e-4, so the rates agree to that."""
    values, longer, difficulty = made(*how)
    assert values.mean() == pytest.approx(raw, abs=1e-6)
    found = length_controlled(values, longer, seed=0)
    assert found["win_rate"] == pytest.approx(minimal, abs=5e-5)
    assert list(found["weights"]) == ["length", "model"] and found["interval"][0] < found["win_rate"]
    found = length_controlled(values, longer, difficulty, seed=0)
    assert found["win_rate"] == pytest.approx(with_difficulty, abs=5e-5) and found["weights"]["difficulty"] > 0.3


def test_the_penalised_weight_by_hand():
    """One feature of ones, 3 wins of 4 and strength 10: the slope 10 (4 p - 3) + 1 is 0 at p = 0.725. With strength
    1/2 the slope at weight 0, 0.5 (4/2 - 3), is within the penalty's 1, so the weight is 0. Rows may count twice."""
    x, values = np.ones((4, 1)), np.array([1.0, 1, 1, 0])
    times = np.array([[1.0, 1, 1, 1], [2, 2, 2, 2]])
    weights = fitted(x, values, times, 10)
    assert 1 / (1 + np.exp(-weights[:, 0])) == pytest.approx([0.725, 0.7375], abs=1e-9)
    assert fitted(x, values, times[:1], 0.5).tolist() == [[0]]


def test_length_alone_is_taken_out_and_the_interval_holds_the_truth():
    """A judge by length alone prefers the first in four of five, as it is mostly longer; at the same length in half."""
    draw = np.random.default_rng(0)
    longer = draw.normal(150, 100, size=300)
    values = (draw.random(300) < 1 / (1 + np.exp(-2 * np.tanh(longer / 100)))).astype(float)
    found = length_controlled(values, longer, seed=0)
    low, high = found["interval"]
    assert values.mean() > 0.7 and low < 0.5 < high and found["weights"]["length"] > 1
    assert length_controlled(values, np.zeros(300), seed=0)["win_rate"] == pytest.approx(values.mean(), abs=0.01)
    assert length_controlled(values[:9], longer[:9], seed=0) is None


@pytest.mark.parametrize("noise", [0, 10, 40])
def test_a_model_that_is_always_longer_has_no_rate_at_the_same_length(noise):
    """By 300 characters, give or take: is it the length that wins, or the model? Either explains all values alike, and
    the penalty's choice between them, here the length and so a rate of a half, says nothing."""
    longer = 300 + np.random.default_rng(0).normal(0, noise, size=40)
    for values in (np.ones(40), np.tile([1.0, 1.0, 1.0, 0.0], 10)):
        assert length_controlled(values, longer, seed=0) is None
        assert length_controlled(values, longer * np.tile([1, -1], 20), seed=0) is not None


def test_turns_of_a_question_are_drawn_together():
    """Every value twice is no more information where the two are one question, and looks like more where not."""
    values, longer, _ = made(0.4, 1.2)
    once, twice = length_controlled(values, longer, seed=0), (np.repeat(values, 2), np.repeat(longer, 2))
    same = length_controlled(*twice, questions=np.repeat(np.arange(120), 2), seed=0)
    apart = length_controlled(*twice, seed=0)

    def width(found):
        return found["interval"][1] - found["interval"][0]

    assert width(same) == pytest.approx(width(once), rel=0.1) and width(apart) < 0.8 * width(once)


# Stopping


@pytest.mark.parametrize("odds", [(0.3, 0.4, 0.3), (0.1, 0.2, 0.7), (0.45, 0.0, 0.55)])
def test_the_sequence_holds_the_mean_at_all_times(odds):
    """300 runs of 200 losses, ties and wins: in 95% or more the mean is inside after every value. By the interval for a
    fixed number of values it is outside at some time, from the 30th on, in a quarter of the runs and more."""
    values = np.random.default_rng(0).choice([0, 0.5, 1], p=odds, size=(300, 200))
    mean = odds[1] / 2 + odds[2]
    low, high = confidence_sequence(values)
    assert ((low <= mean) & (mean <= high)).all(1).mean() >= 0.95
    count = np.arange(1, 201)
    means = values.cumsum(1) / count
    half = 1.96 * np.sqrt(((values**2).cumsum(1) / count - means**2) / count)
    assert (abs(means - mean) <= half)[:, 29:].all(1).mean() < 0.75
    assert (np.diff(low) >= 0).all() and (np.diff(high) <= 0).all()  # what is out stays out


def test_the_first_bets_by_hand():
    """Before any value the stake is sqrt(2 log(2 / 0.05) / (0.25 log 2)) = 6.5, cut so that at most half is lost: 1 on
    more than m = 0.5. So a win makes it 1.5 times as much, and of the half of the capital that bets this way nine wins
    make 0.5 * 1.5^9 = 19.2 < 20, ten 28.8: a half is outside after the tenth."""
    low, high = confidence_sequence(np.ones(12))
    assert low[8] < 0.5 <= low[9] and (high == 1).all()
    low, high = confidence_sequence(np.zeros(12))
    assert high[8] > 0.5 >= high[9] and (low == 0).all()


def test_a_side_is_known_once_the_sequence_says_so():
    assert side_of([]) == 0 and side_of([outcome(q, A, B) for q in range(9)]) == 0
    assert side_of([outcome(q, A, B) for q in range(12)]) == 1 and side_of([outcome(q, B, A) for q in range(12)]) == -1
    assert side_of([outcome(q, A, A) for q in range(50)]) == 0


# Ladders


def test_two_models_by_hand():
    """Three of four won, and a tie more: 3.5 of 5, odds of 7/3, so 400 log10(7/3) = 147.2 points apart."""
    wins = np.zeros((4, 2, 2))
    wins[:3, 0, 1] = wins[3, 1, 0] = 1
    (one, other) = ladder(["a", "b"], wins, seed=0)
    assert one["model"] == "a" and one["points"] - other["points"] == pytest.approx(147.19, abs=0.01)
    assert one["points"] == pytest.approx(-other["points"]) and one["n"] == 4 and (one["rank"], other["rank"]) == (1, 2)


def test_strengths_are_found_within_their_intervals():
    """Three models at 1, 0 and -0.5, by 400 questions; and one that loses all, which is last and not infinite."""
    truth, draw = np.array([1, 0, -0.5]), np.random.default_rng(0)
    wins = np.zeros((400, 4, 4))
    for i in range(4):
        for j in range(i + 1, 4):
            odds = 1 if j == 3 else 1 / (1 + np.exp(truth[j] - truth[i]))
            wins[:, i, j] = draw.random(400) < odds
            wins[:, j, i] = 1 - wins[:, i, j]
    found = ladder(["a", "b", "c", "d"], wins, seed=0)
    assert [each["model"] for each in found] == ["a", "b", "c", "d"]
    assert [each["rank_interval"] for each in found] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert -2500 < found[3]["points"] < -500 and found[0]["n"] == 1200
    alone = ladder(["a", "b", "c"], wins[:, :3, :3], seed=0)
    for each, strength in zip(alone, truth - truth.mean(), strict=True):
        assert each["interval"][0] <= strength * 400 / np.log(10) <= each["interval"][1]


def test_models_that_never_met_are_joined_and_equals_share_a_rank():
    found = strengths(np.zeros((1, 3, 3)))
    assert found.tolist() == [[0, 0, 0]] and ranks_of(np.array([2.0, 3, 2])).tolist() == [2, 1, 2]


def test_a_ladders_questions_are_drawn_whole():
    """All pairs of a question go together: three models whose wins are the same within a question."""
    wins = np.zeros((30, 3, 3))
    for q in range(30):
        for i, j in ((0, 1), (0, 2), (1, 2)):
            wins[q, i, j], wins[q, j, i] = q % 2, 1 - q % 2
    found = {each["model"]: each["interval"] for each in ladder(list("abc"), wins, seed=0)}
    wide = found["a"][1] - found["a"][0]
    draw = np.random.default_rng(0)
    apart = np.stack([wins[draw.permutation(30)] * mask for mask in pair_masks()]).reshape(-1, 3, 3)
    low, high = next(each["interval"] for each in ladder(list("abc"), apart, seed=0) if each["model"] == "a")
    assert wide > 1.1 * (high - low)


def pair_masks():
    for i, j in ((0, 1), (0, 2), (1, 2)):
        mask = np.zeros((3, 3))
        mask[i, j] = mask[j, i] = 1
        yield mask


def test_no_value_no_mean():
    assert winrates.mean_of([], 0) is None and winrates.share([]) is None
