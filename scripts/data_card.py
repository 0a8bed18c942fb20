"""README.md of a folder of data that our scripts made, for whoever gets it: what its files hold, and what made them.

    python scripts/data_card.py outputs/almost      # comparison.json, its configurations, prompts.txt

Reads the run cards in the folder, and of each file that one tells of the number of its rows and their keys. A file that
was changed since its card was written is refused, and so is a README.md that somebody else wrote. Models have cards
already: train.py and its like write them into the folder that they save.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from alignment.command_line import ArgumentParser, UserError, run
from alignment.hashes import sha256
from alignment.model_cards import flat, licence_of, portable, shown, shown_hash, words_of
from alignment.records import read_prompts, read_rows, write_whole
from alignment.run_cards import read_card

MADE_BY = "Written by scripts/data_card.py"


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="where the files and their run cards are")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    cards = {path.name.removesuffix(".run.json"): read_card(path) for path in sorted(args.folder.glob("*.run.json"))}
    files = {name: card for name, card in cards.items() if card and (args.folder / name).is_file()}
    if not files:
        raise UserError(f"{args.folder} has no file with a run card: no script of this repository made one there")
    target = args.folder / "README.md"
    if target.exists() and MADE_BY not in target.read_text("utf-8", errors="replace"):
        raise UserError(f"{target} is somebody else's; move it away first")
    for name, card in files.items():
        if sha256(args.folder / name) != card.get("output"):
            raise UserError(f"{args.folder / name} was changed since its run card was written; make it again first")
    lines = [f"# {args.folder.resolve().name}", "", "| file | holds |", "|---|---|"]
    lines += [f"| `{name}` | {held_in(args.folder / name)} |" for name in files]
    for name, card in files.items():
        lines += ["", f"## {name}", "", *told_of(card)]
    lines += ["", f"{MADE_BY} of the run cards beside the files.", ""]
    write_whole(target, ["\n".join(lines)])
    print(f"{target}: {len(files)} files")


def held_in(path: Path) -> str:
    """How many rows a file holds, and their keys."""
    if path.suffix == ".txt":
        return f"{len(read_prompts(path)):,} lines of text"
    if path.suffix not in (".json", ".jsonl", ".parquet"):
        return f"{path.stat().st_size:,} bytes"
    try:
        rows = read_rows(path)
    except UserError:  # a configuration's replies, or results
        return f"JSON, {path.stat().st_size:,} bytes"
    return f"{len(rows):,} rows of {', '.join(dict.fromkeys(key for row in rows for key in row))}"


def told_of(card: dict[str, Any]) -> list[str]:
    """What made a file, as its run card has it, without where on a machine it was."""
    words = ["python", card["script"], *map(portable, words_of(card["arguments"]))]
    lines = [f"    {shlex.join(words)}", ""]
    models, inputs = card.get("models", {}), card.get("inputs", {})
    lines += [
        f"- model {portable(name)}{shown_hash(found)}, licence: {licence(name)}" for name, found in models.items()
    ]
    lines += [f"- from {portable(name)}{shown_hash(found)}" for name, found in inputs.items()]
    lines += [f"- {name}: {shown(value)}" for name, value in flat(card.get("counts", {}))]
    made_with = ", ".join(f"{name} {number}" for name, number in card.get("versions", {}).items())
    return [*lines, f"- {card.get('finished')}, with {made_with}; code {card.get('commit') or 'unknown'}"]


def licence(model: str) -> str:
    return licence_of(model) or "not stated"


if __name__ == "__main__":
    run(parse_args, main)
