"""Top-p for vLLM's CPU build, whose own sorts the whole vocabulary at every step: half of the time of a small model.

Given to `LLM(logits_processors=[...])` by alignment/generation.py. A request asks for it by extra_args {"nucleus": p}
and leaves vLLM's top_p at 1. The only module that imports vLLM at its top; vLLM's worker processes import it.
"""

from torch import Tensor
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from alignment.decoding import nucleus


class Nucleus(LogitsProcessor):
    """Leaves each row's nucleus and sets the other logits to -inf."""

    def __init__(self, vllm_config, device, is_pin_memory):
        self.top_p: dict[int, float] = {}  # row of the batch -> p

    def is_argmax_invariant(self) -> bool:
        return True  # so it runs after the temperature, and not at all for a greedy batch

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(
            self.top_p, batch_update, lambda params, *_: (params.extra_args or {}).get("nucleus")
        )

    def apply(self, logits: Tensor) -> Tensor:
        """(B, V) -> (B, V), in place."""
        for top_p in set(self.top_p.values()):
            rows = [row for row, p in self.top_p.items() if p == top_p]
            probabilities = logits[rows].float().softmax(-1)
            values, _, inside = nucleus(probabilities, top_p)
            least = values.gather(1, inside.sum(1, keepdim=True) - 1)  # (B, 1), the least likely one inside
            logits[rows] = logits[rows].masked_fill(probabilities < least, float("-inf"))
        return logits
