"""A reward model: made from any causal model, saved as a one-label sequence classifier, and asked for scores.

    model, template = load(path)
    rewards = score(model, template, [{"prompt": "How do I boil an egg?"}], ["Eight minutes in boiling water."])

The score is read at the last token, EOS, of prompt + response in the model's template. That is what transformers'
`...ForSequenceClassification` and vLLM's classify read too, provided the padding token is no other token (A12).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.adapters import load_base, with_adapter
from alignment.command_line import UserError
from alignment.pretrained import ADAPTER_CONFIG, check_model, load_pretrained, training_tokenizer
from alignment.records import is_number
from alignment.templates import Template, load_template
from alignment.training.batches import Sample, budgeted_batches, collate, encode_examples
from alignment.training.unpadding import unpad
from alignment.training_data import Example

REWARD_FACTS = ("reward_mean", "reward_std", "reward_min", "reward_max", "reward_max_length")  # training left in config


def load(
    path: str, *, device: str | None = None, dtype: Any = "auto", cache_dir: str | Path | None = None
) -> tuple[nn.Module, Template]:
    """A saved reward model, whole or an adapter, in eval mode, and the template it was trained with.

    Raises UserError where the folder holds no one-label classifier, or one whose padding is also its EOS.
    """
    config = check(path, cache_dir)
    tokenizer = training_tokenizer(path, cache_dir)
    if (Path(path) / ADAPTER_CONFIG).exists():
        model = load_adapter(path, config, tokenizer, dtype)
    else:
        model = load_pretrained("AutoModelForSequenceClassification", path, dtype=dtype, cache_dir=cache_dir)
    pad, eos = model.config.get_text_config().pad_token_id, tokenizer.eos_token_id
    if pad is None or pad == eos:
        raise UserError(f"reward model {path}: its padding token is its EOS, so no score could be read; train it again")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return unpad(model.to(device).eval()), load_template(getattr(config, "prompt_template", "almost"), tokenizer)


def check(path: str, cache_dir: str | Path | None = None) -> Any:
    """The config of a reward model. Raises UserError for what is none; before its weights are read."""
    check_model(path)
    config = load_pretrained("AutoConfig", path, cache_dir=cache_dir)
    made_for = str((config.architectures or [""])[0])
    for name in REWARD_FACTS:
        value = getattr(config, name, 0)
        if not is_number(value) and (name, value) != ("reward_max_length", None):  # None: as many as there are
            raise UserError(f"{path} is no reward model of ours: {name} in its config is {value!r}, and no number")
    if not isinstance(template := getattr(config, "prompt_template", "almost"), str):
        raise UserError(f"{path} is no reward model of ours: prompt_template in its config is {template!r}")
    if config.num_labels != 1:
        raise UserError(f"{path} is no reward model: its config has {config.num_labels} labels, not one")
    is_adapter = (Path(path) / ADAPTER_CONFIG).exists()  # whose config may name the class of its base
    if made_for.endswith(("ForCausalLM", "LMHeadModel")) and not is_adapter:
        raise UserError(
            f"{path} is no reward model: its config names {made_for}; train.py --objective reward makes one"
        )
    return config


def load_adapter(path: str, config: Any, tokenizer: Any, dtype: Any) -> nn.Module:
    base = load_base("AutoModelForSequenceClassification", path, dtype, tokenizer, num_labels=1)
    model = with_adapter(base, Path(path)).merge_and_unload()
    model.config.update({key: getattr(config, key) for key in REWARD_FACTS if hasattr(config, key)})
    return model


def encode_texts(
    template: Template, rows: Sequence[dict], responses: Sequence[str], max_length: int | None
) -> list[Sample]:
    """One sample a row, as in training: of a response that does not fit in `max_length` the end is kept, which is where
    the score is read."""
    examples = [Example(number, *pair) for number, pair in enumerate(zip(rows, zip(responses), strict=True))]
    items, too_long = encode_examples(examples, template, max_length or sys.maxsize, cut=True)
    if too_long:
        raise UserError(f"no text fits in {max_length} tokens; give more")
    return [sample for (sample,) in items]


@torch.inference_mode()
def score(
    model: nn.Module,
    template: Template,
    rows: Sequence[dict],
    responses: Sequence[str],
    *,
    max_length: int | None = None,
    batch_tokens: int = 16_384,
    normalize: bool = False,
) -> list[float]:
    """The reward of each response to its row's prompt, in order. Batches of like length, `batch_tokens` with padding.

    Responses to one prompt that stand next to each other are put into one batch, where their prompt is computed once.
    `normalize` takes off the mean and divides by the deviation that training left in the config (--normalize_reward).
    """
    model.eval()
    max_length = max_length or getattr(model.config, "reward_max_length", None)
    samples = encode_texts(template, rows, responses, max_length)
    rewards = [0.0] * len(samples)
    for batch in budgeted_batches(group_lengths(samples), batch_tokens):
        tensors = collate([(samples[i],) for i in batch], template.tokenizer.pad_token_id)
        for i, reward in zip(batch, batch_rewards(model, tensors).tolist(), strict=True):
            rewards[i] = reward
    if normalize:
        if not hasattr(model.config, "reward_std"):
            raise UserError("the reward model has no mean and deviation in its config; train with --normalize_reward")
        return [(reward - model.config.reward_mean) / model.config.reward_std for reward in rewards]
    return rewards


def group_lengths(samples: Sequence[Sample]) -> list[int]:
    """For each sample the length of the longest among its neighbours with the same prompt."""
    found: list[int] = []
    for _, group in groupby(samples, key=lambda sample: sample.ids[: sample.prompt_length]):
        lengths = [len(sample) for sample in group]
        found += [max(lengths)] * len(lengths)
    return found


def batch_rewards(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Rewards (B,) in fp32 of a collated batch, on the model's device."""
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits[:, 0].float()
