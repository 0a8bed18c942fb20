"""train.py from end to end on a tiny Llama: what a step is, what a run leaves, and what it refuses."""

import json
import math
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import merge
import train
from alignment.command_line import UserError
from alignment.training import checking, saving
from alignment.training.reward_model import load, score

REPOSITORY = Path(train.__file__).parent
WORDS = ["alpha", "beta", "gamma", "delta"]
PAIRS = ("reward", "dpo", "orpo")
CONFIGS = ("config.json", "generation_config.json", "tokenizer_config.json")


def words(draw, most=8):
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))


@pytest.fixture
def data(tmp_path):
    """21 rows for each objective: the chosen response ends in "!", the rejected in "?", lengths are mixed."""
    draw = random.Random(0)
    pairs = [{"prompt": words(draw), "chosen": words(draw) + "!", "rejected": words(draw) + "?"} for _ in range(21)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "sft.json").write_text(json.dumps([{"input": p["prompt"], "output": p["chosen"]} for p in pairs]))
    return tmp_path


def argv(data, folder, objective, name="out", **changes):
    flags = {
        "objective": objective,
        "model_name_or_path": folder,
        "data_path": data / ("sft.json" if objective == "sft" else "pairs.json"),
        "output_dir": data / name,
        "per_device_train_batch_size": 8,
        "num_train_epochs": 1,
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        **changes,
    }
    return [word for flag, value in flags.items() for word in (f"--{flag}", *str(value).split())]


def go(*args, **changes):
    arguments = train.parse_args(argv(*args, **changes))
    train.main(arguments)
    return arguments.output_dir


def history(folder, key="loss"):
    return [line[key] for line in map(json.loads, (folder / "history.jsonl").open()) if key in line]


def weights(folder):
    return load_file(folder / "model.safetensors")


# A step


@pytest.mark.parametrize("objective", ["sft", "packed", *PAIRS])
def test_a_step_does_not_depend_on_how_it_is_cut(quick, data, model_folder, objective):
    """8 items a step as 8x1, 4x2 and 1x8, the last of 5 items: losses equal to 1e-6, and so gradient norms and the
    final weights within what Adam makes of rounding. A mean of micro-batches' means would differ in the third digit."""
    extra = {"packing": True, "model_max_length": 160} if objective == "packed" else {}
    cuts = {}
    for batch, accumulation in ((8, 1), (4, 2), (1, 8)):
        folder = go(
            data,
            model_folder,
            "sft" if extra else objective,
            name=f"cut{batch}",
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            **extra,
        )
        cuts[batch] = history(folder), history(folder, "grad_norm"), weights(folder)
    losses, norms, tensors = cuts[8]
    assert len(losses) >= 1 + (objective != "packed")
    for other, other_norms, other_tensors in (cuts[4], cuts[1]):
        assert other == pytest.approx(losses, rel=1e-6)
        assert other_norms == pytest.approx(norms, rel=1e-4)
        for name, tensor in tensors.items():
            assert torch.allclose(tensor, other_tensors[name], atol=1e-4), name  # Adam turns 1e-8 of noise to more


def test_the_first_loss_by_hand(quick, data, model_folder):
    """DPO before any step: policy is reference, every pair's loss log 2. SFT before any step: the mean over all tokens
    of -log p from plain logits, which a one-step epoch logs."""
    assert history(go(data, model_folder, "dpo"))[0] == pytest.approx(math.log(2), abs=1e-6)
    folder = go(data, model_folder, "sft", name="sft", per_device_train_batch_size=21)
    template = train.load_data(train.parse_args(argv(data, model_folder, "sft")))[0]
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    total, tokens = 0.0, 0
    for row in json.loads((data / "sft.json").read_text()):
        prompt, response = template.prompt_ids([row])[0], template.response_ids([row["output"]])[0]
        logps = model(torch.tensor([prompt + response])).logits.log_softmax(-1)[0, len(prompt) - 1 : -1]
        total -= logps.gather(1, torch.tensor(response)[:, None]).sum().item()
        tokens += len(response)
    assert history(folder)[0] == pytest.approx(total / tokens, rel=1e-5)


def test_length_normalized_dpo_by_hand(quick, data, model_folder):
    """After one step, loss and margin of the rows are those of plain logits: beta times the difference of the mean
    log-ratios, a response's end token counted. The kept references are sums, the same that plain DPO reads."""
    file = data / "pairs.json"
    one_step = dict(per_device_train_batch_size=21, eval_data_path=file)
    folder = go(data, model_folder, "dpo", length_normalized=True, **one_step)
    template = train.load_data(train.parse_args(argv(data, model_folder, "dpo")))[0]
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (folder, model_folder)]
    margins, sums = [], []
    for row in json.loads(file.read_text()):
        prompt, means = template.prompt_ids([row])[0], []
        for response in template.response_ids([row["chosen"], row["rejected"]]):
            assert response[-1] == template.end_id
            with torch.no_grad():
                found = [model(torch.tensor([prompt + response])).logits.log_softmax(-1)[0] for model in models]
            policy, reference = (
                logps[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None]).sum().item() for logps in found
            )
            means.append((policy - reference) / len(response))
            sums.append(reference)
        margins.append(5 * (means[0] - means[1]))
    assert history(folder)[0] == pytest.approx(math.log(2), abs=1e-6)
    assert history(folder, "eval_margin") == pytest.approx([sum(margins) / 21], rel=1e-4)
    losses = [math.log1p(math.exp(-margin)) for margin in margins]
    assert history(folder, "eval_loss") == pytest.approx([sum(losses) / 21], rel=1e-4)
    plain = go(data, model_folder, "dpo", name="plain", **one_step)
    kept, plains = ({path.name: torch.load(path) for path in run.glob("reference-*.pt")} for run in (folder, plain))
    assert set(kept) == set(plains) and len(kept) == 2
    for name, tensor in kept.items():
        assert torch.equal(tensor, plains[name]) and tensor.flatten().tolist() == pytest.approx(sums, rel=1e-5)


