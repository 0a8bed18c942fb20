"""The hf engine: transformers in this process, for a machine without vLLM. decoding.py decodes; this loads a model and
its tokenizer, and turns requests into ids and ids into replies.

It cannot decode under a schema: it samples freely, and generate() checks the reply and asks again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from alignment.command_line import UserError
from alignment.engines.decoding import Decoder
from alignment.engines.prompts import cut_reply, identity, prompt_ids
from alignment.generation import Reply, Request, Sampling
from alignment.pretrained import first_line, load_pretrained, load_tokenizer


class HfEngine:
    """transformers in this process. `max_rows` sequences are decoded together at most."""

    def __init__(
        self,
        model: str,
        n_gpu: int,
        cache_dir: Path | None,
        max_rows: int,
        *,
        max_model_len: int | None = None,
        dtype: str | None = None,
    ):
        self.identity = identity("hf", model, max_model_len, dtype)
        self._name, self._n_gpu, self._cache_dir, self._max_rows = model, n_gpu, cache_dir, max_rows
        self._max_model_len, self._dtype = max_model_len, dtype
        self._decoder: Decoder | None = None

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        try:
            yield from self._complete(requests, sampling)
        except torch.OutOfMemoryError as error:
            remedy = (
                "give a smaller --batch_size, or spread the model by --n_gpu; the same command goes on from what is"
            )
            raise UserError(f"{first_line(error).partition('. ')[0]}; {remedy} finished") from error

    def _complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        if self._decoder is None:
            self._load()
        for chat in (False, True):  # their replies end at other ids
            group = [index for index, request in enumerate(requests) if request.is_chat == chat]
            prompts, ends = prompt_ids(self.tokenizer, [requests[index] for index in group])
            seeds = [requests[index].seed for index in group]
            ended = replace(sampling, stop_ids=(*sampling.stop_ids, *ends))
            for at, ids, finish in self._decoder.decode(prompts, seeds, ended, self.tokenizer):
                if ids is None:
                    yield group[at], Reply(None, finish)
                else:
                    text, kept = cut_reply(self.tokenizer, ids, sampling.stop)
                    yield group[at], Reply(text, finish, tuple(kept))

    def _load(self) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        cuda = torch.cuda.is_available()
        placement = {"device_map": "auto"} if cuda and self._n_gpu > 1 else {}
        self.tokenizer = load_tokenizer(self._name, self._cache_dir)
        dtype = self._dtype or ("auto" if cuda else "float32")
        placement |= {"cache_dir": self._cache_dir, "dtype": dtype}
        self._model = load_pretrained("AutoModelForCausalLM", self._name, **placement).eval()
        if cuda and "device_map" not in placement:
            self._model.cuda()
        eos = self._model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
        self._decoder = Decoder(self._model, ends, self._max_rows, self._max_model_len)
