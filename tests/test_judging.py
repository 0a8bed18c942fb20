"""Rows with judgments, judge prompts, and what is read from replies."""

import json

import pytest

from alignment.command_line import UserError
from alignment.judging import judgments
from alignment.judging.judgments import Verdict, parse_ai_judgment, parse_annotation, parse_judgment, quoted_spans

ROW = {"id": 0, "instruction": "Add {1} and 1.", "input": "", "output": "It is {3}.", "judgment": "It is 2."}


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("Satisfactory.", Verdict(None)),
        (' "satisfactory" ', Verdict(None)),
        ("### Judgment: Satisfactory.", Verdict(None)),
        ("Judgment: The sum is wrong.", Verdict("The sum is wrong.")),
        ("The sum is wrong.\nIt is 2.", Verdict("The sum is wrong.\nIt is 2.")),
        ("Not satisfactory: it is 2.", Verdict("Not satisfactory: it is 2.")),
        ("Unsatisfactory, for it is 2.", Verdict("Unsatisfactory, for it is 2.")),
        ("Satisfactory. But the sum is wrong.", Verdict(None, "satisfactory, but goes on")),
        ("Wrong sum.", Verdict(None, "under 3 words")),
        (" ...\n", Verdict(None, "empty")),
    ],
)
def test_parse_annotation(reply, verdict):
    assert parse_annotation(reply) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("The sum is right. Yes.", Verdict(None)),
        ("The sum is wrong. No.", Verdict("The sum is wrong.")),
        ("The sum is wrong.\n**No**", Verdict("The sum is wrong.")),
        ("Yes. The sum is wrong. No.", Verdict("Yes. The sum is wrong.")),
        ("No.", Verdict(None, "No without a judgment")),
        ("Yes, it adds up, but the casino", Verdict(None, "no Yes or No at the end")),
        ("", Verdict(None, "empty")),
    ],
)
def test_parse_ai_judgment(reply, verdict):
    assert parse_ai_judgment(reply) == verdict


def test_parse_judgment_of_any_reply():
    assert parse_judgment("annotate", None, "too long", "x") == Verdict(None, "no reply: too long")
    assert parse_judgment("annotate", "The sum is", "length", "x") == Verdict(None, "cut off at --max_new_tokens")
    assert parse_judgment("annotate", "It is {3} now.", "stop", "It is {3} now.") == Verdict(
        None, "repeats the response"
    )
    assert parse_judgment("ai_judge", "Fine. Yes.", "stop", "x") == Verdict(None)


def test_counts_by_reason():
    verdicts = [Verdict("bad"), Verdict(None), Verdict(None, "empty"), Verdict(None, "empty"), Verdict("worse")]
    assert judgments.counts_by_reason(verdicts) == {"rows": 5, "faulty": 2, "satisfactory": 1, "malformed: empty": 2}


@pytest.mark.parametrize("form", judgments.FORMS)
def test_prompt_holds_the_pair_and_ends_at_the_judgment(form):
    """The reply's first token follows the colon; braces of the data are not slots."""
    prompt = judgments.format_judge_prompt(judgments.read_form(form), ROW | {"input": "{response}"})
    assert "\n### Instruction:\nAdd {1} and 1.\n{response}\n\n### Response:\nIt is {3}.\n\n### Judgment:" in prompt
    assert prompt.endswith("### Judgment:")


def test_form_without_a_slot(tmp_path, monkeypatch):
    (tmp_path / "annotate.txt").write_text("Judge {instruction}.")
    monkeypatch.setattr(judgments, "PROMPTS", tmp_path)
    with pytest.raises(UserError, match=r"has no \{response\} slot"):
        judgments.read_form("annotate")


def test_quoted_spans():
    """Straight, curly and single quotes; an apostrophe opens nothing; what is not in the output is not there."""
    output = "The sky is green. It isn't blue. The sky is green."
    judgment = """It says "sky is green." and 'blue', which isn't so; “no such words” is missing."""
    assert quoted_spans(judgment, output) == [(4, 16), (27, 31), (37, 49)]


