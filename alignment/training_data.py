"""The rows that train.py learns from: read from a file or the hub, checked at the door, one shape after.

    sft           input, output | instruction, (input,) output | (system,) prompt, output | messages
    reward,       prompt, chosen, rejected | input, chosen, rejected | chosen, rejected (two dialogues that part at the
    dpo, orpo     last assistant turn) | text, score (two such dialogues and their scores, as DSP has them) ; prompt,
                  chosen, rejected as texts or as lists of messages; a system beside them

from .json (a list), .jsonl, .parquet, or a data set's name on the hub. Imports no torch.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from alignment.command_line import UserError
from alignment.records import read_json, read_text
from alignment.templates import is_dialogue

OBJECTIVES = ("sft", "reward", "dpo", "orpo")
NEEDS = {
    "sft": "output beside input, instruction or prompt; or messages",
    **dict.fromkeys(
        ("reward", "dpo", "orpo"),
        "chosen and rejected, beside prompt or input or as whole dialogues; or text and score",
    ),
}


@dataclass(frozen=True)
class Example:
    """What a template takes for the prompt, and one response to it (sft) or two, the better first. `row` from 0."""

    row: int
    prompt: dict
    responses: tuple[str, ...]


def read_examples(source: str, objective: str, limit: int | None = None) -> list[Example]:
    """The examples of a data set, in order. Raises UserError that names file, row and key.

    Rows with an empty response are kept: `usable` drops and counts them.
    """
    rows = read_rows(source)[:limit]
    if not rows:
        raise UserError(f"data {source} has no rows")
    check_columns(source, rows[0], objective)
    read = read_demonstration if objective == "sft" else read_comparison
    return [read(source, number, row) for number, row in enumerate(rows)]


def read_rows(source: str) -> list[dict]:
    path = Path(source)
    if path.suffix not in (".json", ".jsonl", ".parquet") and not path.exists():
        return read_hub(source)
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".jsonl":
        rows = []
        for number, line in enumerate(read_text(path, "data").splitlines()):
            try:
                rows.append(json.loads(line)) if line.strip() else None
            except json.JSONDecodeError as error:
                raise UserError(f"data {path}, line {number + 1} is no JSON: {error.msg}") from None
    else:
        rows = read_json(path, "data")
    if not isinstance(rows, list):
        raise UserError(f"data {path} holds a {type(rows).__name__}, not a list of rows")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise UserError(f"data {path}, row {number} is a {type(row).__name__}, not an object")
    return rows


def read_parquet(path: Path) -> list[dict]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"data {path}: reading parquet needs the package pyarrow; pip install pyarrow") from None
    if not path.exists():
        raise UserError(f"data {path} does not exist")
    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"data {path} is no parquet file: {error}".split("\n")[0]) from None


def read_hub(name: str) -> list[dict]:
    """The train split of a data set on the hub, or in its cache."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"data {name} does not exist (and is no owner/name of the hub)")
    try:
        import datasets
    except ImportError:
        raise UserError(f"data {name}: reading from the hub needs the package datasets; pip install datasets") from None
    try:
        return datasets.load_dataset(name, split="train").to_list()
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, ValueError, FileNotFoundError) as error:
        raise UserError(f"data {name} does not exist here nor on the hub: {str(error).splitlines()[0]}") from None


def fits(row: dict) -> list[str]:
    """The objectives whose columns a row has."""
    if {"chosen", "rejected"} <= set(row) or {"text", "score"} <= set(row):
        return ["reward", "dpo", "orpo"]
    if "messages" in row or ("output" in row and any(key in row for key in ("input", "instruction", "prompt"))):
        return ["sft"]
    return []


def check_columns(source: str, row: dict, objective: str) -> None:
    found = fits(row)
    if objective not in found:
        other = f"; --objective {' or '.join(found)} would fit" if found else ""
        raise UserError(f"data {source} has {', '.join(row)}; --objective {objective} needs {NEEDS[objective]}{other}")


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
    kept = {key: row[key] for key in ("system", "instruction", "prompt", "input") if row.get(key) is not None}
    if isinstance(kept.get("prompt"), list):
        messages_of(source, number, kept["prompt"], "prompt")
        return {key: kept[key] for key in ("system", "prompt") if key in kept}
    for key in kept:
        text_of(source, number, row, key)
    if not any(key in kept for key in ("instruction", "prompt", "input")):
        raise UserError(f"data {source}, row {number}: prompt, instruction or input is missing")
    return kept


def read_demonstration(source: str, number: int, row: dict) -> Example:
    if row.get("messages") is None:
        return Example(number, prompt_of(source, number, row), (text_of(source, number, row, "output"),))
    turns = messages_of(source, number, row["messages"], "messages")
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise UserError(f"data {source}, row {number}: messages do not end in an assistant's turn after another")
    return Example(number, {"prompt": turns[:-1]}, (turns[-1]["content"],))


def read_comparison(source: str, number: int, row: dict) -> Example:
    """Two responses, the better first; none where they cannot be compared, which `usable` drops and counts."""
    if "chosen" not in row and "score" in row:
        row = by_score(source, number, row)
    sides = [row.get("chosen"), row.get("rejected")]
    has_prompt = any(row.get(key) is not None for key in ("prompt", "input", "instruction"))
    if all(isinstance(side, list) for side in sides):
        chosen, rejected = (messages_of(source, number, row[key], key) for key in ("chosen", "rejected"))
        if not has_prompt and chosen[:-1] != rejected[:-1]:
            raise UserError(f"data {source}, row {number}: chosen and rejected part before their last turn")
        prompt = prompt_of(source, number, row) if has_prompt else {"prompt": chosen[:-1]}
        return Example(number, prompt, (chosen[-1]["content"], rejected[-1]["content"]))
    chosen, rejected = (text_of(source, number, row, key) for key in ("chosen", "rejected"))
    if has_prompt:
        return Example(number, prompt_of(source, number, row), (chosen, rejected))
    if not (is_dialogue(chosen) and is_dialogue(rejected)):
        raise UserError(f"data {source}, row {number}: prompt is missing, and chosen and rejected are no dialogues")
    return split_dialogues(number, chosen, rejected)


def by_score(source: str, number: int, row: dict) -> dict:
    """{"text": [a, b], "score": [1.0, 0.0]} as {"chosen": a, "rejected": b}; equal scores as equal texts."""
    texts, scores = row.get("text"), row.get("score")
    good = isinstance(texts, list) and isinstance(scores, list) and len(texts) == len(scores) == 2
    if not good or not all(isinstance(score, (int, float)) for score in scores):
        raise UserError(f"data {source}, row {number}: text and score are no two dialogues and two numbers")
    better = scores.index(max(scores))
    return {"chosen": texts[better], "rejected": texts[better if scores[0] == scores[1] else 1 - better]}


LAST_TURN = "\n\nAssistant:"


def split_dialogues(number: int, chosen: str, rejected: str) -> Example:
    """Two dialogues that are the same up to their last assistant turn -> a prompt and two responses, else none."""
    (prompt, _, better), (other, _, worse) = (side.rpartition(LAST_TURN) for side in (chosen, rejected))
    if prompt != other:
        return Example(number, {"prompt": prompt + LAST_TURN}, ())
    return Example(number, {"prompt": prompt + LAST_TURN}, (better.strip(), worse.strip()))


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
