"""Files at the door: what a reader refuses, and that a writer never leaves a part."""

import json

import pytest

from alignment.command_line import UserError
from alignment.records import json_list, read_json, read_prompts, read_responses, read_text, write_whole


def test_a_text_is_read_without_its_byte_order_mark_and_with_plain_newlines(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(tmp_path / "a", "file") == "one\ntwo\n"


@pytest.mark.parametrize(
    ("content", "said"), [(None, "does not exist"), (b" \n", "is empty"), (b"caf\xe9 au lait", r"not UTF-8 \(byte 3\)")]
)
def test_a_text_that_cannot_be_read(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_text(tmp_path / "a", "prompt file")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path, "prompt file")


def test_broken_json_is_told_by_line_and_column(tmp_path):
    (tmp_path / "a.json").write_text('["x",\n "y"')
    with pytest.raises(UserError, match="line 2, column 5"):
        read_json(tmp_path / "a.json", "responses")


def test_prompts_keep_their_spaces_and_refuse_a_blank_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n two \n")
    assert read_prompts(path) == ["one", " two "]
    path.write_text("one\n\ntwo\n")
    with pytest.raises(UserError, match="line 2 is blank"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a"], "has 1 replies, 2 fewer than the 3 prompts"),
        (["a"] * 4, "1 more than the 3 prompts"),
        ({"a": 1}, "holds a dict, not a list"),
        (["a", 5, "c"], "row 1 is a int, not a string or null"),
    ],
)
def test_responses_that_do_not_fit_the_prompts(tmp_path, rows, said):
    (tmp_path / "a.json").write_text(json.dumps(rows))
    with pytest.raises(UserError, match=said):
        read_responses(tmp_path / "a.json", 3)


def test_responses_with_null_and_with_a_limit(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(["a", None, "BAD"]))
    assert read_responses(tmp_path / "a.json", 3) == ["a", None, "BAD"]
    assert read_responses(tmp_path / "a.json", 2, limit=2) == ["a", None]


@pytest.mark.parametrize("rows", [[], ["é\n"], [{"a": 1}, None]])
def test_json_list_is_json_and_a_row_a_line(rows):
    text = "".join(json_list(rows))
    assert json.loads(text) == rows
    assert len(text.splitlines()) == (len(rows) + 2 if rows else 1)


def test_a_write_that_breaks_leaves_the_old_file(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    write_whole(path, ["old"])

    def pieces():
        yield "new"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_whole(path, pieces())
    assert path.read_text() == "old" and list(path.parent.iterdir()) == [path]
