"""The flags of transformers' TrainingArguments that train.py does not spell out: read, and found to work or refused
before anything is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.command_line import ArgumentParser, UserError
from alignment.flag_values import fault_of_value
from alignment.pretrained import first_line

if TYPE_CHECKING:
    from transformers import TrainingArguments

UNCOMPILED = "a compiled model cannot be saved here"
# What would be passed over, or would break what our losses build on
REFUSED = {
    "auto_find_batch_size": "a batch is what --per_device_train_batch_size says; micro-batches follow from it",
    "deepspeed": "--fsdp is what shards here",
    "label_smoothing_factor": "the papers' losses have none",
    "push_to_hub": "the model is in --output_dir at the end; `hf upload` sends it",
    "save_on_each_node": "the first process writes, into a folder that all nodes see",
    "torch_compile": UNCOMPILED,
    "torch_compile_backend": UNCOMPILED,
    "torch_compile_mode": UNCOMPILED,
    "use_liger_kernel": "its forward pass would take the place of the one that gives log-probabilities",
}
MAPPINGS = ("accelerator_config", "fsdp_config", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")


def trainer_flags(parser: ArgumentParser, rest: list[str]) -> dict[str, Any]:
    """Their values by name, of the words that `parser` has left over. A mistake ends the process with a line."""
    from transformers import HfArgumentParser, TrainingArguments

    theirs = HfArgumentParser(TrainingArguments, allow_abbrev=False)
    theirs.error = parser.error
    given = [word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in rest if word.startswith("--")]
    known = {option: action.dest for action in theirs._actions for option in action.option_strings}
    for option in given or rest:
        if option not in known:
            parser.refuse_unknown(option, known)
    values = vars(theirs.parse_args([*rest, "--output_dir", "."]))
    found = {known[option]: values[known[option]] for option in given}
    for name, value in found.items():
        fault = fault_of_value(name, value) or (REFUSED.get(name) if value not in (None, False, 0) else None)
        if fault := fault or (fault_of_mapping(value) if name in MAPPINGS else None):
            parser.error(f"argument --{name}: {fault}")
    return found


def fault_of_mapping(value: Any) -> str | None:
    """Why a flag's value is neither a JSON object nor a file that holds one."""
    text = value
    try:
        if isinstance(text, str) and os.path.isfile(text):
            text = Path(text).read_text(encoding="utf-8")
        if isinstance(text, dict) or isinstance(json.loads(text), dict):
            return None
    except (OSError, ValueError, RecursionError):
        pass
    return f"{str(value)[:40]!r} is no JSON object, nor a file that holds one"


def check_works(args: TrainingArguments) -> None:
    """Raise UserError where what transformers or torch builds of the arguments late in a run cannot be built: asked
    with one weight in the place of the model's."""
    import torch
    from transformers import Trainer, get_scheduler

    if (args.neftune_noise_alpha or 0) < 0:
        raise UserError(f"--neftune_noise_alpha {args.neftune_noise_alpha} is less than 0")
    if args.eval_on_start and args.eval_strategy == "no":
        raise UserError("--eval_on_start needs --eval_strategy and --eval_data_path")
    model = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, device=args.device)  # draws no random number
    try:
        kind, settings = Trainer.get_optimizer_cls_and_kwargs(args, model)
        weights = settings.pop("params", settings.pop("optimizer_dict", None)) or model.parameters()
        settings.pop("model", None)
        optimiser = kind(weights, **settings)
    except (ValueError, TypeError, ImportError, RuntimeError) as error:
        given = f"{args.optim.value}{f' --optim_args {args.optim_args}' if args.optim_args else ''}"
        raise UserError(f"--optim {given}: {first_line(error)}") from error
    try:
        get_scheduler(args.lr_scheduler_type, optimiser, 1, 10, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (ValueError, TypeError) as error:
        given = f"{args.lr_scheduler_type.value} --lr_scheduler_kwargs {args.lr_scheduler_kwargs}"
        raise UserError(f"--lr_scheduler_type {given}: {first_line(error)}") from error
