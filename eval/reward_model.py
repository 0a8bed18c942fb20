#!/usr/bin/env python
"""What a reward model knows: accuracy by source and by length, what length alone tells, and how sure it may be.

    python eval/reward_model.py --data_path comparison.json --reward_model outputs/rm --output_file outputs/rm.json
    python eval/reward_model.py --data_path hhh_eval.json --reward_model outputs/a outputs/b --output_file hhh.json

Reads any preference file that train.py reads, static HHH, DSP, RewardBench (.parquet, .json) or RewardBench 2, of which
the highest reward of all responses is to be a right one's. Rows that cannot be used are counted by reason. Of each
model, beside the longest response and a random one as controls, it prints with 95% intervals over prompts:

    accuracy       of all; with the longer and the shorter response better equally often; by length, of which the
                   pairs as long as each other to 10% are matched; by `type`, `subset`, `source`, `meta`; a tie is half
    sections       RewardBench's published averages, where all subsets of one are there
    calibration    whether sigmoid(|r(chosen) - r(rejected)|) is how often it is right, also as a picture
    correlations   of reward with length, and of reward with preference where length is held

Several models are compared with the first, choice by choice. Writes all of it, with every score, to --output_file, the
picture beside it as .png, and a run card; what was scored stays in a journal, so an interrupted run goes on. Without
--reward_model it tells what the controls get.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignment import reward_measures as measures
from alignment.choices import GROUPS, TIES, Choice, Choices, read_choices
from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.engines.scoring import SIMULATED, Scorer, local_scorer, scored
from alignment.intervals import percent, with_interval
from alignment.journal import Journal
from alignment.outputs import writing
from alignment.records import read_json, write_whole
from alignment.run_cards import check_no_input, claim

CONTROLS = ("longest", "random")
Scores = list[tuple[list[float], list[float]]]  # of each choice: its better responses, its worse ones


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--data_path", type=Path, required=True, help="choices: a file in any of the forms above")
    shown = (
        "folders or hub names of reward models, simulated?noise=0.5 for a dry run (default: none, the controls alone)"
    )
    flag("--reward_model", nargs="+", default=[], metavar="MODEL", help=shown)
    flag("--output_file", type=Path, required=True, help="where results and scores go, as JSON")
    shown = (
        "tokens of a text, cut from the left (default: a bench's whole texts, of other files as many as in training)"
    )
    flag("--max_length", type=number(int, 1), help=shown)
    flag("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    flag("--limit", type=number(int, 1), help="only the first N rows, for a trial")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    names = names_of(args.reward_model)
    choices = read_choices(args.data_path, args.limit)
    if not ranked(choices.items):
        raise UserError(f"data {args.data_path} has rows of {TIES} alone, of which none is the best; give more rows")
    scorers = [local_scorer(model, args.max_length, whole=choices.is_bench) for model in args.reward_model]
    models = [model for model in args.reward_model if model.partition("?")[0] != SIMULATED]
    picture = args.output_file.with_suffix(".png")
    check_no_input(picture, [args.data_path], [])
    with claim(args.output_file, args, script=__file__, inputs=[args.data_path], models=models) as held:
        if held.is_done():
            print(held.already())
            return show(read_json(args.output_file, "results"))
        held.begin()
        with Journal(args.output_file) as journal:
            scores = {
                name: scores_of(scorer, choices.items, journal, name)
                for name, scorer in zip(names, scorers, strict=True)
            }
        found = measured(choices, scores, args.seed)
        picture.unlink(missing_ok=True)
        if choices.are_pairs and names:
            draw_calibration({name: found["models"][name]["calibration"] for name in names}, picture)
        write_whole(args.output_file, [json.dumps(found, indent=1, ensure_ascii=False) + "\n"])
        held.finish({"choices": len(choices.items), "dropped": found["dropped"]})
    show(found)


def names_of(models: Sequence[str]) -> list[str]:
    """What tables call the models: their folders' names, if no two are alike. Raises UserError for one given twice."""
    if twice := [model for model in models if models.count(model) > 1]:
        raise UserError(f"--reward_model names {twice[0]} twice; a model is compared with another")
    short = [Path(model).name for model in models]
    return short if len({*short, *CONTROLS}) == len(short) + len(CONTROLS) else [str(Path(model)) for model in models]


