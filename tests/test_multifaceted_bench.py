"""multifaceted_bench.py as a user runs it: scores, known biases found, resumption, what fails, wrong inputs."""

import json
import random
import subprocess
import sys
from functools import partial

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.engines.simulated import SimulatedEngine
from alignment.engines.simulated_judge import SimulatedJudge
from alignment.generation import Reply
from alignment.intervals import bootstrap
from alignment.janus.preferences import DIMENSIONS
from alignment.judging import bench, grades
from eval import multifaceted_bench

ROWS = 40
VOCABULARY = [f"word{number}" for number in range(99)]
LEVELS = {"1": "It is absent.", "2": "It is weak.", "3": "It is fair.", "4": "It is good.", "5": "It is perfect."}


def bench_row(number):
    """The reference answer has 32 words."""
    preferences = [{"dimension": d, "subdimension": "s", "preference": "p", "description": "x"} for d in DIMENSIONS]
    return {
        "source": ["koala", "flask"][number % 2],
        "preference_set": preferences,
        "system": f"You are {number}.",
        "prompt": f"Say {number}.",
        "reference_answer": " ".join(random.Random(number).sample(VOCABULARY, 32)),
        "rubrics": [{"criteria": f"Is {d} met in {number}?", "score_descriptions": LEVELS} for d in DIMENSIONS],
    }


BENCH = [bench_row(number) for number in range(ROWS)]


def responses(padding=0.0, own="", empty=()):
    """A half of the reference's words, hence worth 3, and `padding` times as many others more; `own` opens each."""
    found = []
    for number, row in enumerate(BENCH):
        words = row["reference_answer"].split()[:16]
        output = " ".join([*own.split(), *words, *["more"] * round(padding * 16)])
        found.append({"id": number, "instruction": row["prompt"], "system": row["system"], "output": output})
        found[-1] |= {"output": None} if number in empty else {}
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The bench and some responses to it. Intervals are of fewer resamples than a user's, in a tenth of the time."""
    monkeypatch.setattr(bench, "bootstrap", partial(bootstrap, resamples=200))
    files = {
        "bench": BENCH,
        "plain": responses(),
        "padded": responses(padding=1),
        "own": responses(own=SimulatedEngine.SENTENCES[0]),
        "gaps": responses(empty=(0, 3)),
    }
    for name, rows in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    return tmp_path


def run(folder, *words, names=("plain",), judge="judge", output="out.json"):
    flags = ["--bench", folder / "bench.json", "--compare", *(folder / f"{name}.json" for name in names)]
    flags += ["--backend", "simulated", "--model_name_or_path", judge, "--output_file", folder / output, *words]
    multifaceted_bench.main(multifaceted_bench.parse_args([str(word) for word in flags]))
    return json.loads((folder / output).read_text())


def card(folder):
    path = folder / "out.json.run.json"
    return json.loads(path.read_text()) if path.exists() else None


# Scores


def test_scores_of_one_model(folder, capsys):
    """Half of the words, at no bias: 3 from everyone."""
    found = run(folder)
    model = found["summary"]["models"]["plain"]
    assert model["score"] == {"mean": 3, "interval": [3, 3], "n": ROWS}
    assert list(model["by_dimension"]) == list(DIMENSIONS) and list(model["by_source"]) == ["flask", "koala"]
    assert model["grades"] == {"3": 4 * ROWS} and found["summary"]["compared"] == []
    first = found["instances"][0]
    assert first["id"] == 0 and first["models"]["plain"]["score"] == 3
    assert first["rubrics"][0] == {"dimension": "style", "criteria": "Is style met in 0?", "same_grade": None}
    said = "It has 16 of the reference answer's 32 words, in 16.\n[RESULT] 3"
    assert first["models"]["plain"]["rubrics"][0] == {"grade": [3], "feedback": [said], "reason": [None]}
    assert card(folder)["counts"]["usable"] == 4 * ROWS
    told = capsys.readouterr()
    assert "all                   3.00 [3.00, 3.00]" in told.out
    assert "warning: the judge gave nothing but 3: its grades tell nothing apart" in told.err
    assert found["summary"]["only_grade"] == 3


@pytest.mark.parametrize(
    ("judge", "other", "bias"),
    [("judge", "padded", 0), ("judge?length=0.5&noise=0.4", "padded", 0.5), ("judge?self=0.7", "own", 0.7)],
)
def test_a_known_bias_is_found(folder, capsys, judge, other, bias):
    """Of two sets of equal worth one is twice as long, or opens with a sentence of the writer: its paired difference
    from the other is the knob, within its interval, and by the interval not 0 unless the knob is."""
    names = (other, "plain")
    if other == "own":  # as long as the other, that only the sentence may differ
        rows = [row | {"output": "x " * 9 + row["output"]} for row in responses()]
        (folder / "plain.json").write_text(json.dumps(rows))
    (pair,) = run(folder, names=names, judge=judge)["summary"]["compared"]
    low, high = pair["overall"]["interval"]
    assert low <= bias <= high and high - low < 0.3, pair["overall"]
    assert (low > 0) == (bias > 0)
    if not bias:
        assert pair["overall"]["ties"] == ROWS and "same grade: style 40 of 40" in capsys.readouterr().out


