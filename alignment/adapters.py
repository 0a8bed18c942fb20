"""LoRA adapters: how one is added to a model, and the base that each belongs to.

An adapter fits the one base that it was trained on, in the precision that it was trained in. Beside the adapter stands
`base_model.json`, {"name", "weights", "quantised"}, which tells that base wherever it has been moved; an adapter of
another maker has only the name in its own `adapter_config.json`.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from alignment.command_line import UserError
from alignment.pretrained import ADAPTER_CONFIG, adapter_base, contents, fit_embeddings, load_pretrained
from alignment.records import read_json, write_whole

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
    """`model` under a new adapter. `targets` are names of its linear layers, or all-linear; `task_type` is CAUSAL_LM or
    SEQ_CLS. Raises UserError for a name that no layer has, and says which there are."""
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if list(targets) != [ALL_LINEAR]:
        check_target_modules(model, targets)
    if quantised:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=gradient_checkpointing)
    elif gradient_checkpointing:
        model.enable_input_require_grads()
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=ALL_LINEAR if list(targets) == [ALL_LINEAR] else list(targets),
        task_type=task_type,
    )
    return get_peft_model(model, config)


def check_target_modules(model: Any, names: Sequence[str]) -> None:
    """Raise UserError where a name is that of no weight matrix between embeddings and head."""
    head = model.get_output_embeddings()
    matrices = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and module is not head and "embed" not in path
    }
    missing = [name for name in names if name not in matrices]
    if missing:
        raise UserError(f"--lora_target_modules {' '.join(missing)}: the model has {', '.join(sorted(matrices))}")


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
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"adapter {adapter} does not fit the base: {reason}") from error


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
    card = read_json(adapter / BASE_CARD, "base card") if (adapter / BASE_CARD).is_file() else {}
    found, trained_on = weights_of(base), card.get("weights")
    if found and trained_on:
        if found != trained_on:
            raise UserError(
                f"adapter {adapter} was trained on {card['name']}, and the weights of {base} are not the same"
            )
    else:
        name = card.get("name") or read_json(adapter / ADAPTER_CONFIG, "adapter config").get("base_model_name_or_path")
        if Path(name or "").name != Path(base).name:
            raise UserError(f"adapter {adapter} was trained on {name or 'an unnamed base'}, not on {base}")
    return card.get("quantised")
