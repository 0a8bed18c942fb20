"""scripts/verify.py on tiny runs of every stage, and on copies of them in which a byte was changed."""

import contextlib
import io
import json
import os
import re
import shutil
from argparse import Namespace

import pytest

import synthetic_feedback
from alignment import hashes
from alignment.command_line import UserError, run
from alignment.run_cards import claim, run_card_path
from scripts import verify
from tests.test_explain import almost_run, call, edited, janus_run, judged_run, too_long_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for make in (almost_run, janus_run, judged_run):
        make(folder)
    return folder


@pytest.fixture
def copy(runs, tmp_path):
    return shutil.copytree(runs, tmp_path / "copy")


def verified(folder):
    """(exit code, {name of a card's file: its lines}, the last line)."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit) as ended:
        run(lambda: verify.parse_args([str(folder)]), verify.main)
    parts = re.split(r"(?m)^(\S+?)\.run\.json: ", told.getvalue())
    found = {name.rpartition("/")[2]: part.splitlines() for name, part in zip(parts[1::2], parts[2::2], strict=True)}
    last = told.getvalue().splitlines()[-1]
    return ended.value.code, {name: [line for line in lines if line != last] for name, lines in found.items()}, last


def state(folder):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


def test_all_is_equal_and_nothing_is_written(runs):
    """15 cards: prompts, six configurations, comparisons and self-play; the sets and four modes before; judgments."""
    before = state(runs)
    code, found, last = verified(runs)
    assert code == 0 and last == "15 run cards: 15 equal, 0 differ" and state(runs) == before
    assert all(
        len(lines) == 1 and lines[0].startswith("equal (hashes; derived again from ") for lines in found.values()
    )
    for name, source in (
        ("comparison.json", "its inputs"),
        ("multifaceted_sft.json", "its inputs"),
        ("almost_train.json", "almost_train.json.journal.jsonl"),
        ("rubrics.json", "rubrics.json.journal.jsonl"),
    ):
        assert found[name] == [f"equal (hashes; derived again from {source})"]


def test_a_copy_is_verified_by_what_is_in_it(copy, runs):
    """Cards tell the first place's paths; what lay beside an output is looked for beside it first."""
    assert verified(copy)[0] == 0
    edited(copy / "out" / "prompts.txt", "a", "b")
    code, found, _ = verified(copy)
    assert code == 1
    differing = {name for name, lines in found.items() if len(lines) > 1}
    assert differing == {
        *(path.name for path in (runs / "out").glob("*.json") if "run" not in path.name),
        "prompts.txt",
    }


SMALL, PAIRS, SFT, JUDGED = (
    "out/small-HHH-1shot.json",
    "out/comparison.json",
    "janus/multifaceted_sft.json",
    "judged.json",
)
MADE_AGAIN = "is not what synthetic_feedback.py --mode {} makes again from"


@pytest.mark.parametrize(
    "file, old, new, output, said",
    [
        # an output
        (SMALL, "heat", "heal", SMALL, "small-HHH-1shot.json has other contents than its card tells"),
        (SMALL, "heat", "heal", SMALL, MADE_AGAIN.format("rg")),
        (PAIRS, "prompt", "Prompt", PAIRS, MADE_AGAIN.format("cs") + " its inputs: line 2 differs"),
        (JUDGED, "heat", "heal", JUDGED, "judged.json is not what annotate_judgments.py makes again from"),
        # an output that no card has the hash of
        (
            "out/self_play.jsonl",
            "heat",
            "heal",
            "out/almost_train.json",
            "self_play.jsonl is not what self_play.py makes",
        ),
        ("janus/multifaceted_dpo.json", "heat", "heal", SFT, "multifaceted_dpo.json is not what"),
        ("janus/multifaceted_bench.json", "heat", "heal", SFT, "multifaceted_bench.json is not what"),
        # an input
        (
            SMALL,
            "heat",
            "heal",
            PAIRS,
            "small-HHH-1shot.json has other contents than the card of comparison.json tells",
        ),
        ("answers.json", "Zero", "Nero", JUDGED, "answers.json has other contents than the card of judged.json tells"),
        ("janus/responses.json", "heat", "heal", SFT, "responses.json has other contents than"),
        # a journal: a reply, a key, its finish, a line
        (f"{SMALL}.journal.jsonl", "heat", "heal", SMALL, MADE_AGAIN.format("rg")),
        (f"{SMALL}.journal.jsonl", 'key": "', 'key": "x', SMALL, MADE_AGAIN.format("rg")),
        (f"{SMALL}.journal.jsonl", '"stop"', '"step"', SMALL, "the card of small-HHH-1shot.json tells other counts"),
        (f"{SMALL}.journal.jsonl", "{", "[", SMALL, "small-HHH-1shot.json.journal.jsonl, line 1 is damaged"),
        (
            "janus/rubrics.json.journal.jsonl",
            '{\\"criteria',
            '{\\"Criteria',
            "janus/rubrics.json",
            "rubrics.json is not what",
        ),
        # a card: arguments, counts, hash, all of it
        (f"{SMALL}.run.json", '"seed": 42', '"seed": 43', SMALL, MADE_AGAIN.format("rg")),
        (f"{PAIRS}.run.json", '"small-HHH-3shot,', '"small-HHH-3shot", "', PAIRS, MADE_AGAIN.format("cs")),
        (f"{PAIRS}.run.json", '"prompts": 6', '"prompts": 7', PAIRS, "the card of comparison.json tells other counts"),
        (f"{PAIRS}.run.json", '"output": "', '"output": "x', PAIRS, "comparison.json has other contents than its card"),
        (f"{PAIRS}.run.json", "{", "[", PAIRS, "comparison.json.run.json is empty or damaged"),
    ],
)
def test_a_byte_that_was_changed(copy, file, old, new, output, said):
    path = copy / file
    path.write_text(path.read_text().replace(old, new, 1))
    differences, _ = verify.verified(run_card_path(copy / output))
    assert sum(said in line for line in differences) == 1, differences


