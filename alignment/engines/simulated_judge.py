"""A seeded judge of known biases in a model's place: it reads the response that it is asked to grade."""

from __future__ import annotations

import math
import random
import re
from typing import Any

from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Request
from alignment.judging.grades import parts_of
from alignment.judging.verdicts import GRADES


class SimulatedJudge(SimulatedEngine):
    """Asked for a grade as judging/grades.py asks, it gives 1, and 4 points more by the share of the reference answer's
    words that the response has, whatever the criterion. To that it adds, as its name says,
    `judge?length=0.5&self=0.3&noise=0.5`:

        length   points for each doubling of the response's words, counted from the reference answer's
        self     points for a response that has a sentence of the simulated writer
        noise    deviation of Gaussian noise, by the request's seed

    The sum is said as a whole grade from 1 to 5: between two as one or the other, in proportion, by instruction and
    criterion alone. So the mean over many questions is the sum's, a response that is worth more never gets less, and no
    seed changes what a judge without noise says. A malformed reply has feedback and no grade. The other settings, and
    all other requests, are the simulated writer's.
    """

    SETTINGS = SimulatedEngine.SETTINGS | {"length": 0.0, "self": 0.0, "noise": 0.0}

    def _write(self, request: Request, outcome: str, draw: random.Random) -> str:
        parts = parts_asked(request)
        if parts is None or outcome == "refusals":
            return super()._write(request, outcome, draw)
        feedback, grade = self._judge(parts, draw)
        return feedback if outcome == "malformed" else f"{feedback}\n[RESULT] {grade}"

    def _fill(self, request: Request, schema: dict, draw: random.Random) -> Any:
        parts = parts_asked(request)
        if parts is None:
            return super()._fill(request, schema, draw)
        return dict(zip(("feedback", "score"), self._judge(parts, draw), strict=True))

    def _judge(self, parts: dict[str, str], draw: random.Random) -> tuple[str, int]:
        own, wanted = words_of(parts["response"]), words_of(parts["reference_answer"])
        found = len(set(own) & set(wanted))
        opinion = 1 + 4 * found / max(1, len(set(wanted)))
        opinion += self._settings["length"] * math.log2(max(1, len(own)) / max(1, len(wanted)))
        opinion += self._settings["self"] * any(each in parts["response"] for each in self.SENTENCES)
        opinion += self._settings["noise"] * draw.gauss()
        asked = random.Random(parts["criteria"] + parts["instruction"])
        grade = min(max(math.floor(opinion + asked.random()), GRADES[0]), GRADES[-1])
        return f"It has {found} of the reference answer's {len(set(wanted))} words, in {len(own)}.", grade


def parts_asked(request: Request) -> dict[str, str] | None:
    """What a request asks to grade by, or None where it asks for something else."""
    return parts_of(request.prompt[-1]["content"]) if request.is_chat else None


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
