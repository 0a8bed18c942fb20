"""What benchmarks ask of a policy whose next tokens are the answer: letters (static HHH), true or false, and choices
(TruthfulQA). What texts begin with in common goes through the model once (unpadding.py).

    policy = asked_policy("outputs/sft", dtype="auto", max_length=None, batch_tokens=8192)
    letter_scores(policy, comparisons)                                   # [[p(A), p(B)], the same swapped] of each
    choice_logps(policy, [primed(q) for q in questions], [q.choices for q in questions])
    verdict_logps(policy, [[true_or_false(q, c) for c in q.choices] for q in questions])
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from alignment.command_line import Progress, UserError
from alignment.pretrained import padding_id, training_tokenizer
from alignment.static_hhh import LETTERS, Comparison, question
from alignment.templates import Template, load_template
from alignment.token_ids import continuation_ids, text_ids
from alignment.training.batches import Sample, TooLong, budgeted_batches, collate, encode
from alignment.training.checking import load_policy
from alignment.training.likelihoods import check_policy, sample_logps
from alignment.truthfulqa import VERDICTS


class Policy(NamedTuple):
    """A causal model in eval mode, the `almost` template through its tokenizer, and how long texts and batches are."""

    model: Any
    template: Template
    limit: int
    batch_tokens: int

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that are data throughout."""
        return text_ids(self.template.tokenizer, map(self.template.mark, texts))


def asked_policy(name: str, *, dtype: str | None, max_length: int | None, batch_tokens: int) -> Policy:
    """A policy from a folder or the hub, or an adapter. Raises UserError for a reward model."""
    config = check_policy(name)
    template = load_template("almost", training_tokenizer(name))
    model = load_policy(name, dtype or "auto", "cuda" if torch.cuda.is_available() else "cpu")
    return Policy(model, template, max_length or config.get_text_config().max_position_embeddings, batch_tokens)


def opened_alike(policy: Policy, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """The ids that all words begin with, as a tokenizer may spell their space apart, and the id of each after these."""
    spelled = continuation_ids(policy.template.tokenizer, words)
    shared = len(os.path.commonprefix(spelled))
    return spelled[0][:shared], [ids[shared] for ids in spelled]


# Letters


def letter_scores(
    policy: Policy, pairs: Sequence[Comparison], probabilities: Callable | None = None
) -> list[list[list[float]]]:
    """[[p(A), p(B)] with chosen first, the same with chosen second] of every pair.

    `probabilities` takes the place of `next_token_probabilities`, which benchmarks/hhh.py needs.
    """
    opening, letters = opened_alike(policy, [f" {letter}" for letter in LETTERS])
    texts = [question(pair, swapped) for pair in pairs for swapped in (False, True)]
    prompts = [ids + opening for ids in policy.prompt_ids(texts)]
    found = (probabilities or next_token_probabilities)(policy, prompts, letters)
    return [[found[i], found[i + 1]] for i in range(0, len(found), 2)]


@torch.inference_mode()
def next_token_probabilities(policy: Policy, prompts: Sequence[list[int]], tokens: list[int]) -> list[list[float]]:
    """p(token | prompt) of each token after each prompt: right-padded batches of like length, read at the last token.

    Only the last position goes through the head. A prompt over the limit loses its beginning: the end asks (A14).
    """
    model, limit = policy.model, policy.limit
    samples = [Sample(row, ids[-limit:], len(ids[-limit:])) for row, ids in enumerate(prompts)]
    found: list[list[float]] = [[] for _ in prompts]
    with Progress(len(prompts), "letters", "prompt") as progress:
        for batch in budgeted_batches([len(sample) for sample in samples], policy.batch_tokens):
            tensors = collate([(samples[i],) for i in batch], pad_id=0)
            inputs = {name: tensors[name].to(model.device) for name in ("input_ids", "attention_mask")}
            last = inputs["attention_mask"].sum(1) - 1  # (B,)
            keep = last.unique()
            logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits  # (B, K, V)
            rows = torch.arange(len(batch), device=last.device)
            probabilities = logits[rows, torch.searchsorted(keep, last)].float().softmax(-1)[:, tokens]
            for i, values in zip(batch, probabilities.tolist(), strict=True):
                found[i] = values
                progress.update()
    return found


# Choices


def choice_logps(policy: Policy, prompts: Sequence[str], choices: Sequence[Sequence[str]]) -> list[list[float]]:
    """log p(" " + choice | prompt), summed over its tokens, of each choice of each prompt: MC1 and MC2.

    A prompt that is too long with its longest choice loses tokens of the primer, never those of the question (A14).
    """
    groups = []
    for row, (prompt, texts) in enumerate(zip(policy.prompt_ids(prompts), choices, strict=True)):
        replies = continuation_ids(policy.template.tokenizer, [f" {policy.template.mark(text)}" for text in texts])
        groups.append(cut_to_fit(policy, row, prompt, replies))
    return grouped_logps(policy, groups, "log-likelihoods")


def verdict_logps(policy: Policy, texts: Sequence[Sequence[str]]) -> list[list[float]]:
    """log p("true" | text) of each text of each group. A text that is too long loses its beginning."""
    opening, (true, _) = opened_alike(policy, VERDICTS)
    groups = []
    for row, asked in enumerate(texts):
        prompts = [ids + opening for ids in policy.prompt_ids(asked)]
        groups.append([cut_to_fit(policy, row, ids, [[true]])[0] for ids in prompts])
    return grouped_logps(policy, groups, "true or false")


def cut_to_fit(policy: Policy, row: int, prompt: list[int], replies: Sequence[list[int]]) -> list[Sample]:
    try:
        return list(encode(row, prompt, replies, policy.limit, policy.template.tokenizer.bos_token_id))
    except TooLong as error:
        raise UserError(f"question {row}: {error} tokens; give more --max_length") from None


def grouped_logps(policy: Policy, groups: Sequence[Sequence[Sample]], label: str) -> list[list[float]]:
    """The sums of log-probabilities of each group's samples. Groups go through the model together, as many as fit in
    `batch_tokens`, so that what their samples share is computed once."""
    pad_id, found = padding_id(policy.template.tokenizer), []
    with Progress(len(groups), label, "question") as progress:
        for batch in whole_groups(groups, policy.batch_tokens):
            sums = iter(sample_logps(policy.model, [s for group in batch for s in group], pad_id, policy.batch_tokens))
            for group in batch:
                found.append([next(sums) for _ in group])
                progress.update()
    return found


def whole_groups(groups: Sequence[Sequence[Sample]], batch_tokens: int) -> list[list[Sequence[Sample]]]:
    """Neighbours together, as many as fit into a batch with its padding; a group that does not fit is alone."""
    batches: list[list[Sequence[Sample]]] = []
    count = longest = 0
    for group in groups:
        count, longest = count + len(group), max(longest, *map(len, group))
        if not batches or count * longest > batch_tokens:
            batches.append([])
            count, longest = len(group), max(map(len, group))
        batches[-1].append(group)
    return batches
