"""Decoding by a causal model in hand, token ids in and token ids out: the hf engine's work, and RL's rollouts.

    decoder = Decoder(model, ends={tokenizer.eos_token_id}, max_rows=64)
    for index, ids, finish in decoder.decode(prompts, seeds, Sampling(max_tokens=64)):  # as they finish

What a plain `generate` does not do, and why this is several times faster on few-shot prompts:

* The keys and values of a header that all prompts share are computed once, and kept once, not once a row: attention
  over them is one matrix product for the whole batch, and the softmax spans header and row together.
* Several samples of a prompt run it once.
* A row that is finished leaves, and a waiting one takes its place (`select`, `merge`).
* Keys and values grow in place instead of being copied at every step.

Models for which this does not hold (sliding windows, recurrent layers, soft-capped or biased attention) run without it.
"""

from __future__ import annotations

import inspect
import random
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment.command_line import UserError
from alignment.engines.rows import Batch, GrowingLayer, Row, merge, select
from alignment.engines.sampling import penalised, sample
from alignment.generation import Sampling

TOKEN_BUDGET = 32_768  # prompt and reply tokens in flight on a CPU, without the shared prefix
SCORE_BYTES = 12  # of one query with one key of one head, while prompts are read: twice in fp32, and the weights
MIN_SHARED = 32  # a shorter common prefix isn't worth its own pass
ATTENTION = "shared_prefix"  # what transformers knows `attend` by


class Unshareable(Exception):
    """This model's attention is more than a softmax over keys: its prefix cannot be shared."""


