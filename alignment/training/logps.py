"""The one way from a model and a batch to log-probabilities: hidden states, the model's own head, a chunk at a time.

No `(batch, length, vocabulary)` tensor is held. `speak_logps(model)` teaches a causal model to answer a batch that has
`labels` with the log-probability of each label alone: hidden states of the positions before labels are taken out, and
go through the model's own head a chunk at a time; the chunk's logits are thrown away and made again in the backward.

    model = speak_logps(AutoModelForCausalLM.from_pretrained(path))
    logps, rows = response_logps(model, batch)     # (N,) fp32, (N,) line of the batch each belongs to
    per_answer = row_sums(logps, rows, len(batch["labels"]))

Where gradients are known up to a factor (`summed_logps`, a frozen head) they are made in the forward, and logits once.
All happens inside the model's own forward, so FSDP has gathered the weights and DDP sees the gradients. What the model
does to its logits after the head (soft-capping, scaling, bias) is done by its own code, whatever the architecture.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from alignment.training.batches import IGNORED
from alignment.training.unpadding import computed_in, unpad

# Logits alive at once: 64 MiB in fp32 on a CPU. A trained head's gradient is summed up chunk by chunk, and a GPU adds
# so much more slowly than it multiplies that it wants a thousand positions or so in each
CPU_CHUNK, GPU_CHUNK = 1 << 24, 1 << 26


# Log-probabilities


def speak_logps(model: nn.Module, chunk_elements: int | None = None) -> nn.Module:
    """Make `model(..., labels=)` return {"logps": (N,), "rows": (N,)} and nothing else; without labels, as before.

    Call it on the plain transformers model, before PEFT, DDP, FSDP or accelerate wrap it. Returns the same model.
    """
    if hasattr(model, "plain_forward"):
        return model
    unpad(model)
    model.plain_forward = model.forward

    @functools.wraps(model.plain_forward)  # generate() asks for its parameters
    def forward(*args: Any, labels: Tensor | None = None, **inputs: Any):
        if labels is None:
            return model.plain_forward(*args, **inputs)
        return _forward(model, chunk_elements, *args, labels=labels, **inputs)

    model.forward = forward
    return model


def _forward(
    model: nn.Module, chunk_elements: int | None, *args: Any, labels: Tensor, **inputs: Any
) -> dict[str, Tensor]:
    segments, summed = inputs.pop("segments", None), inputs.pop("summed", False)
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    hidden = decoder(*args, use_cache=False, **inputs)[0]  # (B, T, H)
    where = labels[:, 1:] != IGNORED  # (B, T-1): position t tells token t+1
    lines = where.nonzero()[:, 0] if segments is None else segments[:, 1:][where]  # (N,)
    elements = chunk_elements or (CPU_CHUNK if hidden.device.type == "cpu" else GPU_CHUNK)
    chunk = max(1, elements // model.config.get_text_config().vocab_size)
    logits_of, targets = functools.partial(own_logits, model, _Bare(head)), labels[:, 1:][where]

    def forward(states: Tensor) -> Tensor:
        return token_logps(logits_of, states, targets, chunk, trained_after(decoder, model, head), summed)

    with answering(head, forward):
        logps = head(hidden[:, :-1][where])  # called once, so that what hooks into a module sees an ordinary one
    return {"logps": logps, "rows": lines}


def trained_after(decoder: nn.Module, model: nn.Module, head: nn.Module) -> list[Tensor]:
    """The weights to be trained that lie between the decoder's states and the logits: nearly always the head's own."""
    inside = {id(weight) for weight in decoder.parameters()}
    outside = [weight for weight in model.parameters() if id(weight) not in inside]
    tied = [weight for weight in head.parameters() if id(weight) in inside]
    return [weight for weight in outside + tied if weight.requires_grad]


@contextmanager
def answering(module: nn.Module, forward: Callable) -> Iterator[None]:
    """The module computes `forward` meanwhile. Its hooks (FSDP gathers weights in them) run as ever."""
    kept = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if kept is not None:
            module.forward = kept


class _Bare:
    """A module called without its hooks: a chunk, or a chunk again in the backward, is no new pass to FSDP."""

    def __init__(self, module: nn.Module):
        self.module, self.forward = module, module.forward

    def __call__(self, *args: Any, **inputs: Any) -> Tensor:
        return self.forward(*args, **inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.module, name)


def token_logps(
    logits_of: Any, hidden: Tensor, targets: Tensor, chunk: int, weights: Sequence[Tensor] = (), summed: bool = False
) -> Tensor:
    """log p(target) at each position: (N, H) states and (N,) ids -> (N,), in fp32 or the states' wider type.

    `logits_of` maps (n, H) -> (n, V) and is called `chunk` positions at a time; `weights` are what is trained in it.
    `summed` gives Σ log p, a scalar. Then, or where there are no such weights, all gradients but for a factor are known
    in the forward and are made there; else the backward makes a chunk's logits again. So it does in fp16, where small
    gradients need the factor, which scales them, from the start.
    """
    known = (summed or not weights) and computed_in(hidden) != torch.float16
    if known and torch.is_grad_enabled() and hidden.requires_grad:
        return _LogpsOnce.apply(hidden, targets, logits_of, chunk, summed, *weights)
    pieces = [
        checkpoint(_chunk_logps, logits_of, states, ids, use_reentrant=False)
        for states, ids in zip(hidden.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.cat(pieces).sum() if summed else torch.cat(pieces)


def _chunk_logps(logits_of: Any, states: Tensor, ids: Tensor) -> Tensor:
    logits = logits_of(states)  # (n, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return -F.cross_entropy(logits, ids, reduction="none")


class _LogpsOnce(torch.autograd.Function):
    """token_logps whose logits are made once: the forward keeps d log p_t / d h_t (N, H), and Σ_t d log p_t / d w of
    each weight, and the backward scales them. With weights, only the sum has a gradient."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, logits_of: Any, chunk: int, summed: bool, *weights: Tensor):
        logps, slopes, sums = [], [], [None] * len(weights)
        for states, ids in zip(hidden.split(chunk), targets[:, None].split(chunk), strict=True):
            with torch.enable_grad():
                states = states.detach().requires_grad_()
                logits = logits_of(states)  # (n, V)
            found = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            logps.append(found.gather(1, ids)[:, 0])
            slope = found.exp_().neg_().scatter_add_(1, ids, torch.ones_like(ids, dtype=found.dtype))  # 1 - p, or -p
            made, *grads = torch.autograd.grad(logits, (states, *weights), slope.to(logits.dtype), allow_unused=True)
            slopes.append(made)
            for i, grad in enumerate(grads):  # None where a weight has no part in the logits
                if grad is not None:
                    grad = grad.to(torch.promote_types(grad.dtype, torch.float32))
                    sums[i] = grad if sums[i] is None else sums[i].add_(grad)
        sums = [total if total is None else total.to(w.dtype) for total, w in zip(sums, weights, strict=True)]
        ctx.save_for_backward(torch.cat(slopes), *sums)
        return torch.cat(logps).sum() if summed else torch.cat(logps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor):
        slopes, *sums = ctx.saved_tensors
        scaled = [total if total is None else (grad * total).to(total.dtype) for total in sums]
        return (grad[..., None] * slopes).to(slopes.dtype), None, None, None, None, *scaled


