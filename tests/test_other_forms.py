"""Rows as other tools write them, and hints that are tried before they are given."""

import gzip
import re

import pytest
from test_training_data import HH, OASST, OTHER, REPLY, SAID, SYSTEM, TALK, TURNS, write

from alignment.command_line import UserError
from alignment.training_data import Example, read_examples, usable

SHARED = [{"from": "system", "value": "S"}, {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
PARTS = [{"type": "text", "text": "Q"}]


@pytest.mark.parametrize(
    "objective, row, prompt, responses",
    [
        ("sft", {"prompt": "Q", "completion": "A"}, {"prompt": "Q"}, ("A",)),
        ("sft", {"prompt": TURNS, "completion": REPLY}, {"prompt": TURNS}, ("A",)),
        ("sft", {"prompt": "Q", "completion": "A", "output": None}, {"prompt": "Q"}, ("A",)),
        ("sft", {"prompt": "Q", "completion": "A", "output": "B"}, {"prompt": "Q"}, ("B",)),
        ("sft", {"conversations": SHARED}, {"prompt": [SYSTEM, *TURNS]}, ("A",)),
        ("sft", {"conversations": SHARED[1:], "system": "S"}, {"system": "S", "prompt": TURNS}, ("A",)),
        ("sft", {"conversations": TURNS + REPLY, "messages": None}, {"prompt": TURNS}, ("A",)),
        (
            "dpo",
            {"conversations": SHARED[:2], "chosen": SHARED[2], "rejected": {"from": "gpt", "value": "B"}},
            {"prompt": [SYSTEM, *TURNS]},
            ("A", "B"),
        ),
        ("dpo", {"prompt": "Q", "chosen": REPLY[0], "rejected": OTHER[0]}, {"prompt": "Q"}, ("A", "B")),
        ("sft", {"system": "S", "messages": TURNS + REPLY}, {"system": "S", "prompt": TURNS}, ("A",)),
        ("sft", {"system": "S", "messages": [SYSTEM, *TURNS, *REPLY]}, {"prompt": [SYSTEM, *TURNS]}, ("A",)),
        (
            "dpo",
            {"system": "S", "chosen": TURNS + REPLY, "rejected": TURNS + OTHER},
            {"system": "S", "prompt": TURNS},
            ("A", "B"),
        ),
        (
            "dpo",
            {"system": "S", "chosen": HH + "A", "rejected": HH + "B"},
            {"system": "S", "prompt": HH[:-1]},
            ("A", "B"),
        ),
        ("dpo", {"prompt": TURNS, "chosen": TURNS + REPLY, "rejected": TURNS + OTHER}, {"prompt": TURNS}, ("A", "B")),
        ("dpo", {"instruction": "Q", "chosen": SAID + REPLY, "rejected": SAID + OTHER}, {"prompt": SAID}, ("A", "B")),
        (
            "dpo",
            {"prompt": [SYSTEM, *TURNS], "chosen": TURNS + REPLY, "rejected": TURNS + OTHER},
            {"prompt": [SYSTEM, *TURNS]},
            ("A", "B"),
        ),
    ],
)
def test_rows_of_other_tools(tmp_path, objective, row, prompt, responses):
    """None of what they say is lost: neither a system message beside a conversation nor turns before a prompt."""
    assert read_examples(write(tmp_path, [row]), objective) == [Example(0, prompt, responses)]


@pytest.mark.parametrize("name", ["rows.csv", "rows.csv.gz"])
def test_a_table_of_texts(tmp_path, name):
    text = b'prompt,completion\n"Q, ""q""\nand",A\nQ,\n'
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    examples = read_examples(str(tmp_path / name), "sft")
    assert examples == [Example(0, {"prompt": 'Q, "q"\nand'}, ("A",)), Example(1, {"prompt": "Q"}, ("",))]
    assert usable(examples)[1] == {"empty response": [1]}


@pytest.mark.parametrize(
    "objective, row, said",
    [
        ("sft", {"conversations": "Q"}, "messages is no list of messages with role and content"),
        ("sft", {"conversations": [{"from": ["human"], "value": "Q"}]}, "messages is no list of messages"),
        ("sft", {"conversations": [{"from": "human", "value": PARTS}, SHARED[2]]}, "messages is no list of messages"),
        ("sft", {"conversations": SHARED[:2]}, "messages do not end in an assistant's turn"),
        ("sft", {"system": "T", "conversations": SHARED}, "messages hold another system message than the row's own"),
        ("sft", {"system": 3, "messages": TURNS + REPLY}, "messages: system is a int, not a text"),
        ("sft", {"prompt": TURNS, "completion": "A", "system": 3}, "prompt: system is a int, not a text"),
        ("dpo", {"prompt": "Q", "chosen": REPLY, "rejected": TURNS}, "do not end in an assistant's turn"),
        ("dpo", {"prompt": TALK, "chosen": TURNS + REPLY, "rejected": TURNS + OTHER}, "hold another prompt"),
        ("dpo", {"prompt": TALK, "chosen": TALK[2:] + REPLY, "rejected": TALK[2:] + OTHER}, "hold another prompt"),
        ("dpo", {"input": "X", "chosen": TURNS + REPLY, "rejected": TURNS + OTHER}, "hold another prompt"),
        (
            "dpo",
            OASST | {"prompt": "prompter: X", "chosen": TURNS + REPLY, "rejected": TURNS + OTHER},
            "hold another prompt",
        ),
        ("dpo", {"prompt": "Q", "chosen": [SYSTEM, *REPLY], "rejected": [SYSTEM, *OTHER]}, "hold another prompt"),
    ],
)
def test_rows_of_other_tools_that_cannot_be_read(tmp_path, objective, row, said):
    with pytest.raises(UserError, match=f"row 0: .*{said}"):
        read_examples(write(tmp_path, [row]), objective)


@pytest.mark.parametrize(
    "objective, row, hint",
    [
        ("sft", {"question": "Q", "answer": "A"}, "; rename question to prompt, answer to output"),
        ("sft", {"instruction": "Q", "response": "A"}, "; rename response to output"),
        ("sft", {"question": "Q", "query": "R", "output": "A"}, "; rename question to prompt"),
        ("sft", {"question": 3, "answer": "A"}, ""),
        ("sft", {"text": "Q A"}, ""),
        ("sft", {"prompt": "Q", "chosen": "A", "rejected": 5}, "; --output_key chosen learns the better responses"),
        ("sft", {"chosen": "A", "rejected": "B"}, ""),
        ("sft", {"prompt": "Q", "chosen": "A", "rejected": "A"}, "; --output_key chosen learns the better responses"),
        ("dpo", {"prompt": "Q", "output": "A"}, "; train.py --objective sft would fit"),
        ("dpo", {"prompt": "Q", "output": 5}, ""),
        ("dpo", {"prompt": "Q", "output": " "}, ""),
        ("dpo", {"query": "Q", "preferred": "A", "dispreferred": "B"}, "; rename query to prompt, .* to rejected"),
    ],
)
def test_a_hint_is_given_only_where_it_works(tmp_path, objective, row, hint):
    """All that a message names is tried on the rows first."""
    with pytest.raises(UserError) as refused:
        read_examples(write(tmp_path, [row, row]), objective)
    assert re.search(f"(dialogues?|messages|score_1){hint}$", str(refused.value)), refused.value
