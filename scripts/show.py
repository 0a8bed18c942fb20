"""What a folder of outputs holds: ALMoST's counts in and out by reason, one comparison side by side, and the paths.

python scripts/show.py quickstart
"""

import shutil
import textwrap
from itertools import zip_longest
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.records import read_json


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the --output_dir of synthetic_feedback.py")
    return parser.parse_args(argv)


def main(args) -> None:
    found = {path: read_json(path, "run card") for path in args.folder.rglob("*.run.json")}
    cards = {path: card for path, card in found.items() if card["script"] == "synthetic_feedback.py"}
    cards = dict(sorted(cards.items(), key=lambda item: ("pg", "rg", "cs").index(item[1]["arguments"]["mode"])))
    if not cards:
        raise UserError(f"{args.folder} has no run cards: no stage of synthetic_feedback.py has finished there")
    for path, card in cards.items():
        print(table([[f"{card['arguments']['mode']}: {output_of(path).name}", ""], *rows(card)]) + "\n")
    comparisons = args.folder / "comparison.json"
    if comparisons.is_file():
        print(side_by_side(read_json(comparisons, "comparisons")))
    print("\n" + "\n".join(f"{output_of(path).stat().st_size:>11,} bytes  {output_of(path)}" for path in cards))
    others = sorted((card["finished"], path, card) for path, card in found.items() if path not in cards)
    for _, path, card in others:
        print(f"{card['seconds']:>9,.0f} seconds  {output_of(path)}  ({card['script']})")


def rows(card: dict) -> list[list]:
    """The counts of a run card, one a row: what, how many."""
    flat = []
    for name, value in card["counts"].items():
        for key, count in value.items() if isinstance(value, dict) else [("", value)]:
            for reason, number in count.items() if isinstance(count, dict) else [("", count)]:
                flat.append(["  " + ": ".join(filter(None, (name, key, reason))), number])
    return flat


def side_by_side(comparisons: list[dict]) -> str:
    """The comparison whose texts are nearest to 400 characters, chosen on the left."""
    if not comparisons:
        return "no comparison was made"
    row = min(comparisons, key=lambda row: abs(len(row["chosen"]) + len(row["rejected"]) - 800))
    width = min(60, shutil.get_terminal_size().columns // 2 - 2)
    columns = [
        [line for part in row[side].split("\n") for line in textwrap.wrap(part, width) or [""]]
        for side in ("chosen", "rejected")
    ]
    head = f"{row['meta']}\n\n{row['prompt']}\n\n{'chosen':<{width}}  | rejected"
    body = [f"{left:<{width}}  | {right}" for left, right in zip_longest(*columns, fillvalue="")]
    return "\n".join([head, *body])


def output_of(run_card: Path) -> Path:
    return run_card.with_name(run_card.name.removesuffix(".run.json"))


if __name__ == "__main__":
    run(parse_args, main)
