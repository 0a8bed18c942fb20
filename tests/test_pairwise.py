"""pairwise.py as a user runs it: win rates, a judge that is tested, budgets, ladders, what fails, wrong inputs."""

import json
import random
import subprocess
import sys
from functools import partial

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.engines.simulated import SimulatedEngine
from alignment.engines.simulated_judge import SimulatedJudge
from alignment.generation import Reply, Sampling
from alignment.intervals import bootstrap
from alignment.journal import Journal
from alignment.judging import length_control, pairs, winrates
from alignment.judging.answers import names_of, read_answers, read_questions
from alignment.judging.judges import SPENT, EngineJudge, by_reward, longest, row_of
from alignment.judging.pairs import Pair
from alignment.judging.self_test import REFUSAL, known, padded
from eval import pairwise

ROWS = 40
WORDS = [f"word{number}" for number in range(200)]


def asked(number):
    """A question of 20 words."""
    return " ".join(random.Random(number).sample(WORDS, 20))


def answers(name, *, words=10, padding=0, own=""):
    """Answers that have so many of their question's words, and `padding` others; `own` opens each."""
    found = []
    for number in range(ROWS):
        text = " ".join([*own.split(), *asked(number).split()[:words], *["more"] * padding])
        found.append({"instruction": asked(number), "output": text, "generator": name, "dataset": "koala"})
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Answers of some models. Intervals are of fewer resamples than a user's, in a tenth of the time."""
    monkeypatch.setattr(winrates, "bootstrap", partial(bootstrap, resamples=200))
    monkeypatch.setattr(length_control, "RESAMPLES", 40)
    files = {
        "good": answers("good", words=12),
        "plain": answers("plain"),
        "long": answers("long", padding=10),
        "weak": answers("weak", words=7),
        "own": answers("judge", own=SimulatedEngine.SENTENCES[0]),
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def run(folder, *words, names=("good", "plain"), judge="judge", output="out.json"):
    flags = ["--answers", *(folder / f"{name}.json" for name in names), "--output_file", folder / output, *words]
    flags += ["--backend", "simulated", "--model_name_or_path", judge] if judge else []
    pairwise.main(pairwise.parse_args([str(word) for word in flags]))
    return json.loads((folder / output).read_text())


def card(folder):
    path = folder / "out.json.run.json"
    return json.loads(path.read_text()) if path.exists() else None


def refuse(self, requests, sampling):
    raise AssertionError(f"{len(requests)} requests made again")


# Win rates


def test_two_models(folder, capsys):
    """Two words of twenty more are 0.6 points: the better one wins in 60% of the questions, the others are ties, so
    0.8 in all; in both orders alike, so that nothing flips."""
    found = run(folder)
    summary = found["summary"]
    (pair,) = summary["pairs"]
    assert (pair["first"], pair["second"]) == ("good", "plain") and pair["losses"] == 0 and pair["longer"] == [1, 0]
    assert pair["win_rate"]["interval"][0] <= 0.8 <= pair["win_rate"]["interval"][1]
    assert pair["win_rate"]["mean"] == (pair["wins"] + pair["ties"] / 2) / ROWS and pair["flips"]["mean"] == 0
    assert summary["judge"] == "judge" and len(summary["template"]) == 12 and summary["ladder"] == []
    assert summary["place"]["verdicts"]["mean"] == 0 and summary["warnings"] == [] and summary["stopped"] is None
    first = found["comparisons"][0]
    assert first["id"] == "0" and first["turn"] == 1 and len(first["verdicts"]) == 2
    assert first["verdicts"][0]["reply"].startswith(
        "A has 12 of 20 words, in 12; B has 10 of 20 words, in 10.\n[VERDICT]"
    )
    assert card(folder)["counts"]["usable"] == card(folder)["counts"]["asked"] == 2 * ROWS + 6 * 20
    told = capsys.readouterr().out
    for part in ("the judge's self-test", "lean to the answer that is shown first", "from the model: good and plain"):
        assert part in told


def test_each_against_a_reference(folder):
    found = run(folder, "--reference", folder / "plain.json", "--self_test", 0, names=("good", "weak"))["summary"]
    assert [(pair["first"], pair["second"]) for pair in found["pairs"]] == [("good", "plain"), ("weak", "plain")]
    assert found["pairs"][1]["win_rate"]["mean"] < 0.2 and len(found["ladder"]) == 3 and found["self_test"] == {}


def test_a_ladder_of_a_biased_judge_is_right_and_the_bias_is_found(folder):
    """Four models of 7, 10, 10 and 12 words, the long one worth the plain one without a bias for length."""
    found = run(folder, "--scores", names=("plain", "weak", "good", "long"), judge="judge?position=0.4&noise=0.2")
    summary = found["summary"]
    ranks = {each["model"]: each["rank_interval"] for each in summary["ladder"]}
    assert ranks["good"] == [1, 1] and ranks["weak"] == [4, 4]
    assert ranks["plain"][0] == 2 and ranks["long"][1] == 3 and len(summary["pairs"]) == 6
    low, high = summary["place"]["points"]["interval"]
    assert low <= 0.4 <= high and high - low < 0.15
    assert any("leans to the answer that is shown first: +0." in line for line in summary["warnings"])
    assert all(pair["points"] for pair in summary["pairs"])


def test_a_liking_for_length_is_taken_out(folder):
    """Twice the words gain 0.8 points of the judge, which always prefers them then; at equal length it does not. The
    lengths must differ by question for that, as real ones do."""
    rows = answers("long")
    for number, row in enumerate(rows):
        row["output"] += " more" * (number if number % 2 else 0)
        row["output"] = row["output"] if number % 2 else " ".join(row["output"].split()[:10])
    (folder / "long.json").write_text(json.dumps(rows))
    (pair,) = run(folder, names=("long", "plain"), judge="judge?length=0.8")["summary"]["pairs"]
    control = pair["length_controlled"]
    assert pair["win_rate"]["mean"] > 0.6 and control["weights"]["length"] > 0
    assert abs(control["win_rate"] - 0.5) < abs(pair["win_rate"]["mean"] - 0.5)


@pytest.mark.parametrize("flags", [("--judge", "longest"), ("--reward_model", "simulated")])
def test_judges_that_are_not_asked(folder, capsys, flags):
    """The longer one always wins, and of equal ones neither; the simulated reward counts sentences, of which none has
    any. They see no order: nothing flips, nothing leans, and there is no template."""
    found = run(folder, *flags, names=("long", "plain"), judge=None)["summary"]
    (pair,) = found["pairs"]
    assert pair["wins"] == (ROWS if flags[1] == "longest" else 0) and pair["flips"] is None and found["place"] is None
    assert found["judge"] == flags[1] and found["template"] is None and found["tokens"] == 0
    assert ("likes length for itself" in capsys.readouterr().err) == (flags[1] == "longest")
    assert len(json.loads((folder / "out.json").read_text())["comparisons"][0]["verdicts"]) == 1


# The judge is tested


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        ("judge?position=2", "leans to the answer that is shown first: +1.00 [+1.00, +1.00] on a scale"),
        ("judge?position=-0.5", "leans to the answer that is shown second: -0."),
        ("judge?length=0.8", "likes length for itself: an answer said twice over wins"),
        ("judge?length=0.8&position=1.5", "likes length for itself"),
        ("judge?noise=9", "finds the better answer in"),
        ("judge?malformed=0.5", "of the test's pairs got no verdict that can be read"),
    ],
)
def test_a_faulty_judge_is_told_by_the_self_test(folder, capsys, judge, said):
    words = ("--tries", 1) if "malformed" in judge else ()
    found = run(folder, *words, judge=judge, names=("plain", "weak"))["summary"]
    told = [line for line in capsys.readouterr().err.splitlines() if said in line]
    assert len(told) == 1 and told[0].startswith("warning: ") and any(said in line for line in found["warnings"])


