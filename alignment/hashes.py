"""Files, and rows of the hub, known by their contents: sha256, remembered where a file is large."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment.command_line import UserError
from alignment.records import is_hub_name, opened, read_rows, write_whole

REMEMBERED_FROM = 16 << 20  # bytes; a smaller file is hashed again in no time
SETTLED = 2_000_000_000  # nanoseconds after which a file system tells another write by its times


def digest(source: str | Path, what: str = "data") -> str:
    """sha256 of what a reader gets from a source: a file's or a pipe's bytes, the rows of a data set on the hub."""
    if not is_hub_name(source):
        return sha256(Path(source), what)
    found = hashlib.sha256()
    for row in read_rows(source, what):
        found.update(json.dumps(row, sort_keys=True, default=str).encode() + b"\n")
    return found.hexdigest()


def sha256(path: Path, what: str = "file") -> str:
    """sha256 of a file's bytes, remembered where it is large. Raises UserError where it cannot be read."""

    def of(path: Path) -> str:
        with opened(path, what, unpack=False) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    return remembered(path, "sha256", of)


def remembered(path: Path, kind: str, compute: Callable[[Path], Any]) -> Any:
    """`compute(path)`, or for a large file what it gave before, as long as the file is the same by its times.

    `kind` names what is computed, a value that JSON can hold. It is kept in the user's cache folder where that can be
    written, but not of a file so young that another write might leave its times as they are.
    """
    if not os.path.isfile(path):
        return compute(path)  # a pipe, or nothing, of which it says so
    before, now = path.stat(), time.time_ns()
    folder = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "alignment-without-labels"
    if before.st_size < REMEMBERED_FROM or not folder.is_absolute():
        return compute(path)
    name = f"{kind} {path.resolve()}"
    note = folder / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:32]}.json"
    state = [name, *stamp(before)]
    try:
        kept = json.loads(note.read_text(encoding="utf-8"))
        if kept["state"] == state:
            return kept["value"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass  # none, or a damaged one
    value = compute(path)
    if now - before.st_mtime_ns >= SETTLED and stamp(path.stat()) == stamp(before):
        with suppress(UserError):
            write_whole(note, [json.dumps({"state": state, "value": value}) + "\n"])
    return value


def stamp(found: os.stat_result) -> list[int]:
    """What changes when a file does: its modification time can be set back, the change time of its inode cannot."""
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
