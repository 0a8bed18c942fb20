"""The decoder, by itself and under the hf engine, against transformers' own generate; its seeds against batch and
order; a model in training against what it was before."""

import pytest
import torch
from conftest import make_llama, make_tokenizer

from alignment.engines import sampling as drawing
from alignment.engines.decoding import Decoder, Row, attend_with_prefix
from alignment.engines.hf import HfEngine
from alignment.engines.sampling import penalised, sample
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
    ids = engine.tokenizer(prompt, return_tensors="pt")["input_ids"]
    output = engine._model.generate(ids, max_new_tokens=max_tokens, do_sample=False)[0, ids.shape[1] :]
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
    forward = engine._decoder._forward
    engine._decoder._forward = lambda ids, *rest: (widths.append(tuple(ids.shape)), forward(ids, *rest))[1]
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
    assert not engine._decoder._can_share
    alone = [texts(engine, [prompt], Sampling(max_tokens=8, temperature=0))[0] for prompt in PROMPTS]
    assert replies == alone


def test_a_penalty_comes_before_the_temperature():
    """Logits 2 -1 of seen tokens, penalty 4: .5 -4; at T = .5 e^1 : e^-8 : e^0 of the third = .731 .0001 .269."""
    logits, seen = torch.tensor([[2.0, -1.0, 0.0]]), torch.tensor([[True, True, False]])
    assert penalised(logits, seen, 4.0).tolist() == [[0.5, -4.0, 0.0]]
    uniforms = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    drawn = sample(penalised(logits, seen, 4.0).expand(10_000, 3), uniforms, Sampling(1, temperature=0.5))
    frequencies = drawn.bincount(minlength=3) / 10_000
    torch.testing.assert_close(frequencies, torch.tensor([0.731, 0.0001, 0.269]), atol=0.02, rtol=0)


# A model in hand


def make_policy():
    """A toy in training, with dropout in one layer that is trained and in one that its owner froze in eval mode."""
    model = make_llama(len(make_tokenizer()), attention_dropout=0.5)
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    model.gradient_checkpointing_enable()
    model.train()
    model.model.layers[0].eval()
    return model


def decoded(decoder, prompts, sampling, seeds=None):
    return sorted(decoder.decode(prompts, seeds or range(len(prompts)), sampling))


@pytest.mark.parametrize("count", [12, 1])
def test_a_model_in_training_is_left_as_it_was_found(count):
    model, tokenizer = make_policy(), make_tokenizer()
    model.set_attn_implementation("eager")
    model.config.use_cache = False
    modes = {name: module.training for name, module in model.named_modules()}
    prompts, sampling = tokenizer(PROMPTS[:count])["input_ids"], Sampling(max_tokens=12)
    decoder = Decoder(model, {2}, 64)
    found = decoded(decoder, prompts, sampling)
    interrupted = decoder.decode(prompts, range(count), sampling)
    next(interrupted)
    interrupted.close()
    assert {name: module.training for name, module in model.named_modules()} == modes and len(set(modes.values())) == 2
    assert model.config._attn_implementation == "eager" and model.config.use_cache is False
    assert decoded(Decoder(model.eval(), {2}, 64), prompts, sampling) == found  # without dropout
    model.train()
    model(input_ids=torch.tensor(prompts[:1]), labels=torch.tensor(prompts[:1])).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("penalty", [1.0, 1.5, 0.7])
def test_ids_of_a_model_in_hand_are_those_of_generate(penalty):
    """Five places, and ends at many lengths, so that rows leave and join. A repetition penalty is of the tokens of the
    prompt, its shared part too, and of the reply; one below 1 rewards."""
    texts = [prompt + letter for prompt, letter in zip(PROMPTS, "qwertyuiopas", strict=True)]
    model, prompts = make_policy(), make_tokenizer()(texts)["input_ids"]
    sampling = Sampling(max_tokens=24, temperature=0, repetition_penalty=penalty)
    free = decoded(Decoder(model, {2}, 5), prompts, sampling)
    ends = {2, *(ids[place] for (_, ids, _), place in zip(free, (4, 12, 20), strict=False))}
    found = decoded(Decoder(model, ends, 5), prompts, sampling)
    assert len({len(ids) for _, ids, _ in found}) > 3
    model.eval()
    settings = {"max_new_tokens": 24, "do_sample": False, "repetition_penalty": penalty, "eos_token_id": list(ends)}
    for (_, ids, finish), prompt in zip(found, prompts, strict=True):
        output = model.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
        ended = output[-1] in ends
        assert (ids, finish) == (output[:-1] if ended else output, "stop" if ended else "length")