def test_a_sound_judge_has_no_warning(folder, capsys):
    found = run(folder)["summary"]
    assert found["warnings"] == [] and "warning" not in capsys.readouterr().err
    assert found["self_test"]["known"]["mean"] == 1 and found["self_test"]["padded"]["mean"] == 0.5
    assert found["self_test"]["known_by_kind"]["a refusal"]["n"] == 7


def test_a_liking_for_length_is_measured_in_points_where_there_are_any(folder, capsys):
    """Of 30 answers said twice over a point of length is a point more; a judge that only wavers has no liking."""
    found = run(folder, "--scores", "--self_test", 30, judge="judge?length=0.5&position=2")["summary"]["self_test"]
    low, high = found["padded_points"]["interval"]  # while the place decides every verdict
    assert low <= 0.5 <= high and found["padded"]["mean"] == 0.5
    assert "likes length for itself" in capsys.readouterr().err
    found = run(folder, "--self_test", 30, judge="judge?noise=0.5", output="other.json")["summary"]["self_test"]
    low, high = found["padded"]["interval"]
    assert low < 0.5 < high and found["padded_points"] is None
    assert "likes length for itself" not in capsys.readouterr().err


def test_the_self_tests_pairs():
    pair = Pair("q 2", "Why?", "Because.", "So.", None, (("How?", "First.", "Second."),))
    assert padded(pair).first == "Because.\n\nBecause." and padded(pair).second == "Because."
    others = [pair, pair._replace(first="Thus."), pair._replace(first="Hence.")]
    assert [(kind, each.first, each.second) for kind, each in known(others)] == [
        ("nothing", "Because.", ""),
        ("a refusal", "Thus.", REFUSAL),
        ("the answer to another question", "Hence.", "Because."),
    ]
    for each in (padded(pair), known([pair])[0][1]):  # what was said before is the same on both sides
        assert each.earlier == (("How?", "First.", "First."),)


