"""Sampling for vLLM's CPU build: the nucleus is vLLM's own, and a row's tokens are its own wherever it stands."""

import pytest
import torch

from alignment.engines.decoding import least_inside

pytestmark = pytest.mark.slow  # importing vLLM takes seconds


def test_the_nucleus_is_vllms_own():
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    torch.manual_seed(0)
    logits = torch.randn(4, 5000) * torch.tensor([[1.0], [3.0], [6.0], [0.1]])  # of row 3 over 1,024 tokens are inside
    theirs = apply_top_k_top_p(logits.clone(), None, torch.full((4,), 0.9)).isfinite()
    probabilities = logits.softmax(-1)
    assert torch.equal(probabilities >= least_inside(probabilities, 0.9), theirs)
    assert theirs[2].sum() < theirs[1].sum() < 1024 < theirs[3].sum()


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
