"""A padded batch costs what its real tokens cost: padding is taken out before the decoder and put back after it.

    model = unpad(AutoModelForCausalLM.from_pretrained(path))     # or a ...ForSequenceClassification
    model(input_ids=ids, attention_mask=mask)                     # (B, T) in, (B, T, ...) out, as before

All rows of a batch go through the layers as one line of their tokens, and attention is computed row by row, so that no
row sees another and no mask is made. Flash attention does the same in its own kernels. Packed lines, which restart
their `position_ids` (batches.collate_packed), are taken apart in the same way. What cannot be computed so (a cache or
all layers' states are asked for, the attention is not transformers' own, layers carry a state from token to token) is
computed as before.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_ROW = "sdpa_by_row"
ASKS_MORE = ("past_key_values", "use_cache", "output_hidden_states", "output_attentions")
WHOLE_LAYERS = {"full_attention", "sliding_attention"}  # of config.layer_types: they mix tokens by attention alone


def attention_by_row(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None,
    row_lengths: list[int] | None = None, sliding_window: int | None = None, **kwargs: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """SDPA for transformers' AttentionInterface. With `row_lengths`, (1, heads, N, d) is rows one after the other."""
    if row_lengths is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    rows = zip(*(states.split(row_lengths, dim=2) for states in (query, key, value)), strict=True)
    found = []
    for row in rows:
        mask = window_mask(row[0], sliding_window)
        found.append(sdpa_attention_forward(module, *row, mask, sliding_window=sliding_window, **kwargs)[0])
    return torch.cat(found, dim=1), None  # (1, N, heads, d)


def window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """(1, 1, n, n) of who may be seen where the row is longer than the window; None for plain causal attention."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=query.device)
    behind = at[:, None] - at
    return ((behind >= 0) & (behind < window))[None, None]


AttentionInterface.register(BY_ROW, attention_by_row)
AttentionMaskInterface.register(BY_ROW, sdpa_mask)


def unpad(model: nn.Module) -> nn.Module:
    """Make the model's decoder skip padding, where it can. Call it before PEFT, DDP or FSDP wrap it; returns it."""
    decoder = model.get_decoder()
    if "forward" in vars(decoder) or not can_unpad(model):
        return model
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(BY_ROW)
    padded_forward = decoder.forward

    @functools.wraps(padded_forward)
    def forward(input_ids: Tensor | None = None, attention_mask: Tensor | None = None, *args: Any, **inputs: Any):
        position_ids = inputs.get("position_ids")
        packed = attention_mask is None and position_ids is not None
        plain = attention_mask is not None and attention_mask.ndim == 2 and position_ids is None
        more = input_ids is None or args or any(inputs.get(name) for name in ASKS_MORE)
        if more or not (packed or plain):
            return padded_forward(input_ids, attention_mask, *args, **inputs)
        return unpadded_forward(padded_forward, input_ids, attention_mask, **inputs)

    decoder.forward = forward
    return model


def can_unpad(model: nn.Module) -> bool:
    """Whether rows laid end to end can be kept apart: only attention mixes tokens, through transformers' interface."""
    config = model.config.get_text_config()
    is_whole = set(getattr(config, "layer_types", None) or []) <= WHOLE_LAYERS
    is_stateless = not getattr(model, "_is_stateful", False) and not getattr(config, "is_encoder_decoder", False)
    known = config._attn_implementation == "sdpa" or "flash_attention" in str(config._attn_implementation)
    return bool(model._supports_attention_backend) and is_whole and is_stateless and known


def unpadded_forward(forward: Any, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any):
    """The decoder's output for (B, T) ids, its last hidden state (B, T, H) zero where there is padding."""
    if attention_mask is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
        positions = inputs["position_ids"].flatten()  # (N,), and each 0 opens a row
        starts = (positions == 0).nonzero()[:, 0]
        lengths = F.pad(starts, (0, 1), value=len(positions)).diff()
    else:
        real = attention_mask.bool()
        lengths = real.sum(1)
        positions = (real.cumsum(1) - 1)[real]
    inputs |= {"position_ids": positions[None], "use_cache": False}
    # An empty mask of four dimensions is one that transformers takes for made; flash kernels want none
    made = input_ids.new_empty(1, 1, 0, 0, dtype=torch.bool)
    own = {"attention_mask": made, "row_lengths": lengths.tolist()}
    uses_rows = forward.__self__.config._attn_implementation == BY_ROW
    output = forward(input_ids[real][None], **inputs, **(own if uses_rows else {"attention_mask": None}))
    hidden = output.last_hidden_state  # (1, N, H)
    output.last_hidden_state = hidden.new_zeros(*input_ids.shape, hidden.shape[-1]).masked_scatter(
        real[..., None], hidden[0]
    )
    return output