def test_its_own_answers(folder, capsys):
    """The model that judges has answered too, no better than the other."""
    found = run(folder, judge="judge?self=1", names=("own", "plain"))["summary"]
    assert found["pairs"][0]["win_rate"]["mean"] == 1
    assert "the judge prefers its own answers to those of plain: 100.0" in capsys.readouterr().err
    found = run(folder, judge="judge?self=1", names=("plain", "own"), output="turned.json")["summary"]
    assert any("its own answers to those of plain" in line for line in found["warnings"])
    assert not run(folder, judge="judge?self=1", names=("good", "plain"), output="other.json")["summary"]["warnings"]


def test_a_judge_that_always_says_a_is_told(folder, capsys):
    found = run(folder, judge="judge?position=20")["summary"]
    assert found["verdicts"] == {"A": 2 * ROWS} and found["pairs"][0]["win_rate"]["mean"] == 0.5
    assert found["pairs"][0]["flips"]["mean"] == 1
    assert "the judge said nothing but A: its verdicts tell nothing apart" in capsys.readouterr().err


# Budgets, and stopping


def test_a_budget_stops_with_a_result_that_is_valid(folder, capsys):
    """Prompts and replies of about 250 tokens, two a question: 9,000 are enough for not half of the 40 questions, and
    no token more is taken. Again, it is done; with more it goes on, and gives what a run without an end gives."""
    how = ("--max_new_tokens", 40, "--self_test", 0)
    results = run(folder, *how, "--budget_tokens", 9000)
    found = results["summary"]
    (pair,) = found["pairs"]
    asked_first = [int(each["id"]) for each in results["comparisons"]]
    assert len(asked_first) == 32 and max(asked_first) > 32 and asked_first != sorted(asked_first)  # a sample of them
    assert found["stopped"] == "budget" and 10 <= pair["win_rate"]["n"] < ROWS and 7000 < found["tokens"] <= 9000
    assert pair["without_verdict"] and set(pair["without_verdict"]) == {SPENT} and card(folder)
    assert f"stopped as the budget of tokens is spent: {pair['win_rate']['n']} of 40" in capsys.readouterr().out
    run(folder, *how, "--budget_tokens", 9000)
    assert "nothing to do" in capsys.readouterr().out
    whole = run(folder, *how, "--budget_tokens", 90_000)["summary"]
    assert whole["stopped"] is None and whole["pairs"][0]["win_rate"]["n"] == ROWS
    even = run(folder, *how, output="even.json")["summary"]["pairs"][0]
    assert (
        even["win_rate"]["mean"] == whole["pairs"][0]["win_rate"]["mean"] and even["wins"] == whole["pairs"][0]["wins"]
    )


