"""One step of reinforcement: rollouts are measured by the trainer, given advantages, and learned from.

    measure(models, rollouts, settings)             # log-probabilities under policy and reference, values
    advantages(rollouts, settings, kl_coef)         # PPO: GAE over rewards with KL; GRPO: against the group
    sums = update(models, rollouts, settings, step) # epochs of mini-batches

A mini-batch's loss is divided by the tokens of all of it, and gradients are summed over micro-batches and ranks: they
do not depend on how it is cut.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from alignment.command_line import UserError
from alignment.generation import record_seed
from alignment.training import ppo
from alignment.training.rl_models import ValueHead, logps_and_states, values_of
from alignment.training.rollouts import Rollout, of_all_ranks, plan, tensors

# Mean absolute difference of log-probabilities, in nats a token, below which two right engines stay. In fp32 they add
# up in another order: 1e-5 was seen. bf16 keeps 8 bits: each has logits of 8 to 16 off by up to 0.03, and all its sums.
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}


class Learner:
    """A module in training: its optimiser and schedule, and how its gradients become a step."""

    def __init__(self, module: nn.Module, make: Callable[[list[nn.Parameter]], Any], schedule: Callable[[Any], Any]):
        self.module = module
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.optimizer = make(list(self.weights.values()))
        self.scheduler = schedule(self.optimizer)

    @property
    def is_sharded(self) -> bool:
        return any(isinstance(weight, DTensor) for weight in self.weights.values())

    def scale(self, world: int) -> int:
        """What a rank's share of the loss is multiplied by: FSDP averages gradients over ranks, and we sum them."""
        return world if self.is_sharded else 1

    def take_step(self, max_norm: float, world: int) -> float:
        """Sum the gradients over ranks, clip their norm, and move the weights. The norm before it was clipped."""
        grads = [weight.grad for weight in self.weights.values() if weight.grad is not None]
        if world > 1 and not self.is_sharded:
            flat = torch.cat([grad.flatten() for grad in grads])
            distributed.all_reduce(flat)
            for grad, summed in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
                grad.copy_(summed.view_as(grad))
        norm = get_total_norm(grads)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if not math.isfinite(norm.item()):
            raise UserError(
                "a gradient is not finite; nothing was saved after the last checkpoint: look at the rewards, or lower "
                "--learning_rate"
            )
        clip_grads_with_norm_(self.weights.values(), max_norm, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return norm.item()

    def state(self) -> dict[str, Any]:
        """Weights in training, optimiser and schedule, whole and on the CPU. All ranks gather it together."""
        return {
            "weights": whole({name: weight.detach() for name, weight in self.weights.items()}),
            "optimizer": whole(self.optimizer.state_dict()),
            "scheduler": self.scheduler.state_dict(),
        }

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(as_sharded(state["weights"][name], weight))
        weights = list(self.weights.values())
        for place, own in state["optimizer"]["state"].items():
            own.update({name: as_sharded(value, weights[place]) for name, value in own.items()})
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])


def whole(tree: Any) -> Any:
    """The same with every tensor in one piece, a copy on the CPU."""
    if isinstance(tree, dict):
        return {name: whole(value) for name, value in tree.items()}
    if isinstance(tree, list):
        return [whole(value) for value in tree]
    if isinstance(tree, DTensor):
        return tree.full_tensor().cpu()
    return tree.detach().cpu().clone() if isinstance(tree, Tensor) else tree


def as_sharded(value: Any, weight: Tensor) -> Any:
    """A whole tensor spread over ranks as a weight of its shape is."""
    if not isinstance(weight, DTensor) or not isinstance(value, Tensor) or value.shape != weight.shape:
        return value
    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)


@dataclass
class Models:
    """What a step is taken with. `reference` is a model of its own, or `switch` leaves out the policy's adapter for it;
    both None where nothing is compared with one. `value` is None for GRPO. Scores are asked for within `scoring`."""

    policy: Learner
    value: Learner | None
    reference: nn.Module | None
    switch: Callable[[], Any] | None
    autocast: Callable[[], Any] = nullcontext
    scoring: Callable[[], Any] = nullcontext