@pytest.mark.parametrize("objective", ["sft", "packed", *PAIRS])
def test_evaluation_gives_the_loss_of_one_step(quick, data, model_folder, objective):
    """All rows in one step that learns nothing, then the same rows evaluated in several batches: the same loss. Each
    objective's own division, ORPO's two among them."""
    extra = {"packing": True, "model_max_length": 160} if objective == "packed" else {}
    name = "sft" if objective in ("sft", "packed") else objective
    rows = data / ("sft.json" if name == "sft" else "pairs.json")
    folder = go(
        data,
        model_folder,
        name,
        learning_rate=0,
        per_device_train_batch_size=21,
        per_device_eval_batch_size=2,
        eval_data_path=rows,
        **extra,
    )
    assert history(folder, "eval_loss") == pytest.approx(history(folder), rel=1e-5)


def test_freed_memory_is_returned():
    """32 of 64 blocks of 4 MB are freed: the process is 128 MB smaller, and without the call it is not."""
    program = """if True:
        import os, sys, torch
        from alignment.training.trainers import return_freed_memory
        size = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20
        if sys.argv[1] == "yes":
            return_freed_memory()
        for _ in range(2):  # the first round teaches glibc to keep such blocks
            blocks = [torch.ones(1 << 20) for _ in range(64)]
            before = size()
            del blocks[::2]
            after = size()
        print(before - after)
    """
    here = dict(cwd=REPOSITORY, capture_output=True, text=True, check=True)
    freed = [int(subprocess.run([sys.executable, "-c", program, word], **here).stdout) for word in ("yes", "no")]
    assert freed[0] > 100 > freed[1]


# A run


@pytest.mark.parametrize(
    "objective, extra",
    [
        ("sft", {"packing": True}),
        ("reward", {"normalize_reward": True}),
        ("dpo", {}),
        ("orpo", {}),
        ("sft", {"lora_r": 4}),
        ("reward", {"lora_r": 4, "gradient_checkpointing": True}),
        ("dpo", {"lora_r": 4}),
        ("sft", {"optim": "adamw_bnb_8bit"}),
    ],
)
def test_every_objective_learns_and_saves(quick, data, model_folder, objective, extra):
    """Twenty epochs: the loss falls, what is logged is there, and the run card says that the saved model agrees."""
    file = "sft.json" if objective == "sft" else "pairs.json"
    folder = go(
        data,
        model_folder,
        objective,
        num_train_epochs=20,
        learning_rate=1e-2,
        eval_data_path=data / file,
        eval_strategy="epoch",
        **extra,
    )
    losses = history(folder)
    assert sum(losses[-3:]) < sum(losses[:3]) - 0.5
    assert len(history(folder, "eval_loss")) == 20 and history(folder, "tokens_per_second")
    assert (folder / "history.png").stat().st_size > 1000
    card = json.loads((data / "out.run.json").read_text())
    assert card["counts"]["check"]["agrees"] and card["counts"]["rows"]["train"]["kept"] == 21
    if objective != "sft":
        assert sum(history(folder, "accuracy")[-3:]) > 2.6 and history(folder, "margin")[-1] > 0
    if objective == "reward":
        assert 0 <= history(folder, "longer_wins_accuracy")[0] <= 1


@pytest.mark.parametrize("objective, bits", [("orpo", "4bit"), ("reward", "4bit"), ("sft", "8bit")])
def test_adapters_on_a_quantised_base(quick, data, wide_folder, objective, bits):
    """The loss falls, the adapter says what it was trained on, and loaded again it gives what was trained."""
    extra = {"lora_r": 4, f"load_in_{bits}": True, "num_train_epochs": 4, "learning_rate": 1e-2}
    folder = go(data, wide_folder, objective, **extra)
    losses = history(folder)
    assert sum(losses[-3:]) < sum(losses[:3])
    assert json.loads((data / "out.run.json").read_text())["counts"]["check"]["agrees"]
    assert json.loads((folder / "base_model.json").read_text())["quantised"] == bits


def test_a_reward_model_is_scored_by_transformers_as_by_us(quick, data, model_folder):
    """score() on rows of all lengths equals the plain classifier on each text alone, without padding; pad is not EOS;
    normalised scores of the training rows have mean 0 and deviation 1."""
    folder = go(data, model_folder, "reward", normalize_reward=True)
    rows = json.loads((data / "pairs.json").read_text())
    model, template = load(str(folder), device="cpu")
    ours = score(model, template, rows, [row["chosen"] for row in rows], batch_tokens=200)
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    assert plain.config.num_labels == 1 and plain.config.pad_token_id != plain.config.eos_token_id
    text = "\n\nHuman: {}\n\nAssistant: {}</s>"
    for row, reward in zip(rows, ours, strict=True):
        ids = template.tokenizer(text.format(row["prompt"], row["chosen"]), return_tensors="pt")
        assert plain(ids["input_ids"]).logits.item() == pytest.approx(reward, abs=1e-5)
    both = score(
        model, template, rows * 2, [row[side] for side in ("chosen", "rejected") for row in rows], normalize=True
    )
    assert torch.tensor(both).mean().item() == pytest.approx(0, abs=1e-4)
    assert torch.tensor(both).std().item() == pytest.approx(1, abs=1e-4)


