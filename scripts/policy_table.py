"""Policies on the same held-out prompts in one table: reward, what it gained on the first policy, length, static HHH.

    python scripts/policy_table.py outputs/almost_chain/answers base sft ppo

Reads <name>.candidates.jsonl of each, which generate.py --reward_model writes, and <name>.hhh.json of
eval/run_evaluation.py where it is there. A gain is over the prompts that both policies answered, prompt by prompt, with
the interval of a bootstrap over prompts; "longer" is how often an answer has more characters than the first policy's.
Length explains of a gain what the same lengthening is worth among candidates to one prompt: the slope of reward on
characters, both less their prompt's mean, over all candidates of --self_play, a file of self_play.py.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np

from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.intervals import bootstrap, paired_bootstrap, percent, with_interval
from alignment.records import read_json, read_rows


class Answer(NamedTuple):
    reward: float
    characters: int
    ended: bool  # by the policy itself


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="where the answers are")
    parser.add_argument("names", nargs="+", metavar="policy", help="names of the policies, that to compare with first")
    parser.add_argument("--self_play", type=Path, help="candidates that tell what length is worth; default: not told")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap; default 0")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    answers = {name: read_answers(args.folder / f"{name}.candidates.jsonl") for name in args.names}
    first = answers[args.names[0]]
    slope = slope_of_reward(args.self_play) if args.self_play else None
    if slope is not None:
        print(f"reward among candidates to one prompt: {100 * slope:+.3f} for 100 characters more\n")
    head = ("policy", "answers", "reward [95% interval]", "gain", "of it length", "characters", "longer, %", "ended, %")
    rows = [(*head, "HHH, %")]
    for name, found in answers.items():
        rewards, lengths = (np.array([each[at] for each in found.values()], float) for at in (0, 1))
        shared = [prompt for prompt in found if prompt in first]
        pairs = np.array([[found[prompt].reward, first[prompt].reward] for prompt in shared]).reshape(-1, 2)
        longer = sum(found[prompt].characters > first[prompt].characters for prompt in shared)
        gain = of_length = "-"
        if found is not first and shared:
            interval = paired_bootstrap(*pairs.T, np.mean, seed=args.seed)
            gain = with_interval(pairs[:, 0].mean() - pairs[:, 1].mean(), interval, "+z.3f")
            more = np.mean([found[prompt].characters - first[prompt].characters for prompt in shared])
            of_length = of_length if slope is None else f"{slope * more:+.3f}"
        rows.append(
            (
                name,
                len(found),
                with_interval(rewards.mean(), bootstrap(rewards, np.mean, seed=args.seed)),
                gain,
                of_length,
                with_interval(lengths.mean(), bootstrap(lengths, np.mean, seed=args.seed), ".0f"),
                "-" if gain == "-" else f"{100 * longer / len(shared):.0f}",
                f"{100 * sum(each.ended for each in found.values()) / len(found):.0f}",
                static_hhh(args.folder / f"{name}.hhh.json"),
            )
        )
    print(table(rows))


def read_answers(path: Path) -> dict[str, Answer]:
    """{prompt: answer} of the rows that got one. Raises UserError where none has a reward."""
    found = {}
    for row in read_rows(path, "candidates"):
        each = None if row["chosen"] is None else row["candidates"][row["chosen"]]
        if each and each["output"]:
            if each["reward"] is None:
                raise UserError(f"candidates {path} have no rewards; make them with generate.py --reward_model")
            found[row["instruction"]] = Answer(each["reward"], len(each["output"]), each["finish"] == "stop")
    if not found:
        raise UserError(f"candidates {path}: no prompt was answered")
    return found


def slope_of_reward(path: Path) -> float:
    """Least squares of reward on characters within turns, over the candidates that were scored."""
    centred = []
    for dialogue in read_rows(path, "self-play"):
        for turn in dialogue["turns"]:
            kept = [(len(each["output"]), each["reward"]) for each in turn["candidates"] if each["reward"] is not None]
            centred += (np.array(kept) - np.mean(kept, axis=0)).tolist() if len(kept) > 1 else []
    lengths, rewards = np.array(centred).reshape(-1, 2).T
    if not lengths.any():
        raise UserError(f"{path} has no turn with two scored candidates of different lengths")
    return float((lengths * rewards).sum() / (lengths**2).sum())


def static_hhh(path: Path) -> str:
    if not path.is_file():
        return "-"
    everything = read_json(path, "results")["results"]["all"]
    return percent(everything["accuracy"], everything["interval"])


if __name__ == "__main__":
    run(parse_args, main)
