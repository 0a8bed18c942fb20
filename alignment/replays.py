"""A finished output and its card: is all as it was, and what was asked for it? Its stage is run again to answer.

    made = Made.of(Path("outputs/dry-run/prompts.txt"))
    made.differences()  # output, inputs and models that have other contents than the card tells
    with made.again() as replay:
        replay.asked     # what the engine was asked, in order, each with the journal's line that answered
        replay.files()   # what came out, in a temporary folder

No model runs. The stage is the script itself, given the card's arguments, a temporary folder to write into, and an
engine that has the identity of the one at work, and so its keys, but answers out of the journal. Nothing beside the
output is written, or made.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple

from alignment.asking import NOT_ASKED
from alignment.command_line import REPOSITORY, UserError
from alignment.engines import engine_from
from alignment.generation import Reply, Request, Sampling, request_key
from alignment.hashes import digest
from alignment.journal import finished
from alignment.pretrained import contents, local_folder
from alignment.records import opened, write_whole
from alignment.run_cards import hash_of, read_card, run_card_path

# Stages that ask a model, and those that derive their output from other stages' alone
ASKING = {
    "synthetic_feedback.py": ("pg", "rg"),
    "self_play.py": (None,),
    "annotate_judgments.py": (None,),
    "system_messages.py": ("pa", "sm", "gr", "rb"),
}
DERIVING = {"synthetic_feedback.py": ("cs",), "system_messages.py": ("ds",)}


class Line(NamedTuple):
    """A line of a journal, by its number from 1."""

    number: int
    text: str
    finish: str


class Asked(NamedTuple):
    """A request, by whom it was answered, and its line; None where the journal has none under its key."""

    identity: str
    request: Request
    sampling: Sampling
    key: str
    line: Line | None


class Recorded:
    """An engine that answers out of a journal, and keeps what it was asked."""

    def __init__(self, identity: str, lines: dict[str, Line], asked: list[Asked]):
        self.identity, self._lines, self._asked = identity, lines, asked

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        for index, request in enumerate(requests):
            key = request_key(self, request, sampling)
            line = self._lines.get(key)
            self._asked.append(Asked(self.identity, request, sampling, key, line))
            yield index, Reply(line.text, line.finish) if line else Reply(None, NOT_ASKED)


class Unscored:
    """A reward model that scores nothing: the rewards are in the journal, or the replay ends."""

    def __init__(self, identity: str):
        self.identity = identity

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        raise UserError(f"the journal lacks rewards of these replies by {self.identity}")


@dataclass
class Replay:
    """What came of running a stage again. `fault` is what ended it early, or None."""

    folder: Path
    asked: list[Asked] = field(default_factory=list)
    fault: str | None = None

    @property
    def missing(self) -> int:
        """Requests that the journal does not answer."""
        return sum(each.line is None for each in self.asked)

    @property
    def is_unknown(self) -> bool:
        """Whether the journal answers none of its requests: who answered them has another identity now."""
        return 0 < self.missing == len(self.asked)

    def files(self) -> list[Path]:
        """What the stage wrote, without its card and journal."""
        found = (path for path in sorted(self.folder.iterdir()) if path.is_file() and not path.is_symlink())
        return [path for path in found if not path.name.endswith((".run.json", ".journal.jsonl"))]


@dataclass(frozen=True)
class Made:
    """An output and the card beside it."""

    output: Path
    card: dict[str, Any]

    @classmethod
    def of(cls, output: Path) -> Made:
        """Raises UserError where no card is beside it, or one that cannot be read."""
        path = run_card_path(output)
        card = read_card(path)
        if card is None:
            told = "is empty or damaged" if path.exists() else "does not exist: no stage has finished this file"
            raise UserError(f"run card {path} {told}")
        if not isinstance(card.get("inputs"), dict) or not isinstance(card.get("models"), dict):
            raise UserError(f"run card {path} does not say what inputs and models it was made of")
        return cls(output, card)

    @property
    def script(self) -> str:
        return str(self.card.get("script"))

    @property
    def mode(self) -> str | None:
        found = self.card["arguments"].get("mode")
        return found if isinstance(found, str) else None

    @property
    def stage(self) -> str:
        return self.script + (f" --mode {self.mode}" if self.mode else "")

    @property
    def asks(self) -> bool:
        return self.mode in ASKING.get(self.script, ())

    @property
    def derives(self) -> bool:
        return self.mode in DERIVING.get(self.script, ())

    @property
    def journal(self) -> Path:
        return self.output.with_name(self.output.name + ".journal.jsonl")

    def place(self, told: str) -> Path:
        """Where an input is now: beside the output, if it was there then, also of a copy; else where the card says."""
        arguments = self.card["arguments"]
        folder = Path(arguments.get("output_dir") or Path(arguments.get("output_file") or "").parent)
        return self.output.with_name(Path(told).name) if Path(told).parent == folder else Path(told)

    @cached_property
    def inputs(self) -> list[Path]:
        return [self.place(told) for told in self.card["inputs"]]

    # Is all as it was?

    def differences(self) -> list[str]:
        """What of the output, the inputs and the models has other contents than the card tells, or cannot be read."""
        found = []
        now = hash_of(self.output)
        if now is None:
            found.append(f"{self.output} is gone")
        elif now != self.card.get("output"):
            found.append(f"{self.output} has other contents than its card tells")
        for path, then in zip(self.inputs, self.card["inputs"].values(), strict=True):
            try:
                if digest(path, "input") != then:
                    found.append(f"input {path} has other contents than the card of {self.output.name} tells")
            except UserError as error:
                found.append(f"{error}; relative paths are looked up from here")
        for name, then in self.card["models"].items():
            try:
                now = contents(name, self.card["arguments"].get("cache_dir"))
            except UserError as error:
                found.append(str(error))
                continue
            if now != then:
                told = "has other contents than" if now else "is not on this machine, to be compared with what"
                found.append(f"model {name} {told} the card of {self.output.name} tells")
        return found

    # Its stage run again

    @cached_property
    def module(self) -> ModuleType:
        """The stage's script, as a module of its own that nothing else imports."""
        folder = "" if (REPOSITORY / self.script).exists() else "scripts"
        spec = importlib.util.spec_from_file_location(
            f"again_{Path(self.script).stem}", REPOSITORY / folder / self.script
        )
        found = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
        return found

    def args(self, folder: Path | None = None) -> Namespace:
        """The card's arguments as the script parses them today, with the inputs where they are now, and to be written
        into `folder` (default: where the output is). Raises UserError where this version does not take them."""
        told = {name: value for name, value in self.card["arguments"].items() if value not in (None, [])}
        moved = dict(zip(self.card["inputs"], map(str, self.inputs), strict=True))
        if self.mode == "rg":  # of all configurations of its run the one that this file holds
            shots = re.search(r"-(\d+)shot$", self.output.stem)
            if not shots:
                raise UserError(f"{self.output} is not named <model>-<demonstrations>-<k>shot.json, as rg names it")
            told |= {"prompt_file_path": [list(self.card["inputs"])[1]], "n_shot": [shots[1]]}
        if told.get("backend") == "ray":  # the replicas' engine is asked under the same keys
            told["backend"] = told.get("ray_engine", "vllm")
        folder = self.output.parent if folder is None else folder
        told |= {"output_dir": folder} if "output_dir" in told else {"output_file": folder / self.output.name}
        words = []
        for name, value in told.items():
            several = [moved.get(str(each), str(each)) for each in (value if isinstance(value, list) else [value])]
            words += [f"--{name}", *several] if isinstance(value, list) else [f"--{name}={several[0]}"]
        said = StringIO()
        try:
            with redirect_stderr(said):
                return self.module.parse_args(words)
        except SystemExit:
            why = said.getvalue().strip().partition("error: ")[2]
            raise UserError(
                f"run card {run_card_path(self.output)}: this version does not take its arguments: {why}"
            ) from None

    @contextmanager
    def again(self) -> Iterator[Replay]:
        """Run the stage again. Raises UserError where it cannot begin: requests are made with the model's tokenizer."""
        for name in self.card["models"]:  # the hub is not asked
            if local_folder(name, self.card["arguments"].get("cache_dir")) is None:
                raise UserError(f"model {name} is not on this machine, and {self.stage} cannot be run again without it")
        lines = self.lines()[0] if self.asks else {}
        with TemporaryDirectory() as temporary:
            replay = Replay(Path(temporary))
            for path in self.inputs:
                if path.parent == self.output.parent:
                    (replay.folder / path.name).symlink_to(path.absolute())
            module, args = self.module, self.args(replay.folder)
            if self.asks:
                from alignment.engines.scoring import scorer_from

                module.models_read = module.models_scored_by = lambda args: []  # for the card, which nobody reads
                module.engine_from = lambda args: Recorded(engine_from(args).identity, lines, replay.asked)
                module.scorer_from = lambda args: Unscored(scorer_from(args).identity)
                scored = ((key, line) for key, line in lines.items() if line.finish == "scored")
                rows = ({"key": key, "text": line.text, "finish": line.finish} for key, line in scored)
                write_whole(replay.folder / self.journal.name, (json.dumps(row) + "\n" for row in rows))
            try:
                with redirect_stdout(StringIO()):
                    module.main(args)
            except UserError as error:
                replay.fault = str(error)
            yield replay

    def lines(self) -> tuple[dict[str, Line], list[int]]:
        """The journal's lines by their keys, and the numbers of those that are damaged. None where it is gone."""
        found, damaged = {}, []
        if self.journal.exists():
            with opened(self.journal, "journal") as file:
                for number, raw in enumerate(file, 1):
                    try:
                        line = finished(raw)
                    except (ValueError, RecursionError):
                        damaged.append(number)
                    else:
                        found |= {line[0]: Line(number, *line[1:])} if line else {}
        return found, damaged
