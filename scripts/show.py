"""What a folder of outputs holds: counts in and out by reason, paths, one comparison side by side, and answers.

python scripts/show.py quickstart
"""

import shutil
import textwrap
from itertools import zip_longest
from pathlib import Path

from alignment import records
from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.records import read_json

SHOWN = 300  # characters of an answer


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
    others = {
        path: found[path] for path in sorted(found, key=lambda path: found[path]["finished"]) if path not in cards
    }
    print("\n".join(f"{output_of(path).stat().st_size:>11,} bytes  {output_of(path)}" for path in cards))
    for path, card in others.items():
        print(f"{card['seconds']:>9,.0f} seconds  {output_of(path)}  ({card['script']})")
    if comparisons := records.found(args.folder, "comparison", records.RESPONSES):
        read = read_json if comparisons.suffix == ".json" else records.read_rows  # a list may be empty
        print("\n" + side_by_side(read(comparisons, "comparisons")))
    answered = [output_of(path) for path, card in others.items() if card["script"] == "generate.py"]
    print(answers({path.stem: read_json(path, "answers") for path in answered}))


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


def answers(files: dict[str, list[dict]]) -> str:
    """Each instruction with what every model said, its first SHOWN characters; `files` are generate.py's by name."""
    said: dict[str, list[str]] = {}
    for name, found in files.items():
        for row in found:
            lines = textwrap.wrap(textwrap.shorten(row["output"] or "(nothing)", SHOWN, placeholder=" ..."), 108)
            said.setdefault(row["instruction"], []).append(f"{name:>8}  " + "\n          ".join(lines))
    return "\n".join(f"\n{instruction}\n" + "\n".join(each) for instruction, each in said.items())


def output_of(run_card: Path) -> Path:
    return run_card.with_name(run_card.name.removesuffix(".run.json"))


if __name__ == "__main__":
    run(parse_args, main)
