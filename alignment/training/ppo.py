"""PPO's and GRPO's equations: log-probabilities, values and rewards in, advantages and losses out. Pure functions.

A rollout is a prompt x and the reply y_1 ... y_T that the policy gave, the token that ended it among them. Everything a
token has stands in (T,) of one rollout, or in (N,) of all tokens of several, one rollout after the other. Symbols are
those of PPO (Schulman et al. 2017), GAE (Schulman et al. 2016) and GRPO (Shao et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

EPSILON = 1e-8  # added to variances: what has none stays 0


# Kullback-Leibler divergence of the policy from the reference, estimated on what the policy sampled (Schulman 2020)


def kl_k1(logps: Tensor, reference: Tensor) -> Tensor:
    """k1 = log π(y_t) - log π_ref(y_t): unbiased, of either sign. (N,), (N,) -> (N,)."""
    return logps - reference


def kl_k3(logps: Tensor, reference: Tensor) -> Tensor:
    """k3 = π_ref/π - 1 - log(π_ref/π): unbiased and never negative. (N,), (N,) -> (N,).

    As a loss on what π sampled its gradient is that of KL(π_ref‖π), the other way round."""
    log_ratio = reference - logps
    return torch.expm1(log_ratio) - log_ratio


# Rewards and advantages


def token_rewards(score: float, kl: Tensor, kl_coef: float) -> Tensor:
    """ALMoST's E[r(x, y)] - λ KL(π‖π_SFT), token by token: -λ kl_t at each and the score at the last. (T,) -> (T,)."""
    rewards = -kl_coef * kl
    rewards[-1] += score
    return rewards


def gae(rewards: Tensor, values: Tensor, gamma: float, lam: float) -> Tensor:
    """GAE, eq. 16: A_t = δ_t + γλ A_{t+1} with δ_t = r_t + γ V(s_{t+1}) - V(s_t), and V = 0 after the last token.

    (T,), (T,) -> (T,). The returns that the values learn are A + V.
    """
    found, following, later = [], 0.0, 0.0
    for reward, value in zip(reversed(rewards.tolist()), reversed(values.tolist()), strict=True):
        later = reward + gamma * following - value + gamma * lam * later
        following = value
        found.append(later)
    return rewards.new_tensor(found[::-1])


def whitened(values: Tensor) -> Tensor:
    """(N,) -> (N,) of mean 0 and variance 1, over all that is given: the tokens of a whole step. Equal ones give 0."""
    centred = values - values.mean()
    return centred * torch.rsqrt(centred.square().mean() + EPSILON)


def group_advantages(scores: Sequence[float], scaled: bool = True) -> list[float]:
    """GRPO, section 4.1.2: (r_i - mean) / deviation of the G replies to one prompt; 0 where all are equal. G >= 2.

    Not `scaled`, r_i - mean: the gradient of the reward itself, for which easy and hard prompts weigh as they are (Liu
    et al. 2025)."""
    found = torch.tensor(scores, dtype=torch.float64)
    if len(set(scores)) < 2:
        return [0.0] * len(scores)
    centred = found - found.mean()
    return (centred / (found.std() + 1e-4)).tolist() if scaled else centred.tolist()


# Losses, one value a token: who sums them divides by the count of the whole step


def clipped_policy_loss(logps: Tensor, old: Tensor, advantages: Tensor, epsilon: float) -> Tensor:
    """PPO, eq. 7: -min(ρ A, clip(ρ, 1-ε, 1+ε) A) with ρ = π/π_old (y_t). (N,) each -> (N,)."""
    ratio = (logps - old).exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)


def importance_weights(logps: Tensor, sampled: Tensor, cap: float = 2.0) -> Tensor:
    """min(π/μ (y_t), cap): what a token's policy loss is worth where another engine's μ sampled it and not π itself
    (truncated importance sampling, Ionides 2008; the cap is our choice). (N,), (N,) log-probabilities -> (N,)."""
    return (logps - sampled).exp().clamp(max=cap)


def clipped_value_loss(values: Tensor, old: Tensor, returns: Tensor, epsilon: float) -> Tensor:
    """½ max((V - R)², (clip(V, V_old ± ε) - R)²): moving by more than ε earns nothing. (N,) each -> (N,)."""
    clipped = old + (values - old).clamp(-epsilon, epsilon)
    return 0.5 * torch.maximum((values - returns).square(), (clipped - returns).square())


# What the KL costs


@dataclass
class KLController:
    """λ, the KL's weight in the reward: fixed where `target` is None, else adaptive (Ziegler et al. 2019, section 2.2).

    `target` is KL in nats a reply, `horizon` the replies over which an error of 20% is made good.
    """

    coef: float
    target: float | None = None
    horizon: int = 10_000

    def update(self, kl: float, replies: int) -> None:
        """λ <- λ (1 + e n/horizon), e = clip(KL/target - 1, ±0.2), after n replies of this mean KL."""
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.coef *= 1 + error * replies / self.horizon


# What a run is watched by


def explained_variance(values: Tensor, returns: Tensor) -> float | None:
    """1 - Var(R - V) / Var(R): 1 where values tell the returns, 0 where they tell nothing. None for equal returns."""
    variance = returns.var(correction=0)
    return None if variance < EPSILON else (1 - (returns - values).var(correction=0) / variance).item()


def correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Pearson's correlation; None where either does not vary."""
    a, b = (torch.tensor(each, dtype=torch.float64) for each in (one, other))
    a, b = a - a.mean(), b - b.mean()
    scale = (a.square().sum() * b.square().sum()).sqrt()
    return (a @ b / scale).item() if scale > EPSILON else None
