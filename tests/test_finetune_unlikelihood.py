"""finetune_unlikelihood.py on a tiny Llama: its step against the equations, whole small runs, and every wrong input."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import finetune_unlikelihood as script
import merge
from alignment.adapters import check_base, quantisation
from alignment.command_line import UserError
from alignment.judging.judgments import BARE, controlled, downsampled
from alignment.pretrained import contents
from alignment.training import cut_lines
from alignment.training.batches import epoch_batches
from alignment.training.cut_lines import ALIGN_N, ALIGN_P, MISALIGN, collate_lines, encode_rows, load_templates
from alignment.training.cut_trainer import Loss, UnlikelihoodTrainer, loss_step, readable
from alignment.training.logps import speak_logps

pytestmark = pytest.mark.usefixtures("quick")


ROWS = [
    {
        "id": n,
        "instruction": f"Say {n}.",
        "input": "",
        "output": f"It is {n}{'!' * n}",
        "judgment": f"Say {n} alone." if n % 3 else None,
    }
    for n in range(10)
]
PAD = 3
CUT = Loss(method="cut", threshold=1.05, alpha=0.5, gamma=1.0, floor=0.0, legacy=False, detect_apart=False)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def words(model_folder, data, output, *more):
    return [
        "--base_model",
        model_folder,
        "--data_path",
        data,
        "--output_dir",
        output,
        "--lora_r",
        4,
        "--cutoff_len",
        400,
        "--batch_size",
        4,
        "--warmup_steps",
        0,
        *more,
    ]


def finetune(*arguments):
    script.main(script.parse_args([str(word) for word in words(*arguments)]))


def history(output):
    lines = map(json.loads, (output / "history.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def encode(tokenizer, rows=ROWS, method="cut"):
    return encode_rows(rows, method, load_templates("alpaca", tokenizer), 400)


@pytest.fixture
def sharp(llama):
    """A random model whose probabilities spread, so that some tokens are blamed and some are not."""
    llama.lm_head.weight.data.mul_(40)
    return speak_logps(llama)


def totals_of(batches):
    counted = [UnlikelihoodTrainer.counts(None, batch) for batch in batches]
    return {name: sum(each[name] for each in counted) for name in counted[0]}


# The step


def row_logps(model, line):
    """log p of one line's response from plain logits."""
    logits = model(input_ids=torch.tensor([line.ids])).logits[0, line.prompt_length - 1 : -1]
    return logits.log_softmax(-1).gather(1, torch.tensor(line.ids[line.prompt_length :])[:, None])[:, 0]


