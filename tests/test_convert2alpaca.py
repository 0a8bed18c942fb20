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
        question(answer("worse"), answer("better", [(" Misses the end. ", "a"), ("Too long.", "b")])),
        question(answer("perfect", rating=7)),
        question(answer("fine", rating=6)),
    ),
    passage(
        question(answer("", rating=7)),
        question(answer("skipped", skip=True)),
        question(answer("hopeless", [("Wrong.", "kept"), ("All wrong.", "")])),
        question(answer("unsaid", [(" ", "refined")])),
    ),
]


@pytest.mark.parametrize("name", ["train.jsonl", "train.jsonl.gz"])
def test_critiques(tmp_path, name):
    """The best ranked answer is kept, its critiques joined; each dropped question is counted under its reason."""
    records, counts = convert(write_jsonl(tmp_path / name, CRITIQUES), tmp_path / "out.json")
    instruction = "A passage.\nWhat is it about?"
    assert records == [
        {
            "id": "0-0",
            "instruction": instruction,
            "input": "",
            "output": "better",
            "judgment": "Misses the end. Too long.",
            "score": 1,
        },
        {"id": "0-1", "instruction": instruction, "input": "", "output": "perfect", "judgment": None, "score": None},
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
        "dropped: empty critique": 1,
    }


def test_shepherd(tmp_path):
    rows = [{"id": 9, "dataset": "d", "question": "1+1?", "answer": "3\n", "feedback": " It is 2. "}]
    rows.append(rows[0] | {"feedback": " "})
    records, counts = convert(write_jsonl(tmp_path / "s.jsonl", rows), tmp_path / "out.json")
    assert records == [
        {"id": "0", "instruction": "1+1?", "input": "", "output": "3\n", "judgment": "It is 2.", "score": 1}
    ]
    assert counts == {"rows read": 2, "records": 1, "satisfactory": 0, "faulty": 1, "dropped: empty feedback": 1}


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
        (b'{"question": "q", "answer": "", "feedback": "f"}\n', "gives no record: 1 empty answer"),
        (b'{"question": " ", "answer": "a", "feedback": "f"}\n', "gives no record: 1 empty question"),
        (b'{"question": null, "answer": "a", "feedback": "f"}\n', "row 0 lacks"),
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
