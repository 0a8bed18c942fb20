"""A judge's reply about two answers, A and B -> which is better, or a score of each; or why there is none.

    preference_in("B names its source.\n[VERDICT] B")    # -1: A is better at 1, neither at 0
    scores_in("Both are clear.\n[SCORES] 8 7")           # (8.0, 7.0)

As with grades (verdicts.py) the most explicit form decides, and of several the last: a mark in brackets, or a JSON
object; then a line that says nothing else, `**Winner:** Answer B`, `Scores: 8/10, 7/10`, or in two lines `Answer A: 8`
and `Answer B: 7`. A sentence decides nothing, for `Answer A is better at facts` is no verdict. What cannot be read is
no tie, as failures were in the released code (A14): it is Unusable, with the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from alignment.asking import Unusable
from alignment.judging.verdicts import DECOR

LOWEST, HIGHEST = 1, 10
D = rf"{DECOR}*+"
TIE = r"(?:(?:an?\s+)?(?:tie|draw)|tied)(?!\w)"
NAMED = r"(?:(?:answer|assistant|response|model|option)\s+)?"
LETTER = r"[AB](?!['’\w])"
SIDE = rf"(?P<side>{TIE}|{NAMED}{LETTER})"
STOCK = r"(?:the|my|is|overall|final|verdict|winner|result|choice|decision|preference|better|best|one|answer)\b"
WON = r"(?:\s+(?:is|wins|won)\b(?:\s+(?:the\s+)?(?:better|best|winner)\b(?:\s+(?:answer|one|response)\b)?)?)?"
OTHER = rf"(?P<other>{D}(?:(?:[/,&>=-]|or\b|and\b|vs\b\.?){D})?(?:{TIE}|{NAMED}{LETTER}))"
ENDS = r"(?=\s*(?:[.,;:!)\]*\"'`}$]|\Z|\n|because\b|as\b|since\b|for\b))"
LEAD = rf"(?:{DECOR}++|{STOCK}){{0,20}}?"
MARK = re.compile(
    r"\[\s*(?:final\s+)?(?:verdict|winner|result|choice|decision)\b|\[\[(?=\s*(?:answer\s+)?\w+\s*\]\])", re.I
)
MARKED = re.compile(rf"(?:{MARK.pattern}){LEAD}{SIDE}{WON}(?:{OTHER}|{ENDS})", re.I)
LINE = re.compile(rf"{LEAD}{SIDE}{WON}{OTHER}?(?:{DECOR}|[.!])*+", re.I)
SAYS = re.compile(r"\b(?:verdict|winner|result|choice|decision|preference|better|best|wins|won|tie|draw|tied)\b", re.I)

NUMBER = r"(?<![\w.,/+-])\d++(?:[.,]\d++)?+(?![\w%])"
SCALE = rf"(?:{D}(?:/|out\s+of|of){D}(?P<scale%s>\d++))?+"
SCORE = rf"{D}(?:{NAMED}(?P<label%s>[AB])\b\s*+[:=]?+)?+{D}(?P<score%s>{NUMBER}){SCALE}"
AND = rf"{D}(?:[,;&]{D})?+(?:and\b|vs\b\.?)?+"
BOTH = SCORE.replace("%s", "1") + AND + SCORE.replace("%s", "2") + rf"(?P<more>{AND}{D}{NUMBER})?+"
SCORES_MARK = re.compile(r"\[\s*(?:final\s+)?(?:scores?|result|ratings?)\b", re.I)
SCORES_MARKED = re.compile(SCORES_MARK.pattern + BOTH, re.I)
SCORES_LINE = re.compile(
    rf"(?:{DECOR}++|\b(?:the|my|final|overall|scores?|ratings?|are)\b)*+{BOTH}(?:{DECOR}|[.!])*+", re.I
)
ONE_LINE = re.compile(  # a line with the score of one answer
    rf"(?:{DECOR}++|[-–]\s|\b(?:scores?|rating|of|for|the|final|overall)\b)*+{NAMED}(?P<label>[AB])\b(?:['’]s)?"
    rf"(?:{DECOR}++|\b(?:score|rating|is)\b)*+(?P<score>{NUMBER}){SCALE.replace('%s', '')}(?:{DECOR}|[.!])*+",
    re.I,
)


def preference_in(reply: str) -> int:
    """1 where the reply says that A is better, -1 for B, 0 for a tie. Raises Unusable with the reason."""
    text = said(reply)
    if (values := in_json(text)) is not None:
        return in_one_word(values)
    if marks := list(MARK.finditer(text)):
        line = [mark for mark in marks if line_at(text, mark.start()) == line_at(text, marks[-1].start())]
        return agreed([side_of(MARKED.match(text, mark.start()), "no verdict after the mark") for mark in line])
    lines = [line.strip() for line in text.strip().split("\n")]
    found = [line for line in lines[:-1] if SAYS.search(line) and LINE.fullmatch(line)]
    found += [line for line in lines[-1:] if not line.endswith(":") and LINE.fullmatch(line)]
    if not found:
        raise Unusable("no verdict")
    return side_of(LINE.fullmatch(found[-1]), "no verdict")


def scores_in(reply: str) -> tuple[float, float]:
    """The scores of A and B, each from 1 to 10. Raises Unusable with the reason."""
    text = said(reply)
    if (values := in_json(text)) is not None:
        return both_in(values)
    if marks := list(SCORES_MARK.finditer(text)):
        if not (found := SCORES_MARKED.match(text, marks[-1].start())):
            raise Unusable("no two scores after the mark")
        return both_of(found)
    lines = [line.strip() for line in text.split("\n")]
    if found := [match for line in lines if (match := SCORES_LINE.fullmatch(line))]:
        return both_of(found[-1])
    labelled = [match for line in lines if (match := ONE_LINE.fullmatch(line))]
    if len(labelled) >= 2:
        named = {match["label"].upper(): score_of(match["score"], match["scale"]) for match in labelled[-2:]}
        if len(named) == 2:
            return named["A"], named["B"]
    raise Unusable("no two scores")


def said(reply: str) -> str:
    """What is left of a reply without its thinking."""
    text = reply.rpartition("</think>")[2]
    if "<think>" in text:
        raise Unusable("no end of its thinking")
    if not any(map(str.isalnum, text)):
        raise Unusable("empty")
    return text


def in_json(text: str) -> dict[str, Any] | None:
    """The fields of a reply that is a JSON object, fenced or not, by their names' letters; None of any other."""
    found = re.fullmatch(r"\s*(?:```(?:json)?\s*)?(\{.*\})\s*(?:```)?\s*", text, re.S)
    try:
        values = json.loads(found[1]) if found else None
    except (ValueError, RecursionError):
        return None
    return None if values is None else {re.sub(r"[\W_]", "", key.lower()): value for key, value in values.items()}


