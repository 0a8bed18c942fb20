"""Files at the door: one set of rules for every reader. What is written, and hashes: test_contents.py."""

import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys

import pytest

from alignment import records
from alignment.command_line import UserError
from alignment.hashes import digest
from alignment.records import (
    is_number,
    json_list,
    one_line,
    read_json,
    read_prompts,
    read_responses,
    read_rows,
    read_text,
    write_whole,
)

ROWS = [{"a": "é 1", "b": None}, {"a": None, "b": [1.0, 2.5]}]


def write(path, content):
    """Bytes, text, or rows in the format that the name's end tells."""
    if isinstance(content, list) and path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), path)
        return path
    if isinstance(content, list):
        content = "\n".join(map(json.dumps, content)) if ".jsonl" in path.name else json.dumps(content)
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


# Text and lines


def test_a_text_is_read_without_its_byte_order_mark_and_with_plain_newlines(tmp_path):
    (tmp_path / "a").write_bytes(b"\xef\xbb\xbfone\r\ntwo\n")
    assert read_text(tmp_path / "a", "file") == "one\ntwo\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        (b"caf\xe9 au lait", r"not UTF-8 \(byte 3\)"),
        (b"\xef\xbb\xbfcaf\xe9", r"not UTF-8 \(byte 6\)"),
        ("é".encode("utf-16"), r"not UTF-8 \(byte 0\)"),
    ],
)
def test_a_text_that_cannot_be_read(tmp_path, content, said):
    if content is not None:
        (tmp_path / "a").write_bytes(content)
    with pytest.raises(UserError, match=said):
        read_text(tmp_path / "a", "prompt file")
    with pytest.raises(UserError, match="is a folder"):
        read_text(tmp_path, "prompt file")


ODD = ["a\rb", "a\u2028b", "a\u2029b", "a\x85b", "a\x0cb", "a\x1cb"]  # str.splitlines would cut each of them


def test_only_a_newline_ends_a_line(tmp_path):
    """The same lines in prompts.txt and in JSON Lines, whichever newline they are written with."""
    for newline in ("\n", "\r\n"):
        assert read_prompts(write(tmp_path / "prompts.txt", "".join(text + newline for text in ODD))) == ODD
        lines = [json.dumps({"a": text}, ensure_ascii=False) + newline for text in ODD]
        assert read_rows(write(tmp_path / "a.jsonl", "".join(lines))) == [{"a": text} for text in ODD]


def test_one_line_is_what_prompts_txt_holds(tmp_path):
    """What it returns is read as it was written, first line or not; what it refuses would not be."""
    kept = [one_line(text) for text in [" two words\r\n", "a\ufeff", "\t\x00", *ODD]]
    assert kept == ["two words", "a\ufeff", "\x00", *ODD]
    for order in (kept, kept[::-1]):
        write_whole(tmp_path / "prompts.txt", [text + "\n" for text in order])
        assert read_prompts(tmp_path / "prompts.txt") == order
    assert [one_line(text) for text in ("a\nb", "a\r\nb", " \n", "", "\ufeffa", "half \ud83d")] == [None] * 6


