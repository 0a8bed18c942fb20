"""Without padding: the same numbers as with it, for every kind of attention, and no more tokens than are real."""

import pytest
import torch
from conftest import make_llama
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.command_line import UserError
from alignment.training import unpadding
from alignment.training.batches import Sample, collate_packed
from alignment.training.unpadding import BY_ROW, check_packing, computed_in, shared_rows, unpad, window_mask

SMALL = dict(
    vocab_size=97,
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
    "mistral": {"sliding_window": 4},  # shorter than the rows
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "layer_types": ["full_attention", "sliding_attention"]},
    "qwen3": {},
    "gemma2": {"sliding_window": 4, "attn_implementation": "sdpa"},
    "gemma3_text": {"sliding_window": 4},
    "olmo2": {},
    "phi3": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},  # learned positions
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


def model_of(name, kind=AutoModelForCausalLM):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SMALL, **ARCHITECTURES.get(name, {})}, num_labels=1)
    return kind.from_config(config).double().eval()


def batch_of(lengths):
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 97, (len(lengths), max(lengths)), generator=draw)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def tree_of(*rows):
    """A batch of these rows of single digits, right-padded, digit d as id 10 + d."""
    width = max(map(len, rows))
    ids = torch.tensor([[10 + int(digit) for digit in row] + [0] * (width - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


TREE = ["123456", "12347", "5", "123489", "123499", "125", "123456", "1234"]  # 37 tokens, 13 of them after other ones


def seen_tokens(model):
    """A list that gets the number of tokens that go through the first layer, at each forward."""
    seen = []
    first = next(m for m in model.modules() if isinstance(m, nn.ModuleList))[0]
    first.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args or tuple(kwargs.values()))[0][..., 0].numel()), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_logits_and_gradients_are_those_of_the_padded_batch(name):
    model, batch = model_of(name), batch_of([9, 3, 12, 1])
    real = batch["attention_mask"].bool()
    expected = model(**batch).logits[real]
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()), allow_unused=True)
    seen = seen_tokens(unpad(model))
    found = model(**batch).logits[real]
    assert seen == [int(real.sum())]
    atol = 1e-6 if "gemma" in name else 1e-9  # norms in fp32
    assert torch.allclose(found, expected, atol=atol)
    gradients = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert ours is None or torch.allclose(ours, theirs, atol=1e3 * atol)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_what_rows_begin_with_is_computed_once(name):
    """A tree of rows, one of them twice: logits and gradients are those of the padded batch."""
    model, batch = model_of(name), tree_of(*TREE)
    real = batch["attention_mask"].bool()
    weights = torch.rand(37, 1, generator=torch.Generator().manual_seed(2), dtype=torch.float64)  # a row's own gradient
    expected = model(**batch).logits[real]
    wanted = torch.autograd.grad((weights * expected.square()).sum(), list(model.parameters()), allow_unused=True)
    seen = seen_tokens(unpad(model))
    found = model(**batch).logits[real]
    assert seen == [13]
    close = dict(rtol=0, atol=1e-12 if name in ("gpt2", "opt") else 2e-5)  # the others' norms are in fp32
    assert torch.allclose(found, expected, **close)
    gradients = torch.autograd.grad((weights * found.square()).sum(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(gradients, wanted, strict=True):  # up to 24 to 102
        assert ours is None or torch.allclose(ours, theirs, **close)


def test_a_tree_of_rows():
    """[1 2 3], [1 2], [1 4]: four tokens of seven in the line."""
    rows = shared_rows(torch.tensor([1, 2, 3, 1, 2, 1, 4]), [3, 2, 2])
    line = torch.tensor([1, 2, 3, 1, 2, 1, 4])[rows.kept]
    assert line.tolist() == [1, 2, 3, 4] and line[rows.source].tolist() == [1, 2, 3, 1, 2, 1, 4]
    assert rows.source.tolist() == [0, 1, 2, 0, 1, 0, 3]
    assert shared_rows(torch.tensor([1, 2, 3, 4]), [2, 2]).kept is None  # nothing in common: the line is all tokens


def rows_of_any_length(query, key, value, borders, same, longest, most, *, scale, window_size, enable_gqa=False):
    """What the kernel computes, plainly: (N, heads, d) of rows between `borders`, each seen by itself alone."""
    assert torch.equal(borders, same) and borders.dtype == torch.int32 and longest == most == borders.diff().max()
    groups = query.shape[1] // key.shape[1]
    behind, ahead = window_size
    found = []
    for start, end in zip(borders[:-1], borders[1:], strict=True):
        q, k, v = (each[start:end].transpose(0, 1) for each in (query, key, value))
        scores = scale * q @ k.repeat_interleave(groups, 0).transpose(1, 2)
        at = torch.arange(end - start)
        seen = (at <= at[:, None] + ahead) & ((at[:, None] - at <= behind) | (behind < 0))
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        found.append((weights @ v.repeat_interleave(groups, 0)).transpose(0, 1))
    return torch.cat(found)


def transformers_flash(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **kwargs):
    """transformers' flash attention of one line: the same, asked as it is asked."""
    assert attention_mask is None and kwargs["max_length_q"] == kwargs["max_length_k"]
    states = (each[0].transpose(0, 1) for each in (query, key, value))
    borders, longest = (kwargs["cu_seq_lens_q"], kwargs["cu_seq_lens_k"]), [kwargs["max_length_q"]] * 2
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    return rows_of_any_length(*states, *borders, *longest, scale=scaling, window_size=window)[None], None


@pytest.mark.parametrize("attention", ["at once", "flash_attention_2"])
@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("batch", [batch_of([9, 3, 12, 1]), tree_of(*TREE), None])
def test_one_kernel_for_all_rows_gives_the_same(monkeypatch, attention, name, batch):
    """Torch's kernel and the package's, for which a plain one stands in: rows, a tree of rows and a packed line."""
    if batch is None:
        samples = [Sample(n, list(range(3, 3 + size)), 1) for n, size in enumerate((7, 2, 5))]
        packed = collate_packed([tuple(samples[:2]), tuple(samples[2:])], 0)
        batch = {key: packed[key] for key in ("input_ids", "position_ids")}
    model = unpad(model_of(name))
    expected = model(**batch).logits
    wanted = torch.autograd.grad(expected.square().sum(), list(model.parameters()), allow_unused=True)

    called = []
    monkeypatch.setattr(unpadding, "varlen_attn", lambda *a, **k: called.append(1) or rows_of_any_length(*a, **k))
    monkeypatch.setattr(
        unpadding, "flash_attention_forward", lambda *a, **k: called.append(1) or transformers_flash(*a, **k)
    )
    if attention == "at once":
        monkeypatch.setattr(unpadding, "fits_kernel", lambda *_, **__: True)
    else:
        model.config._attn_implementation = attention
    found = model(**batch).logits
    assert len(called) == 2  # one a layer
    assert torch.allclose(found, expected, atol=1e-6)
    gradients = torch.autograd.grad(found.square().sum(), list(model.parameters()), allow_unused=True)
    for ours, theirs in zip(gradients, wanted, strict=True):
        assert ours is None or torch.allclose(ours, theirs, atol=1e-4)


def test_the_kernel_is_for_16_bits_on_cuda():
    """Fake tensors on a card: bf16 fits, and fp32 where autocast makes bf16 of it; no dropout, no odd heads."""
    from torch._subclasses import FakeTensorMode

    def states(size, dtype=torch.bfloat16):
        return torch.empty(1, 4, 8, size, device="cuda", dtype=dtype)

    with FakeTensorMode(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(unpadding, "has_flash", lambda device: True)
        half, full = states(64), states(64, torch.float32)
        assert unpadding.fits_kernel(half, half, scaling=1.0, sliding_window=4)
        assert not unpadding.fits_kernel(full, full) and not unpadding.fits_kernel(half, half, dropout=0.1)
        assert not unpadding.fits_kernel(states(60), states(60)) and not unpadding.fits_kernel(half, states(32))
        patch.setattr(unpadding, "computed_in", lambda states: torch.bfloat16)
        assert unpadding.fits_kernel(full, half)
    with torch.autocast("cpu", torch.bfloat16):
        assert computed_in(torch.ones(1)) == torch.bfloat16
    assert computed_in(torch.ones(1)) == torch.float32
    assert not unpadding.fits_kernel(*[torch.empty(1, 4, 8, 64, dtype=torch.bfloat16)] * 2)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2"])
def test_rewards_are_those_of_the_padded_batch(name):
    model, batch = model_of(name, AutoModelForSequenceClassification), batch_of([9, 3, 12])
    expected = model(**batch).logits
    seen = seen_tokens(unpad(model))
    assert torch.allclose(model(**batch).logits, expected, atol=1e-6) and seen == [24]


def test_left_padding_too():
    model, batch = model_of("llama"), batch_of([4, 7])
    alone = model(input_ids=batch["input_ids"][:1, :4]).logits
    batch = {name: torch.stack([rows[0].roll(3), rows[1]]) for name, rows in batch.items()}
    assert torch.allclose(unpad(model)(**batch).logits[:1, 3:], alone)


def test_packed_lines_are_taken_apart():
    """Two samples in a line and one in another: each as if alone."""
    model = unpad(model_of("llama"))
    samples = [Sample(0, [5, 6, 7, 2], 1), Sample(1, [8, 2], 1), Sample(2, [9, 10, 2], 1)]
    batch = collate_packed([(samples[0], samples[1]), (samples[2],)], 0)
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"]).logits
    alone = [model(input_ids=torch.tensor([sample.ids])).logits[0] for sample in samples]
    for found, wanted in zip((logits[0, :4], logits[0, 4:], logits[1, :3]), alone, strict=True):
        assert torch.allclose(found, wanted)


@pytest.mark.parametrize("batch", [batch_of([9, 3]), tree_of(*TREE)])
def test_checkpointed_layers_give_the_same_gradients(batch):
    model = unpad(model_of("llama"))
    wanted = torch.autograd.grad(model(**batch).logits.square().sum(), list(model.parameters()))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    found = torch.autograd.grad(model.train()(**batch).logits.square().sum(), list(model.parameters()))
    assert all(torch.allclose(ours, theirs) for ours, theirs in zip(found, wanted, strict=True))


def test_generation_with_a_cache_is_as_before():
    ids = torch.tensor([[5, 6, 7, 8]])
    flags = dict(max_new_tokens=6, do_sample=False, pad_token_id=0)
    expected = make_llama(97).generate(ids, **flags)
    assert torch.equal(unpad(make_llama(97)).generate(ids, **flags), expected)


def test_who_asks_for_all_layers_gets_them_padded():
    model, batch = unpad(model_of("llama")), batch_of([4, 7])
    assert [states.shape for states in model(**batch, output_hidden_states=True).hidden_states] == [(2, 7, 32)] * 3


def test_the_attention_is_not_written_into_the_checkpoint(tmp_path):
    model = unpad(make_llama(97))
    assert model.config._attn_implementation == BY_ROW
    model.save_pretrained(tmp_path)
    assert BY_ROW not in (tmp_path / "config.json").read_text()


@pytest.mark.parametrize(
    "name, more",
    [
        ("mamba", dict(vocab_size=97, hidden_size=32, num_hidden_layers=2, state_size=4)),
        ("gemma3_text", SMALL | {"use_bidirectional_attention": True}),
    ],
)
def test_layers_with_a_state_or_that_look_ahead_keep_their_padding(name, more):
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **more))
    before = model.get_decoder().forward
    assert unpad(model).get_decoder().forward == before


OWN_WAYS = {
    "nemotron": {},  # `rows` does not reach its attention
    "doge": {},  # makes masks of its own
    "roberta": {"is_decoder": True},  # counts positions by itself
    "bert": {},  # looks ahead
}


@pytest.mark.parametrize("name", OWN_WAYS)
def test_who_would_not_give_the_same_keeps_its_padding(name):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **SMALL | OWN_WAYS[name])).eval()
    model.get_input_embeddings().weight.data.mul_(20)
    batch, before = tree_of(*TREE), (model.get_decoder().forward, model.config._attn_implementation)
    expected = model(**batch).logits
    assert unpad(model).get_decoder().forward == before[0] and model.config._attn_implementation == before[1]
    assert torch.equal(model(**batch).logits, expected)


