"""Rows of every form, and the one line that answers each mistake."""

import gzip
import json

import pytest

from alignment.command_line import UserError
from alignment.training_data import (
    Example,
    check_shares,
    control,
    counts,
    mixed,
    read_examples,
    read_parts,
    report,
    usable,
)

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
TALK = [*TURNS, {"role": "assistant", "content": "R"}, {"role": "user", "content": "S"}]
OASST = {"lang": "en", "parent_id": "f8e83833", "chosen": "A", "rejected": "B"}
WEBGPT = {"question": {"dataset": "eli5", "id": "1", "full_text": "Q"}, "answer_0": "A", "answer_1": "B"}
WEBGPT |= {"quotes_0": {"title": ["t"], "extract": ["e"]}, "score_0": 0.5, "score_1": -0.5}
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
        ("reward", OASST | {"prompt": "prompter: Q"}, {"prompt": TURNS}, ("A", "B")),
        ("dpo", OASST | {"prompt": "prompter: Q\nassistant: R\nprompter: S"}, {"prompt": TALK}, ("A", "B")),
        ("orpo", OASST | {"prompt": "prompter: Qassistant: Rprompter: S"}, {"prompt": TALK}, ("A", "B")),
        ("reward", WEBGPT, {"prompt": "Q"}, ("A", "B")),
        ("dpo", WEBGPT | {"question": "Q", "score_0": -1.0, "score_1": 1.0}, {"prompt": "Q"}, ("B", "A")),
    ],
)
def test_forms_of_rows(tmp_path, name, objective, row, prompt, responses):
    assert read_examples(write(tmp_path, [row], name), objective) == [Example(0, prompt, responses)]


SAID = [{"role": "user", "content": "P"}, {"role": "assistant", "content": "R"}, *TURNS]
SYSTEM = {"role": "system", "content": "S"}


@pytest.mark.parametrize(
    "objective, row, prompt",
    [
        ("dpo", {"prompt": "Q", "chosen": TURNS + REPLY, "rejected": TURNS + OTHER}, {"prompt": "Q"}),
        ("dpo", {"prompt": "Q", "chosen": SAID + REPLY, "rejected": SAID + OTHER}, {"prompt": SAID}),
        (
            "dpo",
            {"system": "S", "prompt": " Q ", "chosen": SAID + REPLY, "rejected": SAID + OTHER},
            {"system": "S", "prompt": SAID},
        ),
        (
            "dpo",
            {"prompt": "Q", "chosen": [SYSTEM, *TURNS, *REPLY], "rejected": [SYSTEM, *TURNS, *OTHER]},
            {"prompt": [SYSTEM, *TURNS]},
        ),
        ("sft", {"instruction": "Q", "output": "A", "history": [["P", "R"]]}, {"prompt": SAID}),
        (
            "sft",
            {"system": "S", "prompt": "Q", "output": "A", "history": [["P", "R"]]},
            {"system": "S", "prompt": SAID},
        ),
        ("sft", {"instruction": "Q", "output": "A", "history": []}, {"instruction": "Q"}),
    ],
)
def test_what_was_said_before_a_prompt_is_part_of_it(tmp_path, objective, row, prompt):
    [example] = read_examples(write(tmp_path, [row], "rows.json"), objective)
    assert example.prompt == prompt and example.responses == (("A", "B") if objective == "dpo" else ("A",))


@pytest.mark.parametrize(
    "objective, row, message",
    [
        ("dpo", {"chosen": REPLY, "rejected": OTHER}, "chosen and rejected hold a reply and no prompt"),
        (
            "dpo",
            {"prompt": "X", "chosen": TURNS + REPLY, "rejected": TURNS + OTHER},
            "hold another prompt than the row",
        ),
        ("dpo", {"prompt": "Q", "chosen": SAID + REPLY, "rejected": TURNS + OTHER}, "part before their last turn"),
        (
            "dpo",
            {"system": "T", "prompt": "Q", "chosen": [SYSTEM, *TURNS, *REPLY], "rejected": [SYSTEM, *TURNS, *OTHER]},
            "hold another system message than the row's own",
        ),
        ("sft", {"instruction": "Q", "output": "A", "history": [["P"]]}, "history is no list of"),
    ],
)
def test_what_was_said_before_and_cannot_be_told_is_refused(tmp_path, objective, row, message):
    with pytest.raises(UserError, match=f"row 0: .*{message}"):
        read_examples(write(tmp_path, [row], "rows.json"), objective)


