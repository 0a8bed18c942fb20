"""A judge's reply -> the grade from 1 to 5 that it ends in, or why there is none.

    grade_in("Clear, but it names no source. [RESULT] 3")    # 3
    grade_in("A score of 2 for tone, a score of 4 for facts.")    # raises Unusable("several scores, none final")

Judges write what they like. The most explicit form decides, and of several the last (J6: the released parser took the
first number in the feedback, and any number):

1. a mark in brackets, `[RESULT] 4`, or a JSON object with a score
2. a line that says nothing but a score, `**Score:** 4/5`, and `the overall score is 4`
3. a score in a sentence, `it merits a score of 4`, where all sentences that name one agree

A grade is a whole number from 1 to 5, as a digit or a word; 4.0 is one, 4.5 and 3-4 are none, nor is 8/10. Nothing is
rounded or guessed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from alignment.asking import Unusable

GRADES = (1, 2, 3, 4, 5)
WORDS = "zero one two three four five six seven eight nine ten".split()
NAMES = r"(?:score|grade|rating|result|verdict)"
DECOR = r"[\s*_`\"'()\[\]{}<>#:=~|$\\]"
STOCK = (
    "the my a an is of as at it this that response i give rate rated assign award deserves deserve earns gets receives "
    "merits would be so thus therefore hence final overall total score grade rating result verdict level boxed"
)
# What may stand before the number. It is bounded: a reply that says nothing else would be tried from each of its words
FILL = rf"(?:{DECOR}++|[-–—](?=\s)|\b(?:{STOCK.replace(' ', '|')})\b){{0,40}}+"
NUMBER = rf"(?:\d++(?:[.,]\d++)?+|\b(?:{'|'.join(WORDS)}))(?!\w)"
FIRST = rf"(?<![\w.,/+-])(?P<score>{NUMBER})"
SCALE = (
    rf"(?:{DECOR}*+(?:/|out\s+of|of){DECOR}*+(?P<scale>{NUMBER}(?!\s+of\b))"
    rf"|\s+on\s+a\s+scale\s+(?:of|from)\s+(?:1|one)\s*(?:to|-|–)\s*(?P<top>{NUMBER}))"
)
MORE = rf"(?:{DECOR}*+(?:(?P<other>(?:[-–—,/&]|to\b|or\b|and\b){DECOR}*{NUMBER})|(?P<part>[%+])))?+"
CLOSED = r"(?=\s*(?:[.,;:!)\]*\"']|$|because\b|as\b|for\b|since\b|so\b|hence\b))"  # not `4 out of 5 sources`
SCORE = FIRST + SCALE + "?+" + MORE
MARK = re.compile(rf"\[\s*(?:final\s+)?{NAMES}\b", re.I)
MARKED = re.compile(MARK.pattern + FILL + SCORE, re.I)
LABEL = re.compile(rf"\b{NAMES}\s*[:=]{FILL}{SCORE}", re.I)
# What makes a line one about a score: `The answer is 4.` is feedback
SAYS = re.compile(
    r"\b(?:scores?|grade|rating|rated?|verdict|overall|deserves?|merits|stars?|i\s+(?:would\s+)?(?:give|assign|award))\b"
    r"|^\W*result\b|/|\bout\s+of\b|\ban?\s+\W*\d",
    re.I,
)
LINE = re.compile(rf"{FILL}{SCORE}(?:\s+(?:stars?|points?|overall))?(?:{DECOR}|[.!])*", re.I)
OVERALL = re.compile(rf"\b(?:final|overall|total)\s+{NAMES}\b{FILL}{SCORE}", re.I)
SENTENCES = (
    re.compile(rf"\b(?:score|grade|rating)\b{FILL}{SCORE}", re.I),
    re.compile(
        r"\b(?:(?:deserves?|merits?|earns?|gets?|receives?|give|assign|award)\b(?:\s+(?:this|it|the|response|answer)\b)*\s+an?"
        rf"|rated?\b(?:\s+(?:this|it|the|response|answer|is|at|as|with|a|an)\b)*)\s+{SCORE}{CLOSED}",
        re.I | re.M,
    ),
    re.compile(FIRST + r"(?!\s+of\b)" + SCALE + MORE + CLOSED, re.I | re.M),
)


def grade_in(reply: str) -> int:
    """The grade that a reply ends in. Raises Unusable with the reason."""
    text = reply.rpartition("</think>")[2]
    if "<think>" in text:
        raise Unusable("no end of its thinking")
    if not any(map(str.isalnum, text)):
        raise Unusable("empty")
    if (found := in_json(text)) is not None:
        return found
    if marks := list(MARK.finditer(text)):
        return marked(text, marks)
    if firm := [*lone_lines(text), *OVERALL.finditer(text)]:
        last = max(line_of(text, each) for each in firm)
        return agreed((each for each in firm if line_of(text, each) == last), "two results that differ")
    if loose := [each for pattern in SENTENCES for each in pattern.finditer(text)]:
        return agreed(loose, "several scores, none final")
    raise Unusable("no result")


def marked(text: str, marks: list[re.Match]) -> int:
    """The grade after the last mark. Another one on its line, or a `Score:` after it, must say the same."""
    last = marks[-1]
    if not MARKED.match(text, last.start()):
        raise Unusable("no score after [RESULT]")
    line = [mark for mark in marks if line_of(text, mark) == line_of(text, last)]
    found = [each for mark in line if (each := MARKED.match(text, mark.start()))]
    end = text.find("\n", found[-1].end())
    later = LABEL.finditer(text, found[-1].end(), end if end >= 0 else len(text))
    return agreed([*found, *later], "two results that differ")


def lone_lines(text: str) -> Iterable[re.Match]:
    """Lines of stock words and one score. A bare number counts at the end, and `3.` only alone: it opens a list."""
    at, end = 0, len(text.rstrip())
    for line in text.split("\n"):
        own = line.strip()
        if re.search("[a-z/]", own, re.I):
            counts = SAYS.search(own)
        else:
            counts = at + len(line) >= end and (own == text.strip() or not re.fullmatch(r"\d+[.)]", own))
        if counts and (found := LINE.fullmatch(text, at, at + len(line))):
            yield found
        at += len(line) + 1


def in_json(text: str) -> int | None:
    """The grade of a reply that is a JSON object with a score, fenced or not; None where it is none."""
    found = re.fullmatch(r"\s*(?:```(?:json)?\s*)?(\{.*\})\s*(?:```)?\s*", text, re.S)
    try:
        values = json.loads(found[1]) if found else {}
    except (ValueError, RecursionError):
        return None
    named = {re.sub(r"\W|_", "", key.lower()): value for key, value in values.items()}
    scores = [
        named[key] for key in ("result", "score", "grade", "rating", "overallscore", "finalscore") if key in named
    ]
    if not scores:
        return None
    matches = [re.fullmatch(rf"\s*{FILL}{SCORE}\s*", str(score), re.I) for score in scores]
    if not all(matches):
        raise Unusable("no score in the JSON object")
    return agreed(filter(None, matches), "two results that differ")


def agreed(matches: Iterable[re.Match], otherwise: str) -> int:
    """The one grade of all these. Raises Unusable where one is no grade, or they differ."""
    grades = {grade_of(each) for each in matches}
    if len(grades) > 1:
        raise Unusable(otherwise)
    return grades.pop()


def grade_of(match: re.Match) -> int:
    if match["other"]:
        raise Unusable("two results that differ")
    scale = match["scale"] or match["top"]
    if scale and value_of(scale) != GRADES[-1]:
        raise Unusable("on another scale than 1 to 5")
    value = value_of(match["score"])
    if match["part"] or not value.is_integer():
        raise Unusable("not a whole number")
    if value not in GRADES:
        raise Unusable("not from 1 to 5")
    return int(value)


def value_of(number: str) -> float:
    number = number.lower()
    return float(WORDS.index(number) if number in WORDS else number.replace(",", "."))


def line_of(text: str, match: re.Match) -> int:
    """The number of the line on which a score stands, or a mark without one."""
    return text.count("\n", 0, match.start("score") if "score" in match.re.groupindex else match.start())
