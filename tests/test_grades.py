"""Grading by rubrics: what is asked, what is read, what counts; and the statistics of the bench, by hand."""

import json
from argparse import Namespace

import pytest

from alignment.command_line import UserError
from alignment.engines.simulated_judge import SimulatedJudge
from alignment.generation import Reply, Request, Sampling
from alignment.janus.preferences import DIMENSIONS
from alignment.judging import bench
from alignment.judging.grades import Graded, Verdict, fault_of, grade_prompt, graded, graded_by, near_in, parts_of

LEVELS = {"1": "It is absent.", "2": "It is weak.", "3": "It is fair.", "4": "It is good.", "5": "It is perfect."}


def rubric(criteria="Is it kind?", **levels):
    return {"criteria": criteria, "score_descriptions": LEVELS | levels}


def row(number=0, **more):
    preferences = [{"dimension": d, "subdimension": "s", "preference": "p", "description": "x"} for d in DIMENSIONS]
    return {
        "source": "koala",
        "preference_set": preferences,
        "system": f"You are {{number {number}}}.",
        "prompt": f"Say {number}.",
        "reference_answer": "So be it.",
        "rubrics": [rubric(f"Is {d} met?") for d in DIMENSIONS],
    } | more


def written(path, rows):
    path.write_text(json.dumps(rows))
    return str(path)


def read(tmp_path, *rows):
    return bench.read_bench(written(tmp_path / "bench.json", list(rows)))


def of(*grades):
    """A response graded once by each rubric; None is a rubric without a grade."""
    return Graded([[Verdict(grade, "said", None if grade else "no result")] for grade in grades])


# What is asked


def test_the_prompt_holds_all_and_is_read_again():
    """Braces of the data are no slots; the system message is shown where it is to be."""
    asked = row(prompt="Say {response}.")
    prompt = grade_prompt(asked, "I say {again}.", rubric("Is {it} kind?"))
    assert "### Instruction:\nSay {response}.\n\n### Reference answer" in prompt and "You are" not in prompt
    assert (
        "### Response:\nI say {again}.\n\n### Criterion:\nIs {it} kind?\n\n" in prompt
        and "4: It is good.\n5: It" in prompt
    )
    parts = parts_of(prompt)
    assert parts["response"] == "I say {again}." and parts["reference_answer"] == "So be it." and parts["again"] == ""
    shown = grade_prompt(asked, "I", rubric(), show_system=True)
    assert "was to follow:\nYou are {number 0}.\n\n### Instruction:" in shown and parts_of(shown)["response"] == "I"
    assert parts_of("Say something.") is None


def test_a_response_by_each_rubric_and_run():
    """Two rubrics, two runs: the first says 4 and 2, the second nothing that can be read and then 5. An empty response
    is not asked about. What is asked again is told so, with another seed."""
    bench_row = row(id=7, rubrics=[rubric("A?"), rubric("B?")])
    sent = []

    def send(requests):
        sent.append(requests)
        texts = {1: ["[RESULT] 4", "Well, [RESULT] 2", "Hm.", "[RESULT] 9"], 2: ["[RESULT] 5", "Hm."], 3: ["Hm."]}
        return [Reply(text, "stop") for text in texts[len(sent)]]

    found = graded([(bench_row, " "), (bench_row, "It is."), (bench_row, None)], send, runs=2, tries=3)
    blank, answered, none = found.responses
    assert [len(each) for each in sent] == [4, 2, 1]
    assert answered.verdicts == [
        [Verdict(4, "[RESULT] 4"), Verdict(2, "Well, [RESULT] 2")],
        [Verdict(5, "[RESULT] 5"), Verdict(None, None, "no result")],
    ]
    assert answered.grades == [3, 5] and answered.score == 4 and answered.reason is None
    assert blank == none == Graded([]) and blank.score is None and blank.reason == "empty response"
    assert found.asked.counts()["replies unusable"] == {"no result": 3, "not from 1 to 5": 1}
    first, again = sent[0][2], sent[1][0]
    assert again.prompt[1]["content"].startswith(first.prompt[1]["content"] + "\n\n(Your reply number 1 could")
    assert "number 2 could" in sent[2][0].prompt[1]["content"]  # at temperature 0 the same prompt gives the same
    assert len({request.seed for requests in sent for request in requests}) == 7


def test_the_seed_is_the_rows_whoever_responded():
    """So the same response of two models is one request to the journal, and gets one grade."""
    sent = []

    def send(requests):
        sent.extend(requests)
        return [Reply("[RESULT] 3", "stop") for _ in requests]

    one, other = row(id=1, rubrics=[rubric()]), row(id=2, rubrics=[rubric()])
    graded([(one, "A"), (one, "B"), (one, "A"), (other, "A")], send)
    assert sent[0] == sent[2] and sent[0].seed == sent[1].seed != sent[3].seed and sent[0].prompt != sent[1].prompt


