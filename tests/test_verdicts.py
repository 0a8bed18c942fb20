"""Replies of judges as they come: which grade each ends in, or why it has none."""

import pytest

from alignment.asking import Unusable
from alignment.judging.verdicts import grade_in

GOOD = [
    # a mark in brackets
    ("Feedback: Clear, but it names no source. [RESULT] 3", 3),
    ("Clear.\n[RESULT] 4", 4),
    ("Clear.\n\n[RESULT]\n4", 4),
    ("[RESULT] 4\nClear.", 4),
    ("[RESULT]4.", 4),
    ("[Result] 4/5", 4),
    ("[RESULT] 4 / 5", 4),
    ("[RESULT] 4 out of 5", 4),
    ("[RESULT] 4 out of five.", 4),
    ("[RESULT] 4 on a scale from 1 to 5", 4),
    ("**[RESULT]** (4)", 4),
    ("**[RESULT] 4**", 4),
    ("[RESULT]: [4]", 4),
    ("[RESULT: 4]", 4),
    ("[RESULT 4]", 4),
    ("[SCORE] 4", 4),
    ("[Final Score]: 4", 4),
    ("[RESULT] <4>", 4),
    ("[RESULT] `4`", 4),
    ("[RESULT] Score: 4", 4),
    ("[RESULT] The score is 4, as it has 2 minor omissions.", 4),
    ("[RESULT] I give this response a 4.", 4),
    ("[RESULT] four", 4),
    ("[RESULT] Five!", 5),
    ("[RESULT] 4.0", 4),
    ("[RESULT] $\\boxed{4}$", 4),
    ("[RESULT] - 4", 4),
    # the last of them, whatever the feedback says before it (J6)
    ("The style deserves a score 2, the facts more. [RESULT] 4", 4),
    ("A score of 5 would need a source, a score of 2 is too low. Overall score: 3? No. [RESULT] 4", 4),
    ("[RESULT] 3\nOn second thoughts it also names its source.\n[RESULT] 4", 4),
    ("I am to write [RESULT] and 1, 2, 3, 4 or 5.\nIt is clear.\n[RESULT] 2", 2),
    ("[RESULT] 4\nA score of 5 would need a source.", 4),
    ("<think>Perhaps [RESULT] 2?</think>\nIt is clear. [RESULT] 4", 4),
    # a JSON object
    ('{"score": 4}', 4),
    ('{"feedback": "It had a score of 2 at first.", "score": 4}', 4),
    ('```json\n{"Feedback": "Clear.", "Result": "4"}\n```', 4),
    ('{"[RESULT]": "4/5"}', 4),
    ('Here it is: {"feedback": "Clear.", "score": 4}', 4),
    # a line that says nothing else
    ("Score: 4", 4),
    ("Result: 4", 4),
    ("Clear.\n\n**Rating:** 4/5", 4),
    ("### Score\n4", 4),
    ("Score = 4\nThe response is clear; a score of 5 would need a source.", 4),
    ("Style merits a score of 2.\nScore of 4.", 4),
    ("Score: 2\nNo, that is too low.\nScore: 4", 4),
    ("The tone is dry, a score of 2 at most.\nSo the overall score is 4 out of 5.", 4),
    ("I would rate this response a 4.", 4),
    ("Thus, I give it 4/5.", 4),
    ("4 out of 5", 4),
    ("4 stars", 4),
    ("4", 4),
    ("4.", 4),
    ("Clear.\n**4**", 4),
    ("Clear.\n(4)", 4),
    ("Overall: 4/5 stars", 4),
    ("I give it 4.", 4),
    ("It deserves a solid score.\nI'd say:\n\n4", 4),
    # a sentence
    ("The response is clear, so the overall score is 4, whatever a score of 2 would say.", 4),
    ("It is clear and merits a score of 4 by the criterion.", 4),
    ("It earns a 4 because it is clear.", 4),
    ("All in all I rate this answer 4.", 4),
    ("As it is clear, it gets 4 out of 5 for that.", 4),
    ("By the rubric the response has a rating of 4, hence 4/5.", 4),
    ("score: ４ 。", 4),
]