def test_a_budget_is_used_up_and_a_request_counts_once(tmp_path):
    """However long a reply might be, those that came were short: what is left in the end would not hold one request of
    30 tokens and its 1,000. What is asked again, as after a self-test, is in the journal and costs nothing."""
    some = [Pair(str(number), f"Say {number}.", f"I say {number}.", "No.") for number in range(40)]
    with Journal(tmp_path / "out") as journal:
        judge = EngineJudge(SimulatedJudge("judge"), Sampling(1000), journal, budget=9000)
        judge(some[:5])
        spent = judge.spent
        judge(some[:5])
        assert judge.spent == spent > 0 and not judge.is_spent
        found = judge(some)
    assert judge.is_spent and 9000 - 1400 < judge.spent <= 9000
    assert {each.reason for each in found} == {None, SPENT} and judge.asked.counts()["asked"] == 100


def test_a_budget_that_ends_within_the_self_test_says_nothing_against_the_judge(folder, capsys):
    with pytest.raises(
        UserError, match=r"no question has a verdict in both orders \(\d+ the budget of tokens is spent"
    ):
        run(folder, "--max_new_tokens", 40, "--budget_tokens", 20_000)
    assert "warning" not in capsys.readouterr().err


def test_what_is_journaled_counts_as_spent(folder, monkeypatch):
    """So a run that was killed stops where it would have."""
    how = ("--max_new_tokens", 40, "--budget_tokens", 9000, "--self_test", 4)
    first = run(folder, *how)
    for name in ("out.json", "out.json.run.json"):
        (folder / name).unlink()
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    assert run(folder, *how) == first


def test_too_small_a_budget_is_one_line(folder):
    with pytest.raises(
        UserError, match=r"no question has a verdict in both orders \(32 the budget of tokens is spent\)"
    ):
        run(folder, "--budget_tokens", 100, "--self_test", 0)
    assert not (folder / "out.json").exists()


def test_a_run_ends_once_it_is_decided(folder, capsys):
    """The better one wins six in ten and loses none: 16 or 32 questions are enough. Two that are alike never are."""
    found = run(folder, "--until_decided")["summary"]
    (pair,) = found["pairs"]
    assert found["stopped"] == "decided" and pair["win_rate"]["n"] in (16, 32) and pair["anytime"][0] > 0.5
    assert "every win rate is on one side of a half: " in capsys.readouterr().out
    found = run(folder, "--until_decided", names=("plain", "long"), output="alike.json")["summary"]
    assert found["stopped"] is None and found["pairs"][0]["win_rate"]["n"] == ROWS
    low, high = found["pairs"][0]["anytime"]
    assert low < 0.5 < high


def test_a_pair_that_is_decided_is_asked_no_more(folder):
    found = run(folder, "--until_decided", "--self_test", 0, names=("good", "weak", "long", "plain"))["summary"]
    asked = {(pair["first"], pair["second"]): pair["win_rate"]["n"] for pair in found["pairs"]}
    assert asked["good", "weak"] == 16 and asked["long", "plain"] == ROWS and found["stopped"] is None


# Again


