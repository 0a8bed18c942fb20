"""CUT's losses against numbers worked out by hand, finite differences, and a plain writing of the released step."""

import json
import math
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F

from alignment.training.cut_lines import ALIGN_N, ALIGN_P, MISALIGN, Line
from alignment.training.logps import response_logps, speak_logps
from alignment.training.losses import cut, cut_as_released, inappropriate_tokens, log1mexp, unlikelihood_weight
from benchmarks import cut_step
from benchmarks.cut_step import released_loss

NONE = torch.zeros(0)


def logs(*probabilities):
    return torch.tensor(probabilities, dtype=torch.float64).log()


def test_inappropriate_tokens():
    """p with judgment .9 .5 .06, without .3 .5 .02, threshold 1.2: ratios 3, 1, 3; a floor of .1 spares the last."""
    judged, plain = logs(0.9, 0.5, 0.06), logs(0.3, 0.5, 0.02)
    assert inappropriate_tokens(judged, plain, 1.2).tolist() == [True, False, True]
    assert inappropriate_tokens(judged, plain, 1.2, floor=0.1).tolist() == [True, False, False]
    assert inappropriate_tokens(judged, plain, 3.1).tolist() == [False, False, False]


def test_detection_far_below_underflow():
    """In fp32 e^-200 and e^-190 are both 0 and their ratio is no number; their logarithms still differ by 10."""
    assert inappropriate_tokens(torch.tensor([-190.0]), torch.tensor([-200.0]), 1.1).item()


def test_unlikelihood_weight():
    """α = .5, p = .25: γ = .5 gives .5 x .5, γ = 0 the constant .5, and neither has a gradient."""
    judged = logs(0.25).requires_grad_()
    assert unlikelihood_weight(judged, 0.5, 0.5).item() == pytest.approx(0.25)
    assert unlikelihood_weight(judged, 0.5, 0.0).item() == pytest.approx(0.5)
    assert not unlikelihood_weight(judged, 0.5, 0.5).requires_grad


def test_cut_by_hand():
    """One flawed row, p(y|x,j) = .8 .5, p(y|x) = .4 .5: ratios 2 and 1, so U is the first token under λ = 1.1.

    α = 1 and γ = 1 weigh it .8. N = 2:
    L1 = -1/2 [.8 log .6 + log .5], L2 = -1/2 [log .8 + log .5].
    """
    judged, plain = logs(0.8, 0.5), logs(0.4, 0.5)
    blamed = inappropriate_tokens(judged, plain, 1.1)
    first, second = cut(judged, plain, NONE, blamed, unlikelihood_weight(judged, 1.0, 1.0), 2)
    assert first.item() == pytest.approx(-(0.8 * math.log(0.6) + math.log(0.5)) / 2)
    assert second.item() == pytest.approx(-(math.log(0.8) + math.log(0.5)) / 2)


def test_cut_of_a_satisfactory_row():
    """Only the first half of eq. 7: -1/2 [log .5 + log .25] = 1.5 log 2."""
    first, second = cut(NONE, NONE, logs(0.5, 0.25), NONE.bool(), NONE, 2)
    assert (first.item(), second.item()) == (0, pytest.approx(1.5 * math.log(2)))


def test_cut_does_not_depend_on_the_cut_into_micro_batches():
    generator = torch.Generator().manual_seed(0)
    judged, plain, satisfactory = (-torch.rand(n, generator=generator) * 3 for n in (12, 12, 5))
    blamed, weight = inappropriate_tokens(judged, plain, 1.1), unlikelihood_weight(judged, 0.5, 2.0)
    assert 0 < blamed.sum() < 12
    whole = sum(cut(judged, plain, satisfactory, blamed, weight, 17))
    parts = sum(cut(judged[:3], plain[:3], satisfactory, blamed[:3], weight[:3], 17))
    parts = parts + sum(cut(judged[3:], plain[3:], NONE, blamed[3:], weight[3:], 17))
    torch.testing.assert_close(parts, whole)


