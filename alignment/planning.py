"""What a stage would take, before it runs: --plan.

    run(parse_args, main)  # with --plan it calls show(main, args) in the place of main(args)

A plan is a rehearsal. The stage's own `main` runs in a temporary folder that shows it what is in its own, so requests,
rounds and further tries are its own; but its engine only counts (engines/rehearsal.py). What the journal has is found
there. In the place of other replies stand those of a short timed probe of real rows, or of the journal, or, where
neither can be had, of the simulated writer. A training ends where it would load its model, and some of its rows are
trained on for a few steps, in memory (training/rehearsal.py). With --hardware nothing is timed: data sheets and the
formulas of footprint.py tell. Nothing stays on disk.
"""

from __future__ import annotations

import glob
import math
import os
import random
import re
import shutil
import time
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from statistics import fmean, stdev
from tempfile import TemporaryDirectory, gettempdir
from typing import Any, NamedTuple, NoReturn

from alignment.command_line import REPOSITORY, UserError, is_first, nearest, say, table
from alignment.flag_values import OUTPUTS
from alignment.generation import Reply, Request, Sampling
from alignment.journal import Journal
from alignment.records import read_json

SHEETS = REPOSITORY / "assets" / "hardware.json"
HERE = "here"
SAMPLED = 256  # requests of each kind whose tokens are counted
KEPT = 256  # of the journal's replies, of which stand-ins are drawn
ASKS_NOBODY = ("cs", "ds", "import", "report")  # modes
IN_PLACE = ("history.jsonl",)  # of a training's folder: what it appends to
GIB = 2**30


class Planned(Exception):
    """A rehearsal has seen all that it came for."""


class Hardware(NamedTuple):
    """`count` accelerators of a kind, by their maker's data sheet. `utilisation` is the share of the peak FLOPs, in
    bf16 and dense, that training and the reading of prompts reach in useful ones; `read` the share of the memory's
    speed that decoding reaches. Both are assumed."""

    name: str
    count: int
    tflops: float
    gb: float
    tb_per_second: float
    utilisation: float
    read: float

    @property
    def flops(self) -> float:
        """Useful ones a second, of one."""
        return self.tflops * 1e12 * self.utilisation


def hardware_from(named: str) -> Hardware | None:
    """`64xH100`, `H100` or `FILE.json:H100`; None for this machine. Raises UserError for what is none of these."""
    if named == HERE:
        return None
    file, _, name = named.rpartition(":")
    path = Path(file) if file else SHEETS
    sheets = read_json(path, "hardware")
    many, _, kind = name.rpartition("x") if re.match(r"\d+x", name) else ("1", "", name)
    if not isinstance(sheets, dict) or kind not in sheets or not int(many):
        there = list(sheets) if isinstance(sheets, dict) else []
        has = f"{path.name} has {', '.join(there) or 'none'}, 8x before a name makes it eight"
        raise UserError(f"--hardware {named}: {has}{nearest(kind, there)}")
    wanted = Hardware._fields[2:]
    try:
        return Hardware(kind, int(many), *(positive(sheets[kind][each]) for each in wanted))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"hardware {path}: {kind} needs a number above 0 for each of {', '.join(wanted)}") from None


def positive(value: Any) -> float:
    if isinstance(value, bool) or not 0 < float(value) < math.inf:
        raise ValueError(value)
    return float(value)


@dataclass(frozen=True)
class Prices:
    """{"H100": dollars an hour, "here": likewise, "model": {"input": dollars a million tokens, "output": likewise}}."""

    path: str
    told: dict[str, Any]

    @classmethod
    def read(cls, path: str | None) -> Prices | None:
        if path is None:
            return None
        told = read_json(Path(path), "prices")
        if not isinstance(told, dict):
            raise UserError(f"prices {path} hold no names with prices, but a {type(told).__name__}")
        return cls(path, told)

    def of_hour(self, name: str) -> float:
        return self._number(name, self.told.get(name))

    def of_tokens(self, model: str) -> tuple[float, float]:
        """Of a token read and of one written."""
        found = self.told.get(model)
        sides = [found.get(side) if isinstance(found, dict) else None for side in ("input", "output")]
        read, written = (self._number(f"{model}, input and output", each) for each in sides)
        return read / 1e6, written / 1e6

    def _number(self, name: str, value: Any) -> float:
        try:
            return positive(value) if value != 0 else 0.0
        except (TypeError, ValueError):
            raise UserError(f"prices {self.path} have no price of {name}, but of {', '.join(self.told)}") from None