def test_a_score_needs_every_rubric():
    """(4 + 2) / 2; a rubric without a grade leaves none, and is no low grade."""
    assert of(4, 2).score == 3
    assert of(4, None).score is None and of(4, None).reason == "no result" and of(4, None).grades == [4, None]


def test_rubrics_that_tell_no_grades_apart():
    alike, near = rubric(**{"2": "it is  FAIR."}), " ".join(map(str, range(60)))
    assert fault_of(rubric()) is None and near_in(rubric()) is None
    assert fault_of(alike) == "scores 2 and 3 are described alike"
    assert fault_of(rubric(**{"5": " - "})) == "score 5 is not described"
    assert near_in(rubric(**{"1": near, "4": near + " more"})) == "scores 1 and 4 are described nearly alike"
    assert fault_of(rubric(**{"1": near, "4": near + " more"})) is None
    assert near_in(rubric(**{"1": "The names are correct.", "5": "The names are incorrect."})) is None
    other = " ".join(map(str, [*range(54), *range(90, 96)]))  # 54 of 60 words: 0.9, as some of BiGGen's that differ
    assert near_in(rubric(**{"1": near, "4": other})) is None


# The bench and the responses to it


def test_bench_rows(tmp_path):
    """Ids are the rows' own or their numbers; rubric i belongs to preference i, in the row's own order."""
    turned = row(1)["preference_set"][::-1]
    rows = read(tmp_path, row(0, id="a"), row(1, preference_set=turned), row(2, preference_set=None))
    assert [each["id"] for each in rows] == ["a", 1, 2]
    assert rows[0]["dimensions"] == list(DIMENSIONS) and rows[1]["dimensions"] == list(DIMENSIONS[::-1])
    assert rows[2]["dimensions"] == ["rubric 1", "rubric 2", "rubric 3", "rubric 4"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([row(0), row(0, system=" You are  {number 0}.")], "rows 0 and 1 have the same id, or ask the same"),
        ([row(0, id="1"), row(1)], "rows 0 and 1 have the same id"),
        ([{"system": "s", "prompt": "p", "output": "o"}], "row 0 has no 'rubrics'"),
        ([row(rubrics=[rubric()])], "row 0: 'rubrics' is no list of four"),
        ([row(rubrics=[{"criteria": "c"}] * 4)], "row 0: 'rubrics' is no list of four"),
        (
            [row(rubrics=[{"criteria": "c", "score_descriptions": {"1": "x"}}] * 4)],
            "row 0, rubric 1 .* score 2, 3, 4, 5",
        ),
        (
            [row(0), row(1, rubrics=[rubric(), rubric("Is it dry?", **{"2": None, "4": 4}), rubric(), rubric()])],
            r"row 1, rubric 2 \('Is it dry\?'\) has no description of the score 2, 4",
        ),
        ([row(prompt=" ")], "row 0 has no text under 'prompt'"),
        ([], "has no rows"),
    ],
)
def test_a_bench_that_cannot_be_used(tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        read(tmp_path, *rows)


def test_hopeless_rubrics_are_left_out_and_near_ones_named(tmp_path):
    near = " ".join(map(str, range(60)))
    own = [
        rubric("A?", **{"1": "it is good."}),
        rubric("B?"),
        rubric("C?", **{"1": near, "2": near + " x"}),
        rubric("D?"),
    ]
    rows, faults = bench.checked(read(tmp_path, row(0, rubrics=own), row(1)))
    assert [each["criteria"] for each in rows[0]["rubrics"]] == ["B?", "C?", "D?"]
    assert rows[0]["dimensions"] == list(DIMENSIONS[1:]) and len(rows[1]["rubrics"]) == 4
    assert faults == [
        (0, "style", "scores 1 and 4 are described alike: left out"),
        (0, "informativeness", "scores 1 and 2 are described nearly alike"),
    ]


def response(number, output="It is.", **more):
    return {
        "id": number,
        "instruction": f"Say {number}.",
        "system": f"You are {{number {number}}}.",
        "output": output,
    } | more


def test_responses_find_their_rows(tmp_path):
    """By system message and instruction, whatever the id and the order; without a system message by the id, as text."""
    rows = read(tmp_path, *map(row, range(4)))
    answers = [
        response(3, "c", id=0),
        response(1, None),
        {"id": "2", "output": "b"},
        {"id": 0, "output": "a", "system": ""},
    ]
    path = written(tmp_path / "r.json", answers)
    assert bench.responses_to(rows, path) == ["a", None, "b", "c"]
    assert bench.responses_to(rows, path, 2) == ["a", None]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([response(0)], r"2 of the bench's 3 rows have no response \(1, 2\)"),
        ([*map(response, range(3)), response(0)], r"1 of its rows belong to one that has another \(3\)"),
        ([*map(response, range(4))], r"1 of its rows belong to none of them \(3\)"),
        ([*map(response, range(3)), {"output": "x"}], r"1 of its rows belong to none of them \(3\)"),
        ([response(0), response(0), response(9)], r"2 of .* \(1, 2\); 1 of .* none of them \(2\); 1 of .* \(1\)"),
        ([*map(response, range(2)), response(2, 5)], "row 2 has no text under 'output', nor null"),
        ([*map(response, range(2)), {"id": 2}], "row 2 has no text under 'output', nor null"),
    ],
)
def test_responses_that_do_not_cover_the_bench(tmp_path, answers, said):
    rows = read(tmp_path, *map(row, range(3)))
    with pytest.raises(UserError, match=said):
        bench.responses_to(rows, written(tmp_path / "r.json", answers))


