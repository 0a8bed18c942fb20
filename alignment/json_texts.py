"""JSON as every reader takes it: parsed in one go, or a list of any size value by value; and the place of its faults.

    value = parsed(text, "run card a.json.run.json")
    for reply in list_values(file, "response file a.json", "replies"): ...

What in a value no reader takes is said by `fault_of`.
"""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NoReturn

from alignment.command_line import UserError

AT_ONCE = 1 << 20  # bytes of a list that are read in one go
BLANK = re.compile(r"[ \t\n\r]*")
SURROGATE = re.compile("[\ud800-\udfff]")
TOKEN = 16  # characters that a literal, number or escape may lack at the end of what is read, and more


def not_utf8(place: str, at: int) -> UserError:
    return UserError(f"{place} is not UTF-8 (byte {at}); save it as UTF-8")


def parsed(text: str, place: str, *, is_line: bool = False) -> Any:
    """What a JSON text holds. `place` names its file and, of JSON Lines, its line."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse_json(error, place, is_line=is_line)


def refuse_json(error: Exception, place: str, *, is_line: bool = False, before: tuple[int, int] = (0, 0)) -> NoReturn:
    """Raise the UserError of what a decoder raised; `before` are lines and, of the last one, characters before its
    text."""
    if isinstance(error, json.JSONDecodeError):
        lines, column = before
        column = error.colno + (column if error.lineno == 1 else 0)
        at = f"column {column}" if is_line else f"line {lines + error.lineno}, column {column}"
        remedy = "; rows that are a line each go into .jsonl" if error.msg == "Extra data" and not is_line else ""
        raise UserError(f"{place} is no JSON: {at}: {error.msg}{remedy}") from None
    if isinstance(error, RecursionError):
        raise UserError(f"{place} is nested too deeply to be read") from None
    raise UserError(f"{place} has a whole number of more digits than Python reads (4300)") from None


def list_values(file: BinaryIO, place: str, of: str) -> Iterator[Any]:
    """The values of a JSON list, one after the other, of which no more is held than a part of the file or a value.

    Raises UserError, after the values before it, where the file is no JSON, is empty, or holds something else: `of`
    says what it should be a list of. The decoder is Python's own, so that what is taken, and what is said of a fault,
    are those of `parsed`; the streaming parsers that there are take and say other things.
    """
    text = Window(file, place)
    opens = text.next_character()
    if not opens:
        raise UserError(f"{place} is empty")
    if opens != "[":
        value = text.value()
        text.end()
        raise UserError(f"{place} holds a {type(value).__name__}, not a list of {of}")
    text.at += 1
    if text.next_character() == "]":
        text.at += 1
        return text.end()
    while True:
        yield text.value()
        follows = text.next_character()
        text.at += 1
        if follows == "]":
            return text.end()
        if follows != ",":
            text.refuse("Expecting ',' delimiter", text.at - 1)


class Window:
    """A part of a file's text, read on from `at`."""

    def __init__(self, file: BinaryIO, place: str):
        self._file, self._place = file, place
        self._decoder, self._decode = codecs.getincrementaldecoder("utf-8")(), json.JSONDecoder().raw_decode
        self._text, self._size, self._is_whole = "", 0, False
        self.at, self._before = 0, (0, 0)  # lines before the text, and characters of the line that it begins in
        while not self._text and not self._is_whole:
            self._more()
        self._text = self._text.removeprefix("\ufeff")

    def next_character(self) -> str:
        """What follows the blanks, "" at the end of the file."""
        self.at = BLANK.match(self._text, self.at).end()
        while self.at == len(self._text) and not self._is_whole:
            self._more()
            self.at = BLANK.match(self._text, self.at).end()
        return self._text[self.at : self.at + 1]

    def value(self) -> Any:
        self.next_character()
        while True:
            try:
                value, end = self._decode(self._text, self.at)
                if self._is_whole or end + TOKEN < len(self._text):  # else a number may go on
                    self.at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self._is_whole or not self._may_be_cut(error):
                    refuse_json(error, self._place, before=self._before)
            self._more()

    def end(self) -> None:
        """Refuse what follows the list."""
        if self.next_character():
            self.refuse("Extra data", self.at)

    def refuse(self, what: str, at: int) -> NoReturn:
        refuse_json(json.JSONDecodeError(what, self._text, at), self._place, before=self._before)

    def _may_be_cut(self, error: Exception) -> bool:
        """Whether more text can mend a fault: a string does not end, or it is at the end of what was read."""
        if not isinstance(error, json.JSONDecodeError):
            return False
        return error.msg.startswith("Unterminated string") or error.pos > len(self._text.rstrip()) - TOKEN

    def _more(self) -> None:
        """Forget what is read, and read as much again as is left, AT_ONCE at least."""
        read, self._text = self._text[: self.at], self._text[self.at :]
        lines, characters = self._before
        newline = read.rfind("\n")
        self._before = lines + read.count("\n"), len(read) - newline - 1 + (characters if newline < 0 else 0)
        self.at = 0
        waiting = len(self._decoder.getstate()[0])
        raw = self._file.read(max(AT_ONCE, len(self._text)))
        self._is_whole = not raw
        try:
            self._text += self._decoder.decode(raw, final=not raw)
        except UnicodeDecodeError as error:
            raise not_utf8(self._place, self._size - waiting + error.start) from None
        self._size += len(raw)


def fault_of(value: Any) -> str | None:
    """What in a value from JSON no reader takes, or None."""
    waiting = [value]  # no recursion: a row may be nested more deeply than Python calls
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            if not value.isascii() and SURROGATE.search(value):
                return "holds a lone surrogate, which is half of a character; remove it"
        elif isinstance(value, float):
            if not math.isfinite(value):
                return "holds NaN or Infinity, which are no JSON; write null where a value is missing"
        elif isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list):
            waiting += value
    return None
