"""Benchmarks from files, in the place of the hub's, for the lm-evaluation-harness: what local_*.yaml beside this load.

    python eval/lm_harness.py --model_name_or_path MODEL --data_dir DATA

    arc_challenge, hellaswag   {"query", "choices", "gold"} a row, the question as it is asked, `gold` from 0
    mmlu                       {"question", "subject", "choices", "answer"}, and the five shots of each subject
    truthfulqa_mc2             mc_task.json, {"question", "mc1_targets", "mc2_targets"}

The first two have no training rows to draw shots from: their last SHOT_ROWS rows are kept for that and not measured.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from alignment.command_line import UserError
from alignment.records import read_rows
from alignment.truthfulqa import read_questions

SHOT_ROWS = 100
MMLU_SHOTS = 5

Splits = dict[str, list[dict]]


def load(name: str, files: dict[str, list[str]], **_) -> dict:
    """The data sets of a benchmark by split. The harness calls it with a task's dataset_kwargs and metadata."""
    from datasets import Dataset

    return {split: Dataset.from_list(rows) for split, rows in READERS[name](*map(Path, files[name])).items()}


def ranked(path: Path) -> Splits:
    rows = [checked(path, number, row, "query", "gold") for number, row in enumerate(read_rows(path, "benchmark"))]
    if len(rows) <= SHOT_ROWS:
        raise UserError(f"benchmark {path} has {len(rows)} rows, of which the last {SHOT_ROWS} are kept for shots")
    return {"test": rows[:-SHOT_ROWS], "train": rows[-SHOT_ROWS:]}


def mmlu(path: Path, shots_path: Path) -> Splits:
    """Questions with the shots of their subject, one of each subject, then another of each, so that a --limit takes
    all subjects alike."""
    shots: dict[str, list[dict]] = {}
    for number, row in enumerate(read_rows(shots_path, "benchmark")):
        of_row = checked(shots_path, number, row, "question", "answer")
        shots.setdefault(subject_of(shots_path, number, row), []).append(of_row)
    seen: Counter = Counter()
    turns = []
    for number, row in enumerate(read_rows(path, "benchmark")):
        subject = subject_of(path, number, row)
        if len(own := shots.get(subject, [])) < MMLU_SHOTS:
            raise UserError(
                f"benchmark {shots_path} has {len(own)} of {MMLU_SHOTS} shots of {subject!r} ({path}, row {number})"
            )
        of_row = checked(path, number, row, "question", "answer", choices=4)
        turns.append((seen[subject], of_row | {"subject": subject, "shots": own[:MMLU_SHOTS]}))
        seen[subject] += 1
    return {"test": [row for _, row in sorted(turns, key=lambda turn: turn[0])]}


def truthfulqa(path: Path) -> Splits:
    """The form of the hub, which the harness's own task reads."""
    return {
        "validation": [
            {
                "question": each.text,
                "mc1_targets": targets(each.single[:1], each.single[1:]),
                "mc2_targets": targets(each.true, each.false),
            }
            for each in read_questions(path)
        ]
    }


def targets(true: tuple[str, ...], false: tuple[str, ...]) -> dict[str, list]:
    return {"choices": [*true, *false], "labels": [1] * len(true) + [0] * len(false)}


def checked(path: Path, number: int, row: dict, question: str, answer: str, choices: int | None = None) -> dict:
    """A row's question, choices and the number of the right one. Raises UserError."""
    place = f"benchmark {path}, row {number}"
    if not isinstance(row.get(question), str) or not row[question].strip():
        raise UserError(f"{place} has no text under {question!r}")
    offered = row.get("choices")
    if not isinstance(offered, list) or len(offered) < 2 or not all(isinstance(each, str) and each for each in offered):
        raise UserError(f"{place}: 'choices' are no list of two texts or more")
    if choices and len(offered) != choices:
        raise UserError(f"{place} has {len(offered)} choices, not {choices}")
    if type(row.get(answer)) is not int or not 0 <= row[answer] < len(offered):
        raise UserError(f"{place}: {answer!r} is none of the choices' numbers, 0 to {len(offered) - 1}")
    return {name: row[name] for name in (question, "choices", answer)}


def subject_of(path: Path, number: int, row: dict) -> str:
    if not isinstance(row.get("subject"), str) or not row["subject"].strip():
        raise UserError(f"benchmark {path}, row {number} has no text under 'subject'")
    return row["subject"]


READERS = {"arc_challenge": ranked, "hellaswag": ranked, "mmlu": mmlu, "truthfulqa_mc2": truthfulqa}