def test_step_is_the_equations_over_the_whole_batch(tokenizer, sharp):
    """Eqs. 5 to 7 written out row by row over plain logits, N counting each row's tokens once."""
    items = encode(tokenizer).items
    total, tokens = 0.0, 0
    for item in items:
        logps = {line.kind: row_logps(sharp, line) for line in item}
        tokens += len(next(iter(logps.values())))
        if ALIGN_P in logps:
            total -= logps[ALIGN_P].sum()
            continue
        plain, seen = logps[MISALIGN], logps[ALIGN_N].detach()
        blamed = seen.exp() > 1.05 * plain.exp()
        total -= logps[ALIGN_N].sum() + plain[~blamed].sum()
        total -= (0.5 * seen.exp() * (1 - plain.exp()).log())[blamed].sum()
    batch = collate_lines(items, PAD)
    loss, sums = loss_step(sharp, batch, totals_of([batch]), CUT)
    assert batch["num_tokens"].tolist() == [tokens, 0]
    assert 0.1 < readable({name: float(value) for name, value in sums.items()})["blamed_share"] < 0.9
    torch.testing.assert_close(loss, total / tokens, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("method", ["mle", "hindsight", "forward_prediction"])
def test_baselines_are_their_equations(tokenizer, sharp, method):
    items = encode(tokenizer, method=method).items
    of_judgment = [line for item in items for line in item if line.kind == cut_lines.JUDGMENT]
    of_response = [line for item in items for line in item if line.kind != cut_lines.JUDGMENT]
    wanted = 0.0
    for lines in filter(None, (of_response, of_judgment)):
        logps = torch.cat([row_logps(sharp, line) for line in lines])
        wanted -= logps.sum() / len(logps)
    batch = collate_lines(items, PAD)
    loss, _ = loss_step(sharp, batch, totals_of([batch]), CUT.__class__(**{**CUT.__dict__, "method": method}))
    torch.testing.assert_close(loss, wanted, atol=1e-4, rtol=1e-4)
    assert len(items) == (4 if method == "mle" else 10)


@pytest.mark.parametrize(("accumulation", "world"), [(1, 1), (4, 1), (2, 2), (3, 4)])
def test_loss_and_gradient_do_not_depend_on_micro_batches_or_ranks(tokenizer, sharp, accumulation, world):
    """C2, C3, C17: the sum of the shares is one loss, fillers included (12 micro-batches for 10 rows)."""
    encoded = encode(tokenizer)

    def gradient(batches):
        sharp.zero_grad()
        totals = totals_of(batches)
        shares = [loss_step(sharp, batch, totals, CUT)[0] for batch in batches]
        sum(shares).backward()
        return sum(shares).detach(), sharp.model.layers[0].mlp.up_proj.weight.grad.clone()

    parts = []
    for rank in range(world):
        for numbers in epoch_batches(encoded.lengths, 10, accumulation, rank, world, seed=0):
            batch = collate_lines([encoded.items[max(n, ~n)] for n in numbers], PAD)
            batch["weights"] *= float(numbers[0] >= 0)
            parts.append(batch)
    assert len(parts) == accumulation * world
    whole_loss, whole_gradient = gradient([collate_lines(encoded.items, PAD)])
    loss, grad = gradient(parts)
    torch.testing.assert_close(loss, whole_loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(grad, whole_gradient, atol=1e-5, rtol=1e-4)


def test_a_satisfactory_row_costs_one_line_and_only_response_positions_see_the_head(tokenizer, sharp):
    """C4, C5, C6, C21: tokens that enter the model pass by pass, none of them padding and none twice after the same
    ones, and positions that enter the head in the forward."""
    encoded, tokens, positions = encode(tokenizer, ROWS[:4]), [], []
    sharp.model.layers[0].register_forward_pre_hook(lambda _, args: tokens.append(args[0].shape[:-1].numel()))
    sharp.lm_head.register_forward_pre_hook(lambda _, args: positions.append(args[0].shape[:-1].numel()))
    batch = collate_lines(encoded.items, PAD)
    loss_step(sharp, batch, totals_of([batch]), CUT)
    flawed, good = ROWS[1:3], [ROWS[0], ROWS[3]]
    response = sum(len(tokenizer(row["output"])["input_ids"]) + 1 for row in good + 2 * flawed)

    def distinct(lines):
        return len({tuple(line.ids[:end]) for line in lines for end in range(1, len(line) + 1)})

    plain = [item[0] for item in encoded.items if len(item) == 2]
    assert tokens == [distinct([item[-1] for item in encoded.items]), distinct(plain)]
    assert sum(positions) == response


def test_detection_does_not_see_dropout(tokenizer, model_folder):
    """C10: under LoRA dropout of a half, what is blamed is what the model without dropout blames, on every try; the
    same step without its own pass blames otherwise."""
    args = script.parse_args([str(w) for w in words(model_folder, "d", "o", "--lora_dropout", 0.5)])
    model = script.load_model(args)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5, generator=torch.Generator().manual_seed(0))
    batch = collate_lines(encode(tokenizer).items, PAD)
    apart, noisy = (Loss(**{**CUT.__dict__, "detect_apart": each}) for each in (True, False))
    assert cut_lines.has_dropout(model)

    def margins(loss):
        sums = loss_step(model, batch, totals_of([batch]), loss)[1]
        return round(float(sums["margin_blamed"]), 3), round(float(sums["margin_kept"]), 3)

    model.eval()
    wanted = margins(noisy)
    model.train()
    assert {margins(apart) for _ in range(3)} == {wanted} and model.training
    assert margins(noisy) != wanted


def test_legacy_step_is_the_mean_of_micro_batches(tokenizer, sharp):
    """Each micro-batch mixes by itself (C3), and the step is their mean."""
    from alignment.training.losses import cut_as_released

    items = encode(tokenizer).items
    batches = [collate_lines(part, PAD) for part in (items[:1], items[1:5], items[5:])]
    legacy = Loss(**{**CUT.__dict__, "legacy": True})
    found = sum(loss_step(sharp, batch, totals_of(batches), legacy)[0] for batch in batches)
    wanted = []
    for batch in batches:
        _, by_kind = cut_lines.logps_by_kind(sharp, batch)
        sides = by_kind[ALIGN_N], by_kind[MISALIGN], by_kind[ALIGN_P]
        wanted.append(cut_as_released(*sides, threshold=1.05, weight=0.5))
    torch.testing.assert_close(found, sum(wanted) / 3, atol=1e-5, rtol=1e-5)


# Whole runs


def test_run_lowers_blamed_tokens_and_leaves_a_usable_adapter(tmp_path, model_folder, data, capsys):
    """20 steps: the logged share is a share, every part is logged, and blamed tokens lose against kept ones."""
    output = tmp_path / "lora"
    finetune(model_folder, data, output, "--num_epochs", 7, "--learning_rate", 0.02, "--gamma", 0)
    lines = history(output)
    assert len(lines) == 21
    assert {"loss", "L1", "L2", "blamed_share", "margin_blamed", "margin_kept", "tokens_per_second"} <= set(lines[0])
    for line in lines:
        assert line["loss"] == pytest.approx(line["L1"] + line["L2"], abs=1e-4)
    assert lines[-1]["L2"] < lines[0]["L2"] - 0.3
    names = {path.name for path in output.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "base_model.json", "tokenizer.json"} <= names
    card = json.loads((tmp_path / "lora.run.json").read_text())
    assert card["counts"]["trained on"] == 10 and card["counts"]["flawed"] == 6 and card["seed"] == 42
    from peft import PeftModel

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), output)
    assert any(weight.abs().sum() > 0 for name, weight in model.named_parameters() if "lora_B" in name)