def test_a_pad_that_is_eos_is_replaced(quick, data, model_folder, tokenizer, llama):
    """As Llama's folders come: no pad, or pad = EOS. The saved model has another, and an embedding for it."""
    tokenizer.pad_token = "</s>"
    tokenizer.save_pretrained(model_folder)
    folder = go(data, model_folder, "reward")
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.pad_token_id == 3  # <pad>, a spare one
    config = json.loads((folder / "config.json").read_text())
    config["pad_token_id"] = config["eos_token_id"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="padding token is its EOS"):
        load(str(folder), device="cpu")


def test_eos_is_learned(quick, data, model_folder):
    """Trained on one response, greedy decoding from the same prompt ids says it and stops."""
    (data / "sft.json").write_text(json.dumps([{"input": "alpha", "output": "beta!"}] * 8))
    folder = go(data, model_folder, "sft", num_train_epochs=40, learning_rate=2e-2)
    model = AutoModelForCausalLM.from_pretrained(folder)
    template = train.load_data(train.parse_args(argv(data, folder, "sft")))[0]
    prompt = torch.tensor(template.prompt_ids([{"input": "alpha"}]))
    out = model.generate(prompt, max_new_tokens=20, do_sample=False, eos_token_id=template.end_id)
    assert out[0, prompt.shape[1] :].tolist() == template.response_ids(["beta!"])[0]


@pytest.mark.parametrize("objective", ["reward", "dpo"])
def test_stop_and_resume_is_the_uninterrupted_run(quick, data, model_folder, objective, monkeypatch):
    """Two epochs of three steps, checkpoint and stop at step 2, resume in the middle of the epoch: the same losses and
    weights. DPO's reference log-probabilities are read, not computed from the half-trained model."""
    whole = go(data, model_folder, objective, name="whole", num_train_epochs=2)
    flags = argv(data, model_folder, objective, num_train_epochs=2, save_strategy="steps", save_steps=2)

    class Stopped(Exception):
        pass

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        from alignment.training.history import History

        written = History.on_log
        patch.setattr(
            History,
            "on_log",
            lambda self, args, state, control, **kw: (
                written(self, args, state, control, **kw) if state.global_step < 3 else (_ for _ in ()).throw(Stopped)
            ),
        )
        train.main(train.parse_args(flags))
    with pytest.raises(UserError, match="did not end; add --resume_from_checkpoint True"):
        train.main(train.parse_args(flags))
    train.main(train.parse_args([*flags, "--resume_from_checkpoint", "True"]))
    assert history(data / "out") == history(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(data / "out")[name]), name


def test_limit_steps_and_adapter_flags(quick, data, model_folder):
    folder = go(
        data,
        model_folder,
        "sft",
        limit=9,
        max_steps=3,
        eval_data_path=data / "sft.json",
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
        attn_implementation="eager",
        lora_r=2,
        lora_alpha=7,
        lora_dropout=0.25,
        lora_target_modules="q_proj v_proj",
    )
    assert len(history(folder)) == 3 and len(history(folder, "eval_loss")) == 2  # at step 2, and at the last
    assert json.loads((data / "out.run.json").read_text())["counts"]["rows"]["train"]["kept"] == 9
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    adapter = json.loads((folder / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (2, 7, 0.25)
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]


def test_weights_of_loss_terms(quick, data, model_folder):
    """ORPO without its odds ratio is supervised training on the chosen responses; DPO of beta 0 learns nothing."""
    supervised = history(go(data, model_folder, "sft", name="sft"))
    assert history(go(data, model_folder, "orpo", name="orpo", orpo_alpha=0)) == pytest.approx(supervised, rel=1e-5)
    still = go(data, model_folder, "dpo", name="dpo", beta=0)
    assert history(still) == pytest.approx([math.log(2)] * 3) and history(still, "margin") == [0, 0, 0]


def test_the_seed_is_of_the_head_and_of_the_order(quick, data, model_folder):
    losses = [history(go(data, model_folder, "reward", name=f"{n}", seed=seed)) for n, seed in enumerate((1, 1, 2))]
    assert losses[0] == losses[1] != losses[2]


def test_fp16(quick, data, model_folder):
    folder = go(data, model_folder, "sft", fp16=True, num_train_epochs=4, learning_rate=1e-2)
    assert history(folder)[-1] < history(folder)[0] - 0.06
    assert {tensor.dtype for tensor in weights(folder).values()} == {torch.float16}


def test_report_to_gets_what_is_logged(quick, data, model_folder, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(data / "board"))
    go(data, model_folder, "reward", report_to="tensorboard")
    (events,) = (data / "board").glob("events*")
    for name in (b"train/loss", b"train/accuracy", b"train/margin", b"train/tokens_per_second"):
        assert name in events.read_bytes()


def test_the_same_run_again_is_found_finished(quick, data, model_folder, capsys):
    go(data, model_folder, "sft")
    before = (data / "out" / "model.safetensors").stat().st_mtime_ns
    go(data, model_folder, "sft")
    assert "nothing to do" in capsys.readouterr().out
    assert (data / "out" / "model.safetensors").stat().st_mtime_ns == before


def changed_weight(folder):
    """The last row of one matrix, which a look at first rows would miss, under the same size and times."""
    path = folder / "model.safetensors"
    before, found = path.stat(), weights(folder)
    found["model.embed_tokens.weight"][-1, -1] += 1
    save_file(found, path, {"format": "pt"})
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def changed_row(data):
    rows = json.loads((data / "sft.json").read_text())
    (data / "sft.json").write_text(json.dumps([*rows[:-1], rows[-1] | {"output": "beta beta beta!"}]))


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda data, base: changed_row(data), "sft.json has other contents"),
        (lambda data, base: changed_weight(base), "tiny has other contents"),
        (lambda data, base: changed_weight(data / "out"), "out was changed since"),
        (lambda data, base: (data / "out" / "config.json").unlink(), "out was changed since"),
    ],
)
def test_done_is_asked_of_contents(quick, data, model_folder, change, said):
    go(data, model_folder, "sft")
    change(data, model_folder)
    with pytest.raises(UserError, match=f"holds another run .*{said}"):
        go(data, model_folder, "sft")


