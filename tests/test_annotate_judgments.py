"""annotate_judgments.py with a judge that says what the test wants."""

import json

import pytest

from alignment.command_line import UserError
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply
from alignment.judging.judgments import read_judgments
from scripts import annotate_judgments

ROWS = [
    {"id": number, "instruction": f"Say {number}.", "input": "Now." if number == 1 else "", "output": output}
    for number, output in enumerate(["Zero.", "Seven.", "Two.", "", "Four."])
]
SAYS = {"Zero.": "Satisfactory.", "Seven.": "It must be 1.", "Two.": "Satisfactory, mostly.", "Four.": "It is 4. Yes."}


@pytest.fixture
def judge(monkeypatch):
    """The prompts that were asked; replies by the response that a prompt shows, SAYS unless changed."""
    asked, says = [], dict(SAYS)

    def complete(self, requests, sampling):
        asked.extend(request.prompt for request in requests)
        for index, request in enumerate(requests):
            shown = request.prompt.split("### Response:\n")[1].split("\n\n### Judgment:")[0]
            yield index, says[shown] if isinstance(says[shown], Reply) else Reply(says[shown], "stop")

    monkeypatch.setattr(SimulatedEngine, "complete", complete)
    return asked, says


def annotate(tmp_path, *more):
    (tmp_path / "in.json").write_text(json.dumps(ROWS))
    words = ["--model_name_or_path", "judge", "--backend", "simulated", "--data_path", tmp_path / "in.json"]
    words += ["--output_file", tmp_path / "out.json", *more]
    annotate_judgments.main(annotate_judgments.parse_args([str(word) for word in words]))
    card = json.loads((tmp_path / "out.json.run.json").read_text())
    return read_judgments(str(tmp_path / "out.json")), card["counts"]


def test_judgments_are_what_training_reads(tmp_path, judge):
    rows, counts = annotate(tmp_path)
    assert [(row["id"], row["judgment"], row["score"]) for row in rows] == [
        (0, None, None),
        (1, "It must be 1.", 1),
        (4, "It is 4. Yes.", 1),
    ]
    assert rows[1]["input"] == "Now." and rows[1]["output"] == "Seven."
    assert counts == {
        "rows": 5,
        "faulty": 2,
        "satisfactory": 1,
        "malformed: blank response": 1,
        "malformed: satisfactory, but goes on": 1,
    }
    assert any("### Instruction:\nSay 1.\nNow.\n" in prompt for prompt in judge[0])


def test_replies_are_read_anew_for_free(tmp_path, judge, monkeypatch):
    """Without the output the replies are read again, and asked for no more; another form asks all again."""
    from alignment.judging import judgments
    from alignment.judging.judgments import Verdict

    annotate(tmp_path)
    assert len(judge[0]) == 4
    (tmp_path / "out.json").unlink()
    monkeypatch.setitem(judgments.PARSERS, "annotate", lambda reply: Verdict(f"read: {reply}"))
    rows, _ = annotate(tmp_path)
    assert len(judge[0]) == 4 and rows[0]["judgment"] == "read: Satisfactory."
    annotate(tmp_path, "--form", "ai_judge")
    assert len(judge[0]) == 8


def test_ai_judge_form(tmp_path, judge):
    judge[1].update({"Zero.": "Right. Yes.", "Seven.": "Wrong number. No."})
    rows, counts = annotate(tmp_path, "--form", "ai_judge")
    assert [(row["id"], row["judgment"]) for row in rows] == [(0, None), (1, "Wrong number."), (4, None)]
    assert counts["malformed: no Yes or No at the end"] == 1


def test_cut_off_and_too_long_replies_are_not_judgments(tmp_path, judge):
    judge[1].update({"Zero.": Reply("It must be", "length"), "Two.": Reply(None, "too long")})
    rows, counts = annotate(tmp_path)
    assert [row["id"] for row in rows] == [1, 4]
    assert counts["malformed: cut off at --max_new_tokens"] == counts["malformed: no reply: too long"] == 1


def test_failed_requests_are_tried_again_and_the_rest_is_kept(tmp_path, judge):
    judge[1]["Zero."] = Reply(None, "failed: time-out")
    with pytest.raises(UserError, match=r"1 request failed \(1 time-out\); the same command tries it again"):
        annotate(tmp_path)
    assert [row["id"] for row in read_judgments(str(tmp_path / "out.json"))] == [1, 4]
    assert not (tmp_path / "out.json.run.json").exists()
    judge[1]["Zero."] = "Satisfactory."
    annotate(tmp_path)
    assert len(judge[0]) == 5
    assert [row["id"] for row in read_judgments(str(tmp_path / "out.json"))] == [0, 1, 4]


def test_nothing_readable(tmp_path, judge):
    judge[1].update(dict.fromkeys(SAYS, ""))
    with pytest.raises(UserError, match="no reply could be read .*4 malformed: empty"):
        annotate(tmp_path)
    assert not (tmp_path / "out.json").exists()


def test_rows_without_output(tmp_path, judge):
    ROWS_WITHOUT = [{"instruction": "x"}]
    (tmp_path / "bad.json").write_text(json.dumps(ROWS_WITHOUT))
    with pytest.raises(UserError, match="row 0 has no text under 'output'"):
        annotate(tmp_path, "--data_path", tmp_path / "bad.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.json", "in.json"]


def test_chat_template_of_a_local_judge(tmp_path, model_folder):
    """A judge on disk is asked through its own chat template, and its reply ends with its turn."""
    from alignment.templates import rendering_from

    args = annotate_judgments.parse_args(
        ["--model_name_or_path", str(model_folder), "--data_path", "d", "--output_file", "o", "--use_hf"]
    )
    rendering = rendering_from(args, None)
    assert rendering.render({"instruction": "Judge."}) == "<|im_start|>user\nJudge.<|im_end|>\n<|im_start|>assistant\n"
    assert rendering.end == "<|im_end|>" and rendering.stop == ()  # an id ends it, since special tokens are no text
