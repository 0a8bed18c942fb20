"""ALMoST's formats: whitespace is part of the experiment, so it is asserted to the character."""

from pathlib import Path

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.few_shot import (
    REPLY_STOP,
    Demonstrations,
    Seeds,
    format_query_prompt,
    parse_query,
    parse_query_as_released,
    parse_reply,
)

TWO_SPACES = "A header.\n\n-----\n\nHuman:  Hi?\n\nAssistant:  Yes.\n\n-----\n\nHuman:  No?\n\nAssistant:  No."


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_query_prompt_ends_in_query_without_a_space():
    assert format_query_prompt("### I", ["a?", "b."]) == "### I\n\nQuery: a?\nQuery: b.\nQuery:"


@pytest.mark.parametrize(
    ("reply", "ours", "released"),
    [
        (" How?\nQuery: What is the capital of Fra", "How?", "What is the capital of Fra"),
        (" How? query: Why?", "How?", ""),
        ("", "", ""),
        ("\nQuery: Why? QUERY: x", "", "Why?"),
        ("a\n \tQuery: How? Query: Now?", "a", "How?  Now?"),
        ("a\nQuery: How? query : Why?", "a", "How?"),
        ("a\nQuery: How? [SEP] Why?", "a", "How?"),
        ("a\nQuery: How? [sep] Why?", "a", "How? [sep] Why?"),
        ("a\nQuery:\tHow?\t query: Why?", "a", "How?\t"),  # blanks and newlines go before a cut, no other white space
        ("a\nQuery: How?\t", "a", "How?"),
    ],
)
def test_the_first_completion_is_the_query(reply, ours, released):
    """A1: the prompt ends in `Query:`, so the released reading loses the first query and keeps the cut-off second."""
    assert (parse_query(reply), parse_query_as_released(reply)) == (ours, released)


def test_seeds(tmp_path):
    path = write(tmp_path / "seeds.txt", "### Instruction: x\na?\n\nb?\n")
    assert Seeds.read(path, 2) == Seeds("### Instruction: x", ["a?", "b?"])
    with pytest.raises(UserError, match="has 2 prompts, fewer than the 3 shots"):
        Seeds.read(path, 3)
    with pytest.raises(UserError, match="line 1 is no instruction"):
        Seeds.read(write(tmp_path / "bare.txt", "a?\nb?\n"), 1)


def test_a_response_prompt_is_header_first_dialogues_and_the_prompt(tmp_path):
    demonstrations = Demonstrations.read(write(tmp_path / "HHH_prompt.txt", TWO_SPACES), 2)
    assert demonstrations.name == "HHH"
    assert demonstrations.format_prompt("Why?", 1) == (
        "A header.\n\n-----\n\nHuman:  Hi?\n\nAssistant:  Yes.\n\n-----\n\nHuman:  Why?\n\nAssistant: "
    )
    assert demonstrations.format_prompt("Why?", 2).startswith(TWO_SPACES + "\n\n-----\n\nHuman:  Why?")
    assert demonstrations.format_prompt("Why?", 1, legacy=True).endswith("\n\nHuman: Why?\n\nAssistant: ")


def test_the_last_turn_is_spaced_as_the_files_own(tmp_path):
    """A7: after one-space demonstrations the reply's first token brings the space."""
    demonstrations = Demonstrations.read(write(tmp_path / "x.txt", TWO_SPACES.replace(":  ", ": ")), 1)
    assert demonstrations.format_prompt("Why?", 1).endswith("\n\nHuman: Why?\n\nAssistant:")


def test_the_reply_continues_the_demonstrations_tokens(tmp_path):
    """Prompt ids + reply ids = ids of the whole, for a tokenizer that puts a space in front of a word."""
    from conftest import make_tokenizer

    for kind in ("bytes", "pieces"):
        tokenizer = make_tokenizer(kind)
        demonstrations = Demonstrations.read(write(tmp_path / "x.txt", TWO_SPACES), 1)
        prompt = demonstrations.format_prompt("Why?", 1)
        whole = tokenizer(prompt + " Yes.")["input_ids"]
        assert whole[: len(tokenizer(prompt)["input_ids"])] == tokenizer(prompt)["input_ids"]


@pytest.mark.parametrize(
    ("text", "n_shot", "said"),
    [
        (TWO_SPACES, 3, "has 2 dialogues, fewer than the 3 of --n_shot"),
        ("Only a header.", 1, "has no dialogues"),
        ("A header.\n\n-----\n\nHuman: Hi?", 1, "dialogue 1 lacks"),
    ],
)
def test_demonstration_files_that_do_not_serve(tmp_path, text, n_shot, said):
    with pytest.raises(UserError, match=said):
        Demonstrations.read(write(tmp_path / "x.txt", text), n_shot)


@pytest.mark.parametrize(
    "text",
    [
        " Yes.\n\nHuman:  And?\n\nAssistant:  No.",
        " Yes.\n\n-----\n\nHuman: x",
        " I am the Assistant: a friend. Human: so",
        " Yes.",
        "Human: x",
    ],
)
def test_stop_strings_keep_the_text_that_cutting_afterwards_keeps(text):
    """A5: a sampler that stops at the first stop string gives what the released cuts keep."""
    cuts = [text.index(stop) for stop in REPLY_STOP if stop in text]
    stopped = text[: min(cuts, default=None)]
    assert parse_reply(stopped) == parse_reply(text) == stopped.strip("\n ")


@pytest.mark.parametrize(("end", "left"), [(" \n", ""), ("\t", "\t"), ("\r", "\r"), ("\u00a0", "\u00a0")])
def test_only_blanks_and_newlines_go_from_a_replys_ends(end, left):
    """As released: what ends in any other white space has no full stop there, and the filter drops it."""
    from alignment.filters import RESPONSE_RULES, why_drop

    reply = "It is a narrow inlet of the sea between cliffs, cut by ice."
    parsed = parse_reply(f" \n{reply}{end}\n \n\nHuman:  And?")
    assert parsed == reply + left
    assert why_drop(parsed, RESPONSE_RULES) == ("no full stop at the end" if left else None)


def test_our_own_seed_prompts():
    seeds = Seeds.read(REPOSITORY / "assets" / "seed_prompts.txt", 10)
    assert seeds.instruction == "### Instruction: Please generate initial query to start conversation with bot."
    assert len(seeds.queries) == len(set(seeds.queries)) == 100
    assert all(30 <= len(query) <= 250 and query[-1] in "?." for query in seeds.queries)


def test_our_own_demonstrations_pass_the_filter_they_teach():
    from alignment.filters import RESPONSE_RULES, why_drop

    assets = REPOSITORY / "assets"
    hhh, faithful = (Demonstrations.read(assets / f"{name}_prompt.txt", 5) for name in ("HHH", "Faithful"))
    assert hhh.header == faithful.header
    first = [each.dialogues[0].split("\n\n")[1] for each in (hhh, faithful)]
    assert first[0] == first[1]  # the same question, answered briefly and richly
    for each in (hhh, faithful):
        for dialogue in each.dialogues:
            turns = dialogue.strip().split("\n\n")
            assert [turn.split(":  ")[0] for turn in turns] == ["Human", "Assistant"] * (len(turns) // 2)
            for turn in turns[1::2]:
                assert why_drop(turn.removeprefix("Assistant:  "), RESPONSE_RULES) is None
    lengths = [sum(map(len, each.dialogues)) / len(each.dialogues) for each in (hhh, faithful)]
    assert lengths[1] > 1.5 * lengths[0]
