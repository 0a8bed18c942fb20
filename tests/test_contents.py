"""Files that are written whole (records.py), and known by their contents (hashes.py)."""

import gzip
import hashlib
import json
import os
import sys
import threading
from types import SimpleNamespace

import pytest

from alignment import hashes
from alignment.command_line import UserError
from alignment.hashes import digest, remembered, sha256
from alignment.hub import read_hub
from alignment.records import json_list, read_prompts, read_rows, write_whole

# Written whole


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


def test_two_writers_at_once_leave_the_text_of_one_whole(tmp_path):
    """Both are in the middle of their text when the other opens its file, and neither sees the other's."""
    path, middle, size = tmp_path / "a.txt", threading.Barrier(2, timeout=10), 3 << 20

    def pieces(letter):
        yield letter * size
        middle.wait()
        yield letter * size

    writers = [threading.Thread(target=write_whole, args=(path, pieces(letter))) for letter in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert path.read_text() in ("a" * 2 * size, "b" * 2 * size) and list(tmp_path.iterdir()) == [path]


def test_a_written_file_has_the_permissions_of_any_other(tmp_path):
    write_whole(tmp_path / "a", ["x"])
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


# Known by their contents


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A file that counts as large and as an hour old, and an empty cache."""
    monkeypatch.setattr(hashes, "REMEMBERED_FROM", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "weights"
    path.write_bytes(b"four")
    make_old(path)
    return path


def make_old(path):
    hour_ago = path.stat().st_mtime_ns // 10**12 * 10**12 - 3600 * 10**9
    os.utime(path, ns=(hour_ago, hour_ago))


class Counted:
    """A computation that counts how often it is done, and may change what it reads meanwhile."""

    def __init__(self, changes=False):
        self.changes, self.times = changes, 0

    def __call__(self, path):
        self.times += 1
        if self.changes:
            os.utime(path, ns=(self.times, self.times))
        return {"bytes": path.read_bytes().decode()}


def notes(tmp_path):
    return list((tmp_path / "cache" / "alignment-without-labels").glob("*"))


def test_what_a_large_file_gave_is_remembered(large, tmp_path):
    count, other = Counted(), Counted()
    assert [remembered(large, "bytes", count) for _ in range(3)] == [{"bytes": "four"}] * 3 and count.times == 1
    assert remembered(large, "other", other) == {"bytes": "four"} and other.times == 1
    assert len(notes(tmp_path)) == 2
    large.rename(tmp_path / "moved")
    assert remembered(tmp_path / "moved", "bytes", count) and count.times == 2


def test_another_content_is_seen_though_size_and_modification_time_are_those_of_before(large):
    """What sets the modification time back cannot set back the inode's change time."""
    assert sha256(large) == hashlib.sha256(b"four").hexdigest()
    times = large.stat()
    large.write_bytes(b"five")
    os.utime(large, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert (large.stat().st_size, large.stat().st_mtime_ns) == (times.st_size, times.st_mtime_ns)
    assert sha256(large) == hashlib.sha256(b"five").hexdigest()


@pytest.mark.parametrize("change", ["small", "young", "changing", "no folder"])
def test_what_is_not_remembered(large, tmp_path, monkeypatch, change):
    """A small file; one written in the last two seconds, or while it was read; and any where the
    cache's place is not absolute, which XDG says to pass over."""
    if change == "small":
        large.write_bytes(b"123")
        make_old(large)
    if change == "young":
        os.utime(large)
    if change == "no folder":
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    count = Counted(changes=change == "changing")
    for _ in range(2):
        remembered(large, "bytes", count)
    assert count.times == 2 and notes(tmp_path) == []


def test_a_cache_that_cannot_be_written_or_is_damaged_is_harmless(large, tmp_path):
    count = Counted()
    (tmp_path / "cache").write_text("a file where the folder would be")
    assert remembered(large, "bytes", count) == remembered(large, "bytes", count) == {"bytes": "four"}
    (tmp_path / "cache").unlink()
    remembered(large, "bytes", count)
    note = json.loads(notes(tmp_path)[0].read_text())
    without_value = json.dumps({"state": note["state"]}).encode()
    for times, damage in enumerate((b"", b"\xff", b"[1]", b'{"state": 0}', b"null", without_value), 4):
        notes(tmp_path)[0].write_bytes(damage)
        assert remembered(large, "bytes", count) == {"bytes": "four"} and count.times == times


def test_sixteen_mebibytes_are_large(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for size, kept in (((16 << 20) - 1, 0), (16 << 20, 1)):
        with (tmp_path / "weights").open("wb") as file:
            file.truncate(size)
        make_old(tmp_path / "weights")
        assert sha256(tmp_path / "weights") == hashlib.sha256(bytes(size)).hexdigest()
        assert len(notes(tmp_path)) == kept


def test_what_cannot_be_hashed(tmp_path):
    for path, said in ((tmp_path / "none", "file .*none does not exist"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=said):
            sha256(path)
    with pytest.raises(UserError, match="data .*none.json does not exist"):
        digest(tmp_path / "none.json")


# Pipes and the hub


@pytest.fixture
def fifo(tmp_path):
    """A function that puts bytes into a pipe, once, and returns the pipe's path."""
    writers = []

    def put(raw):
        path = tmp_path / f"pipe{len(writers)}"
        os.mkfifo(path)
        writers.append(threading.Thread(target=path.write_bytes, args=(raw,)))
        writers[-1].start()
        return path

    yield put
    for writer in writers:
        writer.join(timeout=10)
        assert not writer.is_alive()


HUB = {"some/rows": [{"a": 1}]}


@pytest.fixture
def hub(monkeypatch):
    """A hub that has HUB, and lists what it was asked for."""
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        if name == "a/script":
            raise RuntimeError("scripts are no longer supported\nand more")
        if name not in HUB:
            raise ConnectionError("no such data set\nand more")
        return SimpleNamespace(to_list=lambda: HUB[name])

    missing = SimpleNamespace(DatasetNotFoundError=LookupError)
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset, exceptions=missing))
    read_hub.cache_clear()
    return asked


def test_a_pipe_is_hashed_as_it_was_read_in_either_order(fifo):
    raw = b'{"a": 1}\r\n{"a": 2}\n'
    first = fifo(raw)
    assert read_rows(first) == [{"a": 1}, {"a": 2}]
    assert sha256(first) == digest(str(first)) == hashlib.sha256(raw).hexdigest()
    second = fifo(raw + b'{"a": 3}')
    assert digest(second) == hashlib.sha256(raw + b'{"a": 3}').hexdigest()
    assert read_rows(second) == [{"a": 1}, {"a": 2}, {"a": 3}] == read_rows(str(second))
    third = fifo(b"one\ntwo\n")
    assert read_prompts(third) == ["one", "two"] and digest(third) == hashlib.sha256(b"one\ntwo\n").hexdigest()


def test_rows_of_the_hub(hub):
    assert read_rows("some/rows") == [{"a": 1}] and hub == [("some/rows", "train")]
    with pytest.raises(UserError, match="data other/rows does not exist here nor on the hub: no such data set$"):
        read_rows("other/rows")
    told = "data a/script cannot be had: scripts are no longer supported; give one of its files$"
    with pytest.raises(UserError, match=told):
        read_rows("a/script")


def test_the_hash_of_a_file_is_of_its_bytes_and_that_of_the_hub_of_its_rows(tmp_path, hub, monkeypatch):
    """A data set that is asked for its hash and for its rows is loaded once; other rows have another hash."""
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b"{}"))
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    before = digest("some/rows")
    assert digest("some/rows") == before and read_rows("some/rows") == [{"a": 1}] and len(hub) == 1
    monkeypatch.setitem(HUB, "some/rows", [{"a": 2}])
    read_hub.cache_clear()
    assert digest("some/rows") != before
