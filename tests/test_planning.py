"""--plan: what it counts, what it takes for what it cannot know, and that nothing is left or changed by it."""

import hashlib
import json
import re
from argparse import Namespace

import pytest

import finetune_unlikelihood
import self_play
import synthetic_feedback
import train
from alignment import planning
from alignment.command_line import REPOSITORY, UserError, run
from alignment.engines.rehearsal import shared, timed
from alignment.footprint import Shape, Training
from alignment.journal import Journal

ASSETS = REPOSITORY / "assets"
SIMULATED = ["--backend", "simulated", "--model_name_or_path", "writer"]
GIB = 2**30


def snapshot(folder):
    return {
        str(path): (path.lstat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in sorted(folder.rglob("*"))
    }


def call(script, *words):
    """Exit code of a script under these words."""
    with pytest.raises(SystemExit) as ended:
        run(lambda: script.parse_args([str(word) for word in words]), script.main)
    assert Journal.plan is None
    return ended.value.code


def rg_words(folder, *more, engine=SIMULATED):
    demonstrations = [ASSETS / "HHH_prompt.txt", ASSETS / "Faithful_prompt.txt"]
    return [
        "--mode",
        "rg",
        "--output_dir",
        folder,
        "--prompt_file_path",
        *demonstrations,
        "--n_shot",
        1,
        *engine,
        *more,
    ]


@pytest.fixture
def folder(tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    (place / "prompts.txt").write_text("".join(f"What about number {i}?\n" for i in range(3)))
    return place


def line(said, starts):
    """The number at the end of the line of a plan that starts so."""
    found = [each for each in said.splitlines() if each.startswith(starts)]
    assert len(found) == 1, said
    return float(found[0].split()[-1].replace(",", ""))


# Stages that ask


def test_requests_are_the_stage_s_own_and_nothing_is_touched(folder, tmp_path, capsys):
    """3 prompts under 2 demonstrations: 6 requests, of at most 384 and 768 tokens, 3 · (384 + 768) = 3,456."""
    before = snapshot(tmp_path)
    assert call(synthetic_feedback, *rg_words(folder, "--plan")) == 0
    said = capsys.readouterr().out
    assert line(said, "requests (6 in all, 0 in the journal)") == 6
    assert line(said, "tokens written, at most") == 3456
    assert 0 < line(said, "tokens written, expected (as 3 of a probe)") < 3456
    assert snapshot(tmp_path) == before


def test_what_is_in_the_journal_is_apart_and_what_is_done_is_said(folder, tmp_path, capsys):
    """2 of 3 prompts are answered in each configuration; then all."""
    call(synthetic_feedback, *rg_words(folder, "--limit", 2))
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert call(synthetic_feedback, *rg_words(folder, "--plan")) == 0
    said = capsys.readouterr().out
    assert line(said, "requests (6 in all, 4 in the journal)") == 2
    assert snapshot(tmp_path) == before
    call(synthetic_feedback, *rg_words(folder))
    before = snapshot(tmp_path)
    capsys.readouterr()
    assert call(synthetic_feedback, *rg_words(folder, "--plan")) == 0
    said = capsys.readouterr().out
    assert said.count("nothing to do") == 2 and str(folder) in said and "plan-" not in said
    assert snapshot(tmp_path) == before


def test_a_mistake_is_the_stage_s_own_line(tmp_path, capsys):
    assert call(synthetic_feedback, *rg_words(tmp_path / "none", "--plan")) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path / 'none'}/prompts.txt does not exist" in said and said.count("\n") == 1
    assert call(synthetic_feedback, "--mode", "cs", "--output_dir", tmp_path, "--plan") == 2
    assert "--mode cs asks no model" in capsys.readouterr().err


def test_pg_is_planned_at_the_rate_of_its_probe(tmp_path, capsys):
    """8 different queries stand for all candidates. Each is a duplicate when it comes again, and would be dropped: then
    1,000 candidates and more would be planned."""
    words = ["--mode", "pg", "--prompt_file_path", ASSETS / "seed_prompts.txt", "--num_generation", 60, *SIMULATED]
    assert call(synthetic_feedback, *words, "--output_dir", tmp_path / "pg", "--plan") == 0
    assert 60 <= line(capsys.readouterr().out, "requests (") <= 200
    assert list(tmp_path.iterdir()) == []


def test_rounds_that_follow_from_replies(folder, tmp_path, capsys):
    """Self-play: 3 prompts, 4 candidates each in the first of 2 turns is 12; then at most 3 users and 12 answers. Their
    rewards are drawn, and as many are counted as there are candidates at most."""
    words = ["--output_dir", folder, "--prompt_file_path", ASSETS / "HHH_prompt.txt", "--reward_model", "simulated"]
    assert call(self_play, *words, *SIMULATED, "--plan") == 0
    said = capsys.readouterr().out
    assert 12 < line(said, "requests (") <= 27 and 0 < line(said, "responses to be scored") <= 24
    assert line(said, "  writer, replies of at most 64 tokens") <= 3
    assert [path.name for path in folder.iterdir()] == ["prompts.txt"]


def test_a_real_engine_is_timed_and_by_a_data_sheet_it_is_not_loaded(folder, model_folder, tmp_path, capsys):
    """A toy Llama of 2 layers, 2 KV heads of 8 and 4 bytes: 2 · 2 · 2 · 8 · 4 = 256 bytes of cache a token."""
    config = json.loads((model_folder / "config.json").read_text()) | {"max_position_embeddings": 8192}
    (model_folder / "config.json").write_text(json.dumps(config))
    engine = ["--backend", "hf", "--model_name_or_path", model_folder, "--max_new_tokens", 4]
    assert call(synthetic_feedback, *rg_words(folder, "--plan", engine=engine)) == 0
    said = capsys.readouterr().out
    assert line(said, "tokens written, at most") == 24 and line(said, "hours (here)") > 0
    assert line(said, "memory, GiB (the probe's 3 rows") > 0.1
    assert Shape.of(str(model_folder)).cache_bytes(4) == 256
    (model_folder / "model.safetensors").unlink()
    Shape.of.__func__.cache_clear()
    (tmp_path / "prices.json").write_text('{"H100": 3}')
    more = ["--plan", "--hardware", "8xH100", "--prices", tmp_path / "prices.json"]
    assert call(synthetic_feedback, *rg_words(folder, *more, engine=engine)) == 0
    said = capsys.readouterr().out
    assert "(8xH100, by its data sheet)" in said and "tokens written, expected" not in said
    cost, hours = (line(said, f"cost, $ ({8} x 3 an hour)"), line(said, "hours ("))
    assert cost == pytest.approx(24 * hours, rel=0.01)
    sheet = dict(tflops=1, gb=1e-6, tb_per_second=1, utilisation=1, read=1)
    (tmp_path / "small.json").write_text(json.dumps({"small": sheet}))
    assert (
        call(
            synthetic_feedback,
            *rg_words(folder, "--plan", "--hardware", f"{tmp_path / 'small.json'}:small", engine=engine),
        )
        == 2
    )
    assert "do not fit 1 x small; give --n_gpu 2" in capsys.readouterr().err


def test_what_a_server_takes_is_paid_by_its_tokens(folder, tmp_path, capsys):
    """Nobody is asked: replies are paid at their bound, 3,456 tokens at $4 a million, and prompts at $1."""
    (tmp_path / "prices.json").write_text('{"gpt": {"input": 1, "output": 4}}')
    engine = ["--backend", "openai", "--api_base", "http://127.0.0.1:9/v1", "--model_name_or_path", "gpt"]
    more = ["--plan", "--hardware", "H100", "--prices", tmp_path / "prices.json"]
    assert call(synthetic_feedback, *rg_words(folder, *more, engine=engine)) == 0
    said = capsys.readouterr().out
    assert "unknown" in said and "accelerators" not in said
    read = line(said, "tokens read (at 4 characters a token; all counted)")
    assert line(said, "cost, $ (of what is served, by its tokens)") == pytest.approx(
        1e-6 * read + 4e-6 * 3456, rel=0.01
    )
    engine[-1] = "other"
    assert call(synthetic_feedback, *rg_words(folder, *more, engine=engine)) == 2
    assert "have no price of other, input and output, but of gpt" in capsys.readouterr().err


def test_a_stage_sees_what_is_in_its_place_and_writes_elsewhere(tmp_path):
    """All but what a training appends to: a link to that would be written through."""
    (tmp_path / "out").mkdir()
    for name in ("out.run.json", "out/rows.json", "out/history.jsonl", "other.json"):
        (tmp_path / name).write_text(name)
    (tmp_path / "plan").mkdir()
    moved, back = planning.moved_outputs(Namespace(output_dir=tmp_path / "out", seed=1), tmp_path / "plan")
    assert moved.output_dir.is_relative_to(tmp_path / "plan") and moved.seed == 1
    assert [path.name for path in moved.output_dir.iterdir()] == ["rows.json"]
    assert moved.output_dir.with_name("out.run.json").read_text() == "out.run.json"
    assert not moved.output_dir.with_name("other.json").exists()
    assert back(f"{moved.output_dir}/rows.json is damaged") == f"{tmp_path / 'out'}/rows.json is damaged"


# Training


@pytest.mark.parametrize("hardware", ["here", "8xH100"])
def test_a_training_is_planned(tmp_path, model_folder, capsys, hardware):
    """10 rows in steps of 2 · 2 · ranks: 3 an epoch on one rank, 1 on eight; 2 epochs. Tokens: the trainer's."""
    rows = [{"input": f"a{number}", "output": "b" * number} for number in range(10)]
    (tmp_path / "rows.json").write_text(json.dumps(rows[1:] + [{"input": "x", "output": "y"}]))
    words = ["--model_name_or_path", model_folder, "--data_path", tmp_path / "rows.json", "--num_train_epochs", 2]
    words += ["--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2, "--output_dir", tmp_path / "out"]
    before = snapshot(tmp_path)
    assert call(train, *words, "--plan", "--hardware", hardware) == 0
    said = capsys.readouterr().out
    assert line(said, "rows") == 10 and line(said, "optimiser steps (2 epochs, ") == (6 if hardware == "here" else 2)
    assert line(said, "hours (") > 0 and "memory" in said
    assert snapshot(tmp_path) == before
    # `\n\nHuman: `, the input, `\n\nAssistant: `, less the blank that the reply opens with, the reply and its end
    counted = sum(
        9 + len(each["input"]) + 12 + 1 + len(each["output"]) + 1
        for each in json.loads((tmp_path / "rows.json").read_text())
    )
    assert line(said, "tokens an epoch (all counted)") == counted


def test_cut_is_planned(tmp_path, model_folder, capsys):
    row = {"instruction": "Say 1.", "input": "", "output": "Two.", "judgment": "It must be 1.", "id": 0}
    (tmp_path / "rows.json").write_text(json.dumps([row, row | {"judgment": None}] * 4))
    words = ["--base_model", model_folder, "--data_path", tmp_path / "rows.json", "--output_dir", tmp_path / "out"]
    before = snapshot(tmp_path)
    assert call(finetune_unlikelihood, *words, "--plan", "--batch_size", 4) == 0
    assert line(capsys.readouterr().out, "optimiser steps (1 epochs, 4 rows a step)") == 2
    assert snapshot(tmp_path) == before


# The model of time and memory

MLP = [
    (f"layers.{n}.{name}", *size)
    for n in range(32)
    for name, size in (("gate_proj", (4096, 11_008)), ("up_proj", (4096, 11_008)), ("down_proj", (11_008, 4096)))
]
LLAMA_7B = Shape(6_738_415_616, 32_000 * 4096, 32, 4096, 11_008, 32, 32, 128, 32_000, 4096, 2, tuple(MLP))  # fmt: skip


def test_memory_of_the_runs_that_were_measured_on_a_gpu():
    """README, On a GPU: SFT without an optimiser on 4 rows of 1,024 tokens, and CUT's passes over 2, 4 and 8 lines of
    768 under LoRA with dropout, in bf16."""
    sft = Training(LLAMA_7B, tokens=4 * 1024, kept=2, computed=2, optimiser="sgd")
    assert sum(sft.peak().values()) / GIB == pytest.approx(37.2, rel=0.05)
    lora = {"lora_r": 16, "lora_targets": ("gate_proj", "up_proj", "down_proj"), "lora_dropout": 0.05}
    for rows, measured in ((2, 23.7), (4, 34.3), (8, 55.0)):
        cut = Training(LLAMA_7B, tokens=rows * 768, kept=2, computed=2, **lora)
        assert sum(cut.peak().values()) / GIB == pytest.approx(measured, rel=0.05)


def test_what_shards_is_divided_and_what_does_not_is_not():
    """8 ranks: an eighth of fp32 weights and Adam's state; of bf16 copies two layers of 32, 2 · 2 · 6.74e9 / 32."""
    alone, shared_by_8 = (
        Training(LLAMA_7B, tokens=1024, computed=2, ranks=8, is_sharded=each).peak() for each in (False, True)
    )
    assert alone["optimiser"] == 8 * 6_738_415_616 == 8 * shared_by_8["optimiser"]
    assert alone["weights"] == (4 + 2) * 6_738_415_616
    assert shared_by_8["weights"] == pytest.approx((4 / 8 + 2 * 2 / 32) * 6_738_415_616)
    checkpointed = Training(LLAMA_7B, tokens=1024, computed=2, is_checkpointed=True, accumulates=True).peak()
    plain = Training(LLAMA_7B, tokens=1024, computed=2, accumulates=True).peak()
    assert checkpointed["gradients, activations"] < plain["gradients, activations"]


def test_the_four_numbers_of_a_probe_are_found_again():
    """Fixed 2, a request 0.5, a step 0.1 and 0.01 for each row in it. One request: 2.5, and 0.11 a step. Three: 3.5 for
    their first tokens; replies of 5, 20 and 60 tokens take 59 steps more, with 82 tokens in them."""
    found = timed(2.5, 0.11, 3.5, 3.5 + 59 * 0.1 + 82 * 0.01, 3, [5, 20, 60])
    assert found[:4] == pytest.approx((2, 0.5, 0.1, 0.01))
    assert timed(2.5, 0.11, 2.5, 3.6, 1, [11])[:4] == pytest.approx((0, 2.5, 0.11, 0))  # one row tells no more
    assert min(timed(2.5, 0.11, 3.5, 3.4, 3, [5, 5, 5])) >= 0
    assert shared([[1, 2, 3], [1, 2, 4], [1, 2]]) == 2 and shared([[1, 2]]) == 2


def test_hardware_and_prices(tmp_path):
    found = planning.hardware_from("64xH100")
    assert (found.name, found.count, found.gb) == ("H100", 64, 80) and planning.hardware_from("here") is None
    for named, said in (
        ("H10", "did you mean 'H100'"),
        ("0xH100", "has A100, H100, H200"),
        ("x.json:H100", "x.json does not"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            planning.hardware_from(named)
    (tmp_path / "sheet.json").write_text(
        '{"slow": {"tflops": -1, "gb": 1, "tb_per_second": 1, "utilisation": 1, "read": 1}}'
    )
    with pytest.raises(UserError, match="slow needs a number above 0 for each of tflops"):
        planning.hardware_from(f"{tmp_path / 'sheet.json'}:slow")
    (tmp_path / "prices.json").write_text(
        '{"H100": 2.5, "free": 0, "gpt": {"input": 1, "output": 4}, "bad": {"input": 1}}'
    )
    prices = planning.Prices.read(str(tmp_path / "prices.json"))
    assert prices.of_hour("H100") == 2.5 and prices.of_hour("free") == 0 and prices.of_tokens("gpt") == (1e-6, 4e-6)
    for ask, name in (
        (prices.of_hour, "A100"),
        (prices.of_tokens, "H100"),
        (prices.of_tokens, "bad"),
        (prices.of_tokens, "new"),
    ):
        with pytest.raises(UserError, match=f"have no price of {name}"):
            ask(name)
