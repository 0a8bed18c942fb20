"""HF Trainer for the objectives of losses.py: how a batch becomes a loss, and nothing that Trainer already does.

A *step function* takes (model, batch, totals) and returns the micro-batch's share of the step's loss and sums of what
is logged. `totals` are counts over the whole step, all micro-batches and ranks: every share is divided by them, and
never by a micro-batch's own size, so a step's loss does not depend on how the step is cut (against C17).
"""

from __future__ import annotations

import ctypes
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import SCHEDULER_NAME

from alignment.command_line import UserError, say
from alignment.training import losses
from alignment.training.batches import IGNORED, Item, budgeted_batches, epoch_batches
from alignment.training.checkpoints import (
    Saving,
    is_sharded,
    load_optimiser,
    load_weights,
    removed_unless_written,
    rows_per_step,
)
from alignment.training.history import Bar, History
from alignment.training.logps import response_logps, row_means, row_sums, summed_logps

Batch = dict[str, Tensor]
Step = Callable[[nn.Module, Batch, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]


# One step function an objective


def sft_step(model: nn.Module, batch: Batch, totals: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over all response tokens of the step."""
    weight = batch["weights"].min()  # 1, or 0 for a filler
    return losses.sft(weight * summed_logps(model, batch), totals["tokens"]), {}


def reward_step(model: nn.Module, batch: Batch, totals: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the step's pairs; chosen and rejected in one forward (A11)."""
    rewards = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].float()  # (2B,)
    chosen, rejected = rewards.chunk(2)
    loss = (batch["weights"] * losses.bradley_terry(chosen, rejected)).sum() / totals["items"]
    length = batch["attention_mask"].sum(1).float()
    longer = preferred(*length.chunk(2))
    return loss, pair_sums(batch, chosen, rejected) | {"longer_wins_accuracy": (batch["weights"] * longer).sum()}


def dpo_step(
    model: nn.Module, batch: Batch, totals: dict[str, Tensor], beta: float, length_normalized: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean over the step's pairs of sums of log-probabilities against the reference's, `batch["reference"]` (2B,).

    `length_normalized` divides both by the response's tokens, so the margin is what the loss sees in either case.
    """
    logps, rows = response_logps(model, batch)
    sums = row_sums(logps, rows, len(batch["labels"]))  # (2B,)
    tokens = torch.bincount(rows, minlength=len(sums)) if length_normalized else 1
    chosen, rejected = (sums / tokens).chunk(2)
    ref_chosen, ref_rejected = (batch["reference"] / tokens).chunk(2)
    pair_losses = losses.dpo(chosen, rejected, ref_chosen, ref_rejected, beta)
    loss = (batch["weights"] * pair_losses).sum() / totals["items"]
    return loss, pair_sums(batch, beta * (chosen - ref_chosen), beta * (rejected - ref_rejected))


def orpo_step(model: nn.Module, batch: Batch, totals: dict[str, Tensor], alpha: float):
    """Supervised loss over the step's chosen tokens, plus alpha times the odds-ratio term over its pairs."""
    logps, rows = response_logps(model, batch)
    chosen, rejected = row_means(logps, rows, len(batch["labels"])).chunk(2)
    first = rows < len(chosen)
    supervised = losses.sft((logps * batch["weights"].repeat(2)[rows])[first], totals["chosen_tokens"])
    odds = (batch["weights"] * losses.orpo_odds_ratio(chosen, rejected)).sum() / totals["items"]
    return supervised + alpha * odds, pair_sums(batch, chosen, rejected)


def preferred(better: Tensor, worse: Tensor) -> Tensor:
    """1 where better > worse, 1/2 for a tie: bf16 has ties."""
    return (better > worse).float() + 0.5 * (better == worse).float()


def pair_sums(batch: Batch, chosen: Tensor, rejected: Tensor) -> dict[str, Tensor]:
    chosen, rejected = chosen.detach(), rejected.detach()
    return {
        "accuracy": (batch["weights"] * preferred(chosen, rejected)).sum(),
        "margin": (batch["weights"] * (chosen - rejected)).sum(),
    }


def count(batch: Batch) -> Tensor:
    """[items, tokens learned, tokens learned of first samples, real tokens] of a batch, those of weight 0 left out."""
    learned = batch["labels"][:, 1:] != IGNORED
    if "segments" in batch:
        weight = batch["weights"].min()  # all 1, or all 0 for a filler
        real = (batch["segments"] >= 0).sum() * weight
        return torch.stack([batch["weights"].sum(), learned.sum() * weight, learned.sum() * weight, real])
    items = len(batch["weights"])
    weights = batch["weights"].repeat(len(learned) // items)  # (k·B,)
    tokens, real = weights * learned.sum(1), weights * batch["attention_mask"].sum(1)
    return torch.stack([batch["weights"].sum(), tokens.sum(), tokens[:items].sum(), real.sum()])


COUNTS = ("items", "tokens", "chosen_tokens", "real_tokens")


# Trainer


class Items(Dataset):
    """Items by number; `~i` is item i with weight 0, which keeps a rank in step (batches.epoch_batches)."""

    def __init__(self, items: Sequence[Item]):
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, number: int) -> tuple[int, float]:
        return (number, 1.0) if number >= 0 else (~number, 0.0)


class EpochBatches:
    """This rank's micro-batches of the epoch that the trainer is in. Trainer and accelerate see a batch sampler."""

    def __init__(self, trainer: AlignmentTrainer, items: Sequence[Item]):
        self.trainer, self.accumulation = trainer, trainer.args.gradient_accumulation_steps
        self.lengths = [longest(item, trainer.packed) for item in items]
        self.per_step = trainer.rows_per_step
        self.steps = math.ceil(len(items) / self.per_step)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        args = self.trainer.args
        epoch = self.trainer.state.global_step // self.steps
        seed = args.seed + epoch
        yield from epoch_batches(
            self.lengths, self.per_step, self.accumulation, args.process_index, args.world_size, seed
        )


def longest(item: Item, packed: bool) -> int:
    return sum(map(len, item)) if packed else max(map(len, item))


def return_freed_memory() -> None:
    """On a CPU, give a freed tensor's memory back at once. glibc else keeps blocks of up to 32 MB, into few of which a
    later tensor fits, and a step's peak is half as large again. Does nothing where there is no glibc."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD, 1 MB for good


def use_first_gpu(args: TrainingArguments) -> None:
    """One process that sees several GPUs would spread a batch over them, which no objective here allows: the first."""
    if args.n_gpu > 1:
        say("several GPUs and one process: the first is used; start with torchrun --nproc_per_node=N to use N")
        args._n_gpu = 1


class AlignmentTrainer(Trainer):
    """Trainer over items. `step` is a step function, `collate(items)` makes a batch of some; who needs more fills
    `counts`, `passes` and `means`.

    `references` maps "train" and "eval" to one tensor (items, 2) of the reference's log-probabilities, for DPO.
    """

    def __init__(
        self,
        *,
        step: Step,
        collate: Callable,
        items: Sequence[Item],
        eval_items: Sequence[Item] | None,
        packed: bool = False,
        async_save: bool = True,
        **kwargs: Any,
    ):
        if kwargs["args"].device.type == "cpu":
            return_freed_memory()
        super().__init__(train_dataset=Items(items), eval_dataset=Items(eval_items) if eval_items else None, **kwargs)
        self.step, self.collate, self.packed = step, collate, packed
        self.rows_per_step = rows_per_step(self.args)
        self.saving, self.async_save = Saving(self), async_save
        self.stopped: str | None = None  # why before the last step (limits.StopAtLimit)
        self.references: dict[str, Tensor] = {}
        self.sums: dict[str, Tensor] = {}
        self.last_batches: list[Batch] = []
        self.finite = torch.ones((), device=self.args.device)
        fsdp = getattr(self.accelerator.state, "fsdp_plugin", None)
        if fsdp and self.args.bf16:  # accelerate would round what modules give, so log-probabilities too, to bf16
            fsdp.mixed_precision_policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32)
        self.model_accepts_loss_kwargs = True  # so that no version divides our loss by the accumulation steps
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(StopAtNonFinite(self))
        self.add_callback(History(Path(self.args.output_dir)))
        self.add_callback(Bar())

    # Batches

    def loader(self, dataset: Items, batches: Any, split: str) -> DataLoader:
        def collate(numbered: Sequence[tuple[int, float]]) -> Batch:
            batch = self.collate([dataset.items[i] for i, _ in numbered])
            batch["weights"] *= numbered[0][1]
            if split in self.references:
                batch["reference"] = self.references[split][[i for i, _ in numbered]].T.flatten()  # (2B,)
            return batch

        return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, pin_memory=torch.cuda.is_available())

    def get_train_dataloader(self) -> DataLoader:
        return self.loader(self.train_dataset, EpochBatches(self, self.train_dataset.items), "train")

    def share(self, dataset: Items) -> list[list[int]]:
        """This rank's batches of a whole pass without order; every rank has as many, fillers where one is short."""
        lengths = [longest(item, self.packed) for item in dataset.items]
        batches = list(budgeted_batches(lengths, max(lengths) * self.args.per_device_eval_batch_size))
        batches += [[~batches[-1][-1]] for _ in range(-len(batches) % self.args.world_size)]
        return batches[self.args.process_index :: self.args.world_size]

    # Loss

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        """The step's micro-batches on this rank, and counts over all of the step's, ranks included. None once all steps
        are made: a run that is resumed after its last step is not trained a step further."""
        done = self.state.global_step >= self.state.max_steps
        self.last_batches = batches = [] if done else [next(epoch_iterator) for _ in range(num_batches)]
        totals = self.totals(batches) if batches else {}
        self.step_tokens = totals.get("real_tokens", 0)
        return batches, totals

    def totals(self, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """What `counts` says of all these batches, those of the other ranks included; what a step or an evaluation is
        divided by. Items and real tokens are noted for the log."""
        counted = [self.counts(batch) for batch in batches]
        sums = {name: sum(each[name] for each in counted).to(self.args.device) for name in counted[0]}
        self.add_sums({name: sums[name] for name in ("items", "real_tokens")})
        return dict(zip(sums, self.accelerator.reduce(torch.stack(list(sums.values()))), strict=True))

    # Three hooks: what a step counts, which passes a batch takes, and how sums become the logged means

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """What of a batch a step is divided by, with "items" and "real_tokens"; fillers count nothing."""
        return dict(zip(COUNTS, count(batch), strict=True))

    def passes(self, model: nn.Module, batch: Batch, totals: dict[str, Tensor]) -> Iterator[tuple[Tensor, dict]]:
        """(share of the loss, sums to log) of each pass that a batch takes through the model."""
        yield self.step(model, batch, totals)

    def means(self, sums: dict[str, float]) -> dict[str, float]:
        """What is logged of the sums: here means over items."""
        return {name: value / sums["items"] for name, value in sums.items() if name not in ("items", "real_tokens")}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, sums = self.step(model, inputs, num_items_in_batch)
        self.finite = self.finite * torch.isfinite(loss.detach())
        self.add_sums(sums)
        return loss * self.args.world_size  # gradients are averaged over ranks, and losses when logged

    def add_sums(self, sums: dict[str, Tensor]) -> None:
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def drain_sums(self) -> dict[str, float]:
        """What was added since the last time, over all ranks."""
        names, self.sums = list(self.sums), (sums := self.sums) and {}
        if not names:
            return {}
        values = self.accelerator.reduce(torch.stack([torch.as_tensor(sums[name]).double() for name in names]))
        return dict(zip(names, values.tolist(), strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            sums, now = self.drain_sums(), time.monotonic()
            tokens = sums["real_tokens"]
            logs |= self.means(sums)
            logs |= {"tokens": int(tokens), "tokens_per_second": round(tokens / (now - self.last_logged), 1)}
            self.last_logged = now
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any):
        self.last_logged = time.monotonic()
        found = super().train(*args, **kwargs)
        self.saving.finish()
        if self.stopped:
            raise UserError(self.stopped)
        return found

    # Checkpoints

    def _save_checkpoint(self, model, trial) -> None:
        self.saving.finish()
        place = Path(self.args.output_dir, f"checkpoint-{self.state.global_step}")
        kept, self.args.save_total_limit = self.args.save_total_limit, None  # none goes before this one is whole
        try:
            with removed_unless_written(place):
                self.saving.begin(place)
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = kept
        if not (self.saves_shards and self.async_save):
            self.saving.finish()

    @property
    def saves_shards(self) -> bool:
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return self.is_fsdp_enabled and "SHARDED" in str(plugin.state_dict_type)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.saves_shards:
            return super()._save_optimizer_and_scheduler(output_dir)
        self.saving.shards(Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not is_sharded(Path(resume_from_checkpoint)):
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        load_weights(self.model, Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_sharded(Path(checkpoint)):
            return super()._load_optimizer_and_scheduler(checkpoint)
        load_optimiser(self.model, self.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))

    def _load_best_model(self) -> None:
        self.saving.finish()
        super()._load_best_model()

    # Passes without gradients

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """The loss and what else is logged over the evaluation set, as if it were one step."""
        kept, self.sums = self.sums, {}
        totals = self.totals(self.batches("eval"))
        for batch in self.batches("eval"):
            for share, sums in self.passes(self.model_wrapped, self._prepare_inputs(batch), totals):
                self.add_sums({"loss": share} | sums)
        sums, self.sums = self.drain_sums(), kept
        metrics = {"loss": sums.pop("loss")} | self.means(sums)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def batches(self, split: str) -> DataLoader:
        """This rank's batches of a whole pass over a set; the model is put into evaluation mode."""
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        self.model_wrapped.eval()
        return self.loader(dataset, self.share(dataset), split)

    @torch.no_grad()
    def pair_logps(self, split: str) -> Tensor:
        """Sums of log-probabilities (items, 2) of every pair under the model as it is, on all ranks."""
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        found = torch.zeros(len(dataset), 2, dtype=torch.float64)
        share = self.share(dataset)
        for numbers, batch in zip(share, self.loader(dataset, share, split), strict=True):
            self.model_wrapped.eval()
            logps, rows = response_logps(self.model_wrapped, self._prepare_inputs(batch))
            sums = row_sums(logps, rows, len(batch["labels"])).view(2, -1).T.double().cpu()
            if numbers[0] >= 0:
                found[numbers] = sums
        return self.accelerator.reduce(found.to(self.args.device)).cpu().float()


class StopAtNonFinite(TrainerCallback):
    """Before the weights are touched: a loss that is no number stops the run, with the step and the rows of it."""

    def __init__(self, trainer: AlignmentTrainer):
        self.trainer = trainer

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        trainer = self.trainer
        if trainer.accelerator.reduce(trainer.finite) < args.world_size:
            rows = sorted({row for batch in trainer.last_batches for row in batch["rows"].tolist()})
            shown = ", ".join(map(str, rows[:16])) + (", ..." if len(rows) > 16 else "")
            raise UserError(
                f"the loss is not finite at step {state.global_step + 1}, rows {shown}; nothing was saved after the "
                "last checkpoint: look at these rows, or lower --learning_rate"
            )