def blamed_and_kept(model, encoded, mask=None):
    found = cut_lines.flawed_logps(model, encoded, PAD)
    plain, margin = (torch.cat([getattr(row, name) for row in found.values()]) for name in ("plain", "margin"))
    mask = margin > torch.tensor(1.1).log() if mask is None else mask
    return plain[mask].mean().item(), plain[~mask].mean().item(), mask


def test_unlikelihood_pushes_blamed_tokens_down(tmp_path, model_folder, data, tokenizer, sharp):
    """With blame as the base sees it, on the training rows: hindsight leaves the gap between kept and blamed tokens'
    log p(y_t|x) about as it is or closes it, and CUT widens it."""
    sharp.save_pretrained(model_folder)
    encoded = encode(tokenizer)
    blamed, kept, mask = blamed_and_kept(sharp, encoded)
    gaps = {"base": kept - blamed}
    for method in ("cut", "hindsight"):
        output = tmp_path / method
        finetune(
            model_folder,
            data,
            output,
            "--num_epochs",
            6,
            "--learning_rate",
            0.002,
            "--method",
            method,
            "--full_finetuning",
            True,
            "--gamma",
            0,
        )
        model = speak_logps(AutoModelForCausalLM.from_pretrained(output))
        blamed, kept, _ = blamed_and_kept(model, encoded, mask)
        gaps[method] = kept - blamed
    assert gaps["cut"] > gaps["base"] + 0.5 and gaps["cut"] > gaps["hindsight"] + 0.5, gaps


def test_resume_goes_on_as_if_never_stopped(tmp_path, model_folder, data, monkeypatch):
    """C15: killed after step 2 of 3 and resumed, the adapter is bit for bit that of the run left alone."""
    flags = "--save_steps", 2, "--learning_rate", 0.01
    finetune(model_folder, data, tmp_path / "whole", *flags)
    original = torch.optim.AdamW.step
    calls = []

    def dies_at_third_step(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", dies_at_third_step)
    with pytest.raises(KeyboardInterrupt):
        finetune(model_folder, data, tmp_path / "parts", *flags)
    monkeypatch.undo()
    with pytest.raises(UserError, match="did not end; add --resume_from_checkpoint True"):
        finetune(model_folder, data, tmp_path / "parts", *flags)
    finetune(model_folder, data, tmp_path / "parts", *flags, "--resume_from_checkpoint", True)
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    first = load_file(tmp_path / "parts" / "checkpoint-2" / "adapter_model.safetensors")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(first[name], parts[name]) for name in first)


