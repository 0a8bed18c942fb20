"""What training did to preferred and other responses that nothing was trained on: log p of both, before and after.

    python studies/preference_table.py pairs.json --models base outputs/cut outputs/dpo --template alpaca

Reads pairs as train.py learns them, and policies or adapters, that to compare with first. Prints of each the mean log p
of a token of chosen and of rejected responses, how often the chosen one has the higher mean, and by how much more the
two are apart than under the first model: over pairs that fit all of them, with 95% bootstrap intervals over pairs.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.intervals import bootstrap, paired_bootstrap, percent, wilson, with_interval
from alignment.templates import CHOICES
from alignment.training_data import read_examples, usable


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("data_path", help="prompt, chosen, rejected: any file that train.py --objective dpo reads")
    parser.add_argument("--models", nargs="+", required=True, help="policies or adapters; the first is compared with")
    parser.add_argument("--template", choices=CHOICES, required=True, help="that all of them were trained with")
    parser.add_argument("--cutoff_len", type=number(int, 8), default=1024, help="tokens; longer pairs are left out")
    parser.add_argument("--limit", type=number(int, 1), help="pairs, from the start (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    return parser.parse_args(argv)


def token_means(model: str, examples: list, args: Namespace) -> np.ndarray:
    """(pairs, 2): log p of a token of chosen and of rejected, end token included; NaN of pairs that are too long."""
    from alignment.training.likelihoods import Likelihoods

    policy = Likelihoods(model, args.template)
    rows = [example.prompt for example in examples for _ in range(2)]
    responses = [text for example in examples for text in example.responses]
    samples = policy.samples(rows, responses)
    fits = [max(map(len, samples[n : n + 2])) <= args.cutoff_len for n in range(0, len(samples), 2)]
    kept = [n for n in range(len(samples)) if fits[n // 2]]
    found = np.full(len(samples), np.nan)
    sums = policy.score([rows[n] for n in kept], [responses[n] for n in kept]) if kept else []
    found[kept] = np.array(sums) / [len(samples[n]) - samples[n].prompt_length for n in kept]
    return found.reshape(-1, 2)


def gap(pairs: np.ndarray) -> float:
    """Mean log p of a chosen token less that of a rejected one, (pairs, 2)."""
    return float((pairs[:, 0] - pairs[:, 1]).mean())


def described(model: str, pairs: np.ndarray, more: str, seed: int) -> tuple[str, ...]:
    """A model's line of the table."""
    right = int((pairs[:, 0] > pairs[:, 1]).sum())
    sides = [f"{side:.3f}" for side in pairs.mean(0)]
    of_gap = with_interval(gap(pairs), bootstrap(pairs, gap, seed=seed))
    return Path(model).name, *sides, of_gap, more, percent(right / len(pairs), wilson(right, len(pairs)))


def main(args: Namespace) -> None:
    examples, dropped = usable(read_examples(args.data_path, "dpo", args.limit))
    if not examples:
        raise UserError(f"data {args.data_path}: no pair can be compared")
    means = [token_means(model, examples, args) for model in args.models]
    there = ~np.isnan(means).any(axis=(0, 2))
    if not there.any():
        raise UserError(f"data {args.data_path}: no pair fits --cutoff_len {args.cutoff_len} under all models")
    print(f"{there.sum()} pairs, {sum(map(len, dropped.values()))} unusable, {(~there).sum()} too long")
    first, *others = (each[there] for each in means)
    shown = [("", "chosen", "rejected", "gap", "more than the first", "chosen likelier, % [95% interval]")]
    shown.append(described(args.models[0], first, "", args.seed))
    for model, each in zip(args.models[1:], others, strict=True):
        interval = paired_bootstrap(each, first, gap, seed=args.seed)
        more = with_interval(gap(each) - gap(first), interval, "+z.4f")
        shown.append(described(model, each, more, args.seed))
    print(table(shown))


if __name__ == "__main__":
    run(parse_args, main)
