"""Is a folder's work as it was left? Each run card's hashes are made again, and what can be derived is derived again.

    python scripts/verify.py outputs/dry-run

For each run card below FOLDER: sha256 of the output and of the inputs, and the models' weights and files, against the
card. comparison.json (synthetic_feedback.py --mode cs) and the multifaceted sets (system_messages.py --mode ds) are
derived again from their inputs, and what a model wrote (prompts, responses, judgments, self-play, Janus' stages) from
its journal, by the stage itself with the card's arguments; bytes and the card's counts are compared. That is done in a
temporary folder: FOLDER is never written into. Relative paths on cards are looked up from where this is started.

Exit code 0: all is equal. 1: something differs, or is gone; what, is said in a line each. 2: no folder, or no card.
"""

from __future__ import annotations

import math
import re
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alignment import hashes
from alignment.asking import NOT_ASKED
from alignment.command_line import ArgumentParser, UserError, commit, run
from alignment.replays import Made, Replay
from alignment.run_cards import read_card, run_card_path

UNANSWERED = re.compile(rf"(^|: )(too long|refused|invalid|{NOT_ASKED})")  # as Reply.finish says it, and a replay


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="a folder with run cards, *.run.json, at any depth")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    if not args.folder.is_dir():
        raise UserError(f"{args.folder} is no folder")
    cards = sorted(args.folder.rglob("*.run.json"))
    if not cards:
        raise UserError(f"{args.folder} has no run cards: no stage has finished there")
    differing = 0
    for path in cards:
        with hashed_again():
            differences, note = verified(path)
        differing += bool(differences)
        print(f"{path}: {'differs' if differences else 'equal'}{f' ({note})' if note else ''}", flush=True)
        for line in differences:
            print(f"    {line}", flush=True)
    print(f"{len(cards):,} run cards: {len(cards) - differing:,} equal, {differing:,} differ")
    if differing:
        sys.exit(1)


@contextmanager
def hashed_again() -> Iterator[None]:
    """Large files too: a hash that was remembered tells nothing of a disk that lost a bit."""
    before, hashes.REMEMBERED_FROM = hashes.REMEMBERED_FROM, math.inf
    try:
        yield
    finally:
        hashes.REMEMBERED_FROM = before


def verified(card: Path) -> tuple[list[str], str]:
    """What differs from a card, and what was done beside hashing, or why it could not be."""
    try:
        made = Made.of(card.with_name(card.name.removesuffix(".run.json")))
    except UserError as error:
        return [str(error)], ""
    found, note = made.differences(), "hashes"
    if made.asks and not made.journal.exists():
        note = "hashes; not derived again, as its journal is gone"
    elif made.asks or made.derives:
        try:
            found += [f"journal {made.journal}, line {number} is damaged" for number in made.lines()[1]]
            with made.again() as replay:
                differences, note = derived_differences(made, replay)
        except UserError as error:
            note = f"hashes; not derived again: {error}"
        else:
            found += differences
    return found, note


def derived_differences(made: Made, replay: Replay) -> tuple[list[str], str]:
    """What the stage makes again in another way than it lies here, and what was compared."""
    found, source = [], f"from {made.journal.name}" if made.asks else "from its inputs"
    if replay.is_unknown and any(Path(name).is_dir() for name in made.card["models"]):
        why = "the journal knows a model's folder by its path and times, and these are others now"
        return [], f"hashes; not derived again: {why}"
    if replay.fault:
        found.append(f"{made.stage} ends early when it is run again {source}: {replay.fault}")
    for path in replay.files():
        here = made.output.with_name(path.name)
        if not here.exists():
            found.append(f"{here} is gone; {made.stage} makes it")
        elif here.read_bytes() != path.read_bytes():
            found.append(f"{here} is not what {made.stage} makes again {source}{row_of(here, path)}")
    again = read_card(run_card_path(replay.folder / made.output.name))
    if not found and again and answered(made.card.get("counts")) != answered(again["counts"]):
        found.append(f"the card of {made.output.name} tells other counts than {made.stage} comes to again {source}")
    note = f"hashes; derived again {source}"
    note += f", which lacks {replay.missing:,} of its requests" if replay.missing else ""
    return found, note + (
        f"; it was made at commit {then}" if found and (then := made.card.get("commit")) != commit() else ""
    )


def answered(counts: Any) -> Any:
    """Counts without those of requests that got no whole reply, which no journal holds."""
    if not isinstance(counts, dict):
        return counts
    return {name: answered(count) for name, count in counts.items() if not UNANSWERED.search(name)}


def row_of(one: Path, other: Path) -> str:
    """Where two files that should be the same begin to differ, as a line from 1."""
    with one.open("rb") as left, other.open("rb") as right:
        for number, (mine, theirs) in enumerate(zip(left, right, strict=False), 1):
            if mine != theirs:
                return f": line {number} differs"
    return ": one of them ends earlier"


if __name__ == "__main__":
    run(parse_args, main)