@dataclass(frozen=True)
class Settings:
    """What a step is, beside its models; the flags of train_rl.py of these names."""

    algorithm: str
    gamma: float
    gae_lambda: float
    cliprange: float
    cliprange_value: float
    missing_eos_penalty: float
    scale_rewards: bool
    num_ppo_epochs: int
    mini_batch_size: int
    micro_batch_tokens: int
    max_grad_norm: float
    seed: int
    pad_id: int
    device: Any
    rank: int
    world: int

    @classmethod
    def of(cls, args: Any, *, pad_id: int, accelerator: Any) -> Settings:
        own = {"pad_id": pad_id, "device": accelerator.device}
        own |= {"rank": accelerator.process_index, "world": accelerator.num_processes}
        return cls(**own, **{each.name: getattr(args, each.name) for each in fields(cls) if each.name not in own})


# Measured once


@torch.no_grad()
def measure(models: Models, rollouts: Sequence[Rollout], settings: Settings) -> None:
    """Give every rollout its log-probabilities under the policy that sampled it and the reference, and its values, by
    the trainer's own passes. Each rank makes its share, and has all of it afterwards."""
    found: dict[int, tuple[Tensor | None, ...]] = {}
    policy = models.policy.module
    for numbers, _ in plan(rollouts, settings.micro_batch_tokens, settings.rank, settings.world):
        batch = tensors([rollouts[number] for number in numbers], settings.pad_id, settings.device)
        lengths = [len(rollouts[number].reply) for number in numbers]
        with models.autocast():
            logps, states = logps_and_states(policy, batch)
            made = [logps, None, None]
            if models.switch:
                with models.switch():
                    made[1] = logps_and_states(policy, batch)[0]
            elif models.reference is not None:
                made[1] = logps_and_states(models.reference, batch)[0]
            if models.value:
                made[2] = values_of(models.value.module, batch, states)
        split = [each.float().cpu().split(lengths) if each is not None else [None] * len(numbers) for each in made]
        found |= dict(zip(numbers, zip(*split, strict=True), strict=True))
    for share in of_all_ranks(found, settings.world):
        for number, (logps, reference, values) in share.items():
            rollout = rollouts[number]
            rollout.logps, rollout.reference, rollout.values = logps, reference, values


def compared(rollouts: Sequence[Rollout], bf16: bool) -> dict[str, float]:
    """What a step's history says of another engine's log-probabilities beside `measure`'s. Raises UserError where they
    are too far apart for rounding, or no numbers: kept copies, caches and kernels can each leave an engine with weights
    that are not the policy's, and nothing is raised."""
    ours, theirs = (torch.cat([getattr(each, name) for each in rollouts]) for name in ("logps", "engine_logps"))
    error, limit = (ours - theirs).abs().mean().item(), TOLERANCE["bf16" if bf16 else "fp32"]
    if not error <= limit:
        raise UserError(
            f"vllm's log-probabilities of its own replies are {error:.2g} nats a token off the trainer's (limit "
            f"{limit:g}): it does not run the policy's weights"
        )
    weights = ppo.importance_weights(ours, theirs)
    return {"handover_error": error, "importance_weight": weights.mean().item()}


# Advantages


def penalised(rollout: Rollout, settings: Settings) -> float:
    """The score, less the penalty where the reply has no end."""
    return rollout.score - (0.0 if rollout.ended else settings.missing_eos_penalty)


def usable(rollouts: Sequence[Rollout], settings: Settings) -> list[Rollout]:
    """The rollouts that can be learned from: scored, and in GRPO beside another scored one of their prompt."""
    scored = [rollout for rollout in rollouts if rollout.score is not None]
    if settings.algorithm == "ppo":
        return scored
    beside = Counter(rollout.place for rollout in scored)
    return [rollout for rollout in scored if beside[rollout.place] > 1]


