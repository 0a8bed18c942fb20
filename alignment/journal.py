"""Finished requests on disk, so that nothing that was generated is lost or paid for twice.

One JSON line per finished request, `{"key", "text", "finish"}`, where the key hashes everything that determines the
reply: engine and model, prompt, sampling, seed. A change of any of these finds nothing stale; a change of a filter or
parser finds everything. `kill -9`, run again: a torn last line is cut off and the rest is used.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from alignment.command_line import UserError, why_unwritable
from alignment.records import SURROGATE


def key(**determinants: Any) -> str:
    """A hash of everything that determines a reply."""
    canonical = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()[:32]


def finished(line: bytes) -> tuple[str, str, str] | None:
    """(key, text, finish) of a line; None of an earlier version's that names a writer, or whose text is a number.
    Raises ValueError where it is none of these, and RecursionError. U+FFFD stands for half a character."""
    row = json.loads(line)
    if not isinstance(row, dict):
        raise ValueError("no object")
    key, text, finish = (row.get(name) for name in ("key", "text", "finish"))
    if not isinstance(text, str):
        return None
    if not isinstance(key, str) or not isinstance(finish, str):
        raise ValueError("no key or no finish")
    return key, SURROGATE.sub("\ufffd", text), SURROGATE.sub("\ufffd", finish)


class Journal:
    """The journal beside `output`, for the one process that holds the output (run_cards.claim). A context manager.

    Raises UserError where it is damaged or cannot be written.
    """

    def __init__(self, output: Path):
        self.path = output.with_name(output.name + ".journal.jsonl")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab+")
        except OSError as error:
            raise UserError(f"{output} cannot be written: {why_unwritable(error)}") from None
        self._replies, end = self._read()
        self._file.truncate(end)

    def _read(self) -> tuple[dict[str, tuple[str, str]], int]:
        """The replies so far, and where the whole lines end."""
        replies, end = {}, 0
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            try:
                if found := finished(line):
                    replies[found[0]] = found[1:]
            except (ValueError, RecursionError):
                raise UserError(f"journal {self.path} is damaged at byte {end}; mend or delete it") from None
            end += len(line)
        return replies, end

    def get(self, request: str) -> tuple[str, str] | None:
        """(text, finish) of a finished request by its key, or None."""
        return self._replies.get(request)

    def add(self, request: str, text: str, finish: str) -> None:
        text = SURROGATE.sub("\ufffd", text)
        row = {"key": request, "text": text, "finish": finish}
        try:
            self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            self._file.flush()
        except OSError as error:  # no space on the disk, or none left for this user
            with suppress(OSError):  # it would write once more
                self._file.close()
            raise UserError(f"{self.path} cannot be written: {why_unwritable(error)}") from None
        self._replies[request] = (text, finish)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file.closed:  # it could not be written
            return
        if self._replies:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {why_unwritable(error)}") from None
        else:  # nothing happened: leave nothing behind
            self.path.unlink()
        self._file.close()
