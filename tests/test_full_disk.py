"""A disk that is full while a run writes: one line that says where, exit code 2, nothing half-written under a final
name, and with room again the same command goes on. A limit on the size of files stands for the disk."""

import json
import resource
from contextlib import contextmanager

import pytest

import generate
import train
import train_rl
from alignment.command_line import UserError, run
from alignment.journal import Journal
from alignment.outputs import locked, writing
from alignment.records import write_whole


@contextmanager
def room(size):
    """No file grows beyond so many bytes."""
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, kept[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)


@pytest.fixture
def place(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"instruction": f"Say {number}.", "input": "", "output": f"It is {number}."} for number in range(4)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "prompts.txt").write_text("What is 1?\nWhat is 2?\n")
    (tmp_path / "rewards.py").write_text("def short(rows, responses):\n    return [-len(each) for each in responses]\n")
    return tmp_path


def call(script, words, size=None):
    """The exit code of a script that may write files of `size` bytes."""
    with pytest.raises(SystemExit) as exit, room(resource.RLIM_INFINITY if size is None else size):
        run(lambda: script.parse_args(words.split()), script.main)
    return exit.value.code


def one_line(capsys, *said):
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(each in error for each in (*said, "make room, and the same command goes on"))


def test_what_writes_says_where(tmp_path):
    def saved():
        import torch

        torch.save(torch.zeros(999), tmp_path / "d.pt")

    def weights():
        import torch
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(999)}, tmp_path / "e.safetensors")

    with room(9), Journal(tmp_path / "a") as journal, pytest.raises(UserError, match=r"a.journal.jsonl .* make room"):
        journal.add("key", "text", "stop")
    with room(9), pytest.raises(UserError, match="b cannot be written: File too large; make room"):
        write_whole(tmp_path / "b", ["x" * 99])
    with room(0), locked(tmp_path / "c") as was_killed:
        assert not was_killed and (tmp_path / ".c.lock").exists()  # held, if without its holder's name
    for write in (saved, weights):
        with room(9), pytest.raises(UserError, match="z cannot be written"), writing(tmp_path / "z"):
            write()
    with pytest.raises(RuntimeError, match="other"), writing(tmp_path / "z"):
        raise RuntimeError("other")
    assert not (tmp_path / "b").exists() and not list(tmp_path.glob(".*"))


GENERATE = "--backend simulated --model_name_or_path w --data_path rows.json --output_file out.json --n 2"


@pytest.mark.parametrize("size", [0, 1200, 2500])
def test_generate_goes_on_from_its_journal(place, size, capsys):
    """Sizes at which the journal, the pools, the curve's picture and the output do not fit."""
    words = f"{GENERATE} --temperature 1 --reward_model simulated"
    assert call(generate, words, size) == 2
    one_line(capsys, "generate.py: error: out.")
    held = {path.name: path.read_text() for path in place.glob("out*.json")}
    assert all(json.loads(text) for text in held.values()) and not list(place.glob(".out*"))
    assert not (place / "out.json.run.json").exists() and not (place / "out.best_of_n.png").exists()
    assert call(generate, words) == 0
    assert len(json.loads((place / "out.json").read_text())) == 4


TRAIN = "--model_name_or_path tiny --data_path rows.json --output_dir out --per_device_train_batch_size 2"


@pytest.mark.parametrize(("size", "said"), [(50_000, "out/checkpoint-1"), (200_000, "out/checkpoint-1")])
def test_train_goes_on_from_its_checkpoints(place, quick, size, said, capsys):
    """Sizes at which the weights and the optimiser's state do not fit."""
    words = f"{TRAIN} --num_train_epochs 1 --save_strategy steps --save_steps 1 --resume_from_checkpoint True"
    assert call(train, words, size) == 2
    one_line(capsys, f"train.py: error: {said} cannot be written")
    assert not list((place / "out").glob("checkpoint-*")) and not (place / "out.run.json").exists()
    assert call(train, words) == 0 and (place / "out.run.json").exists()


def test_train_leaves_no_half_of_a_model(place, quick, capsys):
    assert call(train, f"{TRAIN} --max_steps 1", 50_000) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "out cannot be written" in error
    assert not list((place / "out").glob("*.safetensors")) and not list((place / "out").glob(".saving-*"))
    assert call(train, f"{TRAIN} --max_steps 1") == 0


@pytest.mark.parametrize(("size", "said"), [(1000, "out/"), (50_000, "out cannot")])
def test_train_rl_goes_on(place, quick, size, said, capsys):
    """Sizes at which the page or the rollouts, and a checkpoint, do not fit."""
    words = "--model_name_or_path tiny --data_path prompts.txt --reward rewards.py:short --output_dir out --max_steps 1"
    words += " --algorithm grpo --num_generations 2 --rollout_batch_size 4 --max_new_tokens 2 --save_steps 1"
    assert call(train_rl, words, size) == 2
    one_line(capsys, f"train_rl.py: error: {said}")
    assert not list((place / "out").glob("checkpoint-*"))
    assert call(train_rl, words) == 0
