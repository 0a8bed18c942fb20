#!/usr/bin/env python
"""The tables of self_play_study.sh: what self-play gains, and how much of it is length.

    python studies/self_play_table.py outputs/self_play_study --ways reward random longest

Reads <way>.candidates.jsonl and before.candidates.jsonl of generate.py, and <way>/self_play.jsonl. Length explains of a
gain what the same lengthening is worth among candidates to one prompt: the slope of reward on characters, both less
their prompt's mean, over all candidates of the first way's self-play.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.intervals import bootstrap, paired_bootstrap, with_interval
from alignment.records import read_rows


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="the study's OUT")
    parser.add_argument("--ways", nargs="+", required=True, help="of --choose, a policy each")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    slope = slope_of_reward(args.folder / args.ways[0] / "self_play.jsonl")
    print(f"reward among candidates to one prompt: {100 * slope:+.3f} for 100 characters more\n")
    before = answers(args.folder / "before.candidates.jsonl")
    rows = [("policy", "reward", "gain", "of it length", "characters", "more characters")]
    for name in ("before", *args.ways):
        after = answers(args.folder / f"{name}.candidates.jsonl")
        shared = sorted(before.keys() & after.keys())
        if not shared:
            raise UserError(f"{name}: no prompt was answered both before and after")
        first, second = (np.array([each[prompt] for prompt in shared]) for each in (after, before))  # (prompts, 2)
        shown = [name]
        for column in (0, 1):
            form = ("z.2f", "z.0f")[column]
            one, other = first[:, column], second[:, column]
            shown.append(with_interval(one.mean(), bootstrap(one, np.mean, seed=0), form))
            gain = paired_bootstrap(one, other, np.mean, seed=0)
            shown.append("" if name == "before" else with_interval(one.mean() - other.mean(), gain, f"+{form}"))
        longer = first[:, 1].mean() - second[:, 1].mean()
        explained = "" if name == "before" else f"{slope * longer:+.2f}"
        rows.append((*shown[:3], explained, *shown[3:]))
    print(table(rows))


def answers(path: Path) -> dict[str, tuple[float, int]]:
    """Reward and characters of the chosen answer to each instruction."""
    found = {}
    for row in read_rows(path, "candidates"):
        chosen = row["candidates"][row["chosen"]] if row["chosen"] is not None else {"reward": None}
        if chosen["reward"] is not None:
            found[row["instruction"]] = (chosen["reward"], len(chosen["output"]))
    return found


def slope_of_reward(path: Path) -> float:
    """Least squares of reward on characters within turns, over the candidates that were scored."""
    centred = []
    for line in path.read_text(encoding="utf-8").splitlines():
        for turn in json.loads(line)["turns"]:
            kept = [(len(each["output"]), each["reward"]) for each in turn["candidates"] if each["reward"] is not None]
            centred += (np.array(kept) - np.mean(kept, axis=0)).tolist() if len(kept) > 1 else []
    if not centred:
        raise UserError(f"{path} has no turn with two scored candidates")
    lengths, rewards = np.array(centred).T
    return float((lengths * rewards).sum() / (lengths**2).sum())


if __name__ == "__main__":
    run(parse_args, main)
