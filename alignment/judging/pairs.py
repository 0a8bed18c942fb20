"""Two answers to a question, compared by a judge in both orders: what is asked, and what its replies say together.

    found, asked = compared([Pair("q1", "Why?", "Because.", "So.")], send, tries=4, seed=42)
    found[0].value      # 1: the first is better in both orders; 0: the second is; 0.5: neither; None: no verdict
    found[0].is_flip    # each order names another one better: the judge goes by the place

A verdict prefers A, B or neither (MT-Bench's form), or with `scores` gives each a score from 1 to 10 (Vicuna's form,
ALMoST 1.8). A question's two requests show the answers in either order, and only what both say counts. One that has no
verdict that can be read leaves the question without a value: it is no tie, as it was in the released code (A14).

The prompts, ours, are assets/judge/pair*.txt. Of a dialogue the last turn is judged, after all before it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from alignment.asking import Asked, ask, chat, filled
from alignment.generation import Reply, Request, record_seed
from alignment.judging.grades import AGAIN, prompt_text
from alignment.judging.pair_verdicts import HIGHEST, LOWEST, preference_in, scores_in

ORDERS = ("first shown first", "second shown first")
EARLIER = (
    "### Earlier question:\n{question}\n\n### A's answer to it:\n{answer_a}\n\n### B's answer to it:\n{answer_b}\n\n"
)
REFERENCE = "### A right answer, to compare with:\n{reference}\n\n"
SUBJECTS = {"coding": "pair_coding.txt", "math": "pair_math.txt"}  # of Vicuna's and MT-Bench's categories
REASONS = {"type": "string", "minLength": 20, "maxLength": 600}
SCORE = {"type": "integer", "minimum": LOWEST, "maximum": HIGHEST}


def schema_of(scores: bool) -> dict:
    """What a reply in JSON follows."""
    asked = {"score_a": SCORE, "score_b": SCORE} if scores else {"verdict": {"enum": ["A", "B", "TIE"]}}
    return {
        "type": "object",
        "properties": {"reasons": REASONS} | asked,
        "required": ["reasons", *asked],
        "additionalProperties": False,
    }


class Pair(NamedTuple):
    """Two answers to a question. `earlier` are the turns before it, (question, first's answer, second's answer)."""

    id: str
    question: str
    first: str
    second: str
    reference: str | None = None
    earlier: tuple[tuple[str, str, str], ...] = ()
    category: str | None = None

    def swapped(self) -> Pair:
        earlier = tuple((question, second, first) for question, first, second in self.earlier)
        return self._replace(first=self.second, second=self.first, earlier=earlier)


class Verdict(NamedTuple):
    """What a judge says of A and B: 1 where A is better, -1 where B is, 0 where neither; maybe the scores; the whole
    reply. Or the reason why there is none."""

    better: int | None
    scores: tuple[float, float] | None = None
    reply: str | None = None
    reason: str | None = None


@dataclass
class Compared:
    """A pair's verdicts: the first answer was A in one, B in the other. A judge that sees no order gives one."""

    verdicts: tuple[Verdict, ...]

    @property
    def for_first(self) -> list[int | None]:
        """What each verdict says of the first answer: 1, 0 or -1."""
        signs = (1, -1)[: len(self.verdicts)]
        return [each.better and sign * each.better for sign, each in zip(signs, self.verdicts, strict=True)]

    @property
    def value(self) -> float | None:
        """1 where every verdict is for the first answer, 0 for the second, else 0.5; None where one is missing."""
        said = self.for_first
        if None in said:
            return None
        return (1 + said[0]) / 2 if len(set(said)) == 1 else 0.5

    @property
    def credit(self) -> float | None:
        """The mean over the orders of 1 for the first answer, 0 for the second, 0.5 for neither: what shows of a liking
        also where the place decides most verdicts."""
        said = self.for_first
        return None if None in said else (1 + sum(said) / len(said)) / 2

    @property
    def is_flip(self) -> bool:
        """Whether the orders name different answers better."""
        return {1, -1} <= set(self.for_first)

    @property
    def reason(self) -> str | None:
        """Why there is no value."""
        return next((each.reason for each in self.verdicts if each.better is None), None)

    @property
    def lean(self) -> float | None:
        """How far the verdicts go by the place: the mean of 1 for A, -1 for B, 0 for neither, over both orders; 1 is A
        always. None where a verdict is missing, or there is one order."""
        said = [each.better for each in self.verdicts]
        return None if None in said or len(said) < 2 else sum(said) / 2

    @property
    def lean_points(self) -> float | None:
        """The same in points: how much more A is given than B, over both orders."""
        scores = [each.scores for each in self.verdicts]
        return None if None in scores or len(scores) < 2 else sum(a - b for a, b in scores) / 2

    @property
    def scores(self) -> list[tuple[float, float]]:
        """The scores of the first and the second answer, of each verdict that has them."""
        return [each.scores[::sign] for each, sign in zip(self.verdicts, (1, -1), strict=False) if each.scores]

    @property
    def points(self) -> tuple[float, float] | None:
        """Their means over the orders; None where a verdict has none."""
        if len(own := self.scores) < len(self.verdicts):
            return None
        return sum(first for first, _ in own) / len(own), sum(second for _, second in own) / len(own)


