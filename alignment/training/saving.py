"""What was trained is written, loaded again by a fresh process, and is the same: one call for every script that saves.

    verdict = save_trained(trainer, folder, template, kind="reward")   # train.py and CUT, on all ranks
    verdict = save_checked(folder, write, check, release)              # merge.py

    python -m alignment.training.saving outputs/rm                     # again, by hand: a line of JSON; 0 where equal

Everything is written into a folder inside `folder`, with `check.json`: ids of up to 8 rows and what the model in memory
gave each, the reward, or the mean log-probability of the response's tokens. A fresh process, which knows nothing but
that folder, must find the same values: in fp32, alone and in one padded batch, and in bf16 within tolerance. Only then
are the files moved in. "exact" is false where the trained model could only be asked in half precision (FSDP, quantised
weights); then that tolerance holds for all.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.tensor import DTensor

from alignment.adapters import load_base, with_adapter
from alignment.command_line import REPOSITORY, UserError
from alignment.pretrained import ADAPTER_CONFIG, is_model_file, load_pretrained, padding_id, training_tokenizer
from alignment.run_cards import ASIDE
from alignment.templates import Template, chat_template
from alignment.training.batches import Sample, collate
from alignment.training.logps import answering, response_logps, row_means, speak_logps
from alignment.training.reward_model import batch_rewards
from alignment.training.reward_model import load as load_reward_model

if TYPE_CHECKING:
    from alignment.training.trainers import AlignmentTrainer

# Allowed difference, times max(1, |value|). Computing in bf16 moves a reward of SmolLM2-135M by up to 0.13
FP32, BF16 = 2e-4, 0.25
ROWS = 8
# What a fresh process asks: (name, dtype, rows a batch)
PASSES = (("single", "float32", 1), ("padded", "float32", ROWS), ("bf16", "bfloat16", ROWS))


# Write, load again, compare


def save_checked(
    folder: Path, write: Callable[[Path], None], check: dict, release: Callable[[], None] = lambda: None
) -> dict:
    """`write(path)` puts a model into a folder; what it wrote is in `folder` once a fresh process found it the same.

    `release` gives memory back before that process starts. Returns its verdict. Raises UserError, with `folder` as it
    was, where the model cannot be written, cannot be loaded again, or is another.
    """
    was_there = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder))
        try:
            write(aside)
            (aside / "check.json").write_text(json.dumps(check))
            release()
            verdict = ask_fresh_process(aside)
            if not verdict["agrees"]:
                raise UserError(
                    f"what was saved is not what was in memory, so {folder} is as it was: {json.dumps(verdict)}"
                )
            move_in(aside, folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be written: {error}") from error
    finally:
        if not was_there:
            with suppress(OSError):  # something is in it
                folder.rmdir()
    return verdict


def move_in(aside: Path, folder: Path) -> None:
    """Put the files of one folder into another, weights first, and take away those of an earlier model."""
    files = sorted(aside.iterdir(), key=lambda path: (path.suffix != ".safetensors", path.name))
    for path in filter(Path.is_file, files):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    for path in files:
        if path.is_dir():
            shutil.rmtree(folder / path.name, ignore_errors=True)
        os.replace(path, folder / path.name)
    kept = {path.name for path in files}
    for path in folder.iterdir():
        if path.is_file() and is_model_file(path.name) and path.name not in kept:
            path.unlink()


def ask_fresh_process(folder: Path) -> dict:
    """`verify` in a process of its own. Raises UserError where that cannot load the folder."""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    alone["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), alone.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "alignment.training.saving", str(folder)]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines or done.returncode not in (0, 1):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{folder.parent}: what was saved cannot be loaded again: {said}")
    return json.loads(lines[-1])


def verify(folder: str) -> dict:
    """Differences of the saved model to the one in memory, by pass; `agrees` says whether all are within tolerance."""
    check = json.loads((Path(folder) / "check.json").read_text())
    samples = [Sample(**sample) for sample in check["samples"]]
    device = check.get("device") or ("cuda" if torch.cuda.is_available() else "cpu")
    tolerance, found, agrees = FP32 if check["exact"] else BF16, {}, True
    for name, dtype, batch_size in check.get("passes", PASSES):
        dtype = dtype if dtype == "auto" else getattr(torch, dtype)
        if check["kind"] == "reward":
            model = load_reward_model(folder, device=device, dtype=dtype)[0]
        else:
            model = load_policy(folder, dtype, device)
        found[name] = differences(check["values"], values(model, samples, check["pad_id"], check["kind"], batch_size))
        agrees = agrees and found[name] <= (BF16 if name == "bf16" else tolerance)
        del model
    return {"rows": len(samples), "tolerance": tolerance, "tolerance_bf16": BF16, **found, "agrees": agrees}


def values(model, samples: list[Sample], pad_id: int, kind: str, batch_size: int) -> list[float]:
    """The model's value of each sample: "reward", or "logps" for the mean token log-probability of the response."""
    found: list[float] = []
    with torch.no_grad():
        for start in range(0, len(samples), batch_size):
            batch = collate([(sample,) for sample in samples[start : start + batch_size]], pad_id)
            if kind == "reward":
                found += batch_rewards(model, batch).tolist()
            else:
                device = next(model.parameters()).device
                logps, rows = response_logps(model, {name: value.to(device) for name, value in batch.items()})
                found += row_means(logps, rows, len(batch["labels"])).tolist()
    return found


