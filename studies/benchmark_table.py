"""Benchmarks of policies and reward models in one Markdown table, % with 95% intervals, and as a picture.

    python studies/benchmark_table.py outputs/benchmark_table/eval

Reads what studies/benchmark_table.sh left there: <model>.hhh.json and <model>.truthful.json of eval/run_evaluation.py,
and hhh.json, dsp.json and pairs.json of eval/reward_model.py, each of all reward models and the controls. Prints the
table and what each policy is above --base, question by question, and writes benchmark_table.png beside them.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import numpy as np

from alignment.command_line import ArgumentParser, UserError, run
from alignment.intervals import paired_bootstrap, percent, with_interval
from alignment.outputs import writing
from alignment.records import read_json
from alignment.reward_measures import BUCKETS

CHOICES = {"hhh": "static HHH", "dsp": "DSP", "pairs": "held-out pairs"}
TRUTHFUL = {"mc1_true_or_false": "MC1, true or false", "mc1": "MC1", "mc2": "MC2"}
ALIKE = BUCKETS[2]
LENGTH_HELD = "reward and preference, partial"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("folder", type=Path, help="where the results are")
    parser.add_argument("--base", metavar="NAME", help="a policy there, from which the others come (default: none)")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    choices = {name: read_json(args.folder / f"{name}.json", "results") for name in CHOICES}
    measured = {benchmark: results(args.folder, benchmark) for benchmark in ("hhh", "truthful")}
    if args.base and args.base not in measured["hhh"]:
        raise UserError(f"--base {args.base} is none of {', '.join(measured['hhh'])}")
    policies = {name: each["results"]["all"] for name, each in measured["hhh"].items()}
    truthful = {name: each["results"] for name, each in measured["truthful"].items()}
    head = ["% [95% interval]", CHOICES["hhh"], *(f"TruthfulQA {told}" for told in TRUTHFUL.values())]
    head += [CHOICES["dsp"], CHOICES["pairs"], "of these as long, to 10%", "longer and shorter alike"]
    head.append("correlation with preference, length held")
    rows = [policy_row(name, hhh, truthful) for name, hhh in policies.items()]
    rows += [reward_row(name, choices, truthful) for name in choices["hhh"]["models"]]
    print(markdown([head, *rows]))
    counts = [f"{choices[name]['choices']:,} of {told}" for name, told in CHOICES.items()]
    alike = choices["pairs"]["models"]["random"]["length"].get(ALIKE, {"n": 0})["n"]
    questions = next(each["n"] for found in truthful.values() for each in found.values())
    print(f"\nChoices: {', '.join(counts)}, {alike:,} of these as long as each other to 10%; {questions:,} questions.")
    print("MC1 and MC2 are by likelihood, a reward model's MC1 by its reward.")
    for name in measured["hhh"] if args.base else ():
        if name != args.base:
            print(f"{name} above {args.base}, points: {differences(measured, name, args.base)}")
    draw(panels(policies, choices), args.folder / "benchmark_table.png")


def results(folder: Path, benchmark: str) -> dict[str, Any]:
    """{model: results} of eval/run_evaluation.py. Raises UserError where there are none."""
    paths = sorted(folder.glob(f"*.{benchmark}.json"))
    if not paths:
        raise UserError(f"{folder} has no <model>.{benchmark}.json: eval/run_evaluation.py has measured nothing there")
    return {path.name.removesuffix(f".{benchmark}.json"): read_json(path, "results") for path in paths}


def policy_row(name: str, hhh: dict, truthful: dict[str, dict]) -> list[str]:
    asked = truthful.get(name, {})
    return [name, share(hhh), *(share(asked.get(measure)) for measure in TRUTHFUL), *["–"] * 5]


def reward_row(name: str, choices: dict[str, dict], truthful: dict[str, dict]) -> list[str]:
    hhh, dsp, pairs = (choices[each]["models"][name] for each in CHOICES)
    asked = truthful.get(name, {})
    chances = next(each for each in truthful.values() if "mc2" in each)
    mc1 = [f"{100 * chances[measure]['chance']:.1f}" for measure in TRUTHFUL] if name == "random" else None
    mc1 = mc1 or ["–", share(asked.get("mc1_reward")), "–"]
    held = (pairs.get("correlations") or {}).get(LENGTH_HELD)
    told = with_interval(held["value"], tuple(held["interval"]), "+z.2f") if held else "–"
    return [
        name,
        share(hhh["all"]),
        *mc1,
        share(dsp["all"]),
        share(pairs["all"]),
        share(pairs["length"].get(ALIKE)),
        share(pairs.get("balanced")),
        told,
    ]


def differences(measured: dict[str, dict], name: str, base: str) -> str:
    """What a policy is above its base in each measure, both on the same items, with paired intervals."""
    told = []
    for benchmark, measures in (("hhh", {"correct": CHOICES["hhh"]}), ("truthful", TRUTHFUL)):
        for measure, called in measures.items():
            sides = [np.array([each[measure] for each in measured[benchmark][who]["items"]]) for who in (name, base)]
            edges = paired_bootstrap(*sides, np.mean, seed=0)
            value = with_interval(100 * (sides[0].mean() - sides[1].mean()), tuple(100 * e for e in edges), "+z.1f")
            told.append(f"{called} {value}")
    return "; ".join(told)


def panels(policies: dict[str, dict], choices: dict[str, dict]) -> dict[str, dict[str, dict]]:
    """{title: {model: accuracy and its interval}}, of all but the random response, which is the picture's line."""
    models = [name for name in choices["hhh"]["models"] if name != "random"]
    found = {CHOICES[name]: {model: each["models"][model]["all"] for model in models} for name, each in choices.items()}
    found[CHOICES["hhh"]] = policies | found[CHOICES["hhh"]]
    balanced = {model: choices["pairs"]["models"][model].get("balanced") for model in models}
    known = {model: each for model, each in balanced.items() if each}
    return found | ({"longer and shorter alike": known} if known else {})


def draw(found: dict[str, dict[str, dict]], path: Path) -> None:
    """A panel a benchmark, a line a model: accuracy in % with its interval, and a coin's 50."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print(f"matplotlib is not installed: {path.name} is not drawn")
    names = list(dict.fromkeys(name for panel in found.values() for name in panel))[::-1]
    figure = Figure(figsize=(11, 0.9 + 0.32 * len(names)), layout="constrained")
    plots = figure.subplots(1, len(found), sharey=True)
    for axes, (title, panel) in zip(plots, found.items(), strict=True):
        at = [names.index(name) for name in panel]
        right = np.array([each["accuracy"] for each in panel.values()])
        low, high = np.array([each["interval"] for each in panel.values()]).T
        axes.axvline(50, linestyle=":", color="grey")
        # rounding may set a mean a hair outside of its own interval
        axes.errorbar(100 * right, at, xerr=100 * np.clip([right - low, high - right], 0, None), fmt="o", capsize=2)
        axes.set_title(f"{title}, %", fontsize="medium")
    plots[0].set_yticks(range(len(names)), names)
    with writing(path):
        figure.savefig(path, dpi=120)


def share(found: dict | None) -> str:
    return percent(found["accuracy"], tuple(found["interval"])) if found else "–"


def markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


if __name__ == "__main__":
    run(parse_args, main)
