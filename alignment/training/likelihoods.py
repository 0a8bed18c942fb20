"""How likely a policy finds given responses: sums of log-probabilities of their tokens, prompts spelled as in training.

    policy = Likelihoods("outputs/janus")                        # what is no policy is refused; nothing is loaded yet
    tokens = policy.lengths(rows, responses)                     # None where prompt and response do not fit, uncut
    sums = scored(policy, rows, responses, journal=journal, label="log p")     # alignment/engines/scoring.py: a Scorer

Responses to one prompt that stand next to each other are one batch, where their prompt is computed once (unpadding.py),
and no (batch, length, vocabulary) tensor is held (logps.py).
"""

from __future__ import annotations

import gc
import math
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

import torch

from alignment.command_line import UserError
from alignment.pretrained import check_model, load_pretrained, model_identity, padding_id
from alignment.templates import RAW, rendering_from
from alignment.training.batches import Sample, budgeted_batches, collate
from alignment.training.checking import load_policy
from alignment.training.logps import response_logps, row_sums
from alignment.training.reward_model import group_lengths


class Likelihoods:
    """log p(response | row) under a causal model or an adapter, as a Scorer (engines/scoring.py).

    The template is the given one, else that which the saved folder names, else the tokenizer's own. With `ends` the
    token that closes a response counts as a token of it, as in training; without, what may come after is left open.
    Raises UserError for a reward model.
    """

    def __init__(
        self,
        name: str,
        template: str | None = None,
        *,
        ends: bool = True,
        dtype: str = "auto",
        batch_tokens: int = 8192,
    ):
        config = check_policy(name)
        asked = Namespace(template=template, backend="hf", model_name_or_path=name, cache_dir=None)
        self.template = rendering_from(asked, None)
        if self.template.name == RAW:
            raise UserError(f"the tokenizer of {name} has no chat template; name a template, as almost or mistral")
        self.identity = f"log p {model_identity(name)} {self.template.name} {dtype} {'with' if ends else 'no'} end"
        self._name, self._ends, self._dtype, self._batch_tokens = name, ends, dtype, batch_tokens
        self._room = getattr(config.get_text_config(), "max_position_embeddings", None) or math.inf
        self._model: Any = None

    def samples(self, rows: Sequence[dict], responses: Sequence[str]) -> list[Sample]:
        """Prompt and response of each row, neither cut."""
        replies = self.template.response_ids(responses)
        replies = replies if self._ends else [ids[:-1] for ids in replies]
        pairs = zip(self.template.prompt_ids(rows), replies, strict=True)
        return [Sample(row, prompt + reply, len(prompt)) for row, (prompt, reply) in enumerate(pairs)]

    def lengths(self, rows: Sequence[dict], responses: Sequence[str]) -> list[int | None]:
        """Tokens of each response that count, None where the model has no room for prompt and response."""
        found = self.samples(rows, responses)
        return [len(each) - each.prompt_length if len(each) <= self._room else None for each in found]

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        """log p of each response, summed over its tokens. Raises UserError where one is not finite."""
        if self._model is None:
            self._model = load_policy(self._name, self._dtype, "cuda" if torch.cuda.is_available() else "cpu")
        pad_id = padding_id(self.template.tokenizer)
        sums = sample_logps(self._model, self.samples(rows, responses), pad_id, self._batch_tokens)
        for total, response in zip(sums, responses, strict=True):
            if not math.isfinite(total):
                raise UserError(f"{self._name} gives log p {total} of {response[:60]!r}; are its weights sound?")
        return sums

    def release(self) -> None:
        """Give the model's memory back, for an engine to come. The next score loads it again."""
        self._model = None
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


@torch.inference_mode()
def sample_logps(model: Any, samples: Sequence[Sample], pad_id: int, batch_tokens: int) -> list[float]:
    """The sum of log-probabilities of each sample's labels, in order, by a model of `speak_logps`. Samples of one
    prompt that stand next to each other share it; a batch has `batch_tokens` with padding at most, or one sample."""
    device, sums = next(model.parameters()).device, [0.0] * len(samples)
    for batch in budgeted_batches(group_lengths(samples), batch_tokens):
        tensors = collate([(samples[i],) for i in batch], pad_id)
        logps, lines = response_logps(model, {name: each.to(device) for name, each in tensors.items()})
        for i, total in zip(batch, row_sums(logps, lines, len(batch)).tolist(), strict=True):
            sums[i] = total
    return sums


def check_policy(name: str) -> Any:
    """The config of a causal model. Raises UserError for a reward model, whose head for words would be made up."""
    check_model(name)
    config = load_pretrained("AutoConfig", name)
    if (config.architectures or [""])[0].endswith("ForSequenceClassification") or config.num_labels == 1:
        raise UserError(f"{name} is a reward model, which gives no probabilities of texts; name a policy")
    return config
