"""Checkpoints beside the steps: in one process that shards over itself, with a disk that waits, fills or is killed."""

import errno
import json
import os
import re
import threading
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed
import torch.distributed.checkpoint as dcp
from torch.distributed.fsdp import fully_shard
from transformers import Trainer

from alignment.command_line import UserError
from alignment.run_cards import newest_checkpoint, why_not_whole
from alignment.training.checkpoints import (
    MODEL,
    OPTIMISER,
    STEP,
    Saving,
    check_checkpoint,
    keep_step,
    load_optimiser,
    load_weights,
)
from alignment.training.trainers import AlignmentTrainer


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory):
    """One process, which is all of its world."""
    store = tmp_path_factory.mktemp("store") / "store"
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.fixture
def trainer(tmp_path, llama, tokenizer):
    """What `Saving` reads of one, after a step of Adam."""
    fully_shard(llama)
    optimiser = torch.optim.AdamW(llama.parameters(), lr=1e-2)
    ids = torch.arange(12).view(1, -1)
    llama(input_ids=ids, labels=ids).loss.backward()
    optimiser.step()
    args = SimpleNamespace(should_save=True, world_size=1, save_total_limit=1, bf16=False, fp16=False)
    return SimpleNamespace(
        model=llama,
        optimizer=optimiser,
        args=args,
        processing_class=tokenizer,
        rows_per_step=16,
        state=SimpleNamespace(best_model_checkpoint=None),
    )


def begin(saving, place, step):
    """A checkpoint as AlignmentTrainer has it made, up to where its shards are on their way."""
    saving.begin(place)
    saving.shards(place)
    (place / "trainer_state.json").write_text(json.dumps({"global_step": step}))


def whole(module):
    return {name: weight.full_tensor().clone() for name, weight in module.state_dict().items()}


def zero(model, optimiser):
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
            for value in optimiser.state[weight].values():
                value.zero_()


@pytest.fixture
def held(monkeypatch):
    """An event that the writing of shards waits for; what it raises, if anything, is in its `fault`."""
    written, free = dcp.FileSystemWriter.write_data, threading.Event()
    free.fault = None

    def write(self, plan, planner):
        free.wait()
        if free.fault:
            raise free.fault
        return written(self, plan, planner)

    monkeypatch.setattr(dcp.FileSystemWriter, "write_data", write)
    yield free
    free.set()


def test_training_goes_on_while_shards_are_written(tmp_path, trainer, held):
    """Weights and moments change before they are on the disk, and those of the checkpoint's step are there in the end.
    Meanwhile it counts as none, and the one before stays although --save_total_limit is 1; then it goes."""
    saving, model, optimiser = Saving(trainer), trainer.model, trainer.optimizer
    first, second = (tmp_path / f"checkpoint-{step}" for step in (1, 2))
    held.set()
    begin(saving, first, 1)
    saving.finish()
    held.clear()
    wanted = whole(model), {w: {k: v.full_tensor() if k != "step" else v.clone() for k, v in s.items()}
                            for w, s in optimiser.state.items()}  # fmt: skip
    begin(saving, second, 2)
    zero(model, optimiser)
    assert "missing or damaged" in why_not_whole(second) and newest_checkpoint(tmp_path) == first
    held.set()
    saving.finish()
    assert newest_checkpoint(tmp_path) == second and not first.exists()
    load_weights(model, second)
    load_optimiser(model, optimiser, second)
    assert all(torch.equal(tensor, wanted[0][name]) for name, tensor in whole(model).items())
    for weight, moments in wanted[1].items():
        found = optimiser.state[weight]
        assert torch.equal(found["exp_avg"].full_tensor(), moments["exp_avg"]) and found["step"] == moments["step"] == 1
    assert {path.name for path in second.iterdir()} >= {"config.json", "tokenizer.json", STEP, MODEL, OPTIMISER}


