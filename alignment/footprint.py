"""What a model and a training take, by formula: weights, gradients, optimiser, activations, caches; and FLOPs.

    shape = Shape.of("meta-llama/Llama-3.3-70B-Instruct")       # its config alone; no weight is read
    shape.cache_bytes                                           # of keys and values, a token
    Training(shape, tokens=4096, computed=2).peak()             # {"weights": bytes, ...} of each rank

Formulas and the runs that they were compared with: docs/scaling.md. They are for models of attention and gated MLPs, as
Llama; a mixture of experts is counted as if each token went through all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

ADAM = 8  # bytes of state for each trained weight
OPTIMISERS = {"8bit": 2, "4bit": 1, "adafactor": 0.01, "sgd": 0}  # the same of those that have another
HEAD_CHUNK = {"cpu": 1 << 24, "cuda": 1 << 26}  # elements of logits made at once (training/logps.py)


class Shape(NamedTuple):
    """A causal model, as far as time and memory know it."""

    weights: int
    looked_up: int  # of these, input embeddings that multiply nothing
    layers: int
    width: int
    inner: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    itemsize: int  # bytes of a weight in the checkpoint
    linear: tuple[tuple[str, int, int], ...]  # (name, in, out) of each linear module

    @classmethod
    @cache
    def of(cls, name: str, cache_dir: Any = None) -> Shape:
        """Raises UserError where its config cannot be had."""
        import torch
        import transformers

        from alignment.pretrained import load_pretrained

        config = load_pretrained("AutoConfig", name, cache_dir=cache_dir)
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(config)
        text, modules = config.get_text_config(), dict(model.named_modules())
        heads = text.num_attention_heads
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        linear = [(n, m.in_features, m.out_features) for n, m in modules.items() if isinstance(m, torch.nn.Linear)]
        return cls(
            weights=sum(weight.numel() for weight in model.parameters()),
            looked_up=0 if tied else model.get_input_embeddings().weight.numel(),
            layers=text.num_hidden_layers,
            width=text.hidden_size,
            inner=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
            heads=heads,
            kv_heads=getattr(text, "num_key_value_heads", None) or heads,
            head_size=getattr(text, "head_dim", None) or text.hidden_size // heads,
            vocabulary=text.vocab_size,
            context=getattr(text, "max_position_embeddings", None) or 1 << 30,
            itemsize=torch.empty((), dtype=config.dtype or torch.float32).element_size(),
            linear=tuple(linear),
        )

    def cache_bytes(self, itemsize: int) -> int:
        """Keys and values of a token."""
        return 2 * self.layers * self.kv_heads * self.head_size * itemsize

    def forward_flops(self, length: float) -> float:
        """Of a token in a text of this length: 2 a weight, and attention's 4·layers·width·length, causal half of it."""
        return 2 * (self.weights - self.looked_up) + 2 * self.layers * self.heads * self.head_size * length

    def under(self, targets: Sequence[str]) -> list[tuple[str, int, int]]:
        """The linear modules that LoRA's targets name; all but the head for all-linear."""
        inside = [each for each in self.linear if each[1] == self.width and each[2] == self.vocabulary]
        if "all-linear" in targets:
            return [each for each in self.linear if each not in inside]
        return [each for each in self.linear if each[0].split(".")[-1] in targets]


@dataclass(frozen=True)
class Training:
    """A training on one of `ranks`. `tokens` are those of the largest micro-batch, `computed` the bytes of a number
    that it computes with, `kept` those of a weight as it is held."""

    shape: Shape
    tokens: int
    kept: int = 4
    computed: int = 4
    ranks: int = 1
    is_sharded: bool = False
    is_checkpointed: bool = False
    accumulates: bool = False  # gradients stay while the next micro-batch is computed
    optimiser: str = "adamw_torch"
    lora_r: int = 0
    lora_targets: Sequence[str] = field(default_factory=tuple)
    lora_dropout: float = 0.0
    on: str = "cuda"
    others: float = 0  # bytes of models beside the one that is trained

    @property
    def trained(self) -> int:
        """Weights that are trained."""
        if not self.lora_r:
            return self.shape.weights
        return sum(self.lora_r * (inward + outward) for _, inward, outward in self.shape.under(self.lora_targets))

    def peak(self) -> dict[str, float]:
        """Bytes of each part at the moment that takes most, on one rank. Their sum is the peak."""
        shape, share = self.shape, self.ranks if self.is_sharded else 1
        autocast = self.computed < self.kept and not self.lora_r
        weights = shape.weights * self.kept / share
        weights += 4 * self.trained if self.lora_r else 0
        if autocast:  # a copy of all weights; of two layers where they are gathered one by one
            weights += self.computed * shape.weights * (2 / shape.layers if self.is_sharded else 1)
        gradients = self.trained * (4 if self.lora_r else self.kept) / share
        state = next((size for name, size in OPTIMISERS.items() if name in self.optimiser), ADAM) * self.trained / share
        layer = self.layer_bytes() * self.tokens
        head = 3 * 4 * HEAD_CHUNK[self.on] + (0 if self.lora_r else 4 * shape.width * shape.vocabulary)
        held = layer * shape.layers
        if self.is_checkpointed:
            held = layer + shape.layers * shape.width * (4 if autocast else self.computed) * self.tokens
        # Gradients grow while activations go, but for those that are kept from the micro-batch before
        moving = gradients + held + head if self.accumulates else max(gradients + layer, held + head)
        return {"weights": weights, "optimiser": state, "gradients, activations": moving, "other models": self.others}

    def layer_bytes(self) -> float:
        """What a token leaves in a layer for its backward: in both norms, attention, the MLP, and LoRA's copies."""
        shape, size = self.shape, self.computed
        queries, keys = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        autocast = self.computed < self.kept and not self.lora_r
        norm = 4 * shape.width + (0 if self.lora_r else (4 if autocast else size) * shape.width)
        own = 2 * norm + size * (2 * queries + 2 * keys) + size * shape.inner * 3
        if not self.lora_r:
            return own + size * (2 * shape.width + shape.inner)
        wide = 4 if size < 4 or self.lora_dropout else 0  # adapters are fp32: a copy of what each of them reads
        masks = 1 if self.lora_dropout else 0
        adapters = sum((wide + masks) * inward for _, inward, _ in shape.under(self.lora_targets)) / shape.layers
        return own + adapters + (0 if wide else size * (2 * shape.width + shape.inner))

    def flops(self, length: float) -> float:
        """Of a token: forward and backward; a frozen weight has no gradient of its own."""
        return self.shape.forward_flops(length) * (2 if self.lora_r else 3)