def test_a_run_killed_before_its_first_checkpoint_starts_anew(quick, data, model_folder):
    """kill -9 in the middle, without checkpoints: the same command is the whole run, and an unfinished checkpoint is
    passed over."""
    flags = argv(data, model_folder, "sft", num_train_epochs=400)
    process = subprocess.Popen(
        [sys.executable, "train.py", *flags], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (data / "out" / "history.jsonl").exists() or not history(data / "out"):
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert (data / ".out.lock").exists() and not (data / "out.run.json").exists()
    (data / "out" / "checkpoint-1").mkdir()
    whole = go(data, model_folder, "sft", name="whole", num_train_epochs=400, max_steps=3)
    again = go(data, model_folder, "sft", num_train_epochs=400, max_steps=3, resume_from_checkpoint="True")
    assert history(again) == history(whole) and len(history(again)) == 3
    assert not (data / ".out.lock").exists() and not (again / "begun.json").exists()


def test_a_run_whose_steps_are_all_made_is_saved(quick, data, model_folder, monkeypatch):
    """Stopped between its last step, in the middle of an epoch, and the saving: resumed, it makes no further step."""
    flags = argv(data, model_folder, "sft", max_steps=2, save_strategy="steps", save_steps=1)
    whole = go(data, model_folder, "sft", name="whole", max_steps=2)
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(saving, "round_weights", lambda trainer: (_ for _ in ()).throw(KeyboardInterrupt))
        train.main(train.parse_args(flags))
    assert exit.value.code == 130
    assert not (data / "out.run.json").exists()
    train.main(train.parse_args([*flags, "--resume_from_checkpoint", "True"]))
    assert history(data / "out") == history(whole) and len(history(whole)) == 2
    for name, tensor in weights(whole).items():
        assert torch.equal(tensor, weights(data / "out")[name]), name


@pytest.mark.parametrize(
    "objective, template, extra",
    [
        ("sft", "almost", {}),
        ("sft", "mistral", {}),
        ("sft", "chat", {}),
        ("orpo", "chatml", {}),
        ("reward", "alpaca", {}),
        ("dpo", "chat", {"lora_r": 2}),
        ("reward", "almost", {"lora_r": 2}),
    ],
)
def test_a_saved_tokenizer_gives_the_training_ids(quick, data, model_folder, objective, template, extra):
    folder = go(data, model_folder, objective, template=template, max_steps=1, **extra)
    args = train.parse_args(argv(data, model_folder, objective, template=template))
    (sample, *_), *_ = train.load_data(args)[1]["train"]
    row = json.loads((data / ("sft.json" if objective == "sft" else "pairs.json")).read_text())[0]
    turns = [{"role": "user", "content": row.get("prompt", row.get("input"))}]
    saved = AutoTokenizer.from_pretrained(folder)
    assert (folder / "chat_template.jinja").is_file()
    reply = {"role": "assistant", "content": row.get("chosen", row.get("output"))}
    assert saved.apply_chat_template([*turns, reply], return_dict=False) == sample.ids
    prompt = saved.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert prompt == sample.ids[: sample.prompt_length]


@pytest.mark.parametrize("extra", [{}, {"lora_r": 2}])
def test_what_ends_a_reply_is_in_generation_config(quick, data, model_folder, extra):
    """A chat template that ends a turn with another token than EOS: generation by the saved folder ends there."""
    folder = go(data, model_folder, "sft", template="chat", max_steps=1, **extra)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, 5]  # </s> and <|im_end|>
    assert not (go(data, model_folder, "reward", name="rm", max_steps=1) / "generation_config.json").exists()


def test_a_column_of_choice_is_learned(quick, data, model_folder):
    """The chosen answers of pairs: the losses of the same rows under their usual names."""
    usual = history(go(data, model_folder, "sft"))
    chosen = go(data, model_folder, "sft", name="chosen", data_path=data / "pairs.json", output_key="chosen")
    assert history(chosen) == usual


# Mixtures, and ChatML


def hh(chosen, rejected):
    dialogue = "\n\nHuman: alpha\n\nAssistant: "
    return {"chosen": dialogue + chosen, "rejected": dialogue + rejected}


@pytest.fixture
def stage_two(tmp_path):
    """The three sets of Janus's second reward stage: 20 pairs of HH, one that parts early and one where the assistant
    goes on; 6 of oasst1; a tie and 6 pairs of webgpt."""
    draw = random.Random(0)
    sets = {"hh": [hh(words(draw) + "!", words(draw) + "?") for _ in range(20)], "oasst": [], "webgpt": []}
    sets["hh"].append(hh("a", "b") | {"chosen": "\n\nHuman: beta\n\nAssistant: c"})
    sets["hh"].append(hh("x\n\nAssistant: a", "x\n\nAssistant: b"))
    for n in range(7):
        asked = f"prompter: {words(draw)}\nassistant: x\nprompter: y"
        sets["oasst"] += [{"prompt": asked, "chosen": f"{n}!", "rejected": "?"}] if n else []
        scores = {"score_0": n / 6, "score_1": -n / 6}
        sets["webgpt"].append(
            {"question": {"full_text": words(draw)}, "answer_0": f"{n}", "answer_1": "other"} | scores
        )
    for name, rows in sets.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return " ".join(str(tmp_path / f"{name}.jsonl") for name in sets)


