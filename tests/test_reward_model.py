"""Reward models as others load them: padding, and vLLM's classify."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import make_llama, make_tokenizer, with_gpus

from alignment.command_line import UserError
from alignment.pretrained import fit_embeddings, separate_padding
from alignment.training.batches import encode_examples
from alignment.training.reward_model import encode_texts, load, score
from alignment.training_data import Example

ROWS = [{"prompt": "alpha " * times} for times in (1, 3, 9)]
RESPONSES = ["x", "yy zz", "w" * 40]
VLLM = """
import json, sys
from vllm import LLM, PoolingParams
if __name__ == "__main__":
    folder, prompts = sys.argv[1], json.loads(sys.argv[2])
    llm = LLM(model=folder, runner="pooling", dtype="float32", enforce_eager=True, max_model_len=512)
    raw = PoolingParams(use_activation=False)
    out = llm.classify([{"prompt_token_ids": ids} for ids in prompts], pooling_params=raw, use_tqdm=False)
    print(json.dumps([each.outputs.probs[0] for each in out]), flush=True)
"""


@pytest.fixture
def classifier(tmp_path):
    """A one-label Llama of heads wide enough for vLLM, its scores some units apart."""
    from transformers import LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    config = make_llama(len(tokenizer), hidden_size=128, num_attention_heads=2, num_key_value_heads=2).config
    config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


@pytest.mark.slow
def test_vllm_scores_as_we_do(classifier, tmp_path):
    """The same ids through vLLM's classify, in a process of its own: score() and it agree to 1e-4."""
    pytest.importorskip("vllm")
    model, template = load(str(classifier), device="cpu")
    ours = score(model, template, ROWS, RESPONSES)
    prompts = [sample.ids for sample in encode_texts(template, ROWS, RESPONSES, None)]
    (tmp_path / "ask.py").write_text(VLLM)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "ask.py"), str(classifier), json.dumps(prompts)],
        capture_output=True,
        text=True,
        timeout=300,
        env=with_gpus(VLLM_CPU_KVCACHE_SPACE="1"),
    )
    # Not by its exit code: at the very end, after all is said, vLLM's own threads now and then abort the process
    answers = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert answers, done.stderr[-2000:]
    theirs = json.loads(answers[-1])
    assert theirs == pytest.approx(ours, abs=1e-4)


def test_a_long_response_keeps_its_end(classifier):
    """16 tokens: of the prompt what is left of them, of a response longer than that one of the prompt and the last 15,
    EOS among them. Training gives a row the same ids."""
    _, template = load(str(classifier), device="cpu")
    short, long = encode_texts(template, [{"prompt": "a"}] * 2, ["b", "c" * 40], 16)
    assert len(short) == 16 and template.tokenizer.decode(short.ids).endswith("Assistant: b</s>")
    assert template.tokenizer.decode(long.ids) == ":" + "c" * 14 + "</s>"
    pairs = [Example(0, {"prompt": "a"}, ("c" * 40,))]
    assert encode_examples(pairs, template, 16, cut=True)[0][0][0].ids == long.ids


@pytest.mark.parametrize("pad, expected", [("<pad>", "<pad>"), ("</s>", "<pad>"), ("<s>", "<pad>"), (None, "<pad>")])
def test_padding_is_neither_eos_nor_bos(pad, expected):
    tokenizer = make_tokenizer(pad=pad)
    separate_padding(tokenizer)
    assert tokenizer.pad_token == expected and len(tokenizer) == len(make_tokenizer())


def test_a_new_padding_token_gets_the_mean_embedding():
    """Where no spare token is left: <pad> is added, its rows of embedding and head are the means of the others."""
    tokenizer = make_tokenizer(pad=None)
    model = make_llama(len(tokenizer))
    mean = model.get_input_embeddings().weight.mean(0)
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    fit_embeddings(model, tokenizer)
    assert torch.allclose(model.get_input_embeddings().weight[-1], mean, atol=1e-6)
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer) == model.config.pad_token_id + 1


def test_what_is_no_reward_model(tmp_path, model_folder):
    with pytest.raises(UserError, match="2 labels, not one"):
        load(str(model_folder), device="cpu")
    with pytest.raises(UserError, match="does not exist"):
        load(str(tmp_path / "none"), device="cpu")


@pytest.mark.parametrize(
    "changes",
    [
        {"reward_mean": "high"},
        {"reward_std": None},
        {"reward_max_length": [512]},
        {"prompt_template": ["almost"]},
        {"prompt_template": "never_heard_of"},
    ],
)
def test_a_config_that_training_did_not_leave_is_one_line(classifier, changes):
    config = json.loads((classifier / "config.json").read_text()) | changes
    (classifier / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"{next(iter(changes))} in its config|template 'never_heard_of' is none of"):
        load(str(classifier), device="cpu")
