"""scripts/collect_answers.py: published answers become the files that --mode cs reads."""

import json

import pytest

from alignment.command_line import UserError
from alignment.records import read_prompts, read_responses
from scripts import collect_answers


def collect(folder, *more):
    words = ["--answers_dir", folder, "--models", "big", "small", "--output_dir", folder / "out", *more]
    collect_answers.main(collect_answers.parse_args(list(map(str, words))))


@pytest.fixture
def answers(tmp_path):
    """Ten instructions, one of them of two lines, and two models' answers, which name model and instruction."""
    for model in ("big", "small"):
        rows = [{"instruction": f"Ask {n}" + "\nmore" * (n == 3), "output": f"{model} {n}"} for n in range(10)]
        (tmp_path / model).mkdir()
        (tmp_path / model / "model_outputs.json").write_text(json.dumps(rows))
    return tmp_path


def test_answers_stay_with_their_prompts_and_no_prompt_is_in_both_parts(answers):
    collect(answers, "--held_out", "0.34")
    seen = []
    for folder, size in ((answers / "out", 6), (answers / "out" / "held_out", 3)):
        prompts = read_prompts(folder / "prompts.txt")
        assert len(prompts) == size
        for model in ("big", "small"):
            assert read_responses(folder / f"{model}.json", size) == [p.replace("Ask", model) for p in prompts]
        seen += prompts
    assert sorted(seen) == [f"Ask {n}" for n in range(10) if n != 3]


def test_other_instructions_are_refused(answers):
    (answers / "small" / "model_outputs.json").write_text(json.dumps([{"instruction": "Other", "output": "x"}]))
    with pytest.raises(UserError, match="answers other instructions"):
        collect(answers)
    assert not (answers / "out").exists()
