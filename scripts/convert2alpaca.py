"""Human judgments of others -> the rows that finetune_unlikelihood.py reads.

    python scripts/convert2alpaca.py train.jsonl.gz outputs/critiques.json
    python scripts/convert2alpaca.py human_data_for_model.jsonl outputs/shepherd.json
    python scripts/convert2alpaca.py

Reads one of two kinds of .jsonl, plain or .gz, and tells them by their first row (CUT, section 4.1):

    summarisation critiques   {"data": {"passage": {"text"}, "questions": [{"question", "rankings", "answers": [
                              {"answer", "feedback": {"skip", "rating", "critiques": [{"text", "refinement"}]}}]}]}}
    Shepherd                  {"question", "answer", "feedback"}, and human_data_raw.jsonl where it lies beside

Without arguments it converts what it finds under the released names, and says of the others where to get them:

    data/open_summary/critiques.train.jsonl (or train.jsonl.gz)   -> data/open_summary/train-alpaca.json
    data/open_summary/critiques.test.jsonl (or test.jsonl.gz)     -> data/open_summary/test-alpaca.json
    data/Shepherd/human_data_for_model.jsonl                      -> data/Shepherd/train-alpaca.json

Writes the released rows, whole, with a run card beside them: [{"id", "output", "input", "instruction", "reason",
"judgment", "i_ans", "score"}, ...], Shepherd's with "ref". `judgment`, as its author wrote it, and `score` are null for
a satisfactory answer; score is 1 for one that was found fault with. `i_ans` is the answer as it should have been: the
last refinement, or Shepherd's correct output where its raw file is there. `input`, `reason` and `ref` are null. `id` is
ours: the source's row number, from 0, and for a critique the question's number after a dash.
"""

from __future__ import annotations

from argparse import Namespace
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.command_line import ArgumentParser, UserError, run, table
from alignment.judging.judgments import FAULTY_SCORE
from alignment.records import json_list, read_rows, write_whole
from alignment.run_cards import claim

RAW_SHEPHERD = "human_data_raw.jsonl"
SUMMARIES = "https://openaipublic.blob.core.windows.net/critiques/dataset/critiques"
SHEPHERD = "https://github.com/facebookresearch/Shepherd"
# What is converted without arguments: the released name, that of the download (C19), the output, where to get it
RELEASED = [
    ("open_summary/critiques.train.jsonl", "train.jsonl.gz", "train-alpaca.json", f"{SUMMARIES}/train.jsonl.gz"),
    ("open_summary/critiques.test.jsonl", "test.jsonl.gz", "test-alpaca.json", f"{SUMMARIES}/test.jsonl.gz"),
    ("Shepherd/human_data_for_model.jsonl", "human_data_for_model.jsonl", "train-alpaca.json", SHEPHERD),
]


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    shown = "critiques or Shepherd, .jsonl or .jsonl.gz (default: the released names under data/)"
    parser.add_argument("input_file", type=Path, nargs="?", help=shown)
    parser.add_argument("output_file", type=Path, nargs="?", help="the .json to write")
    return parser.parse_args(argv)


# Rows


def judged_answer(question: dict) -> tuple[dict, list[dict]] | str:
    """(the answer ranked highest, its critiques), or why the question is left out.

    As released, but for two questions with which the released code stops: one without ranks, and one whose answer has
    neither critiques nor the best rating, 7.
    """
    if not question["rankings"]:
        return "no ranked answer"
    best = max(range(len(question["rankings"])), key=question["rankings"].__getitem__)
    answer = question["answers"][best]
    feedback = answer["feedback"]
    critiques = feedback.get("critiques") or []
    if feedback.get("skip") == 1:
        return "skipped by its labeller"
    if answer["answer"] == "":
        return "empty answer"
    if not critiques and feedback.get("rating") != 7:
        return "no critique, yet rated below 7"
    if critiques and critiques[-1]["refinement"] == "":
        return "empty last refinement"
    return answer, critiques


def convert_critiques(number: int, row: dict, dropped: Counter) -> Iterator[dict]:
    """One record per question of a summarisation row. An answer without critiques is satisfactory."""
    for position, question in enumerate(row["data"]["questions"]):
        found = judged_answer(question)
        if isinstance(found, str):
            dropped[found] += 1
            continue
        answer, critiques = found
        instruction = "\n".join((row["data"]["passage"]["text"], question["question"]))
        judgment = " ".join(critique["text"] for critique in critiques).strip() if critiques else None
        better = critiques[-1]["refinement"] if critiques else None
        yield record(f"{number}-{position}", instruction, answer["answer"], judgment, better)


