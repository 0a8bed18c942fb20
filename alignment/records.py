r"""Files at the door: read by one set of rules, checked, trusted after; and written whole.

    prompts.txt                       one prompt a line; .jsonl and .parquet: {"prompt"}
    <model>-<demo>-<k>shot.json       [reply or null, ...], as long as the prompts; .jsonl and .parquet: {"response"}
    comparison.json                   [{"prompt", "chosen", "rejected", "meta": "a-vs-b"}, ...]; .jsonl; .parquet
    any rows                          .json (a list), .jsonl, .csv, each plain or .gz; .parquet; a hub data set's name

Prompts, replies and comparisons are read and written one by one, however many there are: `prompts_of`, `responses_of`,
`rows_of`; `read_...` gives lists.

The rules of every reader: a text is UTF-8, and a byte-order mark before it is no part of it. "\n" ends a line, and so
does "\r\n"; nothing else does: a lone "\r", U+0085, U+2028 and U+2029 are text. JSON has no NaN and no Infinity, and
text no lone surrogate. What cannot be used is a UserError that names file, row (from 0) or line (from 1), and remedy.

A file that exists is complete: it was written under a temporary name, synced, and renamed.
"""

from __future__ import annotations

import csv
import errno
import gzip
import json
import math
import os
import re
import select
import stat
import sys
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache, partial
from io import BytesIO, StringIO
from pathlib import Path
from typing import IO, Any, BinaryIO

from alignment import parquet
from alignment.command_line import UserError, why_unwritable
from alignment.hub import read_hub
from alignment.json_texts import SURROGATE, fault_of, list_values, not_utf8, parsed

BAD = "BAD"  # what the released code writes for a reply that its filter dropped
FILE_NAME = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$")
PROMPTS, RESPONSES = (".txt", ".jsonl", ".parquet"), (".json", ".jsonl", ".parquet")  # their forms, the usual one first
UNHEARD = 10_000  # milliseconds after which a pipe that nobody has opened for writing is given up


# Bytes, text, JSON


@cache
def piped(path: Path, device: int, inode: int) -> bytes:
    """What came through a pipe, which gives its bytes once: they are hashed and read, in either order."""
    opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # else it would wait for a writer, for ever
    with open(opened, "rb") as file:
        waiting = select.poll()
        waiting.register(file, select.POLLIN)
        if not waiting.poll(UNHEARD):
            raise TimeoutError(errno.ETIMEDOUT, "it is a pipe, and nothing writes into it")
        os.set_blocking(opened, True)
        return file.read()


@contextmanager
def opened(path: Path, what: str, *, unpack: bool = True) -> Iterator[BinaryIO]:
    """The bytes of a file or a pipe, those in a .gz. `what` names it in the UserError of any failure to read it."""
    try:
        found = path.stat()
        if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
            raise UserError(f"{what} {path} is a device, not a file")
        is_pipe = stat.S_ISFIFO(found.st_mode)
        with BytesIO(piped(path, found.st_dev, found.st_ino)) if is_pipe else path.open("rb") as file:
            yield gzip.GzipFile(fileobj=file) if unpack and path.suffix == ".gz" else file
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist") from None
    except IsADirectoryError:
        raise UserError(f"{what} {path} is a folder, not a file") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{what} {path} is no whole .gz: {error}") from None
    except OSError as error:
        raise UserError(f"{what} {path} cannot be read: {error.strerror or error}") from None


def decoded(raw: bytes, path: Path, what: str, start: int = 0) -> str:
    """The text of bytes that stand at `start` of a file."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise not_utf8(f"{what} {path}", start + error.start) from None
    return text if start else text.removeprefix("\ufeff")


def read_text(path: Path, what: str) -> str:
    """The text of a file, line ends as "\\n". `what` names it in errors: "prompt file", ..."""
    with opened(path, what) as file:
        text = decoded(file.read(), path, what).replace("\r\n", "\n")
    if not text or text.isspace():
        raise UserError(f"{what} {path} is empty")
    return text


def read_json(path: Path, what: str) -> Any:
    """The value of a JSON file, NaN as Python writes it among them: a card or a configuration. Rows: `read_rows`."""
    return parsed(read_text(path, what), f"{what} {path}")


def is_number(value: Any) -> bool:
    """Whether a value of a row can be compared with others: an int or a finite float, and no truth value."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


# Rows


def is_hub_name(source: str | Path) -> bool:
    """Whether a source of rows is no file: none is there, and it is not named as one."""
    return not FILE_NAME.search(str(source)) and not os.path.exists(source)


def read_rows(source: str | Path, what: str = "data") -> list[dict]:
    return list(rows_of(source, what))


