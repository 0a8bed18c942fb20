"""Can a judge grade? Its grades by BiGGen's rubrics against stored scores, and of responses whose worth is known.

    python studies/biggen_agreement.py --data_path sample_evals.json --model_name_or_path JUDGE \\
        --output_file outputs/biggen.json

Reads BiGGen-Bench's own form, {id: {"input", "reference_answer", "score_rubric", "response", "score"}, ...}, or a list
of these, and grades as eval/multifaceted_bench.py does. Writes and prints, with 95% bootstrap intervals:

    stored        grades of the stored responses, and how they agree with the stored scores: exact, within 1, Pearson,
                  Spearman. A correlation is null where either side has but one value
    reference     grades of the reference answers, which are worth 5 by the rubric
    other         grades of another row's reference answer of the same capability: well written, about something else

reference - other says by how much, and in what share of the rows, the judge tells these two apart.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from alignment.agreement import pearson, spearman
from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.generation import refuse_failures
from alignment.intervals import bootstrap, with_interval
from alignment.judging.bench import difference, scores
from alignment.judging.grades import Graded, add_grading_arguments, graded_by
from alignment.records import is_number, read_json, write_whole
from alignment.run_cards import claim

GROUPS = ("stored", "reference", "other")
MEASURES = {
    "exact": lambda both: float((both[:, 0] == both[:, 1]).mean()),
    "within 1": lambda both: float((abs(both[:, 0] - both[:, 1]) <= 1).mean()),
    "pearson": pearson,
    "spearman": spearman,
}


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    add = parser.add_argument
    add("--data_path", type=Path, required=True, help="sample_evals.json of BiGGen-Bench, or another file of its form")
    add("--output_file", type=Path, required=True, help="where results go, as JSON")
    add("--seed", type=int, default=42, help="of the judge's draws and of the intervals' (default: 42)")
    add("--limit", type=number(int, 1), help="for a trial: only so many rows, spread over the file (default: all)")
    add_grading_arguments(parser)
    add_engine_arguments(parser)
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    rows = read_rows(args.data_path)
    rows = rows[:: max(1, len(rows) // args.limit)][: args.limit] if args.limit else rows
    engine, read = engine_from(args), {"inputs": [args.data_path], "models": models_read(args)}
    with claim(args.output_file, args, script=__file__, **read, cache_dir=args.cache_dir) as held:
        if held.is_done():
            print(held.already())
            return show(read_json(args.output_file, "results")["summary"])
        held.begin()
        texts = [[row["response"] for row in rows], [row["reference_answer"] for row in rows], others(rows)]
        found = graded_by(engine, [pair for own in texts for pair in zip(rows, own, strict=True)], args)
        groups = {name: found.responses[at * len(rows) : (at + 1) * len(rows)] for at, name in enumerate(GROUPS)}
        if not any(each.score is not None for each in found.responses):
            refuse_failures(found.asked.failed)
            raise UserError(f"no response got a grade ({dict(found.asked.given_up)})")
        summary = summarised(rows, groups, args.seed) | {"replies": found.asked.counts()}
        told = [
            {"id": row["id"], "score": row["score"]} | {name: own[at].verdicts for name, own in groups.items()}
            for at, row in enumerate(rows)
        ]
        write_whole(args.output_file, [json.dumps({"summary": summary, "rows": told}, ensure_ascii=False) + "\n"])
        refuse_failures(found.asked.failed)
        held.finish({"rows": len(rows)} | found.asked.counts())
    print(table([("replies", ""), *found.asked.rows()]))
    show(summary)


def read_rows(path: Path) -> list[dict]:
    """Rows as grades.py reads them, of one rubric, with the stored `response` and `score`, None where there is none."""
    found, rows = read_json(path, "data"), []
    found = list(found.values()) if isinstance(found, dict) else found
    for place, row in enumerate(found if isinstance(found, list) else []):
        rubric = row.get("score_rubric") if isinstance(row, dict) else None
        texts = [row.get(key) for key in ("input", "reference_answer")] if isinstance(rubric, dict) else []
        texts += (
            [rubric.get(key) for key in ("criteria", *(f"score{n}_description" for n in range(1, 6)))] if texts else []
        )
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(
                f"data {path}, row {place} is none of BiGGen: it lacks input, reference_answer or score_rubric"
            )
        prompt, reference, criteria, *levels = texts
        described = {str(score): text for score, text in enumerate(levels, 1)}
        rows.append(
            {
                "id": row.get("id", place),
                "source": str(row.get("capability", "")),
                "dimensions": ["grade"],
                "prompt": prompt,
                "reference_answer": reference,
                "rubrics": [{"criteria": criteria, "score_descriptions": described}],
                "response": row["response"] if isinstance(row.get("response"), str) else None,
                "score": row["score"] if is_number(row.get("score")) else None,
            }
        )
    if len(rows) < 2:
        raise UserError(f"data {path} has fewer than two rows")
    return rows


def others(rows: Sequence[dict]) -> list[str]:
    """For each row the reference answer of the next row of its capability, in a circle; of all where it is alone."""
    found = []
    for at, row in enumerate(rows):
        turned = [*rows[at + 1 :], *rows[:at]]
        found.append(next((each for each in turned if each["source"] == row["source"]), turned[0])["reference_answer"])
    return found


def summarised(rows: list[dict], groups: dict[str, list[Graded]], seed: int) -> dict[str, Any]:
    there = [
        (each.score, row["score"])
        for row, each in zip(rows, groups["stored"], strict=True)
        if each.score is not None and row["score"] is not None
    ]
    return {
        "groups": {name: scores(rows, own, seed=seed) for name, own in groups.items()},
        "reference - other": difference(rows, groups["reference"], groups["other"], seed=seed)["overall"],
        "agreement": agreement(np.array(there), seed) if there else None,
        "stored scores": sorted({row["score"] for row in rows} - {None}),
        "stored responses": len({row["response"] for row in rows} - {None}),
    }


def agreement(both: np.ndarray, seed: int) -> dict[str, Any]:
    """Of (n, 2) grades and stored scores: each measure with its interval, None where it has no value in a resample."""
    found: dict[str, Any] = {"n": len(both)}
    for name, measure in MEASURES.items():
        value, interval = measure(both), bootstrap(both, measure, seed=seed, resamples=500)
        found[name] = {"value": value, "interval": interval} if np.isfinite([value, *interval]).all() else None
    return found


def show(summary: dict[str, Any]) -> None:
    head = ("grades of", "mean [95% interval]", "n", "1", "2", "3", "4", "5")
    rows = []
    for name, own in summary["groups"].items():
        mean = with_interval(own["score"]["mean"], own["score"]["interval"], ".2f") if own["score"] else "none"
        given = [own["grades"].get(grade, 0) for grade in "12345"]
        rows.append((name, mean, own["score"]["n"] if own["score"] else 0, *given))
    print(table([head, *rows]))
    if own := summary["reference - other"]:
        told = with_interval(own["difference"], own["interval"], "+z.2f")
        print(f"reference - other: {told}; higher {own['wins']:,}, the same {own['ties']:,}, lower {own['losses']:,}")
    if (found := summary["agreement"]) is None:
        return print("no stored scores to agree with")
    measured = [
        (name, with_interval(own["value"], own["interval"]) if (own := found[name]) else "-") for name in MEASURES
    ]
    print(table([("agreement with the stored scores", "[95% interval]"), *measured, ("rows", found["n"])]))
    if len(summary["stored scores"]) == 1:
        print(f"all stored scores are {summary['stored scores'][0]}: this says nothing about the judge")
    if summary["stored responses"] == 1:
        print("all stored responses are one and the same text")


if __name__ == "__main__":
    run(parse_args, main)