def test_a_model_that_cannot_be_asked_yet_is_trusted(monkeypatch):
    """A kernel of GPUs, while the weights are on the CPU: what is known of the architecture decides."""

    def refuse(*_, **__):
        raise RuntimeError("no kernel for this device")

    model, leaking = (AutoModelForCausalLM.from_config(AutoConfig.for_model(n, **SMALL)) for n in ("llama", "lfm2"))
    monkeypatch.setattr(unpadding, "sdpa_attention_forward", refuse)
    assert "forward" in vars(unpad(model).get_decoder())
    check_packing(model)
    leaking.get_decoder().register_forward_pre_hook(refuse)
    with pytest.raises(UserError, match="--packing: Lfm2ForCausalLM"):
        check_packing(leaking)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_a_row_without_a_mask_is_as_before(name):
    """GPT-2's second argument is no mask."""
    model, ids = model_of(name), torch.tensor([[5, 6, 7, 8]])
    expected = model(input_ids=ids).logits
    assert torch.equal(unpad(model)(input_ids=ids).logits, expected)


APART = {"llama": {}, "mixtral": {"num_local_experts": 4}, "stablelm": {}, "llama4_text": {"num_local_experts": 4}}
LEAKING = {
    "gpt_oss": {"num_local_experts": 4},
    "mamba": {"state_size": 4},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "num_local_experts": 4, "mamba_d_head": 16},
    "bloom": {},
}


