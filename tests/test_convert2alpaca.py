"""convert2alpaca.py on rows made here, in the shapes of the two sources."""

import gzip
import json

import pytest

from alignment.command_line import UserError
from scripts import convert2alpaca


def answer(text, critiques=(), rating=4, skip=False):
    found = [{"text": critique, "refinement": refined} for critique, refined in critiques]
    return {"answer": text, "feedback": {"skip": skip, "rating": rating, "critiques": found}}


def question(*answers, rankings=None):
    return {"question": "What is it about?", "rankings": rankings or [*range(len(answers))], "answers": list(answers)}


def passage(*questions):
    return {"id": "p", "data": {"passage": {"title": None, "text": "A passage."}, "questions": list(questions)}}


def write_jsonl(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def convert(path, output):
    convert2alpaca.main(convert2alpaca.parse_args([str(path), str(output)]))
    return json.loads(output.read_text()), json.loads((output.parent / f"{output.name}.run.json").read_text())["counts"]


CRITIQUES = [
    passage(
        question(answer("worse"), answer("better", [(" Misses  the end. ", "a"), ("Too\nlong. ", "b")])),
        question(answer("perfect", rating=7)),
        question(answer("fine", rating=6)),
    ),
    passage(
        question(answer("", rating=7)),
        question(answer("skipped", rating=7, skip=True)),
        question(answer("hopeless", [("Wrong.", "kept"), ("All wrong.", "")])),
    ),
]
BLANK = passage(  # what the released code keeps
    question(answer(" ", rating=7)),
    question(answer("unsaid", [(" ", "refined")])),
    question(answer("spaced", [("Wrong.", "\n")])),
    question(answer("unrefined", [("Wrong.", None)], skip=None)),
    question(answer("said so", [("Wrong.", "Right.")], skip="no")),
)


def released(output, judgment, better, score=1):
    instruction = "A passage.\nWhat is it about?"
    rest = {"input": None, "instruction": instruction, "reason": None}
    return {"output": output} | rest | {"judgment": judgment, "i_ans": better, "score": score}


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_critiques(tmp_path, name):
    """The best ranked answer is kept, its critiques joined by blanks; each question left out is counted by reason."""
    records, counts = convert(write_jsonl(tmp_path / name, CRITIQUES), tmp_path / "out.json")
    assert records == [
        {"id": "0-0"} | released("better", "Misses  the end.  Too\nlong.", "b"),
        {"id": "0-1"} | released("perfect", None, None, None),
    ]
    assert counts == {
        "rows read": 2,
        "records": 2,
        "satisfactory": 1,
        "faulty": 1,
        "dropped: no critique, yet rated below 7": 1,
        "dropped: empty answer": 1,
        "dropped: skipped by its labeller": 1,
        "dropped: empty last refinement": 1,
    }


def test_what_is_blank_but_not_empty_is_kept(tmp_path):
    """As released, where only "" and `skip: true` leave a question out; what training would refuse is counted."""
    records, counts = convert(write_jsonl(tmp_path / "c.jsonl", [BLANK]), tmp_path / "out.json")
    found = [(row["output"], row["judgment"], row["i_ans"]) for row in records]
    assert found == [
        (" ", None, None),
        ("unsaid", "", "refined"),
        ("spaced", "Wrong.", "\n"),
        ("unrefined", "Wrong.", None),
        ("said so", "Wrong.", "Right."),
    ]
    assert counts["records"] == 5 and counts["blank output or judgment, which training refuses"] == 2


SHEPHERD = {"question": "1+1?", "answer": "3\n", "feedback": " It is 2. "}


def raw(row, better="2"):
    return {"metadata": {"context": row["question"], "output_candidate": row["answer"], "output_correct": better}}


def test_shepherd(tmp_path):
    """Feedback as it was given, also where it is blank; what the answer should be is in the raw file beside it."""
    rows = [SHEPHERD, SHEPHERD | {"feedback": ""}]
    path = write_jsonl(tmp_path / "human_data_for_model.jsonl", rows)
    records, counts = convert(path, tmp_path / "out.json")
    row = released("3\n", " It is 2. ", None) | {"id": "0", "instruction": "1+1?", "ref": None}
    assert records == [row, row | {"id": "1", "judgment": ""}]
    assert counts["records"] == counts["faulty"] == 2
    beside = write_jsonl(tmp_path / "human_data_raw.jsonl", [raw(row) for row in rows])
    assert convert(path, tmp_path / "out.json")[0][0] == row | {"i_ans": "2"}
    for wrong, said in [
        ([raw(SHEPHERD), raw(SHEPHERD | {"answer": "4"})], "row 1 of human_data_raw.jsonl is about another"),
        ([raw(SHEPHERD)], "has 1 rows, and human_data_for_model.jsonl 2"),
    ]:
        write_jsonl(beside, wrong)
        with pytest.raises(UserError, match=said):
            convert(path, tmp_path / "out.json")


def test_training_reads_what_is_converted(tmp_path):
    from alignment.judging.judgments import read_judgments

    convert(write_jsonl(tmp_path / "c.jsonl", CRITIQUES), tmp_path / "out.json")
    assert [(row["judgment"] is None, row["input"]) for row in read_judgments(tmp_path / "out.json")] == [
        (False, ""),
        (True, ""),
    ]


def test_without_arguments_the_released_names_are_converted(tmp_path, monkeypatch, capsys):
    """Those that are there, under the released or the downloaded name (C19); of the others it is said where to go."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="nothing to convert; .*critiques/test.jsonl.gz.*facebookresearch/Shepherd"):
        convert2alpaca.main(convert2alpaca.parse_args([]))
    for name, rows in {
        "open_summary/train.jsonl.gz": CRITIQUES,
        "open_summary/critiques.train.jsonl": CRITIQUES[:1],
        "Shepherd/human_data_for_model.jsonl": [SHEPHERD],
    }.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(tmp_path / "data" / name, rows)
    convert2alpaca.main(convert2alpaca.parse_args([]))
    assert "not there, so not converted: data/open_summary/test.jsonl.gz (https://" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "data/open_summary/train-alpaca.json").read_text())) == 2
    card = json.loads((tmp_path / "data/open_summary/train-alpaca.json.run.json").read_text())
    assert card["counts"]["rows read"] == 1  # of the released name, which comes first
    assert len(json.loads((tmp_path / "data/Shepherd/train-alpaca.json").read_text())) == 1
    with pytest.raises(UserError, match="give the .json to write as well"):
        convert2alpaca.main(convert2alpaca.parse_args(["x.jsonl"]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"not json\n", "in.jsonl, line 1 is no JSON"),
        (rb'{"question": "\ud83d", "answer": "a", "feedback": "f"}', "line 1: 'question' holds a lone surrogate"),
        (b"[1]\n", "line 1 holds a list"),
        (b'{"a": 1}\n', "row 0 has keys a"),
        (b'{"latestLabel": {}}\n', "human_data_for_model.jsonl"),
        (b'{"question": "q", "answer": "a", "feedback": "f"}\n{"question": "q"}\n', "row 1 lacks what row 0 has"),
        (json.dumps(passage(question(answer("", rating=7)))).encode(), "gives no record: 1 empty answer"),
        (b'{"question": null, "answer": "a", "feedback": "f"}\n', "row 0 lacks"),
        (b'{"question": "q", "answer": "a", "feedback": 3}\n', "row 0 lacks .*no text"),
        (json.dumps(passage(question(answer(None, rating=7)))).encode(), "row 0 lacks .*no text"),
        (json.dumps(passage(question(answer("a", rating=7)) | {"question": None})).encode(), "row 0 lacks"),
    ],
)
def test_unusable_input_writes_nothing(tmp_path, content, said):
    (tmp_path / "in.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=said):
        convert(tmp_path / "in.jsonl", tmp_path / "out.json")
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]


def test_a_separator_inside_a_string_ends_no_line(tmp_path):
    row = {"question": "a\u2028b", "answer": "c\x85d", "feedback": "e"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    records, _ = convert(tmp_path / "in.jsonl", tmp_path / "out.json")
    assert [(each["instruction"], each["output"]) for each in records] == [("a\u2028b", "c\x85d")]


def test_broken_gz(tmp_path):
    (tmp_path / "in.jsonl.gz").write_bytes(gzip.compress(b'{"question": "q"}\n' * 99)[:-9])
    with pytest.raises(UserError, match="no whole .gz"):
        convert(tmp_path / "in.jsonl.gz", tmp_path / "out.json")
