"""Log-probabilities against the plain formula, and their memory."""

import math

import pytest
import torch
from conftest import make_llama
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.training import logps
from alignment.training.batches import IGNORED, Sample, collate
from alignment.training.logps import response_logps, row_means, row_sums, speak_logps, summed_logps, token_logps

VOCABULARY = 97
SMALL = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
ARCHITECTURES = {
    "llama": {},
    "tied llama": {"tie_word_embeddings": True},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "phi": {},  # a bias in the head
    "gemma2": {"final_logit_softcapping": 0.7},
    "granite": {"logits_scaling": 3.0},
    "cohere": {"logit_scale": 0.3},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},  # a decoder inside the decoder
    "mixtral": {"num_local_experts": 4},
}
FP32_NORMS = ("gemma2", "cohere")  # whatever the model's dtype, so that the order of a sum shows


def pairs(shared: bool = False):
    """Two pairs. Their prompts differ unless `shared`, which gives sums in fp32 norms another order."""
    first, second = (5, 11) if shared else (4, 10)
    return [
        (Sample(0, [5, 6, 7, 8, 2], 2), Sample(0, [first, 6, 9, 2], 2)),
        (Sample(1, [11, 12, 13, 14, 15, 16, 2], 3), Sample(1, [second, 12, 13, 3, 2], 3)),
    ]


def plain_logps(model, batch):
    """The formula as written: logits of everything, log-softmax of everything, then pick."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    labels = batch["labels"][:, 1:]
    where = labels != IGNORED
    return logits.to(torch.float64).log_softmax(-1)[where].gather(1, labels[where][:, None])[:, 0]


def gradients(loss, model):
    return torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, retain_graph=True)


def assert_alike(found, wanted, atol):
    """Each gradient to `atol`, and none where there is none."""
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        assert ours is None or torch.allclose(ours, theirs, atol=atol, rtol=0)


def model_of(name, **more):
    """A small model in fp64, seeded."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(name.split()[-1], **{**SMALL, **ARCHITECTURES[name], **more})
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config).double().eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equal_to_the_plain_formula_with_gradients(name):
    """fp64, to 1e-10, three positions a chunk, for heads tied, untied, biased, capped and scaled."""
    model = model_of(name)
    batch = collate(pairs(), 0)
    expected = plain_logps(model, batch)
    weights = torch.linspace(-1, 2, len(expected), dtype=torch.float64)  # so that no gradient cancels
    wanted = gradients((weights * expected).sum(), model)
    logps, rows = response_logps(speak_logps(model, chunk_elements=3 * VOCABULARY), batch)
    assert torch.allclose(logps, expected, atol=1e-10, rtol=0)
    atol = 1e-7 if name in FP32_NORMS else 1e-10
    assert_alike(gradients((weights * logps).sum(), model), wanted, atol)
    assert rows.tolist() == [0] * 3 + [1] * 4 + [2] * 2 + [3] * 2


@pytest.mark.parametrize("name, atol", [("gpt2", 1e-10), ("phi", 1e-10), ("llama", 1e-5), ("mixtral", 1e-5)])
def test_a_prompt_that_two_responses_share(name, atol):
    """Its states are the same in both, and are computed once: log-probabilities and gradients of the plain formula."""
    model = model_of(name)
    batch = collate(pairs(shared=True), 0)
    expected = plain_logps(model, batch)
    weights = torch.linspace(-1, 2, len(expected), dtype=torch.float64)
    wanted = gradients((weights * expected).sum(), model)
    logps, _ = response_logps(speak_logps(model), batch)
    assert torch.allclose(logps, expected, atol=1e-10, rtol=0)
    assert_alike(gradients((weights * logps).sum(), model), wanted, atol)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_under_a_frozen_head_the_gradient_is_the_same(name):
    """Log-probabilities and the decoder's gradients, fp64, where the head's logits are not made again."""
    model = speak_logps(model_of(name, tie_word_embeddings=False), chunk_elements=3 * VOCABULARY)
    batch = collate(pairs(), 0)
    body = list(model.get_decoder().parameters())
    found = []
    for trained in (True, False):
        model.get_output_embeddings().requires_grad_(trained)
        logps, _ = response_logps(model, batch)
        weights = torch.linspace(-1, 2, len(logps), dtype=torch.float64)
        found.append([logps, *torch.autograd.grad((weights * logps).sum(), body, allow_unused=True)])
    assert not any(p.requires_grad for p in model.get_output_embeddings().parameters())
    for ours, theirs in zip(*found, strict=True):
        assert theirs is None or torch.allclose(ours, theirs, atol=1e-7 if name in FP32_NORMS else 1e-10, rtol=0)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_sum_has_the_gradients_of_the_plain_formula(name):
    """Of every weight, times a factor of 2.5, though logits are made once; and without gradients it is the same sum."""
    model = model_of(name)
    batch = collate(pairs(), 0)
    expected = plain_logps(model, batch).sum()
    wanted = gradients(2.5 * expected, model)
    total = summed_logps(speak_logps(model, chunk_elements=3 * VOCABULARY), batch)
    atol = 1e-7 if name in FP32_NORMS else 1e-10
    assert total.item() == pytest.approx(expected.item(), abs=atol)
    assert_alike(gradients(2.5 * total, model), wanted, atol)
    with torch.no_grad():
        assert summed_logps(model, batch).item() == pytest.approx(expected.item(), abs=atol)


