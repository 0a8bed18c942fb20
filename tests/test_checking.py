"""The check of what was saved: what it is asked in, where, and that nothing of the trained model is in its way."""

import gc
import json
import os
import random
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import finetune_unlikelihood
import merge
import train
from alignment.training import checking, let_memory_grow, room, saving
from alignment.training.batches import Sample

GIB = 2**30


def words(**flags):
    return [word for name, value in flags.items() for word in (f"--{name}", str(value))]


@pytest.fixture
def run(tmp_path, model_folder):
    """Runs a script on a few made-up rows; `name` is its output folder."""
    draw = random.Random(0)
    rows = [{"input": "a" * draw.randint(1, 9), "output": "b" * draw.randint(1, 9)} for _ in range(8)]
    (tmp_path / "sft.json").write_text(json.dumps(rows))
    pairs = [{"prompt": row["input"], "chosen": row["output"], "rejected": row["output"] + "!"} for row in rows]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    judged = [{"instruction": "Say.", "output": row["output"], "judgment": "No b."} for row in rows]
    (tmp_path / "judged.json").write_text(json.dumps(judged))

    def go(objective, name="out", **changes):
        output = tmp_path / name
        if objective == "merge":
            flags = dict(base_model_name_or_path=model_folder, peft_model_path=tmp_path / "cut", output_dir=output)
            merge.main(merge.parse_args(words(**flags)))
        elif objective == "cut":
            flags = dict(base_model=model_folder, data_path=tmp_path / "judged.json", output_dir=output, warmup_steps=0)
            finetune_unlikelihood.main(finetune_unlikelihood.parse_args(words(**flags, **changes)))
        else:
            data = tmp_path / ("sft.json" if objective == "sft" else "pairs.json")
            flags = dict(model_name_or_path=model_folder, data_path=data, output_dir=output, objective=objective)
            train.main(train.parse_args(words(**flags, max_steps=1, **changes)))
        return output

    return go


def weights_alive():
    gc.collect()
    return {id(each): each for each in gc.get_objects() if isinstance(each, nn.Parameter)}


@pytest.mark.parametrize("objective", ["sft", "dpo", "merge"])
def test_no_weight_is_alive_when_the_fresh_process_starts(run, monkeypatch, objective):
    """Not one more than before the run: what was saved has the whole card to itself. A merge follows CUT."""
    before, left = set(weights_alive()), []

    def ask(folder):
        left.append(len(set(weights_alive()) - before))
        return {"agrees": True}

    monkeypatch.setattr(saving, "ask_fresh_process", ask)
    if objective == "merge":
        run("cut", "cut")
    run(objective, **({"lora_r": 2} if objective == "dpo" else {}))
    assert set(left) == {0}


def test_values_are_asked_in_full_precision(monkeypatch):
    """--tf32 is off while the trained model is asked, as in the fresh process, and on again after it."""
    seen, matmul = [], torch.backends.cuda.matmul

    def reward(model, batch):
        seen.append(matmul.fp32_precision)
        return torch.zeros(len(batch["input_ids"]))

    monkeypatch.setattr(checking, "batch_rewards", reward)
    kept = matmul.fp32_precision
    try:
        matmul.fp32_precision = "tf32"
        assert checking.values(None, [Sample(0, [5, 2], 1)], 0, "reward", 1) == [0.0]
        assert seen == ["ieee"] and matmul.fp32_precision == "tf32"
    finally:
        matmul.fp32_precision = kept


def test_where_fp32_does_not_fit_all_is_asked_in_bf16(quick, run, monkeypatch, capsys):
    monkeypatch.setattr(saving, "fits", lambda weights, dtype, device: dtype != torch.float32)
    folder = run("sft", lora_r=2, bf16=True)
    verdict = json.loads(folder.with_name("out.run.json").read_text())["counts"]["check"]
    assert verdict["agrees"] and verdict["tolerance"] == checking.BF16 and "bf16" not in verdict
    assert verdict["single"] < 0.01 and verdict["padded"] < 0.01
    assert "weights in fp32 do not fit the free memory of the card" in capsys.readouterr().out
    assert json.loads((folder / "check.json").read_text())["passes"] == [list(each) for each in checking.HALF_PASSES]


def test_a_dtype_is_loaded_once(quick, run, monkeypatch):
    folder, loaded = run("sft"), []
    load = checking.load_policy
    monkeypatch.setattr(checking, "load_policy", lambda *a: loaded.append(a[1]) or load(*a))
    assert checking.verify(str(folder))["agrees"]
    assert loaded == [torch.float32, torch.bfloat16]


def test_memory_grows_unless_the_user_has_said_how(monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "max_split_size_mb:64")
    let_memory_grow()
    assert "PYTORCH_ALLOC_CONF" not in os.environ
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF")
    let_memory_grow()
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"


@pytest.fixture
def cards(monkeypatch):
    """So many GiB free on each card, of which this process could give back 10 on the first."""

    def make(*free):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda card: (free[getattr(card, "index", card)] * GIB, 80 * GIB)
        )
        monkeypatch.setattr(
            torch.cuda, "memory_reserved", lambda card: 10 * GIB if not getattr(card, "index", card) else 0
        )

    return make


def test_room_by_hand(cards):
    """10 Gi weights with a fifth to spare: 48 GiB in fp32, 24 in bf16. 30 + 10 GiB hold bf16, two such cards all."""
    weights, first = 10 * GIB, torch.device("cuda", 0)
    cards(30)
    assert not room.fits(weights, torch.float32, first) and room.fits(weights, torch.bfloat16, first)
    assert (room.place(weights, torch.float32), room.place(weights, torch.bfloat16)) == ("cpu", "cuda")
    cards(30, 30)
    assert room.place(weights, torch.float32) == "auto"
    cards()
    assert room.place(weights, torch.float32) == "cpu" and room.fits(weights, torch.float32, torch.device("cpu"))


def test_size_counts_two_in_a_byte_of_four_bits(llama):
    """Tied and plain weights once, packed ones twice."""
    packed = type("Params4bit", (nn.Parameter,), {})(torch.zeros(3, 1, dtype=torch.uint8), requires_grad=False)
    assert room.size(SimpleNamespace(parameters=lambda: [packed, nn.Parameter(torch.zeros(5))])) == 11
    assert room.size(llama) == llama.num_parameters()