MALFORMED = [
    ("", "empty"),
    (" \n...\n**", "empty"),
    ("[ ]", "empty"),
    ("The response is clear and names its source.", "no result"),
    ("I cannot grade this response.", "no result"),
    ("The response gives 3 examples and gets 2 of them right.", "no result"),
    ("It gets a 4-step plan done in 2 days.", "no result"),
    ("It names 4 out of 5 sources.", "no result"),
    ("It names 4 of 5 sources, and 4/5 of them are right.", "no result"),
    ("The answer is 4.\nThe response says 5.", "no result"),
    ("The final answer is 4.", "no result"),
    ("The result is 4.", "no result"),
    ("It gets 4, where 5 is right.", "no result"),
    ("The response gives 4.", "no result"),
    ("It is \\boxed{4}", "no result"),
    ("As a result, 3 errors remain.", "no result"),
    ("1. It is clear.\n2. It is short.\n3.", "no result"),
    ("It is clear.\n3) It is short.", "no result"),
    ("Published in 2024 on page 4", "no result"),
    ("Satisfactory.", "no result"),
    ('{"feedback": "Clear."}', "no result"),
    ("<think>It has [RESULT] 4", "no end of its thinking"),
    ("It is clear. [RESULT]", "no score after [RESULT]"),
    ("[RESULT] N/A", "no score after [RESULT]"),
    ("[RESULT] good", "no score after [RESULT]"),
    ("[RESULT] X\nScore: 4", "no score after [RESULT]"),
    ("[RESULT] <an integer number between 1 and 5>", "no score after [RESULT]"),
    ("[RESULT] 3\nNo, I take that back. [RESULT] none", "no score after [RESULT]"),
    ("[RESULT] -1", "no score after [RESULT]"),
    ("[RESULT] 4th", "no score after [RESULT]"),
    ("[RESULT] 45", "not from 1 to 5"),
    ("[RESULT] 0", "not from 1 to 5"),
    ("[RESULT] 6", "not from 1 to 5"),
    ("[RESULT] six", "not from 1 to 5"),
    ("[RESULT] 2024", "not from 1 to 5"),
    ("Score: 85", "not from 1 to 5"),
    ("The score is 45.", "not from 1 to 5"),
    ('{"score": 0}', "not from 1 to 5"),
    ("[RESULT] " + "9" * 400, "not a whole number"),  # a float has no room for it
    ("[RESULT] 4.5", "not a whole number"),
    ("[RESULT] 4,5", "not a whole number"),
    ("[RESULT] 4½", "no score after [RESULT]"),
    ("[RESULT] 4+", "not a whole number"),
    ("[RESULT] 80%", "not a whole number"),
    ("Score: 3.75/5", "not a whole number"),
    ('{"score": 4.5}', "not a whole number"),
    ("[RESULT] 8/10", "on another scale than 1 to 5"),
    ("Rating: 4 out of 10", "on another scale than 1 to 5"),
    ("[RESULT] 4/4", "on another scale than 1 to 5"),
    ("[RESULT] 3 on a scale of 1 to 7", "on another scale than 1 to 5"),
    ("[RESULT] 4 [RESULT] 3", "two results that differ"),
    ("[RESULT] 4 (Score: 3)", "two results that differ"),
    ("[RESULT] 3-4", "two results that differ"),
    ("[RESULT] 3 or 4", "two results that differ"),
    ("[RESULT] 1 to 5", "two results that differ"),
    ("[RESULT] <1 to 5>", "two results that differ"),
    ("[RESULT] 4, 5", "two results that differ"),
    ("[RESULT] between three and four", "no score after [RESULT]"),
    ("Final score: 4, or rather the overall score is 3", "two results that differ"),
    ('{"score": 4, "result": 3}', "two results that differ"),
    ("It has a score of 2 for tone and a score of 4 for facts.", "several scores, none final"),
    ("Score 1: it is dark.\nScore 2: it is dim.\nScore 3: it is fair.", "several scores, none final"),
    ("A score of 4 is fair.\nA score of 5 would need a source.", "several scores, none final"),
    ('{"score": "high"}', "no score in the JSON object"),
    ('{"score": null}', "no score in the JSON object"),
    ('{"score": [4]}', "no score in the JSON object"),
    ('{"score": true}', "no score in the JSON object"),
]


def test_there_are_enough():
    assert len(dict(GOOD)) == len(GOOD) >= 40 and len(dict(MALFORMED)) == len(MALFORMED) >= 40


@pytest.mark.parametrize(("reply", "grade"), GOOD)
def test_a_grade_is_found(reply, grade):
    assert grade_in(reply) == grade


@pytest.mark.parametrize(("reply", "reason"), MALFORMED)
def test_nothing_is_guessed(reply, reason):
    with pytest.raises(Unusable) as raised:
        grade_in(reply)
    assert raised.value.reason == reason


@pytest.mark.parametrize(
    "reply", ["[RESULT] " + "(" * 20_000, "score " * 20_000, "{" * 20_000, "4/" * 20_000, "a 4 " * 9_000]
)
def test_a_long_reply_takes_no_time(reply):
    """Patterns that try every way to match would take minutes."""
    with pytest.raises(Unusable):
        grade_in(reply)