def test_the_same_command_again_does_nothing_and_shows_it(folder, capsys, monkeypatch):
    judge = "judge?malformed=0.2&position=1"
    first, shown = run(folder, judge=judge), capsys.readouterr()
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    assert run(folder, judge=judge) == first
    again = capsys.readouterr()
    told = shown.out[shown.out.index("the judge's self-test") :]
    assert "nothing to do" in again.out and again.out.endswith(told)
    assert "leans to the answer" in again.err and again.err in shown.err


def test_a_mended_parser_costs_nothing(folder, monkeypatch):
    """The parser takes no verdict for B, so no question has both. Mended, it reads them all from the journal."""
    real = pairs.preference_in
    monkeypatch.setattr(pairs, "preference_in", lambda text: real("" if text.endswith("B") else text))
    broken = run(folder)["summary"]["pairs"][0]
    assert 0 < broken["win_rate"]["n"] < ROWS and set(broken["without_verdict"]) == {"empty"}
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    monkeypatch.setattr(pairs, "preference_in", real)
    assert run(folder, "--reparse")["summary"]["pairs"][0]["win_rate"]["n"] == ROWS


def test_nothing_to_read_anew(folder):
    with pytest.raises(UserError, match=r"no question has a verdict in both orders \(200 not in the journal\)"):
        run(folder, "--reparse")
    assert not (folder / "out.json").exists() and not (folder / "out.json.journal.jsonl").exists()


def test_what_failed_is_tried_again(folder):
    faulty = "judge?faults=0.02"
    with pytest.raises(UserError, match="request.? failed .* the same command tries"):
        run(folder, judge=faulty)
    partial = json.loads((folder / "out.json").read_text())["summary"]["pairs"][0]
    assert card(folder) is None and 0 < partial["win_rate"]["n"] < ROWS
    assert partial["without_verdict"] == {"failed: simulated fault": ROWS - partial["win_rate"]["n"]}
    assert run(folder, judge=faulty)["summary"]["pairs"][0]["win_rate"]["n"] == ROWS and card(folder)


def test_a_judge_that_cannot_be_read(folder):
    with pytest.raises(UserError, match=r"no question has a verdict in both orders \(200 no verdict\)"):
        run(folder, judge="judge?malformed=1")
    assert not (folder / "out.json").exists() and (folder / "out.json.journal.jsonl").exists()


def test_a_key_that_is_refused_is_one_line(folder, monkeypatch):
    def no_key(self, requests, sampling):
        raise UserError("the server refuses the key")

    monkeypatch.setattr(SimulatedJudge, "complete", no_key)
    with pytest.raises(UserError, match="refuses the key"):
        run(folder)
    assert not (folder / "out.json").exists() and card(folder) is None


# Questions and answers


def test_vicunas_and_mt_benchs_questions_and_answers(folder, monkeypatch, capsys):
    """Second turns are asked with all that was before, and a right answer where there is one. One model has no second
    answer to the second question: its first turn is compared all the same, and the lack is counted."""
    turns = [["Why is it so?", "And how?"], ["Where is it?", "And when?"]]
    questions = [{"question_id": 80 + i, "category": "math", "turns": own} for i, own in enumerate(turns, 1)]
    questions[0]["reference"] = ["As it is."]
    (folder / "question.jsonl").write_text("\n".join(map(json.dumps, questions)))
    for name, second in (("one", ["It is.", "So."]), ("two", ["There."])):
        rows = [(81, ["As it is so.", "Thus and so."]), (82, second)]
        told = [{"question_id": i, "model_id": name, "choices": [{"index": 0, "turns": own}]} for i, own in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, told)))
    sent = []

    def complete(self, requests, sampling):
        sent.extend(request.prompt[1]["content"] for request in requests)
        yield from ((index, Reply("[VERDICT] TIE", "stop")) for index in range(len(requests)))

    monkeypatch.setattr(SimulatedJudge, "complete", complete)
    flags = ["--answers", folder / "one.jsonl", folder / "two.jsonl", "--questions", folder / "question.jsonl"]
    flags += ["--output_file", folder / "out.json", "--backend", "simulated", "--model_name_or_path", "judge"]
    pairwise.main(pairwise.parse_args([str(flag) for flag in flags] + ["--self_test", "0"]))
    found = json.loads((folder / "out.json").read_text())
    assert [(each["id"], each["turn"]) for each in found["comparisons"]] == [("81", 1), ("81", 2), ("82", 1)]
    assert found["summary"]["pairs"][0]["win_rate"]["n"] == 2
    assert found["summary"]["without_answer"] == {"one": 0, "two": 1}
    assert "  turn 2" in capsys.readouterr().out
    assert len(sent) == 6 and "### A right answer, to compare with:\nAs it is.\n" in sent[0]
    assert sent[2].startswith("### Earlier question:\nWhy is it so?\n\n### A's answer to it:\nAs it is so.\n\n### B's")
    assert "### Question:\nAnd how?\n\n### Answer A:\nThus and so." in sent[2]


