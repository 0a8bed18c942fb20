#!/usr/bin/env python
"""What --plan says of a stage beside what the stage then takes: requests, tokens, steps, time, memory, disk.

    OMP_NUM_THREADS=1 python benchmarks/plan.py --model_name_or_path saved_models/SmolLM2-135M-Instruct \\
        --data_path data/iter/train-alpaca-sample-iter1.json

Each of the stages is planned and then run, in a folder of its own that goes: `rg` on seed prompts by the hf engine,
`sft` and `cut` on rows with judgments. For a machine without a GPU. With one thread time is the processor's, of the
stage and of what it starts, which other work on the machine leaves alone; else it is the wall's. Target: each number
within 30% of what was planned.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from alignment.command_line import REPOSITORY, ArgumentParser, UserError, number, run, table
from alignment.few_shot import Seeds
from alignment.pretrained import load_tokenizer
from alignment.records import read_rows

SEEDS = REPOSITORY / "assets" / "seed_prompts.txt"
STAGES = ("rg", "sft", "cut")
FAR = 1.3


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag, positive = parser.add_argument, number(int, 1)
    flag("--model_name_or_path", required=True, metavar="MODEL", help="a causal model's folder")
    flag("--data_path", required=True, help="rows with judgments, which sft and cut learn from")
    flag("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all")
    flag("--prompts", type=positive, default=48, help="of rg (default: 48)")
    flag("--rows", type=positive, default=200, help="of sft, and half as many of cut (default: 200)")
    flag("--max_new_tokens", type=positive, default=96, help="of rg (default: 96)")
    flag("--length", type=number(int, 8), default=256, help="tokens of a row in training (default: 256)")
    return parser.parse_args(argv)


def command(args: argparse.Namespace, stage: str, folder: Path) -> list[str]:
    if stage == "rg":
        prompts = Seeds.read(SEEDS, 1).queries[: args.prompts]
        (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in prompts))
        demonstrations = REPOSITORY / "assets" / "HHH_prompt.txt"
        words = ["--mode", "rg", "--backend", "hf", "--model_name_or_path", args.model_name_or_path, "--output_dir"]
        words += [folder, "--prompt_file_path", demonstrations, "--n_shot", 1, "--max_new_tokens", args.max_new_tokens]
        return ["synthetic_feedback.py", *map(str, words)]
    rows, out = args.rows if stage == "sft" else args.rows // 2, folder / "out"
    words = ["--data_path", args.data_path, "--limit", rows, "--output_dir", out]
    if stage == "sft":
        words += ["--objective", "sft", "--template", "alpaca", "--num_train_epochs", 1]
        words += ["--model_name_or_path", args.model_name_or_path, "--model_max_length", args.length]
        return ["train.py", *map(str, words)]
    words += ["--base_model", args.model_name_or_path, "--cutoff_len", args.length, "--micro_batch_size", 2]
    return ["finetune_unlikelihood.py", *map(str, words)]


def main(args: argparse.Namespace) -> None:
    rows: list[tuple] = [("", "planned", "took", "planned / took")]
    far = 0
    for stage in args.stages:
        with tempfile.TemporaryDirectory(prefix="plan-") as temporary:
            words = command(args, stage, Path(temporary))
            before = size(Path(temporary))
            said, _, _ = called([*words, "--plan"])
            planned = numbers_in(said)
            _, seconds, peak = called(words)
            took = found(args, Path(temporary)) | {"hours": seconds / 3600, "memory": peak / 2**30}
            took["disk"] = (size(Path(temporary)) - before) / 1e6
        for name, value in took.items():
            ratio = planned[name] / value
            far += not 1 / FAR <= ratio <= FAR
            rows.append((f"{stage}: {name}", *(f"{each:,.4g}" for each in (planned[name], value)), f"{ratio:.2f}"))
    print(table(rows))
    print(f"{len(rows) - 1 - far} of {len(rows) - 1} numbers are within 30% (target: all)")


def called(words: list[str]) -> tuple[str, float, float]:
    """What a command prints, its seconds, and the largest resident size of a process of it, in bytes."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        raise UserError(f"{' '.join(words)} ended with code {os.waitstatus_to_exitcode(status)}")
    alone = os.environ.get("OMP_NUM_THREADS") == "1"
    seconds = used.ru_utime + used.ru_stime if alone else time.perf_counter() - started
    return said, seconds, used.ru_maxrss * 1024


NAMES = {  # what a plan calls each number -> what it is called here
    r"requests": "requests",
    r"tokens written, expected": "tokens written",
    r"tokens an epoch": "tokens",
    r"optimiser steps": "steps",
    r"memory, GiB": "memory",
    r"disk, MB": "disk",
    r"hours": "hours",
}


def numbers_in(plan: str) -> dict[str, float]:
    found = {}
    for line in plan.splitlines():
        for pattern, name in NAMES.items():
            if re.match(pattern, line):
                found[name] = float(line.split()[-1].replace(",", ""))
    return found


def found(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """What a stage left of requests and their tokens, or of steps and theirs."""
    if journals := list(folder.glob("*.journal.jsonl")):
        tokenizer = load_tokenizer(args.model_name_or_path)
        replies = read_rows(journals[0], "journal")
        ids = tokenizer([each["text"] for each in replies], add_special_tokens=False)["input_ids"]
        ends = sum(each["finish"] == "stop" for each in replies)
        return {"requests": len(replies), "tokens written": sum(map(len, ids)) + ends}
    history = [json.loads(line) for line in (folder / "out" / "history.jsonl").read_text().splitlines()]
    steps = [line for line in history if "loss" in line]
    return {"steps": len(steps), "tokens": sum(line["tokens"] for line in steps)}


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    run(parse_args, main)
