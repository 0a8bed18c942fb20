#!/usr/bin/env python
"""CPU seconds and memory that the processes of a node take to have a training set's ids: made by the first and mapped
by all, as train.py does it, beside each for itself.

    python benchmarks/tokenising.py                     # 20,000 rows, two processes: a minute of a core
    python benchmarks/tokenising.py --rows 100000 --processes 4

The rows are made up of data/almost_prompts.txt and the seed. Both ways begin with the rows' file, and end when every
process has touched every id; both must give the same ids. Seconds are of all threads of all processes; memory is what
they hold beyond what they had before, pages that several map divided among them (proportional set size).
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from alignment.command_line import REPOSITORY, ArgumentParser, UserError, number, run, table
from alignment.records import read_prompts

WAYS = ("each for itself", "made by the first")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    flag, positive = parser.add_argument, number(int, 1)
    flag("--rows", type=positive, default=20_000, help="default 20000")
    flag("--processes", type=positive, default=2, help="of a node; default 2")
    flag(
        "--model_name_or_path", default="saved_models/SmolLM2-135M-Instruct", help="of the tokenizer; the embedded one"
    )
    flag("--worker", choices=WAYS, help="what a process of the benchmark is told, by it")
    flag("--folder", type=Path, help="the same")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    if args.worker:
        return worker(args)
    prompts, draw = read_prompts(REPOSITORY / "data" / "almost_prompts.txt"), random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        with (place / "rows.jsonl").open("w") as file:
            for _ in range(args.rows):
                row = {"input": draw.choice(prompts), "output": " ".join(draw.choice(prompts) for _ in range(8))}
                file.write(json.dumps(row) + "\n")
        found = {way: processes(args, way, place) for way in WAYS}
    if len({each["print"] for way in found.values() for each in way}) > 1:
        raise UserError("both ways did not give the same ids")
    sums = {way: [sum(each[what] for each in told) for what in ("seconds", "bytes")] for way, told in found.items()}
    rows = [(f"{args.rows:,} rows, {args.processes} processes", "CPU s", "MB")]
    rows += [(way, f"{seconds:.1f}", f"{size / 1e6:.0f}") for way, (seconds, size) in sums.items()]
    ratios = [alone / shared for alone, shared in zip(*sums.values(), strict=True)]
    print(table([*rows, ("ratio", *(f"{ratio:.2f}" for ratio in ratios))]))


def processes(args: Namespace, way: str, folder: Path) -> list[dict]:
    """What each process of one way says of itself."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    world = {"WORLD_SIZE": str(args.processes), "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    world |= {"PYTHONPATH": str(REPOSITORY)}
    words = ["--worker", way, "--folder", str(folder), "--model_name_or_path", args.model_name_or_path]
    started = [
        subprocess.Popen(
            [sys.executable, __file__, *words],
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(args.processes)
    ]
    return [json.loads(process.communicate()[0].splitlines()[-1]) for process in started]


def worker(args: Namespace) -> None:
    """One process: its ids, and what they took."""
    import hashlib

    import torch.distributed as distributed

    import train
    from alignment.pretrained import training_tokenizer
    from alignment.templates import load_template
    from alignment.training import encoded, ranks  # noqa: F401  before the clock starts
    from alignment.training.batches import encode_examples
    from alignment.training_data import read_parts

    distributed.init_process_group("gloo")
    words = ["--data_path", str(args.folder / "rows.jsonl"), "--output_dir", str(args.folder / "out")]
    told = train.parse_args([*words, "--model_name_or_path", args.model_name_or_path])
    template = load_template(told.template, training_tokenizer(told.model_name_or_path))
    template.prompt_ids([{"prompt": "the tokenizer's own tables are made before the clock starts"}])
    before, held = sum(os.times()[:2]), resident()
    if args.worker == WAYS[0]:
        (part,) = read_parts(told.data_path, told.objective, limit=None)
        part.drop_unusable(own_turns=template.takes_own_turns)
        items, _ = encode_examples(part.examples, template, told.model_max_length)
        template.say_spelled(part.source, [[each.prompt, *each.responses] for each in part.examples])
        del part
    else:
        items = train.load_data(told)[1]["train"]
    digest = hashlib.sha256()
    for item in items:
        for sample in item:
            digest.update(sample.packed.tobytes())
    distributed.barrier()
    print(json.dumps({
        "seconds": sum(os.times()[:2]) - before, "bytes": resident() - held, "print": digest.hexdigest()
    }))  # fmt: skip
    distributed.barrier()


def resident() -> int:
    """Bytes of memory, those that are shared divided among who shares them."""
    told = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * int(next(line for line in told.splitlines() if line.startswith("Pss:")).split()[1])


if __name__ == "__main__":
    run(parse_args, main)