def in_one_word(values: dict[str, Any]) -> int:
    for name in ("verdict", "winner", "result", "choice", "preference"):
        if isinstance(word := values.get(name), str):
            return side_of(LINE.fullmatch(word.strip()), "no verdict in its JSON")
    raise Unusable("no verdict in its JSON")


def both_in(values: dict[str, Any]) -> tuple[float, float]:
    listed = values.get("scores")
    if isinstance(listed, dict):
        values = {key.lower(): value for key, value in listed.items()}
    if not (isinstance(listed, list) and len(listed) == 2):
        named = ([values.get(name) for name in names] for names in (("scorea", "scoreb"), ("a", "b")))
        listed = next((both for both in named if None not in both), None)
    if listed is None or any(isinstance(each, bool) or not isinstance(each, int | float | str) for each in listed):
        raise Unusable("no two scores in its JSON")
    first, second = (score_of(str(each), None) for each in listed)
    return first, second


def side_of(match: re.Match | None, otherwise: str) -> int:
    if not match:
        raise Unusable(otherwise)
    if match["other"]:
        raise Unusable("two verdicts that differ")
    return {"A": 1, "B": -1}.get(match["side"][-1].upper(), 0)


def agreed(sides: Sequence[int]) -> int:
    if len(set(sides)) > 1:
        raise Unusable("two verdicts that differ")
    return sides[0]


def both_of(match: re.Match) -> tuple[float, float]:
    if match["more"]:
        raise Unusable("more than two scores")
    labels = [(match[f"label{place}"] or "").upper() for place in (1, 2)]
    if labels not in (["", ""], ["A", "B"], ["B", "A"]):
        raise Unusable("scores of one answer only")
    first, second = (score_of(match[f"score{place}"], match[f"scale{place}"]) for place in (1, 2))
    return (second, first) if labels[0] == "B" else (first, second)


def score_of(number: str, scale: str | None) -> float:
    if scale and int(scale) != HIGHEST:
        raise Unusable("on another scale than 1 to 10")
    try:
        value = float(number.replace(",", "."))
    except ValueError:
        raise Unusable("no number for a score") from None
    if not LOWEST <= value <= HIGHEST:
        raise Unusable("not from 1 to 10")
    return value


def line_at(text: str, place: int) -> int:
    return text.count("\n", 0, place)