@dataclass
class Part:
    """What one engine is asked in one way: counts, a sample of the requests, and what its replies are like."""

    label: str
    bound: int  # tokens of a reply at most
    engine: Any  # engines.rehearsal.Rehearsed
    requests: int = 0
    sample: list[Request] = field(default_factory=list)
    replies: list[int] = field(default_factory=list)  # tokens of each that is known
    source: str = ""  # where these are from; empty where none is known
    stand_ins: list[Reply] = field(default_factory=list)
    timed: Any = None  # engines.rehearsal.Timed
    rows: int = 0  # of the probe

    def add(self, requests: Sequence[Request], draw: random.Random) -> None:
        """Count some, and keep a sample of all so far in which each is as likely."""
        for request in requests:
            self.requests += 1
            if len(self.sample) < SAMPLED:
                self.sample.append(request)
            elif (place := draw.randrange(self.requests)) < SAMPLED:
                self.sample[place] = request

    def read(self) -> tuple[float, float]:
        """Tokens of all prompts, and the half of their 95% interval: 0 where all were counted."""
        counts = self.engine.count(self.sample)
        if self.requests == len(counts):
            return sum(counts), 0.0
        return self.requests * fmean(counts), 1.96 * self.requests * stdev(counts) / math.sqrt(len(counts))

    def written(self) -> float:
        """Tokens of all replies, like those that are known; where none is, as many as there may be."""
        return self.requests * (fmean(self.replies) if self.replies else self.bound)


class Plan:
    """A plan in the making; `args.plan` while a stage is rehearsed."""

    def __init__(self, args: Namespace):
        self.hardware, self.prices = hardware_from(args.hardware), Prices.read(args.prices)
        self.parts: dict[Any, Part] = {}
        self.recent: deque[Reply] = deque(maxlen=KEPT)  # replies found since an engine was last asked
        self.journaled, self.journal_bytes = 0, 0
        self.lines: list[tuple[str, str]] = []  # of a training
        self.scored: list[Any] = []  # engines.rehearsal.RehearsedScorer
        self.fault: UserError | None = None  # of a probe
        self.draw, self.started = random.Random(0), False
        self.began = {clock: clock() for clock in (time.perf_counter, time.process_time)}

    def clock(self, *, in_process: bool) -> Callable[[], float]:
        """Seconds of this process's processor where it has one thread and no GPU, which other work on the machine
        leaves alone; of the wall else."""
        import torch

        alone = in_process and torch.get_num_threads() == 1 and not torch.cuda.is_available()
        return time.process_time if alone else time.perf_counter

    def found(self, text: str, finish: str) -> None:
        """The journal has a reply."""
        if finish in ("stop", "length"):
            self.journaled += 1
            self.recent.append(Reply(text, finish))

    def found_since(self) -> list[Reply]:
        """The last replies that the journal had since an engine was asked before."""
        found = list(self.recent)
        self.recent.clear()
        return found

    def part(self, engine: Any, sampling: Sampling) -> Part:
        """What this engine is asked under these bounds."""
        label = f"{engine.name}, replies of at most {sampling.max_tokens:,} tokens"
        named = engine.identity, sampling.max_tokens
        return self.parts.setdefault(named, Part(label, sampling.max_tokens, engine))

    def end(self, fault: UserError | None = None) -> NoReturn:
        """Leave the stage: it has shown all, or a probe has failed."""
        self.fault = fault
        raise Planned

    def is_of_something(self) -> bool:
        return bool(self.parts or self.lines or self.journaled)

    def table(self, title: str, disk: int) -> str:
        if self.lines:
            return table([(title, ""), *self.lines])
        return table([(title, ""), *self.asking(disk)])

    def asking(self, disk: int) -> list[tuple[str, str]]:
        """The lines of a stage that asks; `disk` are the bytes of what it writes beside the journal."""
        parts = list(self.parts.values())
        pending, texts = sum(part.requests for part in parts), sum(each.texts for each in self.scored)
        told = f"{pending + self.journaled:,} in all, {self.journaled:,} in the journal"
        lines = [(f"requests ({told})", f"{pending:,}")]
        if len(parts) > 1:
            lines += [(f"  {part.label}", f"{part.requests:,}") for part in parts]
        lines += [("responses to be scored", f"{texts:,}")] if texts else []
        if not pending:
            return lines
        lines += [*tokens_of(parts), *memory_of(parts)]
        lines.append(("disk, MB (journal, output)", number_of((self.journal_bytes + disk) / 1e6)))
        hours = self.hours(parts)
        lines.append((f"hours ({self.where})", "unknown" if hours is None else number_of(hours)))
        return lines + self.cost(hours, parts)

    @property
    def where(self) -> str:
        return f"{self.hardware.count}x{self.hardware.name}, by its data sheet" if self.hardware else HERE

    def hours(self, parts: Sequence[Part]) -> float | None:
        """None where a server answers, of which no data sheet tells."""
        seconds = [part.engine.seconds(part) for part in parts] + [each.seconds() for each in self.scored if each.texts]
        starts = {part.engine.name: part.engine.start for part in parts}
        return None if None in seconds else (sum(starts.values()) + sum(seconds)) / 3600

    def cost(self, hours: float | None, parts: Sequence[Part]) -> list[tuple[str, str]]:
        """By tokens for what a server answers, by the hour for what runs on accelerators."""
        if self.prices is None:
            return []
        if not any(part.engine.is_served for part in parts):
            return [self.by_the_hour(hours)]
        dollars = 0.0
        for part in parts:
            if part.engine.is_served:
                of_read, of_written = self.prices.of_tokens(part.engine.name)
                dollars += part.read()[0] * of_read + part.written() * of_written
        return [("cost, $ (of what is served, by its tokens)", number_of(dollars))]

    def by_the_hour(self, hours: float) -> tuple[str, str]:
        count, name = (self.hardware.count, self.hardware.name) if self.hardware else (1, HERE)
        price = self.prices.of_hour(name)
        return f"cost, $ ({count} x {price:g} an hour)", number_of(count * price * hours)


