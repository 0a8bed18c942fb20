"""Absolute grading as Prometheus does it: a response, one rubric, feedback and a grade from 1 to 5 (Janus, 3.3).

    found = graded([(bench_row, "The response."), ...], send, runs=3, tries=4, seed=42)
    found.responses[0].score      # mean of its rubrics, or None where one of them has no grade in any run
    found.asked.rows()            # how many replies could be read, and why the others could not

A bench row has `prompt`, `reference_answer`, `rubrics` and maybe `system` and `preference_set`. One request is one
response and one rubric; its prompt, ours, is assets/judge/grade.txt and grade_user.txt. What several rubrics of a
response, or several responses to a row, have in common comes first, so that an engine computes it once.

`as_json` asks for a JSON object under GRADE_SCHEMA instead (grade_json.txt): a judge that is too small to end its reply
in a grade gives one there.
"""

from __future__ import annotations

import hashlib
import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import combinations
from typing import Any, NamedTuple

from alignment.asking import Asked, ask, chat, filled
from alignment.command_line import ArgumentParser, boolean, number
from alignment.generation import Engine, Reply, Request, Sampling, generate, record_seed
from alignment.journal import Journal
from alignment.judging.judgments import JUDGE_STOP, PROMPTS
from alignment.judging.verdicts import GRADES, grade_in
from alignment.records import read_text
from alignment.rouge import rouge_l

NEAR = 0.95  # ROUGE-L F of two descriptions from which they are named: none of 765 rubrics of BiGGen has it
EMPTY = "empty response"
SYSTEM = "### System message, which the response was to follow:\n{system}\n\n"
AGAIN = "\n\n(Your reply number {attempt} could not be read. Keep to the form that is asked for.)"
GRADE_SCHEMA = {
    "type": "object",
    "properties": {"feedback": {"type": "string", "minLength": 20, "maxLength": 600}, "score": {"enum": list(GRADES)}},
    "required": ["feedback", "score"],
    "additionalProperties": False,
}


class Verdict(NamedTuple):
    """What a judge says of a response by one rubric: a grade and the whole reply, or the reason why there is none."""

    grade: int | None
    feedback: str | None
    reason: str | None = None


@dataclass
class Graded:
    """A response by its rubrics: `verdicts` are (rubric, run). An empty response has none."""

    verdicts: list[list[Verdict]]

    @property
    def grades(self) -> list[float | None]:
        """Of each rubric the mean over the runs that graded it, None where none did."""
        by_rubric = [[each.grade for each in runs if each.grade is not None] for runs in self.verdicts]
        return [sum(own) / len(own) if own else None for own in by_rubric]

    @property
    def score(self) -> float | None:
        """The mean over the rubrics; None where a rubric has no grade: what is left out is no low grade."""
        grades = self.grades
        return None if not grades or None in grades else sum(grades) / len(grades)

    @property
    def reason(self) -> str | None:
        """Why there is no score: the reason of the first rubric without a grade."""
        if not self.verdicts:
            return EMPTY
        ungraded = [runs for runs, grade in zip(self.verdicts, self.grades, strict=True) if grade is None]
        return ungraded[0][-1].reason if ungraded else None


class AllGraded(NamedTuple):
    responses: list[Graded]
    asked: Asked


# What is asked


@cache
def prompt_text(name: str) -> str:
    return read_text(PROMPTS / name, "judge prompt").rstrip("\n")


def wording(*names: str) -> str:
    """A hash of prompts' texts: numbers that came of different ones are not compared."""
    return hashlib.sha256("\n".join(map(prompt_text, names)).encode()).hexdigest()[:12]


def grade_prompt(row: dict, response: str, rubric: dict, *, show_system: bool = False, again: str = "") -> str:
    """What the judge is asked about a response by one rubric. The released code does not show the system message."""
    scores = {f"score_{score}": text for score, text in rubric["score_descriptions"].items()}
    return filled(
        prompt_text("grade_user.txt"),
        system=filled(SYSTEM, system=row["system"]) if show_system and row.get("system") else "",
        instruction=row["prompt"],
        reference_answer=row["reference_answer"],
        response=response,
        criteria=rubric["criteria"],
        again=again,
        **scores,
    )


def parts_of(prompt: str, template: str = "grade_user.txt") -> dict[str, str] | None:
    """What a prompt of assets/judge was filled with, by slot; None of any other text."""
    pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.*?)", re.escape(prompt_text(template)))
    found = re.fullmatch(pattern, prompt, re.S)
    return found and found.groupdict()


