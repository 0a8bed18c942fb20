"""Exactly once: what is finished stays, a torn line goes."""

import json
import resource
import tracemalloc

import pytest

from alignment.command_line import UserError
from alignment.journal import Journal, key


def test_what_was_added_is_found_again(tmp_path):
    with Journal(tmp_path / "out.json") as journal:
        journal.add("k1", "text é\n", "stop")
        assert journal.get("k1") == ("text é\n", "stop")
    with Journal(tmp_path / "out.json") as journal:
        assert journal.get("k1") == ("text é\n", "stop") and journal.get("k2") is None


def test_a_full_disk_is_one_line_and_what_is_whole_is_kept(tmp_path):
    """A limit on the size of files stands for the disk; the fourth line does not fit, and is cut off later."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.raises(
        UserError, match="jsonl cannot be written: File too large; make room, and the same command goes on$"
    ):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, hard))
            with Journal(tmp_path / "out.json") as journal:
                for number in range(9):
                    journal.add(f"k{number}", "x" * 250, "stop")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with Journal(tmp_path / "out.json") as journal:
        assert [journal.get(f"k{number}") is not None for number in range(5)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("torn", [b'{"key": "k2", "te', b"\xff", b"{"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    with Journal(tmp_path / "out.json") as journal:
        journal.add("k1", "one", "stop")
    path = tmp_path / "out.json.journal.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    with Journal(tmp_path / "out.json") as journal:
        assert journal.get("k1") == ("one", "stop") and journal.get("k2") is None
        journal.add("k3", "three", "stop")
    lines = path.read_text().splitlines()
    assert path.read_bytes().startswith(whole) and json.loads(lines[-1])["key"] == "k3"


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": 3',
        b"[" * 100_000,
        b'{"key": ' + b"9" * 6_000 + b"}",
        b"[1]",
        b'"\xff"',
        b'{"key": ["k"], "text": "t", "finish": "stop"}',
        b'{"key": "k", "text": "t"}',
        b'{"key": "k", "text": "t", "finish": 5}',
    ],
)
def test_a_damaged_line_in_the_middle_is_an_error_and_nothing_is_changed(tmp_path, line):
    path = tmp_path / "out.json.journal.jsonl"
    path.write_bytes(line + b'\n{"key": "k", "text": "t", "finish": "stop"}\n')
    before = path.read_bytes()
    with pytest.raises(UserError, match="damaged at byte 0"):
        Journal(tmp_path / "out.json")
    assert path.read_bytes() == before


def test_lines_of_earlier_versions(tmp_path):
    """Those that name a writer are passed over, and so is a reply that is no text."""
    path = tmp_path / "out.json.journal.jsonl"
    lines = [{"writer": "process 1 on host"}, {"key": "n", "text": 5, "finish": "stop"}]
    lines += [{"key": "k", "text": "t", "finish": "stop"}]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with Journal(tmp_path / "out.json") as journal:
        assert journal.get("k") == ("t", "stop") and journal.get("n") is None


def test_half_a_character_is_written_and_read_as_u_fffd(tmp_path):
    """No file can hold it: an output that is made of the journal could not be written."""
    path = tmp_path / "out.json.journal.jsonl"
    path.write_bytes(rb'{"key": "a", "text": "x \ud83d", "finish": "\ud83d"}' + b"\n")
    with Journal(tmp_path / "out.json") as journal:
        journal.add("b", "y \udc00", "stop")
        assert [journal.get(key) for key in "ab"] == [("x \ufffd", "\ufffd"), ("y \ufffd", "stop")]
    with Journal(tmp_path / "out.json") as journal:
        assert journal.get("b") == ("y \ufffd", "stop")


def test_a_key_depends_on_every_determinant_and_not_on_their_order():
    assert key(a=1, b="x") == key(b="x", a=1)
    assert key(a="\ud83d") != key(a="\ufffd")  # text that no file can hold has a key of its own
    assert len({key(a=1, b="x"), key(a=2, b="x"), key(a=1, b="y"), key(a=1)}) == 4


def test_texts_are_read_from_where_they_lie(tmp_path):
    """Of lines longer than what is read in one go too, and of a key that came twice the last."""
    texts = {f"k{number}": f"{number} é " * 3_000 * (number % 2) for number in range(20)}
    with Journal(tmp_path / "out.json") as journal:
        for key_of, text in texts.items():
            journal.add(key_of, "another", "length")
            journal.add(key_of, text, "stop")
        assert {each: journal.get(each) for each in texts} == {each: (text, "stop") for each, text in texts.items()}
    with Journal(tmp_path / "out.json") as journal:
        assert {each: journal.get(each) for each in texts} == {each: (text, "stop") for each, text in texts.items()}


@pytest.mark.parametrize("bits", [0, 1, (1 << 64) - 1])
def test_keys_of_one_hash_are_told_apart(tmp_path, monkeypatch, bits):
    """More of them than the table has room for at first."""
    monkeypatch.setattr("alignment.journal.HASHED", bits)
    number = 1_500 if bits > 1 else 60
    with Journal(tmp_path / "out.json") as journal:
        for at in range(number):
            journal.add(f"k{at}", f"text {at}", "stop")
        assert [journal.get(f"k{at}") for at in range(number)] == [(f"text {at}", "stop") for at in range(number)]
        assert journal.get("k") is None and journal.get(f"k{number}") is None


def test_what_is_held_of_a_reply_is_where_it_is(tmp_path):
    """2,000 replies of 1 kB, read again in less than a tenth of them."""
    with Journal(tmp_path / "out.json") as journal:
        for at in range(2_000):
            journal.add(f"k{at}", "x" * 1_000, "stop")
    tracemalloc.start()
    try:
        with Journal(tmp_path / "out.json") as journal:
            assert sum(len(journal.get(f"k{at}")[0]) for at in range(2_000)) == 2_000_000
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_a_line_that_is_damaged_later_is_told_when_it_is_read(tmp_path):
    with Journal(tmp_path / "out.json") as journal:
        journal.add("k0", "one", "stop")
        journal.add("k1", "two", "stop")
        path = tmp_path / "out.json.journal.jsonl"
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b'"two"', b"'two'"))
        assert journal.get("k0") == ("one", "stop")
        with pytest.raises(UserError, match=f"jsonl is damaged at byte {raw.index(b'{', 1)}"):
            journal.get("k1")
