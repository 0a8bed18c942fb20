"""Tables in Parquet, batch by batch: rows out of a file, and into one.

for row in rows(file, "prompts prompts.parquet", "prompt"): ...
write(file, ({"prompt": text} for text in texts), like={"prompt": ""})
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from typing import BinaryIO

from alignment.command_line import UserError

ROWS = 4_096  # that are held at a time, and of which a row group is made


def rows(file: BinaryIO, place: str, column: str | None = None) -> Iterator[dict]:
    """The rows of a file, with all columns or one. `place` opens the UserError where it is no such table."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{place}: reading parquet needs the package pyarrow; pip install pyarrow") from None
    try:
        table = pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20)
        if column and column not in (there := table.schema_arrow.names):
            raise UserError(f"{place} has no column {column!r}, but {', '.join(there) or 'none'}")
        # Without threads: one that is still at another column of a broken file aborts the process at its end
        for batch in table.iter_batches(ROWS, columns=[column] if column else None, use_threads=False):
            yield from batch.to_pylist()
    except UnicodeDecodeError as error:
        raise UserError(f"{place} has a text that is not UTF-8: {error.object[:40]!r}") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{place} is no parquet file: {error}".split("\n")[0]) from None
    except (ValueError, OverflowError) as error:  # a time of the year 38,500
        raise UserError(f"{place} has a value that cannot be read: {error}") from None


def write(file: BinaryIO, given: Iterable[dict], like: dict, refusing: Callable[[], AbstractContextManager]) -> None:
    """Write rows that have the keys, and texts at the places, that `like` has. Raises UserError without pyarrow, and
    what `refusing` makes of a write that failed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError("writing parquet needs the package pyarrow; pip install pyarrow") from None
    given, schema = iter(given), pyarrow.Table.from_pylist([like]).schema
    with refusing():
        writer = pyarrow.parquet.ParquetWriter(file, schema)
    try:
        while some := list(islice(given, ROWS)):
            with refusing():
                writer.write_table(pyarrow.Table.from_pylist(some, schema))
        with refusing():
            writer.close()
    finally:
        writer.is_open = False  # else it would write once more as it goes
