"""The hf engine's working parts: rows in flight, a cache that grows, attention over a shared prefix, sampling.

* The keys and values of a header that all prompts share are kept once, not once a row: attention over them is one
  matrix product for the whole batch, and the softmax spans header and row together.
* A row that is finished leaves, and a waiting one takes its place (`select`, `merge`).
* Keys and values grow in place instead of being copied at every step.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer

from alignment.generation import Sampling

TOP_K_FIRST = 1_024  # the nucleus is looked for here before the whole vocabulary is sorted


@dataclass
class Row:
    """One request on its way."""

    index: int
    ids: list[int]  # the prompt's own part, after the shared prefix
    limit: int  # tokens at most
    draw: random.Random
    reply: list[int] = field(default_factory=list)
    done: bool = False


@dataclass
class Batch:
    """Rows in flight. Columns are slots of the cache, right-aligned: a shorter row has masked slots on its left."""

    rows: list[Row]
    layers: list  # of the cache, one per decoder layer
    mask: Tensor  # (B, S) bool, the slots that hold a token
    positions: Tensor  # (B,) of the next token
    logits: Tensor  # (B, V) for the next token


def attend_with_prefix(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
) -> Tensor:
    """Softmax attention over a prefix that all rows share and each row's own keys, causal among the latter.

    query (B, H, T, D); key, value (B, K, S, D) with H a multiple of K; prefix_key, prefix_value (K, P, D); mask
    (B, 1, T, S) bool, True where attended, or None for no padding. Returns (B, H, T, D).
    """
    (B, H, T, D), K, S, P = query.shape, key.shape[1], key.shape[2], prefix_key.shape[1]
    scaling = D**-0.5 if scaling is None else scaling
    grouped = query.reshape(B, K, H // K * T, D) * scaling
    own = (grouped @ key.transpose(-1, -2)).float()  # (B, K, GT, S)
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None:
        own = own.view(B, K, H // K, T, S).masked_fill(~mask[:, :, None], float("-inf")).view(B, K, -1, S)
    stacked = grouped.transpose(0, 1).reshape(K, -1, D)  # (K, B GT, D): one product for the whole batch
    common = (stacked @ prefix_key.transpose(-1, -2)).view(K, B, -1, P).transpose(0, 1).float()  # (B, K, GT, P)
    weights = torch.cat([common, own], dim=-1).softmax(dim=-1).to(value.dtype)
    common, own = weights.split([P, S], dim=-1)
    shared_out = (common.transpose(0, 1).reshape(K, -1, P) @ prefix_value).view(K, B, -1, D).transpose(0, 1)
    return (shared_out + own @ value).reshape(B, H, T, D)


class GrowingLayer(DynamicLayer):
    """A cache layer whose keys and values (B, K, S, D) are views of buffers with room to grow."""

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.set(key_states, value_states)
            return self.keys, self.values
        used, total = self.keys.shape[2], self.keys.shape[2] + key_states.shape[2]
        if total > self.buffers[0].shape[2]:
            self.buffers = tuple(pad(old, (0, 0, 0, total + 64 - used)) for old in (self.keys, self.values))
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, used:total] = new
        self.keys, self.values = (buffer[:, :, :total] for buffer in self.buffers)
        return self.keys, self.values

    def set(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = self.buffers = (keys, values)


def select(batch: Batch, alive: list[int]) -> Batch:
    """The batch with only these rows, and without the slots that none of them uses."""
    index = torch.tensor(alive, device=batch.mask.device)
    mask = batch.mask[index]
    start = int(mask.any(0).int().argmax())
    for layer in batch.layers:
        rows = index.to(layer.keys.device)
        layer.set(*(old[rows, :, start:] for old in (layer.keys, layer.values)))
    rows = [batch.rows[i] for i in alive]
    return Batch(rows, batch.layers, mask[:, start:], batch.positions[index], batch.logits[index])


def merge(old: Batch, new: Batch) -> Batch:
    """Both batches' rows side by side, right-aligned."""
    width = max(old.mask.shape[1], new.mask.shape[1])
    missing = width - old.mask.shape[1], width - new.mask.shape[1]
    for one, other in zip(old.layers, new.layers, strict=True):
        keys = [pad(layer.keys, (0, 0, gap, 0)) for layer, gap in zip((one, other), missing, strict=True)]
        values = [pad(layer.values, (0, 0, gap, 0)) for layer, gap in zip((one, other), missing, strict=True)]
        one.set(torch.cat(keys), torch.cat(values))
    mask = torch.cat([pad(batch.mask, (gap, 0)) for batch, gap in zip((old, new), missing, strict=True)])
    positions, logits = torch.cat([old.positions, new.positions]), torch.cat([old.logits, new.logits])
    return Batch(old.rows + new.rows, old.layers, mask, positions, logits)


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
