"""The papers' equations: log-probabilities or rewards in, losses out. Pure functions; symbols are the papers'."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log1mexp(x: Tensor) -> Tensor:
    """log(1 - e^x) for x < 0, exact at both ends (Maechler 2012): near 0 by expm1, far below by log1p.

    The branch not taken is fed a harmless value, so that its gradient is no 0·inf.
    """
    near = x > -math.log(2)
    return torch.where(
        near, torch.log(-torch.expm1(torch.where(near, x, -1.0))), torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    )


# One value an item, so that a step's mean does not depend on how the step was cut


def sft(logps: Tensor, num_tokens: int | Tensor) -> Tensor:
    """Supervised: -1/N Σ log p(y_t | x, y_<t) over response tokens of this micro-batch, (n,) or their sum; N is the
    whole step's."""
    return -logps.sum() / num_tokens


def bradley_terry(chosen: Tensor, rejected: Tensor) -> Tensor:
    """Reward model, ALMoST section 2: -log σ(r(x, y_w) - r(x, y_l)). Rewards (B,), (B,) -> (B,)."""
    return -F.logsigmoid(chosen - rejected)


def dpo(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, beta: float) -> Tensor:
    """DPO, eq. 7: -log σ(β [log π/π_ref (y_w|x) - log π/π_ref (y_l|x)]). Sums of log-probabilities, (B,) -> (B,).

    Of sums divided by the response's tokens it is length-normalised DPO, as delta learning (arXiv 2507.06187) has it.
    """
    return -F.logsigmoid(beta * ((chosen - ref_chosen) - (rejected - ref_rejected)))


def orpo_odds_ratio(chosen: Tensor, rejected: Tensor) -> Tensor:
    """ORPO, eq. 7: -log σ(log odds(y_w|x) - log odds(y_l|x)), odds = p / (1 - p). (B,), (B,) -> (B,).

    log p is the *mean* token log-probability of a response, as in the paper; ORPO's whole loss is `sft` on the chosen
    response plus λ times this.
    """
    return -F.logsigmoid((chosen - log1mexp(chosen)) - (rejected - log1mexp(rejected)))


# CUT (arXiv 2312.14591v4). x instruction, y response of N tokens, j judgment of it; log-probabilities are (M,), one for
# each response token of the flawed rows, in the same order with the judgment in the prompt (`judged`) and without it
# (`plain`). `satisfactory` is (S,): the tokens of responses that nothing is wrong with.


def inappropriate_tokens(judged: Tensor, plain: Tensor, threshold: float, floor: float = 0.0) -> Tensor:
    """Eq. 5: U = {t : p(y_t|x,j) > λ p(y_t|x)}, which the judgment makes much likelier; (M,) bool, in log space.

    `floor` σ adds p(y_t|x,j) > σ, against rare tokens whose ratio is noise (C10); 0 is the paper.
    """
    blamed = judged - plain > math.log(threshold)
    return blamed & (judged > math.log(floor)) if floor else blamed


def unlikelihood_weight(judged: Tensor, alpha: float, gamma: float) -> Tensor:
    """Eq. 6's α p(y_t|x,j)^γ: (M,), a coefficient without gradient. γ = 0 is the released code's constant (C1)."""
    return alpha * (gamma * judged.detach()).exp()


NEARLY_ONE = -1e-12  # log p; above it log(1 - p) stays what it is there


def cut(
    judged: Tensor, plain: Tensor, satisfactory: Tensor, blamed: Tensor, weight: Tensor, num_tokens: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Eqs. 6 and 7, whose sum is CUT's loss; N = `num_tokens` is the number of response tokens in the whole step.

        L1 = -1/N [ Σ_{t∉U} log p(y_t|x)  +  Σ_{t∈U} α p(y_t|x,j)^γ log(1 - p(y_t|x)) ]     flawed rows
        L2 = -1/N [ Σ log p(y_t|x) of satisfactory rows  +  Σ log p(y_t|x,j) of flawed rows ]

    On one row this is the paper's. On many, every token weighs the same, whichever micro-batch or rank it is in (C2,
    C3, C17). A token of U under λ > 1 has p(y_t|x) < 1/λ; for λ <= 1, log(1-p) is exact to p = 1 - 1e-12 (C8).
    """
    unlikely = log1mexp(torch.where(blamed, plain.clamp(max=NEARLY_ONE), -1.0))  # no gradient where not blamed
    first = -torch.where(blamed, weight * unlikely, plain).sum()
    second = -satisfactory.sum() - judged.sum()
    return first / num_tokens, second / num_tokens


def cut_as_released(judged: Tensor, plain: Tensor, satisfactory: Tensor, *, threshold: float, weight: float) -> Tensor:
    """The released code's loss of one micro-batch: L_mle, or (L_unlike + L_mle) / 2 where it has a flawed row (C3).

    Both are means over the micro-batch's tokens. Probabilities, not logarithms: 1e-5 stands in for an exact 0 (C8, C9).
    """
    likelihood = -torch.cat([satisfactory, judged]).mean()
    if not len(plain):
        return likelihood
    p = plain.exp()
    blamed = (judged.exp() / p).detach() > threshold
    kept = torch.where(blamed, 1 - p, p)
    logs = torch.where(kept == 0, kept + 1e-5, kept).log()
    unlikelihood = -torch.where(blamed, weight * logs, logs).mean()
    return (unlikelihood + likelihood) / 2
