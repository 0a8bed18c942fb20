"""Whatever a model or a server replies: seeded mutations of good replies through every parser.

A parser raises nothing but Unusable, where it may raise at all, and returns nothing else than stated beside it.
"""

import json
import random

import pytest
from mutations import TIMES, is_sound, mutated, says, torn

from alignment import few_shot
from alignment.asking import Unusable
from alignment.engines.answers import owners, reply_from, told_by
from alignment.engines.perspective import score_in
from alignment.engines.schemas import fill
from alignment.generation import Sampling, follows
from alignment.janus import writers
from alignment.janus.leaks import LeakRule
from alignment.janus.preferences import DIMENSIONS, KEYS, TREE, Tree, read_set
from alignment.judging import criteria, judgments, pair_verdicts, verdicts

SET = [{"dimension": name, "subdimension": "sub", "preference": name, "description": "D."} for name in DIMENSIONS]


def scrambled(text: str, draw: random.Random) -> str:
    """A reply cut off, with other replies' pieces in it, or anything."""
    marks = [
        "\n",
        " ",
        "\ud83d",
        "[RESULT]",
        "[[A]]",
        "{",
        '{"score": 5}',
        "</think>",
        "<think>",
        "10",
        "9" * 400,
        "4.0",
    ]
    marks += [
        "/",
        "out of 10",
        "Yes.",
        "satisfactory",
        "Human:",
        "\n\n-----",
        "Query:",
        "[SEP]",
        "**",
        "é" * 50,
        "²",
        "٣",
    ]
    for _ in range(draw.choice((1, 2, 3))):
        at, to = sorted(draw.randrange(len(text) + 1) for _ in "ab")
        text = draw.choice((text[:at], text[at:], text[:at] + text[to:], text[:at] + draw.choice(marks) + text[at:]))
        text += draw.choice(("", "", *marks))
    return text


GRADES = [
    "It is clear. [RESULT] 4",
    "**Score:** 3/5",
    '{"score": 2, "feedback": "Good."}',
    "I give it a score of 5.",
    "4",
]
VERDICTS = ["Both are good. [[A]]", '{"verdict": "B"}', "Verdict: tie", "The winner is answer B.", "[RESULT] Answer A"]
SCORES = [
    "8 7",
    "[SCORES] 8/10, 7/10",
    "Answer A: 8\nAnswer B: 7",
    '{"scores": [3, 4]}',
    '{"score_a": 3, "score_b": 4.5}',
]
JUDGMENTS = ["### Judgment: It is too short.", "Satisfactory.", "It names no source. No.", "It is right. Yes."]
QUERIES = [" Why is it so?\nQuery: How?", "Query: Who? query :", " Why?[SEP]"]
ANSWERS = [" It is so.\n\nHuman: And?", "It is so.\n\n-----\n\nHuman:", "\n So. \t"]


def is_verdict(found) -> bool:
    return (found.judgment is None or says(found.judgment)) and not (found.judgment and found.malformed)


def of_judgments(form: str):
    return lambda text: judgments.parse_judgment(form, text, "stop", "It is too short.")


def is_query(text: str) -> bool:
    return text == text.strip() and "\n" not in text and "query:" not in text.lower()


def is_answer(text: str) -> bool:
    return text == text.strip("\n ") and not any(stop in text for stop in few_shot.REPLY_STOP)


PARSERS = {  # good replies, the parser, and what it returns
    "grade": (GRADES, verdicts.grade_in, lambda found: type(found) is int and 1 <= found <= 5),
    "preference": (VERDICTS, pair_verdicts.preference_in, lambda found: type(found) is int and found in (-1, 0, 1)),
    "scores": (
        SCORES,
        pair_verdicts.scores_in,
        lambda found: len(found) == 2 and all(1 <= each <= 10 for each in found),
    ),
    "annotation": (JUDGMENTS, of_judgments("annotate"), is_verdict),
    "AI judgment": (JUDGMENTS, of_judgments("ai_judge"), is_verdict),
    "query": (QUERIES, few_shot.parse_query, is_query),
    "query as released": (
        QUERIES,
        few_shot.parse_query_as_released,
        lambda text: text == text.strip() and "\n" not in text,
    ),
    "answer": (ANSWERS, few_shot.parse_reply, is_answer),
}
MAY_REFUSE = ("grade", "preference", "scores")


