"""The rows that train.py learns from, checked at the door, one shape after.

    sft           input, output | instruction, (input,) output | (system,) prompt, output | messages ; another column
                  can stand for the output, as a pair's chosen in any of the forms below
    reward,       prompt, chosen, rejected | input, chosen, rejected | chosen, rejected (two dialogues that part at the
    dpo, orpo     last assistant turn) | text, score (two such dialogues and their scores, as DSP has them) ; prompt,
                  chosen, rejected as texts or as lists of messages; a system beside them

from any source that `records.read_rows` reads. Imports no torch.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from alignment.command_line import UserError, nearest
from alignment.records import is_number, read_rows
from alignment.templates import is_dialogue, split_dialogue

OBJECTIVES = ("sft", "reward", "dpo", "orpo")
PROMPT_KEYS = ("instruction", "prompt", "input")


@dataclass(frozen=True)
class Example:
    """What a template takes for the prompt, and one response to it (sft) or two, the better first. `row` from 0."""

    row: int
    prompt: dict
    responses: tuple[str, ...]


def read_examples(source: str, objective: str, limit: int | None = None, output_key: str = "output") -> list[Example]:
    """The examples of a data set, in order; sft learns the column `output_key`. UserError names file, row and key.

    Rows with an empty response are kept: `usable` drops and counts them.
    """
    rows = read_rows(source)[:limit]
    check_columns(source, rows[0], objective, output_key)
    if objective == "sft":
        return [read_demonstration(source, number, row, output_key) for number, row in enumerate(rows)]
    return [read_comparison(source, number, row) for number, row in enumerate(rows)]


def fits(row: dict, output_key: str) -> list[str]:
    """The objectives whose columns a row has."""
    found = []
    if {"chosen", "rejected"} <= set(row) or {"text", "score"} <= set(row):
        found += ["reward", "dpo", "orpo"]
    output = row.get(output_key)
    has_prompt = any(key in row for key in PROMPT_KEYS) or isinstance(output, list) or is_dialogue(output)
    if (output_key in row and has_prompt) or ("messages" in row and output_key == "output"):
        found.append("sft")
    return found


def check_columns(source: str, row: dict, objective: str, output_key: str) -> None:
    found = fits(row, output_key)
    if objective in found:
        return
    needs = "chosen and rejected, beside prompt or input or as whole dialogues; or text and score"
    if objective == "sft":
        other = "messages" if output_key == "output" else "as a whole dialogue"
        meant = "" if output_key in {"output", *row} else nearest(output_key, row)
        needs = f"{output_key} beside input, instruction or prompt; or {other}{meant}"
    hint = f"; --objective {' or '.join(found)} would fit" if found else ""
    if objective == "sft" and "sft" in fits(row, "chosen"):
        hint += ", and --output_key chosen learns the better responses"
    raise UserError(f"data {source} has {', '.join(row)}; --objective {objective} needs {needs}{hint}")


def text_of(source: str, number: int, row: dict, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = "is missing" if key not in row else f"is a {type(value).__name__}, not a text"
        raise UserError(f"data {source}, row {number}: {key} {what}")
    return value


def messages_of(source: str, number: int, value: Any, key: str) -> list[dict]:
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(turn, dict) and isinstance(turn.get("content"), str) and isinstance(turn.get("role"), str)
            for turn in value
        )
    )
    if not good:
        raise UserError(f"data {source}, row {number}: {key} is no list of messages with role and content")
    return value


def prompt_of(source: str, number: int, row: dict) -> dict:
    """The part of a row that a template reads, its texts checked."""
    kept = {key: row[key] for key in ("system", *PROMPT_KEYS) if row.get(key) is not None}
    if isinstance(kept.get("prompt"), list):
        messages_of(source, number, kept["prompt"], "prompt")
        return {key: kept[key] for key in ("system", "prompt") if key in kept}
    for key in kept:
        text_of(source, number, row, key)
    if not any(key in kept for key in PROMPT_KEYS):
        raise UserError(f"data {source}, row {number}: prompt, instruction or input is missing")
    return kept


def read_demonstration(source: str, number: int, row: dict, output_key: str) -> Example:
    if row.get("messages") is None or output_key != "output":
        return responses_of(source, number, row, (output_key,))
    turns = messages_of(source, number, row["messages"], "messages")
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise UserError(f"data {source}, row {number}: messages do not end in an assistant's turn after another")
    return Example(number, {"prompt": turns[:-1]}, (turns[-1]["content"],))


def read_comparison(source: str, number: int, row: dict) -> Example:
    if row.get("chosen") is None and row.get("text") is not None:
        row = by_score(source, number, row)
    return responses_of(source, number, row, ("chosen", "rejected"))


def responses_of(source: str, number: int, row: dict, keys: tuple[str, ...]) -> Example:
    """What is under `keys`: responses to a prompt beside them, as texts or messages, or dialogues that end in them.

    None where two dialogues are no responses to the same, which `usable` drops and counts.
    """
    has_prompt = any(row.get(key) is not None for key in PROMPT_KEYS)
    if all(isinstance(row.get(key), list) for key in keys):
        sides = [messages_of(source, number, row[key], key) for key in keys]
        if not has_prompt and any(side[:-1] != sides[0][:-1] for side in sides):
            raise UserError(f"data {source}, row {number}: {' and '.join(keys)} part before their last turn")
        prompt = prompt_of(source, number, row) if has_prompt else {"prompt": sides[0][:-1]}
        return Example(number, prompt, tuple(side[-1]["content"] for side in sides))
    texts = [text_of(source, number, row, key) for key in keys]
    if has_prompt:
        return Example(number, prompt_of(source, number, row), tuple(texts))
    if not all(map(is_dialogue, texts)):
        are = "are no dialogues" if len(keys) > 1 else "is no dialogue"
        missing = f"prompt, instruction or input is missing, and {' and '.join(keys)} {are}"
        raise UserError(f"data {source}, row {number}: {missing}")
    prompts, responses = zip(*map(split_dialogue, texts), strict=True)
    return Example(number, {"prompt": prompts[0]}, responses if len(set(prompts)) == 1 else ())


def by_score(source: str, number: int, row: dict) -> dict:
    """{"text": [a, b], "score": [1.0, 0.0]} as {"chosen": a, "rejected": b}; equal scores as equal texts."""
    texts, scores = row.get("text"), row.get("score")
    good = isinstance(texts, list) and isinstance(scores, list) and len(texts) == len(scores) == 2
    if not good or not all(map(is_number, scores)):
        raise UserError(f"data {source}, row {number}: text and score are no two dialogues and two numbers")
    better = scores.index(max(scores))
    return {"chosen": texts[better], "rejected": texts[better if scores[0] == scores[1] else 1 - better]}


def usable(examples: list[Example]) -> tuple[list[Example], dict[str, list[int]]]:
    """The examples that can teach something, and the dropped rows' numbers by reason."""
    kept, dropped = [], {"dialogues part before the last turn": [], "empty response": [], "equal responses": []}
    for example in examples:
        if not example.responses:
            dropped["dialogues part before the last turn"].append(example.row)
        elif not all(response.strip() for response in example.responses):
            dropped["empty response"].append(example.row)
        elif len(set(example.responses)) < len(example.responses):
            dropped["equal responses"].append(example.row)
        else:
            kept.append(example)
    return kept, {reason: rows for reason, rows in dropped.items() if rows}


def control(examples: list[Example], kind: str, seed: int) -> list[Example]:
    """The same pairs with the preference replaced: by `length` (characters, the longer one wins) or by a `random` coin.

    What a model learns from these is what it would seem to know without the preferences.
    """
    coin = random.Random(seed)
    chosen_first = {
        "length": lambda pair: (len(pair[0]), pair[0]) > (len(pair[1]), pair[1]),
        "random": lambda pair: coin.random() < 0.5,
    }[kind]
    return [
        example if chosen_first(example.responses) else replace(example, responses=example.responses[::-1])
        for example in examples
    ]


def report(dropped: dict[str, list[int]]) -> str:
    """`3 empty response (rows 4, 7, 9)`, at most eight numbers each."""
    parts = []
    for reason, rows in dropped.items():
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        parts.append(f"{len(rows):,} {reason} (row{'s' if len(rows) > 1 else ''} {shown})")
    return "; ".join(parts)


def counts(total: int, kept: int, dropped: dict[str, list[int]]) -> dict:
    return {"rows": total, "kept": kept, "dropped": dict(Counter({reason: len(r) for reason, r in dropped.items()}))}
