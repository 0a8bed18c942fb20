"""training/ppo.py: each equation against numbers derived by hand."""

import math

import pytest
import torch

from alignment.training.ppo import (
    KLController,
    clipped_policy_loss,
    clipped_value_loss,
    correlation,
    explained_variance,
    gae,
    group_advantages,
    importance_weights,
    kl_k1,
    kl_k3,
    token_rewards,
    whitened,
)


def near(found, expected):
    assert torch.allclose(torch.as_tensor(found), torch.tensor(expected), atol=1e-5), (found, expected)


def test_kl_estimators():
    """π .5 and .25, π_ref .25 and .5. k1: log 2, -log 2. k2: ½ log² 2 twice. k3: ½ - 1 + log 2 and 2 - 1 - log 2."""
    logps, reference = torch.tensor([0.5, 0.25]).log(), torch.tensor([0.25, 0.5]).log()
    log2 = math.log(2)
    near(kl_k1(logps, reference), [log2, -log2])
    near(kl_k3(logps, reference), [log2 - 0.5, 1 - log2])


def test_kl_k1_and_k3_are_unbiased():
    """π = (.8, .2), π_ref = (.5, .5): KL = .8 log 1.6 + .2 log .4, which the means of k1 and k3 under π both are."""
    policy, reference = torch.tensor([0.8, 0.2]), torch.tensor([0.5, 0.5])
    exact = 0.8 * math.log(1.6) + 0.2 * math.log(0.4)
    for estimate in (kl_k1, kl_k3):
        near((policy * estimate(policy.log(), reference.log())).sum(), exact)


def test_token_rewards():
    """KL .1, .2, .3 at 0.5 a nat: -.05, -.1, -.15; a score of 2 comes with the last: 1.85."""
    near(token_rewards(2.0, torch.tensor([0.1, 0.2, 0.3]), 0.5), [-0.05, -0.1, 1.85])


def test_gae():
    """r = 0, 0, 1; V = .5, .4, .2; γ = .9, λ = .5. δ3 = 1 - .2 = .8; δ2 = .9·.2 - .4 = -.22; δ1 = .9·.4 - .5 = -.14.
    A3 = .8; A2 = -.22 + .45·.8 = .14; A1 = -.14 + .45·.14 = -.077."""
    rewards, values = torch.tensor([0.0, 0.0, 1.0]), torch.tensor([0.5, 0.4, 0.2])
    near(gae(rewards, values, 0.9, 0.5), [-0.077, 0.14, 0.8])


def test_gae_with_lambda_1_is_return_minus_value():
    """γ = λ = 1: A_t = Σ_{k≥t} r_k - V_t. r = 1, 2, 3 and V = 1, 1, 1: 5, 4, 2."""
    near(gae(torch.tensor([1.0, 2.0, 3.0]), torch.ones(3), 1.0, 1.0), [5.0, 4.0, 2.0])


def test_whitened():
    """1, 2, 3: mean 2, variance 2/3, so ∓ sqrt(3/2) and 0. Equal values give exactly 0."""
    near(whitened(torch.tensor([1.0, 2.0, 3.0])), [-math.sqrt(1.5), 0.0, math.sqrt(1.5)])
    assert whitened(torch.full((5,), 0.25)).tolist() == [0.0] * 5


def test_group_advantages():
    """Scores 1, 2, 3: mean 2, deviation 1 (of a sample). Equal scores have nothing to teach."""
    assert group_advantages([1.0, 2.0, 3.0]) == pytest.approx([-1.0, 0.0, 1.0], abs=2e-4)
    assert group_advantages([1.0, 2.0, 6.0], scaled=False) == [-2.0, -1.0, 3.0]
    assert group_advantages([0.1, 0.1, 0.1]) == [0.0] * 3


def test_clipped_policy_loss():
    """ε = .2. Ratio 1.5, A 1: 1.2 counts. 1.5, A -1: 1.5, the worse. .5, A 1: .5. .5, A -1: .8. Within: as it is."""
    ratio, advantages = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1]), torch.tensor([1.0, -1.0, 1.0, -1.0, 2.0])
    near(clipped_policy_loss(ratio.log(), torch.zeros(5), advantages, 0.2), [-1.2, 1.5, -0.5, 0.8, -2.2])


def test_the_policy_gradient_is_the_advantage_until_clipped():
    """At ratio 1 the gradient of the loss by log π is -A; beyond the clip, on the side that A pulls to, it is 0."""
    logps = torch.tensor([0.0, math.log(1.5)], requires_grad=True)
    (grad,) = torch.autograd.grad(
        clipped_policy_loss(logps, torch.zeros(2), torch.tensor([3.0, 3.0]), 0.2).sum(), logps
    )
    near(grad, [-3.0, 0.0])


def test_importance_weights():
    """π .2, .3, .8 of what another engine sampled with .4, .3, .1: ½, 1, and 8, of which 2 remain."""
    logps, sampled = torch.tensor([0.2, 0.3, 0.8]).log(), torch.tensor([0.4, 0.3, 0.1]).log()
    near(importance_weights(logps, sampled), [0.5, 1.0, 2.0])


def test_clipped_value_loss():
    """ε = .2, old V 0. V .5, R 1: clipped .2 is off by .8: ½·.64. V .5, R 0: ½·.25. V .1, R 1: not clipped, ½·.81."""
    values, returns = torch.tensor([0.5, 0.5, 0.1]), torch.tensor([1.0, 0.0, 1.0])
    near(clipped_value_loss(values, torch.zeros(3), returns, 0.2), [0.32, 0.125, 0.405])


def test_a_fixed_coefficient_stays_and_an_adaptive_one_follows():
    """KL 12 of target 6: error clipped to .2; 1,000 of 10,000 replies: λ (1 + .02). KL 5.4: -.1: λ (1 - .01)."""
    fixed, adaptive = KLController(0.05), KLController(0.1, target=6.0, horizon=10_000)
    fixed.update(12.0, 1000)
    adaptive.update(12.0, 1000)
    assert fixed.coef == 0.05 and adaptive.coef == pytest.approx(0.102)
    adaptive.update(5.4, 1000)
    assert adaptive.coef == pytest.approx(0.102 * 0.99)


def test_explained_variance():
    """Returns 0, 2 (variance 1). Values 0, 2 explain all; 1, 1 nothing; 0, 1 leave 0, 1 (variance ¼): .75."""
    returns = torch.tensor([0.0, 2.0])
    for values, expected in (([0.0, 2.0], 1.0), ([1.0, 1.0], 0.0), ([0.0, 1.0], 0.75)):
        assert explained_variance(torch.tensor(values), returns) == pytest.approx(expected)
    assert explained_variance(torch.zeros(2), torch.ones(2)) is None


def test_correlation():
    """1, 2, 3 with 2, 4, 6 is 1, with 3, 2, 1 is -1; deviations (-1, 0, 1) and (-1, 1, 0): 1 / 2."""
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert correlation([1, 2, 3], [1, 3, 2]) == pytest.approx(0.5)
    assert correlation([1, 2], [5, 5]) is None