def test_quoted_in():
    """The pieces join to the judgment; only quotations that are in the output are marked."""
    pieces = judgments.quoted_in("""It says "green.", not "red".""", "It is green.")
    assert pieces == [('It says "', False), ("green.", True), ('", not "red".', False)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) if path.suffix == ".jsonl" else json.dumps(rows))
    return str(path)


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_read_judgments(tmp_path, name):
    """A score of 7 makes a row satisfactory whatever is said; a missing input is empty."""
    scored = [ROW | {"score": score} for score in (7, 6.5, None)]
    rows = judgments.read_judgments(write(tmp_path / name, [{**ROW, "input": None}, *scored]))
    assert [row["judgment"] for row in rows] == ["It is 2.", None, "It is 2.", "It is 2."]
    assert rows[0]["input"] == ""


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "i", "output": "o"}, "row 1 has no 'judgment'"),
        (ROW | {"output": " "}, "row 1 has an empty 'output'"),
        (ROW | {"instruction": None}, "row 1 has an empty 'instruction'"),
        (ROW | {"judgment": ""}, "row 1: 'judgment' is neither text nor null"),
        (ROW | {"score": "7"}, "row 1: 'score' is neither"),
        (ROW | {"score": True}, "row 1: 'score' is neither"),
        (ROW | {"score": float("nan")}, "row 1: 'score' holds NaN or Infinity"),
        (ROW | {"input": float("nan")}, "row 1: 'input' holds NaN or Infinity"),
        (ROW | {"input": [1, 2, 3]}, "row 1: 'input' is no text"),
        (ROW | {"input": 0}, "row 1: 'input' is no text"),
        (ROW | {"instruction": "half \ud83d"}, "row 1: 'instruction' holds a lone surrogate"),
        ("text", "row 1 is a str"),
    ],
)
def test_unusable_judgments(tmp_path, row, said):
    with pytest.raises(UserError, match=said):
        judgments.read_judgments(write(tmp_path / "rows.json", [ROW, row]))


def test_nan_in_a_table_is_neither_a_text_nor_a_score(tmp_path):
    """Both readers alike, and a column of null is as if absent."""
    import pyarrow
    import pyarrow.parquet

    for changed in ({"input": float("nan")}, {"score": float("nan")}, {"input": None, "id": None}):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([ROW | changed]), tmp_path / "rows.parquet")
        readers = [judgments.read_judgments] + [judgments.read_instructions] * ("score" not in changed)
        for read in readers:
            if changed.get("input", 1) is None:
                assert read(tmp_path / "rows.parquet")[0]["input"] == ""
            else:
                with pytest.raises(UserError, match="row 0: '(input' is no text|score' is neither a number nor null)"):
                    read(tmp_path / "rows.parquet")
    assert judgments.read_instructions(tmp_path / "rows.parquet")[0]["id"] == 0


def test_sample_in_the_repository():
    rows = judgments.read_judgments(str(judgments.REPOSITORY / "data" / "judgments.json"))
    assert len(rows) == 16 and sum(row["judgment"] is None for row in rows) == 4


def test_read_instructions(tmp_path):
    rows = judgments.read_instructions(write(tmp_path / "i.jsonl", [{"instruction": "i", "input": None}, ROW]))
    assert [(row["id"], row["input"]) for row in rows] == [(0, ""), (0, "")]
    with pytest.raises(UserError, match="row 0 has no text under 'output'"):
        judgments.read_instructions(write(tmp_path / "i.json", [{"instruction": "i"}]), with_output=True)
    with pytest.raises(UserError, match="row 1: 'input' is no text"):
        judgments.read_instructions(write(tmp_path / "i.json", [ROW, ROW | {"input": {"a": "tea"}}]))
    with pytest.raises(UserError, match="not a list of rows"):
        judgments.read_instructions(write(tmp_path / "i.json", {}))


def test_instructions_of_a_text_file_are_its_lines(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("Why?\nHow so?\n")
    assert judgments.read_instructions(path) == [
        {"id": 0, "input": "", "instruction": "Why?"},
        {"id": 1, "input": "", "instruction": "How so?"},
    ]