def pair_prompt(pair: Pair, again: str = "") -> str:
    """What the judge is asked about a pair; A is its first."""
    earlier = [filled(EARLIER, question=asked, answer_a=a, answer_b=b) for asked, a, b in pair.earlier]
    return filled(
        prompt_text("pair_user.txt"),
        earlier="".join(earlier),
        question=pair.question,
        reference=filled(REFERENCE, reference=pair.reference) if pair.reference else "",
        answer_a=pair.first,
        answer_b=pair.second,
        again=again,
    )


def prompts_of(scores: bool, as_json: bool) -> tuple[str, ...]:
    """The files of the system message, of the user's, and of what is added to the first."""
    asked = f"pair{'_scores' * scores}{'_json' * as_json}.txt", "pair_user.txt"
    return (*asked, *SUBJECTS.values()) if scores else asked


def system_prompt(scores: bool, as_json: bool, category: str | None = None) -> str:
    """The form that is asked for. Scores of code and of mathematics have words of their own, as in Vicuna's."""
    own = SUBJECTS.get(category) if scores else None
    text = prompt_text(prompts_of(scores, as_json)[0])
    return filled(text, subject=f"{prompt_text(own)}\n\n" if own else "")


def compared(
    pairs: Sequence[Pair],
    send: Callable[[Sequence[Request]], list[Reply]],
    *,
    scores: bool = False,
    as_json: bool = False,
    tries: int = 4,
    seed: int = 42,
) -> tuple[list[Compared], Asked]:
    """Compare the answers of each pair in both orders. A question and order have the same seed whoever answered."""
    shown = [each for pair in pairs for each in (pair, pair.swapped())]

    def request(question: int, attempt: int, hint: str) -> Request:
        again = filled(AGAIN, attempt=str(attempt)) if attempt else ""
        pair = shown[question]
        system = system_prompt(scores, as_json, pair.category)
        return chat(system, pair_prompt(pair, again), record_seed(seed, "pair", pair.id, question % 2, attempt))

    def read(question: int, text: str) -> Verdict:
        if not scores:
            return Verdict(preference_in(text), reply=text.strip())
        a, b = scores_in(text)
        return Verdict((a > b) - (a < b), (a, b), text.strip())

    asked = ask(len(shown), request=request, read=read, send=send, tries=tries)
    verdicts = [
        value or Verdict(None, reason=reason) for value, reason in zip(asked.values, asked.reasons, strict=True)
    ]
    return [Compared(each) for each in zip(verdicts[::2], verdicts[1::2], strict=True)], asked


def together(some: Iterable[Asked]) -> Asked:
    """What came of questions that were asked at several times."""
    found = Asked([], [])
    for each in some:
        found.values += each.values
        found.reasons += each.reasons
        found.first += each.first
        found.again += each.again
        found.failed += each.failed
    return found


def letters_given(found: Iterable[Compared]) -> Counter:
    """How often A, B and TIE were said."""
    return Counter(
        {1: "A", 0: "TIE", -1: "B"}[verdict.better]
        for each in found
        for verdict in each.verdicts
        if verdict.better is not None
    )
