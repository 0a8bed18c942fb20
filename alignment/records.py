r"""Files at the door: read by one set of rules, checked, trusted after; written whole; and known by their contents.

    prompts.txt                       one prompt a line
    <model>-<demo>-<k>shot.json       [reply or null, ...], as long as prompts.txt
    comparison.json                   [{"prompt", "chosen", "rejected", "meta": "a-vs-b"}, ...]
    any rows                          .json (a list), .jsonl, .csv, each plain or .gz; .parquet; a hub data set's name

The rules of every reader: a text is UTF-8, and a byte-order mark before it is no part of it. "\n" ends a line, and so
does "\r\n"; nothing else does: a lone "\r", U+0085, U+2028 and U+2029 are text. JSON has no NaN and no Infinity, and
text no lone surrogate. What cannot be used is a UserError that names file, row (from 0) or line (from 1), and remedy.

A file that exists is complete: it was written under a temporary name, synced, and renamed.
"""

from __future__ import annotations

import csv
import errno
import gzip
import hashlib
import json
import math
import os
import re
import select
import stat
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any, BinaryIO

from alignment.command_line import UserError, why_unwritable

BAD = "BAD"  # what the released code writes for a reply that its filter dropped
FILE_NAME = re.compile(r"\.(jsonl?|csv|parquet)(\.gz)?$")
REMEMBERED_FROM = 16 << 20  # bytes; a smaller file is hashed again in no time
SURROGATE = re.compile("[\ud800-\udfff]")
UNHEARD = 10_000  # milliseconds after which a pipe that nobody has opened for writing is given up
SETTLED = 2_000_000_000  # nanoseconds after which a file system tells another write by its times


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
        raise UserError(f"{what} {path} is not UTF-8 (byte {start + error.start}); save it as UTF-8") from None
    return text if start else text.removeprefix("\ufeff")


def read_text(path: Path, what: str) -> str:
    """The text of a file, line ends as "\\n". `what` names it in errors: "prompt file", ..."""
    with opened(path, what) as file:
        text = decoded(file.read(), path, what).replace("\r\n", "\n")
    if not text or text.isspace():
        raise UserError(f"{what} {path} is empty")
    return text


def parsed(text: str, place: str, *, is_line: bool = False) -> Any:
    """What a JSON text holds. `place` names its file and, of JSON Lines, its line."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        at = f"column {error.colno}" if is_line else f"line {error.lineno}, column {error.colno}"
        remedy = "; rows that are a line each go into .jsonl" if error.msg == "Extra data" and not is_line else ""
        raise UserError(f"{place} is no JSON: {at}: {error.msg}{remedy}") from None
    except RecursionError:
        raise UserError(f"{place} is nested too deeply to be read") from None
    except ValueError:
        raise UserError(f"{place} has a whole number of more digits than Python reads (4300)") from None


def read_json(path: Path, what: str) -> Any:
    """The value of a JSON file, NaN as Python writes it among them: a card or a configuration. Rows: `read_rows`."""
    return parsed(read_text(path, what), f"{what} {path}")


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


def is_number(value: Any) -> bool:
    """Whether a value of a row can be compared with others: an int or a finite float, and no truth value."""
    return type(value) is int or (type(value) is float and math.isfinite(value))


# Rows


def is_hub_name(source: str | Path) -> bool:
    """Whether a source of rows is no file: none is there, and it is not named as one."""
    return not FILE_NAME.search(str(source)) and not os.path.exists(source)


def read_rows(source: str | Path, what: str = "data") -> list[dict]:
    """The rows of a source, one at least; `what` names it in errors.

    A name's end tells how they are written. Of a pipe, or a file of another name, the first character does: "[" opens a
    list, anything else is JSON Lines. A row that is no object, or holds what no reader takes, is refused. NaN in a
    table (.parquet, the hub) is left to the reader of its column, which takes it neither for text nor for a number.
    """
    path, kind = Path(source), Path(str(source).removesuffix(".gz")).suffix
    if is_hub_name(source):
        rows = read_hub(str(source), what)
    elif kind == ".parquet":
        rows = read_parquet(path, what)
    elif kind == ".csv":
        rows = read_csv(path, what)
    elif kind == ".jsonl" or kind != ".json" and not opens_a_list(path, what):
        rows = read_lines(path, what)
    else:
        rows = read_json(path, what)
        if not isinstance(rows, list):
            raise UserError(f"{what} {path} holds a {type(rows).__name__}, not a list of rows")
        for number, row in enumerate(rows):
            check_row(row, f"{what} {path}, row {number}", "is")
    if not rows:
        raise UserError(f"{what} {source} has no rows")
    return rows


def opens_a_list(path: Path, what: str) -> bool:
    with opened(path, what) as file:
        return re.match(rb"(\xef\xbb\xbf)?\s*\[", file.read(1024)) is not None


def read_lines(path: Path, what: str) -> list[dict]:
    rows, start = [], 0
    with opened(path, what) as file:
        for number, line in enumerate(file, 1):  # of bytes: nothing but b"\n" ends one
            text, place = decoded(line, path, what, start), f"{what} {path}, line {number}"
            start += len(line)
            if text.strip():
                rows.append(parsed(text, place, is_line=True))
                check_row(rows[-1], place, "holds")
    if not rows:
        raise UserError(f"{what} {path} is empty")
    return rows


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


def read_parquet(path: Path, what: str) -> list[dict]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{what} {path}: reading parquet needs the package pyarrow; pip install pyarrow") from None
    with opened(path, what) as file:
        try:  # without threads: one that is still at another column of a broken file aborts the process at its end
            return pyarrow.parquet.ParquetFile(file).read(use_threads=False).to_pylist()
        except UnicodeDecodeError as error:
            raise UserError(f"{what} {path} has a text that is not UTF-8: {error.object[:40]!r}") from None
        except (pyarrow.ArrowException, OSError) as error:
            raise UserError(f"{what} {path} is no parquet file: {error}".split("\n")[0]) from None
        except (ValueError, OverflowError) as error:  # a time of the year 38,500
            raise UserError(f"{what} {path} has a value that cannot be read: {error}") from None


@cache
def read_hub(name: str, what: str) -> list[dict]:
    """The train split of a data set on the hub, or in its cache. It is asked for twice: to hash it, and to use it."""
    if name.count("/") != 1 or name.startswith((".", "/")):
        raise UserError(f"{what} {name} does not exist (and is no owner/name of the hub)")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{what} {name}: the hub needs the package datasets; pip install datasets") from None
    try:
        return datasets.load_dataset(name, split="train").to_list()
    except (datasets.exceptions.DatasetNotFoundError, ConnectionError, ValueError, FileNotFoundError) as error:
        raise UserError(f"{what} {name} does not exist here nor on the hub: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:  # it is a script, which datasets runs no more
        raise UserError(f"{what} {name} cannot be had: {str(error).splitlines()[0]}; give one of its files") from None


def hub_file(repository: str, name: str, what: str, remedy: str) -> Path:
    """A file of a data set on the hub, from there or from its cache. Raises UserError, which ends in the remedy."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{what} cannot be had from the hub ({reason}); {remedy}") from None