def test_three_models_are_compared_by_pairs(folder, capsys):
    found = run(folder, names=("plain", "padded", "gaps"), judge="judge?length=1")
    pairs = found["summary"]["compared"]
    assert [(pair["first"], pair["second"]) for pair in pairs] == [
        ("plain", "padded"),
        ("plain", "gaps"),
        ("padded", "gaps"),
    ]
    assert pairs[0]["overall"]["difference"] == -1 and pairs[0]["overall"]["losses"] == ROWS
    assert pairs[1]["overall"]["n"] == ROWS - 2 and pairs[1]["style"]["ties"] == ROWS - 2
    assert found["summary"]["same_grade"]["style"] == {"rubrics": 0, "of": ROWS - 2}
    told = capsys.readouterr().out
    assert (
        "plain - padded" in told
        and "wins, %" in told
        and "rubrics that give all models the same grade: style 0 of 38" in told
    )


def test_an_empty_response_is_counted_and_not_graded(folder, capsys):
    found = run(folder, names=("gaps",))
    model = found["summary"]["models"]["gaps"]
    assert model["score"]["n"] == ROWS - 2 and model["without_score"] == {"empty response": 2}
    assert found["instances"][0]["models"]["gaps"] == {"score": None, "reason": "empty response", "rubrics": []}
    assert card(folder)["counts"]["asked"] == 4 * (ROWS - 2)
    assert "without a score: empty response" in capsys.readouterr().out


def test_runs_are_averaged(folder):
    """Noise by the run's own seed: of three grades the mean counts, and different runs differ."""
    found = run(folder, "--runs", 3, "--temperature", 1, "--top_p", 0.9, judge="judge?noise=1", names=("plain",))
    rubrics = [each for one in found["instances"] for each in one["models"]["plain"]["rubrics"]]
    assert all(len(each["grade"]) == 3 for each in rubrics) and any(len(set(each["grade"])) > 1 for each in rubrics)
    scored = found["instances"][0]["models"]["plain"]
    assert scored["score"] == pytest.approx(sum(sum(each["grade"]) for each in scored["rubrics"]) / 12)
    with pytest.raises(UserError, match="--runs 3 at --temperature 0 asks the same every time"):
        run(folder, "--runs", 3, output="other.json")
    assert not (folder / "other.json").exists()


def test_grades_as_json_are_those_of_text(folder):
    text = run(folder, judge="judge?length=1")["summary"]["models"]
    assert run(folder, "--as_json", judge="judge?length=1")["summary"]["models"] == text


def test_a_trial(folder):
    (folder / "few.json").write_text(json.dumps(responses()[:2]))
    found = run(folder, "--limit", 2, names=("few",))
    assert [each["id"] for each in found["instances"]] == [0, 1]


def test_the_system_message_is_shown_where_it_is_to_be(folder, monkeypatch):
    asked = []

    def complete(self, requests, sampling):
        asked.extend(request.prompt[1]["content"] for request in requests)
        yield from ((index, Reply("[RESULT] 3", "stop")) for index in range(len(requests)))

    monkeypatch.setattr(SimulatedJudge, "complete", complete)
    run(folder, "--limit", 1)
    run(folder, "--limit", 1, "--show_system")
    assert ["You are 0." in prompt for prompt in asked] == [False] * 4 + [True] * 4


# Again


def refuse(self, requests, sampling):
    raise AssertionError(f"{len(requests)} requests made again")


def test_the_same_command_again_does_nothing_and_shows_it(folder, capsys, monkeypatch):
    first = run(folder, names=("plain", "padded"), judge="judge?length=1&malformed=0.2")
    shown = capsys.readouterr().out
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    assert run(folder, names=("plain", "padded"), judge="judge?length=1&malformed=0.2") == first
    again = capsys.readouterr().out
    assert "nothing to do" in again and shown[shown.index("score [95%") :] == again[again.index("score [95%") :]


def test_a_journal_saves_all_requests(folder, monkeypatch):
    """As after kill -9 before the results were written."""
    judge = "judge?noise=0.5&malformed=0.3"
    first = run(folder, judge=judge)
    for name in ("out.json", "out.json.run.json"):
        (folder / name).unlink()
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    assert run(folder, judge=judge) == first and first["summary"]["replies"]["replies unusable"]["no result"] > 9


