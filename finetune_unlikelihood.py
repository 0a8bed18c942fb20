"""CUT: a model learns from written judgments of its responses which of their tokens were wrong (arXiv 2312.14591).

    torchrun --nproc_per_node=8 finetune_unlikelihood.py --base_model saved_models/llama2-13b-chat-hf \\
        --data_path data/iter/train-alpaca-sample-iter1.json --output_dir saved_models/lora/cut-1plus-13b \\
        --batch_size 8 --micro_batch_size 1 --learning_rate 4e-4 --threshold 1.1 --weight_unlike 1 --downsample 0.25

Reads rows of instruction, input, output and judgment, null where the output is satisfactory, as in
alignment/judging/judgments.py, from .json, .jsonl, .parquet or the hub. Writes to --output_dir a LoRA adapter with its
tokenizer and base card, or with --full_finetuning a whole checkpoint; checkpoints, history.jsonl and history.png; and
beside it a run card.

--method trains one of the paper's baselines on the same rows instead, --control the same with judgments that say
nothing of their row. docs/cut.md numbers every detail.
"""

from __future__ import annotations

import math
import os
import random
import re
from argparse import Namespace
from functools import partial
from pathlib import Path

from alignment.adapters import add_lora, quantisation, quantised, write_base_card
from alignment.command_line import ArgumentParser, UserError, boolean, is_first, number, run, say, table
from alignment.judging.judgments import BARE, CONTROLS, controlled, downsampled, read_judgments
from alignment.limits import add_limit_arguments
from alignment.model_cards import write_card
from alignment.pretrained import check_model, load_pretrained, load_tokenizer, padding_id
from alignment.run_cards import checkpoint_to_resume, claim
from alignment.training import let_memory_grow

METHODS = ("cut", "mle", "forward_prediction", "hindsight")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    flag = {"type": boolean, "nargs": "?", "const": True, "default": False}
    at_least_one, from_0 = number(int, 1), number(float, 0)
    positive, share = number(float, 0, above=True), number(float, 0, 1)

    add = parser.add_argument_group("files").add_argument
    add("--base_model", required=True, help="folder or hub name of any causal model")
    add("--data_path", required=True, help="rows with judgments: .json, .jsonl, .parquet or a hub name")
    add("--output_dir", required=True, type=Path, help="folder of the adapter; checkpoints on the way are in it too")
    add("--prompt_template_name", default="alpaca", help="a template with a judgment slot (default: alpaca)")
    add("--resume_from_checkpoint", help="a checkpoint's folder, or True for the newest whole one there is")

    add = parser.add_argument_group("loss").add_argument
    add("--method", choices=METHODS, default="cut", help="cut (default) or a baseline; mle: satisfactory rows alone")
    shown = f"flawed rows learn with another's judgment (shuffled) or with {BARE!r} (bare); default: their own"
    add("--control", choices=CONTROLS, help=shown)
    add("--threshold", type=positive, default=1.1, help="lambda of eq. 5 (default: 1.1, released; paper: 1.1, 1.2)")
    add("--weight_unlike", "--alpha", type=from_0, default=1.0, help="alpha of eq. 6 (default: 1; offline 0.5)")
    add("--gamma", type=from_0, default=1.0, help="gamma of eq. 6; 0 is released (default: 1; the paper: 0.25 to 2)")
    add("--probability_floor", type=share, default=0.0, help="blame no token under this p(y_t|x,j) (default: 0, paper)")
    shown = {
        "metavar": "FRACTION",
        "help": "set --threshold so that the start blames this share of flawed rows' tokens",
    }
    add("--calibrate_threshold", type=number(float, 0, 1, above=True), **shown)
    add("--legacy_loss", **flag, help="the released code's loss: no gamma, and a mix by micro-batch (C1-C3)")

    add = parser.add_argument_group("rows").add_argument
    add("--downsample", type=number(float, -1), default=-1, help="satisfactory rows a flawed one (default: -1, all)")
    add(
        "--cutoff_len",
        type=number(int, 8),
        default=2048,
        help="tokens; more loses its beginning (default: 2048, released)",
    )
    add("--val_set_size", type=number(int, 0), default=0, help="rows held out and evaluated each epoch (default: 0)")
    add("--train_on_inputs", **flag, help="only False: no equation has a term for the prompt")
    add("--add_eos_token", **flag, help="accepted and without effect: EOS always closes the response, as released")
    add("--group_by_length", **flag, help="accepted and without effect: a step is always batched by length")
    add("--limit", type=at_least_one, help="use only this many rows from the start, for a trial")

    add = parser.add_argument_group("optimisation").add_argument
    add("--batch_size", type=at_least_one, default=8, help="rows per step, over all processes (default: 8, released)")
    add("--micro_batch_size", type=at_least_one, default=1, help="rows per forward, on average (default: 1, released)")
    add("--num_epochs", type=positive, default=1, help="default: 1, released")
    add("--learning_rate", type=positive, default=4e-4, help="its peak (default: 4e-4, released)")
    add("--lr_scheduler", default="cosine", choices=("cosine", "linear", "constant", "constant_with_warmup"))
    add("--warmup_steps", type=number(int, 0), default=100, help="default: 100, released, which outlasts a short run")
    add("--save_steps", type=at_least_one, default=1000, help="steps between checkpoints (default: 1000, released)")
    add("--seed", type=int, default=42, help="of downsampling, order and dropout (default: 42, released)")
    add("--report_to", default="none", help="none (default), wandb or tensorboard")

    add = parser.add_argument_group("weights").add_argument
    add("--lora_r", type=at_least_one, default=16, help="default: 16, released")
    add("--lora_alpha", type=at_least_one, default=16, help="default: 16, released")
    add("--lora_dropout", type=number(float, 0, 0.99), default=0.05, help="default: 0.05, released")
    mlp = ["gate_proj", "down_proj", "up_proj"]
    add(
        "--lora_target_modules",
        nargs="+",
        default=mlp,
        help="'a b' or '[a, b]' or all-linear (default: the three of the MLP, released)",
    )
    add("--full_finetuning", **flag, help="train all weights instead of LoRA")
    add("--load_in_8bit", **flag, help="quantise the base with bitsandbytes, as released")
    add("--load_in_4bit", **flag, help="the same in 4 bits")

    add_limit_arguments(parser)
    args = parser.parse_args(argv)
    args.lora_target_modules = [name for name in re.split(r"[\[\],\s'\"]+", " ".join(args.lora_target_modules)) if name]
    return args