def test_of_a_trial_only_the_first_rows_need_responses(tmp_path):
    rows = read(tmp_path, *map(row, range(9)))
    path = written(tmp_path / "r.json", [response(0)])
    assert bench.responses_to(rows, path, 1) == ["It is."]
    with pytest.raises(UserError, match=r"8 of the bench's 9 rows have no response \(1, 2, 3, 4, 5, ...\)"):
        bench.responses_to(rows, path)


# What the grades say


def test_scores_by_hand():
    """Instances of mean 3, 4 and one without a grade, of two dimensions: overall 3.5, style (2 + 4) / 2, background
    (4 + 4) / 2; the last one's source has no score, and its grade of 1 is in no mean but was given."""
    rows = [{"source": source, "dimensions": ["style", "background"]} for source in ("a", "b", "b", "b")]
    found = bench.scores(rows, [of(2, 4), of(4, 4), of(1, None), Graded([])], seed=0)
    assert found["score"]["mean"] == 3.5 and found["score"]["n"] == 2 and found["score"]["interval"] == (3, 4)
    assert {name: own["mean"] for name, own in found["by_source"].items()} == {"a": 3, "b": 4}
    assert {name: own["mean"] for name, own in found["by_dimension"].items()} == {"style": 3, "background": 4}
    assert found["grades"] == {"1": 1, "2": 1, "4": 3}
    assert found["without_score"] == {"no result": 1, "empty response": 1}
    assert bench.scores(rows[:1], [of(None, 1)], seed=0)["score"] is None


def test_difference_is_paired():
    """Differences 1, 1 and 1 of very different instances: sure, though their levels are far apart. By style 2, 0 and 1:
    wins 2, a tie, so (2 + 0.5) / 3. The fourth has no score for the second model and counts nowhere."""
    rows = [{"dimensions": ["style", "background"]}] * 4
    first, second = [of(3, 2), of(4, 5), of(5, 5), of(5, 5)], [of(1, 2), of(4, 3), of(4, 4), of(None, 1)]
    found = bench.difference(rows, first, second, seed=0)
    assert found["overall"] == {
        "difference": 1,
        "interval": pytest.approx((1, 1)),
        "wins": 3,
        "ties": 0,
        "losses": 0,
        "win_rate": 1,
        "win_interval": pytest.approx((0.4385, 1), abs=1e-4),
        "n": 3,
    }
    style = found["style"]
    assert style["difference"] == 1 and (style["wins"], style["ties"], style["losses"]) == (2, 1, 0)
    assert style["win_rate"] == pytest.approx(2.5 / 3) and style["interval"][0] < 1 < style["interval"][1]
    assert bench.difference(rows[3:], first[3:], second[3:], seed=0) == {"overall": None}


def test_thirds_that_are_the_same_are_ties():
    """0.1 + 0.2 is not 0.3 in floats."""
    found = bench.paired(bench.np.array([[0.1 + 0.2, 0.3], [3.0, 3.0]]), 0)
    assert found["ties"] == 2 and found["difference"] == 0


def test_rubrics_that_never_separate():
    bench_row = {"rubrics": [0, 1, 2]}
    assert bench.alike(bench_row, [of(3, 4, 5), of(3, 5, None), of(3, 4, 5)]) == [True, False, None]
    assert bench.alike(bench_row, [of(3, 4, 5), Graded([])]) == [None, None, None]
    assert bench.alike(bench_row, [of(3, 4, 5)]) == [None, None, None]