@pytest.mark.parametrize("method", ["mle", "forward_prediction", "hindsight"])
def test_baselines_run_and_learn(tmp_path, model_folder, data, method):
    finetune(
        model_folder,
        data,
        tmp_path / "out",
        "--method",
        method,
        "--num_epochs",
        4,
        "--learning_rate",
        0.02,
        "--batch_size",
        10,
    )
    lines = history(tmp_path / "out")
    assert lines[-1]["likelihood"] < lines[0]["likelihood"] - 0.2


def test_full_finetuning_held_out_rows_calibration(tmp_path, model_folder, data, capsys):
    """All three in one run: the share logged before any step, on all rows at once, is the one asked for."""
    output = tmp_path / "full"
    finetune(
        model_folder,
        data,
        output,
        "--full_finetuning",
        True,
        "--val_set_size",
        2,
        "--calibrate_threshold",
        0.25,
        "--batch_size",
        8,
    )
    assert history(output)[0]["blamed_share"] == pytest.approx(0.25, abs=0.02)
    assert any("eval_L1" in line for line in map(json.loads, (output / "history.jsonl").read_text().splitlines()))
    assert "blames 25.0% of" in capsys.readouterr().out
    names = {path.name for path in output.iterdir()}
    assert "model.safetensors" in names and "adapter_config.json" not in names
    changed = AutoModelForCausalLM.from_pretrained(output).model.embed_tokens.weight
    assert not torch.equal(changed, AutoModelForCausalLM.from_pretrained(model_folder).model.embed_tokens.weight)


def test_long_warmup_is_said_with_the_rate_that_it_reaches(tmp_path, model_folder, data, capsys):
    """3 steps of 100: the last is made at 2/100 of the peak, as the log of the run agrees (C13)."""
    finetune(model_folder, data, tmp_path / "out", "--warmup_steps", 100)
    out = capsys.readouterr().out
    assert "warm-up of 100 steps outlasts the run of 3: the learning rate climbs to 8e-06, never reaches 0.0004" in out
    assert history(tmp_path / "out")[-1]["learning_rate"] == pytest.approx(8e-6)
    finetune(model_folder, data, tmp_path / "short")
    assert "outlasts" not in capsys.readouterr().out


def test_long_rows_are_named(tmp_path, model_folder, data, capsys):
    finetune(model_folder, data, tmp_path / "out", "--cutoff_len", 16)
    out = capsys.readouterr().out
    assert "response longer than --cutoff_len 16 allows in 2 rows (id 8, 9): its end is kept" in out


@pytest.mark.slow
def test_two_processes_do_the_steps_of_one(tmp_path, model_folder, data):
    """torchrun with 2 ranks and one process: the same losses to rounding."""
    common = ["--lora_dropout", 0, "--learning_rate", 0.01]
    finetune(model_folder, data, tmp_path / "one", *common)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += [script.__file__, *map(str, words(model_folder, data, tmp_path / "two", *common))]
    subprocess.run(command, check=True, timeout=300)
    one, two = ([line["loss"] for line in history(tmp_path / name)] for name in ("one", "two"))
    assert one == pytest.approx(two, abs=1e-4)


# Rows


def test_downsampled_keeps_order_and_a_share_of_the_flawed():
    """6 flawed rows x 0.5 keeps 3 of 4 satisfactory ones; -1 and more than there are keep all; 0 keeps none."""
    kept = downsampled(ROWS, 0.5, 42)
    assert sum(row["judgment"] is None for row in kept) == 3 and len(kept) == 9
    assert [row["id"] for row in kept] == sorted(row["id"] for row in kept)
    assert downsampled(ROWS, -1, 42) == downsampled(ROWS, 9, 42) == ROWS
    assert all(row["judgment"] for row in downsampled(ROWS, 0, 42))


