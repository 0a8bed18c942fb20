"""Sampling for vLLM's CPU build: the nucleus is vLLM's own, and a row's tokens are its own wherever it stands."""

from itertools import cycle

import pytest
import torch
from conftest import make_tokenizer

from alignment.engines.sampling import least_inside

pytestmark = pytest.mark.slow  # importing vLLM takes seconds


def test_the_nucleus_is_vllms_own():
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch

    torch.manual_seed(0)
    logits = torch.randn(4, 5000) * torch.tensor([[1.0], [3.0], [6.0], [0.1]])  # of row 3 over 1,024 tokens are inside
    theirs = apply_top_k_top_p_pytorch(logits.clone(), None, torch.full((4,), 0.9)).isfinite()
    probabilities = logits.softmax(-1)
    assert torch.equal(probabilities >= least_inside(probabilities, 0.9), theirs)
    assert theirs[2].sum() < theirs[1].sum() < 1024 < theirs[3].sum()


@pytest.mark.parametrize("chat", [False, True], ids=["text", "messages"])
def test_a_server_draws_by_what_the_openai_engine_sends(chat):
    """vLLM's own reading of it, for a model whose generation_config.json has settings of all kinds."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    from alignment.engines.openai import OpenAIEngine
    from alignment.generation import Request, Sampling

    model = {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
    model |= {"presence_penalty": 0.5, "frequency_penalty": 0.5}
    engine = OpenAIEngine("m", "http://localhost:1/v1", 1, 5)
    engine._is_vllm = True
    prompt = [{"role": "user", "content": "a"}] if chat else "a"
    settings = engine._settings(Request(prompt, 3), Sampling(7), set())
    body = {name: value for name, value in (settings | settings.pop("extra_body")).items() if value is not None}
    read = (ChatCompletionRequest if chat else CompletionRequest)(**body).to_sampling_params(7, dict(model))
    found = {name: getattr(read, name) for name in model}
    assert found.pop("top_k") in (0, -1)
    ones = dict.fromkeys(("temperature", "top_p", "repetition_penalty"), 1)
    assert found == ones | dict.fromkeys(("min_p", "presence_penalty", "frequency_penalty"), 0) and read.seed == 3


def test_a_rows_tokens_depend_on_its_seed_alone():
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from alignment.engines.vllm_sampling import Choose

    torch.manual_seed(0)
    logits = torch.randn(3, 500)

    def added(row, seed):
        return row, SamplingParams(extra_args={"seed": seed, "top_p": 0.9} if seed else None), [], []

    def tokens(processor, rows, steps):
        chosen = [processor.apply(logits[rows].clone()) for _ in range(steps)]
        return [[int(each[row].argmax()) for each in chosen] for row in range(len(rows))]

    together = Choose(None, None, False)
    together.update_state(BatchUpdate(3, removed=[], added=[added(0, 7), added(1, None), added(2, 9)], moved=[]))
    first = tokens(together, [0, 1, 2], 20)
    assert together.apply(logits.clone())[1].isfinite().all()  # a row that did not ask is left alone
    alone = Choose(None, None, False)
    alone.update_state(BatchUpdate(1, removed=[], added=[added(0, 9)], moved=[]))
    assert tokens(alone, [2], 20) == [first[2]]
    assert len(set(first[2])) > 10 and first[0] != first[2]


def test_a_masked_token_is_never_drawn():
    """As a grammar's mask leaves it, and a penalty and a temperature after that: first, last and in between."""
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate

    from alignment.engines.vllm_sampling import Choose

    logits = torch.zeros(300, 9)
    logits[:, [0, 3, 4, 8]] = float("-inf")
    logits = logits * 1.5 / 0.7
    params = [SamplingParams(extra_args={"seed": seed, "top_p": (1.0, 0.9)[seed % 2]}) for seed in range(300)]
    choose = Choose(None, None, False)
    choose.update_state(BatchUpdate(300, removed=[], added=[(i, p, [], []) for i, p in enumerate(params)], moved=[]))
    assert choose.apply(logits.clone()).argmax(-1).unique().tolist() == [1, 2, 5, 6, 7]
    for chooser, extreme in zip(choose.choosers.values(), cycle([0.0, 1 - 2**-53]), strict=False):
        chooser.draw.random = lambda extreme=extreme: extreme  # the least and the most that it gives
    assert choose.apply(logits.clone()).argmax(-1).unique().tolist() == [1, 7]


def test_what_ended_a_reply_is_not_in_its_ids():
    """EOS and an id that ends stand last in vLLM's ids; a stop string's tokens are there; an abort is no reply."""
    from vllm.outputs import CompletionOutput

    from alignment.engines.vllm import reply_of

    tokenizer = make_tokenizer()
    spelled = tokenizer("abcd")["input_ids"]

    def reply(text, ids, finish, reason=None):
        return reply_of(CompletionOutput(0, text, ids, None, None, finish_reason=finish, stop_reason=reason), tokenizer)

    assert reply("abcd", [*spelled, 2], "stop") == ("abcd", "stop", tuple(spelled))
    assert reply("abc", spelled, "stop", spelled[-1]) == ("abc", "stop", tuple(spelled[:3]))
    assert reply("ab", spelled, "stop", "cd") == ("ab", "stop", tuple(spelled[:2]))
    assert reply("abcd", spelled, "length") == ("abcd", "length", tuple(spelled))
    for finish in ("abort", None):
        assert reply("abcd", spelled, finish).text is None and reply("abcd", spelled, finish).may_heal
