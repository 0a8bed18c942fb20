"""The models of reinforcement learning: the policy, its reference, and what tells values.

    policy = without_dropout(speak_logps(model))       # (logps.py)
    logps, states = logps_and_states(policy, batch)    # (N,) and (N, H) of the batch's N reply tokens
    values = value(states)                             # ValueHead; or speak_values(reward model) of the whole batch

A value belongs to the state *before* a reply token, the one that the token's log-probability is read from.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from alignment.adapters import add_lora
from alignment.pretrained import fit_embeddings, load_pretrained
from alignment.templates import Template
from alignment.training import reward_model
from alignment.training.batches import IGNORED
from alignment.training.logps import MODEL_INPUTS, response_logps, speak_logps


def causal(path: str, template: Template, **settings: Any) -> nn.Module:
    """A policy or its reference: a causal model that speaks log-probabilities and draws no dropout."""
    model = load_pretrained("AutoModelForCausalLM", path, **settings)
    fit_embeddings(model, template.tokenizer)
    model.config.use_cache = False
    model.config.prompt_template = template.name
    return without_dropout(speak_logps(model))


def without_dropout(model: nn.Module) -> nn.Module:
    """The model in train mode, as gradient checkpointing needs it, drawing no noise: the ratio of a policy to itself
    has to be 1."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return model.train()


def logps_and_states(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N,) of the batch's reply tokens, and the hidden states (N, H) that they were read from, in
    fp32 and cut off from the graph: what learns from them does not move the policy."""
    kept: list[Tensor] = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    try:
        logps, _ = response_logps(model, batch)
    finally:
        hook.remove()
    return logps, kept[0].detach().float()


@contextmanager
def tempered(model: nn.Module, temperature: float) -> Iterator[None]:
    """The model's logits are divided by the temperature meanwhile, wherever they are made: what samples, and what its
    log-probabilities are of, is one distribution."""
    plain = model.plain_forward
    if temperature == 1:
        yield
        return

    @functools.wraps(plain)
    def forward(*args: Any, **inputs: Any) -> Any:
        output = plain(*args, **inputs)
        output.logits = output.logits / temperature
        return output

    model.plain_forward = forward
    try:
        yield
    finally:
        model.plain_forward = plain


def plain_weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's weights under the names of a plain checkpoint, LoRA added in, one at a time. The model stays as it is.

    What has two names, a tied head, comes once."""
    modules = dict(model.named_modules())
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            continue
        owner, _, leaf = name.rpartition(".")
        found = weight.detach()
        while owner.endswith(".base_layer"):  # what adapts several parameters of one module is nested
            owner = owner.removesuffix(".base_layer")
            layer = modules[owner]
            if leaf == getattr(layer, "parameter_name", "weight"):
                for adapter in layer.active_adapters:
                    found = found + layer.get_delta_weight(adapter).detach()
        yield f"{owner}.{leaf}", found


# Values


class ValueHead(nn.Module):
    """V(s) = w·h + b on the policy's hidden states h. It starts as a constant, which the first step sets to the mean
    return, so that no advantage comes from where in a reply a token stands."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(N, H) -> (N,), in fp32 whatever the policy computes in."""
        with torch.autocast(states.device.type, enabled=False):
            return self.linear(states)[:, 0]


def speak_values(model: nn.Module, mean: float = 0.0, std: float = 1.0) -> nn.Module:
    """Make a reward model's `model(..., labels=)` give the score (N,) before each label, normalised as the reward is.
    Without labels it is as before. Call it before PEFT or FSDP wrap the model; returns it."""
    plain = model.forward

    @functools.wraps(plain)
    def forward(*args: Any, labels: Tensor | None = None, **inputs: Any):
        if labels is None:
            return plain(*args, **inputs)
        hidden = model.get_decoder()(inputs["input_ids"], inputs["attention_mask"], use_cache=False)[0]  # (B, T, H)
        states = hidden[:, :-1][labels[:, 1:] != IGNORED]  # (N, H)
        return (model.score(states)[:, 0].float() - mean) / std

    model.forward = forward
    return model


def value_from(rewards: Any, device: Any, adapter: dict[str, Any] | None, checkpointing: bool) -> nn.Module:
    """A value model that starts as the first reward model of `rewards`: under an adapter on that very model, which
    scores without it, or else a copy of its own, all of whose weights are trained."""
    moments = [
        getattr(rewards.model.config, name, usual) for name, usual in (("reward_mean", 0.0), ("reward_std", 1.0))
    ]
    if adapter:
        return add_lora(speak_values(rewards.model, *moments), task_type="SEQ_CLS", **adapter).to(device)
    path = next(spec.place for spec in rewards.specs if spec.name == rewards.model_name)
    model, _ = reward_model.load(path, device=device, dtype=torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return without_dropout(speak_values(model, *moments))


def values_of(value: nn.Module, batch: dict[str, Tensor], states: Tensor) -> Tensor:
    """V (N,) before each reply token of a batch, in fp32."""
    if isinstance(value, ValueHead):
        return value(states)
    return value(**{name: batch[name] for name in MODEL_INPUTS if name in batch})


# Sharding


def shard(model: nn.Module, *, bf16: bool, reshard_after_forward: bool) -> nn.Module:
    """FSDP2: the model's weights spread over all ranks, layer by layer; returns it."""
    half = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32) if bf16 else MixedPrecisionPolicy()
    layers = set(model._no_split_modules or [])
    for module in list(model.modules()):
        if type(module).__name__ in layers:
            fully_shard(module, mp_policy=half, reshard_after_forward=reshard_after_forward)
    model.reshards = reshard_after_forward
    return fully_shard(model, mp_policy=half, reshard_after_forward=reshard_after_forward)


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """All weights of a sharded model on every rank meanwhile: ranks may then make different numbers of passes."""
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    if not sharded:
        yield
        return
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(model.reshards, recurse=False)
            module.reshard()
