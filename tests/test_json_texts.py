"""A JSON list value by value: what is taken, and what is said of a fault, as if it were parsed in one go."""

import io
import json
import random

import pytest
from mutations import mutated, torn

from alignment import json_texts
from alignment.command_line import UserError

VALUES = ['aé"\\x\n', None, 12, -1500.0, {"a": [1, 2, True]}, "\U0001f600", []]


def values(raw, at_once, monkeypatch):
    """What comes, and what is refused."""
    monkeypatch.setattr(json_texts, "AT_ONCE", at_once)
    found = []
    try:
        for value in json_texts.list_values(io.BytesIO(raw), "P", "rows"):
            found.append(value)
    except UserError as refused:
        return found, str(refused)
    return found, None


def in_one_go(raw):
    """The list, or what is said of it; None for what is no UTF-8."""
    try:
        text = raw.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        return None
    if not text or text.isspace():
        return "P is empty"
    try:
        found = json_texts.parsed(text, "P")
    except UserError as refused:
        return str(refused)
    return found if isinstance(found, list) else f"P holds a {type(found).__name__}, not a list of rows"


@pytest.mark.parametrize("at_once", [1, 2, 3, 7, 50, 1 << 20])
@pytest.mark.parametrize("indent", [None, 1])
def test_wherever_it_is_cut(at_once, indent, monkeypatch):
    for ascii_only in (True, False):
        raw = json.dumps(VALUES, indent=indent, ensure_ascii=ascii_only).encode()
        for around in (raw, b"\xef\xbb\xbf \r\n" + raw + b"\n", raw.replace(b"\n", b"\r\n")):
            assert values(around, at_once, monkeypatch) == (VALUES, None)


def test_a_fault_is_told_as_by_a_parser_of_the_whole(monkeypatch):
    draw, faults = random.Random(0), 0
    for number in range(1_500):
        value = mutated(VALUES, draw)
        raw = json.dumps(value, indent=draw.choice([None, 1])).encode()
        raw = torn(raw, draw) if number % 3 else raw
        at_once = draw.choice([1, 2, 3, 7, 50, 1 << 20]) if len(raw) < 2_000 else 1 << 20
        expected, (found, said) = in_one_go(raw), values(raw, at_once, monkeypatch)
        faults += said is not None
        if isinstance(expected, list):
            assert json.dumps(found) == json.dumps(expected) and said is None, raw
        elif expected:
            assert said == expected, raw
        else:
            assert "is not UTF-8 (byte " in said or "is no JSON" in said, raw
    assert 300 < faults < 1_400


def test_what_is_before_a_fault_comes_first(monkeypatch):
    """And no more of the file is read than up to it: a list of a terabyte is not read for its second row."""
    raw = b'["a", "b", oh, "' + b"x" * 5_000 + b'"]'
    file = io.BytesIO(raw)
    monkeypatch.setattr(json_texts, "AT_ONCE", 64)
    rows = json_texts.list_values(file, "P", "rows")
    assert [next(rows), next(rows)] == ["a", "b"]
    with pytest.raises(UserError, match="P is no JSON: line 1, column 12: Expecting value"):
        next(rows)
    assert file.tell() == 64


def test_the_byte_that_is_no_text(monkeypatch):
    for at_once in (1, 5, 99):
        found, said = values('["é", "'.encode() + b'\xff"]', at_once, monkeypatch)
        assert said == "P is not UTF-8 (byte 8); save it as UTF-8" and found in ([], ["é"])
