#!/usr/bin/env python
"""Score a policy or a reward model on static HHH, or a reward model on any comparisons.

    python eval/run_evaluation.py --benchmark_name hhh --data_path hhh_eval.json --model_name_or_path MODEL
    python eval/run_evaluation.py --benchmark_name hhh --data_path hhh_eval.json --reward_model outputs/rm
    python eval/run_evaluation.py --benchmark_name pairs --data_path comparison.json --reward_model outputs/rm

Reads rows {"chosen", "rejected", "type"}, or for `pairs` what train.py reads for reward models, by `meta` where the
rows have one; there it adds how often the longer response, in characters, is the chosen one. Prints accuracy with 95%
Wilson intervals by type and overall; --output_path also writes them with every item's scores, and a run card beside.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.intervals import percent
from alignment.records import read_json, read_rows, write_whole
from alignment.run_cards import claim
from alignment.training.static_hhh import Comparison, by_type, chosen_wins, letter_scores, read_comparisons


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--benchmark_name", choices=("hhh", "pairs"), default="hhh", help="default hhh")
    flag("--data_path", type=Path, required=True, help="the benchmark's rows, a JSON list")
    flag("--model_name_or_path", help="a policy: any causal model")
    flag("--reward_model", help="a reward model as train.py saves it")
    flag("--output_path", type=Path, help="where results go as JSON; default: only printed")
    flag("--batch_tokens", type=number(int, 1), default=8192, help="tokens a batch with padding; default 8192")
    flag(
        "--max_length",
        type=number(int, 1),
        help="tokens of a text, cut from the left; default the model's own, for pairs what it was trained on",
    )
    flag("--dtype", choices=("float32", "bfloat16", "auto"), default="auto", help="default as saved")
    flag("--limit", type=number(int, 1), help="only the first N items, for a trial; default all")
    args = parser.parse_args(argv)
    if bool(args.model_name_or_path) == bool(args.reward_model):
        parser.error("give one of --model_name_or_path (a policy) and --reward_model")
    if args.benchmark_name == "pairs" and not args.reward_model:
        parser.error("--benchmark_name pairs is for a --reward_model")
    return args


def main(args: argparse.Namespace) -> None:
    read = read_pairs if args.benchmark_name == "pairs" else read_comparisons
    pairs = read(args.data_path)[: args.limit]
    if not args.output_path:
        return show(evaluated(args, pairs), args)
    models = [args.model_name_or_path, args.reward_model]
    with claim(args.output_path, args, script=__file__, inputs=[args.data_path], models=models) as held:
        if held.is_done():
            print(held.already())
            return show(read_json(args.output_path, "results"), args)
        found = evaluated(args, pairs)
        held.begin()
        write_whole(args.output_path, [json.dumps(found, indent=1) + "\n"])
        held.finish({"items": len(pairs)})
    show(found, args)


def evaluated(args: argparse.Namespace, pairs: list[Comparison]) -> dict:
    """What --output_path holds: results by type, how often the longer one is chosen, and every item's scores."""
    if args.reward_model:
        scores = reward_scores(args, pairs)
        correct = [float(chosen > rejected) for chosen, rejected in scores]
    else:
        scores = letter_scores(
            args.model_name_or_path, pairs, dtype=args.dtype, max_length=args.max_length, batch_tokens=args.batch_tokens
        )
        correct = [chosen_wins(in_order, swapped) for in_order, swapped in scores]
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs) / len(pairs)
    items = [{"type": pair.type, "correct": c, "scores": s} for pair, c, s in zip(pairs, correct, scores, strict=True)]
    return {"results": by_type(pairs, correct), "longer_wins": longer, "items": items}


def show(found: dict, args: argparse.Namespace) -> None:
    rows = [(name, percent(each["accuracy"], each["interval"]), each["n"]) for name, each in found["results"].items()]
    print(table([("type", "accuracy, % [95% interval]", "n"), *rows]))
    if args.benchmark_name == "pairs":
        print(f"the longer one is chosen in {found['longer_wins']:.1%}")


def read_pairs(path: Path) -> list[Comparison]:
    """Comparisons in any form that train.py reads, of the type that their `meta` is. Raises UserError."""
    from alignment.training_data import read_examples, usable

    kept, _ = usable(read_examples(str(path), "reward"))
    if not kept:
        raise UserError(f"data {path}: no row has two responses that differ")
    kinds = [str(row.get("meta") or "pairs") for row in read_rows(str(path))]
    return [Comparison(each.prompt, *each.responses, kinds[each.row]) for each in kept]


def reward_scores(args: argparse.Namespace, pairs) -> list[list[float]]:
    """[r(chosen), r(rejected)] of every pair, of texts as long as the model was trained on, or --max_length."""
    from alignment.training.reward_model import load, score

    model, template = load(args.reward_model, dtype=args.dtype)
    rows = [pair.prompt if isinstance(pair.prompt, dict) else {"prompt": pair.prompt} for pair in pairs] * 2
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    trained = getattr(model.config, "reward_max_length", None) if args.benchmark_name == "pairs" else None
    limit = args.max_length or trained or model.config.get_text_config().max_position_embeddings
    found = score(model, template, rows, answers, max_length=limit, batch_tokens=args.batch_tokens)
    return [list(both) for both in zip(found[: len(pairs)], found[len(pairs) :], strict=True)]


if __name__ == "__main__":
    run(parse_args, main)
