"""Base + LoRA adapter -> a plain checkpoint, which transformers and vLLM load as it is.

    python merge.py --base_model_name_or_path saved_models/llama2-13b-chat-hf \\
        --peft_model_path saved_models/lora/cut-1plus-13b --output_dir saved_models/cut-1plus-13b

Reads the base, in the precision of its files, and the adapter. Writes safetensors, config, tokenizer and a run card to
--output_dir, all at once: the merged weights are written, loaded again, and must give the logits of base + adapter, or
nothing is left. An adapter that was trained on an 8- or 4-bit base is merged into what that base stood for (C18). Run
twice, it finds its own work and stops.
"""

from __future__ import annotations

import json
import os
import shutil
from argparse import Namespace
from pathlib import Path

from alignment.adapters import check_base, fingerprint, quantisation, with_adapter
from alignment.command_line import ArgumentParser, UserError, run
from alignment.pretrained import check_model, load_pretrained, load_tokenizer
from alignment.run_cards import check_output_dir, run_card_path, sha256, write_run_card

# Root mean square of the logits' difference over that of the logits. Rounding merged weights to half precision costs
# this much; a wrong scale, a missing layer or another base costs far more.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
QUANTISED_TOLERANCE = 5e-2  # 8- and 4-bit kernels also round activations
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--base_model_name_or_path", required=True, help="the base that the adapter was trained on")
    parser.add_argument("--peft_model_path", required=True, type=Path, help="the adapter's folder")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the merged checkpoint")
    parser.add_argument("--device", default="cpu", help="where to merge and compare: cpu (default), cuda, cuda:1, auto")
    return parser.parse_args(argv)


def identity(base: str, adapter: Path) -> dict[str, str | None]:
    """What the merged checkpoint is made of. Raises UserError without adapter weights."""
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"adapter {adapter} has no {ADAPTER_WEIGHTS}; has its training ended?")
    return {"base": fingerprint(base) or base, "adapter": sha256(adapter / ADAPTER_WEIGHTS)}


def is_done(output_dir: Path, made_of: dict) -> bool:
    """Whether this very merge is in `output_dir`. Raises UserError where something else is."""
    if not output_dir.exists():
        return False
    card = run_card_path(output_dir)
    is_merge = (output_dir / "config.json").is_file() and card.is_file()
    if is_merge and json.loads(card.read_text())["counts"].get("made_of") == made_of:
        return True
    if any(output_dir.iterdir()):
        raise UserError(f"{output_dir} holds something else; give another --output_dir, or remove it")
    return False


def load_base(name: str, device: str, quantised: str | None):
    """The base as it was trained on: (what to compare with, what to merge into), one model where unquantised."""
    if quantised is None:
        model = load_pretrained("AutoModelForCausalLM", name, dtype="auto", device_map=device)
        return model, model
    bits = quantisation(quantised)
    trained, plain = (load_pretrained("AutoModelForCausalLM", name, device_map=device, **bits) for _ in range(2))
    return trained, plain.dequantize()


def probe_logits(model):
    """Logits (4, 32, V) in fp32 on the CPU, for ids drawn from the whole vocabulary."""
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(input_ids=ids.to(model.device), use_cache=False).logits.float().cpu()


def relative_error(found, wanted) -> float:
    """Root mean square of the difference over that of what is wanted; inf where anything is not finite."""
    error = ((found - wanted).square().mean() / wanted.square().mean()).sqrt()
    return error.item() if error.isfinite() else float("inf")


def merge(base: str, adapter: Path, device: str, quantised: str | None):
    """(merged plain model, logits of base + adapter)."""
    trained, plain = load_base(base, device, quantised)
    trained = with_adapter(trained, adapter)
    wanted = probe_logits(trained)
    merged = trained if quantised is None else with_adapter(plain, adapter)
    return merged.merge_and_unload(safe_merge=True), wanted


def save_checked(model, tokenizer, folder: Path, wanted, tolerance: float, device: str) -> float:
    """Save, load again, compare; the error, or UserError with nothing left in `folder`'s place."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    saved = load_pretrained("AutoModelForCausalLM", folder, dtype="auto", device_map=device)
    error = relative_error(probe_logits(saved), wanted)
    if error > tolerance:
        raise UserError(f"merged logits are off base + adapter by {error:.2g}, more than {tolerance:.2g}; not saved")
    return error


def main(args: Namespace) -> None:
    check_model(args.base_model_name_or_path)
    check_output_dir(args.output_dir)
    quantised = check_base(args.peft_model_path, args.base_model_name_or_path)
    made_of = identity(args.base_model_name_or_path, args.peft_model_path)
    if is_done(args.output_dir, made_of):
        print(f"{args.output_dir} already holds this merge; nothing to do")
        return

    model, wanted = merge(args.base_model_name_or_path, args.peft_model_path, args.device, quantised)
    has_tokenizer = (args.peft_model_path / "tokenizer_config.json").is_file()
    tokenizer = load_tokenizer(args.peft_model_path if has_tokenizer else args.base_model_name_or_path)
    precision = str(model.dtype).removeprefix("torch.")

    temporary = args.output_dir.with_name(f".{args.output_dir.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    tolerance = QUANTISED_TOLERANCE if quantised else TOLERANCE[precision]
    try:
        error = save_checked(model, tokenizer, temporary, wanted, tolerance, args.device)
        counts = {"made_of": made_of, "relative_error": error, "precision": precision}
        write_run_card(args.output_dir, args, counts=counts)  # first: a folder without its card would be a stranger's
        os.replace(temporary, args.output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"{args.output_dir}: {precision}, logits within {error:.1e} of base + adapter (limit {tolerance:.0e})")


if __name__ == "__main__":
    run(parse_args, main)