def test_a_mixture_is_trained_and_told(quick, data, model_folder, stage_two, capsys):
    """Of 20, 6 and 6 usable pairs in shares .5 .25 .25 there are 24: 12, 6 and 6, and of --limit 9 these are 4, 2, 2.
    Printed and on the card by file; the seed says which. With --ties webgpt has 7, which a share of .3 takes."""
    flags = {"data_path": stage_two, "data_shares": "0.5 0.25 0.25", "template": "mistral"}
    folder = go(data, model_folder, "reward", **flags, max_steps=1)
    said = capsys.readouterr().out
    paths = stage_two.split()
    faults = "1 dialogues part before the last turn (row 20); 1 prompt ends in the assistant's turn (row 21)"
    assert f"train, {paths[0]}: 22 rows, 12 kept, 8 not drawn; dropped {faults}\n" in said
    assert f"train, {paths[1]}: 6 rows, 6 kept\n" in said
    assert f"train, {paths[2]}: 7 rows, 6 kept; dropped 1 equal scores (row 0)\n" in said
    found = json.loads((data / "out.run.json").read_text())["counts"]["rows"]["train"]
    assert found["kept"] == 24 and list(found["files"]) == paths
    assert [each["kept"] for each in found["files"].values()] == [12, 6, 6]
    config = json.loads((folder / "config.json").read_text())
    assert config["prompt_template"] == "mistral"

    def rows(**more):
        items = train.load_data(train.parse_args(argv(data, model_folder, "reward", **flags | more)))[1]["train"]
        return [sample.row for sample, _ in items]

    assert rows() == rows() != rows(seed=1)
    few = rows(limit=9)
    assert [sum(low <= row < high for row in few) for low, high in ((0, 22), (22, 28), (28, 35))] == [4, 2, 2]
    assert set(few) <= set(rows()) and 28 not in rows() and 28 in rows(ties="second", data_shares="0.46 0.24 0.3")


def test_what_mistral_is_given_of_each_set(data, model_folder, stage_two):
    """All are rendered by --template; as released HH's and oasst1's were not. Without shares all rows, in order."""
    flags = argv(data, model_folder, "reward", data_path=stage_two, template="mistral")
    template, sets, row_counts = train.load_data(train.parse_args(flags))
    assert row_counts["train"]["kept"] == 32 and [item[0].row for item in sets["train"]][19:22] == [19, 22, 23]
    texts = [template.tokenizer.decode(item[0].ids) for item in sets["train"]]
    assert texts[0].startswith("[INST] alpha [/INST]") and texts[0].endswith("!</s>")
    assert texts[20].startswith("[INST] ") and texts[20].endswith(" [/INST]x</s>[INST] y [/INST]1!</s>")
    assert texts[26].startswith("[INST] ") and texts[26].endswith(" [/INST]1</s>")


def test_a_second_stage_goes_on_from_the_first(quick, data, model_folder, stage_two):
    """A reward model is trained further, its head with it: at a learning rate of 0 nothing changes."""
    first = go(data, model_folder, "reward", name="first", max_steps=1, template="mistral")
    flags = {"data_path": stage_two, "data_shares": "0.72 0.14 0.14", "template": "mistral", "learning_rate": 0}
    second = go(data, first, "reward", name="second", max_steps=1, **flags)
    assert "score.weight" in weights(first)
    assert all(torch.equal(tensor, weights(second)[name]) for name, tensor in weights(first).items())


def test_a_card_of_before_there_were_mixtures(quick, data, model_folder, capsys):
    """One path, told as a text, and no shares: the run is found finished."""
    go(data, model_folder, "sft", max_steps=1)
    card = json.loads((data / "out.run.json").read_text())
    arguments = card["arguments"]
    arguments["data_path"] = arguments["data_path"][0]
    assert arguments.pop("data_shares") is arguments.pop("ties") is None
    (data / "out.run.json").write_text(json.dumps(card))
    go(data, model_folder, "sft", max_steps=1)
    assert "nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("extra", [{}, {"lora_r": 2}])
def test_orpo_in_chatml_of_a_tokenizer_without_it(quick, data, model_folder, extra):
    """Two tokens more, which the saved model has, and its config names the template, in which generation asks it."""
    from test_templates import without_chatml

    from alignment.templates import rendering_from

    without_chatml().save_pretrained(model_folder)
    folder = go(data, model_folder, "orpo", template="chatml", max_steps=2, **extra)
    assert json.loads((data / "out.run.json").read_text())["counts"]["check"]["agrees"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = SimpleNamespace(backend="hf", model_name_or_path=str(folder), template=None, cache_dir=None)
    rendering = rendering_from(asked, "alpaca")
    assert (rendering.name, rendering.end_id) == ("chatml", len(tokenizer) - 1)
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [2, rendering.end_id]
    if not extra:
        assert len(weights(folder)["model.embed_tokens.weight"]) == len(tokenizer)


# The check of what was saved


def test_a_fresh_process_refuses_what_was_not_trained(data, model_folder):
    """The real check, in a process of its own, passes; with one matrix changed, or the head drawn anew, it fails."""
    folder = go(data, model_folder, "reward")
    good = weights(folder)
    for name in ("score.weight", "model.layers.0.mlp.up_proj.weight"):
        save_file(
            good | {name: good[name] + 0.05 * torch.randn_like(good[name])},
            folder / "model.safetensors",
            {"format": "pt"},
        )
        verdict = checking.verify(str(folder))
        assert not verdict["agrees"] and verdict["single"] > verdict["tolerance"], name
    save_file({k: v for k, v in good.items() if k != "score.weight"}, folder / "model.safetensors", {"format": "pt"})
    assert not saving.ask_fresh_process(folder)["agrees"]


@pytest.mark.parametrize("objective", ["sft", "reward"])
def test_an_adapter_on_a_base_in_bf16_is_held_to_the_same(quick, data, model_folder, llama, objective):
    """The base's file is fp32 and its weights large, so that training sees it rounded by far more than 2e-4."""
    with torch.no_grad():
        for weight in llama.parameters():
            weight.mul_(7)
    llama.save_pretrained(model_folder)
    go(data, model_folder, objective, lora_r=4, bf16=True, learning_rate=1e-2)
    check = json.loads((data / "out.run.json").read_text())["counts"]["check"]
    assert check["agrees"] and check["tolerance"] == 2e-4
    rounded = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.bfloat16).float()
    ids = torch.arange(9)[None]
    assert (rounded(ids).logits - llama(ids).logits).abs().max() > 0.01


