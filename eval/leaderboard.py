#!/usr/bin/env python
r"""Results of many models and evaluations in one table: markdown, CSV, and a page with every interval drawn.

    python eval/leaderboard.py --results outputs/*/scores.json outputs/against_davinci.json --output_dir outputs/board

Reads what the scripts of eval/ write, as long as the run card beside it says that the run ended and that the file is
what it wrote; and alpaca_eval's annotations.json. Takes every number that has an interval, but for those of parts
(`by_category`, ...), and writes into --output_dir:

    leaderboard.csv    a line a number: benchmark, data, measure, judge, template, model, against, value, low, high, n,
                       date, card, file
    leaderboard.md     tables of what can be compared, the highest value first
    leaderboard.html   the same, with the intervals side by side

`template` is a hash of the judge's prompt. Numbers of different data, judges or prompts are in different tables.
"""

from __future__ import annotations

import csv
import io
import re
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.command_line import ArgumentParser, UserError, number, run, warn
from alignment.hashes import sha256
from alignment.intervals import bootstrap, with_interval
from alignment.pages import page
from alignment.records import is_number, read_json, write_whole
from alignment.run_cards import read_card, run_card_path

VALUES = ("difference", "value", "mean", "win_rate", "accuracy", "f1", "points")  # whose interval stands beside them
COUNTS = ("n", "of", "prompts", "items", "summaries")
STRUCTURE = {"summary", "results", "models", "policies", "pairs", "compared", "ladder", "measures"}
# Parts, what is of the judge, and rows
LEFT_OUT = ("by_", "bins", "self_test", "place", "replies", "items", "instances", "rows", "comparisons")
NAMED = {"models", "policies"}  # whose keys are models
ANNOTATED = ("generator_1", "generator_2", "annotator")  # alpaca_eval's: the reference, the model, the judge


class Number(NamedTuple):
    """A row of a table; the first five name the table."""

    benchmark: str
    data: str
    measure: str
    judge: str
    template: str
    model: str
    against: str
    value: float
    low: float
    high: float
    n: int | None
    date: str
    card: str
    file: str

    @property
    def table(self) -> tuple[str, ...]:
        return self[:5]


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--results", type=Path, nargs="+", required=True, metavar="FILE", help="results of eval/'s scripts, as JSON")
    add("--output_dir", type=Path, required=True, help="where the three files go")
    add("--digits", type=number(int, 0, 9), default=3, help="after the point, in the table (default: 3)")
    add("--seed", type=int, default=42, help="of alpaca_eval's intervals (default: 42)")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    numbers: list[Number] = []
    warnings: list[str] = []
    for path in dict.fromkeys(args.results):
        found = read_json(path, "results")
        if is_annotations(found):
            own = list(of_annotations(found, path, args.seed))
            if not own:
                warn(f"{path} is left out: none of its verdicts could be read")
            elif lost := sum(row["preference"] is None for row in found):
                warnings.append(f"{found[0]['annotator']}, {path}: {lost:,} of {len(found):,} pairs have no verdict")
            numbers += own
            continue
        card = read_card(run_card_path(path))
        if fault := fault_of(path, card):
            warn(f"{path} is left out: {fault}")
            continue
        own = list(of_results(found, path, card))
        if not own:
            warn(f"{path} is left out: it has no number with an interval")
        numbers += own
        summary = found.get("summary") if isinstance(found, dict) else None
        said = summary.get("warnings") or [] if isinstance(summary, dict) else []
        warnings += [f"{summary.get('judge')}, {path}: {line}" for line in said]
    if not numbers:
        raise UserError("no results are left; give files that the scripts of eval/ wrote, their run cards beside them")
    numbers.sort(key=lambda each: (each.table, -each.value))
    data = {"columns": Number._fields, "numbers": numbers, "warnings": warnings, "digits": args.digits}
    write_whole(args.output_dir / "leaderboard.csv", [as_csv(numbers)])
    write_whole(args.output_dir / "leaderboard.md", [as_markdown(numbers, warnings, args.digits)])
    write_whole(args.output_dir / "leaderboard.html", [page("leaderboard.html", data)])
    models = len({each.model for each in numbers})
    print(f"{len(numbers):,} numbers of {models:,} models: {args.output_dir}/leaderboard.md, .csv and .html")


# Numbers of a file


def fault_of(path: Path, card: dict[str, Any] | None) -> str | None:
    """Why a file's numbers are not those of a run that ended."""
    if card is None:
        return f"no run card {run_card_path(path).name} says that its run ended"
    if not all(isinstance(card.get(name), str) for name in ("script", "finished")):
        return f"its run card {run_card_path(path).name} is damaged"
    return None if card.get("output") == sha256(path, "results") else "it was changed since its run ended"


