"""LoRA adapters: how one is added to a model, and the base that each belongs to.

An adapter fits the one base that it was trained on, in the precision that it was trained in. Beside the adapter stands
`base_model.json`, {"name", "weights", "quantised"}, which tells that base wherever it has been moved; an adapter of
another maker has only the name in its own `adapter_config.json`.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from alignment.command_line import UserError, say
from alignment.pretrained import ADAPTER_CONFIG, adapter_base, contents, fit_embeddings, load_pretrained, read_settings
from alignment.records import write_whole

BASE_CARD = "base_model.json"
ALL_LINEAR = "all-linear"


def quantised(args: Namespace) -> str | None:
    """What --load_in_8bit and --load_in_4bit ask for: "8bit", "4bit" or None."""
    return "8bit" if args.load_in_8bit else "4bit" if args.load_in_4bit else None


def quantisation(bits: str | None, compute_dtype: str = "float32") -> dict:
    """from_pretrained's settings for a base in "8bit" or "4bit" (NF4). Raises UserError without bitsandbytes."""
    if bits is None:
        return {}
    import torch
    from transformers import BitsAndBytesConfig
    from transformers.utils import is_bitsandbytes_available

    if not is_bitsandbytes_available():
        raise UserError(f"--load_in_{bits} needs bitsandbytes, which does not work here; install it, or leave it out")
    config = BitsAndBytesConfig(
        load_in_8bit=bits == "8bit",
        load_in_4bit=bits == "4bit",
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=getattr(torch, compute_dtype),
    )
    return {"quantization_config": config}


def add_lora(
    model: Any,
    *,
    r: int,
    alpha: float,
    dropout: float,
    targets: Sequence[str],
    task_type: str,
    quantised: str | None = None,
    gradient_checkpointing: bool = False,
) -> Any:
    """`model` under a new adapter. `targets` are names of its linear layers and fused experts, or all-linear;
    `task_type` is CAUSAL_LM or SEQ_CLS. Raises UserError for a name that nothing has, and says which there are."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    modules, parameters = lora_targets(model, targets, dropout)
    if quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        model.enable_input_require_grads()
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=modules,
        target_parameters=parameters or None,
        task_type=task_type,
    )
    made = get_peft_model(model, config)
    base = made.peft_config["default"].base_model_name_or_path or ""
    if Path(base).expanduser().is_dir():  # so that it is found from any folder
        made.peft_config["default"].base_model_name_or_path = str(Path(base).expanduser().resolve())
    return made


# What is adapted


def lora_targets(model: Any, names: Sequence[str], dropout: float) -> tuple[list[str], list[str]]:
    """What peft is to adapt: modules, and parameters, which are the fused experts of a mixture. [all-linear] is all.

    Raises UserError for a name that neither has, as a tied head's, and where nothing is left to adapt.
    """
    layers, experts = linear_layers(model), fused_experts(model)
    is_all = list(names) == [ALL_LINEAR]
    modules, parameters = ([path for path in each if is_all or has_name(path, names)] for each in (layers, experts))
    missing = [] if is_all else [name for name in names if not any(has_name(path, [name]) for path in layers + experts)]
    if missing:
        there = f"{', '.join(last_names(layers))} between its embeddings and its head"
        there += f", and {', '.join(last_names(experts))} of fused experts" if experts else ""
        raise UserError(f"--lora_target_modules {' '.join(missing)}: the model has {there}")
    if parameters and dropout and not is_all:
        told = " ".join(last_names(parameters))
        raise UserError(f"--lora_target_modules {told}: fused experts take no dropout; give --lora_dropout 0")
    taken = [path for path in modules if experts and is_taken_for_experts(model, path)]
    left = taken + (parameters if dropout else [])
    if left:
        remedy = "; --lora_dropout 0 adapts the experts" if parameters and dropout else ""
        say(f"LoRA leaves {', '.join(last_names(left))} of the mixture as they are{remedy}")
    modules, parameters = (set(each).difference(left) for each in (modules, parameters))
    if not modules and not parameters:
        raise UserError(f"--lora_target_modules {' '.join(names)}: nothing of {type(model).__name__} can be adapted")
    return shortest(model, modules), sorted({".".join(path.split(".")[-2:]) for path in parameters})


def has_name(path: str, names: Sequence[str]) -> bool:
    """Whether a path is, or ends in, one of these names, as peft takes them."""
    return any(f".{path}".endswith(f".{name}") for name in names)


def last_name(path: str) -> str:
    return path.rpartition(".")[2]


def last_names(paths: Iterable[str]) -> list[str]:
    return sorted(set(map(last_name, paths)))


def linear_layers(model: Any) -> list[str]:
    """The paths of linear layers between embeddings and head, without routers, and without what a Mamba's fused kernels
    read past any adapter."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    heads = {id(model.get_output_embeddings()), *(id(getattr(model, name, None)) for name in ("score", "classifier"))}
    found = []
    for path, module in modules.items():
        parent = modules[path.rpartition(".")[0]]
        is_state_space = hasattr(parent, "A_log") and hasattr(parent, "D")
        is_fused = is_state_space and last_name(path) in ("out_proj", "dt_proj")
        is_router = any(part in ("gate", "shared_expert_gate") or "router" in part for part in path.split("."))
        if isinstance(module, (nn.Linear, Conv1D)) and id(module) not in heads and not is_router and not is_fused:
            found.append(path)
    return found


