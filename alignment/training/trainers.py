"""HF Trainer for the objectives of losses.py: how a batch becomes a loss, and nothing that Trainer already does.

A *step function* takes (model, batch, totals) and returns the micro-batch's share of the step's loss and sums of what
is logged. `totals` are counts over the whole step, all micro-batches and ranks: every share is divided by them, and
never by a micro-batch's own size, so a step's loss does not depend on how the step is cut (against C17).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from alignment.command_line import UserError
from alignment.training import logps, losses
from alignment.training.batches import IGNORED, Item, Sample, budgeted_batches, epoch_batches
from alignment.training.history import Bar, History
from alignment.training.logps import response_logps, row_means, row_sums, summed_logps
from alignment.training.saving import values

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


def dpo_step(model: nn.Module, batch: Batch, totals: dict[str, Tensor], beta: float):
    """Mean over the step's pairs of sums of log-probabilities against the reference's, `batch["reference"]` (2B,)."""
    logps, rows = response_logps(model, batch)
    chosen, rejected = row_sums(logps, rows, len(batch["labels"])).chunk(2)
    ref_chosen, ref_rejected = batch["reference"].chunk(2)
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
        args = trainer.args
        self.trainer, self.accumulation = trainer, args.gradient_accumulation_steps
        self.lengths = [longest(item, trainer.packed) for item in items]
        self.per_step = args.per_device_train_batch_size * self.accumulation * args.world_size
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


class AlignmentTrainer(Trainer):
    """Trainer over items. `step` is a step function, `collate(items)` makes a batch of some.

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
        **kwargs: Any,
    ):
        if kwargs["args"].device.type == "cpu":
            return_freed_memory()
        super().__init__(train_dataset=Items(items), eval_dataset=Items(eval_items) if eval_items else None, **kwargs)
        self.step, self.collate, self.packed = step, collate, packed
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
        """The step's micro-batches on this rank, and counts over all of the step's, ranks included."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        totals = self.accelerator.reduce(torch.stack([count(batch) for batch in batches]).sum(0).to(device))
        self.last_batches = batches
        self.add_sums({"items": totals[0] / self.args.world_size, "real_tokens": totals[3] / self.args.world_size})
        return batches, dict(zip(COUNTS, totals, strict=True))

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
            items, tokens = sums.pop("items"), sums.pop("real_tokens")
            logs |= {name: value / items for name, value in sums.items()}
            logs |= {"tokens": int(tokens), "tokens_per_second": round(tokens / (now - self.last_logged), 1)}
            self.last_logged = now
        super().log(logs, start_time)

    def train(self, *args: Any, **kwargs: Any):
        self.last_logged = time.monotonic()
        return super().train(*args, **kwargs)

    # Passes without gradients

    @torch.no_grad()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval") -> dict[str, float]:
        """Loss, accuracy and margin over the evaluation set."""
        kept, self.sums = self.sums, {}
        for batch in self.passes("eval"):
            ones = dict.fromkeys(COUNTS, torch.ones((), device=self.args.device))
            loss, sums = self.step(self.model_wrapped, batch, ones)
            counted = dict(zip(COUNTS, count(batch), strict=True))
            self.add_sums({"loss": loss} | sums | {name: counted[name] for name in ("items", "tokens")})
        sums, self.sums = self.drain_sums(), kept
        items, tokens = sums.pop("items"), sums.pop("tokens")
        metrics = {f"{metric_key_prefix}_{name}": value / items for name, value in sums.items()}
        if self.step is sft_step:
            metrics[f"{metric_key_prefix}_loss"] *= items / tokens
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def passes(self, split: str) -> Iterator[Batch]:
        dataset = self.train_dataset if split == "train" else self.eval_dataset
        self.model_wrapped.eval()
        for batch in self.loader(dataset, self.share(dataset), split):
            yield self._prepare_inputs(batch)

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

    # The end of a run

    def keep_reward_statistics(self, items: int = 128) -> None:
        """Mean and deviation of the rewards of the first pairs, both sides, into the config (--normalize_reward)."""
        rewards = torch.tensor(self.first_values(min(items, len(self.train_dataset)), "reward", both=True))
        config = self.accelerator.unwrap_model(self.model_wrapped).config
        config.reward_mean, config.reward_std = rewards.mean().item(), rewards.std().item()

    def round_weights(self) -> None:
        """Give the weights the values that the file will have, so that what is checked is what is saved."""
        with torch.no_grad():
            for weight in self.accelerator.unwrap_model(self.model_wrapped).parameters():
                if weight.is_floating_point():
                    weight.copy_(weight.to(self.saved_dtype))

    @property
    def saved_dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.args.bf16 else torch.float16 if self.args.fp16 else torch.float32

    def check_rows(self, rows: int, kind: str) -> dict:
        """What verification.py compares: ids of the first samples and the trained model's values of them."""
        samples = self.first_samples(rows)
        return {
            "kind": kind,
            "exact": self.answers_in_fp32(),
            "pad_id": self.processing_class.pad_token_id,
            "samples": [vars(sample) for sample in samples],
            "values": self.values_of(samples, kind),
        }

    def answers_in_fp32(self) -> bool:
        """Whether `values_of` computes in fp32: not where FSDP gathers in 16 bits, nor for a quantised base."""
        half = self.args.bf16 or self.args.fp16
        return not (half and self.is_fsdp_enabled) and not getattr(self.model, "is_quantized", False)

    def first_samples(self, rows: int, both: bool = False) -> list[Sample]:
        samples = [s for item in self.train_dataset.items[:rows] for s in (item if both or self.packed else item[:1])]
        return samples if both else samples[:rows]

    def first_values(self, rows: int, kind: str, both: bool) -> list[float]:
        return self.values_of(self.first_samples(rows, both), kind)

    def values_of(self, samples: list[Sample], kind: str) -> list[float]:
        """Every rank computes the same: a sharded model only answers when all ask. In fp32 where `answers_in_fp32`."""
        pad_id = self.processing_class.pad_token_id
        if not self.answers_in_fp32():
            model = self.model_wrapped if self.is_fsdp_enabled else self.accelerator.unwrap_model(self.model_wrapped)
            return values(model.eval(), samples, pad_id, kind, 8)
        model = self.accelerator.unwrap_model(self.model_wrapped).float().eval()
        with logps.answering(model, vars(model).get("_original_forward", model.forward)):
            return values(model, samples, pad_id, kind, 8)

    def save_final(self, folder: Path) -> None:
        """Model and tokenizer, in the dtype that was computed in. From a sharded run it is gathered whole."""
        dtype = self.saved_dtype
        state = self.whole_state(dtype)
        if self.args.should_save:
            model = self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=False)
            model.config.use_cache = True
            model.save_pretrained(folder, state_dict=state)
            if not (folder / "config.json").exists():  # an adapter; the reward model's own facts are in the config
                model.config.save_pretrained(folder)
            config = json.loads((folder / "config.json").read_text())
            config["dtype"] = str(dtype).removeprefix("torch.")
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
            self.processing_class.save_pretrained(folder)

    def whole_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """All weights in `dtype`, on the rank that saves. Sharded ones are gathered one by one, by all ranks."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
        state = model.state_dict() if sharded else self.accelerator.get_state_dict(self.model_wrapped)
        first: dict[int, str] = {}  # tied weights have several names, and are saved as one tensor
        named = model.named_parameters(remove_duplicate=False)
        one = {name: first.setdefault(id(weight), name) for name, weight in named}
        whole: dict[str, Tensor] = {}
        for name, tensor in state.items():
            tensor = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
            if self.args.should_save:
                same = whole.get(one.get(name, name))
                whole[name] = tensor.to(dtype if tensor.is_floating_point() else tensor.dtype) if same is None else same
        return whole

    def release(self) -> None:
        """Give the memory back, for the fresh process that looks at what was saved."""
        self.model = self.model_wrapped = self.optimizer = self.lr_scheduler = None
        self.callback_handler.model = self.callback_handler.optimizer = self.callback_handler.lr_scheduler = None
        self.accelerator.free_memory()


def fingerprint(model: nn.Module, items: Sequence[Item]) -> str:
    """A print of weights (names, shapes, 64 values each) and of data (all ids), for what is computed from the two."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        values = parameter.detach().flatten()
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(values[:: max(1, len(values) // 64)].double().cpu().numpy().tobytes())
    for item in items:
        for sample in item:
            digest.update(f"{sample.row}{sample.prompt_length}{sample.ids}".encode())
    return digest.hexdigest()[:16]


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
