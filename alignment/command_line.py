"""The command line around a script: argument types, one-line errors, progress, tables.

A script is `parse_args(argv=None)` and `main(args)`, joined by `run(parse_args, main)`. Imports nothing heavy, so
`--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from alignment.secrecy import without_key

LONGEST = 180  # bytes of an output's name, to which endings of 75 are added: file systems take 255
REPOSITORY = Path(__file__).resolve().parent.parent


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what, where, and what to do."""


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with underscores and dashes alike, and a mistake answered in one line that names the nearest flag."""

    def __init__(self, description: str, **kwargs: Any):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
            **kwargs,
        )

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        argv = [self._underscored(word) for word in (sys.argv[1:] if args is None else args)]
        known, unknown = self.parse_known_args(argv, namespace)
        if unknown:
            flag = unknown[0].split("=")[0]
            self.error(f"unknown argument {flag}{nearest(flag, self._option_string_actions)}")
        return known

    def parse_known_args(self, args=None, namespace=None):
        known, unknown = super().parse_known_args(args, namespace)
        for name, found in vars(known).items():
            for value in found if isinstance(found, list) else [found]:
                if fault := fault_of_value(name, value):
                    self.error(f"argument --{name}: {fault}")
        return known, unknown

    def _underscored(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        renamed = "--" + flag[2:].replace("-", "_")
        is_known = flag.startswith("--") and flag not in self._option_string_actions
        return renamed + equals + value if is_known and renamed in self._option_string_actions else word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"{value!r} is none of {choices}{nearest(str(value), action.choices)}")

    def error(self, message: str) -> NoReturn:
        refuse(f"{self.prog}: error: {message}")


def fault_of_value(name: str, value: Any) -> str | None:
    """Why no script can do with a flag's value: a number that is none or does not fit, an output that has no name, or
    one to which no ending can be added."""
    if isinstance(value, float) and not math.isfinite(value):
        return f"{value} is no finite number"
    if isinstance(value, int) and not (0 <= value < 2**32 if name == "seed" else abs(value) < 2**63):
        return f"{value} is out of range" + (": from 0 to 4294967295" if name == "seed" else "")
    if name in ("output_file", "output_path") and value is not None and str(value) in ("", ".", "..", "/"):
        return f"{str(value)!r} is no file's name"
    if (
        name.startswith("output_")
        and isinstance(value, Path)
        and any(len(os.fsencode(p)) > LONGEST for p in value.parts)
    ):
        return f"a name in it has more than {LONGEST} bytes"
    return None


def is_first() -> bool:
    """Whether this process speaks and writes: the first of those that torchrun started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def say(*words: object) -> None:
    """print, from one process of those that torchrun started."""
    if is_first():
        print(*words, flush=True)


def warn(line: str) -> None:
    """A line on stderr, from one process of those that torchrun started."""
    if is_first():
        print(f"warning: {without_key(line)}", file=sys.stderr, flush=True)


def refuse(line: str) -> NoReturn:
    """Exit with code 2 and this line. Of processes that torchrun started the first says it, the others wait for it."""
    if is_first():
        print(without_key(line), file=sys.stderr)
    else:
        time.sleep(5)  # torchrun stops all once one has ended
    sys.exit(2)


def boolean(text: str) -> bool:
    """`True` / `False` as the papers' commands spell them. Use with `nargs="?", const=True`."""
    if text.lower() in ("true", "yes", "1"):
        return True
    if text.lower() in ("false", "no", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither True nor False")


def number(kind: type, low: float, high: float = float("inf"), *, above: bool = False) -> Callable[[str], Any]:
    """A type for argparse: an int or float in [low, high], or in (low, high] with `above`."""

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is no {kind.__name__}") from None
        if not (low < value if above else low <= value) or not value <= high:
            least = f"more than {low}" if above else f"at least {low}"
            most = f" and at most {high}" if high != float("inf") else ""
            raise argparse.ArgumentTypeError(f"{text} is out of range: {least}{most}")
        return value

    return parse


def run(parse_args: Callable[[], argparse.Namespace], main: Callable[[argparse.Namespace], None]) -> NoReturn:
    """Run a script. The user's mistakes end with exit code 2 and one line, an interrupt with 130."""
    script = Path(main.__code__.co_filename).name
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at import of kernels that nothing here needs
    warnings.filterwarnings("ignore", "CUDA initialization:")  # pretrained.warn_of_unseen_gpu says it in a line
    try:
        main(parse_args())
    except UserError as error:
        refuse(f"{script}: error: {error}")
    except KeyboardInterrupt:
        print(f"\n{script}: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    sys.exit(0)


class Progress:
    """A bar with rate, ETA and failures on a terminal; off one, a line every half minute."""

    def __init__(self, total: int, label: str, unit: str = "request"):
        from tqdm import tqdm

        interval = 0.1 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=total, desc=label, unit=unit, mininterval=interval, maxinterval=interval, leave=False)
        self.failed = 0

    def update(self, failed: bool = False) -> None:
        if failed:
            self.failed += 1
            self._bar.set_postfix(failed=self.failed, refresh=False)
        self._bar.update()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()


def table(rows: Sequence[Sequence[object]]) -> str:
    """Rows, the first of which is the head, as aligned text: first column to the left, the others to the right."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines)
