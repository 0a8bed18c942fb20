"""A padded batch costs what its distinct tokens cost: padding is taken out before the decoder and put back after it,
and what rows have in common at their beginning is computed once.

    model = unpad(AutoModelForCausalLM.from_pretrained(path))     # or a ...ForSequenceClassification
    model(input_ids=ids, attention_mask=mask)                     # (B, T) in, (B, T, ...) out, as before

All rows of a batch go through the layers as one line of their tokens, and attention is computed row by row, so that no
row sees another and no mask is made. Rows that begin alike (the prompt of a chosen and a rejected response, a
template's header) have the same states there, and share them: a tree of rows, of which every token is in the line once.
Gradients are the same too. Dropout draws one noise for a token that is shared.

Flash attention takes padding out in its own kernels, and shares nothing. Packed lines, which restart their
`position_ids` (batches.collate_packed), are taken apart in the same way. What cannot be computed so (a cache or all
layers' states are asked for, the attention is not transformers' own, layers carry a state from token to token) is
computed as before.
"""

from __future__ import annotations

import functools
import itertools
import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_ROW = "sdpa_by_row"
WORTH_SHARING = 0.95  # of the tokens; attention then gathers its inputs, which costs a little
ASKS_MORE = ("past_key_values", "use_cache", "output_hidden_states", "output_attentions")
WHOLE_LAYERS = {"full_attention", "sliding_attention"}  # of config.layer_types: they mix tokens by attention alone


def attention_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """SDPA for transformers' AttentionInterface. With `rows`, (1, heads, M, d) is a line of their tokens."""
    if rows is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, sliding_window=sliding_window, **kwargs
        )
    states = [query, key, value]
    if rows.source is not None:
        states = [each.index_select(2, rows.source) for each in states]  # (1, heads, N, d)
    found = []
    for row in zip(*(each.split(rows.lengths, dim=2) for each in states), strict=True):
        mask = window_mask(row[0], sliding_window)
        found.append(sdpa_attention_forward(module, *row, mask, sliding_window=sliding_window, **kwargs)[0])
    output = torch.cat(found, dim=1)  # (1, N, heads, d)
    return output if rows.kept is None else output.index_select(1, rows.kept), None


def window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """(1, 1, n, n) of who may be seen where the row is longer than the window; None for plain causal attention."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    at = torch.arange(length, device=query.device)
    behind = at[:, None] - at
    return ((behind >= 0) & (behind < window))[None, None]


@dataclass(frozen=True)
class Rows:
    """How N tokens of rows, one row after the other, are a line of M <= N tokens: `kept` (M,) are the tokens that are
    in the line, and `source` (N,) is the place in it of each token's like. Both None where M = N."""

    lengths: list[int]
    kept: Tensor | None = None
    source: Tensor | None = None


def shared_rows(ids: Tensor, lengths: list[int]) -> Rows:
    """Rows (N,) of these lengths as a tree, where they have enough in common to be worth it."""
    rows = [row.tolist() for row in ids.cpu().split(lengths)]
    first = [0, *itertools.accumulate(lengths)]
    places: list[list[int]] = [[] for _ in rows]
    kept: list[int] = []
    before = None
    for number in sorted(range(len(rows)), key=rows.__getitem__):  # next to a row are those that it begins like
        common = 0 if before is None else len(os.path.commonprefix([rows[before], rows[number]]))
        own = range(first[number] + common, first[number + 1])
        places[number] = [*(places[before][:common] if common else []), *range(len(kept), len(kept) + len(own))]
        kept += own
        before = number
    if len(kept) > WORTH_SHARING * len(ids):
        return Rows(lengths)
    source = [place for row in places for place in row]
    return Rows(lengths, *(torch.tensor(each, device=ids.device) for each in (kept, source)))


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
    """Whether rows laid end to end can be kept apart, and share what they begin with: only attention mixes tokens, it
    looks back alone, and it goes through transformers' interface."""
    config = model.config.get_text_config()
    is_whole = set(getattr(config, "layer_types", None) or []) <= WHOLE_LAYERS
    is_stateless = not getattr(model, "_is_stateful", False) and not getattr(config, "is_encoder_decoder", False)
    known = config._attn_implementation == "sdpa" or "flash_attention" in str(config._attn_implementation)
    looks_back = not getattr(config, "use_bidirectional_attention", False)
    return bool(model._supports_attention_backend) and is_whole and is_stateless and looks_back and known


def unpadded_forward(forward: Any, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any):
    """The decoder's output for (B, T) ids, its last hidden state (B, T, H) zero where there is padding."""
    by_row = forward.__self__.config._attn_implementation == BY_ROW
    if attention_mask is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
        positions = inputs["position_ids"].flatten()  # (N,), and each 0 opens a row
        starts = (positions == 0).nonzero()[:, 0]
        rows = Rows(F.pad(starts, (0, 1), value=len(positions)).diff().tolist())
    else:
        real = attention_mask.bool()
        positions = (real.cumsum(1) - 1)[real]
        rows = shared_rows(input_ids[real], real.sum(1).tolist()) if by_row else Rows([])
    line = slice(None) if rows.kept is None else rows.kept
    inputs |= {"position_ids": positions[line][None], "use_cache": False}
    # An empty mask of four dimensions is one that transformers takes for made; flash kernels want none
    made = input_ids.new_empty(1, 1, 0, 0, dtype=torch.bool)
    own = {"attention_mask": made, "rows": rows} if by_row else {"attention_mask": None}
    output = forward(input_ids[real][line][None], **inputs, **own)
    hidden = output.last_hidden_state[0]  # (M, H)
    hidden = hidden if rows.source is None else hidden.index_select(0, rows.source)  # (N, H)
    output.last_hidden_state = hidden.new_zeros(*input_ids.shape, hidden.shape[-1]).masked_scatter(
        real[..., None], hidden
    )
    return output
