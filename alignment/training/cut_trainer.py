"""CUT's training step: a batch of lines -> a loss and what is logged of it, and the Trainer that takes such steps.

Logged each step: the loss and its parts L1 and L2 (eqs. 6, 7), the share of the flawed rows' tokens that are blamed,
and of blamed and of kept tokens the mean margin log p(y_t|x,j) - log p(y_t|x) and the mean log p(y_t|x).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from alignment.training import losses
from alignment.training.cut_lines import ALIGN_N, ALIGN_P, JUDGMENT, MISALIGN, logps_by_kind
from alignment.training.trainers import AlignmentTrainer
from alignment.training.unpadding import evaluating

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """What decides a micro-batch's loss beside the model."""

    method: str
    threshold: float  # λ
    alpha: float
    gamma: float
    floor: float  # σ
    legacy: bool
    detect_apart: bool  # whether the training pass has dropout, whose noise detection must not see (C10)


Passes = Iterator[tuple[Tensor, dict[str, Tensor]]]


def loss_passes(model: nn.Module, batch: Batch, totals: dict[str, Tensor], loss: Loss) -> Passes:
    """Yield, pass by pass, (this micro-batch's share of the step's loss, sums to log), to be sent backward in between.

    CUT (eqs. 5 to 7) takes two passes where there is a flawed row: L2, and then L1, which needs of the first no more
    than numbers. So no more than one line of a row has its activations held. `totals` are those of
    UnlikelihoodTrainer.counts over the whole step.
    """
    weight = batch["weights"].min()  # 1, or 0 for a filler
    if loss.method != "cut" or loss.legacy:
        share, sums = (legacy_pass if loss.legacy else likelihood_pass)(model, batch, totals, loss)
        yield weight * share, {name: weight * value for name, value in sums.items()}
        return

    seen = detection_logps(model, batch) if loss.detect_apart else None
    nothing = weight.new_zeros(0)
    _, by_kind = logps_by_kind(model, lines_of(batch, ALIGN_N, ALIGN_P))
    judged, satisfactory = by_kind[ALIGN_N], by_kind[ALIGN_P]
    _, second = losses.cut(judged, nothing, satisfactory, nothing.bool(), nothing, totals["tokens"])
    sums = {"L1": nothing.sum(), "L2": second * totals["tokens"], "tokens": batch["num_tokens"][0]}
    sums |= blame_sums(nothing, nothing, nothing.bool())  # the same names on every rank
    yield weight * second, {name: weight * value for name, value in sums.items()}
    if num_passes(batch, loss) == 1:
        return

    _, by_kind = logps_by_kind(model, lines_of(batch, MISALIGN))
    plain = by_kind[MISALIGN]
    seen_judged, seen_plain = seen or (judged.detach(), plain.detach())
    blamed = losses.inappropriate_tokens(seen_judged, seen_plain, loss.threshold, loss.floor)
    coefficient = losses.unlikelihood_weight(seen_judged, loss.alpha, loss.gamma)
    first, _ = losses.cut(nothing, plain, nothing, blamed, coefficient, totals["tokens"])
    sums = blame_sums(seen_judged, seen_plain, blamed) | {"L1": first * totals["tokens"]}
    yield weight * first, {name: weight * value for name, value in sums.items()}


def num_passes(batch: Batch, loss: Loss) -> int:
    """How many times `loss_passes` yields."""
    return 1 + int(loss.method == "cut" and not loss.legacy and bool((batch["kinds"] == MISALIGN).any()))


def loss_step(
    model: nn.Module, batch: Batch, totals: dict[str, Tensor], loss: Loss
) -> tuple[Tensor, dict[str, Tensor]]:
    """All passes at once: the micro-batch's whole share, and what is logged of it."""
    shares, sums = zip(*loss_passes(model, batch, totals, loss), strict=True)
    return sum(shares), {name: value.detach() for part in sums for name, value in part.items()}


def likelihood_pass(model: nn.Module, batch: Batch, totals: dict[str, Tensor], loss: Loss):
    """The baselines. mle and hindsight: -1/N Σ log p(y_t|x[,j]); forward prediction adds -1/Q Σ log p(j_t|x,y)."""
    logps, by_kind = logps_by_kind(model, batch)
    told = logps.sum() - by_kind[JUDGMENT].sum()
    share = -told / totals["tokens"] - by_kind[JUDGMENT].sum() / totals["judgment_tokens"].clamp(min=1)
    return share, {"likelihood": -told, "tokens": batch["num_tokens"][0]}


