"""Every loss by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from alignment.training import trainers
from alignment.training.losses import bradley_terry, dpo, log1mexp, orpo_odds_ratio, sft


def test_log1mexp():
    """log(1 - e^x): x = -log 2 gives -log 2; x = -1e-10 gives log 1e-10; x = -50 gives -e^-50. Gradients are finite."""
    x = torch.tensor([-math.log(2), -1e-10, -50.0], dtype=torch.float64, requires_grad=True)
    expected = torch.tensor([-math.log(2), math.log(1e-10), -math.exp(-50)], dtype=torch.float64)
    assert torch.allclose(log1mexp(x), expected, rtol=1e-9, atol=0)
    log1mexp(x).sum().backward()
    assert torch.allclose(x.grad, -1 / torch.expm1(-x.detach()), rtol=1e-9, atol=0)


def test_sft():
    """Tokens of probability 1/2, 1/4, 1/4 of a step of five: (log 2 + 2 log 4) / 5 = log 2."""
    assert sft(torch.tensor([0.5, 0.25, 0.25]).log(), 5).item() == pytest.approx(math.log(2))


def test_bradley_terry():
    """Equal rewards: log 2. A margin of log 3: -log(3/4). A margin of -200: 200, where exp would overflow."""
    losses = bradley_terry(torch.tensor([1.0, math.log(3), -100.0]), torch.tensor([1.0, 0.0, 100.0]))
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3), 200.0])


def test_dpo():
    """beta 1/2; the policy gained log 9 on the chosen and nothing on the rejected, so σ(log 3) = 3/4. Without any gain
    the loss is log 2, whatever the reference says."""
    losses = dpo(
        torch.tensor([math.log(9) - 7, -3.0]),
        torch.tensor([-4.0, -5.0]),
        torch.tensor([-7.0, -3.0]),
        torch.tensor([-4.0, -5.0]),
        beta=0.5,
    )
    assert losses.tolist() == pytest.approx([math.log(4 / 3), math.log(2)])


def test_dpo_step_length_normalized(monkeypatch):
    """Chosen: log-ratios log 3, log 3 and, at its end token, 0. Rejected: 0 and, at its end token, -2/3 log 3.

    Over 3 and 2 tokens these are 2/3 log 3 and -1/3 log 3: at beta 1 a margin of log 3, and a loss of log(1 + 1/3). The
    sums' margin is (2 + 2/3) log 3. The reference comes as sums in both.
    """
    three, reference = math.log(3), [-4.0, -3.0]
    logps = torch.tensor([three - 2, three - 1, -1.0, -2.0, -2 / 3 * three - 1])
    monkeypatch.setattr(trainers, "response_logps", lambda model, batch: (logps, torch.tensor([0, 0, 0, 1, 1])))
    batch = {"labels": torch.zeros(2, 6), "weights": torch.ones(1), "reference": torch.tensor(reference)}
    for normalized, margin in ((True, three), (False, 8 / 3 * three)):
        loss, sums = trainers.dpo_step(None, batch, {"items": 1}, beta=1.0, length_normalized=normalized)
        assert (loss.item(), sums["margin"].item()) == pytest.approx((math.log1p(math.exp(-margin)), margin))


def test_orpo():
    """Mean probabilities 3/4 and 1/2: odds 3 and 1, their ratio 3, σ(log 3) = 3/4. A certain answer stays finite."""
    losses = orpo_odds_ratio(torch.tensor([0.75]).log(), torch.tensor([0.5]).log())
    assert losses.item() == pytest.approx(math.log(4 / 3))
    certain = torch.tensor([-1e-30], dtype=torch.float64, requires_grad=True)
    orpo_odds_ratio(certain, torch.tensor([-1.0], dtype=torch.float64)).backward()
    assert torch.isfinite(certain.grad).all()


def test_gradient_of_bradley_terry():
    """d/dr_w -log σ(d) = -(1 - σ(d)); at equal rewards -1/2, and +1/2 for the other."""
    chosen, rejected = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    bradley_terry(chosen, rejected).backward()
    assert (chosen.grad.item(), rejected.grad.item()) == (-0.5, 0.5)
    assert F.logsigmoid(torch.zeros(1)).item() == pytest.approx(-math.log(2))
