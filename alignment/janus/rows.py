"""The files of a collection: instructions, what lies between the modes, and the published forms.

instructions      any rows with a text under instruction, prompt, user_prompt, turns or text; ids as texts or numbers
between modes     a row for each instruction and set: id, set, split, main_source, original_source, prompt,
                  preference_set, then system, output and rubrics as the modes add them; an instruction's together
published         Collection: main_source, original_source, preference_set, system, prompt, output
                  Bench: source, preference_set, system, prompt, reference_answer, rubrics
                  -DPO, -ORPO: chosen and rejected, lists of messages, in the place of output
                  -RM: input (system message and prompt, a line apart), chosen, rejected
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.command_line import UserError, nearest
from alignment.janus.preferences import DIMENSIONS, KEYS
from alignment.records import check_row, decoded, opened, parsed, read_prompts, read_rows

STAGES = {"pa": "preference_sets.json", "sm": "system_messages.json", "gr": "responses.json", "rb": "rubrics.json"}
ADDS = {"pa": "preference_set", "sm": "system", "gr": "output", "rb": "rubrics"}  # by a mode, beside what was there
INSTRUCTION_KEYS = ("instruction", "prompt", "user_prompt", "turns", "text")
SCORES = tuple("12345")


# Instructions


def read_instructions(paths: list[str], key: str | None) -> list[dict]:
    """{"id", "main_source", "original_source", "prompt"} of each row; `key` names the column of the instruction.

    A list of turns gives its first. An `input`, or that of the first of `instances`, follows on a line of its own. An
    id is under `id` or `question_id`, else `<file>-<row>`. Raises UserError for a key that is not there, no text, and
    an id that comes twice.
    """
    found, seen = [], {}
    for path in paths:
        is_text = Path(path).suffix == ".txt"
        rows = [{"instruction": line} for line in read_prompts(Path(path))] if is_text else read_rows(path)
        own = key or next((each for each in INSTRUCTION_KEYS if each in rows[0]), None)
        if own is None or own not in rows[0]:
            wanted = f"no {key!r}" if key else f"none of {', '.join(INSTRUCTION_KEYS)}"
            near = nearest(key or "instruction", rows[0])
            raise UserError(f"data {path} has {wanted}, but {', '.join(rows[0])}; name it by --instruction_key{near}")
        for number, row in enumerate(rows):
            place = f"data {path}, row {number}"
            name = row.get("id", row.get("question_id", f"{Path(path).stem}-{number}"))
            if not isinstance(name, (str, int)) or isinstance(name, bool):
                raise UserError(f"{place}: 'id' is a {type(name).__name__}, not a text or a whole number")
            if str(name) in seen:
                raise UserError(f"{place} has the id {name!r} of {seen[str(name)]}; ids are unique")
            seen[str(name)] = place
            source = next((row[each] for each in ("main_source", "source") if isinstance(row.get(each), str)), None)
            source = source or Path(path).stem
            original = row.get("original_source") if isinstance(row.get("original_source"), str) else source
            prompt = instruction_in(row, own, place)
            found.append({"id": name, "main_source": source, "original_source": original, "prompt": prompt})
    return found


def instruction_in(row: dict, key: str, place: str) -> str:
    text = row.get(key)
    text = text[0] if isinstance(text, list) and text else text
    if not isinstance(text, str) or not text.strip():
        raise UserError(f"{place} has no text under {key!r}{'' if key in row else nearest(key, row)}")
    first = (row.get("instances") or [{}])[0] if isinstance(row.get("instances"), list) else {}
    more = row.get("input") or (first.get("input") if isinstance(first, dict) else None)
    return f"{text.strip()}\n{more.strip()}" if isinstance(more, str) and more.strip() else text.strip()


# Between the modes


def stage_path(folder: Path, mode: str) -> Path:
    """The file that `mode` wrote. Raises UserError where it is not there."""
    path = folder / STAGES[mode]
    if not path.exists():
        raise UserError(f"{path} does not exist; make it with --mode {mode} first")
    return path


def stage_rows(path: Path, mode: str) -> Iterator[dict]:
    """The rows that `mode` wrote, one at a time, each checked. Raises UserError that names row and key, also where an
    instruction's rows stand apart or one comes twice."""
    order = list(STAGES)
    needs = [ADDS[each] for each in order[: order.index(mode) + 1]]
    previous, done, sets = None, set(), set()
    for number, row in enumerate(one_by_one(path)):
        place = f"{path}, row {number}"
        check_stage_row(row, place, needs)
        name = str(row["id"])
        if name != previous:
            if name in done:
                raise UserError(f"{place}: id {row['id']!r} comes again after others; an id names one instruction")
            done.add(name)
            previous, sets = name, set()
        if row["set"] in sets:
            raise UserError(f"{place}: set {row['set']} of id {row['id']!r} comes twice")
        sets.add(row["set"])
        yield row


def one_by_one(path: Path, *, trusted: bool = False) -> Iterator[dict]:
    """The rows of a list that records.json_list wrote, a line each, so that the file is never held; of any other as
    read_rows reads it. `trusted` where this run has checked them all once."""
    with opened(path, "data") as file:
        by_line = file.readline() == b"[\n" and file.readline().startswith(b"{")
    if not by_line:
        yield from read_rows(path)
        return
    with opened(path, "data") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip()
            if text in (b"[", b"]") or not text:
                continue
            if trusted:
                yield json.loads(text.removesuffix(b","))
                continue
            place = f"data {path}, line {number}"
            row = parsed(decoded(text.removesuffix(b","), path, "data", 1), place, is_line=True)
            check_row(row, place, "holds")
            yield row


