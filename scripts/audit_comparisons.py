"""What a preference file teaches beside preferences: one self-contained HTML page of checks, each a flag in words.

    python scripts/audit_comparisons.py data/almost_comparison.json --output_file outputs/audit.html \\
        --bench hhh_eval.json question.jsonl TruthfulQA.csv --reward_model outputs/rm

Reads what train.py --objective reward reads, through the same reader. Looks for: the longer response chosen, ranks that
fade at equal length, circles, an order that decides, pairs that come twice or contradict each other, refusals, loops,
little variety, items of benchmarks (--bench, their released files), and with --reward_model whether that model knows
anything that a rule of length does not. Writes the page, the same beside it as JSON (audit.json), and a run card. A
flag is raised where the 95% interval lies beyond its threshold; the exit code is 0 all the same.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from alignment.auditing import contents, duplicates, shortcuts
from alignment.auditing.benches import Bench, read_bench
from alignment.auditing.configurations import circles_flag, configurations_flag
from alignment.auditing.pairs import Pair, read_pairs
from alignment.command_line import ArgumentParser, Progress, UserError, number, run, table
from alignment.engines.scoring import Scorer, local_scorer, models_scored_by, scored
from alignment.journal import Journal
from alignment.outputs import check_no_input
from alignment.pages import page
from alignment.records import write_whole
from alignment.run_cards import claim
from alignment.training_data import report

TEMPLATE = "audit_report.html"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("data_path", metavar="FILE", help="comparisons: .json, .jsonl, .parquet or a hub name")
    flag("--output_file", type=Path, required=True, help="the .html to write")
    flag("--bench", type=Path, nargs="+", default=[], metavar="FILE", help="benchmarks as released, to look for in it")
    flag("--reward_model", help="folder or hub name of a reward model of train.py, or simulated (default: none)")
    flag("--limit", type=number(int, 1), help="only the first so many rows, for a trial (default: all)")
    flag("--seed", type=int, default=42, help="of what is drawn, and of the bootstrap (default: 42)")
    args = parser.parse_args(argv)
    if args.output_file.suffix not in (".html", ".htm"):
        parser.error(f"argument --output_file: {args.output_file} does not end in .html")
    return args


def main(args: Namespace) -> None:
    pairs, dropped = read_pairs(args.data_path, args.limit)
    if not pairs:
        raise UserError(f"data {args.data_path} has no pair that teaches anything: {report(dropped)}")
    benches = [read_bench(path) for path in args.bench]
    scorer = local_scorer(args.reward_model, None, whole=False) if args.reward_model else None
    beside, inputs = args.output_file.with_suffix(".json"), [args.data_path, *args.bench]
    check_no_input(beside, inputs, [])
    with claim(args.output_file, args, script=__file__, inputs=inputs, models=models_scored_by(args)) as held:
        if held.is_done() and beside.exists():
            return print(held.already())
        held.begin()
        rewards = rewards_of(pairs, scorer, args.output_file) if scorer else None
        data = {"source": Path(args.data_path).name} | audited(pairs, dropped, benches, rewards, args.seed)
        write_whole(beside, [json.dumps(data, indent=1, ensure_ascii=False) + "\n"])
        write_whole(args.output_file, [page(TEMPLATE, data)])
        held.finish(data["counts"])
    show(data)
    print(f"audit: {args.output_file}")


def rewards_of(pairs: Sequence[Pair], scorer: Scorer, output: Path) -> list[tuple[float, float]]:
    """The rewards of chosen and rejected of each pair, of texts as long as the model was trained on."""
    asked = [(pair.asked, text) for pair in pairs for text in (pair.chosen, pair.rejected)]
    with Journal(output) as journal:
        found = scored(scorer, *map(list, zip(*asked, strict=True)), journal=journal, label="rewards")
    return list(zip(found[::2], found[1::2], strict=True))


def audited(
    pairs: Sequence[Pair],
    dropped: dict[str, list[int]],
    benches: Sequence[Bench],
    rewards: Sequence[tuple[float, float]] | None,
    seed: int,
) -> dict[str, Any]:
    """What the page and the JSON hold: flags, their numbers, and the tables beside them."""
    checks = [
        partial(shortcuts.length_flag, pairs, seed),
        partial(shortcuts.rank_flag, pairs, seed),
        partial(shortcuts.position_flag, pairs),
        partial(configurations_flag, pairs),
        partial(circles_flag, pairs),
        partial(duplicates.repeats_flag, pairs),
        partial(duplicates.reversed_flag, pairs),
        partial(duplicates.near_prompts_flag, pairs, seed),
        partial(duplicates.near_responses_flag, pairs, seed),
        partial(contents.refusals_flag, pairs),
        partial(contents.loops_flag, pairs),
        partial(contents.diversity_flag, pairs, seed),
        partial(contents.leaks_flag, pairs, benches),
        partial(contents.unusable_flag, dropped, len(pairs)),
    ]
    if rewards:
        checks.append(partial(shortcuts.reward_flag, pairs, rewards, seed))
    flags = []
    with Progress(len(checks), "audit", unit="check") as progress:
        for check in checks:
            flags.append(check())
            progress.update()
    counts = {
        "rows": len(pairs) + sum(map(len, dropped.values())),
        "pairs": len(pairs),
        "prompts": len({pair.prompt for pair in pairs}),
        "configurations": len({name for pair in pairs for name in pair.configurations or ()}),
        "flags": len(flags),
        "raised": sum(flag.raised is True for flag in flags),
        "not measured": sum(flag.raised is None for flag in flags),
    }
    tables = {name: found for flag in flags for name, found in flag.tables.items()}
    told = {"counts": counts, "flags": [flag.told() for flag in flags]}
    return told | tables | {"dropped": dropped, "rules": contents.dropped_rules(pairs)}


def show(data: dict) -> None:
    words = {True: "RAISED", False: "not raised", None: "not measured"}
    rows = [(each["name"], words[each["raised"]], (each["estimate"] or {}).get("text", "–")) for each in data["flags"]]
    print(table([("flag", "", "% [95% interval]"), *rows]))


if __name__ == "__main__":
    run(parse_args, main)
