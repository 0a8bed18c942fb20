"""Sampling for vLLM's CPU build, whose own takes longer than a small model's forward: it sorts the whole vocabulary for
top-p, and fills a vocabulary of noise from every seeded request's generator.

Given to `LLM(logits_processors=[...])` by vllm.py. A request asks for it by extra_args
{"seed", "top_p"} and leaves vLLM's own at their defaults. The only module
that imports vLLM at its top: vLLM's worker processes load it.
"""

import random
from typing import NamedTuple

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from alignment.engines.sampling import pick


class Chooser(NamedTuple):
    draw: random.Random
    top_p: float


class Choose(LogitsProcessor):
    """Draws each row's token, and leaves it as the only one with a probability."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self.choosers: dict[int, Chooser] = {}  # row of the batch -> its own

    def is_argmax_invariant(self) -> bool:
        return True  # so it runs after the temperature, and not at all for a greedy batch

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self.choosers, batch_update, self._chooser)

    @staticmethod
    def _chooser(params, prompt_ids, output_ids) -> Chooser | None:
        """A new row's; one that comes back after vLLM had to put it aside goes on with other numbers."""
        wanted = params.extra_args or {}
        if "seed" not in wanted:
            return None
        return Chooser(random.Random(f"{wanted['seed']} {len(output_ids)}"), wanted["top_p"])

    def apply(self, logits: Tensor) -> Tensor:
        """(B, V) -> (B, V), in place."""
        for top_p in {chooser.top_p for chooser in self.choosers.values()}:
            rows = sorted(row for row, chooser in self.choosers.items() if chooser.top_p == top_p)
            uniforms = [self.choosers[row].draw.random() for row in rows]
            tokens = pick(logits[rows].float().softmax(-1), uniforms, top_p)
            logits[rows] = float("-inf")
            logits[rows, tokens] = 0.0
        return logits
