#!/usr/bin/env python
"""Peak memory and time of cs and rg, beside the obvious way, which has all in lists.

    python benchmarks/sizes.py --what cs --rows 10000000             # 4 configurations of 2,500,000 replies each
    python benchmarks/sizes.py --what cs --rows 10000000 --file_type parquet
    python benchmarks/sizes.py --what rg --rows 1000000              # beside a tenth of these

cs: ours and json.load of all files must write the same bytes; --skip_obvious where these do not fit the memory. rg, by
the simulated writer: memory is flat, so a tenth of the requests takes about as much. Each runs in a process of its own;
files are made up, and removed at the end. Times are a core's, whatever else the machine does. Targets: 2 GB for cs on
10 million replies; rg at most 1.2 times the memory of a tenth of its requests.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from alignment import records
from alignment.command_line import REPOSITORY, ArgumentParser, UserError, boolean, number, run, table
from alignment.engines.simulated import SimulatedEngine
from alignment.hashes import sha256

CONFIGURATIONS = 4
TEXTS = 10_000  # made-up replies, of which files are drawn
DEMONSTRATIONS = REPOSITORY / "assets" / "HHH_prompt.txt"
OBVIOUS = """
import json, sys
from itertools import islice
from pathlib import Path
from alignment.comparisons import Waterfall, compare, parse_rubric

folder = Path(sys.argv[1])
names, ranks = parse_rubric(sys.argv[2:])
prompts = (folder / "prompts.txt").read_text().splitlines()
responses = [json.load(open(folder / f"{name}.json")) for name in names]
rows = list(compare(prompts, responses, names, ranks, Waterfall(names)))
with open(folder / "obvious.json", "w") as file:
    file.write("[\\n" + ",\\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\\n]\\n")
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--what", choices=("cs", "rg"), default="cs", help="(default: cs)")
    shown = "cs: replies, over all configurations; rg: requests (default: 400,000)"
    flag("--rows", type=number(int, 10 * CONFIGURATIONS), default=400_000, help=shown)
    shown = "of prompts and replies, and of what is written (default: json)"
    flag("--file_type", choices=("json", "jsonl", "parquet"), default="json", help=shown)
    shown = "cs: without the obvious way, which takes some 500 bytes a reply"
    flag("--skip_obvious", type=boolean, nargs="?", const=True, default=False, help=shown)
    flag("--work_dir", type=Path, help="where the files are made, 300 bytes a row (default: a temporary folder)")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    with TemporaryDirectory(dir=args.work_dir) as folder:
        (compare_cs if args.what == "cs" else compare_rg)(args, Path(folder))


def compare_cs(args: Namespace, folder: Path) -> None:
    names = [f"writer-{size}b-HHH-1shot" for size in (30, 13, 7, 3)[:CONFIGURATIONS]]
    num_prompts = args.rows // CONFIGURATIONS
    records.write_prompts(folder / f"prompts{form(args, '.txt')}", prompts(num_prompts))
    for place, name in enumerate(names):
        records.write_responses(folder / f"{name}{form(args, '.json')}", replies(num_prompts, 1 - 0.2 * place))
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"cs: {args.rows:,} replies of {CONFIGURATIONS} configurations, {size / 1e9:.2f} GB")
    script = [str(REPOSITORY / "synthetic_feedback.py"), "--mode", "cs", "--output_dir", str(folder)]
    rows = [("", "peak memory, GB", "seconds")]
    measured = {"ours, row by row": peak([*script, "--file_type", args.file_type, "--rubric", *names])}
    if not args.skip_obvious and args.file_type == "json":
        measured["all in lists"] = peak(["-c", OBVIOUS, str(folder), *names])
        if sha256(folder / "obvious.json") != sha256(folder / "comparison.json"):
            raise UserError("both ways wrote other comparisons")
    rows += [(name, f"{memory / 1e9:.3f}", f"{seconds:.1f}") for name, (memory, seconds) in measured.items()]
    print(table(rows))
    (ours, _), *others = measured.values()
    for other, _ in others:
        print(f"the same bytes, in {other / ours:.1f} times less memory")
    print(f"target: 2 GB for 10,000,000 replies; here {ours / 1e9:.3f} GB for {args.rows:,}")


def compare_rg(args: Namespace, folder: Path) -> None:
    rows = [("requests", "peak memory, GB", "seconds", "a request, microseconds")]
    memories = []
    for count in (args.rows // 10, args.rows):
        own = folder / str(count)
        records.write_prompts(own / f"prompts{form(args, '.txt')}", prompts(count))
        command = [str(REPOSITORY / "synthetic_feedback.py"), "--mode", "rg", "--output_dir", str(own)]
        command += ["--prompt_file_path", str(DEMONSTRATIONS), "--n_shot", "3", "--file_type", args.file_type]
        memory, seconds = peak([*command, "--backend", "simulated", "--model_name_or_path", "writer-7b"])
        memories.append(memory)
        rows.append((count, f"{memory / 1e9:.3f}", f"{seconds:.1f}", f"{1e6 * seconds / count:.0f}"))
    print(table(rows))
    print(f"ten times the requests take {memories[1] / memories[0]:.2f} times the memory (target: at most 1.2)")


def form(args: Namespace, usual: str) -> str:
    return usual if args.file_type == "json" else f".{args.file_type}"


def prompts(count: int) -> Iterator[str]:
    return (f"What is best known about number {place}?" for place in range(count))


def replies(count: int, quality: float) -> Iterator[str | None]:
    """Made-up replies, the longer the higher the quality; one in a hundred did not come."""
    draw = random.Random(quality)
    sentences = [
        [draw.choice(SimulatedEngine.SENTENCES) for _ in range(1 + round(4 * quality * (0.5 + draw.random())))]
        for _ in range(TEXTS)
    ]
    texts = [None if draw.random() < 0.01 else " ".join(each) for each in sentences]
    for place in range(count):
        text = draw.choice(texts)
        yield text and f"{place}. {text}"


def peak(words: list[str]) -> tuple[int, float]:
    """Peak memory in bytes and seconds of a core of a Python process with these words. UserError where it fails."""
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    error = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"it failed: {error.strip().splitlines()[-1] if error.strip() else status}")
    return used.ru_maxrss * 1024, used.ru_utime + used.ru_stime


if __name__ == "__main__":
    run(parse_args, main)