def scores_of(scorer: Scorer, items: Sequence[Choice], journal: Journal, name: str) -> Scores:
    """Rewards of all responses; those of one prompt next to each other, so that it is computed once."""
    asked = [(choice.prompt, text) for choice in items for text in choice.better + choice.worse]
    prompts, texts = ([each[at] for each in asked] for at in (0, 1))
    return sides(items, scored(scorer, prompts, texts, journal=journal, label=name))


def sides(items: Sequence[Choice], flat: Sequence[float]) -> Scores:
    """One score a response, in order -> those of each choice's better and worse responses."""
    rest = iter(flat)
    return [([next(rest) for _ in choice.better], [next(rest) for _ in choice.worse]) for choice in items]


# Measured


def measured(choices: Choices, scores: dict[str, Scores], seed: int) -> dict[str, Any]:
    """What --output_file holds."""
    items = choices.items
    longest = sides(items, [float(len(text)) for choice in items for text in choice.better + choice.worse])
    random = [([0.0] * len(choice.better), [0.0] * len(choice.worse)) for choice in items]
    by_model = dict(zip(CONTROLS, (longest, random), strict=True)) | scores
    found = {name: model_measures(items, each, seed) for name, each in by_model.items()}
    if choices.are_pairs:
        for name, each in scores.items():
            found[name] |= pair_measures(items, each, seed)
    first, *others = scores or [None]
    keys = [items[at].key for at in ranked(items)]
    differences = [
        {"first": first, "second": other}
        | measures.compared(*(credits_of(items, scores[name]) for name in (first, other)), keys, seed)
        for other in others
    ]
    told = [
        choice.groups | {"scores": {name: each[at] for name, each in scores.items()}} for at, choice in enumerate(items)
    ]
    dropped = {reason: len(rows) for reason, rows in choices.dropped.items()}
    return {"choices": len(items), "dropped": dropped, "models": found, "differences": differences, "items": told}


def credits_of(items: Sequence[Choice], scores: Scores) -> np.ndarray:
    return measures.credit(*zip(*(scores[at] for at in ranked(items)), strict=True))


def ranked(items: Sequence[Choice]) -> list[int]:
    """The places of choices of which one response is to be best: all but RewardBench 2's ties."""
    return [at for at, choice in enumerate(items) if choice.groups.get("subset") != TIES]


def model_measures(items: Sequence[Choice], scores: Scores, seed: int) -> dict[str, Any]:
    """Accuracy of all, by group and by length, and RewardBench's sections."""
    credits, kept = credits_of(items, scores), [items[at] for at in ranked(items)]
    keys = [choice.key for choice in kept]
    groups = {
        group: measures.by_group([choice.groups.get(group) for choice in kept], credits, keys)
        for group in GROUPS
        if any(group in choice.groups for choice in kept)
    }
    if all(len(choice.better) == len(choice.worse) == 1 for choice in kept):
        gaps = measures.length_gaps(*([getattr(choice, side)[0] for choice in kept] for side in ("better", "worse")))
        buckets = measures.by_group(measures.length_buckets(gaps), credits, keys)
        groups["length"] = {name: buckets[name] for name in measures.BUCKETS if name in buckets}
        groups["balanced"] = measures.length_balanced(credits, gaps, keys, seed)
    subsets = [choice.groups.get("subset") for choice in kept]
    by_subset = {name: credits[[subset == name for subset in subsets]] for name in dict.fromkeys(subsets) if name}
    tied = {choice.id: each for choice, each in zip(items, scores, strict=True) if choice.groups.get("subset") == TIES}
    if tied_scores := list(measures.ties_scores(tied).values()):
        by_subset[TIES] = np.array(tied_scores)
        groups["subset"][TIES] = measures.weighted({TIES: (1.0, by_subset[TIES])}, seed)
    return {"all": measures.accuracy(credits, keys)} | groups | {"section": measures.sections(by_subset, seed)}


