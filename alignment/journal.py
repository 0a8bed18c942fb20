"""Finished requests on disk, so that nothing that was generated is lost or paid for twice.

One JSON line per finished request, `{"key", "text", "finish"}`, where the key hashes everything that determines the
reply: engine and model, prompt, sampling, seed. A change of any of these finds nothing stale; a change of a filter or
parser finds everything. `kill -9`, run again: a torn last line is cut off and the rest is used.

Texts stay on disk: what is held of a finished request is where its line begins. Every line is read once when the
journal is opened, so damage is found before any work, and again when its reply is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

from alignment.command_line import UserError, why_unwritable
from alignment.records import SURROGATE

AT_ONCE = 4_096  # bytes of a line that are read in one go
HASHED = (1 << 64) - 1


def key(**determinants: Any) -> str:
    """A hash of everything that determines a reply."""
    canonical = json.dumps(determinants, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode(errors="surrogatepass")).hexdigest()[:32]


def line_of(line: bytes) -> tuple[str, str, str] | None:
    """(key, text, finish) of a line; None of an earlier version's that names a writer, or whose text is a number.
    Raises ValueError where it is none of these, and RecursionError."""
    row = json.loads(line.decode())
    if not isinstance(row, dict):
        raise ValueError("no object")
    key, text, finish = row.get("key"), row.get("text"), row.get("finish")
    if not isinstance(text, str):
        return None
    if not isinstance(key, str) or not isinstance(finish, str):
        raise ValueError("no key or no finish")
    return key, text, finish


def finished(line: bytes) -> tuple[str, str, str] | None:
    """`line_of`, with U+FFFD for half a character."""
    found = line_of(line)
    return found and (found[0], whole(found[1]), whole(found[2]))


def whole(text: str) -> str:
    return text if text.isascii() else SURROGATE.sub("\ufffd", text)


class Places:
    """Where the lines of keys begin in a file: an open hash table of 16 bytes a slot, where a dict takes 200.

    Keys are not held. Two may have one hash of 64 bits, so `of` gives the offsets of lines that can be a key's.
    """

    def __init__(self) -> None:
        self.count = 0
        self._hashes, self._ends = array("Q", bytes(8 << 10)), array("Q", bytes(8 << 10))  # an end of 0: a free slot

    def add(self, key: str, offset: int) -> None:
        if 3 * self.count > 2 * len(self._ends):
            self._grow()
        self._put(hash(key) & HASHED, offset + 1)
        self.count += 1

    def of(self, key: str) -> list[int]:
        """Offsets of lines that can be this key's, the latest first."""
        hashed, mask, found = hash(key) & HASHED, len(self._ends) - 1, []
        slot = hashed & mask
        while end := self._ends[slot]:
            if self._hashes[slot] == hashed:
                found.append(end - 1)
            slot = slot + 1 & mask
        return sorted(found, reverse=True)

    def _put(self, hashed: int, end: int) -> None:
        ends, mask = self._ends, len(self._ends) - 1
        slot = hashed & mask
        while ends[slot]:
            slot = slot + 1 & mask
        self._hashes[slot], ends[slot] = hashed, end

    def _grow(self) -> None:
        old = zip(self._hashes, self._ends, strict=True)
        self._hashes, self._ends = (array("Q", bytes(16 * len(self._ends))) for _ in "ab")
        for hashed, end in old:
            if end:
                self._put(hashed, end)


class Journal:
    """The journal beside `output`, for the one process that holds the output (run_cards.claim). A context manager.

    Raises UserError where it is damaged or cannot be written.
    """

    plan: ClassVar[Any] = None  # planning.Plan in the making: it is told what replies are here, and nothing is written

    def __init__(self, output: Path):
        self.path = output.with_name(output.name + ".journal.jsonl")
        try:
            if self.plan:
                self._file = (self.path if self.path.exists() else Path(os.devnull)).open("rb")
            else:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab+")
        except OSError as error:
            raise UserError(f"{output} cannot be written: {why_unwritable(error)}") from None
        self._places, self._end = Places(), 0
        self._read()
        if not self.plan:
            self._file.truncate(self._end)

    def _read(self) -> None:
        """Find the whole lines' places, and where they end."""
        self._file.seek(0)
        for line in self._file:
            if not line.endswith(b"\n"):
                break
            if found := self._checked(line_of, line, self._end):
                self._places.add(found[0], self._end)
            self._end += len(line)

    def _checked(self, read: Callable, line: bytes, offset: int) -> tuple[str, str, str] | None:
        try:
            return read(line)
        except (ValueError, RecursionError):
            raise UserError(f"journal {self.path} is damaged at byte {offset}; mend or delete it") from None

    def get(self, request: str) -> tuple[str, str] | None:
        """(text, finish) of a finished request by its key, the last of several, or None."""
        for offset in self._places.of(request):
            found = self._checked(finished, self._line(offset), offset)
            if found and found[0] == request:
                if self.plan:
                    self.plan.found(*found[1:])
                return found[1:]
        return None

    def _line(self, offset: int) -> bytes:
        line = b""
        while b"\n" not in line and (more := os.pread(self._file.fileno(), AT_ONCE, offset + len(line))):
            line += more
        return line.partition(b"\n")[0]

    def add(self, request: str, text: str, finish: str) -> None:
        if self.plan:
            return
        row = {"key": request, "text": whole(text), "finish": finish}
        line = json.dumps(row, ensure_ascii=False).encode() + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:  # no space on the disk, or none left for this user
            with suppress(OSError):  # it would write once more
                self._file.close()
            raise UserError(f"{self.path} cannot be written: {why_unwritable(error)}") from None
        self._places.add(request, self._end)
        self._end += len(line)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._file.closed:  # it could not be written
            return
        if self.plan:
            pass
        elif self._places.count:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise UserError(f"{self.path} cannot be written: {why_unwritable(error)}") from None
        else:  # nothing happened: leave nothing behind
            self.path.unlink()
        self._file.close()