def load_policy(folder: str, dtype: torch.dtype | str, device: str) -> Any:
    placed = {"device_map": device} if device == "auto" else {}
    if (Path(folder) / ADAPTER_CONFIG).exists():
        base = speak_logps(load_base("AutoModelForCausalLM", folder, dtype, training_tokenizer(folder)))
        model = with_adapter(base, Path(folder))
    else:
        model = speak_logps(load_pretrained("AutoModelForCausalLM", folder, dtype=dtype, **placed))
    return (model if placed else model.to(device)).eval()


def differences(expected: list[float], found: list[float]) -> float:
    """The largest difference, in units of max(1, |expected|); infinite where a value is no number."""
    gaps = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(expected, found, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


# The end of a training


def save_trained(
    trainer: AlignmentTrainer,
    folder: Path,
    template: Template,
    *,
    kind: str,
    reward_statistics: bool = False,
    also: Callable[[Path], None] = lambda path: None,
) -> dict | None:
    """Save what a trainer has trained, whole or as an adapter, with its tokenizer, whose chat template is `template`'s.

    `kind` is "reward" or "logps"; `reward_statistics` leaves the rewards' mean and deviation in the config; `also`
    writes more into the folder. All ranks call it, as all gather a sharded model; the first gets the verdict.
    """
    dtype = dtype_to_tell(trainer)
    round_weights(trainer)
    if reward_statistics:
        keep_reward_statistics(trainer)
    samples = first_samples(trainer, ROWS)
    check = {
        "kind": kind,
        "exact": answers_in_fp32(trainer),
        "pad_id": padding_id(trainer.processing_class),
        "samples": [{"row": each.row, "ids": each.ids, "prompt_length": each.prompt_length} for each in samples],
        "values": values_of(trainer, samples, kind),
    }
    state = whole_state(trainer)
    if not trainer.args.should_save:
        return None

    def write(aside: Path) -> None:
        write_model(trainer, state, dtype, aside)
        save_tokenizer(template, aside)
        if kind != "reward":
            write_generation_config(trainer, template, aside)
        also(aside)
        state.clear()

    return save_checked(folder, write, check, lambda: release(trainer))


def saved_dtype(trainer: AlignmentTrainer) -> torch.dtype:
    args = trainer.args
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32


def dtype_to_tell(trainer: AlignmentTrainer) -> torch.dtype:
    """What config.json says: the dtype of a whole model's file, or that of the base which an adapter was trained on."""
    if is_adapter(trainer) and not getattr(trainer.model, "is_quantized", False):
        return next(weight.dtype for weight in trainer.model.parameters() if not weight.requires_grad)
    return saved_dtype(trainer)


def is_adapter(trainer: AlignmentTrainer) -> bool:
    return hasattr(trainer.model, "peft_config")


def round_weights(trainer: AlignmentTrainer) -> None:
    """Give the weights the values that the file will have, so that what is checked is what is saved. An adapter is
    saved as it was trained, in fp32."""
    if is_adapter(trainer):
        return
    with torch.no_grad():
        for weight in trainer.accelerator.unwrap_model(trainer.model_wrapped).parameters():
            if weight.is_floating_point():
                weight.copy_(weight.to(saved_dtype(trainer)))


def keep_reward_statistics(trainer: AlignmentTrainer, items: int = 128) -> None:
    """Mean and deviation of the rewards of the first pairs, both sides, into the config (--normalize_reward)."""
    samples = first_samples(trainer, min(items, len(trainer.train_dataset)), both=True)
    rewards = torch.tensor(values_of(trainer, samples, "reward"))
    config = trainer.accelerator.unwrap_model(trainer.model_wrapped).config
    config.reward_mean, config.reward_std = rewards.mean().item(), rewards.std().item()


def first_samples(trainer: AlignmentTrainer, rows: int, both: bool = False) -> list[Sample]:
    items = trainer.train_dataset.items[:rows]
    samples = [s for item in items for s in (item if both or trainer.packed else item[:1])]
    return samples if both else samples[:rows]


def answers_in_fp32(trainer: AlignmentTrainer) -> bool:
    """Whether `values_of` computes in fp32: not where FSDP gathers in 16 bits, nor for a quantised base."""
    half = trainer.args.bf16 or trainer.args.fp16
    return not (half and trainer.is_fsdp_enabled) and not getattr(trainer.model, "is_quantized", False)


def values_of(trainer: AlignmentTrainer, samples: Sequence[Sample], kind: str) -> list[float]:
    """Every rank computes the same: a sharded model only answers when all ask. In fp32 where `answers_in_fp32`."""
    pad_id, wrapped = padding_id(trainer.processing_class), trainer.model_wrapped
    model = trainer.accelerator.unwrap_model(wrapped)
    if not answers_in_fp32(trainer):
        return values((wrapped if trainer.is_fsdp_enabled else model).eval(), samples, pad_id, kind, ROWS)
    model = model.float().eval()
    with answering(model, vars(model).get("_original_forward", model.forward)):
        return values(model, samples, pad_id, kind, ROWS)


def whole_state(trainer: AlignmentTrainer) -> dict[str, Tensor]:
    """All weights as they are saved, on the rank that saves. Sharded ones are gathered one by one, by all ranks."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    sharded = any(isinstance(parameter, DTensor) for parameter in model.parameters())
    state = model.state_dict() if sharded else trainer.accelerator.get_state_dict(trainer.model_wrapped)
    first: dict[int, str] = {}  # tied weights have several names, and are saved as one tensor
    one = {name: first.setdefault(id(weight), name) for name, weight in model.named_parameters(remove_duplicate=False)}
    whole: dict[str, Tensor] = {}
    for name, tensor in state.items():
        tensor = tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor
        if trainer.args.should_save:
            cast = tensor.is_floating_point() and not is_adapter(trainer)
            same = whole.get(one.get(name, name))
            whole[name] = (tensor.to(saved_dtype(trainer)) if cast else tensor) if same is None else same
    return whole


def write_model(trainer: AlignmentTrainer, state: dict[str, Tensor], dtype: torch.dtype, folder: Path) -> None:
    """Weights and config."""
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=state)
    if not (folder / "config.json").exists():  # an adapter; the reward model's own facts are in the config
        model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def save_tokenizer(template: Template, folder: Path) -> None:
    """The tokenizer, whose chat template gives other tools the ids that were trained."""
    tokenizer = copy.copy(template.tokenizer)
    tokenizer.chat_template = chat_template(template)
    tokenizer.save_pretrained(folder)


def write_generation_config(trainer: AlignmentTrainer, template: Template, folder: Path) -> None:
    """The model's own generation_config.json, with what closes a reply in training among the tokens that end one."""
    config = trainer.accelerator.unwrap_model(trainer.model_wrapped).generation_config.to_diff_dict()
    ends = config.get("eos_token_id") or []
    ends = {template.end_id, template.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    config |= {"eos_token_id": sorted(ends), "pad_token_id": padding_id(template.tokenizer)}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n")


def release(trainer: AlignmentTrainer) -> None:
    """Give the memory back, for the fresh process that looks at what was saved."""
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    handler = trainer.callback_handler
    handler.model = handler.optimizer = handler.lr_scheduler = None
    trainer.accelerator.free_memory()


if __name__ == "__main__":
    report = verify(sys.argv[1])
    print(json.dumps(report))
    sys.exit(0 if report["agrees"] else 1)
