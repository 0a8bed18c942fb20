"""Two answers compared: what is asked, how verdicts are read, what both orders say together, and known biases found."""

import json
import random

import numpy as np
import pytest

from alignment.asking import Unusable
from alignment.engines.simulated_judge import SimulatedJudge
from alignment.generation import Reply, Request, Sampling, generate
from alignment.intervals import bootstrap
from alignment.journal import Journal
from alignment.judging.grades import parts_of
from alignment.judging.pair_verdicts import preference_in, scores_in
from alignment.judging.pairs import Compared, Pair, Verdict, compared, pair_prompt, schema_of, system_prompt

A, B, TIE = 1, -1, 0
PREFERENCES = [
    ("B names its source.\n[VERDICT] B", B),
    ("[VERDICT] A", A),
    ("[VERDICT] TIE", TIE),
    ("[verdict] b.", B),
    ("[VERDICT]\nB", B),
    ("[VERDICT]: **B**", B),
    ("[VERDICT: A]", A),
    ("[Final Verdict] Answer B", B),
    ("[WINNER] Assistant A", A),
    ("[VERDICT] A is better.", A),
    ("[VERDICT] The better answer is A", A),
    ("[VERDICT] A, as it is right where B is not.", A),
    ("[VERDICT] a tie", TIE),
    ("[VERDICT] Draw", TIE),
    ('[VERDICT] "B"', B),
    ("So it is [[B]].", B),
    ("[[A]]", A),
    ("[[TIE]]", TIE),
    ("[[A]]\nNo, it is wrong about the year.\n[[B]]", B),
    ("I am to write [VERDICT] and A, B or TIE.\nA is right.\n[VERDICT] A", A),
    ("<think>[VERDICT] B?</think>A is right.\n[VERDICT] A", A),
    ('{"reasons": "[VERDICT] B would be wrong.", "verdict": "A"}', A),
    ('```json\n{"Winner": "Answer B"}\n```', B),
    ('{"verdict": "TIE"}', TIE),
    ("Answer A is short. Answer B is not.\nVerdict: B", B),
    ("**Winner:** Answer B", B),
    ("The better answer is B.", B),
    ("Final verdict: A\nNo.\nFinal verdict: B", B),
    ("My verdict is a draw", TIE),
    ("A is right.\nAnswer B wins!", B),
    ("Both are right.\nTie", TIE),
    ("A", A),
    ("Answer B.", B),
]
SCORES = [
    ("Both are clear.\n[SCORES] 8 7", (8, 7)),
    ("[SCORES] 8, 7", (8, 7)),
    ("[SCORES] 8/10 7/10", (8, 7)),
    ("[SCORES] 8 out of 10, and 7 out of 10", (8, 7)),
    ("[SCORES]: **8** **7**", (8, 7)),
    ("[SCORES] (8, 7)", (8, 7)),
    ("[SCORES] A: 8, B: 7", (8, 7)),
    ("[SCORES] B: 7, A: 8", (8, 7)),
    ("[SCORES] 8\n7", (8, 7)),
    ("[SCORES] 8.5 7", (8.5, 7)),
    ("[SCORES] 7 8\nNo, A is right.\n[SCORES] 8 7", (8, 7)),
    ("8 7\nAnswer A has 3 examples, B has 2.", (8, 7)),
    ("Scores: 8 and 7", (8, 7)),
    ("**Answer A:** 8/10\n**Answer B:** 7/10", (8, 7)),
    ("- Answer A's score: 8\n- Answer B's score: 7", (8, 7)),
    ('{"reasons": "3 1", "score_a": 8, "score_b": 7}', (8, 7)),
    ('{"scores": [8, 7]}', (8, 7)),
    ('{"scores": {"A": "8", "B": 7}}', (8, 7)),
]
NO_PREFERENCE = [
    ("", "empty"),
    (" \n...\n**", "empty"),
    ("<think>[VERDICT] A", "no end of its thinking"),
    ("I cannot compare these answers.", "no verdict"),
    ("Answer A is better at facts, and B at style.", "no verdict"),
    ("Answer A:\nIt is right.\nAnswer B:\nIt is wrong.", "no verdict"),
    ("Answer A:\nIt is right.\nAnswer B:", "no verdict"),
    ("A tie would be unjust to B.", "no verdict"),
    ("Both are good: tie.", "no verdict"),
    ("8 7", "no verdict"),
    ("[VERDICT]", "no verdict after the mark"),
    ("[VERDICT] neither", "no verdict after the mark"),
    ("[VERDICT] both", "no verdict after the mark"),
    ("[VERDICT] C", "no verdict after the mark"),
    ("[[C]]", "no verdict after the mark"),
    ("[VERDICT] AB", "no verdict after the mark"),
    ("[VERDICT] A better answer would name a source.", "no verdict after the mark"),
    ("[VERDICT] A's facts are wrong.", "no verdict after the mark"),
    ("[VERDICT] <one of A, B and TIE>", "no verdict after the mark"),
    ("[VERDICT] A\nI take that back.\n[VERDICT] none", "no verdict after the mark"),
    ("[VERDICT] A or B", "two verdicts that differ"),
    ("[VERDICT] A/B/TIE", "two verdicts that differ"),
    ("[VERDICT] A > B", "two verdicts that differ"),
    ("[[A]] [[B]]", "two verdicts that differ"),
    ('{"reasons": "A is right."}', "no verdict in its JSON"),
    ('{"verdict": 1}', "no verdict in its JSON"),
    ('{"verdict": null}', "no verdict in its JSON"),
    ('{"verdict": "A or B"}', "two verdicts that differ"),
]
NO_SCORES = [
    ("", "empty"),
    ("Both are good.", "no two scores"),
    ("Answer A: 8\nIt is right.", "no two scores"),
    ("In 2024 it had 8 7 wins.", "no two scores"),
    ("A is 8 of 10.", "no two scores"),
    ("[SCORES]", "no two scores after the mark"),
    ("[SCORES] 8", "no two scores after the mark"),
    ("[SCORES] eight seven", "no two scores after the mark"),
    ("[SCORES] 8-7", "no two scores after the mark"),
    ("[SCORES] 80% 70%", "no two scores after the mark"),
    ("[SCORES] -8 7", "no two scores after the mark"),
    ("[SCORES] 8 7 6", "more than two scores"),
    ("[SCORES] A: 8, A: 7", "scores of one answer only"),
    ("[SCORES] 8/5 7/5", "on another scale than 1 to 10"),
    ("[SCORES] 11 7", "not from 1 to 10"),
    ("[SCORES] 8 0", "not from 1 to 10"),
    ('{"score_a": 8}', "no two scores in its JSON"),
    ('{"score_a": true, "score_b": 7}', "no two scores in its JSON"),
    ('{"score_a": "high", "score_b": 7}', "no number for a score"),
]