def pair_measures(items: Sequence[Choice], scores: Scores, seed: int) -> dict[str, Any]:
    keys = [choice.key for choice in items]
    differences = np.array([better[0] - worse[0] for better, worse in scores])
    gaps = measures.length_gaps([choice.better[0] for choice in items], [choice.worse[0] for choice in items])
    return {
        "ties": int((differences == 0).sum()),
        "calibration": measures.calibration(differences, keys, seed),
        "correlations": measures.correlations(differences, gaps, keys, seed),
    }


# Shown


def show(found: dict[str, Any]) -> None:
    models = found["models"]
    dropped = "".join(f"; dropped {count:,} {reason}" for reason, count in found["dropped"].items())
    print(f"{found['choices']:,} choices{dropped}")
    print(table([("right, % [95% interval]", "n", *models), *accuracy_rows(models)]))
    own = [name for name in models if name not in CONTROLS]
    if own and "calibration" in models[own[0]]:
        print(f"\n{table([('', *own), *pair_rows([models[name] for name in own])])}")
    for each in found["differences"]:
        told = with_interval(100 * each["value"], tuple(100 * edge for edge in each["interval"]), "+z.1f")
        only = f"{each['only_first']:,} are right by it alone, {each['only_second']:,} by the other alone"
        print(f"{each['first']} above {each['second']}: {told} points; {only}")


def accuracy_rows(models: dict[str, dict]) -> list[tuple]:
    """A line for each group, with its number and each model's accuracy."""
    first = next(iter(models.values()))
    rows = [("all", *cells([model["all"] for model in models.values()]))]
    if first.get("balanced"):
        rows.append(("longer and shorter alike", *cells([model["balanced"] for model in models.values()])))
    for group in ("length", *GROUPS, "section"):
        for name in first.get(group, {}):
            label = f"the better is {name}" if group == "length" else f"{group} {name}"
            rows.append((label, *cells([model[group][name] for model in models.values()])))
    return rows


def cells(found: Sequence[dict]) -> list:
    return [found[0]["n"], *(percent(each["accuracy"], tuple(each["interval"])) for each in found)]


def pair_rows(models: Sequence[dict]) -> list[tuple]:
    rows = [("ties", *(model["ties"] for model in models))]
    rows.append(("error of sigmoid(difference)", *(f"{model['calibration']['error']:.3f}" for model in models)))
    losses = [model["calibration"]["log_loss"] for model in models]
    rows.append(
        ("log loss, a coin's is 0.693", *(with_interval(each["value"], tuple(each["interval"])) for each in losses))
    )
    for name in models[0]["correlations"]:
        each = [model["correlations"][name] for model in models]
        told = [with_interval(found["value"], tuple(found["interval"]), "+z.3f") if found else "none" for found in each]
        rows.append((f"correlation, {name}", *told))
    return rows


def draw_calibration(found: dict[str, dict], path: Path) -> None:
    """How often each model is right over how sure it is, with intervals, beside the diagonal; and how many pairs."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print(f"matplotlib is not installed: {path.with_suffix('.json').name} is written, {path.name} is not")
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.add_subplot(1, 2, 1, title="how often it is right", xlabel="sigmoid(|difference|)")
    counts = figure.add_subplot(1, 2, 2, title="pairs", xlabel="sigmoid(|difference|)")
    axes.plot([0.5, 1], [0.5, 1], ":", color="grey", label="calibrated")
    for name, each in found.items():
        sure = [part["confidence"] for part in each["bins"]]
        right = np.array([part["accuracy"] for part in each["bins"]])
        low, high = np.array([part["interval"] for part in each["bins"]]).T
        axes.errorbar(sure, right, np.clip([right - low, high - right], 0, None), fmt=".-", capsize=2, label=name)
        counts.plot(sure, [part["n"] for part in each["bins"]], ".-", label=name)
    axes.set_ylim(0, 1)
    axes.legend(fontsize="x-small")
    counts.set_ylim(0)
    with writing(path):
        figure.savefig(path, dpi=120)


if __name__ == "__main__":
    run(parse_args, main)
