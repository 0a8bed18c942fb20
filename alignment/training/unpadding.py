"""A padded batch costs what its distinct tokens cost: padding is taken out before the decoder and put back after it,
and what rows have in common at their beginning is computed once.

    model = unpad(AutoModelForCausalLM.from_pretrained(path))     # or a ...ForSequenceClassification
    model(input_ids=ids, attention_mask=mask)                     # (B, T) in, (B, T, ...) out, as before

All rows of a batch go through the layers as one line of their tokens, and attention keeps the rows apart, so that no
row sees another and no mask is made: by one kernel for all rows in 16 bits on CUDA, else row by row. Rows that begin
alike (the prompt of a chosen and a rejected response, a template's header) have the same states there, and share them:
a tree of rows, of which every token is in the line once. Gradients are the same too. Dropout draws one noise for a
token that is shared.

With `flash_attention_2` and its like, the package's own kernels do the same. Packed lines, which restart their
`position_ids` (batches.collate_packed), are taken apart in the same way. What cannot be computed so (a cache or all
layers' states are asked for, the attention is not transformers' own, layers carry a state from token to token) is
computed as before. That a model gives the same this way is tried on three short rows before it is used, and
`check_packing` tries what else may keep the rows of a packed line apart: transformers' own masks, if the model heeds
them.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.varlen import varlen_attn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from alignment.command_line import UserError

BY_ROW = "sdpa_by_row"
FLASH = ("flash_attention_2", "flash_attention_3", "flash_attention_4")
WORTH_SHARING = 0.95  # of the tokens; attention then gathers its inputs, which costs a little
ASKS_MORE = ("past_key_values", "use_cache", "output_hidden_states", "output_attentions")
KERNEL_DTYPES = (torch.bfloat16, torch.float16)
# torch 2.11 groups heads without being asked, later ones want the flag
GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen_attn).parameters else {}
WHOLE_LAYERS = {"full_attention", "sliding_attention"}  # of config.layer_types: they mix tokens by attention alone
TRIED = ((5, 6, 7, 8, 9), (5, 6, 10), (5, 6, 7, 11))  # ids of rows that begin alike
NEIGHBOURS = ((5, 6, 7, 8, 9, 10, 11), (7, 11, 8)), ((9, 11, 5, 10, 7, 6, 8), (10, 5, 6))  # around TRIED[0], twice
FAILURES = (RuntimeError, TypeError, ValueError, IndexError, ImportError)  # of a forward that does not go this way
# What the same states differ by where they are computed in another order, root mean square over that of the states;
# in one order, as in two packed lines of like shape, it is a hundredth of that at most. Where rows leak it is 1e-4 to 1
ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-3}
ROUNDING_IN_HALF = 0.1


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
    states = rows.spread(query, key, value)
    if fits_kernel(query, value, **kwargs):
        output = attention_at_once(*states, rows, sliding_window, kwargs.get("scaling"))  # (1, N, heads, d)
    else:
        found = []
        for row in zip(*(each.split(rows.lengths, dim=2) for each in states), strict=True):
            mask = window_mask(row[0], sliding_window)
            found.append(sdpa_attention_forward(module, *row, mask, sliding_window=sliding_window, **kwargs)[0])
        output = torch.cat(found, dim=1)
    return rows.gathered(output), None


def flash_by_row(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    rows: Rows | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' flash attention, and the same with `rows`."""
    if rows is None:
        return flash_attention_forward(module, query, key, value, attention_mask, **kwargs)
    ends = {"cu_seq_lens_q": rows.borders, "cu_seq_lens_k": rows.borders}
    ends |= {"max_length_q": max(rows.lengths), "max_length_k": max(rows.lengths)}
    output, _ = flash_attention_forward(module, *rows.spread(query, key, value), None, **kwargs | ends)
    return rows.gathered(output), None


def attention_at_once(
    query: Tensor, key: Tensor, value: Tensor, rows: Rows, window: int | None, scaling: float | None
) -> Tensor:
    """States (1, heads, N, d) of all rows' tokens -> (1, N, heads, d), by one kernel that keeps the rows apart."""
    dtype = computed_in(query)  # rotary positions leave queries and keys in fp32 under autocast
    states = (each[0].transpose(0, 1).to(dtype) for each in (query, key, value))  # (N, heads, d)
    longest = max(rows.lengths)
    behind = -1 if window is None or longest <= window else window - 1  # tokens seen before oneself; -1: all
    borders = rows.borders, rows.borders
    return varlen_attn(*states, *borders, longest, longest, scale=scaling, window_size=(behind, 0), **GROUPED)[None]