@pytest.mark.parametrize("is_async", [True, False])
def test_transformers_takes_no_checkpoint_away_before_the_next_is_whole(tmp_path, monkeypatch, is_async):
    """It would while that is on its way. The one before is waited for; without --async_save this one too."""
    trainer, called = AlignmentTrainer.__new__(AlignmentTrainer), []
    trainer.args = SimpleNamespace(output_dir=str(tmp_path), save_total_limit=1)
    trainer.state, trainer.async_save = SimpleNamespace(global_step=3), is_async
    trainer.saving = SimpleNamespace(
        begin=lambda place: called.append(place.name), finish=lambda: called.append("finish")
    )
    monkeypatch.setattr(AlignmentTrainer, "saves_shards", True)
    monkeypatch.setattr(Trainer, "_save_checkpoint", lambda self, *_: called.append(self.args.save_total_limit))
    trainer._save_checkpoint(None, None)
    assert called == ["finish", "checkpoint-3", None, *(() if is_async else ("finish",))]
    assert trainer.args.save_total_limit == 1


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, trainer, held):
    saving = Saving(trainer)
    held.set()
    begin(saving, tmp_path / "checkpoint-1", 1)
    saving.finish()
    held.fault = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    begin(saving, tmp_path / "checkpoint-2", 2)
    with pytest.raises(UserError, match="checkpoint-2 cannot be written: No space left on device; make room"):
        saving.finish()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert newest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"


def test_what_is_left_of_another_run_is_not_taken_for_a_whole_one(tmp_path, trainer, held):
    """A run that goes on from an earlier step comes to a checkpoint that is there already, and dies in it."""
    place, saving = tmp_path / "checkpoint-1", Saving(trainer)
    held.set()
    begin(saving, place, 1)
    saving.finish()
    held.clear()
    begin(saving, place, 1)
    assert why_not_whole(place)
    held.set()
    saving.finish()
    assert why_not_whole(place) is None


def test_shards_of_another_model_are_refused(tmp_path, trainer):
    saving = Saving(trainer)
    begin(saving, tmp_path / "checkpoint-1", 1)
    saving.finish()
    with pytest.raises(UserError, match="checkpoint-1 does not fit this model: ") as error:
        load_weights(torch.nn.Linear(2, 2), tmp_path / "checkpoint-1")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("each", "accumulation", "world", "found", "said"),
    [
        (8, 2, 1, 2, None),  # 16 rows, as before
        (8, 1, 1, 2, "a step of .* has 16 rows, not 8 -> --gradient_accumulation_steps 2 on 1 processes"),
        (2, 2, 2, 4, "16 rows, not 8 -> --gradient_accumulation_steps 4 on 2"),
        (4, 2, 3, 2, "16 rows, not 24 -> --gradient_accumulation_steps 2 on 3"),  # 16 / 12, rounded up
        (8, 4, 4, 1, "16 rows, not 128 -> --gradient_accumulation_steps 1 on 4"),
    ],
)
def test_a_step_keeps_its_rows(tmp_path, capsys, each, accumulation, world, found, said):
    (tmp_path / STEP).write_text(json.dumps({"rows": 16, "processes": 2}))
    args = SimpleNamespace(per_device_train_batch_size=each, gradient_accumulation_steps=accumulation, world_size=world)
    assert keep_step(args, tmp_path) == 16 and args.gradient_accumulation_steps == found
    printed = capsys.readouterr().out
    assert not printed if said is None else re.search(said, printed)
    (tmp_path / STEP).unlink()  # a checkpoint of before there was one
    assert keep_step(args, tmp_path) == each * found * world


@pytest.mark.parametrize(
    ("under_fsdp", "name", "is_refused"),
    [
        (True, "pytorch_model_fsdp_0", False),
        (False, "model.safetensors", False),
        (False, "pytorch_model_fsdp_0", False),
        (True, "model.safetensors", True),
        (True, "pytorch_model_fsdp.bin", True),  # as earlier versions wrote it
    ],
)
def test_a_checkpoint_of_the_other_kind(tmp_path, under_fsdp, name, is_refused):
    (tmp_path / name).write_text("") if "." in name else (tmp_path / name).mkdir()
    trainer = SimpleNamespace(is_fsdp_enabled=under_fsdp)
    if not is_refused:
        return check_checkpoint(trainer, tmp_path)
    with pytest.raises(UserError, match="is not sharded: go on as it was made"):
        check_checkpoint(trainer, tmp_path)
