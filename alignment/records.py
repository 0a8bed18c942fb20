"""A row of each file: read and checked at the door, trusted after, and written whole.

    prompts.txt                       one prompt a line
    <model>-<demo>-<k>shot.json       [reply or null, ...], as long as prompts.txt
    comparison.json                   [{"prompt", "chosen", "rejected", "meta": "a-vs-b"}, ...]

A file that exists is complete: it was written under a temporary name, synced, and renamed. What a reader cannot use is
a UserError that names file, row and remedy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment.command_line import UserError

BAD = "BAD"  # what the released code writes for a reply that its filter dropped


def read_text(path: Path, what: str) -> str:
    """The text of a UTF-8 file, newlines as "\\n". `what` names it in errors: "prompt file", ..."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{what} {path} is a folder, not a file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror}") from None
    if not text.strip():
        raise UserError(f"{what} {path} is empty")
    return text


def read_json(path: Path, what: str) -> Any:
    text = read_text(path, what)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{what} {path} is no JSON: line {error.lineno}, column {error.colno}: {error.msg}") from None


def read_prompts(path: Path) -> list[str]:
    """prompts.txt. A blank line inside is an error: every response file is aligned with the lines."""
    lines = read_text(path, "prompts").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"prompts {path}, line {number} is blank; remove it before any response is generated")
    return lines


def read_responses(path: Path, num_prompts: int, limit: int | None = None) -> list[str | None]:
    """One reply per prompt, null where none came; the first `limit`. Files of the released code are read too."""
    rows = read_json(path, "response file")
    if not isinstance(rows, list):
        raise UserError(f"response file {path} holds a {type(rows).__name__}, not a list of replies")
    if len(rows) < num_prompts:
        raise UserError(
            f"response file {path} has {len(rows)} replies, {num_prompts - len(rows)} fewer than the {num_prompts} "
            "prompts; complete it with --mode rg, or give --limit"
        )
    if len(rows) > num_prompts and limit is None:
        raise UserError(
            f"response file {path} has {len(rows)} replies, {len(rows) - num_prompts} more than the {num_prompts} "
            "prompts; it was made for another prompts.txt"
        )
    for row, reply in enumerate(rows):
        if reply is not None and not isinstance(reply, str):
            raise UserError(f"response file {path}, row {row} is a {type(reply).__name__}, not a string or null")
    return rows[:num_prompts]


def json_list(rows: Iterable[Any]) -> Iterator[str]:
    """The text of a JSON list, one row a line, in pieces, so that no more than a row is held."""
    separator = "[\n"
    for row in rows:
        yield separator + json.dumps(row, ensure_ascii=False)
        separator = ",\n"
    yield "\n]\n" if separator == ",\n" else "[]\n"


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Write text so that a crash leaves the old file or the new one, never a part. Makes the folder."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8", newline="\n", buffering=1 << 20) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # no space, no permission
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
