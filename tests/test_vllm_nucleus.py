"""Top-p for vLLM's CPU build: the same nucleus as vLLM's own, whatever rows come, move and go."""

import pytest
import torch

pytestmark = pytest.mark.slow  # importing vLLM takes seconds


def test_it_leaves_what_vllms_own_top_p_leaves():
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p

    from alignment.vllm_nucleus import Nucleus

    torch.manual_seed(0)
    logits = torch.randn(4, 5000) * torch.tensor([[1.0], [3.0], [6.0], [0.1]])  # row 3's nucleus is over 1,024 tokens
    processor = Nucleus(None, None, False)
    wanted = [0.9, 0.5, None, 0.9]
    params = [SamplingParams(extra_args={"nucleus": p} if p else None) for p in wanted]
    added = [(row, each, [], []) for row, each in enumerate(params)]
    processor.update_state(BatchUpdate(batch_size=4, removed=[], added=added, moved=[]))
    ours = processor.apply(logits.clone())
    theirs = apply_top_k_top_p(logits.clone(), None, torch.tensor([p or 1.0 for p in wanted]))
    assert torch.equal(ours.isinf(), theirs.isinf()) and torch.equal(ours[~ours.isinf()], theirs[~theirs.isinf()])
    assert 0 < ours[1].isfinite().sum() < ours[0].isfinite().sum() < ours[2].isfinite().sum() == 5000
    assert ours[3].isfinite().sum() > 1024

    processor.update_state(BatchUpdate(batch_size=3, removed=[0], added=[], moved=[]))
    assert torch.equal(processor.apply(logits.clone())[0], logits[0])
