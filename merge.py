"""Base + LoRA adapter, or a training checkpoint's shards -> a plain checkpoint, which transformers and vLLM load.

    python merge.py --base_model_name_or_path saved_models/llama2-13b-chat-hf \\
        --peft_model_path saved_models/lora/cut-1plus-13b --output_dir saved_models/cut-1plus-13b
    python merge.py --checkpoint_path outputs/sft/checkpoint-400 --output_dir outputs/sft-400

Reads the base, in the precision of its files, and the adapter. Writes safetensors, config, tokenizer, check.json and a
run card to --output_dir, all at once: the merged model must give the logits of base + adapter, and a fresh process that
loads what was written the merged model's log-probabilities, or nothing is left. An adapter that was trained on an 8- or
4-bit base is merged into what that base stood for (C18). Run twice, it finds its own work and stops.

Shards, which train.py leaves under --fsdp, are put together on the CPU in the precision that a model is saved in at the
end of that training, and what is written is checked by a fresh process as well.
"""

from __future__ import annotations

import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from alignment.adapters import check_base, quantisation, with_adapter
from alignment.command_line import ArgumentParser, UserError, run
from alignment.model_cards import write_card
from alignment.pretrained import check_model, fit_embeddings, load_pretrained, load_tokenizer, padding_id
from alignment.run_cards import Run, claim, why_not_whole
from alignment.templates import load_template, trained_with

# Root mean square of the logits' difference over that of the logits. Rounding merged weights to half precision costs
# this much; a wrong scale, a missing layer or another base costs far more.
TOLERANCE = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
QUANTISED_TOLERANCE = 5e-2  # 8- and 4-bit kernels also round activations
ADAPTER_WEIGHTS = "adapter_model.safetensors"


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--base_model_name_or_path", help="the base that the adapter was trained on")
    parser.add_argument("--peft_model_path", type=Path, help="the adapter's folder")
    parser.add_argument("--checkpoint_path", type=Path, help="or a checkpoint-N of train.py's under --fsdp: its shards")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of the merged checkpoint")
    parser.add_argument("--device", default="cpu", help="where to merge and compare: cpu (default), cuda, cuda:1, auto")
    args = parser.parse_args(argv)
    pair = (args.base_model_name_or_path, args.peft_model_path)
    if (None in pair) if args.checkpoint_path is None else pair != (None, None):
        parser.error("give --base_model_name_or_path and --peft_model_path, or --checkpoint_path alone")
    return args


def check_output(held: Run) -> None:
    """Raise UserError where the output folder holds anything but what a killed merge left."""
    if held.output.exists() and any(held.output.iterdir()) and not held.was_killed:
        held_by = f" ({'; '.join(held.differences()[:3])})" if held.card() else ""
        raise UserError(f"{held.output} holds something else{held_by}; give another --output_dir, or remove it")


def load_base(name: str, device: str, quantised: str | None):
    """The base as it was trained on: (what to compare with, what to merge into), one model where unquantised."""
    if quantised is None:
        model = load_pretrained("AutoModelForCausalLM", name, dtype="auto", device_map=device)
        return model, model
    bits = quantisation(quantised)
    trained, plain = (load_pretrained("AutoModelForCausalLM", name, device_map=device, **bits) for _ in range(2))
    return trained, plain.dequantize()


def probe_ids(model):
    """(4, 32) ids drawn from the whole vocabulary."""
    import torch

    vocabulary = model.get_input_embeddings().weight.shape[0]
    return torch.randint(vocabulary, (4, 32), generator=torch.Generator().manual_seed(0))


def probe_logits(model):
    """Logits (4, 32, V) in fp32 on the CPU, for `probe_ids`."""
    import torch

    with torch.no_grad():
        return model.eval()(input_ids=probe_ids(model).to(model.device), use_cache=False).logits.float().cpu()


def relative_error(found, wanted) -> float:
    """Root mean square of the difference over that of what is wanted; inf where anything is not finite."""
    error = ((found - wanted).square().mean() / wanted.square().mean()).sqrt()
    return error.item() if error.isfinite() else float("inf")


def merge(base: str, adapter: Path, tokenizer, device: str, quantised: str | None):
    """(merged plain model, logits of base + adapter). The base gets room for a token that training added."""
    trained, plain = load_base(base, device, quantised)
    for model in {id(each): each for each in (trained, plain)}.values():
        fit_embeddings(model, tokenizer)
    trained = with_adapter(trained, adapter)
    wanted = probe_logits(trained)
    merged = trained if quantised is None else with_adapter(plain, adapter)
    return merged.merge_and_unload(safe_merge=True), wanted