def test_logits_are_made_once_where_a_sum_is_asked(monkeypatch):
    model, batch, made = speak_logps(make_llama(VOCABULARY), chunk_elements=10**6), collate(pairs(), 0), []
    own = logps.own_logits
    monkeypatch.setattr(logps, "own_logits", lambda *args: made.append(1) or own(*args))
    summed_logps(model, batch).backward()
    assert len(made) == 1
    response_logps(model, batch)[0].sum().backward()
    assert len(made) == 3


def test_in_fp16_small_gradients_get_their_factor_first():
    """A token of p = 1e-8, which fp16 rounds to 0: a factor of 2^16 saves its gradient only if it comes before."""
    states = torch.ones(1, 1, requires_grad=True)
    head = torch.tensor([[0.0], [-18.4]], requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        total = token_logps(lambda s: s @ head.T, states, torch.zeros(1, dtype=torch.long), 1, [head], summed=True)
    (65536 * total).backward()
    assert head.grad[1].item() / 65536 == pytest.approx(-math.exp(-18.4), rel=0.05)


def test_without_labels_the_model_answers_as_before():
    model = make_llama(VOCABULARY)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    assert torch.equal(speak_logps(model)(ids).logits, before)


def test_bf16_is_summed_in_fp32():
    """Of a bf16 model: the log-sum-exp over its bf16 logits in fp32, not in bf16, which would be 1e-2 off."""
    model = make_llama(VOCABULARY).bfloat16()
    batch = collate(pairs(), 0)
    expected = plain_logps(model, batch)
    logps, _ = response_logps(speak_logps(model, chunk_elements=10**6), batch)
    assert logps.dtype == torch.float32
    assert torch.allclose(logps.double(), expected, atol=1e-2)
    states, head = torch.randn(5, 32).bfloat16(), torch.randn(VOCABULARY, 32).bfloat16()
    logits = states @ head.T
    exact = logits.double().log_softmax(-1)[:, 4]
    assert torch.allclose(token_logps(lambda s: s @ head.T, states, torch.full((5,), 4), 2).double(), exact, atol=1e-5)


def test_through_lora_also_on_the_head():
    """PEFT around the model, adapters on the head too: equal to the plain formula through the same PEFT model."""
    from peft import LoraConfig, get_peft_model

    model = make_llama(VOCABULARY).double()
    wrapped = get_peft_model(speak_logps(model, 200), LoraConfig(target_modules=["q_proj", "lm_head"], r=2))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    wrapped.double().eval()
    batch = collate(pairs(), 0)
    logps, _ = response_logps(wrapped, batch)
    assert torch.allclose(logps, plain_logps(wrapped, batch), atol=1e-10)
    logps.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n, p in wrapped.named_parameters() if "lora_A" in n)


class Largest(TorchDispatchMode):
    """The most elements that any floating point tensor had."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        tensors = [t for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor)]
        self.elements = max([self.elements, *(t.numel() for t in tensors if t.is_floating_point())])
        return out


@pytest.mark.parametrize("vocabulary, length", [(1_000, 64), (4_000, 64), (4_000, 256), (16_000, 256)])
def test_no_tensor_grows_with_vocabulary_times_length(vocabulary, length):
    """Largest tensor of forward and backward: the head's own weight or a chunk, whatever V x T is; the plain formula's
    grows with it. Nothing of a chunk's size is kept for the backward either."""
    model = speak_logps(make_llama(vocabulary, max_position_embeddings=512), chunk_elements=20_000)
    batch = collate([(Sample(i, list(range(4, 4 + length)), 1),) for i in range(2)], 0)
    kept = []
    keep = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t)
    with Largest() as largest, keep:
        logps, _ = response_logps(model, batch)
        saved = max(kept)
        logps.sum().backward()
    weight = vocabulary * 32
    assert largest.elements <= max(weight, 20_000, 2 * length * length * 4)
    assert saved <= max(weight, 2 * length * 64)
    if vocabulary > 1_000:
        assert 2 * length * vocabulary > largest.elements


def test_rows():
    values, rows = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0, 2, 2])
    assert row_sums(values, rows, 3).tolist() == [1, 0, 5]
    assert row_means(values, torch.tensor([0, 1, 1]), 2).tolist() == [1, 2.5]
