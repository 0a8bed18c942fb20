"""Rows of made-up words for every trainer and for static HHH, where only sizes and speed matter (check_gpu.sh).

    python scripts/made_up_rows.py outputs/made_up --num_rows 256

Writes into the folder, each of the same texts of 5 to 200 words:

    pairs.json    {"prompt", "chosen", "rejected"}
    sft.json      {"input", "output"}
    hhh.json      {"chosen", "rejected", "type"}, both sides Human/Assistant dialogues
    judged.json   {"instruction", "output", "judgment"}, of which every fifth is satisfactory, null
"""

from __future__ import annotations

import random
from argparse import Namespace
from pathlib import Path

from alignment.command_line import ArgumentParser, number, run
from alignment.records import json_list, write_whole

WORDS = ("alpha", "beta", "gamma", "delta")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the four files go")
    parser.add_argument("--num_rows", type=number(int, 1), default=256, help="rows of each; default 256")
    parser.add_argument("--seed", type=int, default=0, help="of the words; default 0")
    return parser.parse_args(argv)


def files(num_rows: int, seed: int) -> dict[str, list[dict]]:
    """The rows of each file by its name."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, 200)))

    pairs = [{"prompt": text(), "chosen": text() + "!", "rejected": text() + "?"} for _ in range(num_rows)]
    judgments = [text() if row % 5 else None for row in range(num_rows)]
    return {
        "pairs": pairs,
        "sft": [{"input": pair["prompt"], "output": pair["chosen"]} for pair in pairs],
        "hhh": [
            {side: f"\n\nHuman: {pair['prompt']}\n\nAssistant: {pair[side]}" for side in ("chosen", "rejected")}
            | {"type": "other"}
            for pair in pairs
        ],
        "judged": [
            {"instruction": pair["prompt"], "output": pair["chosen"], "judgment": judgment}
            for pair, judgment in zip(pairs, judgments, strict=True)
        ],
    }


def main(args: Namespace) -> None:
    made = files(args.num_rows, args.seed)
    for name, rows in made.items():
        write_whole(args.folder / f"{name}.json", json_list(rows))
    print(f"{args.num_rows} rows each: {', '.join(f'{name}.json' for name in made)} in {args.folder}")


if __name__ == "__main__":
    run(parse_args, main)