def rows_of(source: str | Path, what: str = "data") -> Iterator[dict]:
    """The rows of a source, one at least, one by one but for .csv and the hub; `what` names it in errors.

    A name's end tells how they are written. Of a pipe, or a file of another name, the first character does: "[" opens a
    list, anything else is JSON Lines. A row that is no object, or holds what no reader takes, is refused. NaN in a
    table (.parquet, the hub) is left to the reader of its column, which takes it neither for text nor for a number.
    """
    path, kind = Path(source), Path(str(source).removesuffix(".gz")).suffix
    if is_hub_name(source):
        rows = read_hub(str(source), what)
    elif kind == ".parquet":
        rows = parquet_rows(path, what)
    elif kind == ".csv":
        rows = read_csv(path, what)
    elif kind == ".jsonl" or kind != ".json" and not opens_a_list(path, what):
        rows = lines_of(path, what)
    else:
        rows = list_of(path, what)
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise UserError(f"{what} {source} has no rows")
    yield first
    yield from rows


def opens_a_list(path: Path, what: str) -> bool:
    with opened(path, what) as file:
        return re.match(rb"(\xef\xbb\xbf)?\s*\[", file.read(1024)) is not None


def list_of(path: Path, what: str) -> Iterator[dict]:
    """The rows of a JSON list, one by one."""
    with opened(path, what) as file:
        for number, row in enumerate(list_values(file, f"{what} {path}", "rows")):
            check_row(row, f"{what} {path}, row {number}", "is")
            yield row


def lines_of(path: Path, what: str) -> Iterator[dict]:
    """The rows of JSON Lines, one by one."""
    start, is_empty = 0, True
    with opened(path, what) as file:
        for number, line in enumerate(file, 1):  # of bytes: nothing but b"\n" ends one
            text, place = decoded(line, path, what, start), f"{what} {path}, line {number}"
            start += len(line)
            if text.strip():
                row, is_empty = parsed(text, place, is_line=True), False
                check_row(row, place, "holds")
                yield row
    if is_empty:
        raise UserError(f"{what} {path} is empty")


def read_csv(path: Path, what: str) -> list[dict]:
    """The rows of a table whose first line names the columns. Cells are texts, empty ones too."""
    csv.field_size_limit(sys.maxsize)
    with opened(path, what) as file:
        text = decoded(file.read(), path, what)
    table = csv.reader(StringIO(text, newline=""), strict=True)
    try:
        head = next(table, [])
        if len(set(head)) < len(head):
            raise UserError(f"{what} {path} has two columns of one name: {', '.join(head)}")
        rows = []
        for number, cells in enumerate(filter(None, table)):  # what is empty is a blank line
            if len(cells) != len(head):
                raise UserError(f"{what} {path}, row {number} has {len(cells)} cells, and the first line {len(head)}")
            rows.append(dict(zip(head, cells, strict=True)))
    except csv.Error as error:
        raise UserError(f"{what} {path}, line {table.line_num} is no CSV: {error}") from None
    return rows


def check_row(row: Any, place: str, verb: str) -> None:
    if not isinstance(row, dict):
        raise UserError(f"{place} {verb} a {type(row).__name__}, not an object")
    for key, value in row.items():
        if fault := fault_of([key, value]):
            raise UserError(f"{place}: {key!r} {fault}")


def parquet_rows(path: Path, what: str, column: str | None = None) -> Iterator[dict]:
    """The rows of a table, one by one, of all columns or of one."""
    with opened(path, what) as file:
        yield from parquet.rows(file, f"{what} {path}", column)


# Prompts, replies, comparisons: as many as there are


def found(folder: Path, name: str, forms: Sequence[str]) -> Path | None:
    """The file of a name in one of its forms, or None. Raises UserError where it is there in two."""
    there = [path for form in forms if (path := folder / f"{name}{form}").exists()]
    if len(there) > 1:
        raise UserError(f"both {there[0]} and {there[1].name} are there; remove the one that is not meant")
    return there[0] if there else None


def to_write(folder: Path, name: str, forms: Sequence[str], kind: str | None) -> Path:
    """The file of a name in the form that --file_type asks for, by default the usual one. Raises UserError where it is
    there in another: its readers would not know which is meant."""
    path = folder / f"{name}{forms[0] if kind in (None, 'json') else f'.{kind}'}"
    if (there := found(folder, name, forms)) not in (None, path):
        raise UserError(f"{there} is there already; remove it, or give the --file_type of its name")
    return path


def prompts_file(folder: Path) -> Path:
    path = found(folder, "prompts", PROMPTS)
    if path is None:
        missing = folder / "prompts.txt"
        raise UserError(f"{missing} does not exist; make it with --mode pg, or put one prompt a line there")
    return path


def rows_under(path: Path, what: str, column: str) -> Iterator[Any]:
    """What .jsonl or .parquet has in a column, one by one."""
    rows = parquet_rows(path, what, column) if path.suffix == ".parquet" else lines_of(path, what)
    for number, row in enumerate(rows):
        if column not in row:
            raise UserError(f"{what} {path}, row {number} has no {column!r}, but {', '.join(row) or 'nothing'}")
        yield row[column]