def check_stage_row(row: dict, place: str, needs: list[str]) -> None:
    if not isinstance(row.get("id"), (str, int)) or not isinstance(row.get("set"), int):
        raise UserError(f"{place} has no 'id' and 'set'; make the file with the mode before")
    if row.get("split") not in ("train", "bench"):
        raise UserError(f"{place}: 'split' is neither train nor bench")
    for key in ("prompt", "system", "output"):
        if (key == "prompt" or key in needs) and not (isinstance(row.get(key), str) and row[key].strip()):
            raise UserError(f"{place} has no text under {key!r}; remove the row, or make it again")
    check_set(row.get("preference_set"), place)
    if "rubrics" in needs:
        check_rubrics(row.get("rubrics"), place)


def check_set(found: Any, place: str) -> None:
    """A preference set: the four dimensions, once each, in any order."""
    good = isinstance(found, list) and all(
        isinstance(each, dict) and all(isinstance(each.get(key), str) for key in KEYS) for each in found
    )
    if not good or sorted(each["dimension"] for each in found) != sorted(DIMENSIONS):
        raise UserError(f"{place}: 'preference_set' is no list of one {{{', '.join(KEYS)}}} for each dimension")


def check_rubrics(found: Any, place: str) -> None:
    good = isinstance(found, list) and all(
        isinstance(each, dict)
        and isinstance(each.get("criteria"), str)
        and isinstance(scores := each.get("score_descriptions"), dict)
        and all(isinstance(scores.get(score), str) for score in SCORES)
        for each in found
    )
    if not good or len(found) != len(DIMENSIONS):
        raise UserError(f"{place}: 'rubrics' is no list of four {{criteria, score_descriptions 1 to 5}}")


# Published forms

FILES = {kind: f"multifaceted_{kind}.json" for kind in ("sft", "small", "dpo", "orpo", "rm", "rm_test", "bench")}
OTHER_NAMES = {
    "prompt": ("prompt", "instruction", "user_prompt"),
    "system": ("system", "system_prompt"),
    "preference_set": ("preference_set", "preference"),
    "rubrics": ("rubrics", "rubric"),
}


def published(source: str, what: str = "data") -> Iterator[tuple[str, dict]]:
    """(kind of FILES, row) of each row of a part of the published collection: a file, or its name on the hub.

    A row's keys tell what it is, and of pairs, which have the same, the source's name does. The forms of the released
    README are read too: earlier names of the keys, a row under `example`, and there under its id.
    """
    name = Path(source).name.lower()
    pairs = "orpo" if "orpo" in name else "dpo"
    rewards = "rm_test" if "test" in name else "rm"
    for number, row in enumerate(read_rows(source, what)):
        row = row["example"] if isinstance(row.get("example"), dict) else row
        if len(row) == 1 and isinstance(only := next(iter(row.values())), dict):
            row = only
        place = f"{what} {source}, row {number}"
        renamed = {key: row[each] for key, others in OTHER_NAMES.items() for each in others[::-1] if each in row}
        row = row | renamed
        if "chosen" in row and "input" in row:
            yield rewards, texts_of(row, ("input", "chosen", "rejected"), place)
        elif "chosen" in row:
            texts_of(row, ("system", "prompt"), place)
            sides = {side: turns_of(row, side, place) for side in ("chosen", "rejected")}
            yield pairs, kept(row, "main_source original_source preference_set system prompt", place) | sides
        elif "rubrics" in row:
            check_rubrics(row["rubrics"], place)
            texts_of(row, ("system", "prompt", "reference_answer"), place)
            row["source"] = row.get("source") or row.get("original_source") or row.get("main_source") or ""
            yield "bench", kept(row, "source preference_set system prompt reference_answer rubrics", place)
        else:
            texts_of(row, ("system", "prompt", "output"), place)
            kind = "small" if "small" in name else "sft"
            yield kind, kept(row, "main_source original_source preference_set system prompt output", place)


def texts_of(row: dict, keys: tuple[str, ...], place: str) -> dict[str, str]:
    for key in keys:
        if not isinstance(row.get(key), str) or not row[key].strip():
            near = "" if key in row else nearest(key, row)
            raise UserError(f"{place} has no text under {key!r} (its keys: {', '.join(row)}){near}")
    return {key: row[key] for key in keys}


def turns_of(row: dict, key: str, place: str) -> list[dict]:
    found = row.get(key)
    if isinstance(found, str):
        found = [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": found}]
    good = isinstance(found, list) and found and all(isinstance(each, dict) for each in found)
    if not good or not all(isinstance(each.get(part), str) for each in found for part in ("role", "content")):
        raise UserError(f"{place}: {key!r} is no text and no list of messages with role and content")
    return found


def kept(row: dict, keys: str, place: str) -> dict:
    """The row's values under these keys, in this order; those that it does not have are left out."""
    if row.get("preference_set") is not None:
        check_set(row["preference_set"], place)
    return {key: row[key] for key in keys.split() if row.get(key) is not None}
