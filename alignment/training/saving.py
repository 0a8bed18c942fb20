"""What was trained is written, loaded again by a fresh process, and is the same: one call for every script that saves.

    verdict = save_trained(trainer, folder, template, kind="reward")   # train.py and CUT, on all ranks
    verdict = save_checked(folder, write, check, release)              # merge.py

Everything is written into a folder inside `folder`, with what the model in memory gives a few rows. The files are moved
in only once a fresh process has loaded them and found the same (checking.py).
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from alignment.command_line import UserError, say
from alignment.pretrained import is_model_file, padding_id
from alignment.run_cards import ASIDE
from alignment.templates import Template, chat_template
from alignment.training.batches import Sample
from alignment.training.checking import HALF_PASSES, PASSES, ROWS, ask_fresh_process, values
from alignment.training.checkpoints import saved_dtype
from alignment.training.logps import answering
from alignment.training.ranks import meet
from alignment.training.room import fits, size

if TYPE_CHECKING:
    from alignment.training.trainers import AlignmentTrainer

# Write, have it checked, move it in


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
            make_readable(aside)
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
    dtype, weights = dtype_to_tell(trainer), size(trainer.accelerator.unwrap_model(trainer.model_wrapped))
    round_weights(trainer)
    if reward_statistics:
        keep_reward_statistics(trainer)
    samples = first_samples(trainer, ROWS)
    check = {
        "kind": kind,
        "exact": answers_in_fp32(trainer),
        "weights": weights,
        "passes": PASSES if fits(weights, torch.float32, trainer.args.device) else HALF_PASSES,
        "pad_id": padding_id(trainer.processing_class),
        "samples": [{"row": each.row, "ids": each.ids, "prompt_length": each.prompt_length} for each in samples],
        "values": values_of(trainer, samples, kind),
    }
    if check["passes"] is HALF_PASSES:
        say(f"{weights:,} weights in fp32 do not fit the free memory of the card: what was saved is asked in bf16")
    state = whole_state(trainer)
    if not trainer.args.should_save:
        release(trainer)
        return meet()

    def write(aside: Path) -> None:
        write_model(trainer, state, dtype, aside)
        save_tokenizer(template, aside)
        if kind != "reward":
            write_generation_config(trainer.accelerator.unwrap_model(trainer.model_wrapped), template, aside)
        also(aside)
        state.clear()

    verdict = save_checked(folder, write, check, lambda: release(trainer))
    meet()
    return verdict


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
    """Mean, deviation and range of the rewards of the first pairs, both sides, into the config (--normalize_reward)."""
    samples = first_samples(trainer, min(items, len(trainer.train_dataset)), both=True)
    rewards = torch.tensor(values_of(trainer, samples, "reward"))
    config = trainer.accelerator.unwrap_model(trainer.model_wrapped).config
    config.reward_mean, config.reward_std = rewards.mean().item(), rewards.std().item()
    config.reward_min, config.reward_max = rewards.min().item(), rewards.max().item()


def first_samples(trainer: AlignmentTrainer, rows: int, both: bool = False) -> list[Sample]:
    items = trainer.train_dataset.items[:rows]
    samples = [s for item in items for s in (item if both or trainer.packed else item[:1])]
    return samples if both else samples[:rows]


def answers_in_fp32(trainer: AlignmentTrainer) -> bool:
    """Whether `values_of` computes in fp32: not where FSDP gathers in 16 bits, the base is quantised, or fp32 does not
    fit."""
    half = trainer.args.bf16 or trainer.args.fp16
    sharded_in_half = half and trainer.is_fsdp_enabled
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    whole = fits(size(model), torch.float32, trainer.args.device)
    return whole and not sharded_in_half and not getattr(trainer.model, "is_quantized", False)


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
        tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if trainer.args.should_save:
            tensor = tensor.cpu() if sharded else tensor
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
        model.config.architectures = [type(model.get_base_model()).__name__.removeprefix("FSDP")]
        model.config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def make_readable(folder: Path) -> None:
    """Add to a saved folder's config and tokenizer what transformers 4 needs to read them as 5 does."""
    for name, rewrite in (("config.json", older), ("tokenizer_config.json", older_tokenizer)):
        if (folder / name).is_file():
            found = rewrite(json.loads((folder / name).read_text("utf-8")))
            (folder / name).write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", "utf-8")


def older(config: dict) -> dict:
    """A config.json in which 4 finds under its own names what 5 puts into `rope_parameters`: it would silently turn by
    a base of 10,000. 5 reads it as before."""
    rope = config.get("rope_parameters") or {}
    by_layer = {name: each for name, each in rope.items() if isinstance(each, dict)}  # as Gemma 3's
    whole = by_layer.get("full_attention", {}) if by_layer else rope
    found = {name: whole[name] for name in ("rope_theta", "partial_rotary_factor") if name in whole}
    if config.get("model_type") == "gpt_neox":
        names = {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"}
        found = {names[name]: value for name, value in found.items()}
    if whole.get("rope_type", "default") != "default":
        found["rope_scaling"] = {name: value for name, value in whole.items() if name != "rope_theta"}
    if "rope_theta" in by_layer.get("sliding_attention", {}):
        found["rope_local_base_freq"] = by_layer["sliding_attention"]["rope_theta"]
    if "num_local_experts" in config:
        found["num_experts"] = config["num_local_experts"]
    return config | found


def older_tokenizer(config: dict) -> dict:
    """A tokenizer_config.json with 4's names for its class and its list of special tokens, which 5 reads too."""
    kept = {name: value for name, value in config.items() if name not in ("is_local", "local_files_only")}
    if kept.get("tokenizer_class") == "TokenizersBackend":
        kept["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return kept


def save_tokenizer(template: Template, folder: Path) -> None:
    """The tokenizer, whose chat template gives other tools the ids that were trained."""
    tokenizer = copy.copy(template.tokenizer)
    tokenizer.chat_template = chat_template(template)
    tokenizer.save_pretrained(folder)


def write_generation_config(model: nn.Module, template: Template, folder: Path) -> None:
    """The model's own generation_config.json, with what closes a reply in training among the tokens that end one."""
    config = model.generation_config.to_diff_dict()
    ends = config.get("eos_token_id") or []
    ends = {template.end_id, template.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
    config |= {"eos_token_id": sorted(ends), "pad_token_id": padding_id(template.tokenizer)}
    (folder / "generation_config.json").write_text(json.dumps(config, indent=2) + "\n")


def release(trainer: AlignmentTrainer) -> None:
    """Give the memory back, for the fresh process that looks at what was saved. The caller holds no model either."""
    trainer.model = trainer.model_wrapped = trainer.optimizer = trainer.lr_scheduler = None
    handler = trainer.callback_handler
    handler.model = handler.optimizer = handler.lr_scheduler = None
    trainer.accelerator.free_memory()
