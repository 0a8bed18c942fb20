"""Rows in flight: what decoding.py keeps of each, keys and values that grow in place, rows that leave and join."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.cache_utils import DynamicLayer


@dataclass
class Row:
    """One prompt on its way."""

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
    seen: Tensor | None  # (B, V) bool, the tokens of prompt and reply, where repeating them has a penalty


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
    seen = None if batch.seen is None else batch.seen[index]
    return Batch(rows, batch.layers, mask[:, start:], batch.positions[index], batch.logits[index], seen)


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
    seen = None if old.seen is None else torch.cat([old.seen, new.seen])
    return Batch(old.rows + new.rows, old.layers, mask, positions, logits, seen)