@pytest.mark.parametrize(
    "objective, rows, message",
    [
        ("reward", [], "has no rows"),
        ("reward", {"prompt": "Q"}, "holds a dict, not a list"),
        ("reward", ["Q"], "row 0 is a str, not an object"),
        ("reward", [{"input": "Q", "output": "A"}], "need chosen and rejected.*train.py --objective sft would fit"),
        ("sft", [{"prompt": "Q", "chosen": "A", "rejected": "B"}], "need output.*reward or dpo or orpo would fit"),
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
            [WEBGPT | {"question": {"id": "1"}}],
            "row 0: question, score_0 and score_1 are no text and two num",
        ),
        ("reward", [WEBGPT | {"score_1": "-0.5"}], "row 0: question, score_0 and score_1 are no text and two numbers"),
        ("reward", [WEBGPT | {"answer_1": None}], "row 0: answer_1 is a NoneType, not a text"),
        ("reward", [{"answer_0": "A", "answer_1": "B"}], "need chosen .*; or answer_0 and answer_1 and score_0 and sc"),
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
        ({"prompt": "Q", "chosen": "A"}, "choosen", "demonstrations need choosen beside .*did you mean 'chosen'"),
        ({"chosen": "A", "rejected": "B"}, "chosen", "demonstrations need chosen beside .*or as a whole dialogue$"),
        ({"prompt": "Q", "chosen": None}, "chosen", "row 0: chosen is a NoneType, not a text"),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            "output",
            "demonstrations need output.*; train.py --objective reward or dpo or orpo "
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
    assert usable(read_examples(write(tmp_path, [tie]), "dpo")) == ([], {"equal scores": [0]})


def test_equal_scores(tmp_path):
    """Left out and counted; or, as the released reward model read webgpt, the second is the better one."""
    rows = [WEBGPT | {"score_0": 0.0, "score_1": 0.0}, WEBGPT, {"text": [HH + "A", HH + "B"], "score": [0.5, 0.5]}]
    path = write(tmp_path, [dict.fromkeys(("text", "score", "question", "answer_0")) | row for row in rows])
    kept, dropped = usable(read_examples(path, "reward"))
    assert [example.row for example in kept] == [1] and dropped == {"equal scores": [0, 2]}
    kept, dropped = usable(read_examples(path, "reward", ties="second"))
    assert [example.responses for example in kept] == [("B", "A"), ("A", "B"), ("B", "A")] and dropped == {}


def test_a_flattened_table_of_webgpt(tmp_path):
    """As datasets' flatten() names the columns."""
    row = {"question.dataset": "eli5", "question.full_text": "Q"} | {k: v for k, v in WEBGPT.items() if k != "question"}
    assert read_examples(write(tmp_path, [row]), "reward") == [Example(0, {"prompt": "Q"}, ("A", "B"))]


def test_turns_of_oasst(tmp_path):
    """A role in the middle of a line, or one that comes twice running, is text. Where the prompt ends in the
    assistant's turn, what was ranked are the user's, and no reply."""
    prompts = [
        "prompter: An assistant: what is it?\nprompter: it says",
        "prompter: Q\nassistant: R",
        "prompter: The assistant: yes\nassistant: R\nprompter: S",
    ]
    examples = read_examples(write(tmp_path, [OASST | {"prompt": prompt} for prompt in prompts]), "reward")
    assert examples[0].prompt == {
        "prompt": [{"role": "user", "content": "An assistant: what is it?\nprompter: it says"}]
    }
    assert [turn["content"] for turn in examples[2].prompt["prompt"]] == ["The assistant: yes", "R", "S"]
    kept, dropped = usable(examples)
    assert [example.row for example in kept] == [0, 2] and dropped == {"replies are the user's": [1]}


def test_a_prompt_that_ends_in_the_assistants_turn(tmp_path):
    """HH has a few. What a template cannot spell is dropped and counted where it cannot, and nowhere else."""
    rows = [{side: HH + "R\n\nAssistant: " + side for side in ("chosen", "rejected")}]
    rows += [{side: HH + side for side in ("chosen", "rejected")}, {"prompt": TALK[:2], "chosen": "A", "rejected": "B"}]
    examples = read_examples(write(tmp_path, rows[:2]), "reward") + read_examples(write(tmp_path, rows[2:]), "reward")
    assert len(usable(examples)[0]) == 3
    kept, dropped = usable(examples, own_turns=False)
    assert [example.responses for example in kept] == [("chosen", "rejected")]
    assert dropped == {"prompt ends in the assistant's turn": [0, 0]}


# Several files


def parts_of(tmp_path, *sizes, **more):
    """A file of each size, whose pairs say the file's and their own number; `more` are rows that end the first."""
    paths = []
    for number, size in enumerate(sizes):
        rows = [{"prompt": f"{number}", "chosen": f"{row}", "rejected": "no"} for row in range(size)]
        paths.append(write(tmp_path, rows + more.get("bad", []) * (number == 0), f"{number}.json"))
    return paths, read_parts(paths, "reward", limit=more.get("limit"))


def test_files_one_after_the_other(tmp_path):
    """Numbered through all, in order; a limit is of all."""
    paths, parts = parts_of(tmp_path, 2, 3)
    assert [(part.source, part.start, part.rows) for part in parts] == [(paths[0], 0, 2), (paths[1], 2, 3)]
    assert [example.row for part in parts for example in part.examples] == [0, 1, 2, 3, 4]
    _, parts = parts_of(tmp_path, 2, 3, 4, limit=3)
    assert [part.rows for part in parts] == [2, 1, 0] and str(parts[2]) == "0 rows, 0 kept"


def test_a_mixture_is_as_large_as_its_shares_allow(tmp_path):
    """20, 3 and 4 usable rows (two more are none) in shares .72 .14 .14: 3 / .14 = 21.4 is the least of 27.8, 21.4 and
    28.6; of 21.4 rows .72 are 15 and .14 are 3."""
    tie = {"prompt": "0", "chosen": "same", "rejected": "same"}
    _, parts = parts_of(tmp_path, 20, 3, 4, bad=[tie, tie])
    for part in parts:
        part.drop_unusable(own_turns=True)
    shares = [0.72, 0.14, 0.14]
    drawn = mixed(parts, shares, None, 0)
    assert [len(part.examples) for part in drawn] == [15, 3, 3]
    for part, whole in zip(drawn, parts, strict=True):
        rows = [example.row for example in part.examples]
        assert len(set(rows)) == len(rows) and all(example in whole.examples for example in part.examples)
    assert str(drawn[0]) == "22 rows, 15 kept, 5 not drawn; dropped 2 equal responses (rows 20, 21)"
    assert counts(drawn) == {
        "rows": 29,
        "kept": 21,
        "dropped": {"equal responses": 2},
        "files": {
            drawn[0].source: {"rows": 22, "kept": 15, "dropped": {"equal responses": 2}, "not drawn": 5},
            drawn[1].source: {"rows": 3, "kept": 3, "dropped": {}},
            drawn[2].source: {"rows": 4, "kept": 3, "dropped": {}, "not drawn": 1},
        },
    }
    small = mixed(parts, shares, 15, 0)  # .72 of 15 are 10.8, .14 are 2.1
    assert [len(part.examples) for part in small] == [10, 2, 2]
    assert [part.examples for part in small] == [
        part.examples[: len(small[i].examples)] for i, part in enumerate(drawn)
    ]
    assert mixed(parts, shares, None, 0) == drawn and mixed(parts, shares, None, 1)[0].examples != drawn[0].examples


def test_the_papers_mixture():
    """66,000 rows in .72 .14 .14 of files that are larger: 47,520, 9,240 and 9,240, to the row."""
    from alignment.training_data import Part

    examples = [Example(0, {}, ("a", "b"))] * 48_000
    parts = [Part(name, 0, size, examples[:size]) for name, size in (("hh", 48_000), ("oa", 17_966), ("web", 14_346))]
    assert [len(part.examples) for part in mixed(parts, [0.72, 0.14, 0.14], 66_000, 0)] == [47_520, 9_240, 9_240]
    sizes = [len(part.examples) for part in mixed(parts[:2], [0.29, 0.71], 100, 0)]  # 0.29 x 100 is 28.99... in floats
    assert sizes == [29, 71]


def test_a_file_too_small_for_its_share(tmp_path):
    paths, parts = parts_of(tmp_path, 30, 1)
    message = (
        f"data {paths[0]} gives no row to a mixture of 1, of which its share is 0.1; give more rows, or other shares"
    )
    with pytest.raises(UserError) as error:
        mixed(parts, [0.1, 0.9], None, 0)
    assert str(error.value) == message
    tie = {"prompt": "Q", "chosen": "A", "rejected": "A"}
    [part] = read_parts([write(tmp_path, [tie])], "reward", limit=None)
    with pytest.raises(UserError, match=r"all 1 rows were dropped: 1 equal responses \(row 0\)"):
        part.drop_unusable(own_turns=True)


@pytest.mark.parametrize(
    "shares, message",
    [
        ([0.5], "--data_shares 0.5: give one for each of 2 files of --data_path"),
        ([0.5, 0.25, 0.25], "give one for each of 2 files"),
        ([0.5, 0.4], "--data_shares 0.5 0.4 sum to 0.9, not to 1"),
        ([0.7, 0.4], "sum to 1.1, not to 1"),
    ],
)
def test_shares_that_are_none(shares, message):
    with pytest.raises(UserError, match=message):
        check_shares(shares, ["a", "b"])
    check_shares([1 / 3, 2 / 3], ["a", "b"])
    check_shares([0.333, 0.667], ["a", "b"])


def test_controls():
    """Length puts the longer first; the coin turns about half, the same half for a seed."""
    pairs = [Example(i, {}, ("a" * (i % 7 + 1), "b" * ((3 * i) % 5 + 1))) for i in range(200)]
    assert all(len(e.responses[0]) >= len(e.responses[1]) for e in control(pairs, "length", 0))
    turned = sum(a != b for a, b in zip(control(pairs, "random", 0), pairs, strict=True))
    assert 70 < turned < 130
    assert control(pairs, "random", 0) == control(pairs, "random", 0) != control(pairs, "random", 1)