# Rows


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


def load_model(args: Namespace):
    """The base, speaking log-probabilities, under LoRA or all of it trainable."""
    import torch

    from alignment.training.logps import speak_logps

    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() and not args.full_finetuning else torch.float32
    device = {"": int(os.environ.get("LOCAL_RANK", 0)) if on_gpu else "cpu"}
    settings = {"dtype": dtype, "device_map": device}
    settings |= quantisation(quantised(args), str(dtype).removeprefix("torch."))
    model = speak_logps(load_pretrained("AutoModelForCausalLM", args.base_model, **settings))
    model.config.use_cache = False
    model.config.prompt_template = args.prompt_template_name
    if args.full_finetuning:
        return model
    return add_lora(
        model,
        r=args.lora_r,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        targets=args.lora_target_modules,
        task_type="CAUSAL_LM",
        quantised=quantised(args),
    )


# Run


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
    if args.control and args.method == "mle":
        raise UserError(f"--control {args.control} is for methods that learn from judgments, and --method mle does not")
    check_model(args.base_model)


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

    from alignment.training.trainers import use_first_gpu

    on_gpu = torch.cuda.is_available()
    world = int(os.environ.get("WORLD_SIZE", 1))
    made = TrainingArguments(
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
        optim="adamw_torch_fused" if on_gpu else "adamw_torch",
        logging_steps=1,
        save_steps=args.save_steps,
        save_total_limit=2,
        label_names=["labels"],
        eval_strategy="epoch" if args.val_set_size else "no",
        remove_unused_columns=False,
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
    )
    use_first_gpu(made)
    return made


def make_trainer(args: Namespace, train_args, model, tokenizer, items, eval_items, threshold: float):
    from alignment.training.cut_lines import collate_lines, has_dropout
    from alignment.training.cut_trainer import Loss, UnlikelihoodTrainer

    loss = Loss(
        method=args.method,
        threshold=threshold,
        alpha=args.weight_unlike,
        gamma=args.gamma,
        floor=args.probability_floor,
        legacy=args.legacy_loss,
        detect_apart=has_dropout(model) and not args.legacy_loss,
    )
    return UnlikelihoodTrainer(
        model=model,
        args=train_args,
        loss=loss,
        items=items,
        eval_items=eval_items,
        collate=partial(collate_lines, pad_id=padding_id(tokenizer)),
        processing_class=tokenizer,
    )