def judgments(rows):
    return [row["judgment"] for row in rows]


@pytest.mark.parametrize("texts", [["a", "b"], ["a", "a", "b", "b"], ["a", "a", "a", "b", "c", "d"], list("abcdefgh")])
def test_shuffled_judgments_are_the_same_ones_and_none_is_at_home(texts):
    """Under every seed: each text as often as before, none at a row that had it, nothing else changed."""
    rows = [row | {"judgment": text} for row, text in zip(ROWS, texts, strict=False)]
    rows.insert(1, ROWS[0])
    for seed in range(20):
        found = controlled(rows, "shuffled", seed)
        assert found == controlled(rows, "shuffled", seed)
        assert sorted(filter(None, judgments(found))) == sorted(texts) and found[1] == ROWS[0]
        assert all(new != old for new, old in zip(judgments(found), judgments(rows), strict=True) if old)
        assert [without(row, "judgment") for row in found] == [without(row, "judgment") for row in rows]
    if len(texts) == 8:
        assert len({tuple(judgments(controlled(rows, "shuffled", seed))) for seed in range(20)}) == 20


def test_bare_verdict_stands_at_every_flawed_row():
    assert judgments(controlled(ROWS, "bare", 0)) == [BARE if row["judgment"] else None for row in ROWS]


@pytest.mark.parametrize(
    ("kept", "said"), [(slice(0, 2), "there is 1 flawed row, which"), (slice(0, 3), "2 of 2 flawed rows have one")]
)
def test_too_few_judgments_to_shuffle(kept, said):
    rows = [row | {"judgment": row["judgment"] and "Wrong."} for row in ROWS[kept]]
    with pytest.raises(UserError, match=f"--control shuffled: {said}.*take --control bare"):
        controlled(rows, "shuffled", 0)


def test_under_a_control_a_row_is_learned_with_the_other_judgment(tmp_path, model_folder, data, tokenizer, monkeypatch):
    """What reaches the trainer: each flawed row's ALIGN_N shows another's judgment, held-out rows keep their own."""
    seen = {}

    def caught(args, train_args, model, tokenizer, items, eval_items, threshold):
        seen.update(items=items, eval_items=eval_items)
        raise UserError("caught")

    monkeypatch.setattr(script, "make_trainer", caught)
    with pytest.raises(UserError, match="caught"):
        finetune(model_folder, data, tmp_path / "out", "--control", "shuffled", "--seed", 5, "--val_set_size", 3)
    shown = {}
    for name, items in seen.items():
        judged = [item[1] for item in items if len(item) == 2]
        texts = {line.row: tokenizer.decode(line.ids[: line.prompt_length]) for line in judged}
        assert all(f"Say {row}." in text for row, text in texts.items())
        shown[name] = {row: text.split("### Judgment:\n")[1].split("\n")[0] for row, text in texts.items()}
    own = {name: {row: ROWS[row]["judgment"] for row in found} for name, found in shown.items()}
    assert shown["eval_items"] == own["eval_items"] != {}
    assert sorted(shown["items"].values()) == sorted(own["items"].values())
    assert all(shown["items"][row] != judgment for row, judgment in own["items"].items())
    by_seed = [controlled(script.held_out(ROWS, 3, 5)[0], "shuffled", seed) for seed in (5, 6)]
    given, other = ({row["id"]: row["judgment"] for row in rows if row["judgment"]} for rows in by_seed)
    assert shown["items"] == given != other


def test_control_is_said_and_on_the_card(tmp_path, model_folder, data, capsys):
    finetune(model_folder, data, tmp_path / "out", "--control", "bare", "--limit", 4)
    assert "--method cut, --control bare" in capsys.readouterr().out
    assert json.loads((tmp_path / "out.run.json").read_text())["arguments"]["control"] == "bare"
    with pytest.raises(UserError, match="holds another run .--control is None, was bare."):
        finetune(model_folder, data, tmp_path / "out", "--limit", 4)


# The command line