# The simulated judge


def judged(model, response, *, seed=0, reference="a b c d", criteria="Is it kind?"):
    prompt = grade_prompt(row(reference_answer=reference), response, rubric(criteria))
    request = Request([{"role": "system", "content": "x"}, {"role": "user", "content": prompt}], seed)
    ((_, reply),) = SimulatedJudge(model).complete([request], Sampling(max_tokens=100))
    return reply.text


def test_the_judge_reads_the_response():
    """Of four words it has none, two and all: 1, 1 + 4/2 and 5. Whatever else is in the prompt, also its own words."""
    assert [judged("judge", text)[-1] for text in ("x y z w", "a b x y", "D C B A.")] == ["1", "3", "5"]
    assert judged("judge", "a b x y") == "It has 2 of the reference answer's 4 words, in 4.\n[RESULT] 3"


def test_the_judges_biases():
    """Twice the words are 1 more with length=1, half of them 1 less; a sentence of the writer is 1 more with self=1;
    and grades end at 1 and 5."""
    assert judged("judge?length=1", "a b x y z w v u")[-1] == "4" and judged("judge?length=1", "a b")[-1] == "2"
    own = "Look at it again in the morning light."
    assert judged("judge?self=1", f"a b {own}", reference="a b c d")[-1] == "4"
    assert judged("judge?self=9", "a b", reference="a b c d", criteria=own)[-1] == "3"  # not in the response
    assert judged("judge?length=9", "a b c d e f g h")[-1] == "5" and judged("judge?length=9", "a")[-1] == "1"


def test_between_two_grades_both_are_said_in_proportion():
    """1 + 4 x 1/3 = 2 1/3: 3 for a third of the criteria, the same ones whatever the seed."""
    names = [f"Is it {number}?" for number in range(300)]
    first, second = (
        [judged("judge", "a", seed=s, reference="a b c", criteria=name)[-1] for name in names] for s in (1, 2)
    )
    assert first == second and set(first) == {"2", "3"} and 75 <= first.count("3") <= 125


def test_noise_is_by_seed_and_malformed_is_without_a_grade():
    asks = [{"seed": number, "criteria": f"Is it {number}?"} for number in range(200)]
    first, again = ([int(judged("judge?noise=1", "a b x y", **each)[-1]) for each in asks] for _ in range(2))
    mean = sum(first) / 200
    assert first == again and abs(mean - 3) < 0.25 and 0.6 < sum((each - mean) ** 2 for each in first) / 200 < 1.4
    assert len({judged("judge?noise=1", "a b x y", seed=seed) for seed in range(20)}) > 1
    said = [judged("judge?malformed=0.3", "a b x y", seed=seed) for seed in range(200)]
    assert 40 <= sum("[RESULT]" not in text for text in said) <= 80


def test_a_judge_that_is_asked_for_json_gives_json(tmp_path):
    """Its opinion is the same. What follows no schema is left to the engine, and is a reason and no grade."""
    engine, bench_row = SimulatedJudge("judge"), row(id=0, reference_answer="a b c d")
    args = Namespace(as_json=True, max_new_tokens=100, temperature=0, top_p=1, tries=4, seed=0, schema_retries=1)
    args.output_file = tmp_path / "out"
    (found,), _ = graded_by(engine, [(bench_row, "a b x y")], args)
    assert found.grades == [3, 3, 3, 3]
    said = "It has 2 of the reference answer's 4 words, in 4."
    assert json.loads(found.verdicts[0][0].feedback) == {"feedback": said, "score": 3}
    sent = []
    graded([(bench_row, "a")], lambda some: sent.extend(some) or [Reply("[RESULT] 3", "stop")] * 4, as_json=True)
    assert "JSON" in sent[0].prompt[0]["content"] and "[RESULT]" not in sent[0].prompt[0]["content"]
    (found,), asked = graded_by(SimulatedJudge("judge?malformed=1"), [(bench_row, "a b x y")], args)
    assert found.score is None and found.reason == "invalid: no reply under the schema in 2 tries" and not asked.failed


def test_what_is_no_grading_prompt_it_answers_as_the_writer():
    schema = {"type": "object", "properties": {"grade": {"enum": [0, 1, 2]}}, "required": ["grade"]}
    request = Request([{"role": "user", "content": "Grade it."}], 0)
    ((_, reply),) = SimulatedJudge("judge").complete([request], Sampling(max_tokens=100, schema=schema))
    assert json.loads(reply.text)["grade"] in (0, 1, 2)
    with pytest.raises(UserError, match="place is none of"):
        SimulatedJudge("judge?place=1")