@pytest.mark.parametrize(("reply", "better"), PREFERENCES)
def test_a_preference_is_read(reply, better):
    assert preference_in(reply) == better


@pytest.mark.parametrize(("reply", "both"), SCORES)
def test_scores_are_read(reply, both):
    assert scores_in(reply) == both


def test_forty_seven_malformed_replies_are_no_tie():
    """Each has its reason, and none is a verdict (A14)."""
    assert len(NO_PREFERENCE) + len(NO_SCORES) == 47
    for read, replies in ((preference_in, NO_PREFERENCE), (scores_in, NO_SCORES)):
        for reply, reason in replies:
            with pytest.raises(Unusable) as raised:
                read(reply)
            assert raised.value.reason == reason, reply


@pytest.mark.parametrize(
    "reply", [" " * 30_000 + "A", "A " * 30_000, "[VERDICT] " + "the " * 30_000, "[[" * 30_000, "8 " * 30_000 + "x"]
)
def test_a_long_reply_takes_no_time(reply):
    for read in (preference_in, scores_in):
        try:
            read(reply)
        except Unusable:
            continue


# What is asked


def test_the_prompt_holds_all_and_is_read_again():
    """Braces of the data are no slots. Swapped, the answers to earlier turns change places too."""
    pair = Pair("1", "And {question}?", "So {again}.", "Thus.", "Right.", (("Why?", "One.", "Two."),))
    parts = parts_of(prompt := pair_prompt(pair), "pair_user.txt")
    assert (
        parts["question"] == "And {question}?" and parts["answer_a"] == "So {again}." and parts["answer_b"] == "Thus."
    )
    assert prompt.startswith(
        "### Earlier question:\nWhy?\n\n### A's answer to it:\nOne.\n\n### B's answer to it:\nTwo."
    )
    assert "### A right answer, to compare with:\nRight.\n\n### Answer A:\nSo" in prompt
    swapped = pair_prompt(pair.swapped())
    assert "A's answer to it:\nTwo." in swapped and parts_of(swapped, "pair_user.txt")["answer_b"] == "So {again}."
    assert pair.swapped().swapped() == pair and "right answer" not in pair_prompt(Pair("1", "Why?", "One.", "Two."))


