"""CUT: a model learns from written judgments of its responses which of their tokens were wrong (arXiv 2312.14591).

    torchrun --nproc_per_node=8 finetune_unlikelihood.py --base_model saved_models/llama2-13b-chat-hf \\
        --data_path data/iter/train-alpaca-sample-iter1.json --output_dir saved_models/lora/cut-1plus-13b \\
        --batch_size 8 --micro_batch_size 1 --learning_rate 4e-4 --threshold 1.1 --weight_unlike 1 --downsample 0.25

Reads rows of instruction, input, output and judgment, null where the output is satisfactory (alignment/judging.py),
from .json, .jsonl, .parquet or the hub. Writes to --output_dir a LoRA adapter with its tokenizer and base card, or with
--full_finetuning a whole checkpoint; checkpoints, history.jsonl and history.png; and beside it a run card.

--method trains one of the paper's baselines on the same rows instead. docs/cut.md numbers every detail.
"""

from __future__ import annotations

import math
import os
import random
import re
from argparse import Namespace
from functools import partial
from pathlib import Path

from alignment.adapters import quantised
from alignment.command_line import ArgumentParser, UserError, boolean, number, run, table
from alignment.pretrained import check_model, load_pretrained, load_tokenizer
from alignment.run_cards import check_output_dir, finished_with, run_card_path, write_run_card

METHODS = ("cut", "mle", "forward_prediction", "hindsight")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False}
    at_least_one = number(int, 1)

    add = parser.add_argument_group("files").add_argument
    add("--base_model", required=True, help="folder or hub name of any causal model")
    add("--data_path", required=True, help="rows with judgments: .json, .jsonl, .parquet or a hub name")
    add("--output_dir", required=True, type=Path, help="folder of the adapter; checkpoints on the way are in it too")
    add("--prompt_template_name", default="alpaca", help="a template with a judgment slot (default: alpaca)")
    add("--resume_from_checkpoint", help="a checkpoint-N folder, or True for the last one in --output_dir")

    add = parser.add_argument_group("loss").add_argument
    add(
        "--method",
        choices=METHODS,
        default="cut",
        help="cut (default) or a baseline on the same rows; mle learns the satisfactory responses alone",
    )
    add(
        "--threshold",
        type=number(float, 0, above=True),
        default=1.1,
        help="lambda of eq. 5: a token is blamed where the judgment makes it more than this much likelier "
        "(default: 1.1, released; the paper tried 1.1 and 1.2)",
    )
    add(
        "--weight_unlike",
        "--alpha",
        type=number(float, 0),
        default=1.0,
        help="alpha of eq. 6 (default: 1, released for online; 0.5 for offline)",
    )
    add(
        "--gamma",
        type=number(float, 0),
        default=1.0,
        help="gamma of eq. 6; 0 is the released code's constant weight (default: 1; the paper: 0.25 to 2)",
    )
    add(
        "--probability_floor",
        type=number(float, 0, 1),
        default=0.0,
        help="blame no token that is less likely than this even with the judgment (default: 0, the paper)",
    )
    add(
        "--calibrate_threshold",
        type=number(float, 0, 1, above=True),
        metavar="FRACTION",
        help="set --threshold so that the model at the start blames this share of the flawed rows' tokens",
    )
    add("--legacy_loss", **flag, help="the released code's loss: no gamma, and a mix by micro-batch (C1-C3)")

    add = parser.add_argument_group("rows").add_argument
    add(
        "--downsample",
        type=number(float, -1),
        default=-1,
        help="satisfactory rows to keep for each flawed one (default: -1, all; the paper: 0.25)",
    )
    add(
        "--cutoff_len",
        type=number(int, 8),
        default=2048,
        help="tokens of prompt and response; more loses its beginning (default: 2048, released command)",
    )
    add("--val_set_size", type=number(int, 0), default=0, help="rows held out and evaluated each epoch (default: 0)")
    add("--train_on_inputs", **flag, help="only False: no equation has a term for the prompt")
    add("--add_eos_token", **flag, help="accepted and without effect: EOS always closes the response, as released")
    add("--group_by_length", **flag, help="accepted and without effect: a step is always batched by length")
    add("--limit", type=at_least_one, help="use only this many rows from the start, for a trial")

    add = parser.add_argument_group("optimisation").add_argument
    add("--batch_size", type=at_least_one, default=8, help="rows per step, over all processes (default: 8, released)")
    add("--micro_batch_size", type=at_least_one, default=1, help="rows per forward, on average (default: 1, released)")
    add("--num_epochs", type=number(float, 0, above=True), default=1, help="default: 1, released")
    add("--learning_rate", type=number(float, 0, above=True), default=4e-4, help="its peak (default: 4e-4, released)")
    add("--lr_scheduler", default="cosine", choices=("cosine", "linear", "constant", "constant_with_warmup"))
    add("--warmup_steps", type=number(int, 0), default=100, help="default: 100, released, which outlasts a short run")
    add("--save_steps", type=at_least_one, default=1000, help="steps between checkpoints (default: 1000, released)")
    add("--seed", type=int, default=42, help="of downsampling, order and dropout (default: 42, released)")
    add("--report_to", default="none", help="none (default), wandb or tensorboard")

    add = parser.add_argument_group("weights").add_argument
    add("--lora_r", type=at_least_one, default=16, help="default: 16, released")
    add("--lora_alpha", type=at_least_one, default=16, help="default: 16, released")
    add("--lora_dropout", type=number(float, 0, 0.99), default=0.05, help="default: 0.05, released")
    add(
        "--lora_target_modules",
        nargs="+",
        default=["gate_proj", "down_proj", "up_proj"],
        help="names as 'a b' or '[a, b]' (default: gate_proj down_proj up_proj, released)",
    )
    add("--full_finetuning", **flag, help="train all weights instead of LoRA")
    add("--load_in_8bit", **flag, help="quantise the base with bitsandbytes, as released")
    add("--load_in_4bit", **flag, help="the same in 4 bits")

    args = parser.parse_args(argv)
    args.lora_target_modules = [name for name in re.split(r"[\[\],\s'\"]+", " ".join(args.lora_target_modules)) if name]
    return args