def fused_experts(model: Any) -> list[str]:
    """The paths of parameters that hold a weight matrix of every expert, (experts, ., .)."""
    return [
        f"{path}.{name}"
        for path, module in model.named_modules()
        for name, weight in module.named_parameters(recurse=False)
        if weight.ndim == 3 and last_name(path) == "experts"
    ]


def is_taken_for_experts(model: Any, path: str) -> bool:
    """Whether peft would adapt fused experts in place of this layer, whose name they had before they were fused."""
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[path])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:  # it asks for the other half too
        return True
    return path not in config.target_modules


def shortest(model: Any, paths: set[str]) -> list[str]:
    """Names for peft that mean these modules alone: the last part of a path, where all that have it are meant."""
    others = {last_name(path) for path, _ in model.named_modules() if path not in paths}
    return sorted({path if last_name(path) in others else last_name(path) for path in paths})


# The base of an adapter


def load_base(kind: str, adapter: str, dtype: Any, tokenizer: Any, **settings: Any) -> Any:
    """The base that an adapter's folder names, with room for `tokenizer`, in `dtype` ("auto": as it was in training).

    It first gets the dtype in which the adapter was trained on it, which the folder's config tells: what was trained on
    a base in bf16 fits the rounded weights.
    """
    trained_in = getattr(load_pretrained("AutoConfig", adapter), "dtype", None) or "auto"
    base = load_pretrained(kind, adapter_base(adapter), dtype=trained_in, **settings)
    fit_embeddings(base, tokenizer)
    return base if dtype == "auto" else base.to(dtype)


def with_adapter(model: Any, adapter: Path) -> Any:
    """`model` under the adapter. Raises UserError where their shapes differ, or the adapter's file is not whole."""
    from peft import PeftModel

    try:
        return PeftModel.from_pretrained(model, adapter)
    except Exception as error:  # whatever peft stumbles over in files that may hold anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1].strip()
        raise UserError(f"adapter {adapter} does not fit the base: {reason[:300]}") from error


def write_base_card(adapter: Path, base: str, quantised: str | None, cache_dir: str | None = None) -> None:
    """Say beside an adapter what it was trained on. `quantised` is None, "8bit" or "4bit"."""
    card = {"name": base, "weights": weights_of(base, cache_dir), "quantised": quantised}
    write_whole(adapter / BASE_CARD, [json.dumps(card, indent=2) + "\n"])


def weights_of(name: str, cache_dir: str | None = None) -> str | None:
    return (contents(name, cache_dir) or {}).get("weights")


def check_base(adapter: Path, base: str) -> str | None:
    """How the base was quantised while the adapter was trained. Raises UserError where `base` is another base."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise UserError(f"{adapter} has no {ADAPTER_CONFIG}: it is no adapter (a full fine-tune needs no merge)")
    config = read_settings(adapter / ADAPTER_CONFIG, "adapter config")
    if config.get("task_type") == "SEQ_CLS":
        raise UserError(f"adapter {adapter} is a reward model's, which is loaded as it is: it needs no merge")
    card = read_settings(adapter / BASE_CARD, "base card") if (adapter / BASE_CARD).is_file() else {}
    found, trained_on = weights_of(base), card.get("weights")
    if found and trained_on:
        if found != trained_on:
            raise UserError(
                f"adapter {adapter} was trained on {card['name']}, and the weights of {base} are not the same"
            )
    else:
        name = card.get("name") or config.get("base_model_name_or_path")
        if Path(str(name or "")).name != Path(base).name:
            raise UserError(f"adapter {adapter} was trained on {name or 'an unnamed base'}, not on {base}")
    return card.get("quantised")