def test_a_model_that_does_not_load_fails_the_run(data, model_folder, monkeypatch):
    """And leaves the folder without a model, or with the one that it had."""
    written = saving.write_model
    monkeypatch.setattr(
        saving,
        "write_model",
        lambda trainer, state, dtype, folder: (
            written(trainer, state, dtype, folder),
            (folder / "model.safetensors").write_bytes(b"torn"),
        ),
    )
    with pytest.raises(UserError, match="cannot be loaded again"):
        go(data, model_folder, "reward")
    assert not (data / "out.run.json").exists()
    (ids,) = (path.name for path in (data / "out").glob("encoded-*"))
    assert sorted(path.name for path in (data / "out").iterdir()) == ["begun.json", ids, "history.jsonl", "history.png"]


# Ranks


def torchrun(script, flags, processes=2):
    port = random.randint(20_000, 60_000)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc_per_node={processes}",
        f"--master_port={port}",
        script,
        *flags,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=240)


SRUN = """#!/usr/bin/env bash
echo "srun $*"
shift
for _ in $(seq "$SLURM_NNODES"); do
  "$@" &
done
wait -n && wait -n
"""


def slurm(folder, script, flags, nodes=2):
    """`sbatch scripts/slurm_train.sh` where Slurm's commands are ours: an agent of torchrun a node, all on this one."""
    folder.mkdir()
    scontrol = '#!/usr/bin/env bash\n[ "$*" = "show hostnames n[1-2]" ] && echo localhost && echo n2\n'
    for name, text in (("srun", SRUN), ("scontrol", scontrol)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    told = {"SLURM_SUBMIT_DIR": str(REPOSITORY), "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": str(nodes)}
    told |= {
        "SLURM_JOB_ID": str(random.randint(1, 9999)),
        "NPROC": "1",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
    }
    told |= {"PATH": f"{folder}:{os.environ['PATH']}", "TQDM_DISABLE": "1", "PYTHONPATH": str(REPOSITORY)}
    command = ["bash", REPOSITORY / "scripts" / "slurm_train.sh", script, *flags]
    here = dict(cwd=folder, env=os.environ | told, capture_output=True, text=True, timeout=240)
    return subprocess.run(command, **here), told


def test_sharded_ranks_train_and_save_what_one_does(quick, data, model_folder):
    """FSDP over two nodes of one CPU process, started by Slurm's script, with checkpoints and two micro-batches, after
    each of which gradients are reduced. The losses of one process to 1e-6, a plain checkpoint with its weights; the
    same when resumed in the middle by two processes of one node; and by one alone, to 1e-6, whose steps have as many
    rows as theirs. A checkpoint's shards are put together to what was saved at the end."""
    flags = argv(
        data,
        model_folder,
        "sft",
        name="two",
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        gradient_checkpointing=True,
        save_strategy="steps",
        save_steps=2,
        fsdp="full_shard",
    )
    done, told = slurm(data / "bin", "tests/fsdp_on_cpu.py", flags)
    assert done.returncode == 0, done.stderr[-2000:]
    launched = " ".join(["-m torch.distributed.run --nnodes 2 --nproc_per_node 1 --rdzv_id", told["SLURM_JOB_ID"]])
    endpoint = f"--rdzv_backend c10d --rdzv_endpoint localhost:{20000 + int(told['SLURM_JOB_ID'])}"
    assert f"srun --kill-on-bad-exit=1 {sys.executable} {launched} {endpoint} tests/fsdp_on_cpu.py" in done.stdout
    assert "sharded weights: 19" in done.stdout  # of 21: last norm and head stay whole from forward to backward
    assert "accelerate says DistributedType.FSDP True" in done.stdout and "not reduced" not in done.stdout
    whole, losses = weights(data / "two"), history(data / "two")
    (data / "two.run.json").unlink()
    checkpoint = data / "two" / "checkpoint-2"
    for part in ("pytorch_model_fsdp_0", "optimizer_0"):  # each rank has written its own
        sizes = [file.stat().st_size for file in (checkpoint / part).glob("*.distcp")]
        assert len(sizes) == 2 and max(sizes) < 1.5 * min(sizes)
    assert not [file for file in checkpoint.iterdir() if file.suffix in (".bin", ".safetensors")]
    assert not list((data / "two").glob("encoded-*"))  # what the first process has tokenised, while they needed it

    merged = ["--checkpoint_path", str(data / "two" / "checkpoint-3"), "--output_dir", str(data / "merged")]
    merge.main(merge.parse_args(merged))
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(data / "merged").items())
    AutoModelForCausalLM.from_pretrained(data / "merged")
    for file in CONFIGS:
        assert json.loads((data / "merged" / file).read_text()) == json.loads((data / "two" / file).read_text())

    resumed = torchrun("tests/fsdp_on_cpu.py", [*flags, "--resume_from_checkpoint", str(checkpoint)])
    assert resumed.returncode == 0, resumed.stderr[-2000:]
    assert "the other rank loaded 0 weights" in resumed.stdout
    assert history(data / "two") == losses and len(losses) == 3
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(data / "two").items())

    one, changes = go(data, model_folder, "sft", name="one"), {"gradient_accumulation_steps": 2, "fsdp": "full_shard"}
    alone = go(
        data,
        model_folder,
        "sft",
        name="alone",
        per_device_train_batch_size=2,
        resume_from_checkpoint=checkpoint,
        **changes,
    )
    for folder in ("two", "alone"):
        assert history(data / folder) == pytest.approx(history(one), rel=1e-6)
        for name, tensor in weights(one).items():
            assert torch.allclose(tensor, weights(data / folder)[name], atol=1e-4), name
    assert all(torch.allclose(tensor, whole[name], atol=1e-6) for name, tensor in weights(alone).items())