# Rows


def downsampled(rows: list[dict], ratio: float, seed: int) -> list[dict]:
    """All flawed rows and int(flawed x ratio) of the satisfactory ones, in order; -1 keeps all."""
    good = [number for number, row in enumerate(rows) if row["judgment"] is None]
    keep = int((len(rows) - len(good)) * ratio)
    if ratio == -1 or keep >= len(good):
        return rows
    kept = set(random.Random(seed).sample(good, keep))
    return [row for number, row in enumerate(rows) if row["judgment"] is not None or number in kept]


def check_kinds(rows: list[dict], args: Namespace) -> None:
    """Raise UserError where the method has nothing to learn from."""
    flawed = sum(row["judgment"] is not None for row in rows)
    if args.method == "mle" and flawed == len(rows):
        raise UserError(f"data {args.data_path}: no judgment is null, and --method mle learns satisfactory rows alone")
    if args.method != "mle" and not flawed:
        raise UserError(f"data {args.data_path}: every judgment is null, and --method {args.method} learns from them")


def held_out(rows: list[dict], size: int, seed: int) -> tuple[list[dict], list[dict]]:
    """(training rows, held-out rows), both in their order."""
    if size >= len(rows):
        raise UserError(f"--val_set_size {size} leaves none of {len(rows)} rows to train on")
    chosen = set(random.Random(seed).sample(range(len(rows)), size))
    return [row for n, row in enumerate(rows) if n not in chosen], [rows[n] for n in sorted(chosen)]


def describe_cuts(encoded, rows: list[dict], cutoff: int) -> None:
    """Say which rows did not fit: the end of a response is kept, and of a prompt."""
    for what, numbers in (("response", encoded.cut_responses), ("prompt", encoded.cut_prompts)):
        if numbers:
            names = ", ".join(str(rows[n].get("id", n)) for n in numbers[:8]) + (", ..." if len(numbers) > 8 else "")
            say(f"{what} longer than --cutoff_len {cutoff} allows in {len(numbers)} rows (id {names}): its end is kept")


# Model


def check_target_modules(model, names: list[str]) -> None:
    """Raise UserError where a name is that of no weight matrix, and say which there are."""
    head = model.get_output_embeddings()
    matrices = {
        path.rpartition(".")[2]
        for path, module in model.named_modules()
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and module is not head and "embed" not in path
    }
    missing = [name for name in names if name not in matrices]
    if missing:
        raise UserError(f"--lora_target_modules {' '.join(missing)}: the model has {', '.join(sorted(matrices))}")


def load_model(args: Namespace):
    """The base, speaking log-probabilities, under LoRA or all of it trainable."""
    import torch

    from alignment.adapters import quantisation
    from alignment.training.logps import speak_logps

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() and not args.full_finetuning else torch.float32
    device = {"": int(os.environ.get("LOCAL_RANK", 0)) if on_gpu else "cpu"}
    settings = {"dtype": dtype, "device_map": device}
    settings |= quantisation(quantised(args), str(dtype).removeprefix("torch."))
    model = speak_logps(load_pretrained("AutoModelForCausalLM", args.base_model, **settings))
    model.config.use_cache = False
    if args.full_finetuning:
        return model
    check_target_modules(model, args.lora_target_modules)
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantised(args):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        bias="none",
        target_modules=args.lora_target_modules,
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model, config)


