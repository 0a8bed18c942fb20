"""What of a model an adapter is put on, and the base that it names."""

import pytest
import torch
from conftest import make_llama
from test_architectures import ARCHITECTURES, MIXTURE, SMALL
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.adapters import add_lora, lora_targets
from alignment.command_line import UserError
from alignment.pretrained import adapter_base, load_pretrained
from alignment.training.rl_models import plain_weights

ALL, ATTENTION = ["all-linear"], ["k_proj", "o_proj", "q_proj", "v_proj"]
EXPERTS = ["experts.down_proj", "experts.gate_up_proj"]
MORE = {
    "phimoe": MIXTURE,  # its router is a linear layer
    "qwen3_next": MIXTURE | {"layer_types": ["full_attention"] * 2},  # beside fused experts it has a shared one
    "jamba": MIXTURE | {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
}


def model_of(name, kind=AutoModelForCausalLM):
    torch.manual_seed(0)
    settings = SMALL | {"vocab_size": 97} | {**ARCHITECTURES, **MORE}[name]
    return kind.from_config(AutoConfig.for_model(name, **settings)).eval()


@pytest.mark.parametrize(
    ("name", "modules", "parameters"),
    [
        ("gpt2", ["c_attn", "c_fc", "c_proj"], []),
        ("gpt_oss", ATTENTION, EXPERTS),
        ("lfm2", ["in_proj", "k_proj", "out_proj", "q_proj", "v_proj", "w1", "w2", "w3"], []),
        ("mamba", ["in_proj", "x_proj"], []),  # the fused kernels read the weights of the others
        ("mixtral", ATTENTION, EXPERTS),
        ("phimoe", ATTENTION, EXPERTS),
        ("qwen3_next", ATTENTION, EXPERTS),
    ],
)
def test_all_linear(name, modules, parameters, capsys):
    """No embeddings, no head, no router. What peft would take for the experts is left, and said."""
    assert lora_targets(model_of(name), ALL, 0.0) == (modules, parameters)
    left = "LoRA leaves down_proj, gate_proj, up_proj of the mixture as they are\n" if name == "qwen3_next" else ""
    assert capsys.readouterr().out == left


def test_dropout_leaves_the_experts(capsys):
    assert lora_targets(model_of("mixtral"), ALL, 0.1) == (ATTENTION, [])
    said = "LoRA leaves down_proj, gate_up_proj of the mixture as they are; --lora_dropout 0 adapts the experts\n"
    assert capsys.readouterr().out == said


def test_all_linear_of_a_hybrid():
    """Of a Mamba's dt_proj and out_proj the fused kernels read the weights, past any adapter; the router is linear."""
    modules, parameters = lora_targets(model_of("jamba"), ALL, 0.0)
    assert modules == sorted(["down_proj", "gate_proj", "in_proj", *ATTENTION, "up_proj", "x_proj"])
    assert parameters == EXPERTS


@pytest.mark.parametrize(
    ("name", "names", "dropout", "said"),
    [
        (
            "llama",
            ["lm_head"],
            0.0,
            "lm_head: the model has down_proj, gate_proj, .* between its embeddings and its head$",
        ),
        ("llama", ["q_proj", "embed_tokens"], 0.0, "--lora_target_modules embed_tokens: the model has"),
        ("llama", ["norm", "c_fc"], 0.0, "--lora_target_modules norm c_fc: the model has"),
        ("mixtral", ["gate"], 0.0, "k_proj, .*, and down_proj, gate_up_proj of fused experts"),
        ("mixtral", ["gate_proj", "down_proj"], 0.05, "modules gate_proj: the model has"),
        ("mixtral", ["down_proj"], 0.05, "down_proj: fused experts take no dropout; give --lora_dropout 0"),
        ("phimoe", ["router"], 0.0, "modules router: the model has"),
        ("mamba", ["out_proj"], 0.0, "modules out_proj: the model has in_proj, x_proj between"),
        ("qwen3_next", ["shared_expert.down_proj"], 0.0, "nothing of Qwen3NextForCausalLM can be adapted"),
    ],
)
def test_what_cannot_be_adapted_is_one_line(name, names, dropout, said):
    with pytest.raises(UserError, match=said):
        lora_targets(model_of(name), names, dropout)


def test_names():
    model = model_of("llama")
    assert lora_targets(model, ["mlp.up_proj", "q_proj"], 0.1) == (["q_proj", "up_proj"], [])
    one = "model.layers.1.self_attn.q_proj"
    assert lora_targets(model, [one], 0.0) == ([one], [])
    assert lora_targets(model_of("mixtral"), ["down_proj", "q_proj"], 0.0) == (["q_proj"], ["experts.down_proj"])


def test_a_reward_head_is_no_target():
    model = model_of("llama", AutoModelForSequenceClassification)
    assert "score" not in lora_targets(model, ALL, 0.0)[0]
    with pytest.raises(UserError, match="modules score: the model has"):
        lora_targets(model, ["score"], 0.0)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss"])
def test_plain_weights_are_the_merged_ones(name):
    """Also of parameters whose adapters are nested, the experts': what a policy in training is handed on as."""
    policy = add_lora(model_of(name), r=2, alpha=4, dropout=0.0, targets=ALL, task_type="CAUSAL_LM")
    with torch.no_grad():
        for weight_name, weight in policy.named_parameters():
            if "lora_B" in weight_name:
                weight.normal_(std=0.1)
    found = {name: weight.clone() for name, weight in plain_weights(policy.get_base_model())}  # merging is in place
    wanted = dict(policy.merge_and_unload().named_parameters())
    assert found.keys() == wanted.keys()
    assert all(torch.allclose(found[weight], wanted[weight], atol=1e-6) for weight in wanted)
    plain = dict(model_of(name).named_parameters())
    assert sum(not torch.equal(plain[weight], wanted[weight]) for weight in plain) >= 2 * (4 if name == "llama" else 6)


def test_a_relative_base_is_found_from_anywhere(tmp_path, model_folder, monkeypatch):
    monkeypatch.chdir(model_folder.parent)
    base = load_pretrained("AutoModelForCausalLM", model_folder.name)
    add_lora(base, r=2, alpha=4, dropout=0.0, targets=ALL, task_type="CAUSAL_LM").save_pretrained("adapter")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert adapter_base("../adapter") == str(model_folder)


def test_tied_heads_are_no_target():
    tied = make_llama(97, tie_word_embeddings=True)
    with pytest.raises(UserError, match="lm_head: the model has"):
        add_lora(tied, r=2, alpha=4, dropout=0.0, targets=["lm_head"], task_type="CAUSAL_LM")
