"""The hf engine against transformers' own generate, and its seeds against batch and order."""

import pytest
import torch
from conftest import make_llama, make_tokenizer

from alignment.engines import decoding
from alignment.engines.decoding import attend_with_prefix, sample
from alignment.engines.hf import HfEngine
from alignment.generation import Request, Sampling

HEADER = "A header that all prompts begin with, long enough to be worth a pass of its own."
PROMPTS = [f"{HEADER} Prompt {'x' * (7 * i % 23)} {i}:" for i in range(12)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tokenizer = make_tokenizer()
    model = make_llama(len(tokenizer))
    with torch.no_grad():  # sharpen the head, so that samples differ from a coin's
        model.lm_head.weight.mul_(30)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(folder):
    return HfEngine(str(folder), 1, None, max_rows=64)


def texts(engine, prompts, sampling, seeds=None):
    requests = [Request(prompt, seed) for prompt, seed in zip(prompts, seeds or range(len(prompts)), strict=True)]
    return [reply for _, reply in sorted(engine.complete(requests, sampling))]


def plain_greedy(engine, prompt, max_tokens):
    """What transformers' generate gives for this prompt alone."""
    engine._model.set_attn_implementation("sdpa")
    ids = engine.tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = engine._model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0, ids.shape[1] :]
    engine._model.set_attn_implementation("shared_prefix")
    return engine.tokenizer.decode(output, skip_special_tokens=True)


@pytest.mark.parametrize("max_rows", [1, 5, 64])
def test_greedy_equals_generate_with_and_without_a_shared_prefix(folder, max_rows):
    engine = HfEngine(str(folder), 1, None, max_rows)
    for prompts in (PROMPTS, ["no", "common prefix", "at all"]):
        replies = texts(engine, prompts, Sampling(max_tokens=20, temperature=0))
        assert [reply.text for reply in replies] == [plain_greedy(engine, prompt, 20) for prompt in prompts]


def test_the_header_is_run_once(engine):
    widths = []
    engine._load()
    forward = engine._forward
    engine._forward = lambda ids, *rest: (widths.append(tuple(ids.shape)), forward(ids, *rest))[1]
    texts(engine, PROMPTS, Sampling(max_tokens=3))
    shared = len(engine.tokenizer(HEADER)["input_ids"])
    assert widths[0][0] == 1 and widths[0][1] >= shared
    assert all(width < shared for _, width in widths[1:])


def test_samples_depend_on_the_records_seed_and_not_on_batch_or_order(folder, engine):
    sampling = Sampling(max_tokens=16, temperature=1.0, top_p=0.9)
    whole = texts(engine, PROMPTS, sampling)
    assert texts(engine, PROMPTS[::-1], sampling, range(len(PROMPTS))[::-1]) == whole[::-1]
    assert texts(HfEngine(str(folder), 1, None, 3), PROMPTS, sampling) == whole
    assert [texts(engine, [prompt], sampling, [i])[0] for i, prompt in enumerate(PROMPTS)] == whole
    assert texts(engine, PROMPTS, sampling, range(100, 112)) != whole


def test_a_row_that_leaves_makes_room_for_the_next(folder):
    """Replies of many lengths through four places: rows leave and join, and each is as it is alone."""
    engine = HfEngine(str(folder), 1, None, 4)
    free = texts(engine, PROMPTS, Sampling(max_tokens=40))
    stops = {reply.text[index : index + 2] for reply, index in zip(free, range(1, 36, 3), strict=False)}
    sampling = Sampling(max_tokens=40, stop=tuple(sorted(stops - {""})))
    replies = texts(engine, PROMPTS, sampling)
    for before, after in zip(free, replies, strict=True):
        cuts = [before.text.index(stop) for stop in sampling.stop if stop in before.text]
        assert after.text == before.text[: min(cuts, default=None)]
        assert after.finish == ("stop" if cuts or before.finish == "stop" else "length")
    assert len({len(reply.text) for reply in replies}) > 3


def test_the_context_ends_a_reply_and_a_longer_prompt_is_refused(engine):
    fits, too_long = texts(engine, ["x" * 500, "x" * 600], Sampling(max_tokens=100))
    assert 0 < len(fits.text) <= 512 - 500 and fits.finish == "length"  # a character is a byte here, or more
    assert (too_long.text, too_long.finish) == (None, "too long")


def test_a_model_with_sliding_windows_runs_without_sharing(tmp_path):
    from transformers import MistralConfig, MistralForCausalLM

    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=16,
        max_position_embeddings=512,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    engine = HfEngine(str(tmp_path), 1, None, 64)
    replies = texts(engine, PROMPTS, Sampling(max_tokens=8, temperature=0))
    assert not engine._can_share
    alone = [texts(engine, [prompt], Sampling(max_tokens=8, temperature=0))[0] for prompt in PROMPTS]
    assert replies == alone


@pytest.mark.parametrize("T", [1, 5])
def test_attention_with_a_prefix_is_attention_over_both(T):
    """The same as softmax over the concatenated keys, in fp64."""
    torch.manual_seed(0)
    B, H, K, S, P, D = 3, 4, 2, 7, 11, 8
    query = torch.randn(B, H, T, D, dtype=torch.float64)
    key, value = torch.randn(2, B, K, S, D, dtype=torch.float64)
    prefix_key, prefix_value = torch.randn(2, K, P, D, dtype=torch.float64)
    mask = torch.ones(B, 1, T, S, dtype=torch.bool).tril(S - T)
    mask[1, :, :, :2] = False
    keys, values = (
        torch.cat([prefix.expand(B, K, P, D), own], dim=2).repeat_interleave(H // K, dim=1)
        for prefix, own in ((prefix_key, key), (prefix_value, value))
    )
    whole = torch.cat([torch.ones(B, 1, T, P, dtype=torch.bool), mask], dim=-1)
    expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values, attn_mask=whole)
    ours = attend_with_prefix(query, key, value, prefix_key, prefix_value, mask, None)
    # the softmax is in fp32, as the models' own
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-5)


def test_sampling_by_inversion(monkeypatch):
    """p = .5 .3 .2. All of it: u = .49 .51 .81 -> 0 1 2. Nucleus .6 is {0, 1} of mass .8: u = .62 -> 0, .63 -> 1."""
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log()

    def draw(u, **settings):
        return sample(logits, [u], Sampling(max_tokens=1, **settings)).item()

    assert [draw(u) for u in (0.49, 0.51, 0.81, 1 - 1e-12)] == [0, 1, 2, 2]
    assert [draw(u, top_p=0.6) for u in (0.62, 0.63, 1 - 1e-12)] == [0, 1, 1]
    assert [draw(u, top_p=0.4) for u in (0.0, 1 - 1e-12)] == [0, 0]
    assert draw(1 - 1e-12, temperature=0) == 0
    monkeypatch.setattr(decoding, "TOP_K_FIRST", 1)  # the nucleus is larger than the first look
    assert [draw(u, top_p=0.6) for u in (0.62, 0.63)] == [0, 1]


def test_sampled_frequencies_follow_the_distribution():
    """10,000 numbers over p = softmax(0, 1, 2) at T = 2: softmax(0, .5, 1) = .186 .307 .506; 4 deviations are .02."""
    uniforms = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    tokens = sample(torch.tensor([[0.0, 1.0, 2.0]]).expand(10_000, 3), uniforms, Sampling(1, temperature=2.0))
    frequencies = tokens.bincount(minlength=3) / 10_000
    torch.testing.assert_close(frequencies, torch.tensor([0.186, 0.307, 0.506]), atol=0.02, rtol=0)