@pytest.mark.parametrize("name", PARSERS)
def test_parsers_of_replies(name):
    replies, parse, holds = PARSERS[name]
    draw, every = random.Random(name), [*GRADES, *VERDICTS, *SCORES, *JUDGMENTS, *QUERIES, *ANSWERS]
    for reply in replies:
        assert holds(parse(reply)), reply
    for number in range(4 * TIMES):
        reply = scrambled(draw.choice(every if number % 4 == 0 else replies), draw)
        try:
            assert holds(parse(reply)), reply
        except Unusable as refused:
            assert name in MAY_REFUSE and says(refused.reason), reply


def is_set(found) -> bool:
    return [each["dimension"] for each in found] == list(DIMENSIONS) and all(
        set(each) == set(KEYS) and all(map(says, each.values())) for each in found
    )


def is_rubric(found) -> bool:
    texts = [found["criteria"], *found["score_descriptions"].values()]
    return list(found["score_descriptions"]) == list("12345") and all(map(says, texts)) and len(set(texts[1:])) == 5


ROW = {"id": 1, "set": 0, "prompt": "Why is it so?", "system": "You are kind.", "preference_set": SET}
UNDER_SCHEMA = {  # the schema, what reads a reply that follows it, and what that returns
    "preference set": (Tree.read(TREE).schema(), lambda text: read_set(text, Tree.read(TREE)), is_set),
    "system message": (
        writers.SystemMessages.schema,
        lambda text: writers.SystemMessages([ROW], LeakRule(), 0).read(0, text),
        lambda found: says(found) and found == " ".join(found.split()),
    ),
    "rubric": (writers.Rubrics.schema, lambda text: writers.Rubrics([ROW], 0).read(0, text), is_rubric),
    "criterion": (criteria.GRADE_SCHEMA, criteria.parse_grade, lambda found: type(found) is int and 0 <= found <= 2),
}


@pytest.mark.parametrize("name", UNDER_SCHEMA)
def test_parsers_of_replies_under_a_schema(name):
    """What does not follow the schema is told from what does, and is not read."""
    schema, parse, holds = UNDER_SCHEMA[name]
    draw, followed = random.Random(name), 0
    for number in range(TIMES):
        value = fill(schema, draw)
        text = json.dumps(mutated(value, draw) if number % 2 else value)
        text = scrambled(text, draw) if number % 5 == 0 else text
        if follows(text, Sampling(1, schema=schema)):
            followed += 1
            try:
                assert holds(parse(text)), text
            except Unusable as refused:
                assert says(refused.reason)
    assert TIMES / 4 < followed < TIMES


def test_a_whole_number_of_json_is_a_grade():
    """1.0 follows the schema of a grade, as JSON has one kind of number."""
    assert follows('{"grade": 1.0}', Sampling(1, schema=criteria.GRADE_SCHEMA))
    assert criteria.parse_grade('{"grade": 1.0}') == 1 and type(criteria.parse_grade('{"grade": 1.0}')) is int


COMPLETION = {"choices": [{"text": "So.", "finish_reason": "stop", "message": {"content": "a"}}]}
PERSPECTIVE = {"attributeScores": {"TOXICITY": {"summaryScore": {"value": 0.5, "type": "PROBABILITY"}}}}
FAULT = {"error": {"message": "no such model", "code": 404, "type": "NotFound"}, "data": [{"owned_by": "vllm"}]}


@pytest.mark.parametrize("good", [COMPLETION, PERSPECTIVE, FAULT])
def test_what_servers_send(good):
    """Whatever comes: a whole reply or why it is none; a message in letters; a score from 0 to 1 or none."""
    draw = random.Random(0)
    for number in range(2 * TIMES):
        body = json.dumps(mutated(good, draw)).encode()
        body = torn(body, draw) if number % 3 == 0 else body
        reply = reply_from(body, ["secret"])
        assert isinstance(reply.finish, str) and (reply.text is None) != (reply.finish in ("stop", "length"))
        assert reply.text is None or isinstance(reply.text, str) and is_sound(reply.text)
        assert all(isinstance(each, str) for each in told_by(body)) and isinstance(owners(body), set)
        score = score_in(body)
        assert score is None or 0 <= score <= 1
