"""A reward model: made from any causal model, saved as a one-label sequence classifier, and asked for scores.

    model, template = load(path)
    rewards = score(model, template, [{"prompt": "How do I boil an egg?"}], ["Eight minutes in boiling water."])

The score is read at the last token, EOS, of prompt + response in the model's template. That is what transformers'
`...ForSequenceClassification` and vLLM's classify read too, provided the padding token is no other token (A12).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alignment.batches import Sample, TooLong, budgeted_batches, collate, encode
from alignment.runs import UserError
from alignment.templates import Template, load_template
from alignment.unpadding import unpad

PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def load_tokenizer(path: str, cache_dir: str | None = None) -> Any:
    """A tokenizer with an EOS, and with a padding token that is not EOS. Raises UserError where there is none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, cache_dir=cache_dir)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"no tokenizer in {path}: {str(error).splitlines()[0]}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {path} has no EOS token")
    separate_padding(tokenizer)
    return tokenizer


def separate_padding(tokenizer: Any) -> None:
    """Give the tokenizer a padding token that is neither EOS nor BOS: its own, a spare one it has, or a new <pad>."""
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return
    vocabulary = tokenizer.get_vocab()
    spare = [token for token in PAD_TOKENS if token in vocabulary and vocabulary[token] not in taken]
    if spare:
        tokenizer.pad_token = spare[0]
    else:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})


def fit_embeddings(model: nn.Module, tokenizer: Any) -> None:
    """Room for a token the tokenizer has gained; its row is the mean of the others, as in ALMoST's SFT."""
    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[-1] = layer.weight[:-1].mean(0)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def load(path: str, *, device: str | None = None, dtype: Any = "auto") -> tuple[nn.Module, Template]:
    """A saved reward model, whole or an adapter, in eval mode, and the template it was trained with.

    Raises UserError where the folder holds no one-label classifier, or one whose padding is also its EOS.
    """
    from transformers import AutoConfig, AutoModelForSequenceClassification

    tokenizer = load_tokenizer(path)
    try:
        config = AutoConfig.from_pretrained(path)
        if config.num_labels != 1:
            raise UserError(f"{path} is no reward model: its config has {config.num_labels} labels, not one")
        if (Path(path) / "adapter_config.json").exists():
            model = load_adapter(path, config, tokenizer, dtype)
        else:
            model = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype)
    except (OSError, ValueError) as error:
        raise UserError(f"no reward model in {path}: {str(error).splitlines()[0]}") from None
    pad, eos = model.config.get_text_config().pad_token_id, tokenizer.eos_token_id
    if pad is None or pad == eos:
        raise UserError(f"reward model {path}: its padding token is its EOS, so no score could be read; train it again")
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return unpad(model.to(device).eval()), load_template(getattr(config, "prompt_template", "almost"), tokenizer)


def load_adapter(path: str, config: Any, tokenizer: Any, dtype: Any) -> nn.Module:
    from peft import PeftConfig, PeftModel
    from transformers import AutoModelForSequenceClassification

    base_path = PeftConfig.from_pretrained(path).base_model_name_or_path
    base = AutoModelForSequenceClassification.from_pretrained(base_path, num_labels=1, dtype=dtype)
    fit_embeddings(base, tokenizer)
    model = PeftModel.from_pretrained(base, path).merge_and_unload()
    model.config.update({key: getattr(config, key) for key in ("reward_mean", "reward_std") if hasattr(config, key)})
    return model


def encode_texts(
    template: Template, rows: Sequence[dict], responses: Sequence[str], max_length: int | None
) -> list[Sample]:
    """One sample a row. A response longer than `max_length` keeps its end, which is where the score is read."""
    bos, samples = template.tokenizer.bos_token_id, []
    prompts, replies = template.prompt_ids(rows), template.response_ids(responses)
    for number, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        limit = max_length or len(prompt) + len(reply) + 1
        try:
            samples += encode(number, prompt, [reply], limit, bos)
        except TooLong:
            samples.append(Sample(number, reply[-limit:], 0))
    return samples


@torch.inference_mode()
def score(
    model: nn.Module, template: Template, rows: Sequence[dict], responses: Sequence[str], *,
    max_length: int | None = None, batch_tokens: int = 16_384, normalize: bool = False,
) -> list[float]:  # fmt: skip
    """The reward of each response to its row's prompt, in order. Batches of like length, `batch_tokens` with padding.

    `normalize` takes off the mean and divides by the deviation that training left in the config (--normalize_reward).
    """
    model.eval()
    max_length = max_length or getattr(model.config, "reward_max_length", None)
    samples = encode_texts(template, rows, responses, max_length)
    rewards = [0.0] * len(samples)
    for batch in budgeted_batches([len(sample) for sample in samples], batch_tokens):
        tensors = collate([(samples[i],) for i in batch], template.tokenizer.pad_token_id)
        for i, reward in zip(batch, batch_rewards(model, tensors).tolist(), strict=True):
            rewards[i] = reward
    if normalize:
        if not hasattr(model.config, "reward_std"):
            raise UserError("the reward model has no mean and deviation in its config; train with --normalize_reward")
        return [(reward - model.config.reward_mean) / model.config.reward_std for reward in rewards]
    return rewards


def batch_rewards(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Rewards (B,) in fp32 of a collated batch, on the model's device."""
    device = next(model.parameters()).device
    inputs = {name: batch[name].to(device) for name in ("input_ids", "attention_mask")}
    return model(**inputs, use_cache=False).logits[:, 0].float()