def test_what_failed_is_tried_again_and_gives_what_an_even_run_gives(folder):
    """No card, exit code 2, and what came is written with the reason of what did not."""
    faulty = "judge?faults=0.01"
    with pytest.raises(UserError, match="request.? failed .* the same command tries"):
        run(folder, judge=faulty)
    partial = json.loads((folder / "out.json").read_text())["summary"]["models"]["plain"]
    assert card(folder) is None and 0 < partial["score"]["n"] < ROWS
    assert partial["without_score"] == {"failed: simulated fault": ROWS - partial["score"]["n"]}
    assert run(folder, judge=faulty)["summary"]["models"]["plain"]["score"]["n"] == ROWS and card(folder)


def test_a_mended_parser_costs_nothing(folder, monkeypatch):
    """The parser takes no reply about 16 words, so `plain` has no score. Mended, it reads them all from the journal,
    though the run was finished."""
    real = grades.grade_in
    monkeypatch.setattr(grades, "grade_in", lambda text: real("" if "in 16" in text else text))
    broken = run(folder, names=("padded", "plain"))["summary"]["models"]
    assert broken["plain"]["score"] is None and broken["plain"]["without_score"] == {"empty": ROWS} and card(folder)
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    for parser in (lambda text: 1, real):  # mended twice, and asked for by the same command
        monkeypatch.setattr(grades, "grade_in", parser)
        mended = run(folder, "--reparse", names=("padded", "plain"))["summary"]["models"]
    assert mended["plain"]["score"]["mean"] == 3 and mended["padded"] == broken["padded"]


def test_nothing_to_read_anew(folder):
    with pytest.raises(UserError, match=r"no response has a grade by all of its rubrics \(160 not in the journal\)"):
        run(folder, "--reparse")
    assert not (folder / "out.json").exists() and not (folder / "out.json.journal.jsonl").exists()


# What cannot be graded, and wrong inputs


def test_a_judge_that_cannot_be_read(folder):
    with pytest.raises(UserError, match=r"no response has a grade by all of its rubrics \(160 no result\)"):
        run(folder, judge="judge?malformed=1")
    assert not (folder / "out.json").exists() and (folder / "out.json.journal.jsonl").exists()


def test_a_judge_that_always_gives_five_is_told(folder, capsys):
    (folder / "plain.json").write_text(json.dumps(responses(own=SimulatedEngine.SENTENCES[0])))
    found = run(folder, names=("plain", "own"), judge="judge?self=9")
    assert found["summary"]["only_grade"] == 5 and found["summary"]["compared"][0]["overall"]["ties"] == ROWS
    assert "the judge gave nothing but 5" in capsys.readouterr().err


def test_rubrics_are_checked_before_anything_is_asked(folder, monkeypatch, capsys):
    rows = [dict(row) for row in BENCH]
    rows[1] = rows[1] | {"id": "odd"}
    rows[1]["rubrics"] = [each | {"score_descriptions": LEVELS | {"2": "it is FAIR."}} for each in rows[1]["rubrics"]]
    (folder / "bench.json").write_text(json.dumps(rows))
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    with pytest.raises(AssertionError, match="156 requests"):
        run(folder)
    assert (
        "4 rubrics cannot tell grades apart (id odd, style: scores 2 and 3 are described alike: left out"
        in capsys.readouterr().err
    )


def test_names_tell_files_apart():
    assert multifaceted_bench.names_of(["a/x.json", "b/y.json"]) == ["x", "y"]
    assert multifaceted_bench.names_of(["a/x.json", "b/x.json"]) == ["a/x", "b/x"]
    with pytest.raises(UserError, match="names a file twice"):
        multifaceted_bench.names_of(["x.json", "x.json"])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"plain.json": json.dumps(responses()[1:])}, "1 of the bench's 40 rows have no response (0)"),
        ({"plain.json": json.dumps(responses() * 2)}, "40 of its rows belong to one that has another"),
        ({"plain.json": "[]"}, "plain.json has no rows"),
        ({"bench.json": json.dumps(responses())}, "row 0"),
        ({"bench.json": json.dumps([BENCH[0] | {"rubrics": BENCH[0]["rubrics"][:3]}])}, "'rubrics' is no list of four"),
    ],
)
def test_wrong_inputs_end_before_anything_is_asked(folder, monkeypatch, change, said):
    for name, text in change.items():
        (folder / name).write_text(text)
    monkeypatch.setattr(SimulatedJudge, "complete", refuse)
    before = sorted(folder.iterdir())
    with pytest.raises(UserError) as raised:
        run(folder)
    assert said in str(raised.value) and "\n" not in str(raised.value) and sorted(folder.iterdir()) == before


def test_a_mistake_is_one_line_and_code_2(folder):
    command = [sys.executable, "eval/multifaceted_bench.py", "--bench", folder / "bench.json", "--responses"]
    command += [folder / "none.json", "--output_file", folder / "out.json", "--model_name_or_path", "judge"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (folder / "out.json").exists()
    assert done.stderr.startswith("multifaceted_bench.py: error: responses ") and "does not exist" in done.stderr
