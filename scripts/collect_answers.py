"""Answers of several models to the same instructions -> the prompts and configurations that --mode cs ranks.

    python scripts/collect_answers.py --answers_dir results --models Qwen1.5-72B-Chat Qwen1.5-14B-Chat \\
        --output_dir outputs/qwen --held_out 0.25

Reads <answers_dir>/<model>/model_outputs.json, rows of instruction and output, as AlpacaEval publishes them. Writes
prompts.txt and one <model>.json each into --output_dir, and of the prompts that --held_out takes into
--output_dir/held_out, so that no prompt is in both. An instruction of several lines is left out: prompts.txt has one
prompt a line.
"""

from __future__ import annotations

import random
from argparse import Namespace
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.judging.judgments import read_answers
from alignment.records import json_list, one_line, write_whole
from alignment.run_cards import claim


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--answers_dir", type=Path, required=True, help="folder of <model>/model_outputs.json")
    parser.add_argument("--models", nargs="+", required=True, help="names of the folders in it")
    parser.add_argument("--output_dir", type=Path, required=True, help="where prompts.txt and <model>.json go")
    parser.add_argument("--held_out", type=number(float, 0, 0.99), default=0.0, help="share of prompts; default 0")
    parser.add_argument("--limit", type=number(int, 1), help="prompts to take at the most; default all")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts' order; default 0")
    return parser.parse_args(argv)


def write(folder: Path, numbers: list[int], instructions: list[str], answers: dict[str, list[str]]) -> None:
    write_whole(folder / "prompts.txt", [one_line(instructions[n]) + "\n" for n in numbers])
    for model, texts in answers.items():
        write_whole(folder / f"{model}.json", json_list(texts[n] for n in numbers))


def main(args: Namespace) -> None:
    paths = {model: args.answers_dir / model / "model_outputs.json" for model in args.models}
    instructions, answers = read_answers(paths)
    single = [n for n, text in enumerate(instructions) if one_line(text)]
    taken = random.Random(args.seed).sample(single, min(args.limit or len(single), len(single)))
    apart = int(len(taken) * args.held_out)
    if not taken[apart:]:
        raise UserError(f"{args.answers_dir}: all {len(instructions)} instructions have several lines")
    counts = {
        "instructions": len(instructions),
        "of several lines": len(instructions) - len(single),
        "prompts": len(taken) - apart,
        "held out": apart,
    }
    with claim(args.output_dir / "prompts.txt", args, script=__file__, inputs=list(paths.values())) as held:
        held.begin()  # seconds of work, so it is done again instead of asking each file whether it is as it was
        write(args.output_dir, taken[apart:], instructions, answers)
        if apart:
            write(args.output_dir / "held_out", taken[:apart], instructions, answers)
        held.finish(counts)
    print(table([(f"{args.answers_dir} -> {args.output_dir}", ""), *counts.items()]))


if __name__ == "__main__":
    run(parse_args, main)