def test_rows_are_matched_by_text_or_id(tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 5, "text": "Why  so?", "instruction_difficulty": -1.5}')
    (question,) = read_questions(tmp_path / "q.jsonl")
    assert question.id == "5" and question.turns == ("Why  so?",) and question.difficulty == -1.5
    for row in ({"instruction": "Why so?\n", "output": None}, {"question_id": "5", "output": None}):
        (tmp_path / "a.json").write_text(json.dumps([row | {"generator": "me"}]))
        assert read_answers(str(tmp_path / "a.json"), [question]) == ("me", [(None,)])
    (tmp_path / "q.json").write_text(json.dumps([{"instruction": "Add.", "input": "1 and 2", "output": "3"}]))
    assert read_questions(tmp_path / "q.json")[0].turns == ("Add.\n1 and 2",)


def test_an_empty_answer_is_compared_and_a_missing_one_is_not(folder):
    rows = answers("good", words=12)
    rows[0]["output"], rows[1]["output"] = "", None
    (folder / "good.json").write_text(json.dumps(rows))
    found = run(folder)
    assert found["summary"]["without_answer"] == {"good": 1, "plain": 0}
    assert found["summary"]["pairs"][0]["win_rate"]["n"] == ROWS - 1
    assert found["comparisons"][0]["value"] == 0 and found["comparisons"][1]["id"] == "2"


def test_models_are_named_by_their_rows_or_else_by_their_files(folder):
    assert names_of(["a/x.json", "b/x.json"], "--answers") == ["a/x", "b/x"]
    (folder / "plain.json").write_text(json.dumps(answers("good")))
    found = run(folder, "--self_test", 0)["summary"]["pairs"][0]
    assert (found["first"], found["second"]) == ("good", "plain")
    (folder / "nobody.json").write_text(json.dumps([row | {"generator": None} for row in answers("x")]))
    found = run(folder, "--self_test", 0, names=("good", "nobody"), output="x.json")["summary"]["pairs"][0]
    assert (found["first"], found["second"]) == ("good", "nobody")
    with pytest.raises(UserError, match="--answers names a file twice"):
        run(folder, names=("plain", "plain"), output="other.json")


def test_a_reward_is_of_the_whole_dialogue():
    pair = Pair("q 2", "Why?", "Because.", "So.", None, (("How?", "First.", "Second."),))
    assert row_of(pair._replace(earlier=())) == {"instruction": "Why?"}
    said = [each["content"] for each in row_of(pair.swapped())["prompt"]]
    assert said == ["How?", "Second.", "Why?"]
    assert by_reward(lambda rows, texts: [len(text) for text in texts], [pair])[0].value == 1
    assert longest([pair, pair.swapped(), pair._replace(second="Because.")])[1].value == 0


def test_a_reward_is_asked_once_for_an_answer_that_meets_several():
    """Of three answers to a question every two: six sides, three texts; and two in another dialogue."""
    a, b, c = "one", "three", "fifteen"
    some = [Pair("1", "Why?", first, second) for first, second in ((a, b), (a, c), (b, c))]
    some.append(Pair("2", "Why?", a, b, earlier=(("And?", "x", "y"),)))
    scored = []

    def rewards(rows, texts):
        scored.extend(zip(map(str, rows), texts, strict=True))
        return [len(text) for text in texts]

    assert [each.value for each in by_reward(rewards, some)] == [0, 0, 0, 0]
    assert len(scored) == len(set(scored)) == 5