def tokens_of(parts: Sequence[Part]) -> list[tuple[str, str]]:
    reads = [part.read() for part in parts]
    total, off = sum(tokens for tokens, _ in reads), math.hypot(*(half for _, half in reads))
    how = f"of {sum(len(part.sample) for part in parts):,} sampled, ±{off / total:.1%}" if off else "all counted"
    lines = [(f"tokens read ({parts[0].engine.counts_by}; {how})", f"{total:,.0f}")]
    lines.append(("tokens written, at most", f"{sum(part.requests * part.bound for part in parts):,}"))
    if all(part.replies for part in parts):
        sources = "; ".join(dict.fromkeys(part.source for part in parts))
        lines.append((f"tokens written, expected ({sources})", f"{sum(part.written() for part in parts):,.0f}"))
    return lines


def memory_of(parts: Sequence[Part]) -> list[tuple[str, str]]:
    """A line for each model that runs in this process or on these accelerators."""
    lines = []
    for engine in {part.engine.name: part.engine for part in parts if part.engine.is_local}.values():
        told = engine.memory([part for part in parts if part.engine.name == engine.name])
        inside = ", ".join(f"{name} {value / GIB:.2f}" for name, value in told.items())
        where = "memory, GiB" if engine.on_cpu else f"memory of each of {engine.accelerators} accelerators, GiB"
        lines.append((f"{where} ({inside})", f"{sum(told.values()) / GIB:.2f}"))
    return lines


def number_of(value: float) -> str:
    """Two digits that count, and no more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def show(main: Callable[[Namespace], None], args: Namespace) -> None:
    """Print what a stage would take. Raises the UserError that the stage itself would begin with."""
    script = Path(main.__code__.co_filename).name
    mode = getattr(args, "mode", None)
    if mode in ASKS_NOBODY:
        raise UserError(f"--plan: --mode {mode} asks no model and trains none; run it")
    plan, said = Plan(args), StringIO()
    with place() as folder:
        moved, back = moved_outputs(Namespace(**vars(args) | {"plan": plan}), folder)
        Journal.plan = plan
        try:
            with redirect_stdout(said):
                main(moved)
        except Planned:
            pass
        except UserError as error:  # after its last request it may miss replies, and say so
            if not plan.is_of_something():
                raise UserError(back(str(error))) from error
        finally:
            Journal.plan = None
        if plan.fault:
            raise plan.fault
        files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
        disk = sum(path.stat().st_size for path in files)
        if not plan.is_of_something():
            return say(back(said.getvalue().strip()) or f"{script}: asks no model; nothing to plan")
        title = script + (f" --mode {mode}" if mode else "")
        say(plan.table(title, disk))


@contextmanager
def place() -> Iterator[Path]:
    """A folder that goes; one for all that torchrun has started on this node."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        with TemporaryDirectory(prefix="plan-") as folder:
            yield Path(folder)
        return
    folder = Path(gettempdir(), f"plan-{os.getppid()}")
    folder.mkdir(exist_ok=True)
    try:
        yield folder
    finally:
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)


def moved_outputs(args: Namespace, folder: Path) -> tuple[Namespace, Callable[[str], str]]:
    """The arguments with all outputs inside `folder`, where links show what is at their own places; and what names
    these places again in a message."""
    names: dict[str, str] = {}
    for number, (name, is_folder) in enumerate(OUTPUTS.items()):
        output = getattr(args, name, None)
        if output is None:
            continue
        place = folder / str(number) / Path(output).name
        place.parent.mkdir(exist_ok=True)
        names[str(place)] = str(output)
        for path in Path(output).parent.glob(f"{glob.escape(Path(output).stem)}*"):
            if path.name != Path(output).name or not is_folder:
                link(place.parent / path.name, path)
        if is_folder and Path(output).is_dir():
            place.mkdir(exist_ok=True)
            for path in Path(output).iterdir():
                if path.name not in IN_PLACE:
                    link(place / path.name, path)
        args = Namespace(**vars(args) | {name: type(output)(place)})

    def back(text: str) -> str:
        for ours, theirs in names.items():
            text = text.replace(ours, theirs)
        return text

    return args, back


def link(place: Path, path: Path) -> None:
    with suppress(FileExistsError):  # another process was first
        place.symlink_to(path.absolute())
