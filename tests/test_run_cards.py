"""May I write here, is it done, where does it go on: by contents, and one answer each."""

import errno
import fcntl
import json
import multiprocessing
import os
import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import save

from alignment.command_line import UserError
from alignment.pretrained import contents
from alignment.records import write_whole
from alignment.run_cards import (
    check_writable,
    checkpoint_to_resume,
    claim,
    newest_checkpoint,
    run_card_path,
    why_not_whole,
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to stand in, with an input and a model."""
    monkeypatch.chdir(tmp_path)
    Path("in.txt").write_text("abc")
    Path("model").mkdir()
    save_file({"a": torch.ones(2), "b": torch.zeros(3)}, "model/model.safetensors")
    Path("model/config.json").write_text("{}")
    return tmp_path


def arguments(**changes):
    given = {"data_path": "in.txt", "model": "model", "shots": 3, "output_file": Path("out.txt")}
    return Namespace(**{**given, **changes})


def held(args, inputs=("in.txt",), models=("model",), script="/x/script.py", folder=False):
    return claim(args.output_file, args, script=script, inputs=inputs, models=models, folder=folder)


def make(args=None, text="made", **kwargs):
    """A whole run; whether it found itself done, and what differed."""
    args = args or arguments()
    with held(args, **kwargs) as run:
        if run.is_done():
            return True
        run.begin()
        write_whole(run.output, [text])
        run.finish({"rows": 1})
    return False


def differences(args=None, **kwargs):
    with held(args or arguments(), **kwargs) as run:
        return [] if run.is_done() else run.differences()


# Is it done?


def test_a_card_says_what_made_an_output(place):
    make()
    card = json.loads(Path("out.txt.run.json").read_text())
    assert card["script"] == "script.py" and card["arguments"]["shots"] == 3 and card["counts"] == {"rows": 1}
    assert card["inputs"] == {"in.txt": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"}
    assert card["models"] == {"model": contents("model")} and {"python", "torch"} <= set(card["versions"])
    assert sorted(path.name for path in place.iterdir()) == ["in.txt", "model", "out.txt", "out.txt.run.json"]


def test_no_key_is_in_a_card(place, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame-1234")
    make(arguments(api_base="http://me:hidden77@host/v1?key=query99", notes=["sesame-1234", "plain"]))
    card = Path("out.txt.run.json").read_text()
    assert not any(secret in card for secret in ("sesame-1234", "hidden77", "query99"))
    assert json.loads(card)["arguments"]["notes"][1] == "plain"


def test_the_same_run_is_done_whatever_its_files_are_called(place):
    assert not make()
    assert make()
    Path("in.txt").rename("moved.txt")
    Path("model").rename("elsewhere")
    moved = arguments(data_path="moved.txt", model="elsewhere", output_file=place / "out.txt")
    assert make(moved, inputs=["moved.txt"], models=["elsewhere"])


def other_weights(name="b", value=1.0):
    weights = load_file("model/model.safetensors")
    weights[name] = weights[name] + value
    save_file(weights, "model/model.safetensors")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda: Path("in.txt").write_text("abd"), "in.txt has other contents"),
        (other_weights, "model has other contents"),
        (lambda: Path("model/config.json").write_text('{"a": 1}'), "model has other contents"),
        (lambda: Path("out.txt").write_text("by hand"), "out.txt was changed since"),
        (lambda: Path("out.txt").unlink(), "out.txt is gone"),
    ],
)
def test_what_changed_is_found_by_its_contents(place, change, said):
    """Same sizes, and times put back: a changed last row of a weight, which a look at first rows would miss."""
    make()
    paths = [Path("in.txt"), Path("model/model.safetensors"), Path("out.txt")]
    times = {path: path.stat().st_mtime_ns for path in paths}
    change()
    for path in filter(Path.exists, paths):
        os.utime(path, ns=(times[path], times[path]))
    assert differences() == [said]
    assert not make() and make()


def test_other_arguments_are_named_and_those_of_speed_do_not_count(place):
    make()
    assert differences(arguments(shots=5, seed=7)) == ["--shots is 5, was 3", "--seed is 7, was None"]
    assert differences(arguments(timeout=5, cache_dir="x", resume_from_checkpoint="True")) == []
    assert differences(arguments(trainer={"adam_beta1": 0.5})) == ["--adam_beta1 is 0.5, was None"]
    assert differences(script="other.py") == ["it was made by script.py"]
    assert differences(inputs=["in.txt", "model/config.json"]) == ["model/config.json has other contents"]
    assert differences(inputs=[]) == ["it was made of 1 inputs, not 0"]


@pytest.mark.parametrize("card", ["", "{", "[]", '{"arguments": 3}', "null"])
def test_a_damaged_card_is_no_card(place, card):
    make()
    Path("out.txt.run.json").write_text(card)
    assert not make() and make()


def test_a_card_of_an_earlier_version_proves_nothing(place):
    make()
    card = json.loads(Path("out.txt.run.json").read_text())
    del card["models"]
    Path("out.txt.run.json").write_text(json.dumps(card))
    assert differences() == ["its card does not say what models it was made of"]


def test_the_card_is_gone_while_work_is_done_and_stays_gone_after_a_failure(place):
    make()
    with pytest.raises(UserError), held(arguments(shots=1)) as run:
        run.begin()
        assert not run_card_path(run.output).exists()
        raise UserError("stop")
    assert not Path("out.txt.run.json").exists() and not make()


def test_pipes_are_told_apart(place):
    """Two pipes with other contents are other inputs, and what is hashed can still be read."""
    from alignment.records import read_rows

    def through_a_pipe(name, text):
        os.mkfifo(name)
        writer = threading.Thread(target=lambda: Path(name).write_text(text))
        writer.start()
        done = make(arguments(data_path=name), inputs=[name])
        rows = read_rows(name)
        writer.join()
        return done, rows

    assert through_a_pipe("one", '[{"a": 1}]') == (False, [{"a": 1}])
    assert through_a_pipe("two", '[{"a": 2}]') == (False, [{"a": 2}])
    assert through_a_pipe("three", '[{"a": 2}]') == (True, [{"a": 2}])


def test_the_base_of_an_adapter_is_read_with_it(place):
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text('{"base_model_name_or_path": "model"}')
    save_file({"lora_A": torch.ones(2)}, "adapter/adapter_model.safetensors")
    make(models=["adapter"])
    assert list(json.loads(Path("out.txt.run.json").read_text())["models"]) == ["adapter", "model"]
    other_weights()
    assert differences(models=["adapter"]) == ["model has other contents"]


def test_weights_spread_over_other_files_are_the_same_weights(place):
    whole, weights = contents("model"), load_file("model/model.safetensors")
    Path("model/model.safetensors").unlink()
    for name, weight in weights.items():
        save_file({name: weight}, f"model/model-{name}.safetensors")
    assert contents("model") == whole
    save_file({"b": weights["b"].half()}, "model/model-b.safetensors")
    assert contents("model")["weights"] != whole["weights"] and contents("model")["files"] == whole["files"]


@pytest.mark.parametrize("keep", [4, 60, -1])
def test_weights_that_are_cut_off_are_said(place, keep):
    file = Path("model/model.safetensors")
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="is no whole safetensors file|is not whole"):
        contents("model")


# May I write here?


def test_what_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="is a file"):
        check_writable(tmp_path / "file" / "below" / "it", folder=False)
    check_writable(tmp_path / "new" / "below" / "it", folder=False)
    (tmp_path / "link").symlink_to("nowhere")
    for output in ("link", "link/it"):
        with pytest.raises(UserError, match="link is a link to nowhere, which does not exist"):
            check_writable(tmp_path / output, folder=True)
    with pytest.raises(UserError, match="/dev/null is a device or a pipe, not a file"):
        check_writable(Path("/dev/null"), folder=False)
    with pytest.raises(UserError, match="is the system's own"):
        check_writable(Path("/proc/self/../it"), folder=True)
    monkeypatch.setattr(os, "access", lambda path, _: Path(path) != tmp_path)
    for output, folder in (("it", False), ("new/it", True), ("file", False)):
        with pytest.raises(UserError, match=f"{tmp_path} is not writable"):
            check_writable(tmp_path / output, folder=folder)
    assert not (tmp_path / "new").exists()


def test_a_folder_is_no_file(place):
    Path("out").mkdir()
    with pytest.raises(UserError, match="output out: out is a folder, not a file"):
        make(arguments(output_file=Path("out")))
    with pytest.raises(UserError, match="output file: file is a file, not a folder"):
        Path("file").write_text("")
        make(arguments(output_file=Path("file")), folder=True)


@pytest.mark.parametrize(
    "output", ["in.txt", "./in.txt", "link", "model", "model/config.json", "model/new.safetensors"]
)
def test_an_input_is_not_overwritten(place, output):
    Path("link").symlink_to("in.txt")
    before = {path: path.read_bytes() for path in place.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="is an input of this run|is the model that this run reads"):
        make(arguments(output_file=Path(output)), folder=output == "model")
    assert {path: path.read_bytes() for path in place.rglob("*") if path.is_file()} == before


def test_beside_a_model_something_else_may_be_written(place):
    assert not make(arguments(output_file=Path("model/alpaca_eval.json")))


def _hold(output, opened, release):
    with claim(output, Namespace(), script="s.py"):
        opened.set()
        release.wait()


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_writer_is_refused_by_name(place, killed):
    """And not after the first was killed, which the next is told."""
    output, context = place / "new" / "out.json", multiprocessing.get_context("fork")
    opened, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(output, opened, release), daemon=True)
    process.start()
    opened.wait()
    with (
        pytest.raises(UserError, match=f"is being written by process {process.pid} on .*; wait for it, or stop it"),
        claim(output, Namespace(), script="s.py"),
    ):
        pass
    process.kill() if killed else release.set()
    process.join()
    with claim(output, Namespace(), script="s.py") as run:
        assert run.was_killed is killed
    assert not list(place.glob("new/*"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_locks_is_one_line(place, monkeypatch, capsys, code):
    """As Lustre, NFS and FUSE may be mounted; and an inode may have another number each time it is asked for."""

    def flock(file, operation):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", flock)
    monkeypatch.setattr(os, "fstat", lambda _: os.stat("/"))
    assert not make()
    said = capsys.readouterr().err
    assert said == f"warning: out.txt cannot be locked ({os.strerror(code)}): let no second run write it\n"
    assert make() and not list(place.glob(".*"))


def test_only_the_first_process_holds_and_writes(place, monkeypatch):
    with held(arguments()):
        monkeypatch.setenv("RANK", "1")
        with held(arguments()) as run:
            run.begin()
            run.finish({})
        assert not Path("out.txt.run.json").exists()


def test_what_a_killed_run_left_is_cleared_away(place):
    for left in (".out.txt.12345678.tmp", ".other.txt.12345678.tmp"):
        Path(left).write_text("half")
    make()
    assert not Path(".out.txt.12345678.tmp").exists() and Path(".other.txt.12345678.tmp").exists()


# Where does a training go on?


def checkpoint(folder, steps, **changes):
    path = folder / f"checkpoint-{steps}"
    path.mkdir(parents=True)
    save_file({"a": torch.ones(9)}, path / "model.safetensors")
    torch.save({"x": torch.ones(9)}, path / "optimizer.pt")
    (path / "trainer_state.json").write_text(json.dumps({"global_step": steps}))
    return path


def cut_off(name):
    def change(path):
        file = path / name
        file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])

    return change


def gone(name):
    return lambda path: (path / name).unlink()


SHARD_FILES = ("__0_0.distcp", ".metadata")


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "trainer_state.json").unlink(),
        lambda path: (path / "trainer_state.json").write_text("{"),
        lambda path: (path / "trainer_state.json").write_text('{"global_step": 3}'),
        lambda path: (path / "model.safetensors").unlink(),
        cut_off("model.safetensors"),
        cut_off("optimizer.pt"),
        lambda path: path.rename(path.with_name("checkpoint-best")),
        lambda path: path.rename(path.with_name("checkpoint-20.tmp")),
    ],
)
def test_the_newest_whole_checkpoint_is_found(tmp_path, change):
    """100 is more than 20 though its name sorts before; unfinished and foreign ones are passed over."""
    whole, newest = checkpoint(tmp_path, 20), checkpoint(tmp_path, 100)
    (tmp_path / "checkpoint-300").write_text("a file")
    assert newest_checkpoint(tmp_path) == newest and why_not_whole(newest) is None
    change(newest)
    assert newest_checkpoint(tmp_path) == whole


@pytest.mark.parametrize("part", ["pytorch_model_fsdp_0", "optimizer_0"])
@pytest.mark.parametrize("change", [None, cut_off("__0_0.distcp"), cut_off(".metadata"), *map(gone, SHARD_FILES)])
def test_a_sharded_checkpoint_is_whole_when_all_shards_are(tmp_path, part, change):
    """Two checkpoints as FSDP's ranks write them; of the newer one a rank's file, or the list of all, is not whole."""
    older, newer = (checkpoint(tmp_path, steps) for steps in (2, 4))
    for path in (older, newer):
        (path / "model.safetensors").unlink()
        (path / "optimizer.pt").unlink()
        for name in ("pytorch_model_fsdp_0", "optimizer_0"):
            save({"a": torch.arange(9.0)}, checkpoint_id=path / name, no_dist=True)
    if change is None:
        assert newest_checkpoint(tmp_path) == newer
        return
    change(newer / part)
    assert newest_checkpoint(tmp_path) == older
    assert why_not_whole(newer).startswith(f"{part}/")


def resumed(folder, asked, **changes):
    args = arguments(output_file=folder, **changes)
    with held(args, folder=True) as run:
        return checkpoint_to_resume(run, asked)


def finish(folder, **changes):
    with held(arguments(output_file=folder, **changes), folder=True) as run:
        run.begin()
        folder.mkdir(exist_ok=True)
        run.finish({})


def test_where_training_goes_on(place):
    out = place / "out"
    assert resumed(out, None) is None and resumed(out, "True") is None  # nothing there: anew
    out.mkdir()
    (out / "history.jsonl").write_text("")
    save_file({"a": torch.ones(1)}, out / "model.safetensors")
    assert resumed(out, "False") is None  # killed before its first checkpoint, or while it moved its weights in
    first = checkpoint(out, 2)
    with pytest.raises(UserError, match="did not end; add --resume_from_checkpoint True"):
        resumed(out, None)
    assert resumed(out, "True") == first and resumed(out, str(first)) == first
    finish(out)
    with pytest.raises(UserError, match="holds another run .--shots is 4, was 3."):
        resumed(out, None, shots=4)
    with pytest.raises(UserError, match="holds another run .--shots is 4, was 3."):
        resumed(out, "True", shots=4)
    assert resumed(out, str(first), shots=4) == first  # named, as for more epochs
    with pytest.raises(UserError, match="nowhere is no checkpoint: it has no trainer_state.json"):
        resumed(out, "nowhere")


def test_checkpoints_of_an_unfinished_run_with_other_flags_are_not_gone_on_from(place):
    out = place / "out"
    with pytest.raises(KeyboardInterrupt), held(arguments(output_file=out), folder=True) as run:
        run.begin_training()
        raise KeyboardInterrupt
    first = checkpoint(out, 2)
    assert resumed(out, "True") == first
    with pytest.raises(UserError, match="holds another run .--shots is 4, was 3."):
        resumed(out, "True", shots=4)
    other_weights()
    with pytest.raises(UserError, match="holds another run .model has other contents."):
        resumed(out, "True")
    assert resumed(out, str(first)) == first
    finish(out)
    assert not (out / "begun.json").exists()


def test_a_model_that_no_run_left_is_not_overwritten(place):
    out = place / "other"
    out.mkdir()
    save_file({"a": torch.ones(1)}, out / "model.safetensors")
    with pytest.raises(UserError, match="holds a model .model.safetensors. that no run left"):
        resumed(out, None)
    with pytest.raises(UserError, match="that no run left"):
        resumed(out, "True")