RELEASED = """--base_model saved_models/llama2-13b-chat-hf --data-path data/iter/train-alpaca-sample-iter1.json
    --output_dir ./saved_models/lora/cut-1plus-13b --batch_size 8 --micro_batch_size 1 --num_epochs 1
    --learning_rate 0.0004 --cutoff_len 2048 --val_set_size 0 --lora_r 16 --lora_alpha 16 --lora_dropout 0.05
    --train_on_inputs False --add_eos_token False --group_by_length False --prompt_template_name alpaca
    --lr_scheduler cosine --warmup_steps 100 --weight_unlike 1 --threshold 1.1 --downsample 0.25"""


@pytest.mark.parametrize("modules", [["[gate_proj, down_proj, up_proj]"], ["gate_proj", "down_proj", "up_proj"]])
def test_released_command_is_understood(modules):
    args = script.parse_args([*RELEASED.split(), "--lora_target_modules", *modules])
    assert args.lora_target_modules == ["gate_proj", "down_proj", "up_proj"]
    assert args.data_path.endswith("iter1.json") and args.output_dir == Path("saved_models/lora/cut-1plus-13b")
    assert (args.threshold, args.weight_unlike, args.downsample, args.train_on_inputs) == (1.1, 1, 0.25, False)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--threshold", "0"], "out of range"),
        (["--threshold", "nan"], "out of range"),
        (["--weight_unlike", "-1"], "out of range"),
        (["--gamma", "-0.5"], "out of range"),
        (["--calibrate_threshold", "1.5"], "out of range"),
        (["--probability_floor", "2"], "out of range"),
        (["--treshold", "1"], "did you mean '--threshold'"),
        (["--method", "huts"], "none of cut, mle"),
    ],
)
def test_flags_out_of_range(flags, said, capsys):
    with pytest.raises(SystemExit) as exit:
        script.parse_args([*RELEASED.split(), *flags])
    assert exit.value.code == 2
    assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def without(row, key):
    return {name: value for name, value in row.items() if name != key}


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([without(row, "judgment") for row in ROWS], [], "row 0 has no 'judgment'"),
        ([row | {"judgment": None} for row in ROWS], [], "every judgment is null"),
        ([row | {"judgment": "bad"} for row in ROWS], ["--method", "mle"], "no judgment is null"),
        ([ROWS[0], ROWS[1] | {"output": "\n"}], [], "row 1 has an empty 'output'"),
        ([], [], "has no rows"),
        (ROWS, ["--lora_target_modules", "[gate_proj, c_fc]"], "c_fc: the model has down_proj, gate_proj, k_proj"),
        (ROWS, ["--prompt_template_name", "mistral"], "template mistral has no judgment slot"),
        (ROWS, ["--prompt_template_name", "alpacca"], "did you mean 'alpaca'"),
        (ROWS, ["--train_on_inputs", "True"], "no term for the prompt"),
        (ROWS, ["--batch_size", "4", "--micro_batch_size", "3"], "no multiple of --micro_batch_size 3"),
        (ROWS, ["--load_in_8bit", "True", "--load_in_4bit", "True"], "contradict"),
        (ROWS, ["--method", "mle", "--legacy_loss", "True"], "belong to --method cut"),
        (ROWS, ["--method", "mle", "--control", "bare"], "--control bare is for methods that learn from judgments"),
        (ROWS[:2], ["--control", "shuffled"], "there is 1 flawed row"),
        (ROWS, ["--resume_from_checkpoint", "nowhere"], "is no checkpoint: it has no trainer_state.json"),
        (ROWS, ["--val_set_size", "10"], "leaves none of 10 rows"),
        (ROWS, ["--report_to", "tensorbored"], "--report_to tensorbored: transformers knows no such report"),
        (ROWS, ["--base_model", "./nowhere"], "model ./nowhere does not exist"),
        (ROWS, ["--data_path", "nowhere.json"], "does not exist"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(tmp_path, model_folder, data, rows, flags, said):
    data.write_text(json.dumps(rows))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said.replace("(", r"\(")) as error:
        finetune(model_folder, data, tmp_path / "out", *flags)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("bits", ["8bit", "4bit"])