def convert_shepherd(number: int, row: dict, raw: dict | None) -> dict:
    """The record of a row: all of Shepherd's human feedback finds fault. `raw` is the same row of its raw file."""
    better = None
    if raw is not None:
        told = raw["metadata"]
        if (told["context"], told["output_candidate"]) != (row["question"], row["answer"]):
            raise UserError(f"row {number} of {RAW_SHEPHERD} is about another question or answer than that beside it")
        better = told["output_correct"]
    return record(str(number), row["question"], row["answer"], row["feedback"], better) | {"ref": None}


def record(row_id: str, instruction: Any, output: Any, judgment: Any, better: Any) -> dict[str, Any]:
    """A released row. TypeError where instruction or output is no text, or the judgment neither text nor None."""
    if not (isinstance(instruction, str) and isinstance(output, str) and isinstance(judgment, str | None)):
        raise TypeError("a question, answer or judgment is no text")
    return {
        "id": row_id,
        "output": output,
        "input": None,
        "instruction": instruction,
        "reason": None,
        "judgment": judgment,
        "i_ans": better,
        "score": None if judgment is None else FAULTY_SCORE,
    }


# Files


def check_kind(row: dict, path: Path) -> None:
    if "latestLabel" in row:
        raise UserError(f"{path} is Shepherd's raw form; give human_data_for_model.jsonl, where feedback is one text")
    if not is_critique(row) and not {"question", "answer", "feedback"} <= set(row):
        raise UserError(
            f"{path}, row 0 has keys {', '.join(row)}: neither critiques ('data') nor Shepherd ('feedback')"
        )


def is_critique(row: dict) -> bool:
    return isinstance(row.get("data"), dict) and "questions" in row["data"]


def raw_beside(path: Path) -> Path | None:
    """Shepherd's raw file where `path` is its file for models and the other lies beside it."""
    raw = path.with_name(RAW_SHEPHERD)
    return raw if path.name == "human_data_for_model.jsonl" and raw.is_file() else None


def convert(path: Path) -> tuple[list[dict], Counter, int]:
    """The records, what was left out by reason, and the number of rows read."""
    records, dropped, rows = [], Counter(), list(read_rows(path, "input file"))
    raw_file = raw_beside(path)
    raw = list(read_rows(raw_file, "input file")) if raw_file else [None] * len(rows)
    if len(raw) != len(rows):
        raise UserError(f"{raw_file} has {len(raw)} rows, and {path.name} {len(rows)}")
    for number, row in enumerate(rows):
        if number == 0:
            check_kind(row, path)
        try:
            if is_critique(rows[0]):
                records += convert_critiques(number, row, dropped)
            else:
                records.append(convert_shepherd(number, row, raw[number]))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}, row {number} lacks what row 0 has: {error!r}") from error
    return records, dropped, len(rows)


def convert_file(path: Path, output: Path, args: Namespace) -> None:
    records, dropped, rows = convert(path)
    if not records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it has no rows"
        raise UserError(f"{path} gives no record: {reasons}")

    satisfactory = sum(row["judgment"] is None for row in records)
    counts = {"rows read": rows, "records": len(records), "satisfactory": satisfactory}
    counts |= {"faulty": len(records) - satisfactory} | {f"dropped: {why}": n for why, n in dropped.most_common()}
    blank = sum(
        not row["output"].strip() or row["judgment"] is not None and not row["judgment"].strip() for row in records
    )
    counts |= {"blank output or judgment, which training refuses": blank} if blank else {}
    read = [path, *filter(None, [raw_beside(path)])]
    with claim(output, args, script=__file__, inputs=read) as held:
        held.begin()  # seconds of work, so it is done again without asking whether it was
        write_whole(output, json_list(records))
        held.finish(counts)
    print(table([(f"{path.name} -> {output}", ""), *counts.items()]))


def released_files() -> list[tuple[Path, Path]]:
    """(input, output) of each released source that is there; of the others it is said where to get them."""
    found, absent = [], []
    for name, downloaded, output, source in RELEASED:
        released = Path("data", name)
        there = [path for path in (released, released.with_name(downloaded)) if path.is_file()]
        if there:
            found.append((there[0], released.with_name(output)))
        else:
            absent.append(f"{released.with_name(downloaded)} ({source})")
    if not found:
        raise UserError(f"nothing to convert; give an input and an output file, or get {', '.join(absent)}")
    for missing in absent:
        print(f"not there, so not converted: {missing}")
    return found


def main(args: Namespace) -> None:
    if args.input_file and not args.output_file:
        raise UserError(f"{args.input_file} -> ?: give the .json to write as well")
    for path, output in [(args.input_file, args.output_file)] if args.input_file else released_files():
        convert_file(path, output, args)


if __name__ == "__main__":
    run(parse_args, main)