def test_prompts_keep_their_spaces_and_refuse_a_blank_line(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n two \n")
    assert read_prompts(path) == ["one", " two "]
    path.write_text("one\n\ntwo\n")
    with pytest.raises(UserError, match="line 2 is blank"):
        read_prompts(path)


# JSON and rows


def test_broken_json_is_told_by_line_and_column(tmp_path):
    (tmp_path / "a.json").write_text('["x",\n "y"')
    with pytest.raises(UserError, match="line 2, column 5"):
        read_json(tmp_path / "a.json", "responses")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.json.gz", "a.jsonl.gz", "a.parquet"])
def test_rows_of_every_format(tmp_path, name):
    assert read_rows(write(tmp_path / name, ROWS)) == read_rows(str(tmp_path / name), "benchmark") == ROWS


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_rows_of_a_table(tmp_path, name):
    """As spreadsheets write them: a byte-order mark, quotes, line ends in cells. A cell is a text, an empty one too."""
    text = '\ufeffprompt,"out, put",\r\n"say ""é""\n\u2028twice",,1\r\n\r\n\r\na,b,\r\n'
    found = [{"prompt": 'say "é"\n\u2028twice', "out, put": "", "": "1"}, {"prompt": "a", "out, put": "b", "": ""}]
    assert read_rows(write(tmp_path / name, text)) == found


@pytest.mark.parametrize("content", [json.dumps(ROWS), "\ufeff \n[" + json.dumps(ROWS)[1:], '{"a": "é 1"}\n\n{"a": 2}'])
def test_rows_of_another_name_are_told_by_their_first_character(tmp_path, content):
    rows = read_rows(write(tmp_path / "rows", content))
    assert len(rows) == 2 and rows[0]["a"] == "é 1"
    assert read_rows(write(tmp_path / "rows.gz", content)) == rows


GOOD = b'{"a": 1}\n'


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b"", "rows a.json is empty$"),
        ("a.json", b"[]", "rows a.json has no rows$"),
        ("a.jsonl", b"\n \r\n", "rows a.jsonl is empty$"),
        ("a.json", b'{"a": 1}', "rows a.json holds a dict, not a list of rows$"),
        ("a.json", GOOD * 2, "no JSON: line 2, column 1: Extra data; rows that are a line each go into .jsonl$"),
        ("a.json", b'[{"a": 1}, 2]', "rows a.json, row 1 is a int, not an object$"),
        ("a.jsonl", GOOD + b"\n[1]\n", "rows a.jsonl, line 3 holds a list, not an object$"),
        ("a.jsonl", GOOD + b'{"a', "rows a.jsonl, line 2 is no JSON: column 2: Unterminated string"),
        ("a.jsonl", GOOD + b'{"a": "\xe9"}', r"rows a.jsonl is not UTF-8 \(byte 16\); save it as UTF-8$"),
        ("a.json", b'[{"a": 1}, {"a": NaN}]', "rows a.json, row 1: 'a' holds NaN or Infinity.*write null"),
        ("a.jsonl", GOOD + b'{"b": [1, -Infinity]}', "rows a.jsonl, line 2: 'b' holds NaN or Infinity"),
        ("a.jsonl", b'{"b": {"c": 1e999}}', "line 1: 'b' holds NaN or Infinity"),
        ("a.json", rb'[{"a": ["x", {"b": "\ud83d"}]}]', "rows a.json, row 0: 'a' holds a lone surrogate"),
        ("a.jsonl", GOOD + rb'{"a": {"\udc00": 1}}', "rows a.jsonl, line 2: 'a' holds a lone surrogate"),
        ("a.jsonl", rb'{"\udc00": 1}', r"line 1: '\\udc00' holds a lone surrogate"),
        ("a.json", b"[" * 100_000, "rows a.json is nested too deeply to be read$"),
        ("a.jsonl", GOOD + b"[" * 100_000, "rows a.jsonl, line 2 is nested too deeply to be read$"),
        ("a.json", b'[{"a": ' + b"1" * 5000 + b"}]", "rows a.json has a whole number of more digits"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "rows a.jsonl, line 1 has a whole number of more digits"),
        ("a.parquet", b"text", "rows a.parquet is no parquet file"),
        ("a.parquet", [], "rows a.parquet has no rows$"),
        ("a.jsonl.gz", b"", "rows a.jsonl.gz is empty$"),
        ("a.csv", b"", "rows a.csv has no rows$"),
        ("a.csv", b"a,b\n", "rows a.csv has no rows$"),
        ("a.csv", b"a,b\n1,2\n1\n", "rows a.csv, row 1 has 1 cells, and the first line 2$"),
        ("a.csv", b"a,a\n1,2\n", "rows a.csv has two columns of one name: a, a$"),
        ("a.csv", b'a,b\n1,"2', "rows a.csv, line 2 is no CSV: unexpected end of data$"),
        ("a.csv", b"a,b\n1,\xe9", r"rows a.csv is not UTF-8 \(byte 6\)"),
        ("none.csv", None, "rows none.csv does not exist$"),
        ("none.jsonl.gz", None, "rows none.jsonl.gz does not exist$"),
        ("none.parquet", None, "rows none.parquet does not exist$"),
        ("none", None, r"rows none does not exist \(and is no owner/name of the hub\)$"),
    ],
)
def test_rows_that_no_reader_takes(tmp_path, monkeypatch, name, content, said):
    """One line, which names the file and the row or the line."""
    monkeypatch.chdir(tmp_path)
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(UserError, match=f"^{said}" if said.startswith("rows") else said) as refused:
        read_rows(name, "rows")
    assert "\n" not in str(refused.value)


def test_what_is_no_file(tmp_path, monkeypatch):
    """Neither waited for nor read without end: a device, a socket, a pipe that nobody writes into."""
    monkeypatch.setattr(records, "UNHEARD", 10)
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as held:
        held.bind(str(tmp_path / "socket"))
        faults = {"pipe": "is a pipe, and nothing writes into it", "socket": "cannot be read: No such device"}
        for name, said in (faults | {"/dev/zero": "is a device, not a file"}).items():
            with pytest.raises(UserError, match=f"^rows {tmp_path / name}.*{said}"):
                read_rows(tmp_path / name, "rows")


