"""Rows of every form, and the one line that answers each mistake."""

import json

import pytest

from alignment.command_line import UserError
from alignment.training_data import Example, control, read_examples, report, usable

HH = "\n\nHuman: Q\n\nAssistant: "


def write(tmp_path, rows, name="rows.json"):
    path = tmp_path / name
    if name.endswith("parquet"):
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        path.write_text(json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows)))
    return str(path)


TURNS = [{"role": "user", "content": "Q"}]
REPLY = [{"role": "assistant", "content": "A"}]
OTHER = [{"role": "assistant", "content": "B"}]


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet"])
@pytest.mark.parametrize(
    "objective, row, prompt, responses",
    [
        ("sft", {"input": "Q", "output": "A"}, {"input": "Q"}, ("A",)),
        ("sft", {"instruction": "I", "input": "Q", "output": "A"}, {"instruction": "I", "input": "Q"}, ("A",)),
        ("sft", {"system": "S", "prompt": "Q", "output": "A"}, {"system": "S", "prompt": "Q"}, ("A",)),
        ("sft", {"messages": TURNS + REPLY}, {"prompt": TURNS}, ("A",)),
        ("reward", {"prompt": "Q", "chosen": "A", "rejected": "B", "meta": "x"}, {"prompt": "Q"}, ("A", "B")),
        ("dpo", {"input": "Q", "chosen": "A", "rejected": "B"}, {"input": "Q"}, ("A", "B")),
        ("orpo", {"prompt": "Q", "chosen": REPLY, "rejected": OTHER}, {"prompt": "Q"}, ("A", "B")),
        ("dpo", {"prompt": TURNS, "chosen": REPLY, "rejected": OTHER}, {"prompt": TURNS}, ("A", "B")),
        ("dpo", {"chosen": TURNS + REPLY, "rejected": TURNS + OTHER}, {"prompt": TURNS}, ("A", "B")),
        ("reward", {"chosen": HH + "A", "rejected": HH + "B"}, {"prompt": HH[:-1]}, ("A", "B")),
        ("reward", {"text": [HH + "A", HH + "B"], "score": [0.0, 1.0]}, {"prompt": HH[:-1]}, ("B", "A")),
    ],
)
def test_forms_of_rows(tmp_path, name, objective, row, prompt, responses):
    assert read_examples(write(tmp_path, [row], name), objective) == [Example(0, prompt, responses)]


@pytest.mark.parametrize(
    "objective, rows, message",
    [
        ("reward", [], "has no rows"),
        ("reward", {"prompt": "Q"}, "holds a dict, not a list"),
        ("reward", ["Q"], "row 0 is a str, not an object"),
        ("reward", [{"input": "Q", "output": "A"}], "needs chosen and rejected.*--objective sft would fit"),
        ("sft", [{"prompt": "Q", "chosen": "A", "rejected": "B"}], "needs output.*reward or dpo or orpo would fit"),
        ("sft", [{"input": "Q", "output": "A"}, {"input": "Q"}], "row 1: output is missing"),
        ("sft", [{"input": "Q", "output": "A"}, {"output": "A"}], "row 1: prompt, instruction or input is missing"),
        ("sft", [{"input": 3, "output": "A"}], "row 0: input is a int, not a text"),
        ("reward", [{"prompt": "Q", "chosen": "A", "rejected": None}], "row 0: rejected is a NoneType"),
        ("reward", [{"chosen": "A", "rejected": "B"}], "row 0: prompt is missing"),
        ("reward", [{"text": [HH + "A"], "score": [1.0]}], "row 0: text and score are no two dialogues"),
        ("sft", [{"messages": TURNS}], "do not end in an assistant's turn"),
        ("sft", [{"messages": [{"role": "user"}]}], "messages is no list of messages"),
    ],
)
def test_bad_rows(tmp_path, objective, rows, message):
    with pytest.raises(UserError, match=message):
        read_examples(write(tmp_path, rows), objective)


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        read_examples(str(tmp_path / "none.json"), "sft")
    with pytest.raises(UserError, match="does not exist"):
        read_examples("none", "sft")
    (tmp_path / "torn.jsonl").write_text('{"input": "Q", "output": "A"}\n{"input')
    with pytest.raises(UserError, match="line 2 is no JSON"):
        read_examples(str(tmp_path / "torn.jsonl"), "sft")
    (tmp_path / "text.parquet").write_text("text")
    with pytest.raises(UserError, match="no parquet"):
        read_examples(str(tmp_path / "text.parquet"), "sft")


def test_equal_and_empty_responses_are_dropped_and_counted():
    rows = [("A", "B"), ("A", "A"), ("A", " "), ("A", "")]
    kept, dropped = usable([Example(i, {}, pair) for i, pair in enumerate(rows)])
    assert [example.row for example in kept] == [0]
    assert dropped == {"empty response": [2, 3], "equal responses": [1]}
    assert report(dropped) == "2 empty response (rows 2, 3); 1 equal responses (row 1)"


def test_what_cannot_be_compared_is_dropped_and_counted(tmp_path):
    """Dialogues that part before the last turn, and equal scores."""
    rows = [{"chosen": HH + "A", "rejected": HH.replace("Q", "X") + "B"}, {"chosen": HH + "A", "rejected": HH + "B"}]
    kept, dropped = usable(read_examples(write(tmp_path, rows), "reward"))
    assert [example.row for example in kept] == [1] and dropped == {"dialogues part before the last turn": [0]}
    tie = {"text": [HH + "A", HH + "B"], "score": [0.5, 0.5]}
    assert usable(read_examples(write(tmp_path, [tie]), "dpo")) == ([], {"equal responses": [0]})


def test_controls():
    """Length puts the longer first; the coin turns about half, the same half for a seed."""
    pairs = [Example(i, {}, ("a" * (i % 7 + 1), "b" * ((3 * i) % 5 + 1))) for i in range(200)]
    assert all(len(e.responses[0]) >= len(e.responses[1]) for e in control(pairs, "length", 0))
    turned = sum(a != b for a, b in zip(control(pairs, "random", 0), pairs, strict=True))
    assert 70 < turned < 130
    assert control(pairs, "random", 0) == control(pairs, "random", 0) != control(pairs, "random", 1)
