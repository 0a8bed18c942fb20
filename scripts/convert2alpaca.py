"""Human judgments of others -> the rows that finetune_unlikelihood.py reads.

    python scripts/convert2alpaca.py critiques/train.jsonl.gz data/open_summary/train-alpaca.json
    python scripts/convert2alpaca.py human_data_for_model.jsonl data/Shepherd/train-alpaca.json

Reads one of two kinds of .jsonl, plain or .gz, and tells them by their first row (CUT, section 4.1):

    summarisation critiques   {"data": {"passage": {"text"}, "questions": [{"question", "rankings", "answers": [
                              {"answer", "feedback": {"skip", "rating", "critiques": [{"text", "refinement"}]}}]}]}}
    Shepherd                  {"question", "answer", "feedback"}

Writes [{"id", "instruction", "input", "output", "judgment", "score"}, ...] whole, with a run card beside it: judgment
and score are null for a satisfactory answer, and score is 1 for one that was found fault with, as released. `id` is the
source's row number, from 0, and for a critique the question's number after a dash.
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


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("input_file", type=Path, help="critiques or Shepherd, .jsonl or .jsonl.gz")
    parser.add_argument("output_file", type=Path, help="the .json to write")
    return parser.parse_args(argv)


def judged_answer(question: dict) -> tuple[dict, str | None] | str:
    """(the answer ranked highest, its judgment or None), or why the question has none to use.

    As released: the critiques of an answer, joined, are its judgment. An answer without critiques is satisfactory; the
    released code asserts that it was then rated 7, and here one that was not is left out. A last refinement that is
    empty means that the critique could not be acted on.
    """
    if not question["rankings"] or not question["answers"]:
        return "no ranked answer"
    best = max(range(len(question["rankings"])), key=question["rankings"].__getitem__)
    answer = question["answers"][best]
    feedback = answer["feedback"]
    if feedback.get("skip"):
        return "skipped by its labeller"
    if not answer["answer"].strip():
        return "empty answer"
    critiques = feedback.get("critiques") or []
    if not critiques:
        return (answer, None) if feedback.get("rating") == 7 else "no critique, yet rated below 7"
    if not critiques[-1]["refinement"].strip():
        return "empty last refinement"
    judgment = " ".join(critique["text"].strip() for critique in critiques).strip()
    return (answer, judgment) if judgment else "empty critique"


def convert_critiques(number: int, row: dict, dropped: Counter) -> Iterator[dict]:
    """One record per question of a summarisation row."""
    for position, question in enumerate(row["data"]["questions"]):
        found = judged_answer(question)
        if isinstance(found, str):
            dropped[found] += 1
            continue
        answer, judgment = found
        instruction = "\n".join((row["data"]["passage"]["text"], question["question"]))  # texts: null is none
        yield record(f"{number}-{position}", instruction, answer["answer"], judgment)


def convert_shepherd(number: int, row: dict, dropped: Counter) -> Iterator[dict]:
    """One record per row: all of Shepherd's human feedback finds fault."""
    for name in ("feedback", "answer", "question"):
        if not row[name].strip():
            dropped[f"empty {name}"] += 1
            return
    yield record(str(number), row["question"], row["answer"], row["feedback"].strip())


def record(row_id: str, instruction: str, output: str, judgment: str | None) -> dict[str, Any]:
    score = None if judgment is None else FAULTY_SCORE
    return {
        "id": row_id,
        "instruction": instruction,
        "input": "",
        "output": output,
        "judgment": judgment,
        "score": score,
    }


def converter_of(row: dict, path: Path):
    if isinstance(row.get("data"), dict) and "questions" in row["data"]:
        return convert_critiques
    if {"question", "answer", "feedback"} <= set(row):
        return convert_shepherd
    if "latestLabel" in row:
        raise UserError(f"{path} is Shepherd's raw form; give human_data_for_model.jsonl, where feedback is one text")
    raise UserError(f"{path}, row 0 has keys {', '.join(row)}: neither critiques ('data') nor Shepherd ('feedback')")


def convert(path: Path) -> tuple[list[dict], Counter, int]:
    """The records, what was dropped by reason, and the number of rows read."""
    convert_row, records, dropped, number = None, [], Counter(), -1
    for number, row in enumerate(read_rows(path, "input file")):
        convert_row = convert_row or converter_of(row, path)
        try:
            records += convert_row(number, row, dropped)
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise UserError(f"{path}, row {number} lacks what row 0 has: {error!r}") from error
    return records, dropped, number + 1


def main(args: Namespace) -> None:
    records, dropped, rows = convert(args.input_file)
    if not records:
        reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "it has no rows"
        raise UserError(f"{args.input_file} gives no record: {reasons}")

    satisfactory = sum(row["judgment"] is None for row in records)
    counts = {"rows read": rows, "records": len(records), "satisfactory": satisfactory}
    counts |= {"faulty": len(records) - satisfactory} | {f"dropped: {why}": n for why, n in dropped.most_common()}
    with claim(args.output_file, args, script=__file__, inputs=[args.input_file]) as held:
        held.begin()  # seconds of work, so it is done again without asking whether it was
        write_whole(args.output_file, json_list(records))
        held.finish(counts)
    print(table([(f"{args.input_file.name} -> {args.output_file}", ""), *counts.items()]))


if __name__ == "__main__":
    run(parse_args, main)
