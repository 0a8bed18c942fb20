"""A seeded judge of known biases in a model's place: it reads what it is asked to grade, or to compare."""

from __future__ import annotations

import math
import random
import re
from typing import Any

from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Request
from alignment.judging.grades import parts_of
from alignment.judging.pair_verdicts import HIGHEST, LOWEST
from alignment.judging.verdicts import GRADES


class SimulatedJudge(SimulatedEngine):
    """Asked for a grade as judging/grades.py asks, it gives 1, and 4 points more by the share of the reference answer's
    words that the response has, whatever the criterion. Asked about two answers as judging/pairs.py asks, it gives each
    2, and 6 points more by the share of the words of the right answer, or where none is shown of the question, and the
    verdict to the one with more. To that it adds, as its name says, `judge?length=0.5&position=0.4&self=0.3&noise=0.5`:

        length    points for each doubling of the words, counted from the reference answer's; of two answers, the points
                  by which the longer one gains on the other for each doubling
        position  points for that of two answers which is shown first
        self      points for a response that has a sentence of the simulated writer
        noise     deviation of Gaussian noise, by the request's seed, of each grade

    The sum is said as a whole grade from 1 to 5, of two answers to 10: between two as one or the other, in proportion,
    by instruction and criterion alone. So the mean over many questions is the sum's, a response that is worth more
    never gets less, and no seed nor order changes what a judge without noise and position says. Where two answers are
    less than a point apart, so is the mean of the verdicts, 1 for A, -1 for B and 0 for neither. A malformed reply has
    feedback and no grade. The other settings, and all other requests, are the simulated writer's.
    """

    SETTINGS = SimulatedEngine.SETTINGS | {"length": 0.0, "position": 0.0, "self": 0.0, "noise": 0.0}

    def _write(self, request: Request, outcome: str, draw: random.Random) -> str:
        if outcome == "refusals":
            return super()._write(request, outcome, draw)
        if parts := parts_asked(request, "grade_user.txt"):
            feedback, grade = self._judge(parts, draw)
            return feedback if outcome == "malformed" else f"{feedback}\n[RESULT] {grade}"
        if parts := parts_asked(request, "pair_user.txt"):
            reasons, a, b = self._compare(parts, draw)
            asks_scores = "[SCORES]" in request.prompt[0]["content"]
            verdict = f"[SCORES] {score(a)} {score(b)}" if asks_scores else f"[VERDICT] {better_of(a, b)}"
            return reasons if outcome == "malformed" else f"{reasons}\n{verdict}"
        return super()._write(request, outcome, draw)

    def _fill(self, request: Request, schema: dict, draw: random.Random) -> Any:
        if parts := parts_asked(request, "grade_user.txt"):
            return dict(zip(("feedback", "score"), self._judge(parts, draw), strict=True))
        if parts := parts_asked(request, "pair_user.txt"):
            reasons, a, b = self._compare(parts, draw)
            if "verdict" in schema["properties"]:
                return {"reasons": reasons, "verdict": better_of(a, b)}
            return {"reasons": reasons, "score_a": score(a), "score_b": score(b)}
        return super()._fill(request, schema, draw)

    def _judge(self, parts: dict[str, str], draw: random.Random) -> tuple[str, int]:
        own, wanted = words_of(parts["response"]), words_of(parts["reference_answer"])
        found = len(set(own) & set(wanted))
        opinion = 1 + 4 * found / max(1, len(set(wanted)))
        opinion += self._settings["length"] * math.log2(max(1, len(own)) / max(1, len(wanted)))
        opinion += self._liking(parts["response"], draw)
        asked = random.Random(parts["criteria"] + parts["instruction"])
        grade = min(max(math.floor(opinion + asked.random()), GRADES[0]), GRADES[-1])
        return f"It has {found} of the reference answer's {len(set(wanted))} words, in {len(own)}.", grade

    def _compare(self, parts: dict[str, str], draw: random.Random) -> tuple[str, int, int]:
        wanted = set(words_of(parts["reference"] or parts["question"]))
        answers = parts["answer_a"], parts["answer_b"]
        own = [words_of(text) for text in answers]
        found = [len(set(each) & wanted) for each in own]
        longer = self._settings["length"] * math.log2(max(1, len(own[0])) / max(1, len(own[1])))
        added = self._settings["position"] + longer / 2, -longer / 2
        u = random.Random(parts["question"]).random()
        points = [
            math.floor(2 + 6 * there / max(1, len(wanted)) + more + self._liking(text, draw) + u)
            for there, more, text in zip(found, added, answers, strict=True)
        ]
        told = [f"{name} has {there} of {len(wanted)} words" for name, there in zip("AB", found, strict=True)]
        return f"{told[0]}, in {len(own[0])}; {told[1]}, in {len(own[1])}.", *points

    def _liking(self, text: str, draw: random.Random) -> float:
        is_own = any(each in text for each in self.SENTENCES)
        return self._settings["self"] * is_own + self._settings["noise"] * draw.gauss()


def parts_asked(request: Request, template: str) -> dict[str, str] | None:
    """What a request asks about by a prompt of assets/judge, or None where it asks for something else."""
    return parts_of(request.prompt[-1]["content"], template) if request.is_chat else None


def better_of(a: int, b: int) -> str:
    return "A" if a > b else "B" if b > a else "TIE"


def score(points: int) -> int:
    return min(max(points, LOWEST), HIGHEST)


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