def test_gradient_of_cut_by_differences():
    """Autograd and central differences agree where tokens of both kinds are, in every argument that has a gradient."""
    leaves = [logs(0.8, 0.5, 0.9), logs(0.4, 0.5, 0.6), logs(0.3)]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    blamed, weight = torch.tensor([True, False, True]), logs(0.7, 1.0, 0.2).exp()
    assert torch.autograd.gradcheck(lambda j, p, s: sum(cut(j, p, s, blamed, weight, 4)), leaves)


@pytest.mark.parametrize("gap", [1e-3, 1e-7, 1e-12])
def test_log_of_one_minus_p_is_stable(gap):
    """log(1 - p) at log p = -gap is log(gap) to first order, also in fp32, where p itself is 1; so is d = -1/gap."""
    plain = torch.tensor([-gap], requires_grad=True)
    first, _ = cut(torch.tensor([0.0]), plain, NONE, torch.tensor([True]), torch.ones(1), 1)
    first.backward()
    assert first.item() == pytest.approx(-math.log(gap), rel=1e-3)
    assert plain.grad.item() == pytest.approx(1 / gap, rel=1e-3)


def test_certain_tokens_are_finite():
    """p = 1 exactly, blamed or not, and p = e^-200: no infinity and no NaN, in value or gradient."""
    plain = torch.tensor([0.0, 0.0, -200.0], requires_grad=True)
    first, _ = cut(torch.zeros(3), plain, NONE, torch.tensor([True, False, True]), torch.ones(3), 3)
    first.backward()
    assert first.isfinite() and plain.grad.isfinite().all() and plain.grad[1] == -1 / 3


def test_log1mexp_from_both_sides():
    x = torch.tensor([-1e-9, -0.5, -0.7, -5.0, -40.0], dtype=torch.float64)
    torch.testing.assert_close(log1mexp(x), torch.log1p(-x.exp()), rtol=1e-7, atol=1e-12)


# The released step


def batch_of(generator, vocabulary, lines):
    """Right-padded ids and labels of random lines: `lines` is [(prompt's length, response's length), ...]."""
    ids, labels = [], []
    for prompt, response in lines:
        tokens = torch.randint(4, vocabulary, (prompt + response,), generator=generator)
        ids.append(tokens)
        labels.append(torch.cat([torch.full((prompt,), -100), tokens[prompt:]]))
    pad = torch.nn.utils.rnn.pad_sequence
    return pad(ids, batch_first=True, padding_value=3), pad(labels, batch_first=True, padding_value=-100)


@pytest.mark.parametrize("kinds", ["f", "s", "fs", "sff", "ss"])
@pytest.mark.parametrize(("threshold", "weight"), [(1.1, 1.0), (1.2, 0.5), (0.7, 0.1)])
def test_legacy_loss_is_the_released_one(llama, kinds, threshold, weight):
    """Value and every weight's gradient, on micro-batches of flawed (f) and satisfactory (s) rows, mixed or not."""
    generator = torch.Generator().manual_seed(len(kinds))
    vocabulary = llama.config.vocab_size
    judged_first = [(9, 6 + n) if kind == "f" else (4, 6 + n) for n, kind in enumerate(kinds)]
    ids, labels = batch_of(generator, vocabulary, judged_first)
    ids_plain, labels_plain = torch.full_like(ids, 3), torch.full_like(labels, -100)
    for n, kind in enumerate(kinds):
        if kind == "f":  # the same response after a shorter prompt
            ids_plain[n, : 4 + 6 + n], labels_plain[n, : 4 + 6 + n] = ids[n, 5 : 15 + n], labels[n, 5 : 15 + n]
            ids_plain[n, :4] = torch.randint(4, vocabulary, (4,), generator=generator)
    flawed = torch.tensor([kind == "f" for kind in kinds])

    pair = {"input_ids": torch.cat([ids, ids_plain]), "labels": torch.cat([labels, labels_plain])}
    scale = 40  # sharpens a random model, so that ratios spread around the threshold
    llama.lm_head.weight.data.mul_(scale)
    logits = llama(input_ids=pair["input_ids"], attention_mask=(pair["input_ids"] != 3).long()).logits
    wanted = released_loss(logits, labels, labels_plain, flawed, threshold=threshold, weight=weight)
    wanted.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in llama.named_parameters()}
    llama.zero_grad()

    target = {"input_ids": ids, "attention_mask": (labels != -100).logical_or(ids != 3).long(), "labels": labels}
    logps, rows = response_logps(speak_logps(llama), target)
    plain = NONE
    if flawed.any():
        alone = {"input_ids": ids_plain[flawed], "attention_mask": (ids_plain[flawed] != 3).long()}
        plain, _ = response_logps(llama, alone | {"labels": labels_plain[flawed]})
    judged, satisfactory = logps[flawed[rows]], logps[~flawed[rows]]
    found = cut_as_released(judged, plain, satisfactory, threshold=threshold, weight=weight)
    found.backward()
    if flawed.any():
        share = (judged.exp() / plain.exp() > threshold).float().mean()
        assert 0 < share < 1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    for name, parameter in llama.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-5, msg=name)