def legacy_pass(model: nn.Module, batch: Batch, totals: dict[str, Tensor], loss: Loss):
    """The released loss; its detection is that of the pass itself, dropout and all."""
    _, by_kind = logps_by_kind(model, batch)
    judged, plain, satisfactory = by_kind[ALIGN_N], by_kind[MISALIGN], by_kind[ALIGN_P]
    mixed = losses.cut_as_released(judged, plain, satisfactory, threshold=loss.threshold, weight=loss.alpha)
    blamed = losses.inappropriate_tokens(judged.detach(), plain.detach(), loss.threshold)
    sums = blame_sums(judged.detach(), plain.detach(), blamed) | {"tokens": batch["num_tokens"][0]}
    return mixed / totals["micro_batches"], sums


def lines_of(batch: Batch, *kinds: int) -> Batch:
    """The lines of these kinds, no wider than they need to be."""
    chosen = sum(batch["kinds"] == kind for kind in kinds).bool()
    width = int(batch["attention_mask"][chosen].sum(1).max())
    return {name: batch[name][chosen, :width] for name in ("input_ids", "attention_mask", "labels")} | {
        "kinds": batch["kinds"][chosen]
    }


def detection_logps(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor] | None:
    """log p(y_t|x,j) and log p(y_t|x), by a pass without dropout and gradient; None where no row is flawed."""
    if not (batch["kinds"] == MISALIGN).any():
        return None
    with evaluating(model):
        _, by_kind = logps_by_kind(model, lines_of(batch, ALIGN_N, MISALIGN))
    return by_kind[ALIGN_N], by_kind[MISALIGN]


def blame_sums(judged: Tensor, plain: Tensor, blamed: Tensor) -> dict[str, Tensor]:
    """Sums over the flawed rows' tokens (M,): how many, how many blamed, and the margins and log p(y_t|x) of both."""
    margin, kept = judged - plain, ~blamed
    return {
        "flawed_tokens": blamed.new_tensor(len(blamed), dtype=plain.dtype),
        "blamed_tokens": blamed.sum(),
        "margin_blamed": margin[blamed].sum(),
        "margin_kept": margin[kept].sum(),
        "logp_blamed": plain[blamed].sum(),
        "logp_kept": plain[kept].sum(),
    }


def readable(sums: dict[str, float]) -> dict[str, float]:
    """Logged sums as means: of the loss parts per response token, of the rest per token of its own kind."""
    tokens, flawed, blamed = (sums.get(name, 0) for name in ("tokens", "flawed_tokens", "blamed_tokens"))
    shown = {name: sums[name] / max(tokens, 1) for name in ("L1", "L2", "likelihood") if name in sums}
    if "flawed_tokens" in sums:
        shown["blamed_share"] = blamed / max(flawed, 1)
        for kind, count in (("blamed", blamed), ("kept", flawed - blamed)):
            shown |= {f"{what}_{kind}": sums[f"{what}_{kind}"] / max(count, 1) for what in ("margin", "logp")}
    return shown


class UnlikelihoodTrainer(AlignmentTrainer):
    """AlignmentTrainer that goes backward pass by pass, counts tokens of responses and of judgments, and logs CUT's
    numbers."""

    def __init__(self, *, loss: Loss, **kwargs: Any):
        super().__init__(step=partial(loss_step, loss=loss), **kwargs)
        self.loss = loss

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch=None) -> Tensor:
        """Trainer's, but for a backward after each pass. Ranks meet in the last one, of which each has one."""
        model.train()
        inputs = self._prepare_inputs(inputs)
        passes, last = self.passes(model, inputs, num_items_in_batch), num_passes(inputs, self.loss) - 1
        total = torch.zeros((), device=self.args.device)
        for number in range(last + 1):
            apart = nullcontext() if number == last else self.accelerator.no_sync(model)
            with apart, self.compute_loss_context_manager():
                share, sums = next(passes)
                share = share * self.args.world_size  # gradients are averaged over ranks, and losses when logged
                self.accelerator.backward(share)
            self.add_sums(sums)
            total += share.detach()
        self.finite = self.finite * torch.isfinite(total)
        return total

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """N and Q of the batch, that it is one, and what the log needs."""
        weight = batch["weights"].min()  # 1, or 0 for a filler
        return {
            "tokens": batch["num_tokens"][0] * weight,
            "judgment_tokens": batch["num_tokens"][1] * weight,
            "micro_batches": torch.ones_like(weight),
            "items": batch["weights"].sum(),
            "real_tokens": batch["attention_mask"].sum() * weight,
        }

    def passes(self, model: nn.Module, batch: Batch, totals: dict[str, Tensor]) -> Passes:
        return loss_passes(model, batch, totals, self.loss)

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        return readable(sums)
