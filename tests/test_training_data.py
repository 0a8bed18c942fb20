"""Rows of every form, and the one line that answers each mistake."""

import gzip
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
        text = json.dumps(rows) if name.endswith("json") else "\n".join(map(json.dumps, rows))
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
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
        (
            "reward",
            [{"chosen": "A", "rejected": "B"}],
            "row 0: prompt, .* is missing, and chosen and rejected are no dia",
        ),
        ("reward", [{"text": [HH + "A"], "score": [1.0]}], "row 0: text and score are no two dialogues"),
        (
            "reward",
            [{"text": [HH + "A", HH + "B"], "score": [True, False]}],
            "row 0: text and score are no two dialogues",
        ),
        ("reward", [{"text": [HH + "A", HH + "B"], "score": [1.0, float("nan")]}], "row 0: 'score' holds NaN"),
        ("sft", [{"input": float("nan"), "output": "A"}], "row 0: 'input' holds NaN"),
        ("sft", [{"messages": TURNS}], "do not end in an assistant's turn"),
        ("sft", [{"messages": [{"role": "user"}]}], "messages is no list of messages"),
    ],
)
def test_bad_rows(tmp_path, objective, rows, message):
    with pytest.raises(UserError, match=message):
        read_examples(write(tmp_path, rows), objective)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl.gz", "rows.parquet"])
def test_columns_of_null_are_as_if_absent(tmp_path, name):
    """One table of every form: each row is read by what it has, though the others' columns stand beside it."""
    rows = [
        {"messages": TURNS + REPLY},
        {"prompt": "Q", "output": "A", "system": ""},
        {"instruction": "I", "output": "A", "system": "S"},
        {"input": "Q", "output": "A"},
    ]
    every = ("messages", "prompt", "instruction", "input", "system", "output", "chosen", "rejected", "text", "score")
    path = write(tmp_path, [dict.fromkeys(every) | row for row in rows], name)
    read = read_examples(path, "sft")
    prompts = [{"prompt": TURNS}, {"system": "", "prompt": "Q"}, {"system": "S", "instruction": "I"}, {"input": "Q"}]
    assert read == [Example(number, prompt, ("A",)) for number, prompt in enumerate(prompts)]

    pairs = [
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"chosen": HH + "A", "rejected": HH + "B"},
        {"text": [HH + "B", HH + "A"], "score": [0.0, 1.0]},
    ]
    read = read_examples(write(tmp_path, [dict.fromkeys(every) | row for row in pairs], name), "reward")
    assert [example.responses for example in read] == [("A", "B")] * 3
    assert [example.prompt for example in read] == [{"prompt": "Q"}, {"prompt": HH[:-1]}, {"prompt": HH[:-1]}]


def test_nan_in_a_table_is_neither_a_text_nor_a_score(tmp_path):
    rows = [{"input": float("nan"), "output": "A"}]
    with pytest.raises(UserError, match="row 0: input is a float, not a text"):
        read_examples(write(tmp_path, rows, "rows.parquet"), "sft")
    rows = [{"text": [HH + "A", HH + "B"], "score": [float("nan"), 1.0]}]
    with pytest.raises(UserError, match="row 0: text and score are no two dialogues and two numbers"):
        read_examples(write(tmp_path, rows, "rows.parquet"), "reward")


@pytest.mark.parametrize(
    "row, prompt",
    [
        ({"prompt": "Q", "chosen": "A", "rejected": "B"}, {"prompt": "Q"}),
        ({"prompt": "Q", "chosen": "A", "rejected": "B", "output": "C"}, {"prompt": "Q"}),
        ({"prompt": "Q", "chosen": "A", "messages": TURNS + OTHER}, {"prompt": "Q"}),
        ({"prompt": TURNS, "chosen": REPLY, "rejected": OTHER}, {"prompt": TURNS}),
        ({"chosen": TURNS + REPLY, "rejected": TURNS + OTHER}, {"prompt": TURNS}),
        ({"chosen": HH + "A", "rejected": "\n\nHuman: other\n\nAssistant: B"}, {"prompt": HH[:-1]}),
    ],
)
def test_another_column_is_learned_as_the_output(tmp_path, row, prompt):
    path = write(tmp_path, [row])
    assert read_examples(path, "sft", output_key="chosen") == [Example(0, prompt, ("A",))]


@pytest.mark.parametrize(
    "row, key, message",
    [
        ({"prompt": "Q", "chosen": "A"}, "choosen", "sft needs choosen beside .*did you mean 'chosen'"),
        (
            {"chosen": "A", "rejected": "B"},
            "chosen",
            "sft needs chosen beside .*or as a whole dialogue; --objective rew",
        ),
        ({"prompt": "Q", "chosen": None}, "chosen", "row 0: chosen is a NoneType, not a text"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            "output",
            "sft needs output.*; --objective reward or dpo or orpo "
            "would fit, and --output_key chosen learns the better responses",
        ),
    ],
)
def test_a_column_that_cannot_be_learned(tmp_path, row, key, message):
    with pytest.raises(UserError, match=message):
        read_examples(write(tmp_path, [row]), "sft", output_key=key)


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