def test_both_orders_are_asked_and_what_fails_is_asked_again():
    """The first question's second order cannot be read at first. A question's order has one seed whoever answered."""
    sent = []

    def send(requests):
        sent.append(requests)
        texts = ["[VERDICT] A", "Hm.", "[VERDICT] A", "[VERDICT] A"] if len(sent) == 1 else ["[VERDICT] B"]
        return [Reply(text, "stop") for text in texts]

    found, asked = compared([Pair("p", "Why?", "One.", "Two."), Pair("q", "How?", "One.", "Two.")], send)
    assert [each.value for each in found] == [1, 0.5] and [each.is_flip for each in found] == [False, True]
    assert found[0].verdicts[1] == Verdict(B, reply="[VERDICT] B") and asked.again == {"no verdict": 1}
    first, second = (request.prompt[1]["content"] for request in sent[0][:2])
    assert "### Answer A:\nOne." in first and "### Answer A:\nTwo." in second
    assert (
        sent[1][0].prompt[1]["content"]
        == second + "\n\n(Your reply number 1 could not be read. Keep to the form that is asked for.)"
    )
    assert len({request.seed for requests in sent for request in requests}) == 5
    seeds = [request.seed for request in sent[0]]
    sent.clear()
    compared([Pair("p", "Why?", "Other.", "Two."), Pair("q", "How?", "x", "y")], send)
    assert [request.seed for request in sent[0]] == seeds


def test_the_four_forms_ask_for_what_they_read():
    for scores in (False, True):
        mark = "[SCORES]" if scores else "[VERDICT]"
        assert mark in system_prompt(scores, False) and mark not in system_prompt(scores, True)
        for name in schema_of(scores)["properties"]:
            assert f'"{name}"' in system_prompt(scores, True)
        assert "{" not in system_prompt(scores, False)


@pytest.mark.parametrize(("scores", "words"), [(True, ["", "code", "mathematics"]), (False, ["", "", ""])])
def test_scores_of_code_and_of_mathematics_have_words_of_their_own(scores, words):
    """Between what is scored and how it is said; a preference is asked for in the same words whatever the category."""
    sent = []

    def send(requests):
        sent.extend(request.prompt[0]["content"] for request in requests)
        return [Reply("[SCORES] 5 5" if scores else "[VERDICT] TIE", "stop") for _ in requests]

    some = [Pair(str(i), "Why?", "a", "b", category=name) for i, name in enumerate(("writing", "coding", "math"))]
    compared(some, send, scores=scores)
    general = system_prompt(scores, False)
    for word, in_order, swapped in zip(words, sent[::2], sent[1::2], strict=True):
        assert in_order == swapped and (in_order == general) == (not word)
        head, own, tail = (*in_order.split("\n\n"), "")[:3] if word else ("", "", "")
        assert word in own and (not word or general == f"{head}\n\n{tail}")


# What both orders say


def of(first, second, scores=((5, 5), (5, 5))):
    return Compared((Verdict(first, scores[0]), Verdict(second, scores[1])))


@pytest.mark.parametrize(
    ("verdicts", "value", "is_flip", "lean"),
    [
        ((A, B), 1, False, 0),
        ((B, A), 0, False, 0),
        ((TIE, TIE), 0.5, False, 0),
        ((A, A), 0.5, True, 1),
        ((B, B), 0.5, True, -1),
        ((A, TIE), 0.5, False, 0.5),
        ((TIE, A), 0.5, False, 0.5),
        ((None, A), None, False, None),
        ((A, None), None, False, None),
    ],
)
def test_only_what_both_orders_say_counts(verdicts, value, is_flip, lean):
    found = of(*verdicts)
    assert (found.value, found.is_flip, found.lean) == (value, is_flip, lean)


def test_points_are_each_answers_own_and_the_lean_is_the_places():
    """8 and 6 in order, 7 (the second's) and 7 swapped: the first has 7.5, the second 6.5, and A 1 more than B."""
    found = of(A, TIE, ((8, 6), (7, 7)))
    assert found.points == (7.5, 6.5) and found.lean_points == (2 + 0) / 2
    alone = Compared((Verdict(B),))
    assert alone.value == 0 and alone.lean is None and not alone.is_flip
    assert Compared((Verdict(None, reason="no verdict"), Verdict(A))).reason == "no verdict"