def test_difficulties_of_questions_enter_the_regression(folder):
    rows = [row | {"instruction_difficulty": number % 5 - 2} for number, row in enumerate(answers("x"))]
    (folder / "questions.json").write_text(json.dumps(rows))
    told = [row | {"output": row["output"] + " more" * (number % 7)} for number, row in enumerate(answers("good"))]
    (folder / "good.json").write_text(json.dumps(told))
    found = run(folder, "--questions", folder / "questions.json", "--self_test", 0)["summary"]["pairs"][0]
    assert list(found["length_controlled"]["weights"]) == ["length", "difficulty", "model"]


def test_a_model_that_is_always_longer_is_told_and_has_no_rate_at_the_same_length(folder, capsys):
    (pair,) = run(folder, "--self_test", 0, names=("long", "plain"))["summary"]["pairs"]
    told = capsys.readouterr().out
    assert pair["length_controlled"] is None
    assert "so that its length can hardly be told from the model: long and plain" in told


@pytest.mark.parametrize(
    ("change", "words", "said"),
    [
        ({"good.json": json.dumps(answers("x")[1:])}, (), "rows belong to none of them"),
        ({"plain.json": json.dumps(answers("x")[1:])}, (), "1 of the 40 questions have no answer (0)"),
        (
            {"plain.json": json.dumps(answers("x") + answers("x")[:1])},
            (),
            "1 of its rows belong to one that has another",
        ),
        ({"good.json": json.dumps(answers("x") * 2)}, (), "rows 0 and 40 have the same id, or ask the same"),
        ({"plain.json": json.dumps([{"instruction": asked(0), "output": 5}])}, (), "row 0 has no text under 'output'"),
        ({"plain.json": json.dumps([{"question_id": 1, "choices": []}])}, (), "no texts under 'choices', 0, 'turns'"),
        ({"q.json": '[{"turns": ["a", ""]}]'}, ("--questions", "q.json"), "row 0 has no question under 'turns'"),
        ({"q.json": '[{"text": "a", "reference": "b"}]'}, ("--questions", "q.json"), "'reference' is no list"),
        ({"q.json": '[{"text": "a", "instruction_difficulty": "b"}]'}, ("--questions", "q.json"), "is no number"),
        ({"good.json": '[{"answer": "a"}]'}, (), "row 0 has no question under 'turns', 'text', 'instruction'"),
        ({"plain.json": "[]"}, (), "plain.json has no rows"),
    ],
)
def test_wrong_inputs_end_before_anything_is_asked(folder, monkeypatch, change, words, said):
    for name, text in change.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError) as raised:
        run(folder, *(folder / word if word.endswith(".json") else word for word in words))
    assert said in str(raised.value) and "\n" not in str(raised.value) and sorted(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--answers", "a", "b"], "give one judge"),
        (["--answers", "a", "b", "--judge", "longest", "--model_name_or_path", "x"], "give one judge"),
        (["--answers", "a", "--judge", "longest"], "two files or more, or --reference"),
        (["--answers", "a", "b", "--judge", "longest", "--budget_tokens", "5"], "which is asked"),
    ],
)
def test_flags_that_do_not_go_together(words, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        pairwise.parse_args([*words, "--output_file", "o"])
    assert stopped.value.code == 2 and said in capsys.readouterr().err


def test_a_mistake_is_one_line_and_code_2(folder):
    command = [sys.executable, "eval/pairwise.py", "--answers", folder / "none.json", folder / "plain.json"]
    command += ["--output_file", folder / "out.json", "--judge", "longest"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (folder / "out.json").exists()
    assert done.stderr.startswith("pairwise.py: error: questions ") and "does not exist" in done.stderr