ALMOST = """--cache_dir CACHE --bf16 True --num_train_epochs 1 --per_device_eval_batch_size 4
--gradient_accumulation_steps 8 --gradient_checkpointing True --evaluation_strategy no --save_steps 2000
--save_total_limit 1 --learning_rate 2e-5 --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1
--fsdp_transformer_layer_cls_to_wrap LlamaDecoderLayer --tf32 True"""
COMMANDS = {
    "reward": "--per_device_train_batch_size 4 --save_strategy no --weight_decay 0.1 --model_max_length 1024 "
    "--train_reward_model True",
    "sft": "--per_device_train_batch_size 2 --save_strategy steps --weight_decay 0. --model_max_length 512",
}


@pytest.mark.parametrize("kind", COMMANDS)
def test_the_papers_commands_run_as_they_are(data, model_folder, kind):
    """Only model, data, output and process count changed; on two CPU processes; translations are printed."""
    file = "pairs.json" if kind == "reward" else "sft.json"
    flags = [*f"{ALMOST} {COMMANDS[kind]}".replace("CACHE", str(data)).split(), "--fsdp", "full_shard auto_wrap"]
    flags += ["--model_name_or_path", str(model_folder), "--data_path", str(data / file)]
    done = torchrun("train.py", [*flags, "--output_dir", str(data / "out")])
    assert done.returncode == 0, done.stderr[-2000:]
    for translated in ("--evaluation_strategy ->", "--warmup_ratio 0.03 ->", "--tf32 ->", "--fsdp "):
        assert f"translated: {translated}" in done.stdout
    assert '"agrees": true' in done.stdout and '"tolerance": 0.0002' in done.stdout  # in bf16 too
    kind = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
    assert kind.from_pretrained(data / "out").dtype == torch.bfloat16


# Refusals


