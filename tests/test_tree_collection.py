"""scripts/tree_collection.py: published answers become a collection whose responses keep to their preferences."""

import json

import pytest

import system_messages
from alignment.command_line import UserError
from scripts import tree_collection
from scripts.tree_collection import graded_lengths

# Letters that no two instructions share: `ds` refuses a bench that is near to training
NAMES = ("apple", "birch", "cedar", "daisy", "elder")
ANSWERS = {
    "short": "Yes.",
    "middle": "Yes, I think so.",
    "long": "Yes, I think so, and for more reasons than one.",
    "copy": "Yes.",
}


@pytest.fixture
def results(tmp_path):
    for model, answer in ANSWERS.items():
        rows = [{"instruction": f"{name} " * 3, "output": f"{answer} {name}"} for name in NAMES]
        (tmp_path / "results" / model).mkdir(parents=True)
        (tmp_path / "results" / model / "model_outputs.json").write_text(json.dumps(rows))
    return tmp_path / "results"


def make(results, *more):
    words = ["--answers_dir", results, "--models", *ANSWERS, "--output_dir", results.parent / "out", *more]
    tree_collection.main(tree_collection.parse_args([str(word) for word in words]))
    return json.loads((results.parent / "out" / "responses.json").read_text())


def test_three_lengths_each_so_many_times_the_one_before():
    texts = ["a" * 10, "b" * 14, "c" * 16, "d" * 30, "e" * 99, ""]
    assert graded_lengths(texts, 50, 1.5) == ["a" * 10, "c" * 16, "d" * 30]  # 14 < 15; 30 >= 24
    assert graded_lengths(texts, 50, 2.0) == []  # 20 or more and at most 15: none
    assert graded_lengths(texts, 12, 1.5) == []


def test_shorter_answers_stand_under_shorter_preferences(results):
    rows = make(results)
    assert len(rows) == 15 and [row["set"] for row in rows] == [0, 1, 2] * 5
    for row, model in zip(rows, ["short", "middle", "long"] * 5, strict=True):
        assert row["output"] == f"{ANSWERS[model]} {row['prompt'].split()[0]}"
        told = {each["dimension"]: each["subdimension"] for each in row["preference_set"]}
        assert {name: told[name] for name in ("style", "informativeness")} == tree_collection.KINDS[row["set"]]
        assert all(each["preference"] in row["system"] for each in row["preference_set"])


def test_the_bench_has_preferences_of_its_own_and_ds_takes_all(results, capsys):
    """One of five instructions is of the bench; its twelve rubrics are of its rows' own preferences."""
    rows = make(results)
    seen = {
        split: {
            each["preference"]
            for row in rows
            for each in row["preference_set"]
            if row["split"] == split and each["dimension"] in ("background_knowledge", "harmlessness")
        }
        for split in ("bench", "train")
    }
    assert seen["bench"] and seen["train"] and not seen["bench"] & seen["train"]
    system_messages.main(system_messages.parse_args(["--mode", "ds", "--output_dir", str(results.parent / "out")]))
    bench = json.loads((results.parent / "out" / "multifaceted_bench.json").read_text())
    assert len(bench) == 3 and "unseen by the bench" in capsys.readouterr().out
    for row in bench:
        for each, rubric in zip(row["preference_set"], row["rubrics"], strict=True):
            assert each["preference"] in rubric["criteria"]
            assert len({text for text in rubric["score_descriptions"].values() if each["preference"] in text}) == 5


def test_what_cannot_be_made_is_one_line(results, tmp_path):
    tree = json.loads(tree_collection.TREE.read_text())
    del tree["style"]["conciseness"]
    (tmp_path / "tree.json").write_text(json.dumps(tree))
    with pytest.raises(UserError, match="has no 'conciseness' under style"):
        make(results, "--preference_tree", tmp_path / "tree.json")
    with pytest.raises(UserError, match="no instruction has three answers of such lengths; raise --longest"):
        make(results, "--longest", 20)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("*.json"))