def fits_kernel(query: Tensor, value: Tensor, dropout: float = 0.0, position_bias: Any = None, **_: Any) -> bool:
    """Whether torch's attention over rows of any length, which is flash attention, computes this."""
    size = query.shape[-1]
    plain = not dropout and position_bias is None and size == value.shape[-1] <= 256 and size % 8 == 0
    return query.is_cuda and plain and computed_in(query) in KERNEL_DTYPES and has_flash(query.device)


@functools.cache
def has_flash(device: torch.device) -> bool:
    return torch.cuda.get_device_capability(device) >= (8, 0)


def computed_in(states: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of these would be computed here."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


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
    """How N tokens of R rows, one row after the other, are a line of M <= N tokens: `kept` (M,) are the tokens that are
    in the line, and `source` (N,) is the place in it of each token's like. Both None where M = N. `borders` (R+1,) in
    int32 are the rows' beginnings and the end, made once a batch and not in each layer."""

    lengths: list[int]
    borders: Tensor
    kept: Tensor | None = None
    source: Tensor | None = None

    def spread(self, *states: Tensor) -> Sequence[Tensor]:
        """States (1, heads, M, d) of the line's tokens -> (1, heads, N, d) of all."""
        return states if self.source is None else [each.index_select(2, self.source) for each in states]

    def gathered(self, output: Tensor) -> Tensor:
        """(1, N, heads, d) of all tokens -> (1, M, heads, d) of the line's."""
        return output if self.kept is None else output.index_select(1, self.kept)


def shared_rows(ids: Tensor, lengths: list[int]) -> Rows:
    """Rows (N,) of these lengths as a tree, where they have enough in common to be worth it."""
    rows = [row.tolist() for row in ids.cpu().split(lengths)]
    first = [0, *itertools.accumulate(lengths)]
    borders = torch.tensor(first, dtype=torch.int32, device=ids.device)
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
        return Rows(lengths, borders)
    source = [place for row in places for place in row]
    return Rows(lengths, borders, *(torch.tensor(each, device=ids.device) for each in (kept, source)))


AttentionInterface.register(BY_ROW, attention_by_row)
AttentionMaskInterface.register(BY_ROW, sdpa_mask)
for flash in FLASH:
    AttentionInterface.register(flash, flash_by_row)


def unpad(model: nn.Module) -> nn.Module:
    """Make the model's decoder skip padding, where it can. Call it before PEFT, DDP or FSDP wrap it; returns it."""
    decoder = model.get_decoder()
    if "forward" in vars(decoder) or not can_unpad(model):
        return model
    attention = model.config._attn_implementation
    if attention == "sdpa":
        model.set_attn_implementation(BY_ROW)
    padded_forward = decoder.forward

    @functools.wraps(padded_forward)
    def forward(input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **inputs: Any):
        position_ids = inputs.get("position_ids")
        packed = attention_mask is None and position_ids is not None
        plain = attention_mask is not None and attention_mask.ndim == 2 and position_ids is None
        more = input_ids is None or any(inputs.get(name) for name in ASKS_MORE)
        if more or not (packed or plain):
            return padded_forward(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        return unpadded_forward(padded_forward, input_ids, attention_mask, **inputs)

    if gives_the_same(model, padded_forward, forward):
        decoder.forward = forward
    else:
        model.set_attn_implementation(attention)
    return model


def can_unpad(model: nn.Module) -> bool:
    """Whether rows laid end to end can be kept apart, and share what they begin with: only attention mixes tokens, it
    looks back alone, and it goes through transformers' interface."""
    config = model.config.get_text_config()
    is_whole = set(getattr(config, "layer_types", None) or []) <= WHOLE_LAYERS
    is_stateless = not getattr(model, "_is_stateful", False) and not getattr(config, "is_encoder_decoder", False)
    known = config._attn_implementation in ("sdpa", *FLASH)
    looks_back = not getattr(config, "use_bidirectional_attention", False)
    return bool(model._supports_attention_backend) and is_whole and is_stateless and looks_back and known


def gives_the_same(model: nn.Module, padded_forward: Any, forward: Any) -> bool:
    """Whether a few rows of one batch get the same states either way. Some models make their own masks, or count their
    own positions, and some do not hand `rows` down to the attention: these raise, or differ."""
    if not can_be_asked(model):
        return True
    ids, mask = tensor_of(TRIED, model)
    with evaluating(model):
        try:
            expected = padded_forward(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        except FAILURES:  # it cannot be asked here, as before a kernel of a GPU has its weights there
            return True
        try:
            found = forward(input_ids=ids, attention_mask=mask, use_cache=False)[0]
        except FAILURES:
            return False
    real = mask.bool()
    return not differ(found[real], expected[real])


def check_packing(model: nn.Module) -> None:
    """Raise UserError where what stands beside a row in a packed line moves the row's states, or where that cannot be
    asked, and `unpad` has not taken rows apart."""
    found, decoder = [], model.get_decoder()
    with evaluating(model):
        for before, after in NEIGHBOURS if can_be_asked(model) else ():
            ids, _ = tensor_of([before + TRIED[0] + after], model)
            places = [place for row in (before, TRIED[0], after) for place in range(len(row))]
            line = {"input_ids": ids, "position_ids": torch.tensor([places], device=ids.device), "use_cache": False}
            try:
                found.append(decoder(**line)[0][:, len(before) : len(before) + len(TRIED[0])])
            except FAILURES:
                break
    is_asked, is_unpadded = len(found) == len(NEIGHBOURS), "forward" in vars(decoder)
    if differ(*found, share=0.01) if is_asked else not is_unpadded:
        raise UserError(
            f"--packing: {type(model).__name__} does not keep the rows of a line apart (one moves when only its "
            "neighbours change); leave --packing out"
        )


def can_be_asked(model: nn.Module) -> bool:
    """Not where it is quantised: 4-bit layers on a CPU, asked without gradient, go on in another format for good."""
    return not getattr(model, "is_quantized", False)


def tensor_of(rows: Sequence[Sequence[int]], model: nn.Module) -> tuple[Tensor, Tensor]:
    """Rows as ids and attention mask (B, T), right-padded, of any vocabulary's ids, where the model's inputs are."""
    embeddings = model.get_input_embeddings().weight
    width = max(map(len, rows))
    ids = [[*row, *[0] * (width - len(row))] for row in rows]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in rows]
    ids, mask = (torch.tensor(each, device=embeddings.device) for each in (ids, mask))
    return ids % len(embeddings), mask


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout and without gradient; the mode is as before afterwards."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def differ(found: Tensor, expected: Tensor, share: float = 1.0) -> bool:
    """Whether states differ by more than this share of rounding. Where there are no numbers, as where FSDP has not yet
    filled the weights, it is not known, and no."""
    gap = (found.double() - expected.double()).square().mean() / expected.double().square().mean()
    return bool(gap.sqrt() > share * ROUNDING.get(expected.dtype, ROUNDING_IN_HALF))


def unpadded_forward(forward: Any, input_ids: Tensor, attention_mask: Tensor | None, **inputs: Any):
    """The decoder's output for (B, T) ids, its last hidden state (B, T, H) zero where there is padding."""
    if attention_mask is None:
        real = torch.ones_like(input_ids, dtype=torch.bool)
        positions = inputs["position_ids"].flatten()  # (N,), and each 0 opens a row
        borders = F.pad((positions == 0).nonzero()[:, 0], (0, 1), value=len(positions))
        rows = Rows(borders.diff().tolist(), borders.int())
    else:
        real = attention_mask.bool()
        positions = (real.cumsum(1) - 1)[real]
        rows = shared_rows(input_ids[real], real.sum(1).tolist())
    line = slice(None) if rows.kept is None else rows.kept
    inputs |= {"position_ids": positions[line][None], "use_cache": False}
    # An empty mask of four dimensions is one that transformers takes for made; flash kernels want none
    made = input_ids.new_empty(1, 1, 0, 0, dtype=torch.bool)
    mask = made if forward.__self__.config._attn_implementation == BY_ROW else None
    output = forward(input_ids[real][line][None], attention_mask=mask, rows=rows, **inputs)
    hidden = output.last_hidden_state[0]  # (M, H)
    hidden = hidden if rows.source is None else hidden.index_select(0, rows.source)  # (N, H)
    output.last_hidden_state = hidden.new_zeros(*input_ids.shape, hidden.shape[-1]).masked_scatter(
        real[..., None], hidden
    )
    return output
