"""The command line around a script: argument types, one-line errors, progress, tables.

A script is `parse_args(argv=None)` and `main(args)`, joined by `run(parse_args, main)`. Imports nothing heavy, so
`--help` answers at once.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import logging
import os
import re
import reprlib
import socket
import subprocess
import sys
import time
import tomllib
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from alignment.config_files import read_config, words_of
from alignment.flag_values import fault_of_text, fault_of_value
from alignment.secrecy import without_key

if TYPE_CHECKING:
    from tqdm import tqdm

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REPOSITORY = Path(__file__).resolve().parent.parent
# Other tools' flags, and ours for the same; of several the first that a script has
MODEL, LENGTH = "model_name_or_path base_model_name_or_path base_model", "model_max_length cutoff_len max_model_len"
DATA, OUTPUT = "data_path prompt_file_path", "output_dir output_file output_path"
ELSEWHERE = {
    **dict.fromkeys("model model_name model_path model_id base_model model_name_or_path".split(), MODEL),
    **dict.fromkeys("dataset dataset_name dataset_path data_file train_file data_path".split(), DATA),
    **dict.fromkeys("max_length max_seq_length max_seq_len cutoff_len block_size".split(), LENGTH),
    **dict.fromkeys("use_peft lora_rank lora_dim rank".split(), "lora_r"),
    **dict.fromkeys("num_epochs epochs num_train_epochs".split(), "num_train_epochs num_epochs"),
    **dict.fromkeys("output output_dir output_file output_path".split(), OUTPUT),
    **dict.fromkeys("batch_size train_batch_size".split(), "per_device_train_batch_size rollout_batch_size"),
    **dict.fromkeys("max_tokens max_completion_length".split(), "max_new_tokens"),
    "lr": "learning_rate",
    **dict.fromkeys("tensor_parallel_size num_gpus".split(), "n_gpu"),
}


class UserError(Exception):
    """A mistake the user can mend. The message is one line: what, where, and what to do. Line ends and control
    characters, which names of files, columns and roles may hold, are blanks in it."""

    def __init__(self, message: object):
        super().__init__(re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+", " ", str(message)))


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?` for the closest of `words`, or nothing."""
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


class ArgumentParser(argparse.ArgumentParser):
    """argparse with underscores and dashes alike, --config and --version, and a mistake answered in one line that names
    the nearest flag."""

    def __init__(self, description: str, **kwargs: Any):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32, width=110),
            **kwargs,
        )
        self.places: dict[str, str] = {}  # of flags that a --config gave
        self.add_argument("--config", metavar="FILE", help="flags from a YAML file; those given here win over it")
        shown = "say the version and the commit, and exit"
        self.add_argument("--version", action=Version, nargs=0, default=argparse.SUPPRESS, help=shown)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        words = self.words(args)
        flags = [word.split("=")[0] for word in words[: words.index("--") if "--" in words else None]]
        unknown = [flag for flag in flags if flag.startswith("--") and flag not in self._option_string_actions]
        if not unknown:
            known, unknown = self.parse_known_args(words, namespace)
        if unknown:  # before what is missing: it may be the same flag under another name
            self.refuse_unknown(unknown[0])
        return known

    def parse_known_args(self, args=None, namespace=None):
        known, unknown = super().parse_known_args(args, namespace)
        known.__dict__.pop("config", None)  # `words` has put its content in its place
        return known, unknown

    def words(self, argv: Sequence[str] | None = None) -> list[str]:
        """A command line with underscores for dashes, and for each --config FILE those of its flags that are not given
        otherwise."""
        given = [self._underscored(word) for word in (sys.argv[1:] if argv is None else argv)]
        end = given.index("--") if "--" in given else len(given)
        words, files, rest = [], [], iter(given[:end])
        for word in rest:
            flag, equals, value = word.partition("=")
            if flag == "--config":
                files.append(value if equals else next(rest, ""))
            else:
                words.append(word)
        for file in files:
            taken = {word.split("=")[0] for word in words}
            words += self._words_of(file, taken)
        for flag in (word.split("=")[0] for word in words if word.startswith("--")):
            if flag not in self._option_string_actions and self._ours(flag):
                self.refuse_unknown(flag)
        return words + given[end:]

    def _ours(self, flag: str) -> str | None:
        """What another tool's flag is called here."""
        names = [f"--{name}" for name in ELSEWHERE.get(flag.removeprefix("--"), "").split()]
        return next((name for name in names if name in self._option_string_actions), None)

    def _words_of(self, file: str, taken: set[str]) -> list[str]:
        """The flags of a configuration file but for those that are `taken`, under any of their names."""
        words = []
        try:
            for name, line, value in read_config(file):
                flag = "--" + name.replace("-", "_")
                action = self._option_string_actions.get(flag)
                if taken.isdisjoint(action.option_strings if action else [flag]) and value is not None:
                    self.places[flag] = f"config {file}, line {line}"
                    words += words_of(flag, value, action.nargs if action else "*")
        except ValueError as error:
            self.error(f"argument --config: {error}")
        return words

    def refuse_unknown(self, flag: str, more: Iterable[str] = ()) -> NoReturn:
        """Say that there is no such flag, and what it is called here, or is near. `more` are flags that are somebody
        else's."""
        ours = self._ours(flag)
        hint = f"; here it is {ours}" if ours else nearest(flag, [*self._option_string_actions, *more])
        if flag == "--device":
            hint = "; GPUs are those that CUDA_VISIBLE_DEVICES names, and torchrun starts a process on each"
        self.error(f"unknown argument {flag}{hint}")

    def _underscored(self, word: str) -> str:
        flag, equals, value = word.partition("=")
        renamed = "--" + flag[2:].replace("-", "_")
        is_known = flag.startswith("--") and flag not in self._option_string_actions
        return renamed + equals + value if is_known and renamed in self._option_string_actions else word

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        text = os.path.expanduser(arg_string)
        fault = fault_of_text(action.dest, text) if arg_string != action.default else None
        value = None if fault else super()._get_value(action, text)
        if fault := fault or fault_of_value(action.dest, value):
            raise argparse.ArgumentError(action, fault)
        return value

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = ", ".join(map(str, action.choices))
            said = f"{reprlib.repr(value)} is none of {choices}{nearest(str(value), action.choices)}"
            raise argparse.ArgumentError(action, said)

    def _print_message(self, message: str, file: Any = None) -> None:
        if message and file:
            file.write(message)  # argparse would pass over that nobody reads it

    def error(self, message: str) -> NoReturn:
        flag = re.search(r"argument (--\w+)", message)
        place = self.places.get(flag[1]) if flag else None
        refuse(f"{self.prog}: error: {message}" + (f" ({place})" if place else ""))


class Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        print(" ".join(filter(None, (project["name"], project["version"], commit()))))
        parser.exit()


def commit() -> str | None:
    """This checkout's commit, with `+` where tracked files differ from it; None outside git."""
    command = ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


# Who speaks


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
    """Exit with code 2 and this line. Of processes that torchrun started the first says it, the others wait for it; and
    then the first of another node does, whose fault may be its own."""
    if is_first():
        print(without_key(line), file=sys.stderr)
    else:
        time.sleep(5)  # torchrun stops all once one has ended
        if os.environ.get("LOCAL_RANK") == "0":
            print(f"process {os.environ['RANK']} on {socket.gethostname()}: {without_key(line)}", file=sys.stderr)
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
            raise argparse.ArgumentTypeError(f"{reprlib.repr(text)} is no {kind.__name__}") from None
        if not (low < value if above else low <= value) or not value <= high:
            least = f"more than {low}" if above else f"at least {low}"
            most = f" and at most {high}" if high != float("inf") else ""
            raise argparse.ArgumentTypeError(f"{text[:40]} is out of range: {least}{most}")
        return value

    return parse


def run(parse_args: Callable[[], argparse.Namespace], main: Callable[[argparse.Namespace], None]) -> NoReturn:
    """Run a script. The user's mistakes and a full disk end with exit code 2 and one line, an interrupt with 130, and a
    reader of our output that has gone, as `| head` does, with 141 and nothing said."""
    script = Path(main.__code__.co_filename).name
    hush()
    try:
        try:
            args = parse_args()
            plan = getattr(args, "plan", None)  # --plan: limits.plan
            plan(main, args) if plan else main(args)
        except UserError as error:
            refuse(f"{script}: error: {error}")
        except KeyboardInterrupt:
            print(f"\n{script}: interrupted; the same command goes on from here", file=sys.stderr)
            sys.exit(130)
        finally:
            if sys.stdout:
                sys.stdout.flush()
    except OSError as error:
        if not isinstance(error, BrokenPipeError) and error.errno not in FULL:
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr)[: 1 + isinstance(error, BrokenPipeError)]:
            os.dup2(nowhere, stream.fileno())  # what is still to be written would fail again
        if isinstance(error, BrokenPipeError):
            sys.exit(141)
        place = f"{error.filename} cannot be written: " if error.filename else ""
        refuse(f"{script}: error: {place}{why_unwritable(error)}")
    sys.exit(0)


def hush() -> None:
    """Libraries that are yet to be imported say nothing but errors, and off a terminal draw no bars; what the user has
    set stays. transformers' own bars: pretrained.hush."""
    for library in ("TRANSFORMERS", "HF_HUB", "DATASETS"):
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    if not sys.stderr.isatty():
        for library in ("HF_HUB", "HF_DATASETS"):
            os.environ.setdefault(f"{library}_DISABLE_PROGRESS_BARS", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns at import of kernels that nothing here needs
    warnings.filterwarnings("ignore", "CUDA initialization:")  # pretrained.warn_of_unseen_gpu says it in a line


def why_unwritable(error: OSError) -> str:
    """What a file system says of a write that failed, and what to do."""
    return f"{error.strerror or error}{'; make room, and the same command goes on' if error.errno in FULL else ''}"


def bar(*, leave: bool = False, **settings: Any) -> tqdm:
    """A bar with rate and ETA on a terminal; off one, a line of the same every half minute."""
    from tqdm import tqdm

    if sys.stderr.isatty():
        return tqdm(leave=leave, maxinterval=1, **settings)
    line = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"
    return tqdm(leave=leave, file=Lines(), delay=30, mininterval=30, maxinterval=30, bar_format=line, **settings)


class Lines:
    """Where a bar's pictures of itself become lines of a log."""

    def write(self, text: str) -> None:
        if text := text.strip():
            print(text, file=sys.stderr)

    def flush(self) -> None: ...


class Progress:
    """A bar that also counts failures."""

    def __init__(self, total: int, label: str, unit: str = "request"):
        self._bar = bar(total=total, desc=label, unit=unit)
        self.failed = 0

    def update(self, count: int = 1, *, failed: bool = False) -> None:
        if failed:
            self.failed += count
            self._bar.set_postfix(failed=self.failed, refresh=False)
        self._bar.update(count)

    def skip(self, count: int) -> None:
        """So many of the total were done before."""
        self._bar.total -= count

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
