"""The hf engine: transformers in this process, for a machine without vLLM.

What a plain `generate` does not do, and why this is several times faster on few-shot prompts: the header that all
prompts share is run once, and rows come and go (decoding.py). Models for which this does not hold (sliding windows,
recurrent layers, soft-capped or biased attention) run without it.
"""

from __future__ import annotations

import os
import random
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, DynamicCache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment.engines.decoding import Batch, GrowingLayer, Row, attend_with_prefix, merge, sample, select
from alignment.generation import Reply, Request, Sampling
from alignment.pretrained import load_pretrained, load_tokenizer, model_identity

TOKEN_BUDGET = 32_768  # prompt and reply tokens in flight, without the shared prefix
MIN_SHARED = 32  # a shorter common prefix isn't worth its own pass


class Unshareable(Exception):
    """This model's attention is more than a softmax over keys: its prefix cannot be shared."""


class HfEngine:
    """transformers in this process. `max_rows` sequences are decoded together at most."""

    def __init__(self, model: str, n_gpu: int, cache_dir: Path | None, max_rows: int):
        self.identity = f"hf {model_identity(model)}"
        self._name, self._n_gpu, self._cache_dir, self._max_rows = model, n_gpu, cache_dir, max_rows
        self._model = None
        self._prefix: list[tuple[Tensor, Tensor]] | None = None  # per layer, each (kv heads, P, head size)

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        if self._model is None:
            self._load()
        all_ids = self.tokenizer([request.prompt for request in requests])["input_ids"]
        room = [self._context - len(ids) for ids in all_ids]
        fitting = [index for index in range(len(requests)) if room[index] > 0]
        yield from ((index, Reply(None, "too long")) for index in range(len(requests)) if room[index] <= 0)
        if not fitting:
            return
        shared = self._share([all_ids[index] for index in fitting])
        rows = [
            Row(
                index,
                all_ids[index][shared:],
                min(sampling.max_tokens, room[index]),
                random.Random(requests[index].seed),
            )
            for index in sorted(fitting, key=lambda index: len(all_ids[index]))
        ]
        with torch.inference_mode():
            yield from self._decode(deque(rows), shared, sampling)
        self._prefix = None

    def _load(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        cuda = torch.cuda.is_available()
        placement = {"device_map": "auto"} if cuda and self._n_gpu > 1 else {}
        AttentionInterface.register("shared_prefix", self._attend)
        AttentionMaskInterface.register("shared_prefix", sdpa_mask)
        self.tokenizer = load_tokenizer(self._name, self._cache_dir)
        placement |= {"cache_dir": self._cache_dir, "dtype": "auto" if cuda else torch.float32}
        self._model = load_pretrained("AutoModelForCausalLM", self._name, **placement).eval()
        if cuda and "device_map" not in placement:
            self._model.cuda()
        config = self._model.config.get_text_config()
        self._context = getattr(config, "max_position_embeddings", None) or 1 << 20
        self._ends = {self.tokenizer.eos_token_id}
        eos = self._model.generation_config.eos_token_id
        self._ends.update(eos if isinstance(eos, list) else [eos])
        layer_types = getattr(config, "layer_types", None) or ["full_attention"]
        self._can_share = (
            self._model._supports_attention_backend
            and set(layer_types) == {"full_attention"}
            and not getattr(config, "sliding_window", None)
        )
        if self._can_share:
            self._model.set_attn_implementation("shared_prefix")

    # The shared prefix

    def _share(self, all_ids: list[list[int]]) -> int:
        """Run what all prompts begin with, once, and keep its keys and values. How many tokens that is, or 0."""
        self._prefix = None
        first, last = min(all_ids), max(all_ids)  # in their order; what these two share, all share
        longest = min(map(len, all_ids)) - 1  # a row keeps a token of its own
        shared = next((i for i in range(longest) if first[i] != last[i]), longest)
        if len(all_ids) < 2 or shared < MIN_SHARED or not self._can_share:
            return 0
        row = Row(-1, first[:shared], 0, random.Random())
        try:
            with torch.inference_mode():
                layers = self._prefill([row], 0).layers
        except Unshareable:
            self._can_share = False
            self._model.set_attn_implementation("sdpa")
            return 0
        self._prefix = [(layer.keys[0], layer.values[0]) for layer in layers]
        return shared

    def _attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        """Attention over the shared prefix and the row's own keys. query (B, H, T, D), key and value (B, K, S, D)."""
        if any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "sliding_window")):
            raise Unshareable
        if self._prefix is None:
            return sdpa_attention_forward(module, query, key, value, attention_mask, 0.0, scaling, **kwargs)
        prefix_key, prefix_value = self._prefix[module.layer_idx]
        prefix_key, prefix_value = prefix_key.to(query.device), prefix_value.to(query.device)
        output = attend_with_prefix(query, key, value, prefix_key, prefix_value, attention_mask, scaling)
        return output.transpose(1, 2).contiguous(), None

    # The batch

    def _decode(self, waiting: deque[Row], shared: int, sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        batch: Batch | None = None
        while waiting or batch:
            alive = [i for i, row in enumerate(batch.rows) if not row.done] if batch else []
            if batch and not alive:
                batch = None
            # Without growing layers a batch cannot change its rows, and runs to its end.
            elif batch and self._can_share and 4 * (len(batch.rows) - len(alive)) >= len(batch.rows):
                batch = select(batch, alive)
            if waiting and (batch is None or (self._can_share and len(batch.rows) == len(alive))):
                free = self._capacity(waiting, sampling) - len(alive)
                if batch is None or 4 * free >= len(alive):
                    fresh = self._prefill([waiting.popleft() for _ in range(min(max(free, 1), len(waiting)))], shared)
                    batch = merge(batch, fresh) if batch else fresh
            if batch is None:
                return
            tokens = sample(batch.logits, [row.draw.random() for row in batch.rows], sampling)
            self._append(batch.rows, tokens.tolist())
            yield from self._finish(batch.rows, sampling)
            if not all(row.done for row in batch.rows):
                self._step(batch, tokens)

    def _capacity(self, waiting: deque[Row], sampling: Sampling) -> int:
        """How many rows fit the token budget; the longest comes last."""
        return max(1, min(self._max_rows, TOKEN_BUDGET // (len(waiting[-1].ids) + sampling.max_tokens)))

    def _prefill(self, rows: list[Row], shared: int) -> Batch:
        """Run the rows' own prompts, after the prefix."""
        device, width = self._model.device, max(len(row.ids) for row in rows)
        ids = torch.tensor([[0] * (width - len(row.ids)) + row.ids for row in rows], device=device)  # (B, S)
        lengths = torch.tensor([len(row.ids) for row in rows], device=device)
        mask = torch.arange(width, device=device) >= (width - lengths)[:, None]  # (B, S)
        positions = (mask.cumsum(-1) - 1).clamp(min=0) + shared
        cache = self._new_cache()
        logits = self._forward(ids, mask, positions, cache)
        return Batch(rows, cache.layers, mask, lengths + shared, logits)

    def _step(self, batch: Batch, tokens: Tensor) -> None:
        cache = self._new_cache()
        cache.layers = batch.layers
        batch.mask = pad(batch.mask, (0, 1), value=True)
        batch.logits = self._forward(tokens[:, None], batch.mask, batch.positions[:, None], cache)
        batch.positions = batch.positions + 1

    def _new_cache(self):
        if self._can_share:
            return Cache(layer_class_to_replicate=GrowingLayer)
        return DynamicCache(config=self._model.config)

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor, cache) -> Tensor:
        """The last position's logits, (B, V) in fp32."""
        output = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].float()

    # Rows

    @staticmethod
    def _append(rows: list[Row], tokens: list[int]) -> None:
        for row, token in zip(rows, tokens, strict=True):
            if not row.done:
                row.reply.append(token)

    def _finish(self, rows: list[Row], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        """Mark and yield the rows that reached an end: of text, a stop string, or the limit."""
        going = [row for row in rows if not row.done]
        reach = max((len(stop) for stop in sampling.stop), default=0) + 1  # tokens; each is a character at least
        tails = self.tokenizer.batch_decode([row.reply[-reach:] for row in going]) if sampling.stop else []
        hit = {id(row) for row, tail in zip(going, tails, strict=False) if any(stop in tail for stop in sampling.stop)}
        for row in going:
            ended = row.reply[-1] in self._ends
            if not (ended or id(row) in hit or len(row.reply) >= row.limit):
                continue
            text = self.tokenizer.decode(row.reply, skip_special_tokens=True)
            cuts = [at for stop in sampling.stop if (at := text.find(stop)) >= 0]
            if ended or cuts or len(row.reply) >= row.limit:
                row.done = True
                yield row.index, Reply(text[: min(cuts, default=None)], "stop" if ended or cuts else "length")