def test_gradients_are_on_while_a_caller_has_a_reply_in_hand():
    model, prompts = make_policy(), make_tokenizer()(PROMPTS)["input_ids"]
    for _ in Decoder(model, {2}, 2).decode(prompts, range(12), Sampling(max_tokens=4)):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def test_two_models_may_be_decoded_by_turns():
    """Each has a prefix of its own, and neither's keys are the other's."""
    prompts, sampling = make_tokenizer()(PROMPTS)["input_ids"], Sampling(max_tokens=12)
    other = make_policy()
    with torch.no_grad():
        other.model.layers[1].self_attn.k_proj.weight.mul_(-3)
        other.lm_head.weight.copy_(other.lm_head.weight.flip(0))
    decoders = [Decoder(model, {2}, 3) for model in (make_policy(), other)]
    alone = [decoded(decoder, prompts, sampling) for decoder in decoders]
    turns = zip(*(decoder.decode(prompts, range(12), sampling) for decoder in decoders), strict=True)
    assert [sorted(found) for found in zip(*turns, strict=True)] == alone and alone[0] != alone[1]


def test_a_stop_string_of_many_bytes_ends_a_row_at_once():
    """It is as many tokens as bytes here. The row is done when they are there, not at its limit."""
    tokenizer = make_tokenizer()
    decoder = Decoder(make_policy(), {2}, 1)
    ids = tokenizer("a→←b")["input_ids"]
    rows = [Row(0, [], 99, None, reply=ids[:length]) for length in range(1, len(ids) + 1)]
    found = [bool(decoder._finish([row], Sampling(99, stop=("→←",)), tokenizer)) for row in rows]
    assert found == [False] * 6 + [True, True]


# The parts


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
    monkeypatch.setattr(drawing, "TOP_K_FIRST", 1)  # the nucleus is larger than the first look
    assert [draw(u, top_p=0.6) for u in (0.62, 0.63)] == [0, 1]


def test_sampled_frequencies_follow_the_distribution():
    """10,000 numbers over p = softmax(0, 1, 2) at T = 2: softmax(0, .5, 1) = .186 .307 .506; 4 deviations are .02."""
    uniforms = torch.rand(10_000, generator=torch.Generator().manual_seed(0)).tolist()
    tokens = sample(torch.tensor([[0.0, 1.0, 2.0]]).expand(10_000, 3), uniforms, Sampling(1, temperature=2.0))
    frequencies = tokens.bincount(minlength=3) / 10_000
    torch.testing.assert_close(frequencies, torch.tensor([0.186, 0.307, 0.506]), atol=0.02, rtol=0)


def test_samples_of_one_prompt_run_it_once(llama, monkeypatch):
    """Three samples of one prompt and one of another give what each alone gives, and two prompts are read."""
    prompts = [[7, 8, 9, 10], [7, 8, 9, 10], [11, 12, 13], [7, 8, 9, 10]]
    sampling, alone = Sampling(max_tokens=8, temperature=1.0), {}
    for index, prompt in enumerate(prompts):
        ((_, ids, _),) = Decoder(llama, {2}, 8).decode([prompt], [index], sampling)
        alone[index] = ids
    read = []
    real = Decoder._run
    monkeypatch.setattr(Decoder, "_run", lambda self, rows, *more: (read.append(len(rows)), real(self, rows, *more))[1])
    together = {index: ids for index, ids, _ in Decoder(llama, {2}, 8).decode(prompts, range(4), sampling)}
    assert together == alone and read == [2]
    assert len({tuple(alone[index]) for index in (0, 1, 3)}) == 3