def test_quantised_base_is_trained_and_merged_into_what_was_trained(tmp_path, wide_folder, data, bits):
    """C18: the merged checkpoint gives the logits of adapter and quantised base, nearer than the plain base does."""
    finetune(wide_folder, data, tmp_path / "out", f"--load_in_{bits}", True, "--warmup_steps", 0, "--num_epochs", 8)
    assert check_base(tmp_path / "out", str(wide_folder)) == bits
    flags = ["--base_model_name_or_path", wide_folder, "--peft_model_path", tmp_path / "out", "--output_dir"]
    merge.main(merge.parse_args(list(map(str, [*flags, tmp_path / "merged"]))))
    merged = merge.probe_logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged"))
    load = partial(AutoModelForCausalLM.from_pretrained, wide_folder, device_map="cpu")
    trained, plain = (
        merge.probe_logits(merge.with_adapter(load(**quantisation(base)), tmp_path / "out")) for base in (bits, None)
    )
    assert merge.relative_error(merged, trained) < merge.relative_error(plain, trained)


def test_quantised_base_where_bitsandbytes_is_absent(tmp_path, model_folder, data, monkeypatch):
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match="--load_in_8bit needs bitsandbytes"):
        finetune(model_folder, data, tmp_path / "out", "--load_in_8bit", True)


def test_finished_run_is_not_overwritten(tmp_path, model_folder, data, capsys):
    finetune(model_folder, data, tmp_path / "out", "--limit", 4)
    before = (tmp_path / "out" / "adapter_model.safetensors").read_bytes()
    finetune(model_folder, data, tmp_path / "out", "--limit", 4)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds another run .--limit is None, was 4."):
        finetune(model_folder, data, tmp_path / "out")
    assert (tmp_path / "out" / "adapter_model.safetensors").read_bytes() == before


def test_changed_judgments_are_another_run(tmp_path, model_folder, data):
    finetune(model_folder, data, tmp_path / "out", "--limit", 4)
    data.write_text(json.dumps([*ROWS[:3], ROWS[3] | {"output": "Other."}, *ROWS[4:]]))
    with pytest.raises(UserError, match="holds another run .*rows.json has other contents"):
        finetune(model_folder, data, tmp_path / "out", "--limit", 4)


def test_the_base_is_not_overwritten(tmp_path, model_folder, data):
    before = contents(model_folder)
    with pytest.raises(UserError, match="is the model that this run reads"):
        finetune(model_folder, data, model_folder, "--full_finetuning", True)
    assert contents(model_folder) == before


def test_adapter_and_merged_model_carry_the_template(tmp_path, model_folder, data, tokenizer):
    """apply_chat_template of the saved tokenizers gives the training ids of a satisfactory row, and so generation's."""
    finetune(model_folder, data, tmp_path / "out", "--limit", 4)
    flags = ["--base_model_name_or_path", model_folder, "--peft_model_path", tmp_path / "out", "--output_dir"]
    merge.main(merge.parse_args(list(map(str, [*flags, tmp_path / "merged"]))))
    (line,) = encode(tokenizer).items[0]
    turns = [{"role": "user", "content": "Say 0."}, {"role": "assistant", "content": ROWS[0]["output"]}]
    for folder in (tmp_path / "out", tmp_path / "merged"):
        assert AutoTokenizer.from_pretrained(folder).apply_chat_template(turns, return_dict=False) == line.ids


def test_of_several_gpus_the_first_is_used(monkeypatch, capsys):
    """One process, four cards, no torchrun: said, not refused; and there AdamW is the fused one."""
    made = SimpleNamespace(n_gpu=4)
    monkeypatch.setattr("transformers.TrainingArguments", lambda **values: made.__dict__.update(values) or made)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert script.training_arguments(script.parse_args(RELEASED.split()))._n_gpu == 1
    assert "several GPUs and one process: the first is used" in capsys.readouterr().out
    assert made.optim == "adamw_torch_fused" and made.bf16


def test_exit_code_and_no_traceback(tmp_path, model_folder, data):
    """The script as a process: 2, and the one line on stderr."""
    data.write_text("[1")
    command = [sys.executable, script.__file__, *map(str, words(model_folder, data, tmp_path / "out"))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("finetune_unlikelihood.py: error: data ") and done.stderr.count("\n") == 1
