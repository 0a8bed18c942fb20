"""Ids kept beside a run: the same as those that are made anew, whole or not there, and none that is stale."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest
import torch.distributed as distributed

from alignment.command_line import UserError
from alignment.run_cards import claim
from alignment.templates import load_template
from alignment.training import encoded
from alignment.training.batches import encode_examples
from alignment.training.cut_lines import encode_rows, kept_rows, load_templates
from alignment.training.encoded import KeptItems, kept, print_of
from alignment.training_data import examples_of

ROWS = [{"prompt": f"{n} alpha", "chosen": "beta" * n + "!", "rejected": "?" * (6 - n)} for n in range(1, 5)]


@pytest.fixture
def encode(tokenizer):
    """Rows and settings -> (items, notes) as made anew, and their print."""
    template = load_template("almost", tokenizer)

    def make(rows=ROWS, **settings):
        examples = examples_of("rows", rows, "dpo")
        items, too_long = encode_examples(examples, template, **settings)
        told = ([each.row, each.prompt, each.responses] for each in examples)
        return (items, {"too long": too_long}), print_of(tokenizer, told, template="almost", **settings)

    return make


def test_kept_items_are_those_that_were_made(tmp_path, encode):
    """Of two files, one after the other; a row that is too long is noted, and nothing is encoded again."""
    first, name = encode(max_length=19)
    second, other = encode(ROWS[:2], max_length=500)
    assert first[1] == {"too long": [3]} and len(second[0]) == 2  # of 19: a blank, 17 characters and EOS
    folders = []
    for made, printed in ((first, name), (second, other)):
        for again in (lambda made=made: made, lambda: pytest.fail("it is there")):
            folder, notes = kept(tmp_path, printed, again)
            assert notes == made[1]
        folders.append(folder)
    items, wanted = KeptItems([folders[0], None, folders[1]]), first[0] + second[0]
    assert list(items) == wanted and items[1:4] == wanted[1:4] and len(items) == len(wanted) == 5
    assert items[3][1].labels == wanted[3][1].labels
    for beyond in (5, -1):
        with pytest.raises(IndexError):
            items[beyond]
    assert isinstance(items.parts[0].ids, np.memmap)  # what processes map is in memory once
    assert kept(tmp_path, "none", lambda: ([], {"too long": [0]})) == (None, {"too long": [0]})
    assert not KeptItems([None]) and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("change", ["text", "order", "length", "tokenizer", "template", "package", "code"])
def test_what_decides_ids_decides_their_name(tmp_path, encode, tokenizer, monkeypatch, change):
    rows, settings = ROWS, {"max_length": 99}
    before = encode(rows, **settings)[1]
    assert encode(json.loads(json.dumps(rows)), **settings)[1] == before
    if change == "text":
        rows = [*ROWS[:3], ROWS[3] | {"rejected": "!"}]
    elif change == "order":
        rows = ROWS[::-1]
    elif change == "length":
        settings = {"max_length": 98}
    elif change == "tokenizer":
        tokenizer.add_tokens(["alpha"])
    elif change == "template":
        tokenizer.chat_template = "other"
    else:
        encoded.code_print.cache_clear()
        if change == "package":
            monkeypatch.setattr(encoded.importlib.metadata, "version", lambda name: "0")
        else:
            code = tmp_path / "alignment" / "templates.py"
            for path in [*encoded.CODE.split(), "assets/templates/almost.jinja"]:
                (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(encoded.REPOSITORY / path, tmp_path / path)
            code.write_text(code.read_text() + "\n")
            monkeypatch.setattr(encoded, "REPOSITORY", tmp_path)
    assert encode(rows, **settings)[1] != before
    encoded.code_print.cache_clear()


def test_a_torn_write_is_not_used(tmp_path, encode, monkeypatch):
    """The disk is full before the last file: nothing is under the name, and the next run makes it."""
    made, name = encode(max_length=500)
    saved = np.save

    def fill(path, values):
        if path.name == "ids.npy":
            raise OSError(28, "No space left on device")
        saved(path, values)

    with (
        monkeypatch.context() as patch,
        pytest.raises(UserError, match=f"encoded-{name} cannot be written: .*make room"),
    ):
        patch.setattr(np, "save", fill)
        kept(tmp_path, name, lambda: made)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".saving-killed").mkdir()  # what kill -9 leaves
    assert list(KeptItems([kept(tmp_path, name, lambda: made)[0]])) == made[0]


def test_lines_of_cut_are_kept(tmp_path, tokenizer, monkeypatch):
    """Items of one line and of two, with their kinds, and the rows that were cut; by the second process of two too,
    which tokenises nothing. What other rows have left goes."""
    (tmp_path / "encoded-other").mkdir()
    rows = [
        {"instruction": "a", "input": "", "output": "b" * 9, "judgment": "c" * 300, "row": 7},
        {"instruction": "d", "input": "e", "output": "f", "judgment": None, "row": 9},
    ]
    asked = ("cut", load_templates("alpaca", tokenizer), 300)
    plain, (found, none) = encode_rows(rows, *asked), kept_rows([rows, []], *asked, tmp_path)
    assert list(found.items) == plain.items and [len(item) for item in found.items] == [2, 1]
    assert not none.items
    assert (found.cut_prompts, found.cut_responses) == (plain.cut_prompts, plain.cut_responses) == ([0], [])
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("alignment.training.cut_lines.from_first", lambda make: [(tmp_path / folder, {})])
    monkeypatch.setattr("alignment.training.cut_lines.encode_rows", lambda *_: pytest.fail("it is not the first"))
    (folder,) = (path.name for path in tmp_path.iterdir())
    assert list(kept_rows([rows], *asked, tmp_path)[0].items) == plain.items
    assert not distributed.is_initialized()


def test_ids_stay_only_while_a_training_may_go_on(tmp_path, encode):
    """A run that fails before it begins leaves nothing; one that fails later leaves them to its next try."""
    output, (made, name) = tmp_path / "new" / "out", encode(max_length=500)
    args = Namespace(output_dir=str(output))

    def run_until(moment):
        with claim(output, args, script="train.py", folder=True) as held:
            kept(output, name, lambda: made)
            for step in ("begin_training", "finish"):
                if moment == step:
                    raise UserError("a fault")
                getattr(held, step)(**({"counts": {}} if step == "finish" else {}))

    with pytest.raises(UserError, match="a fault"):
        run_until("begin_training")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="a fault"):
        run_until("finish")
    assert [path.name for path in sorted(output.iterdir())] == ["begun.json", f"encoded-{name}"]
    run_until(None)
    assert list(output.iterdir()) == []