def test_a_reply_of_which_nothing_came_is_missed_too(copy):
    """Of a journal's key of a candidate that pg dropped only the card's counts know."""
    prompts = (copy / "out" / "prompts.txt").read_text().splitlines()
    journal = copy / "out" / "prompts.txt.journal.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    dropped = next(n for n, line in enumerate(lines) if json.loads(line)["text"].strip() not in prompts)
    lines[dropped] = lines[dropped].replace('"key": "', '"key": "x')
    journal.write_text("".join(lines))
    differences, note = verify.verified(run_card_path(copy / "out" / "prompts.txt"))
    assert "tells other counts" in differences[0] and note.endswith("which lacks 1 of its requests")


def test_a_reply_that_never_came_differs_from_nothing(tmp_path, monkeypatch):
    """The card counts it by its reason, a replay as not in the journal."""
    path = too_long_run(tmp_path, monkeypatch)
    assert json.loads(run_card_path(path).read_text())["counts"]["finish"] == {"stop": 2, "too long": 1}
    differences, note = verify.verified(run_card_path(path))
    assert differences == [] and note.endswith(".journal.jsonl, which lacks 1 of its requests")


def test_what_is_gone(copy):
    """Of a copy nothing is looked for where the first place was."""
    for name in ("janus/multifaceted_rm.json", "janus/rubrics.json", "out/big-HHH-1shot.json.journal.jsonl"):
        (copy / name).unlink()
    code, found, last = verified(copy)
    assert code == 1 and last == "15 run cards: 13 equal, 2 differ"
    gone = f"    input {copy / 'janus' / 'rubrics.json'} does not exist; relative paths are looked up from here"
    assert found["multifaceted_sft.json"][1] == gone and "ends early" in found["multifaceted_sft.json"][2]
    assert found["rubrics.json"][1] == f"    {copy / 'janus' / 'rubrics.json'} is gone"
    assert found["big-HHH-1shot.json"] == ["equal (hashes; not derived again, as its journal is gone)"]


def test_a_set_that_is_gone(copy):
    (copy / "janus" / "multifaceted_rm.json").unlink()
    differences, _ = verify.verified(run_card_path(copy / SFT))
    assert differences[0] == f"{copy / 'janus' / 'multifaceted_rm.json'} is gone; system_messages.py --mode ds makes it"


def made_of_a_model(folder):
    model = folder / "model"
    model.mkdir()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0\0\0")
    (model / "config.json").write_text("{}")
    output = folder / "answers.json"
    with claim(output, Namespace(output_file=output), script="generate.py", models=[model]) as held:
        held.begin()
        output.write_text("[]")
        held.finish({})
    return model


def test_models_are_hashed(tmp_path):
    model = made_of_a_model(tmp_path)
    assert verified(tmp_path)[:2] == (0, {"answers.json": ["equal (hashes)"]})
    with (model / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\1")
    code, found, _ = verified(tmp_path)
    assert (
        code == 1
        and found["answers.json"][1] == f"    model {model} has other contents than the card of answers.json tells"
    )
    shutil.rmtree(model)
    assert "is not on this machine" in verified(tmp_path)[1]["answers.json"][1]


def test_a_models_folder_that_was_moved(tmp_path, model_folder, monkeypatch):
    """Its contents are the card's, but a journal knows it by path and times: so nothing is derived, nor differs. Where
    there is none, no hub is asked for one."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "prompts.txt").write_text("Say 1.\n")
    shown = tmp_path / "HHH_prompt.txt"
    shown.write_text("Be kind.\n\n-----\n\nHuman:  Hi\n\nAssistant:  Hello\n\n-----\n")
    words = ["--mode", "rg", "--output_dir", tmp_path / "out", "--backend", "hf", "--model_name_or_path", model_folder]
    call(synthetic_feedback, *words, "--prompt_file_path", shown, "--n_shot", 1, "--max_new_tokens", 8)
    [name] = verified(tmp_path / "out")[1]
    assert verified(tmp_path / "out")[1][name] == [f"equal (hashes; derived again from {name}.journal.jsonl)"]
    os.utime(model_folder / "config.json", (0, 0))
    code, found, _ = verified(tmp_path / "out")
    assert code == 0 and found[name][0].startswith(
        "equal (hashes; not derived again: the journal knows a model's folder"
    )
    shutil.rmtree(model_folder)
    code, found, _ = verified(tmp_path / "out")
    assert code == 1 and "not derived again" in found[name][0] and "is not on this machine" in found[name][1]


def test_nothing_remembered_is_trusted(tmp_path, monkeypatch):
    """A hash that was remembered of a large file, under the times that it has, and is wrong."""
    made_of_a_model(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "REMEMBERED_FROM", 0)
    monkeypatch.setattr(hashes, "SETTLED", 0)
    hashes.sha256(tmp_path / "answers.json")
    [note] = (tmp_path / "cache").rglob("*.json")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"value": "wrong"}))
    assert hashes.sha256(tmp_path / "answers.json") == "wrong"
    assert verified(tmp_path)[0] == 0 and hashes.REMEMBERED_FROM == 0


def test_bad_input(tmp_path):
    for folder, said in ((tmp_path / "none", "is no folder"), (tmp_path, "has no run cards")):
        with pytest.raises(UserError, match=said):
            verify.main(verify.parse_args([str(folder)]))