@pytest.mark.parametrize(
    "objective, changes, message",
    [
        ("dpo", {"data_path": "sft.json"}, "--objective sft would fit"),
        ("reward", {"model_name_or_path": "nowhere"}, "no tokenizer in nowhere"),
        ("reward", {"model_name_or_path": "./nowhere"}, "model ./nowhere does not exist"),
        ("sft", {"model_name_or_path": "cut_off"}, "model cut_off: .*header"),
        ("sft", {"template": "chatt"}, "did you mean 'chat'"),
        ("sft", {"model_max_length": 4}, "all 21 rows were dropped: 21 too long"),
        ("sft", {"resume_from_checkpoint": "."}, "is no checkpoint"),
        ("sft", {"fsdp": "half_shard"}, "'half_shard' is unknown"),
        ("sft", {"lora_r": 2, "lora_target_modules": "nothing"}, "lora_target_modules"),
        ("sft", {"lora_r": 2, "load_in_8bit": True}, "--load_in_8bit needs bitsandbytes"),
        ("sft", {"learning_rate": 1e9}, "not finite at step 2, rows"),
        ("sft", {"report_to": "tensorbored"}, "--report_to tensorbored: transformers knows no such report"),
        ("sft", {"data_shares": "0.5 0.5"}, "--data_shares 0.5 0.5: give one for each of 1 files of --data_path"),
        ("dpo", {"data_shares": "1", "limit": 21, "model_max_length": 4}, "all 21 rows were dropped: 21 too long"),
    ],
)
def test_mistakes_are_one_line(quick, data, model_folder, objective, changes, message, monkeypatch):
    monkeypatch.chdir(data)
    shutil.copytree(model_folder, "cut_off")
    Path("cut_off/model.safetensors").write_bytes((model_folder / "model.safetensors").read_bytes()[:1000])
    monkeypatch.setattr("transformers.utils.is_bitsandbytes_available", lambda: False)
    with pytest.raises(UserError, match=message) as error:
        go(data, model_folder, objective, **changes)
    assert "\n" not in str(error.value) and not (data / "out.run.json").exists()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--learning_rat", "1"], "unknown argument --learning_rat; did you mean '--learning_rate'"),
        (["--train_reward_model", "--objective", "dpo"], "contradict"),
        (["--packing", "True", "--objective", "dpo"], "--packing is for"),
        (["--control", "length"], "sft has none"),
        (["--length_normalized", "--objective", "orpo"], "--length_normalized is for --objective dpo"),
        (["--load_in_8bit"], "give --lora_r"),
        (["--evaluation_strategy", "epoch"], "needs --eval_data_path"),
        (["--ties", "second"], "--ties is for preferences, and --objective sft has none"),
        (["--data_path", "d", "e", "d"], "--data_path d e d: one comes twice"),
        (["--data_path", "d", "e", "--data_shares", "0.5", "0"], "0 is out of range"),
    ],
)
def test_mistakes_on_the_command_line(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        train.parse_args(["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o", *flags])
    assert error.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("optim", ["adamw_bnb_8bit", "paged_adamw_8bit", "adafactor"])
def test_an_optimiser_that_cannot_step_shards_is_refused(data, model_folder, monkeypatch, optim):
    monkeypatch.setattr(train, "can_shard", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    args = train.parse_args(argv(data, model_folder, "sft", fsdp="full_shard", optim=optim))
    with pytest.raises(UserError, match=f"--optim {optim} cannot step weights that FSDP shards; give adamw_torch"):
        train.translate_fsdp(args)
    args.optim = "adamw_torch_8bit"
    assert train.translate_fsdp(args)[0]["fsdp"]


@pytest.mark.parametrize("flags, optim", [([], "adamw_torch_fused"), (["--optim", "sgd"], "sgd")])
def test_on_cuda_adamw_is_the_fused_one(monkeypatch, data, flags, optim):
    """Unless another is asked for; and of several cards one process uses the first."""
    monkeypatch.setattr("transformers.TrainingArguments", lambda **values: SimpleNamespace(n_gpu=2, **values))
    monkeypatch.setattr("alignment.training.trainer_flags.check_works", lambda args: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    made = train.training_arguments(train.parse_args([*argv(data, "m", "sft"), *flags]))
    assert (made.optim, made._n_gpu, made.use_cpu) == (optim, 1, False)


def test_a_quantised_base_is_not_sharded(data, monkeypatch):
    monkeypatch.setattr(train, "can_shard", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "0")
    flags = [*argv(data, "m", "sft", lora_r=2), "--load_in_4bit", "--fsdp", "full_shard"]
    with pytest.raises(UserError, match="--load_in_4bit and --fsdp: .*; leave out --fsdp"):
        train.translate_fsdp(train.parse_args(flags))


def test_sharded_gradients_are_reduced_and_cpu_shards_have_a_backend(data, model_folder, monkeypatch):
    """--fsdp under torchrun: in every micro-batch; NCCL moves no CPU tensor, so offloaded shards go over gloo."""
    monkeypatch.setattr(train, "can_shard", lambda: True)
    flags = [*argv(data, model_folder, "sft"), "--fsdp", "full_shard auto_wrap offload"]
    values, notes = train.translate_fsdp(train.parse_args(flags))
    assert values == {} and "torchrun has not started this process" in notes[0]
    monkeypatch.setenv("LOCAL_RANK", "0")
    values, _ = train.translate_fsdp(train.parse_args(flags))
    assert values["accelerator_config"] == {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    assert values["ddp_backend"] == "cuda:nccl,cpu:gloo" and values["fsdp_config"]["cpu_offload"]
    assert "ddp_backend" not in train.translate_fsdp(train.parse_args([*flags, "--fsdp", "full_shard"]))[0]


def test_flags_of_transformers_pass():
    base = ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"]
    args = train.parse_args([*base, "--adam-beta2", "0.95", "--max_grad_norm=0.5"])
    assert args.trainer == {"adam_beta2": 0.95, "max_grad_norm": 0.5}
    assert (args.objective, args.learning_rate, args.model_max_length, args.warmup_ratio) == ("sft", 2e-5, 512, 0.03)
    janus = train.parse_args([*base, "--objective", "dpo"])
    assert (janus.beta, janus.learning_rate, janus.model_max_length, janus.warmup_steps) == (0.1, 5e-7, 2048, 10)
    delta = train.parse_args([*base, "--objective", "dpo", "--length_normalized"])
    assert (delta.beta, delta.learning_rate, delta.num_train_epochs, delta.model_max_length) == (5, 5e-8, 1, 2048)
    assert (delta.warmup_ratio, delta.warmup_steps, delta.lr_scheduler_type, delta.weight_decay) == (
        0.03,
        None,
        "cosine",
        0,
    )
    given = train.parse_args([*base, "--objective", "dpo", "--length_normalized", "--beta", "2", "--warmup_steps", "3"])
    assert (given.beta, given.warmup_steps, given.warmup_ratio, given.learning_rate) == (2, 3, None, 5e-8)


def test_exit_code_is_2(data):
    done = subprocess.run(
        [sys.executable, "train.py", *argv(data, "nowhere", "sft", data_path="none.json")],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stderr == "train.py: error: data none.json does not exist\n"


def test_a_control_learns_its_rule(quick, data, model_folder):
    """Length as the preference: the longer one wins in every pair, and the log says so."""
    folder = go(data, model_folder, "reward", control="length", num_train_epochs=12, learning_rate=1e-2)
    assert min(history(folder, "longer_wins_accuracy")) >= 0.8  # a tie in tokens counts half
    assert sum(history(folder, "accuracy")[-3:]) > 2.4
    plain, turned = (
        {name: list(items) for name, items in train.load_data(train.parse_args(flags))[1].items()}
        for flags in (
            argv(data, model_folder, "reward", eval_data_path=data / "pairs.json", **extra)
            for extra in ({}, {"control": "length"})
        )
    )
    assert turned["eval"] == plain["eval"] == plain["train"] != turned["train"]  # judged by the real preferences