# Prompts and replies


def read_prompts(path: Path) -> list[str]:
    """prompts.txt. A blank line inside is an error: every response file is aligned with the lines."""
    lines = read_text(path, "prompts").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            raise UserError(f"prompts {path}, line {number} is blank; remove it before any response is generated")
    return lines


def one_line(text: str) -> str | None:
    """A text, stripped, as a line that `read_prompts` reads as it was written; None where a line cannot hold it: it is
    blank, has several lines, opens with a byte-order mark, or has a lone surrogate."""
    text = text.strip()
    return text if text and "\n" not in text and text[0] != "\ufeff" and not SURROGATE.search(text) else None


def read_responses(path: Path, num_prompts: int, limit: int | None = None) -> list[str | None]:
    """One reply per prompt, null where none came; the first `limit`. Files of the released code are read too."""
    rows = read_json(path, "response file")
    if not isinstance(rows, list):
        raise UserError(f"response file {path} holds a {type(rows).__name__}, not a list of replies")
    more = len(rows) - num_prompts
    if more < 0 or (more > 0 and limit is None):
        told = f"{abs(more)} {'more' if more > 0 else 'fewer'} than the {num_prompts} prompts"
        remedy = "it was made for another prompts.txt" if more > 0 else "complete it with --mode rg, or give --limit"
        raise UserError(f"response file {path} has {len(rows)} replies, {told}; {remedy}")
    for row, reply in enumerate(rows):
        is_reply = reply is None or isinstance(reply, str)
        if fault := fault_of(reply) if is_reply else f"is a {type(reply).__name__}, not a string or null":
            raise UserError(f"response file {path}, row {row} {fault}")
    return rows[:num_prompts]


# Written whole


def json_list(rows: Iterable[Any]) -> Iterator[str]:
    """The text of a JSON list, one row a line, in pieces, so that no more than a row is held."""
    separator = "[\n"
    for row in rows:
        yield separator + json.dumps(row, ensure_ascii=False)
        separator = ",\n"
    yield "\n]\n" if separator == ",\n" else "[]\n"


def write_whole(path: Path, pieces: Iterable[str]) -> None:
    """Write text so that a crash leaves the old file or the new one, never a part, and of writers at once the last
    one's. Makes the folder."""
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Half a character can come from a file's name alone, as no reader takes one; its escape is JSON
        how = {"encoding": "utf-8", "errors": "backslashreplace", "newline": "\n", "buffering": 1 << 20}
        with temporary.open("x", **how) as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # no space, no permission
            raise UserError(f"{path} cannot be written: {why_unwritable(error)}") from None
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems have none for folders; the file is whole
            os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)


# Known by their contents


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