class Decoder:
    """A causal model that continues prompts, at most `max_rows` of them together, to any of the ids `ends`; prompt and
    reply are `context` tokens at most, by default as many as the model was made for.

    The model may be one in training: while `decode` is iterated over it is in eval mode, without gradients, and has
    another attention; afterwards it is as it was found.
    """

    def __init__(self, model: Any, ends: Collection[int], max_rows: int, context: int | None = None):
        self._model, self._ends, self._max_rows = model, set(ends), max_rows
        self._cache_name = cache_name(model)
        self._prefix: Prefix | None = None
        self._tokens = TOKEN_BUDGET
        config = model.config.get_text_config()
        longest = getattr(config, "max_position_embeddings", None) or 1 << 20
        if context and context > longest:
            raise UserError(f"--max_model_len {context} is more than the model's {longest} tokens")
        self._context = context or longest
        layer_types = getattr(config, "layer_types", None) or ["full_attention"]
        self._can_share = (
            model._supports_attention_backend
            and set(layer_types) == {"full_attention"}
            and not getattr(config, "sliding_window", None)
        )
        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)

    def decode(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], sampling: Sampling, tokenizer: Any = None
    ) -> Iterator[tuple[int, list[int] | None, str]]:
        """(index, ids, finish) of each prompt, as they finish: "stop", "length", or None for its ids and why.

        `ids` are without the id that ended them, one of the decoder's or of `sampling.stop_ids`, but with the tokens of
        a stop string, which needs the `tokenizer`. Of `sampling` the schema is the caller's to check.
        """
        assert tokenizer is not None or not sampling.stop, "stop strings need a tokenizer"
        room = [self._context - len(ids) for ids in prompts]
        fitting = [index for index, ids in enumerate(prompts) if ids and room[index] > 0]
        for index in sorted(set(range(len(prompts))) - set(fitting)):
            yield index, None, "too long" if prompts[index] else "refused: a prompt without a token"
        if not fitting:
            return
        with self._borrowed():
            shared = self._share([list(prompts[index]) for index in fitting])
            self._tokens = self._budget(len(shared), max(map(len, prompts)) + sampling.max_tokens)
            waiting = deque(
                Row(
                    index,
                    list(prompts[index][len(shared) :]),
                    min(sampling.max_tokens, room[index]),
                    random.Random(seeds[index]),
                )
                for index in sorted(fitting, key=lambda index: len(prompts[index]))
            )
            batch: Batch | None = None
            while waiting or batch:
                batch = self._admit(batch, waiting, shared, sampling)
                if batch:
                    yield from self._advance(batch, sampling, tokenizer)

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        """The model in eval mode; then as it was, module by module, its attention too."""
        training = [module for module in self._model.modules() if module.training]
        attention = self._model.config._attn_implementation
        self._model.eval()
        try:
            yield
        finally:
            self._prefix = None
            if self._model.config._attn_implementation != attention:
                self._model.set_attn_implementation(attention)
            for module in training:
                module.training = True

    @torch.inference_mode()
    def _share(self, prompts: list[list[int]]) -> list[int]:
        """Run what all prompts begin with, once, and keep its keys and values. These tokens, or none of them."""
        first, last = min(prompts), max(prompts)  # in their order; what these two share, all share
        longest = min(map(len, prompts)) - 1  # a row keeps a token of its own
        shared = next((i for i in range(longest) if first[i] != last[i]), longest)
        if len(prompts) < 2 or shared < MIN_SHARED or not self._can_share:
            return []
        attention = self._model.config._attn_implementation
        self._model.set_attn_implementation(ATTENTION)
        try:
            layers = self._prefill([Row(-1, first[:shared], 0, random.Random())], []).layers
        except Unshareable:
            self._can_share = False
            self._model.set_attn_implementation(attention)
            return []
        self._prefix = [(layer.keys[0], layer.values[0]) for layer in layers]
        return first[:shared]

    # The batch

    def _budget(self, shared: int, longest: int) -> int:
        """Tokens in flight: what half of a GPU's free memory holds of keys and values, and of scores as long as prompts
        are read all at once, each token's with the prefix and the longest row."""
        device = self._model.device
        if device.type != "cuda":
            return TOKEN_BUDGET
        config = self._model.config.get_text_config()
        heads, size = config.num_attention_heads, self._model.dtype.itemsize
        head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
        cached = (
            2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or heads) * head_size * size
        )
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + unused
        return free // 2 // (cached + heads * (shared + longest) * SCORE_BYTES)

    @torch.inference_mode()
    def _admit(self, batch: Batch | None, waiting: deque[Row], shared: list[int], sampling: Sampling) -> Batch | None:
        """The batch after rows that are finished have left it and waiting ones have joined; None where none is left."""
        alive = [i for i, row in enumerate(batch.rows) if not row.done] if batch else []
        if batch and not alive:
            batch = None
        # Without growing layers a batch cannot change its rows, and runs to its end.
        elif batch and self._can_share and 4 * (len(batch.rows) - len(alive)) >= len(batch.rows):
            batch = select(batch, alive)
        if waiting and (batch is None or (self._can_share and len(batch.rows) == len(alive))):
            longest = len(waiting[-1].ids) + sampling.max_tokens  # the longest comes last
            free = max(1, min(self._max_rows, self._tokens // longest)) - len(alive)
            if batch is None or 4 * free >= len(alive):
                rows = [waiting.popleft() for _ in range(min(max(free, 1), len(waiting)))]
                fresh = self._prefill(rows, shared, sampling.repetition_penalty != 1)
                batch = merge(batch, fresh) if batch else fresh
        return batch

    @torch.inference_mode()
    def _advance(self, batch: Batch, sampling: Sampling, tokenizer: Any) -> list[tuple[int, list[int], str]]:
        """Give every row a token. Those that it ends."""
        logits = penalised(batch.logits, batch.seen, sampling.repetition_penalty)
        tokens = sample(logits, [row.draw.random() for row in batch.rows], sampling)
        for row, token in zip(batch.rows, tokens.tolist(), strict=True):
            if not row.done:
                row.reply.append(token)
        found = self._finish([row for row in batch.rows if not row.done], sampling, tokenizer)
        if not all(row.done for row in batch.rows):
            self._step(batch, tokens)
        return found

    def _finish(self, rows: list[Row], sampling: Sampling, tokenizer: Any) -> list[tuple[int, list[int], str]]:
        """Mark and give the rows that reached an end: an id that ends, a stop string, or the limit."""
        ends = self._ends.union(sampling.stop_ids)
        reach = max((len(stop.encode()) for stop in sampling.stop), default=0) + 1  # tokens; each is a byte at least
        tails = tokenizer.batch_decode([row.reply[-reach:] for row in rows]) if sampling.stop else [""] * len(rows)
        found = []
        for row, tail in zip(rows, tails, strict=True):
            ended, full = row.reply[-1] in ends, len(row.reply) >= row.limit
            stopped = any(stop in tail for stop in sampling.stop)
            if stopped or (full and sampling.stop):
                text = tokenizer.decode(row.reply, skip_special_tokens=True)
                stopped = any(stop in text for stop in sampling.stop)
            if ended or stopped or full:
                row.done = True
                ids = row.reply[:-1] if ended else row.reply
                found.append((row.index, ids, "stop" if ended or stopped else "length"))
        return found

    def _prefill(self, rows: list[Row], shared: list[int], penalty: bool = False) -> Batch:
        """Run the rows' own prompts, after the prefix; several samples of a prompt run it once."""
        first: dict[tuple[int, ...], Row] = {}
        for row in rows:
            first.setdefault(tuple(row.ids), row)
        if len(first) == len(rows) or not self._can_share:
            return self._run(rows, shared, penalty)
        place = {ids: at for at, ids in enumerate(first)}
        batch = select(self._run(list(first.values()), shared, penalty), [place[tuple(row.ids)] for row in rows])
        batch.rows = rows
        return batch

    def _run(self, rows: list[Row], shared: list[int], penalty: bool) -> Batch:
        device, width = self._model.device, max(len(row.ids) for row in rows)
        ids = torch.tensor([[0] * (width - len(row.ids)) + row.ids for row in rows], device=device)  # (B, S)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        mask = torch.arange(width, device=device) >= (width - lengths)[:, None]  # (B, S)
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + len(shared)
        cache = self._new_cache()
        logits = self._forward(ids, mask, positions, cache)
        seen = None
        if penalty:
            seen = torch.zeros_like(logits, dtype=torch.bool)  # (B, V)
            for own, row in zip(seen, rows, strict=True):
                own[shared + row.ids] = True
        return Batch(rows, cache.layers, mask, lengths + len(shared), logits, seen)

    def _step(self, batch: Batch, tokens: Tensor) -> None:
        """Run the rows' new tokens, (B,)."""
        cache = self._new_cache()
        cache.layers = batch.layers
        batch.mask = pad(batch.mask, (0, 1), value=True)
        batch.logits = self._forward(tokens[:, None], batch.mask, batch.positions[:, None], cache)
        batch.positions = batch.positions + 1
        if batch.seen is not None:
            batch.seen.scatter_(1, tokens[:, None], True)

    def _new_cache(self) -> Cache:
        if self._can_share:
            return Cache(layer_class_to_replicate=GrowingLayer)
        return DynamicCache(config=self._model.config)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """The last position's logits, (B, V) in fp32."""
        seen_before = ids.shape[1] < mask.shape[1]
        is_state = self._cache_name == "cache_params"  # it has forgotten the padding, and masks what is new alone
        outer = PREFIX.set(self._prefix)
        try:
            output = self._model(
                input_ids=ids,
                attention_mask=None if is_state and seen_before else mask,
                position_ids=positions,
                use_cache=True,
                logits_to_keep=1,
                **{self._cache_name: cache},
            )
        finally:
            PREFIX.reset(outer)
        return output.logits[:, -1].float()


# Attention and the cache


def cache_name(model: Any) -> str:
    """By what name a model takes what it has seen. Raises UserError where it has another way, and would silently see
    its last token alone."""
    taken = inspect.signature(getattr(model, "get_base_model", lambda: model)().forward).parameters
    found = [name for name in ("past_key_values", "cache_params") if name in taken]
    if not found:
        raise UserError(
            f"{type(model).__name__} keeps what it has seen in no cache that is known here; no decoding by it"
        )
    return found[0]


Prefix = list[tuple[Tensor, Tensor]]  # keys and values per layer, each (kv heads, P, head size)
PREFIX: ContextVar[Prefix | None] = ContextVar("prefix", default=None)  # of the decoder whose model runs


def attend(module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
    """Attention over the shared prefix and the row's own keys. query (B, H, T, D), key and value (B, K, S, D)."""
    if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "sliding_window")):
        raise Unshareable
    prefix = PREFIX.get()
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **kwargs)
    prefix_key, prefix_value = (each.to(query.device) for each in prefix[module.layer_idx])
    output = attend_with_prefix(query, key, value, prefix_key, prefix_value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None


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