def of_results(found: Any, path: Path, card: dict[str, Any]) -> Iterator[Number]:
    """Every value with an interval in a result of ours."""
    arguments, summary = card["arguments"], found.get("summary") if isinstance(found, dict) else None
    told = summary if isinstance(summary, dict) else {}
    answers = found.get("model") if isinstance(found, dict) else None
    asked = next((arguments[name] for name in ("reward_model", "model_name_or_path") if arguments.get(name)), None)
    benchmark = arguments.get("benchmark_name") or Path(card["script"]).stem
    judge, template = str(told.get("judge") or arguments.get("scorer") or ""), str(told.get("template") or "")
    about = (card["finished"][:10], run_card_path(path).name, str(path))
    for names, value, (low, high), n in walked(found):
        model = names.get("model") or answers or (None if judge else asked) or path.stem
        measure = " ".join(names["path"]) or "value"
        table = (benchmark, data_of(arguments), measure, judge, template)
        yield Number(*table, str(model), names.get("against", ""), value, low, high, n, *about)


def data_of(arguments: dict[str, Any]) -> str:
    """The files that the questions came from, by their names."""
    found = next((arguments[name] for name in ("bench", "questions", "data_path") if arguments.get(name)), [])
    return " ".join(Path(str(each)).stem for each in (found if isinstance(found, list) else [found]))


def walked(
    found: Any, names: dict[str, Any] | None = None
) -> Iterator[tuple[dict, float, Sequence[float], int | None]]:
    """(what names it, value, interval, n) of each value with an interval, anywhere in a result but in rows."""
    names = names or {"path": ()}
    if isinstance(found, list):
        for each in found:
            if isinstance(each, dict) and ("first" in each or "model" in each):
                own = {"model": each.get("first") or each.get("model"), "against": each.get("second", "")}
                yield from walked(each, names | own)
    if not isinstance(found, dict):
        return
    kind, interval = next((name for name in VALUES if is_number(found.get(name))), None), found.get("interval")
    if kind and isinstance(interval, list) and len(interval) == 2 and all(map(is_number, interval)):
        count = next((found[name] for name in COUNTS if isinstance(found.get(name), int)), None)
        path = names["path"] + ((kind,) if kind == "difference" else ())
        yield names | {"path": path}, found[kind], interval, count
    for key, each in found.items():
        if isinstance(each, dict | list) and not key.startswith(LEFT_OUT):
            path = names["path"] + (() if key in STRUCTURE else (key,))
            if key in NAMED and isinstance(each, dict):
                for model, own in each.items():
                    yield from walked(own, names | {"path": path, "model": model})
            elif key == "ladder":
                yield from walked(each, names | {"path": ("ladder",)})
            else:
                yield from walked(each, names | {"path": path})


def is_annotations(found: Any) -> bool:
    return (
        isinstance(found, list)
        and bool(found)
        and all(isinstance(row, dict) and {"preference", *ANNOTATED} <= row.keys() for row in found)
    )


def of_annotations(rows: list[dict], path: Path, seed: int) -> Iterator[Number]:
    """The win rate of alpaca_eval's annotations: a preference from 1, the reference's, to 2; 0 is its old tie. One that
    is null could not be read, and is in no mean. Raises UserError for a row that says something else."""
    for at, row in enumerate(rows):
        place, value = f"annotations {path}, row {at}", row["preference"]
        if wrong := [name for name in ANNOTATED if not isinstance(row[name], str)]:
            raise UserError(f"{place} has no text under {wrong[0]!r}")
        if value is not None and not (is_number(value) and (value == 0 or 1 <= value <= 2)):
            raise UserError(f"{place}: 'preference' is neither a number from 1 to 2, nor 0, nor null")
    date = max(str(row.get("preference_date") or "") for row in rows)[:10]
    names = dict.fromkeys((row["generator_2"], row["generator_1"], row["annotator"]) for row in rows)
    for model, reference, judge in names:
        own = [row["preference"] for row in rows if (row["generator_2"], row["generator_1"]) == (model, reference)]
        values = np.array([(each or 1.5) - 1 for each in own if each is not None], dtype=float)
        if len(values):
            low, high = bootstrap(values, np.mean, seed=seed)
            table, rate = ("alpaca_eval", "", "win_rate", judge, ""), float(values.mean())
            yield Number(*table, model, reference, rate, low, high, len(values), date, "", str(path))


# The table


def as_csv(numbers: Sequence[Number]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([Number._fields, *numbers])
    return text.getvalue()


def as_markdown(numbers: Sequence[Number], warnings: Sequence[str], digits: int) -> str:
    lines, last = ["# Leaderboard"], None
    head = ("model", "against", "value [95% interval]", "n", "judge", "template", "date", "run card")
    for each in numbers:
        if each.table != last:
            title = ", ".join(filter(None, (each.benchmark, each.data, each.measure)))
            by = f", by {each.judge}" if each.judge else ""
            lines += ["", f"## {cell(title + by)}", "", f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
            last = each.table
        value = with_interval(each.value, (each.low, each.high), f"z.{digits}f")
        told = (each.model, each.against, value, each.n, each.judge, each.template, each.date, each.card)
        lines.append(f"| {' | '.join(map(cell, told))} |")
    if warnings:
        lines += ["", "## What is known against the judges", "", *(f"- {cell(line)}" for line in warnings)]
    return "\n".join(lines) + "\n"


def cell(value: Any) -> str:
    """A value on one line of a markdown table, as the text that it is."""
    text = " ".join(str("" if value is None else value).split())
    return re.sub(r"([|\\`*_<>\[\]])", r"\\\1", text)


if __name__ == "__main__":
    run(parse_args, main)
