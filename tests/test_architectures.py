"""Fifteen architectures, tiny and random, through every stage: supervised, packed, reward, DPO, CUT, merge, generate.

What one cannot do is refused in a line, which stands in CANNOT with the reason. What each stage saved is loaded again
in this process and must give the same.
"""

import gc
import json

import pytest
import torch
from conftest import make_tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

import finetune_unlikelihood
import generate
import merge
import train
from alignment.command_line import UserError
from alignment.engines.decoding import Decoder
from alignment.pretrained import load_pretrained
from alignment.templates import load_template
from alignment.training import history

SMALL = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=256,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=3,
)
MIXTURE = dict(num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)
MAMBA = dict(mamba_n_heads=8, mamba_d_head=8, mamba_d_state=4, mamba_n_groups=1, mamba_chunk_size=16)
ARCHITECTURES = {
    "llama": {"tie_word_embeddings": True},
    "mistral": {"sliding_window": 16},  # shorter than the rows
    "qwen3": {},
    "gemma2": {"sliding_window": 16},  # logits and scores are capped
    "gemma3_text": {"sliding_window": 16},
    "phi3": {},  # fused projections
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},  # learned positions, no linear layers
    "gpt_neox": {},
    "olmo2": {},
    "mixtral": MIXTURE,
    "qwen2_moe": MIXTURE | {"shared_expert_intermediate_size": 16},
    "gpt_oss": MIXTURE | {"sliding_window": 16},
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": MIXTURE | MAMBA | {"layer_types": ["mamba", "attention"], "shared_intermediate_size": 32},
}
# A state, or sinks of attention, go from row to row along a packed line; no head for rewards exists in transformers
LEAK = "does not keep the rows of a line apart"
NO_HEAD = "transformers has no sequence classifier"
CANNOT = {
    "gpt_oss": {"packed": LEAK},
    "mamba": {"packed": LEAK, "reward": NO_HEAD},
    "lfm2": {"packed": LEAK, "reward": NO_HEAD},
    "granitemoehybrid": {"packed": LEAK, "reward": NO_HEAD},
}
TEXTS = [("alpha", "it is alpha"), ("say beta twice", "beta beta"), ("gamma", "g"), ("and delta?", "no delta here")]
TRAINING = "--template almost --max_steps 2 --per_device_train_batch_size 4 --learning_rate 1e-3 --warmup_steps 0"
CUT = "--batch_size 4 --micro_batch_size 2 --lora_r 2 --lora_target_modules all-linear --warmup_steps 0"


@pytest.fixture(autouse=True)
def quick_runs(quick, monkeypatch):
    """No picture of a history, and nothing of what was imported is looked at when memory is given back."""
    monkeypatch.setattr(history, "draw_history", lambda *_: None)
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def data(tmp_path):
    pairs = [{"prompt": asked, "chosen": f"{said}!", "rejected": f"{said}?"} for asked, said in TEXTS]
    judged = [
        {"id": n, "instruction": asked, "input": "", "output": said, "judgment": "Too short." if n % 2 else None}
        for n, (asked, said) in enumerate(TEXTS)
    ]
    rows = {"sft": [{"input": asked, "output": said} for asked, said in TEXTS], "pairs": pairs, "cut": judged}
    for name, found in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(found))
    return tmp_path


def make_base(name, folder):
    """A random model whose states depend on what came before, and which says no special token; and its tokenizer."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, vocab_size=len(tokenizer), **SMALL | ARCHITECTURES[name])
    model = AutoModelForCausalLM.from_config(config)
    for weight in model.parameters():
        weight.data.mul_(4 if weight.ndim > 1 else 1)
    model.get_output_embeddings().weight.data[: len(tokenizer.all_special_ids)] = 0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def run(script, words):
    script.main(script.parse_args(words.split()))


def stages(base, at):
    """{stage: what does it}, in the order in which one needs another."""
    made = f"--model_name_or_path {base} {TRAINING}"
    return {
        "sft": lambda: run(train, f"--objective sft {made} --data_path {at}/sft.json --output_dir {at}/sft"),
        "packed": lambda: run(train, f"--objective sft --packing {made} --data_path {at}/sft.json --output_dir {at}/p"),
        "reward": lambda: run(train, f"--objective reward {made} --data_path {at}/pairs.json --output_dir {at}/rm"),
        "dpo": lambda: run(
            train, f"--objective dpo --lora_r 2 {made} --data_path {at}/pairs.json --output_dir {at}/dpo"
        ),
        "cut": lambda: run(
            finetune_unlikelihood, f"--base_model {base} {CUT} --data_path {at}/cut.json --output_dir {at}/cut"
        ),
        "merge": lambda: run(
            merge, f"--base_model_name_or_path {base} --peft_model_path {at}/dpo --output_dir {at}/merged"
        ),
    }


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_stage_works_or_is_refused_in_a_line(tmp_path, data, name):
    """Stages check what they save; a reply in a batch is the likeliest to its prompt alone."""
    base = make_base(name, tmp_path / "base")
    for stage, does in stages(base, tmp_path).items():
        if refused := CANNOT.get(name, {}).get(stage):
            with pytest.raises(UserError, match=refused) as error:
                does()
            assert "\n" not in str(error.value)
        else:
            does()
    assert generated(tmp_path) == [greedy(tmp_path / "merged", asked) for asked, _ in TEXTS]


def generated(at, tokens=6):
    given = f"--data_path {at}/cut.json --output_file {at}/replies.json --template alpaca"
    run(generate, f"--base_model_name_or_path {at}/merged {given} --use_hf --max_new_tokens {tokens}")
    return [row["output"] for row in json.loads((at / "replies.json").read_text())]


@torch.no_grad()
def greedy(folder, asked, tokens=6):
    """The likeliest reply to one prompt alone, all of it computed anew for each token."""
    tokenizer, model = make_tokenizer(), load_pretrained("AutoModelForCausalLM", str(folder), dtype=torch.float32)
    (prompt,) = load_template("alpaca", tokenizer).prompt_ids([{"instruction": asked, "input": ""}])
    ids = list(prompt)
    while len(ids) < len(prompt) + tokens and ids[-1] != tokenizer.eos_token_id:
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_who_keeps_what_it_has_seen_elsewhere_is_not_decoded():
    """RWKV takes a state and no cache, and would see its last token alone, without a word."""
    settings = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("rwkv", **settings))
    with pytest.raises(UserError, match="RwkvForCausalLM keeps what it has seen in no cache"):
        Decoder(model, {2}, max_rows=1)