def save(models: list, tokenizer, args: Namespace, write: Callable[[Path], None], kind: str = "logps") -> dict:
    """`write` writes the one model of `models`, which is taken out then, and a fresh process loads it; its verdict."""
    from alignment.training.batches import Sample
    from alignment.training.logps import speak_logps
    from alignment.training.saving import save_checked, values

    rows = [{"row": row, "ids": ids, "prompt_length": 1} for row, ids in enumerate(probe_ids(models[0]).tolist())]
    samples, pad_id = [Sample(**row) for row in rows], padding_id(tokenizer)
    model = models[0] if kind == "reward" else speak_logps(models[0])
    check = {
        "kind": kind,
        "exact": True,
        "pad_id": pad_id,
        "samples": rows,
        "values": values(model.eval(), samples, pad_id, kind, len(samples)),
        "device": args.device,
        "passes": [["saved", "auto", len(samples)]],
    }
    del model
    return save_checked(args.output_dir, write, check, models.clear)


def check_shards(checkpoint: Path) -> None:
    """Raise UserError where there is nothing to be put together."""
    from alignment.training.checkpoints import MODEL

    if fault := why_not_whole(checkpoint):
        raise UserError(f"{checkpoint} is no whole checkpoint: {fault}")
    if (checkpoint / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"{checkpoint} holds an adapter, whole: give it as --peft_model_path, and its base")
    if not (checkpoint / MODEL).is_dir():
        raise UserError(f"{checkpoint} has no shards: its model is loaded as it is")
    check_model(str(checkpoint))


def assembled(checkpoint: Path):
    """(model, template, "reward" or "logps") of a checkpoint's shards, in the precision that its config tells."""
    import torch
    import transformers
    from transformers.initialization import no_init_weights

    from alignment.training.checkpoints import load_weights

    config = load_pretrained("AutoConfig", str(checkpoint))
    dtype = config.dtype  # which a model that is made of it changes
    reward = config.architectures[0].endswith("ForSequenceClassification")
    kind = transformers.AutoModelForSequenceClassification if reward else transformers.AutoModelForCausalLM
    with no_init_weights():
        model = kind.from_config(config, dtype=torch.float32)
    load_weights(model, checkpoint)
    model.config.use_cache = True
    if (checkpoint / "generation_config.json").is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(checkpoint)
    template = load_template(getattr(config, "prompt_template", "almost"), load_tokenizer(str(checkpoint)))
    return model.to(dtype), template, "reward" if reward else "logps"


def consolidate(args: Namespace) -> None:
    """The shards of a checkpoint -> a plain one."""
    from alignment.training.saving import save_tokenizer, write_generation_config

    checkpoint = args.checkpoint_path
    check_shards(checkpoint)
    files = [path for path in sorted(checkpoint.rglob("*")) if path.suffix in (".json", ".distcp")]
    with claim(args.output_dir, args, script=__file__, inputs=files, folder=True) as held:
        if held.is_done():
            return print(held.already())
        check_output(held)
        held.begin()
        model, template, kind = assembled(checkpoint)
        models, numbers = [model], {"precision": str(model.dtype).removeprefix("torch.")}
        del model

        def write(folder: Path) -> None:
            models[0].save_pretrained(folder)
            save_tokenizer(template, folder)
            if kind != "reward":
                write_generation_config(models[0], template, folder)
            what = f"A {'reward model' if kind == 'reward' else 'policy'}: a checkpoint of its training"
            write_card(folder, held, what=what, template=template.name, numbers=numbers)

        held.finish(numbers | {"check": save(models, template.tokenizer, args, write, kind)})
    print(f"{args.output_dir}: {numbers['precision']}, the weights of {checkpoint}")


def main(args: Namespace) -> None:
    if args.checkpoint_path:
        return consolidate(args)
    base, adapter = args.base_model_name_or_path, args.peft_model_path
    check_model(base)
    quantised = check_base(adapter, base)
    if not (adapter / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"adapter {adapter} has no {ADAPTER_WEIGHTS}; has its training ended?")
    with claim(args.output_dir, args, script=__file__, models=[base, adapter], folder=True) as held:
        if held.is_done():
            return print(held.already())
        check_output(held)
        held.begin()
        has_tokenizer = (adapter / "tokenizer_config.json").is_file()
        tokenizer = load_tokenizer(str(adapter) if has_tokenizer else base)
        model, wanted = merge(base, adapter, tokenizer, args.device, quantised)
        if template := trained_with(str(adapter)) or getattr(model.config, "prompt_template", None):
            model.config.prompt_template = template
        precision = str(model.dtype).removeprefix("torch.")
        tolerance = QUANTISED_TOLERANCE if quantised else TOLERANCE[precision]
        error = relative_error(probe_logits(model), wanted)
        if error > tolerance:
            raise UserError(
                f"merged logits are off base + adapter by {error:.2g}, more than {tolerance:.2g}; not saved"
            )
        models = [model]
        del model
        numbers = {"relative_error": error, "precision": precision}

        def write(folder: Path) -> None:
            models[0].save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if (ends := adapter / "generation_config.json").is_file():  # what ends a reply, as it was trained
                shutil.copy(ends, folder)
            what = "A policy: a base with an adapter merged into it"
            write_card(folder, held, what=what, template=template, numbers=numbers)

        held.finish(numbers | {"check": save(models, tokenizer, args, write)})
    print(f"{args.output_dir}: {precision}, logits within {error:.1e} of base + adapter (limit {tolerance:.0e})")


if __name__ == "__main__":
    run(parse_args, main)