class _Decoded:
    """Stands for a decoder's output in `own_logits`: the hidden states, and None for all else a model may ask of it."""

    def __init__(self, hidden: Tensor):
        self.last_hidden_state = hidden

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def __getitem__(self, key: Any):
        return self.last_hidden_state if key == 0 else ()


def own_logits(model: nn.Module, bare: _Bare, states: Tensor) -> Tensor:
    """(n, H) hidden states -> (n, V) logits by the model's own code: its forward, its decoder answering `states`.

    `bare` is the head and stands in its place meanwhile.
    """
    owner, name = next(
        (owner, name) for owner in model.modules() for name, part in owner._modules.items() if part is bare.module
    )
    answer, asked = _Decoded(states[None]), []
    owner._modules[name] = bare
    try:
        with answering(model.get_decoder(), lambda *args, **inputs: asked.append(True) or answer):
            logits = model.plain_forward(inputs_embeds=states[None], use_cache=False, return_dict=True).logits
    finally:
        owner._modules[name] = bare.module
    assert asked, f"{type(model).__name__}.forward does not go through get_decoder()"
    return logits.squeeze(0)  # its gradient is a view; that of logits[0] would be a second copy of them


MODEL_INPUTS = ("input_ids", "attention_mask", "position_ids", "segments", "labels")


def response_logps(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of a batch's N response tokens in reading order, and the line (N,) each belongs to.

    `model` may be wrapped; its core was made by `speak_logps`. A packed batch gives the sample's number for the line.
    """
    out = model(**{name: batch[name] for name in MODEL_INPUTS if name in batch})
    return out["logps"], out["rows"]


def summed_logps(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The sum of `response_logps`, a scalar. Cheaper where the head is trained: its logits are made once, not twice."""
    return model(**{name: batch[name] for name in MODEL_INPUTS if name in batch}, summed=True)["logps"]


def row_sums(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sum of the values of each line: (N,), (N,) -> (num_rows,)."""
    return values.new_zeros(num_rows).index_add(0, rows, values)


def row_means(values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Mean of the values of each line: (N,), (N,) -> (num_rows,). Every line has a value: its EOS."""
    return row_sums(values, rows, num_rows) / torch.bincount(rows, minlength=num_rows)
