"""scripts/fit_toxicity.py: ridge against its closed form, the measures by hand, and a scorer written and read again."""

import json
import math
import random

import numpy as np
import pytest

from alignment.agreement import pearson, ranks, spearman
from alignment.command_line import UserError
from alignment.toxicity import SCORER_FILE, LinearScorer, Scored, load_scorer, weights_of
from scripts import fit_toxicity
from scripts.fit_toxicity import agreement, auc, fit, ridge, split

MILD, FOUL = ["fine", "kind", "calm", "warm"], ["vile", "foul", "crude", "nasty"]


def rows(count=60):
    """A row's score is the share of foul words in its text, so that a linear scorer can find it."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        parts = {}
        for name in ("prompt", "continuation"):
            foul = draw.randrange(5)
            text = " ".join(draw.sample(draw.choices(FOUL, k=foul) + draw.choices(MILD, k=4 - foul), 4))
            parts[name] = {"text": text, "toxicity": foul / 4, "insult": 0.5}
        found.append(parts)
    return found


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows()))
    return path


def fitted(data, folder, *more):
    words = ["--data_path", data, "--output_dir", folder, *more]
    fit_toxicity.main(fit_toxicity.parse_args([str(word) for word in words]))
    return load_scorer(folder)


def test_ridge_is_the_closed_form():
    """With the mean taken off: w = (Z'Z + alpha)^-1 Z'(y - mean y) of the centred Z, b = mean(y - Xw)."""
    draw = np.random.default_rng(0)
    dense = draw.random((9, 14)) * (draw.random((9, 14)) < 0.4)
    dense[3] = 0  # a text without a known term
    target = draw.random(9)
    found, intercept = ridge(*dense.nonzero(), dense[dense.nonzero()], 14, target, 0.3)
    centred = dense - dense.mean(0)
    expected = np.linalg.solve(centred.T @ centred + 0.3 * np.eye(14), centred.T @ (target - target.mean()))
    assert found == pytest.approx(expected, abs=1e-7)
    assert intercept == pytest.approx((target - dense @ expected).mean(), abs=1e-7)


def test_weights_by_hand():
    """ "b b a" with rarities a 1, b 2: counts 1 and 2 make 1 and (1 + ln 2) 2, over their length together."""
    heavy = 2 * (1 + math.log(2))
    length = math.hypot(1, heavy)
    assert weights_of("B b a c", {"a": 1.0, "b": 2.0}) == pytest.approx({"a": 1 / length, "b": heavy / length})
    assert weights_of("c", {"a": 1.0}) == {}


def test_rarity_counts_texts_not_words():
    """In two of three texts: ln(4/3) + 1. A term of one text alone is not looked at."""
    scorer = fit(["aa aa", "aa bb", "cc"], np.array([0.0, 0.5, 1.0]))
    assert scorer.saved["terms"]["aa"][0] == 2 and "bb" not in scorer.saved["terms"]
    assert scorer._rarity["aa"] == pytest.approx(math.log(4 / 3) + 1)


def test_scores_stay_between_0_and_1():
    scorer = LinearScorer({"up": [1, 5.0], "down": [1, -5.0]}, 3, 0.25, {})
    assert [scorer.score(text) for text in ("up", "down", "neither")] == [1.0, 0.0, 0.25]


# The measures


def test_ranks_and_correlations_by_hand():
    """Ranks of 3 1 1 9: 3, 1.5, 1.5, 4. Against 1 2 3 4, Spearman: their deviations .5 -1 -1 1.5 and -1.5 -.5 .5 1.5
    multiply to 1.5, over the root of 4.5 * 5."""
    assert ranks(np.array([3.0, 1.0, 1.0, 9.0])).tolist() == [3, 1.5, 1.5, 4]
    both = np.array([[3.0, 1], [1, 2], [1, 3], [9, 4]])
    assert spearman(both) == pytest.approx(1.5 / math.sqrt(22.5))
    assert pearson(both) == pytest.approx(np.corrcoef(both.T)[0, 1])
    assert math.isnan(pearson(np.array([[1.0, 2], [1, 3]])))


def test_auc_by_hand():
    """Toxic ones score .9 and .4, others .4 and .1: of four pairs three are in order and one is a tie, 3.5 / 4."""
    assert auc(np.array([[0.9, 0.8], [0.4, 0.7], [0.4, 0.5], [0.1, 0.0]])) == pytest.approx(3.5 / 4)
    assert math.isnan(auc(np.array([[0.9, 0.1], [0.2, 0.2]])))


def test_agreement_by_part():
    """Prompts scored as Perspective does, continuations the other way round; one continuation is not there."""
    texts = [Scored(row, "prompt", "", row / 10) for row in range(8)]
    texts += [Scored(row, "continuation", "", row / 10) for row in range(7)]
    scores = [row / 10 for row in range(8)] + [1 - row / 10 for row in range(7)]
    found = agreement(texts, scores, seed=0)
    assert [found[name]["n"] for name in ("all", "prompt", "continuation")] == [15, 8, 7]
    assert found["prompt"]["spearman"][0] == pytest.approx(1)
    assert found["continuation"]["pearson"][0] == pytest.approx(-1)
    assert found["prompt"]["toxic"] == pytest.approx([2 / 8, 2 / 8])
    assert found["continuation"]["toxic"] == pytest.approx([5 / 7, 1 / 7])


def test_a_row_is_held_out_whole():
    texts = [Scored(row, part, f"{part} {row}", 0.5) for row in range(40) for part in ("prompt", "continuation")]
    kept, apart = split(texts, seed=3)
    assert len(kept) == 64 and len(apart) == 16 and sorted(kept + apart) == sorted(texts)
    assert {each.row for each in kept}.isdisjoint(each.row for each in apart)
    assert split(texts, seed=4)[1] != apart


# The script


def test_what_is_written_scores_as_what_was_fitted(data, tmp_path, capsys):
    """The planted share is found on rows held out; the file is plain JSON; the second run has nothing to do."""
    scorer = fitted(data, tmp_path / "tox")
    shown = capsys.readouterr().out
    assert "96 texts -> " in shown and "loaded again: the same scores" in shown
    held_out = scorer.about["held_out"]
    assert held_out["all"]["n"] == 24 and held_out["all"]["spearman"][0] > 0.95
    low, high = held_out["all"]["spearman"][1:]
    assert low < held_out["all"]["spearman"][0] < high
    assert scorer.score("vile foul crude nasty") > 0.9 and scorer.score("fine kind calm warm") < 0.1
    saved = json.loads((tmp_path / "tox" / SCORER_FILE).read_text())
    assert set(saved) == {"documents", "intercept", "about", "terms"} and saved["documents"] == 96
    fitted(data, tmp_path / "tox")
    again = capsys.readouterr().out.splitlines()
    assert again[0].endswith("nothing to do") and again[1:] == shown.splitlines()[1:]


def test_a_file_that_scores_otherwise_is_refused(data, tmp_path, monkeypatch):
    monkeypatch.setattr(fit_toxicity, "written", lambda scorer: [json.dumps(scorer.saved | {"intercept": 9.0})])
    with pytest.raises(UserError, match=r"loaded again it scores 2\d of 24 texts differently"):
        fitted(data, tmp_path / "tox")
    assert not (tmp_path / "tox" / f"{SCORER_FILE}.run.json").exists()


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (rows(4), "4 rows with scores are too few"),
        ([{"prompt": {"text": "x"}}], "has no prompt and no continuation with a 'toxicity'"),
        ([{"prompt": {"text": "x", "toxicity": "high"}}], "row 0: the 'toxicity' of its prompt is no number"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, found, said):
    (tmp_path / "rows.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=said):
        fitted(tmp_path / "rows.json", tmp_path / "tox")
    assert not (tmp_path / "tox").exists()