# Run


def is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    if is_main():
        print(text, flush=True)


def check_arguments(args: Namespace) -> None:
    """Raise UserError for what the flags alone tell, before anything is read."""
    world = int(os.environ.get("WORLD_SIZE", 1))
    if args.batch_size % (args.micro_batch_size * world):
        raise UserError(
            f"--batch_size {args.batch_size} is no multiple of "
            f"--micro_batch_size {args.micro_batch_size} x {world} processes"
        )
    if args.train_on_inputs:
        raise UserError("--train_on_inputs True: the equations have no term for the prompt; leave it False")
    if args.load_in_8bit and args.load_in_4bit:
        raise UserError("--load_in_8bit and --load_in_4bit contradict each other; give one of them")
    if args.full_finetuning and quantised(args):
        raise UserError(f"--full_finetuning and --load_in_{quantised(args)} contradict each other")
    if args.method != "cut" and (args.legacy_loss or args.calibrate_threshold):
        raise UserError(f"--legacy_loss and --calibrate_threshold belong to --method cut, not {args.method}")
    if args.resume_from_checkpoint in ("False", "false", ""):
        args.resume_from_checkpoint = None
    check_model(args.base_model)
    check_output_dir(args.output_dir)
    check_resumption(args)


def check_resumption(args: Namespace) -> None:
    """Raise UserError where there is no checkpoint to go on from, or there are and nobody asked to."""
    checkpoints = sorted(args.output_dir.glob("checkpoint-*/trainer_state.json"))
    if args.resume_from_checkpoint in ("True", "true"):
        if not checkpoints:
            raise UserError(f"--resume_from_checkpoint True: {args.output_dir} has no checkpoint yet")
        args.resume_from_checkpoint = str(max(checkpoints, key=step_of).parent)
    elif args.resume_from_checkpoint:
        if not (Path(args.resume_from_checkpoint) / "trainer_state.json").is_file():
            raise UserError(f"--resume_from_checkpoint {args.resume_from_checkpoint} has no trainer_state.json")
    elif checkpoints and not run_card_path(args.output_dir).exists():
        raise UserError(
            f"{args.output_dir} has checkpoints of a run that did not end; add --resume_from_checkpoint True, "
            "or remove the folder"
        )
    elif run_card_path(args.output_dir).exists() and args.output_dir.exists():
        raise UserError(f"{args.output_dir} holds another run, finished; give another --output_dir, or remove it")


def step_of(path: Path) -> int:
    return int(path.parent.name.partition("-")[2])


def describe_warmup(warmup: int, steps: int, peak: float) -> None:
    """Say where warm-up outlasts the run, and what the learning rate will reach (C13)."""
    if warmup >= steps:
        reached = peak * (steps - 1) / warmup
        say(
            f"warm-up of {warmup} steps outlasts the run of {steps}: the learning rate climbs to {reached:.3g}, never "
            f"reaches {peak:.3g} and never falls; give --warmup_steps {max(1, steps // 10)} for a tenth of the run"
        )


def training_arguments(args: Namespace):
    import torch
    from transformers import TrainingArguments

    on_gpu = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", 1))
    if on_gpu and world == 1 and torch.cuda.device_count() > 1:
        raise UserError("one process sees several GPUs: start with torchrun, or set CUDA_VISIBLE_DEVICES to one")
    return TrainingArguments(
        output_dir=str(args.output_dir),
        seed=args.seed,
        report_to=args.report_to,
        use_cpu=not on_gpu,
        per_device_train_batch_size=args.micro_batch_size,
        per_device_eval_batch_size=args.micro_batch_size,
        gradient_accumulation_steps=args.batch_size // args.micro_batch_size // world,
        num_train_epochs=args.num_epochs,
        learning_rate=args.learning_rate,
        lr_scheduler_type=args.lr_scheduler,
        warmup_steps=args.warmup_steps,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        optim="adamw_torch",
        logging_steps=1,
        save_steps=args.save_steps,
        save_total_limit=2,
        label_names=["labels"],
        eval_strategy="epoch" if args.val_set_size else "no",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )


def make_trainer(args: Namespace, model, items: list, eval_items: list, pad_id: int):
    from alignment.training.cut_lines import collate_lines, has_dropout
    from alignment.training.cut_trainer import Loss, UnlikelihoodTrainer

    loss = Loss(
        method=args.method,
        threshold=args.threshold,
        alpha=args.weight_unlike,
        gamma=args.gamma,
        floor=args.probability_floor,
        legacy=args.legacy_loss,
        detect_apart=has_dropout(model) and not args.legacy_loss,
    )
    return UnlikelihoodTrainer(
        model=model,
        args=training_arguments(args),
        loss=loss,
        items=items,
        eval_items=eval_items,
        collate=partial(collate_lines, pad_id=pad_id),
    )


def calibrated(args: Namespace, model, encoded, pad_id: int) -> float:
    """The threshold that blames --calibrate_threshold of the flawed rows' tokens under the model as it is."""
    import torch

    from alignment.training.cut_lines import calibrate, flawed_logps

    margins = torch.cat([row.margin for row in flawed_logps(model, encoded, pad_id).values()])
    threshold = calibrate(margins, args.calibrate_threshold)
    say(f"--threshold {threshold:.6g} blames {args.calibrate_threshold:.1%} of {len(margins):,} tokens")
    return threshold


def save(trainer, tokenizer, args: Namespace) -> None:
    """Write adapter or checkpoint, tokenizer and base card. UserError where what is read back was not trained."""
    import torch
    from safetensors.torch import load_file

    from alignment.adapters import write_base_card

    trainer.save_model(str(args.output_dir))
    if not trainer.is_world_process_zero():
        return
    tokenizer.save_pretrained(args.output_dir)
    model = trainer.accelerator.unwrap_model(trainer.model)
    trained = model.state_dict()
    if not args.full_finetuning:
        from peft import get_peft_model_state_dict

        write_base_card(args.output_dir, args.base_model, quantised(args))
        trained = get_peft_model_state_dict(model)
    saved = {}
    for path in args.output_dir.glob("*.safetensors"):
        saved |= load_file(path)
    if not saved or not all(torch.equal(tensor, trained[name].cpu()) for name, tensor in saved.items()):
        raise UserError(f"{args.output_dir}: the saved weights are not the trained ones; is the disk full?")


def main(args: Namespace) -> None:
    if finished_with(args.output_dir, args) and args.output_dir.is_dir():
        return say(f"{args.output_dir} holds this very run, finished; nothing to do")
    given = Namespace(**vars(args))  # for the run card, before anything is settled
    check_arguments(args)

    from transformers import set_seed

    from alignment.judging import read_judgments
    from alignment.training.cut_lines import encode_rows, load_templates
    from alignment.training.history import check_reports

    check_reports([args.report_to])
    set_seed(args.seed)
    read = [row | {"row": number} for number, row in enumerate(read_judgments(args.data_path)[: args.limit])]
    check_kinds(read, args)
    rows, eval_rows = held_out(downsampled(read, args.downsample, args.seed), args.val_set_size, args.seed)
    tokenizer = load_tokenizer(args.base_model)
    templates = load_templates(args.prompt_template_name, tokenizer)
    encoded, eval_encoded = (encode_rows(part, args.method, templates, args.cutoff_len) for part in (rows, eval_rows))
    describe_cuts(encoded, rows, args.cutoff_len)

    model = load_model(args)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    if args.calibrate_threshold:
        args.threshold = calibrated(args, model, encoded, pad_id)
    trainer = make_trainer(args, model, encoded.items, eval_encoded.items, pad_id)
    steps = math.ceil(math.ceil(len(encoded.items) / args.batch_size) * args.num_epochs)
    counts = {
        "rows": len(read),
        "flawed": sum(row["judgment"] is not None for row in read),
        "left out by --downsample": len(read) - len(rows) - len(eval_rows),
        "held out": len(eval_rows),
        "trained on": len(encoded.items),
        "cut responses": len(encoded.cut_responses),
        "cut prompts": len(encoded.cut_prompts),
        "steps": steps,
        "trainable weights": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
    }
    say(table([(f"{args.data_path}, --method {args.method}", ""), *counts.items()]))
    describe_warmup(args.warmup_steps, steps, args.learning_rate)

    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

    save(trainer, tokenizer, args)
    if is_main():
        last = next(line for line in reversed(trainer.state.log_history) if "loss" in line)
        inputs = [Path(args.data_path)] if Path(args.data_path).is_file() else []
        settled = {"threshold": args.threshold, "last step": last}
        write_run_card(args.output_dir, given, counts=counts | settled, inputs=inputs)
    say(f"{args.output_dir}: {'checkpoint' if args.full_finetuning else 'adapter'} saved and read back")


if __name__ == "__main__":
    run(parse_args, main)