def prompts_of(path: Path) -> Iterator[str]:
    """The prompts of a file, one by one, none of them blank: every response file is aligned with them."""
    if path.suffix in PROMPTS[1:]:
        number = -1
        for number, prompt in enumerate(rows_under(path, "prompts", "prompt")):
            if not isinstance(prompt, str) or not prompt.strip():
                raise UserError(f"prompts {path}, row {number} has no text under 'prompt'")
            yield prompt
        if number < 0:
            raise UserError(f"prompts {path} is empty")
        return
    start, blank, is_empty = 0, 0, True
    with opened(path, "prompts") as file:
        for number, raw in enumerate(file, 1):
            line = decoded(raw, path, "prompts", start)
            start += len(raw)
            blank = blank or (0 if line.strip() else number)
            is_empty = is_empty and not line.strip()
            if not blank:
                yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
            elif not is_empty:
                break
    if is_empty:
        raise UserError(f"prompts {path} is empty")
    if blank:
        raise UserError(f"prompts {path}, line {blank} is blank; remove it before any response is generated")


def read_prompts(path: Path) -> list[str]:
    return list(prompts_of(path))


def one_line(text: str) -> str | None:
    """A text, stripped, as a line that `read_prompts` reads as it was written; None where a line cannot hold it: it is
    blank, has several lines, opens with a byte-order mark, or has a lone surrogate."""
    text = text.strip()
    return text if text and "\n" not in text and text[0] != "\ufeff" and not SURROGATE.search(text) else None


def replies_of(path: Path) -> Iterator[str | None]:
    """The replies of a response file, one by one, null where none came. Files of the released code are read too."""
    what = "response file"
    with ExitStack() as files:
        if path.suffix in RESPONSES[1:]:
            replies = rows_under(path, what, "response")
        else:
            replies = list_values(files.enter_context(opened(path, what)), f"{what} {path}", "replies")
        for row, reply in enumerate(replies):
            is_reply = reply is None or isinstance(reply, str)
            if fault := fault_of(reply) if is_reply else f"is a {type(reply).__name__}, not a string or null":
                raise UserError(f"{what} {path}, row {row} {fault}")
            yield reply


def responses_of(path: Path, num_prompts: int, limit: int | None = None) -> Iterator[str | None]:
    """One reply per prompt; after the last a UserError where there are not as many, or with a `limit` fewer."""
    count = 0
    for count, reply in enumerate(replies_of(path), 1):
        if count <= num_prompts:
            yield reply
    more = count - num_prompts
    if more < 0 or (more > 0 and limit is None):
        told = f"{abs(more)} {'more' if more > 0 else 'fewer'} than the {num_prompts} prompts"
        remedy = "it was made for another prompts.txt" if more > 0 else "complete it with --mode rg, or give --limit"
        raise UserError(f"response file {path} has {count} replies, {told}; {remedy}")


def read_responses(path: Path, num_prompts: int, limit: int | None = None) -> list[str | None]:
    return list(responses_of(path, num_prompts, limit))


def write_prompts(path: Path, prompts: Iterable[str]) -> None:
    if path.suffix in PROMPTS[1:]:
        write_rows(path, ({"prompt": prompt} for prompt in prompts), like={"prompt": ""})
    else:
        write_whole(path, (prompt + "\n" for prompt in prompts))


def write_responses(path: Path, replies: Iterable[str | None]) -> None:
    if path.suffix in RESPONSES[1:]:
        write_rows(path, ({"response": reply} for reply in replies), like={"response": ""})
    else:
        write_whole(path, json_list(replies))


# Written whole


def json_list(rows: Iterable[Any]) -> Iterator[str]:
    """The text of a JSON list, one row a line, in pieces, so that no more than a row is held."""
    separator = "[\n"
    for row in rows:
        yield separator + json.dumps(row, ensure_ascii=False)
        separator = ",\n"
    yield "\n]\n" if separator == ",\n" else "[]\n"


def write_rows(path: Path, rows: Iterable[dict], like: dict) -> None:
    """Write rows as they come, in the form that the name's end tells; all have the keys, and texts at the places, that
    `like` has."""
    if path.suffix == ".parquet":
        with writing_whole(path, mode="xb") as file:
            parquet.write(file, rows, like, partial(refusing, path))
    elif path.suffix == ".jsonl":
        write_whole(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        write_whole(path, json_list(rows))


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Write text so that a crash leaves the old file or the new one, never a part, and of writers at once the last
    one's. Makes the folder."""
    # Half a character can come from a file's name alone, as no reader takes one; its escape is JSON
    how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n", "buffering": 1 << 20}
    with writing_whole(path, mode="x", **how) as file:
        for piece in pieces:
            try:
                file.write(piece)
            except OSError as error:
                raise unwritable(path, error) from None


@contextmanager
def writing_whole(path: Path, **how: Any) -> Iterator[IO]:
    """A file under a temporary name in the same folder, opened as `how` says, which is synced and takes the place of
    `path` where nothing is raised. Makes the folder."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        with refusing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            file = temporary.open(**how)
        try:
            yield file  # what makes the rows may raise anything, also an OSError of its own
            with refusing(path):
                file.flush()
                os.fsync(file.fileno())
        finally:
            with suppress(OSError):  # where it could not be written, it would write once more
                file.close()
        with refusing(path):
            os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have none for folders; the file is whole
            os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """A UserError of what the file system says: no space, no permission."""
    try:
        yield
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError) -> UserError:
    return UserError(f"{path} cannot be written: {why_unwritable(error)}")
