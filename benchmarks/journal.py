#!/usr/bin/env python
"""What the journal takes: to resume a million replies, and of the time of generation.

    python benchmarks/journal.py

Resuming: a made-up journal of --replies of 1 kB is opened, after which it is known what is finished, and damage is
found; then each reply is read. Beside it the obvious way: all lines parsed into a dict, in a process of its own too.
Generation: 3-shot prompts to a simulated writer of --latency, and what the journal's own work is of that time. Targets:
10 seconds and 1 GB to open; 2% of the time of generation at 500 replies a second, several times what a GPU writes of
384 tokens. Times are a core's, whatever else the machine does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from alignment.command_line import REPOSITORY, ArgumentParser, number, run, table
from alignment.engines.simulated import SimulatedEngine
from alignment.few_shot import REPLY_STOP, Demonstrations
from alignment.generation import Request, Sampling, record_seed, request_key
from alignment.journal import Journal

WAYS = ("offsets", "dict")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag, positive = parser.add_argument, number(int, 1)
    flag("--replies", type=positive, default=1_000_000, help="of 1 kB, to resume (default: 1,000,000)")
    flag("--requests", type=positive, default=2_000, help="to generate (default: 2,000)")
    shown = "seconds a request of the simulated writer (default: 0.002, 500 replies a second)"
    flag("--latency", type=number(float, 0), default=0.002, help=shown)
    flag("--work_dir", type=Path, help="where the journal is made (default: a temporary folder)")
    flag("--resume", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    if args.resume:
        return resume(args.resume, args.replies, args.work_dir)
    with TemporaryDirectory(dir=args.work_dir) as folder:
        size = make(Path(folder), args.replies)
        print(f"{args.replies:,} replies, {size / 1e9:.2f} GB")
        rows = [("", "seconds to open", "then to read all", "peak memory, GB")]
        for way in WAYS:
            command = [sys.executable, __file__, "--resume", way, "--replies", str(args.replies)]
            done = subprocess.run([*command, "--work_dir", folder], capture_output=True, text=True, check=True)
            rows.append(({"offsets": "ours", "dict": "all in a dict"}[way], *done.stdout.split()))
        print(table(rows))
        print(f"target: 10 seconds to open, 1 GB; {float(rows[2][3]) / float(rows[1][3]):.1f} times less memory\n")
        share(args, Path(folder))


def keys(count: int) -> list[str]:
    return [hashlib.sha256(str(place).encode()).hexdigest()[:32] for place in range(count)]


def make(folder: Path, count: int) -> int:
    """A journal of replies of 1 kB; its bytes."""
    path = folder / "out.json.journal.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for place, key in enumerate(keys(count)):
            text = f"{place}. Start with what you already have to hand.\n\n" * 25
            file.write(json.dumps({"key": key, "text": text[:1_000], "finish": "stop"}) + "\n")
    return path.stat().st_size


def resume(way: str, count: int, folder: Path) -> None:
    """Print seconds to open the journal and to read all replies, and peak memory in GB."""
    import resource

    started = time.process_time()
    if way == "offsets":
        get: Callable = Journal(folder / "out.json").get
    else:
        with (folder / "out.json.journal.jsonl").open("rb") as file:
            rows = (json.loads(line) for line in file)
            get = {row["key"]: (row["text"], row["finish"]) for row in rows}.get
    opened = time.process_time()
    asked = keys(count)
    begun = time.process_time()
    assert all(get(key) for key in asked)
    read = time.process_time() - begun
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    print(f"{opened - started:.1f} {read:.1f} {memory:.2f}")


def share(args: Namespace, folder: Path) -> None:
    """What the journal's own work is of the time of generation."""
    shown = Demonstrations.read(REPOSITORY / "assets" / "HHH_prompt.txt", 3)
    engine, sampling = SimulatedEngine(f"writer?latency={args.latency}"), Sampling(384, stop=REPLY_STOP)
    prompts = [shown.format_prompt(f"What is best known about number {place}?", 3) for place in range(args.requests)]
    requests = [Request(prompt, record_seed(0, place)) for place, prompt in enumerate(prompts)]
    started = time.process_time()
    replies = dict(engine.complete(requests, sampling))
    generation = args.requests * args.latency + time.process_time() - started
    with Journal(folder / "share.json") as journal:
        started = time.process_time()
        for place, request in enumerate(requests):
            key = request_key(engine, request, sampling)
            assert journal.get(key) is None
            journal.add(key, replies[place].text, replies[place].finish)
        own = time.process_time() - started
    print(f"{args.requests:,} requests of {len(prompts[0]):,} characters, {args.latency * 1000:g} ms each")
    rows = [("", "seconds"), ("without a journal", f"{generation:.3f}"), ("the journal's own work", f"{own:.3f}")]
    print(table(rows))
    print(f"{1e6 * own / args.requests:.0f} microseconds a reply, {own / generation:.2%} of generation (target: 2%)")


if __name__ == "__main__":
    run(parse_args, main)
