"""LoRA adapters and the base each belongs to.

An adapter fits the one base that it was trained on, in the precision that it was trained in. Beside the adapter stands
`base_model.json`, {"name", "fingerprint", "quantised"}, which tells that base wherever it has been moved; an adapter of
another maker has only the name in its own `adapter_config.json`.
"""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from alignment.command_line import UserError
from alignment.records import read_json, write_whole

ADAPTER_CONFIG = "adapter_config.json"
BASE_CARD = "base_model.json"


def checkpoint_folder(name: str) -> Path | None:
    """The folder that holds a checkpoint's files: the path itself, or a hub name's snapshot if the cache has it."""
    if Path(name).is_dir():
        return Path(name)
    from transformers.utils import cached_file

    try:
        return Path(cached_file(name, "config.json", local_files_only=True)).parent
    except OSError:
        return None


def fingerprint(name: str) -> str | None:
    """A hash of every weight's name, shape and first row, however they are spread over files; None without safetensors.

    A checkpoint that LoRA was merged into differs from its base in the first rows of what LoRA changed.
    """
    from safetensors import SafetensorError, safe_open

    folder, parts = checkpoint_folder(name), {}
    for path in sorted(folder.glob("*.safetensors")) if folder else []:
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (no dict)
                    weight = file.get_slice(key)
                    row = weight[:1] if weight.get_shape() else file.get_tensor(key)
                    parts[key] = f"{key} {weight.get_shape()} {row.flatten().double().numpy().tobytes().hex()}"
        except SafetensorError as error:
            raise UserError(f"model {name}: {path.name} is not whole: {error}") from error
    return hashlib.sha256("\n".join(parts[key] for key in sorted(parts)).encode()).hexdigest() if parts else None


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


def with_adapter(model: Any, adapter: Path) -> Any:
    """`model` under the adapter. Raises UserError where their shapes differ, or the adapter's file is not whole."""
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        return PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"adapter {adapter} does not fit the base: {reason}") from error


def write_base_card(adapter: Path, base: str, quantised: str | None) -> None:
    """Say beside an adapter what it was trained on. `quantised` is None, "8bit" or "4bit"."""
    card = {"name": base, "fingerprint": fingerprint(base), "quantised": quantised}
    write_whole(adapter / BASE_CARD, [json.dumps(card, indent=2) + "\n"])


def check_base(adapter: Path, base: str) -> str | None:
    """How the base was quantised while the adapter was trained. Raises UserError where `base` is another base."""
    if not (adapter / ADAPTER_CONFIG).is_file():
        raise UserError(f"{adapter} has no {ADAPTER_CONFIG}: it is no adapter (a full fine-tune needs no merge)")
    if not (adapter / BASE_CARD).is_file():
        trained_on = read_json(adapter / ADAPTER_CONFIG, "adapter config").get("base_model_name_or_path") or ""
        if Path(trained_on).name != Path(base).name:
            raise UserError(f"adapter {adapter} was trained on {trained_on or 'an unnamed base'}, not on {base}")
        return None
    card = read_json(adapter / BASE_CARD, "base card")
    found = fingerprint(base)
    same = found == card["fingerprint"] if found and card["fingerprint"] else Path(base).name == Path(card["name"]).name
    if not same:
        raise UserError(f"adapter {adapter} was trained on {card['name']}, and the weights of {base} are not the same")
    return card["quantised"]