def test_a_pipe_is_read_once_and_hashed(tmp_path):
    """Whatever its writer takes to begin and to go on."""
    os.mkfifo(tmp_path / "rows.jsonl")
    slow = "import sys, time\ntime.sleep(0.1)\nwith open(sys.argv[1], 'w') as f:\n"
    slow += " for _ in range(2):\n  print('{\"a\": 1}', file=f, flush=True)\n  time.sleep(0.1)\n"
    with subprocess.Popen([sys.executable, "-c", slow, tmp_path / "rows.jsonl"]):
        assert read_rows(tmp_path / "rows.jsonl") == [{"a": 1}] * 2
    assert digest(tmp_path / "rows.jsonl") == hashlib.sha256(GOOD * 2).hexdigest()


def test_a_gz_that_is_none(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(GOOD)
    with pytest.raises(UserError, match="no whole .gz"):
        read_rows(tmp_path / "a.jsonl.gz")
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(GOOD * 9999)[:-9])
    with pytest.raises(UserError, match="no whole .gz"):
        read_rows(tmp_path / "a.jsonl.gz")


def test_whole_characters_in_escapes_and_nested_rows_are_taken(tmp_path):
    """A pair of surrogates is a character; a row may be nested more deeply than Python calls, if JSON can read it."""
    deep = "[" * 900 + "]" * 900
    assert read_rows(write(tmp_path / "a.jsonl", rb'{"a": "\ud83d\ude00 \\ud83d"}'))[0]["a"] == "\U0001f600 \\ud83d"
    assert read_rows(write(tmp_path / "a.json", f'[{{"a": {deep}}}]'))[0]["a"]


def test_a_parquet_file_whose_texts_are_not_utf8(tmp_path):
    import pyarrow
    import pyarrow.parquet

    offsets, texts = (0).to_bytes(4, "little") + (3).to_bytes(4, "little"), b"\xed\xa0\xbd"  # a lone surrogate
    column = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, *map(pyarrow.py_buffer, (offsets, texts))])
    pyarrow.parquet.write_table(pyarrow.table({"a": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="data .*a.parquet has a text that is not UTF-8"):
        read_rows(tmp_path / "a.parquet")


def test_a_time_that_python_cannot_tell(tmp_path):
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.array([2**60], pyarrow.timestamp("us"))
    pyarrow.parquet.write_table(pyarrow.table({"a": column}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="data .*a.parquet has a value that cannot be read: "):
        read_rows(tmp_path / "a.parquet")


def test_a_broken_parquet_file_ends_in_one_line_and_not_in_a_crash(tmp_path):
    """In processes of their own: a thread of pyarrow that is still reading when the interpreter ends aborts it."""
    path = write(tmp_path / "a.parquet", [{"a": "x" * 99, "b": n} for n in range(99)])
    raw = path.read_bytes()
    path.write_bytes(raw[:8] + b"zzzzzzzz" + raw[16:])
    code = (
        "import sys, alignment.records as r\ntry: r.read_rows(sys.argv[1])\nexcept r.UserError as e: sys.exit(str(e))"
    )
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
        assert done.returncode == 1 and "is no parquet file" in done.stderr, done
        assert done.stderr.count("\n") == 1


def test_numbers():
    assert all(map(is_number, (0, -1.5, 10**400)))
    assert not any(map(is_number, (True, "1", None, float("nan"), float("inf"), [1])))


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (["a"], "has 1 replies, 2 fewer than the 3 prompts; complete it"),
        (["a"] * 4, "has 4 replies, 1 more than the 3 prompts; it was made for another"),
        ({"a": 1}, "holds a dict, not a list"),
        (["a", 5, "c"], "row 1 is a int, not a string or null"),
        (["a", None, float("nan")], "row 2 is a float, not a string or null"),
        (["a", "\ud83d", "c"], "row 1 holds a lone surrogate"),
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


def test_half_a_character_of_a_file_name_is_written_as_its_escape(tmp_path):
    """Python spells bytes of a name that are not UTF-8 so. No traceback, and the file is JSON."""
    write_whole(tmp_path / "a.json", json_list([{"generator": "model\udcff", "output": "é"}]))
    assert (tmp_path / "a.json").read_bytes().endswith(b'"model\\udcff", "output": "\xc3\xa9"}\n]\n')
    assert read_json(tmp_path / "a.json", "rows") == [{"generator": "model\udcff", "output": "é"}]