def test_released_batch_has_a_line_of_padding_beside_a_satisfactory_row():
    """Judged lines, then plain ones; both padded to 8. Row 0 is flawed, row 1 is not (C4, C21)."""
    flawed = (Line(0, [5, 6, 2], 1, MISALIGN), Line(0, [5, 9, 6, 2], 2, ALIGN_N))
    batch = cut_step.released_batch([flawed, (Line(1, [5, 7, 2], 1, ALIGN_P),)], 0)
    assert batch["input_ids"][:, :5].tolist() == [[5, 9, 6, 2, 0], [5, 7, 2, 0, 0], [5, 6, 2, 0, 0], [0] * 5]
    assert batch["attention_mask"].sum(1).tolist() == [4, 3, 3, 0] and batch["input_ids"].shape == (4, 8)
    assert batch["labels"][2, :4].tolist() == [-100, 6, 2, -100] and batch["flawed"].tolist() == [True, False]


@pytest.mark.slow
def test_benchmark_runs_both_ways(tmp_path, model_folder, capfd):
    judgments = ["No.", None] * 20
    rows = [{"instruction": "Say.", "output": f"It is {n}.", "judgment": said} for n, said in enumerate(judgments)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    flags = ["--base_model", str(model_folder), "--data_path", str(tmp_path / "rows.json"), "--steps", "1"]
    subprocess.run([sys.executable, cut_step.__file__, *flags], check=True)
    assert re.search(r"ours / released: \d+\.\d+ x real tokens/s", capfd.readouterr().out)


def test_released_mix_depends_on_batch_mates():
    """C3, kept under --legacy_loss: a satisfactory token's weight is 1/1 alone and 1/2 · 1/2 beside a flawed one."""
    satisfactory = logs(0.5).requires_grad_()
    cut_as_released(NONE, NONE, satisfactory, threshold=1.1, weight=1.0).backward()
    assert satisfactory.grad.item() == -1
    satisfactory.grad = None
    cut_as_released(logs(0.5), logs(0.5), satisfactory, threshold=1.1, weight=1.0).backward()
    assert satisfactory.grad.item() == -0.25


def test_unlikelihood_of_everything_blows_up_and_detection_does_not():
    """Table 4: without detection nothing is kept. Gradient steps on eq. 6 alone, from p = .5 for all tokens of a row:
    blaming all ends with every p near 0; blaming one leaves the others near 1."""
    judged = logs(0.9, 0.5, 0.5).float()
    for blamed, high in [(torch.tensor([True] * 3), 0), (torch.tensor([True, False, False]), 2)]:
        logits = torch.zeros(3, 2, requires_grad=True)
        for _ in range(200):
            plain = F.log_softmax(logits, -1)[:, 0]
            loss, _ = cut(judged, plain, NONE, blamed, torch.ones(3), 3)
            logits = (logits - 3 * torch.autograd.grad(loss, logits)[0]).detach().requires_grad_()
        p = F.softmax(logits, -1)[:, 0]
        assert int((p > 0.9).sum()) == high and int((p < 0.1).sum()) == 3 - high
