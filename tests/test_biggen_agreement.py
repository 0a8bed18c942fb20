"""A judge against stored scores and known answers: what it prints for a judge whose grades are known."""

import json

import numpy as np
import pytest

from alignment.agreement import pearson, ranks, spearman
from alignment.command_line import UserError
from studies import biggen_agreement


def rubric(**more):
    return {"criteria": "Is it so?"} | {f"score{n}_description": f"It is {n}." for n in range(1, 6)} | more


def row(number, share, score, **more):
    """`share` of the reference's eight words: the simulated judge's grade is 1 + 4 x share."""
    words = [f"w{number}x{place}" for place in range(8)]
    found = {"id": f"r{number}", "capability": "a" if number % 2 else "b", "input": f"Say {number}.", "score": score}
    found |= {"reference_answer": " ".join(words), "score_rubric": rubric()}
    return found | {"response": " ".join([*words[: int(8 * share)], "else"])} | more


def run(tmp_path, rows, *words):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ["--data_path", tmp_path / "rows.json", "--output_file", tmp_path / "out.json"]
    flags += ["--model_name_or_path", "judge", "--backend", "simulated", *words]
    biggen_agreement.main(biggen_agreement.parse_args([str(word) for word in flags]))
    return json.loads((tmp_path / "out.json").read_text())


def test_agreement_with_stored_scores(tmp_path, capsys):
    """Grades 1, 3, 5, 3 against scores 1, 3, 5, 5: three of four exact and within 1. References get 5, others' 1."""
    rows = {str(n): row(n, share, score) for n, (share, score) in enumerate([(0, 1), (0.5, 3), (1, 5), (0.5, 5)] * 5)}
    found = run(tmp_path, rows)
    summary, both = found["summary"], np.array([[1, 1], [3, 3], [5, 5], [3, 5]] * 5)
    assert summary["agreement"]["exact"]["value"] == summary["agreement"]["within 1"]["value"] == 0.75
    assert summary["agreement"]["pearson"]["value"] == pytest.approx(np.corrcoef(both.T)[0, 1])
    low, high = summary["agreement"]["spearman"]["interval"]
    assert low < summary["agreement"]["spearman"]["value"] < high and summary["agreement"]["n"] == 20
    assert summary["groups"]["reference"]["score"]["mean"] == 5 and summary["groups"]["other"]["score"]["mean"] == 1
    assert summary["reference - other"]["difference"] == 4 and summary["reference - other"]["wins"] == 20
    assert found["rows"][3]["stored"][0][0][0] == 3 and found["rows"][3]["score"] == 5
    shown = capsys.readouterr().out
    assert (
        "reference - other: +4.00 [+4.00, +4.00]; higher 20, the same 0, lower 0" in shown
        and "says nothing" not in shown
    )


def test_scores_that_are_all_the_same_say_nothing(tmp_path, capsys):
    """As in BiGGen's own sample: no correlation is made up for them. Every fifth row of ten is the trial's."""
    found = run(tmp_path, [row(n, 0, 5, response="dummy") for n in range(10)], "--limit", 2)["summary"]
    assert found["agreement"]["pearson"] is found["agreement"]["spearman"] is None and found["agreement"]["n"] == 2
    told = capsys.readouterr().out
    assert "all stored scores are 5: this says nothing" in told and "are one and the same text" in told


def test_others_are_of_the_same_capability():
    rows = [{"source": source, "reference_answer": name} for source, name in zip("abcba", "stuvw", strict=True)]
    assert biggen_agreement.others(rows) == ["w", "v", "v", "t", "s"]


def test_without_stored_scores(tmp_path, capsys):
    rows = [row(n, 0.5, None) for n in range(4)]
    assert run(tmp_path, rows)["summary"]["agreement"] is None
    assert "no stored scores to agree with" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0, 1, 1), row(1, 1, 1, score_rubric=rubric(score3_description=None))], "row 1 is none of BiGGen"),
        ([row(0, 1, 1), {"instruction": "x"}], "row 1 is none of BiGGen"),
        ([row(0, 1, 1), "text"], "row 1 is none of BiGGen"),
        ([row(0, 1, 1)], "fewer than two rows"),
        (5, "fewer than two rows"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        run(tmp_path, rows)
    assert not (tmp_path / "out.json").exists()


def test_rank_correlation():
    """Ranks of 3 1 1 9: 3, 1.5, 1.5, 4. A growing function of a column has its ranks, a constant none."""
    assert ranks(np.array([3, 1, 1, 9])).tolist() == [3, 1.5, 1.5, 4]
    assert spearman(np.array([[1.0, 1], [2, 8], [3, 27]])) == pytest.approx(1)
    assert pearson(np.array([[1.0, 3], [2, 2], [3, 1]])) == pytest.approx(-1)
    assert np.isnan(pearson(np.array([[1.0, 2], [1, 3]])))