def fault_of(rubric: dict) -> str | None:
    """Why a rubric's five descriptions tell no grades apart: one says nothing, or two say the same. The rubric can
    grade nothing."""
    texts = {score: " ".join(text.lower().split()) for score, text in rubric["score_descriptions"].items()}
    for score, text in texts.items():
        if not any(map(str.isalnum, text)):
            return f"score {score} is not described"
    for one, other in combinations(texts, 2):
        if texts[one] == texts[other]:
            return f"scores {one} and {other} are described alike"
    return None


def near_in(rubric: dict) -> str | None:
    """The two of its descriptions that are nearly the same by words, if any. People may tell even these apart, by one
    word, so it is said and nothing more."""
    texts = rubric["score_descriptions"]
    for one, other in combinations(texts, 2):
        if max(rouge_l(texts[one], texts[other]), rouge_l(texts[other], texts[one])) >= NEAR:
            return f"scores {one} and {other} are described nearly alike"
    return None


# Grading


def graded(
    pairs: Sequence[tuple[dict, str | None]],
    send: Callable[[Sequence[Request]], list[Reply]],
    *,
    runs: int = 1,
    tries: int = 4,
    seed: int = 42,
    show_system: bool = False,
    as_json: bool = False,
) -> AllGraded:
    """Grade each (bench row, response) by each of the row's rubrics, `runs` times. None and blank responses are not
    graded. A row and rubric have the same seed whoever responded, so that models are compared alike."""
    asks = [
        (pair, rubric, run)
        for pair, (row, response) in enumerate(pairs)
        if response and response.strip()
        for rubric in range(len(row["rubrics"]))
        for run in range(runs)
    ]
    system = prompt_text("grade_json.txt" if as_json else "grade.txt")

    def request(question: int, attempt: int, hint: str) -> Request:
        pair, rubric, run = asks[question]
        row, response = pairs[pair]
        again = filled(AGAIN, attempt=str(attempt)) if attempt else ""  # another prompt: at temperature 0 no seed helps
        text = grade_prompt(row, response, row["rubrics"][rubric], show_system=show_system, again=again)
        return chat(system, text, record_seed(seed, "grade", row["id"], rubric, run, attempt))

    def read(question: int, text: str) -> Verdict:
        return Verdict(grade_in(text), text.strip())

    asked = ask(len(asks), request=request, read=read, send=send, tries=tries)
    found = [Graded([]) for _ in pairs]
    for (pair, _, run), value, reason in zip(asks, asked.values, asked.reasons, strict=True):
        verdicts = found[pair].verdicts
        verdicts += [[]] if run == 0 else []
        verdicts[-1].append(value or Verdict(None, None, reason))
    return AllGraded(found, asked)


def add_grading_arguments(parser: ArgumentParser) -> None:
    """The flags of the scripts that grade."""
    add, positive = parser.add_argument, number(int, 1)
    add("--model_name_or_path", metavar="JUDGE", help="who grades: a folder, hub or served name")
    shown = "default: 0, so that a response always gets the same grade; the paper's is 1.0"
    add("--temperature", type=number(float, 0), default=0.0, help=shown)
    shown = "default: 1; the paper's is 0.9, which at temperature 0 is the same"
    add("--top_p", type=number(float, 0, 1, above=True), default=1.0, help=shown)
    add("--tries", type=positive, default=4, help="requests for a grade at most (default: 4; released: 5 again)")
    add("--max_new_tokens", type=positive, default=1024, help="of the feedback and grade (default: 1024, released)")
    shown = "asks for a JSON object under a schema, as small judges else give no grade (default: False, as the paper)"
    add("--as_json", type=boolean, nargs="?", const=True, default=False, help=shown)
    add("--batch_size", type=positive, default=256, help="hf: sequences decoded together at most (default: 256)")


def graded_by(engine: Engine, pairs: Sequence[tuple[dict, str | None]], args: Namespace, **how: Any) -> AllGraded:
    """`graded` by an engine and these flags, with the journal beside --output_file."""
    schema = GRADE_SCHEMA if args.as_json else None
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, () if schema else JUDGE_STOP, schema=schema)
    with Journal(args.output_file) as journal:
        send = partial(
            generate, engine, sampling=sampling, journal=journal, label="grades", schema_retries=args.schema_retries
        )
        return graded(pairs, send, tries=args.tries, seed=args.seed, as_json=args.as_json, **how)
