"""Rows in which some responses are better: pairs in all forms, RewardBench 2, groups, and what is refused."""

import json

import pytest

from alignment.choices import SECOND, SECTIONS, Choice, read_choices
from alignment.command_line import UserError

TALK = "\n\nHuman: Hi\n\nAssistant: "
PAIR = {"prompt": "Q", "chosen": "good", "rejected": "bad"}
BEST = {"id": "7", "prompt": "Q", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "Math"}


def read(tmp_path, *rows, limit=None):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return read_choices(tmp_path / "rows.json", limit)


def test_pairs_of_all_forms_and_their_groups(tmp_path):
    """Dialogues of HHH, DSP's scores, plain rows; what cannot be used is counted by reason; --limit is of rows."""
    rows = [
        {"chosen": TALK + "Hello.", "rejected": TALK + "No.", "type": "honest"},
        {"text": [TALK + "worse", TALK + "better"], "score": [0.0, 1.0]},
        PAIR | {"meta": "a-vs-b", "source": "web", "other": "x"},
        PAIR | {"rejected": "good"},
        PAIR | {"rejected": " "},
    ]
    found = read(tmp_path, *rows)
    prompt = {"prompt": TALK.rstrip()}
    assert found.items == [
        Choice(prompt, ("Hello.",), ("No.",), {"type": "honest"}),
        Choice(prompt, ("better",), ("worse",), {}),
        Choice({"prompt": "Q"}, ("good",), ("bad",), {"meta": "a-vs-b", "source": "web"}),
    ]
    assert found.dropped == {"empty response": [4], "equal responses": [3]}
    assert found.are_pairs and found.is_bench and found.items[0].key == found.items[1].key != found.items[2].key
    assert not read(tmp_path, *rows[1:3]).is_bench
    assert len(read(tmp_path, *rows, limit=2).items) == 2


def test_the_best_of_four(tmp_path):
    found = read(tmp_path, BEST, BEST | {"id": "tied:8", "chosen": ["a", "e"], "rejected": ["b"], "subset": "Ties"})
    assert found.items == [
        Choice({"prompt": "Q"}, ("a",), ("b", "c", "d"), {"subset": "Math"}, "7"),
        Choice({"prompt": "Q"}, ("a", "e"), ("b",), {"subset": "Ties"}, "tied:8"),
    ]
    assert found.is_bench and not found.are_pairs
    assert found.dropped == {"ties without their other row": [1]}
    tied = BEST | {"subset": "Ties", "chosen": ["a", "e"]}
    assert not read(tmp_path, tied | {"id": "tied:3"}, tied | {"id": "ref:3"}).dropped


@pytest.mark.parametrize(
    "rows, told",
    [
        ([BEST, BEST], "row 1: id '7' is row 0 again"),
        ([PAIR | {"id": 3}, PAIR, PAIR | {"id": 3}], "row 2: id 3 is row 0 again"),
        ([BEST, BEST | {"id": "8", "rejected": []}], "row 1: rejected is no list of responses"),
        ([BEST | {"chosen": [" "]}], "row 0: chosen is no list of responses"),
        ([BEST | {"prompt": None}], "row 0: prompt, instruction or input is missing"),
        ([PAIR | {"rejected": ""}], r"no row has two responses that differ \(1 empty response\)"),
        ([{"prompt": "Q", "output": "x"}], "chosen and rejected"),
    ],
)
def test_rows_that_are_refused(tmp_path, rows, told):
    with pytest.raises(UserError, match=told):
        read(tmp_path, *rows)


def test_one_id_may_have_several_pairs(tmp_path):
    assert len(read(tmp_path, PAIR | {"id": 1}, PAIR | {"id": 1, "rejected": "worse"}).items) == 2


def test_rewardbench_is_as_published():
    """23 subsets, 2,985 prompts, of which math-prm has 447 and weighs as much as all code: 6 x 164."""
    subsets = {name: count for parts in SECTIONS.values() for name, count in parts.items()}
    assert len(subsets) == 23 and sum(subsets.values()) - 984 + 447 == 2985
    assert subsets["math-prm"] == sum(count for name, count in subsets.items() if name.startswith("hep-"))
    assert len(SECOND) == 6