def advantages(models: Models, rollouts: Sequence[Rollout], settings: Settings, kl_coef: float, first: bool) -> None:
    """Give every rollout its advantages, and in PPO its returns. `first` is the run's first step: a value head that
    knows nothing then tells the mean of what the replies got."""
    if settings.algorithm == "grpo":
        for _, group in itertools.groupby(rollouts, key=lambda rollout: rollout.place):
            group = list(group)
            found = ppo.group_advantages([penalised(each, settings) for each in group], settings.scale_rewards)
            for rollout, advantage in zip(group, found, strict=True):
                rollout.advantages = torch.full((len(rollout.reply),), advantage)
        return
    rewards = []
    for rollout in rollouts:
        kl = 0 * rollout.logps if rollout.reference is None else ppo.kl_k1(rollout.logps, rollout.reference)
        rewards.append(ppo.token_rewards(penalised(rollout, settings), kl, kl_coef))
    if first and isinstance(models.value.module, ValueHead):
        mean = math.fsum(each.double().sum().item() for each in rewards) / len(rewards)
        nn.init.constant_(models.value.module.linear.bias, mean)
        for rollout in rollouts:
            rollout.values = torch.full_like(rollout.values, mean)
    for rollout, each in zip(rollouts, rewards, strict=True):
        rollout.advantages = ppo.gae(each, rollout.values, settings.gamma, settings.gae_lambda)
        rollout.returns = rollout.advantages + rollout.values
    white = ppo.whitened(torch.cat([rollout.advantages for rollout in rollouts]))
    for rollout, each in zip(rollouts, white.split([len(rollout.reply) for rollout in rollouts]), strict=True):
        rollout.advantages = each


# Learned from


def mini_batches(rollouts: Sequence[Rollout], settings: Settings, step: int, epoch: int) -> list[list[Rollout]]:
    """An epoch over a step's rollouts, in an order of the seed; the last mini-batch may be smaller."""
    draw = random.Random(record_seed(settings.seed, "mini-batches", step, epoch))
    shuffled = draw.sample(list(rollouts), len(rollouts))
    return [shuffled[i : i + settings.mini_batch_size] for i in range(0, len(shuffled), settings.mini_batch_size)]


def backward(models: Models, rollouts: Sequence[Rollout], settings: Settings, kl_coef: float) -> Counter:
    """Add the gradients of a mini-batch's losses, this rank's share of them. Sums over this rank's tokens of what is
    logged."""
    sums: Counter = Counter()
    total = sum(len(rollout.reply) for rollout in rollouts)
    policy, value, world = models.policy, models.value, settings.world
    for numbers, weight in plan(rollouts, settings.micro_batch_tokens, settings.rank, world):
        batch = tensors([rollouts[number] for number in numbers], settings.pad_id, settings.device)
        old, gains = batch["logps"], batch["advantages"]
        with models.autocast():
            logps, states = logps_and_states(policy.module, batch)
        losses = ppo.clipped_policy_loss(logps, old, gains, settings.cliprange)  # (N,)
        if "engine_logps" in batch:
            losses = losses * ppo.importance_weights(old, batch["engine_logps"])
        if settings.algorithm == "grpo" and kl_coef:
            losses = losses + kl_coef * ppo.kl_k3(logps, batch["reference"])
        loss = weight * losses.sum() / total
        (policy.scale(world) * loss).backward()
        ratio = (logps.detach() - old).exp()
        sums["policy_loss"] += loss.item()
        sums["clip_fraction"] += weight * ((ratio - 1).abs() > settings.cliprange).sum().item() / total
        if value:
            with models.autocast():
                values = values_of(value.module, batch, states)
            losses = ppo.clipped_value_loss(values, batch["values"], batch["returns"], settings.cliprange_value)
            loss = weight * losses.sum() / total
            (value.scale(world) * loss).backward()
            sums["value_loss"] += loss.item()
    return sums


def update(
    models: Models, rollouts: Sequence[Rollout], settings: Settings, kl_coef: float, step: int
) -> dict[str, float]:
    """Learn from a step's rollouts in epochs of mini-batches. Means over mini-batches of what is logged."""
    sums, count = Counter(), 0
    for epoch in range(settings.num_ppo_epochs):
        for batch in mini_batches(rollouts, settings, step, epoch):
            for share in of_all_ranks(backward(models, batch, settings, kl_coef), settings.world):
                sums.update(share)
            sums["grad_norm"] += models.policy.take_step(settings.max_grad_norm, settings.world)
            if models.value:
                models.value.take_step(settings.max_grad_norm, settings.world)
            count += 1
    for learner in filter(None, (models.policy, models.value)):
        learner.scheduler.step()
    return {name: value / count for name, value in sums.items()}
