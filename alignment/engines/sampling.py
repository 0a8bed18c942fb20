"""Logits -> tokens, for the engines that draw them here: decoding.py, and vllm_sampling.py on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from alignment.generation import Sampling

TOP_K_FIRST = 1_024  # the nucleus is looked for here before the whole vocabulary is sorted


def penalised(logits: Tensor, seen: Tensor | None, penalty: float) -> Tensor:
    """Logits (B, V), those of `seen` tokens (B, V) divided by the penalty where positive, else multiplied by it."""
    if seen is None:
        return logits
    return logits.where(~seen, torch.where(logits < 0, logits * penalty, logits / penalty))


def sample(logits: Tensor, uniforms: list[float], sampling: Sampling) -> Tensor:
    """One token per row, (B,), from logits (B, V), by the row's own number in [0, 1): nucleus sampling by inversion."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    return pick((logits / sampling.temperature).softmax(-1), uniforms, sampling.top_p)


def pick(probabilities: Tensor, uniforms: list[float], top_p: float) -> Tensor:
    """The token (B,) at which each row's nucleus, (B, V) in the vocabulary's order, adds up to more than its number."""
    if top_p < 1:
        probabilities = probabilities.masked_fill(probabilities < least_inside(probabilities, top_p), 0)
    cumulated = probabilities.double().cumsum(-1)  # (B, V)
    goal = torch.tensor(uniforms, dtype=torch.float64, device=cumulated.device)[:, None] * cumulated[:, -1:]
    return torch.searchsorted(cumulated, goal, right=True)[:, 0].clamp(max=cumulated.shape[1] - 1)


def least_inside(probabilities: Tensor, top_p: float) -> Tensor:
    """The smallest probability in each row's nucleus, (B, V) -> (B, 1): the likeliest tokens that together reach
    `top_p`, the one that crosses it included.

    Sorting a whole vocabulary costs a CPU more than running a small model, so only a row whose nucleus is flatter than
    its TOP_K_FIRST likeliest tokens is sorted.
    """
    values = probabilities.topk(min(TOP_K_FIRST, probabilities.shape[1]), dim=-1).values  # (B, k) descending
    before = values.double().cumsum(-1) - values  # (B, k), what the likelier ones add up to
    least = values.gather(1, (before < top_p).sum(1, keepdim=True) - 1)
    flat = (before[:, -1] + values[:, -1] < top_p).nonzero()[:, 0]
    if len(flat) and values.shape[1] < probabilities.shape[1]:
        values = probabilities[flat].sort(dim=-1, descending=True).values
        before = values.double().cumsum(-1) - values
        least[flat] = values.gather(1, (before < top_p).sum(1, keepdim=True) - 1)
    return least