def calibrated(args: Namespace, model, encoded, pad_id: int) -> float:
    """--threshold, or the one that blames --calibrate_threshold of the flawed rows' tokens under the model as it is."""
    import torch

    from alignment.training.cut_lines import calibrate, flawed_logps

    if not args.calibrate_threshold:
        return args.threshold
    margins = torch.cat([row.margin for row in flawed_logps(model, encoded, pad_id).values()])
    threshold = calibrate(margins, args.calibrate_threshold)
    say(f"--threshold {threshold:.6g} blames {args.calibrate_threshold:.1%} of {len(margins):,} tokens")
    return threshold


def main(args: Namespace) -> None:
    let_memory_grow()
    check_arguments(args)
    read = {"inputs": [args.data_path], "models": [args.base_model]}
    with claim(args.output_dir, args, script=__file__, folder=True, **read) as held:
        if held.is_done():
            return say(held.already())
        train_and_save(args, held, checkpoint_to_resume(held, args.resume_from_checkpoint))


def train_and_save(args: Namespace, held, resume: Path | None) -> None:
    from transformers import set_seed

    from alignment.training.checkpoints import check_checkpoint, keep_step
    from alignment.training.cut_lines import kept_rows, load_templates
    from alignment.training.history import check_reports
    from alignment.training.limits import StopAtLimit
    from alignment.training.ranks import check_seen
    from alignment.training.saving import save_trained

    check_reports([args.report_to])
    train_args = training_arguments(args)
    check_seen(args.output_dir)
    set_seed(args.seed)
    read = [row | {"row": number} for number, row in enumerate(read_judgments(args.data_path)[: args.limit])]
    check_kinds(read, args)
    rows, eval_rows = held_out(downsampled(read, args.downsample, args.seed), args.val_set_size, args.seed)
    if args.control:
        rows = controlled(rows, args.control, args.seed)
    tokenizer = load_tokenizer(args.base_model)
    templates = load_templates(args.prompt_template_name, tokenizer)
    settings = (args.method, templates, args.cutoff_len, args.output_dir)
    encoded, eval_encoded = kept_rows([rows, eval_rows], *settings)
    texts = [[row[name] for name in ("instruction", "input", "output", "judgment")] for row in rows]
    templates[1].say_spelled(args.data_path, texts)
    describe_cuts(encoded, rows, args.cutoff_len)

    if args.plan:
        from alignment.training.rehearsal import plan_cut

        def build(items):
            return make_trainer(args, train_args, load_model(args), tokenizer, items, [], args.threshold)

        plan_cut(args, train_args, encoded.items, build)
    model = load_model(args)
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    threshold = calibrated(args, model, encoded, padding_id(tokenizer))
    trainer = make_trainer(args, train_args, model, tokenizer, encoded.items, eval_encoded.items, threshold)
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
        "trainable weights": trainable,
    }
    del model  # so that it can go before a fresh process looks at what was saved
    method = f"{args.method}, --control {args.control}" if args.control else args.method
    say(table([(f"{args.data_path}, --method {method}", ""), *counts.items()]))
    describe_warmup(args.warmup_steps, steps, args.learning_rate)

    if resume:
        check_checkpoint(trainer, resume)
        trainer.rows_per_step = keep_step(trainer.args, resume)
    held.begin_training()
    if args.budget_tokens or args.max_hours:
        trainer.add_callback(StopAtLimit(trainer, args))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)

    last = next(line for line in reversed(trainer.state.log_history) if "loss" in line)

    def cards(folder: Path) -> None:
        if not args.full_finetuning:
            write_base_card(folder, args.base_model, quantised(args))
        told = "A policy, trained on written judgments of its responses"
        numbers = counts | {"threshold": threshold, "last step": last}
        write_card(folder, held, what=f"{told} ({method})", template=args.prompt_template_name, numbers=numbers)

    verdict = save_trained(trainer, args.output_dir, templates[0], kind="logps", also=cards)
    if is_first():
        held.finish(counts | {"threshold": threshold, "last step": last, "check": verdict})
    what = "checkpoint" if args.full_finetuning else "adapter"
    say(f"{args.output_dir}: {what} saved, and loaded again by a fresh process that found it the same")


if __name__ == "__main__":
    run(parse_args, main)