@pytest.mark.parametrize("name", [*APART, *LEAKING])
def test_packing_where_rows_do_not_stay_apart_is_refused(name):
    """As found by what packing does: the log-probabilities of a sample beside others, and alone."""
    torch.manual_seed(0)
    settings = SMALL | {"mamba_n_heads": 4, "mamba_d_state": 4, "mamba_n_groups": 1} | {**APART, **LEAKING}[name]
    model = unpad(AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **settings)).eval())
    samples = [Sample(n, ids, 1) for n, ids in enumerate(([5, 6, 7, 8, 9], [11, 12, 13], [5, 9, 8]))]
    batch = collate_packed([tuple(samples)], 0)
    line = {name: batch[name] for name in ("input_ids", "position_ids")}
    with torch.no_grad():
        packed = model.get_decoder()(**line, use_cache=False)[0][0, 5:8]
        alone = model.get_decoder()(input_ids=torch.tensor([samples[1].ids]), use_cache=False)[0][0]
    assert torch.allclose(packed, alone, rtol=0, atol=1e-5) == (name in APART)  # of states around 1
    if name in APART:
        check_packing(model)
    else:
        with pytest.raises(UserError, match="--packing: .* does not keep the rows of a line apart"):
            check_packing(model)


def test_window_mask():
    """A window of 2: each sees itself and the one before. None where the row fits in it."""
    query = torch.zeros(1, 4, 3, 8)
    assert window_mask(query, 2)[0, 0].tolist() == [[True, False, False], [True, True, False], [False, True, True]]
    assert window_mask(query, 3) is None and window_mask(query, None) is None