# Known biases

WORDS = [f"word{number}" for number in range(200)]


def pairs(padding=0, own=""):
    """120 questions of 20 words. Both answers have ten of them, in another order, and so are worth as much; the first
    is opened by `own`, and has `padding` times as many other words more."""
    found = []
    for number in range(120):
        words = random.Random(number).sample(WORDS, 20)
        first = " ".join([*own.split(), *words[:10], *["more"] * (10 * padding)])
        found.append(Pair(str(number), " ".join(words), first, " ".join(words[9::-1])))
    return found


def ask(judge, some, **how):
    engine = SimulatedJudge(judge)

    def send(requests):
        schema = schema_of(how.get("scores", False)) if how.get("as_json") else None
        replies = [None] * len(requests)
        for index, reply in engine.complete(requests, Sampling(100, schema=schema)):
            replies[index] = reply
        return replies

    return compared(some, send, **how)[0]


def within(values, knob):
    low, high = bootstrap(np.array(values), np.mean, seed=0, resamples=400)
    return low <= knob <= high and high - low < 0.35


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("scores", [False, True])
def test_a_planted_position_bias_is_found(scores, as_json):
    """Of answers of equal worth A gains the knob, in verdicts and in points; a judge without one does not lean."""
    found = ask("judge?position=0.4", pairs(), scores=scores, as_json=as_json)
    assert within([each.lean for each in found], 0.4)
    assert not scores or within([each.lean_points for each in found], 0.4)
    assert {each.lean for each in ask("judge", pairs(), scores=scores, as_json=as_json)} == {0}


def test_a_place_is_found_where_the_answers_differ():
    """The first has a word of twenty more, 0.3 points: with 0.4 for the place the lean is still 0.4, and the scores'
    difference over both orders 0.3."""
    some = [pair._replace(first=f"{pair.first} {pair.question.split()[10]}") for pair in pairs()]
    found = ask("judge?position=0.4&noise=0.2", some, scores=True)
    assert within([each.lean_points for each in found], 0.4)
    assert within([first - second for first, second in (each.points for each in found)], 0.3)


def test_a_planted_length_bias_is_found():
    """Twice the words gain the knob, in either order."""
    found = ask("judge?length=0.5", pairs(padding=1), scores=True)
    assert within([first - second for first, second in (each.points for each in found)], 0.5)
    assert {each.value for each in ask("judge", pairs(padding=1))} == {0.5}
    assert {each.value for each in ask("judge?length=1", pairs(padding=1))} == {1}


def test_a_planted_liking_for_its_own_is_found():
    own = SimulatedJudge.SENTENCES[0]
    found = ask("judge?self=0.6", pairs(own=own), scores=True)
    assert within([first - second for first, second in (each.points for each in found)], 0.6)


def test_the_better_answer_wins_in_both_orders():
    """All twenty words against ten: 8 against 5, and with a right answer shown its words count."""
    some = [pair._replace(first=pair.question) for pair in pairs()]
    assert {each.value for each in ask("judge?position=1", some)} == {1}
    assert {each.value for each in ask("judge", [pair._replace(reference="none of these") for pair in some])} == {0.5}


def test_malformed_verdicts_are_left_without_a_value(tmp_path):
    """A quarter of the requests: asked once, a question has both verdicts with the odds (3/4)^2."""
    found = ask("judge?malformed=0.25", pairs(), tries=1)
    lost = [each for each in found if each.value is None]
    assert 35 <= len(lost) <= 70 and {each.reason for each in lost} == {"no verdict"}
    assert all(each.value is not None for each in ask("judge?malformed=0.25", pairs(), tries=9))
    sampling = Sampling(100, schema=schema_of(True))
    with Journal(tmp_path / "out") as journal:
        request = Request([{"role": "system", "content": ""}, {"role": "user", "content": pair_prompt(pairs()[0])}], 0)
        how = {"sampling": sampling, "journal": journal, "label": "x", "schema_retries": 1}
        (reply,) = generate(SimulatedJudge("judge?malformed=1"), [request], **how)
        assert reply.finish == "invalid: no reply under the schema in 2 tries"
        (reply,) = generate(SimulatedJudge("judge"), [request], **how)
    assert json.loads(reply.text).keys() == {"reasons", "score_a", "score_b"}
