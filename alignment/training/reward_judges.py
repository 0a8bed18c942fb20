"""Rewards by a judge: any engine is asked, at temperature 0, and what it did not say is no reward.

    judge = JudgeReward("judge:rubric", "rubric", engine, output_dir)
    values, reasons = judge.score([{"prompt": "What is 1 + 1?"}], ["2"])  # [1.0], [None]; or [None], ["failed: ..."]

A rubric is asked about one criterion at a time, so that a small model need hold no more in mind; what all questions of
a response have in common comes first, and an engine may compute it once. Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alignment.generation import Engine, Reply, Request, Sampling, generate, refuse_failures
from alignment.journal import Journal
from alignment.judging.criteria import GRADE_SCHEMA, parse_grade, rubric_score, rubrics_of
from alignment.judging.judgments import JUDGE_STOP, conversation, format_judge_prompt, parse_judgment, read_form

GRADING = Sampling(max_tokens=32, temperature=0.0, schema=GRADE_SCHEMA)
JUDGING = Sampling(max_tokens=512, temperature=0.0, stop=JUDGE_STOP)


class JudgeReward:
    """Values in [0, 1] of responses by one form: the weighted mean of a rubric's grades, or 1 for a satisfactory
    response and 0 for a faulty one. Replies go into judge-FORM.journal.jsonl in `folder`, another for each rank."""

    def __init__(self, name: str, form: str, engine: Engine | None, folder: Path | None):
        assert engine and folder, "a judge's form needs a judge, and a folder for its journal"
        self._name, self._form, self._engine, self._folder = name, form, engine, folder
        self._text = read_form(form)
        self._journal: Journal | None = None

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> tuple[list[float | None], list[str | None]]:
        """(values, reasons): of each response a value, or None and why there is none."""
        asked = [{"instruction": conversation(row), "output": text} for row, text in zip(rows, responses, strict=True)]
        return self._graded(rows, asked) if self._form == "rubric" else self._judged(asked)

    def _judged(self, asked: list[dict]) -> tuple[list[float | None], list[str | None]]:
        replies = self._replies([format_judge_prompt(self._text, row) for row in asked], JUDGING)
        verdicts = [
            parse_judgment(self._form, reply.text, reply.finish, row["output"])
            for reply, row in zip(replies, asked, strict=True)
        ]
        values = [None if each.malformed else float(each.judgment is None) for each in verdicts]
        return values, [each.malformed for each in verdicts]

    def _graded(self, rows: Sequence[dict], asked: list[dict]) -> tuple[list[float | None], list[str | None]]:
        rubrics = [rubrics_of(row, f"row {number} of a step") for number, row in enumerate(rows)]
        prompts = [
            format_judge_prompt(self._text, row, each.description)
            for row, rubric in zip(asked, rubrics, strict=True)
            for each in rubric
        ]
        replies = iter(self._replies(prompts, GRADING))
        values: list[float | None] = []
        reasons: list[str | None] = []
        for rubric in rubrics:
            own = [next(replies) for _ in rubric]
            values.append(rubric_score([parse_grade(reply.text) for reply in own], [each.weight for each in rubric]))
            reasons.append(next((reply.finish for reply in own if reply.text is None), None))
        return values, reasons

    def _replies(self, prompts: list[str], sampling: Sampling) -> list[Reply]:
        """A reply to each prompt. At temperature 0 another seed gives the same, so each is asked once, with seed 0.

        Raises UserError where none came and another run may bring some: a step without rewards teaches nothing.
        """
        if self._journal is None:
            rank = int(os.environ.get("RANK", "0"))
            self._journal = Journal(self._folder / f"judge-{self._form}{f'-{rank}' if rank else ''}")
        requests = [Request([{"role": "user", "content": prompt}], 0) for prompt in prompts]
        replies = generate(self._engine, requests, sampling, journal=self._journal, label=self._name, schema_retries=0)
        if all(reply.text is None for reply in replies):
            refuse_failures(replies)
        return replies
