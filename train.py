#!/usr/bin/env python
"""Train on HF Trainer: supervised (sft), reward model (reward), DPO (dpo) or ORPO (orpo).

    python train.py --objective reward --model_name_or_path MODEL --data_path comparison.json --output_dir outputs/rm
    python train.py --objective reward ... --data_path hh.jsonl oasst1.parquet webgpt.jsonl --data_shares 0.72 0.14 0.14
    torchrun --nproc_per_node=4 train.py --objective sft ...       # FSDP: --fsdp "full_shard auto_wrap"

Reads rows as `alignment/training_data.py` lists them. Writes into --output_dir: the model and its tokenizer,
history.jsonl and history.png, check.json, and beside it <output_dir>.run.json. Exits with 0 only after the saved model
was loaded again by a fresh process and gave the same rewards or log-probabilities. All flags of transformers'
TrainingArguments are taken beside those below; docs/training.md numbers the details.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.adapters import ALL_LINEAR, add_lora, quantisation, quantised, write_base_card
from alignment.command_line import ArgumentParser, UserError, boolean, is_first, number, run, say
from alignment.limits import add_limit_arguments
from alignment.model_cards import write_card
from alignment.pretrained import check_model, contents, first_line, fit_embeddings, load_pretrained, training_tokenizer
from alignment.run_cards import Run, checkpoint_to_resume, claim
from alignment.templates import load_template
from alignment.training import let_memory_grow
from alignment.training_data import OBJECTIVES, check_shares, control, counts, mixed, read_parts

# Constants of the papers: ALMoST's released commands, Janus's training table
DEFAULTS = {
    "sft": dict(learning_rate=2e-5, weight_decay=0.0, num_train_epochs=3.0, model_max_length=512),
    "reward": dict(learning_rate=2e-5, weight_decay=0.1, num_train_epochs=1.0, model_max_length=1024),
    "dpo": dict(learning_rate=5e-7, weight_decay=0.0, num_train_epochs=2.0, model_max_length=2048),
    "orpo": dict(learning_rate=5e-6, weight_decay=0.0, num_train_epochs=2.0, model_max_length=4096),
}
# Delta learning (arXiv 2507.06187), where it differs from dpo
LENGTH_NORMALIZED = dict(learning_rate=5e-8, num_train_epochs=1.0, beta=5.0)
MADE = {
    "sft": "A policy, fine-tuned on written responses",
    "reward": "A reward model, trained on pairs of responses",
    "dpo": "A policy, trained on pairs of responses by DPO",
    "orpo": "A policy, trained on pairs of responses by ORPO",
}
SAME_NAME = (  # ours and TrainingArguments'
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps gradient_checkpointing bf16 "
    "fp16 num_train_epochs max_steps learning_rate weight_decay lr_scheduler_type optim seed eval_steps save_strategy "
    "save_steps save_total_limit logging_steps report_to"
).split()
UNSHARDED_OPTIMISERS = ("bnb", "adamw_8bit", "paged", "lion", "ademamix", "adafactor")  # no DTensor goes into these


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    flag = functools.partial(parser.add_argument)
    switch = dict(type=boolean, nargs="?", const=True, default=False, metavar="BOOL")
    positive, share = number(int, 1), number(float, 0)
    # what and from what
    flag("--objective", choices=OBJECTIVES, help="default sft, or reward with --train_reward_model")
    flag("--train_reward_model", **switch, help="ALMoST's spelling of --objective reward")
    flag("--model_name_or_path", required=True, help="any causal model of transformers: a folder or a hub name")
    flag("--cache_dir", help="where transformers keeps what it downloads")
    shown = ".json, .jsonl, .csv, also .gz, .parquet, or a name on the hub; of several files all, one after the other"
    flag("--data_path", nargs="+", required=True, metavar="DATA", help=shown)
    shown = "for each --data_path its share (Janus's reward model: 0.72 0.14 0.14): the largest mixture without repeats"
    flag("--data_shares", type=number(float, 0, 1, above=True), nargs="+", metavar="SHARE", help=shown)
    flag("--ties", choices=("second",), help="of equal scores the second wins, as released; default: left out")
    flag("--eval_data_path", help="the same for evaluation; evaluated at --eval_strategy and at the end")
    flag("--output_dir", type=Path, required=True, help="where the model goes")
    flag("--limit", type=positive, help="only the first N rows, or of a mixture N at most; default all")
    flag("--output_key", default="output", help="sft: the column that is learned, as chosen of pairs; default output")
    flag("--template", default="almost", help="almost | alpaca | mistral, chatml (Janus) | chat; default almost")
    flag("--model_max_length", type=positive, help="tokens; default 512 sft, 1024 reward, 2048 dpo, 4096 orpo")
    # objectives
    flag("--packing", **switch, help="sft: several rows in a line, none sees another")
    flag("--beta", type=share, help="DPO's beta; default 0.1 (Janus)")
    shown = (
        "dpo: log-ratios divided by the response's tokens, its end token among them. The defaults are delta learning's "
        "then: --beta 5, --learning_rate 5e-8, --num_train_epochs 1, --warmup_ratio 0.03"
    )
    flag("--length_normalized", **switch, help=shown)
    flag("--orpo_alpha", type=share, default=0.1, help="weight of ORPO's odds-ratio term; default 0.1 (Janus)")
    flag("--normalize_reward", **switch, help="leave the rewards' mean and deviation in the config, for score()")
    flag("--control", choices=("length", "random"), help="what wins a training pair instead; default neither")
    # LoRA
    flag("--lora_r", type=number(int, 0), default=0, help="rank; default 0: all weights are trained")
    flag("--lora_alpha", type=share, default=16, help="default 16")
    flag("--lora_dropout", type=number(float, 0, 1), default=0.0, help="default 0")
    flag("--lora_target_modules", nargs="+", default=[ALL_LINEAR], help="names of modules; default all linear ones")
    flag("--load_in_8bit", **switch, help="quantise the frozen base with bitsandbytes; needs --lora_r")
    flag("--load_in_4bit", **switch, help="the same in 4 bits")
    # model and batches
    flag("--attn_implementation", help="sdpa, flash_attention_2, ...; default transformers' choice")
    flag("--per_device_train_batch_size", type=positive, default=8, help="items a device on average; default 8")
    flag("--per_device_eval_batch_size", type=positive, default=8, help="longest items that fit a batch; default 8")
    flag("--gradient_accumulation_steps", type=positive, default=1, help="micro-batches a step and device; default 1")
    flag("--gradient_checkpointing", **switch, help="keep no activations; slower, smaller")
    flag("--bf16", **switch, help="compute in bf16; weights in training stay fp32 without LoRA")
    flag("--fp16", **switch, help="compute in fp16")
    flag("--tf32", type=boolean, nargs="?", const=True, help="TF32 matrix products, where CUDA has them")
    # optimiser
    flag("--num_train_epochs", type=number(float, 0, above=True), help="default 3 sft, 1 reward, 2 dpo and orpo")
    flag("--max_steps", type=positive, default=-1, help="stop after N steps; default -1: by epochs")
    flag("--learning_rate", type=share, help="default 2e-5 sft and reward, 5e-7 dpo, 5e-6 orpo")
    flag("--weight_decay", type=share, help="default 0.1 reward, 0 else")
    flag("--warmup_ratio", type=number(float, 0, 1), help="share of steps; default 0.03 sft and reward (ALMoST)")
    flag("--warmup_steps", type=share, help="steps; default 10 dpo and orpo (Janus)")
    flag("--lr_scheduler_type", default="cosine", help="default cosine")
    optim = "default adamw_torch_fused on CUDA, adamw_torch else; Janus: adamw_bnb_8bit (not under --fsdp)"
    flag("--optim", help=optim)
    flag("--seed", type=int, default=42, help="of the head's weights, the order of rows, --control; default 42")
    # logs, evaluation, checkpoints
    flag("--evaluation_strategy", "--eval_strategy", default="no", choices=("no", "steps", "epoch"), help="default no")
    flag("--eval_steps", type=share, help="default --logging_steps")
    flag("--save_strategy", default="no", choices=("no", "steps", "epoch"), help="checkpoints to resume from")
    flag("--save_steps", type=share, default=500, help="default 500")
    flag("--save_total_limit", type=positive, help="checkpoints kept; default all")
    shown = (
        "under --fsdp training goes on while a checkpoint is written; False: it waits, and no node holds a copy of its "
        "shards, 12 bytes a weight; default True"
    )
    flag("--async_save", **{**switch, "default": True}, help=shown)
    flag("--resume_from_checkpoint", help="a checkpoint's folder, or True for the newest whole one there is")
    flag("--logging_steps", type=share, default=1, help="default 1")
    flag("--report_to", nargs="+", default=["none"], help="wandb, tensorboard, ...; default none")
    # FSDP
    flag("--fsdp", default="", help='"full_shard auto_wrap", "shard_grad_op auto_wrap", with "offload"; default off')
    flag("--fsdp_transformer_layer_cls_to_wrap", help="default the model's own layer class")
    add_limit_arguments(parser)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Our flags, and under `trainer` those of TrainingArguments that are not ours."""
    parser = build_parser()
    words = parser.words(argv)
    args, rest = parser.parse_known_args(words)
    args.trainer = {}
    if rest:  # imports transformers
        from alignment.training.trainer_flags import trainer_flags

        args.trainer = trainer_flags(parser, rest)
    given = {word.split("=")[0] for word in words}
    if "--evaluation_strategy" in given:
        say("translated: --evaluation_strategy -> --eval_strategy")
    if "--warmup_ratio" in given:
        ratio = args.warmup_ratio
        say(f"translated: --warmup_ratio {ratio} -> --warmup_steps {ratio} (a share of all steps)")
    args.objective = args.objective or ("reward" if args.train_reward_model else "sft")
    if args.train_reward_model and args.objective != "reward":
        parser.error(f"--train_reward_model and --objective {args.objective} contradict each other")
    if args.length_normalized and args.objective != "dpo":
        parser.error("--length_normalized is for --objective dpo: its log-ratios are what is divided")
    normalized = LENGTH_NORMALIZED if args.length_normalized else {}
    for name, value in {"beta": 0.1, **DEFAULTS[args.objective], **normalized}.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.warmup_ratio is None and args.warmup_steps is None:
        args.warmup_steps = 10 if args.objective in ("dpo", "orpo") and not normalized else None
        args.warmup_ratio = None if args.warmup_steps else 0.03
    if args.packing and args.objective != "sft":
        parser.error("--packing is for --objective sft: pairs are compared whole")
    if (args.control or args.ties) and args.objective == "sft":
        parser.error(f"--{'control' if args.control else 'ties'} is for preferences, and --objective sft has none")
    if args.normalize_reward and args.objective != "reward":
        parser.error("--normalize_reward is for --objective reward")
    if args.output_key != "output" and args.objective != "sft":
        parser.error("--output_key is for --objective sft: pairs have chosen and rejected")
    if args.load_in_8bit and args.load_in_4bit:
        parser.error("--load_in_8bit and --load_in_4bit contradict each other; give one of them")
    if quantised(args) and not args.lora_r:
        parser.error("a quantised base is frozen: give --lora_r too")
    if args.evaluation_strategy != "no" and not args.eval_data_path:
        parser.error("--evaluation_strategy needs --eval_data_path")
    if len(set(args.data_path)) < len(args.data_path):
        parser.error(f"--data_path {' '.join(args.data_path)}: one comes twice")
    if args.data_shares:
        check_shares(args.data_shares, args.data_path)
    return args


def main(args: argparse.Namespace) -> None:
    let_memory_grow()
    check_model(args.model_name_or_path)
    inputs = [*args.data_path, *filter(None, [args.eval_data_path])]
    read = {"inputs": inputs, "models": [args.model_name_or_path], "cache_dir": args.cache_dir}
    try:
        with claim(args.output_dir, args, script=__file__, folder=True, **read) as held:
            if held.is_done():
                return say(held.already())
            resume = checkpoint_to_resume(held, args.resume_from_checkpoint)
            train_args = training_arguments(args)
            template, sets, row_counts = load_data(args)
            if args.plan:
                from alignment.training.rehearsal import plan_objective

                def build(items):
                    model = load_model(args, template, train_args)
                    return build_trainer(args, train_args, model, template, {"train": items})

                plan_objective(args, train_args, sets["train"], build)
            # What is not named here is free to go before a fresh process looks at what was saved
            trainer = build_trainer(args, train_args, load_model(args, template, train_args), template, sets)
            train_and_save(args, trainer, template, row_counts, held, resume)
    except KeyboardInterrupt:
        say(f"\ninterrupted; if {args.output_dir} has checkpoints, --resume_from_checkpoint True goes on from the last")
        sys.exit(130)


# Load


def load_data(args: argparse.Namespace):
    """The template, items of "train" and "eval", and counts by reason for the run card, which the first process has.

    It alone reads rows; the ids that it makes of them are in --output_dir, where all processes map them.
    """
    from alignment.training.encoded import KeptItems
    from alignment.training.ranks import check_seen, from_first

    check_seen(args.output_dir)

    @functools.cache
    def template():
        return load_template(args.template, training_tokenizer(args.model_name_or_path, args.cache_dir))

    folders, row_counts = from_first(lambda: encode_data(args, template))
    return template(), {name: KeptItems(each) for name, each in folders.items()}, row_counts


def encode_data(args: argparse.Namespace, load: Callable) -> tuple[dict[str, list[Path | None]], dict[str, dict]]:
    """Folders of the items of "train" and "eval", one a file of rows, and counts by reason. Rows are read before the
    template is loaded, as a mistake in them is told sooner so."""
    from alignment.training.batches import encode_examples
    from alignment.training.encoded import forget_others, kept, print_of

    how = {"objective": args.objective, "output_key": args.output_key, "ties": args.ties}
    read = {"train": read_parts(args.data_path, limit=None if args.data_shares else args.limit, **how)}
    if args.eval_data_path:
        read["eval"] = read_parts([args.eval_data_path], limit=args.limit, **how)
    template, folders, row_counts = load(), {}, {}
    settings = {"max_length": args.model_max_length, "cut": args.objective == "reward"}
    for name, parts in read.items():
        for part in parts:
            part.drop_unusable(own_turns=template.takes_own_turns)
        if args.data_shares and name == "train":
            parts = mixed(parts, args.data_shares, args.limit, args.seed)
        folders[name] = []
        for part in parts:
            if args.control and name == "train":
                part.examples = control(part.examples, args.control, args.seed)

            def encode(part=part):
                items, too_long = encode_examples(part.examples, template, place=part.place, **settings)
                return items, {"too long": too_long}

            rows = ([each.row, each.prompt, each.responses] for each in part.examples)
            printed = print_of(template.tokenizer, rows, template=template.name, **settings)
            folder, notes = kept(args.output_dir, printed, encode)
            template.say_spelled(part.source, [[each.prompt, *each.responses] for each in part.examples])
            part.drop(notes)
            folders[name].append(folder)
            say(f"{name}{f', {part.source}' if len(parts) > 1 else ''}: {part}")
        row_counts[name] = counts(parts)
    forget_others(args.output_dir, sum(folders.values(), []))
    return folders, row_counts


def training_arguments(args: argparse.Namespace):
    """TrainingArguments of today's transformers from flags as the papers spell them; what is translated is said."""
    import torch
    from transformers import TrainingArguments
    from transformers.utils import logging

    from alignment.training.history import check_reports
    from alignment.training.trainer_flags import check_works
    from alignment.training.trainers import use_first_gpu

    logging.set_verbosity_error()
    check_reports(args.report_to)
    values = {name: getattr(args, name) for name in SAME_NAME if getattr(args, name) is not None}
    values |= dict(
        output_dir=str(args.output_dir),
        eval_strategy=args.evaluation_strategy,
        disable_tqdm=True,
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
    )
    values |= dict(gradient_checkpointing_kwargs={"use_reentrant": False}) if args.gradient_checkpointing else {}
    values["warmup_steps"] = args.warmup_steps if args.warmup_ratio is None else args.warmup_ratio
    notes = []
    cuda = torch.cuda.is_available()
    values["use_cpu"] = not cuda
    values.setdefault("optim", "adamw_torch_fused" if cuda else "adamw_torch")
    if args.tf32 is not None:
        notes += [] if cuda else ["--tf32 -> left out: there is no CUDA device"]
        values |= {"tf32": args.tf32} if cuda else {}
    fsdp, fsdp_notes = translate_fsdp(args)
    if fsdp:
        os.environ["ACCELERATE_USE_FSDP"] = "true"  # or transformers loads all weights on every rank
    for note in notes + fsdp_notes:
        say(f"translated: {note}")
    try:
        train_args = TrainingArguments(**{**values, **fsdp, **args.trainer})
    except (ValueError, TypeError, ImportError, RuntimeError, OSError) as error:
        raise UserError(f"transformers refuses the arguments: {first_line(error)}") from error
    use_first_gpu(train_args)
    check_works(train_args)
    return train_args


def translate_fsdp(args: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    r"""--fsdp "full_shard auto_wrap" and --fsdp_transformer_layer_cls_to_wrap as fsdp_config of today's FSDP2."""
    if not args.fsdp or "fsdp_config" in args.trainer:
        return ({"fsdp": args.fsdp} if args.fsdp else {}), []
    words = args.fsdp.split()
    unknown = [word for word in words if word not in ("full_shard", "shard_grad_op", "auto_wrap", "offload", "True")]
    if unknown:
        raise UserError(f'--fsdp {unknown[0]!r} is unknown; give "full_shard auto_wrap" or "shard_grad_op auto_wrap"')
    shown = f'--fsdp "{args.fsdp}"'
    if "LOCAL_RANK" not in os.environ:
        return {}, [f"{shown} -> left out: torchrun has not started this process, so there is nothing to shard over"]
    if not can_shard():
        return {}, [f"{shown} -> left out: there is no CUDA device; processes share gradients over gloo"]
    if quantised(args):
        raise UserError(
            f"--load_in_{quantised(args)} and --fsdp: a quantised base is not sharded; leave out --fsdp, and every "
            "process holds it whole"
        )
    if any(name in (args.optim or "") for name in UNSHARDED_OPTIMISERS):
        raise UserError(
            f"--optim {args.optim} cannot step weights that FSDP shards; give adamw_torch, or adamw_torch_8bit, "
            "which needs the package torchao"
        )
    config: dict[str, Any] = {
        "version": 2,
        "reshard_after_forward": "shard_grad_op" not in words,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        # Of a checkpoint each rank writes its shards; the model at the end is saved whole
        "state_dict_type": "FULL_STATE_DICT" if args.trainer.get("save_only_model") else "SHARDED_STATE_DICT",
        "cpu_offload": "offload" in words,
        "cpu_ram_efficient_loading": True,
    }
    layer = layer_class(args)
    if layer:
        config["transformer_layer_cls_to_wrap"] = layer
    values: dict[str, Any] = {"fsdp": True, "fsdp_config": config}
    # Gradients are summed over ranks in each micro-batch: whole ones of all weights, kept until the last, do not fit
    values["accelerator_config"] = {"gradient_accumulation_kwargs": {"sync_each_batch": True}}
    if "offload" in words:
        values["ddp_backend"] = "cuda:nccl,cpu:gloo"  # NCCL alone moves no shard that is on the CPU
    return values, [f"{shown} -> fsdp_config {json.dumps(config)}"]


def can_shard() -> bool:
    """Whether accelerate shards here: it passes FSDP over, silently, where there are only CPUs."""
    import torch

    return torch.cuda.is_available()


def layer_class(args: argparse.Namespace) -> list[str] | None:
    """The layer to wrap: the one asked for where the model has it, else the model's own (a Mistral is no Llama)."""
    from transformers import AutoModelForCausalLM

    config = load_pretrained("AutoConfig", args.model_name_or_path, cache_dir=args.cache_dir)
    own = list(AutoModelForCausalLM._model_mapping[type(config)]._no_split_modules or [])
    asked = args.fsdp_transformer_layer_cls_to_wrap
    return [asked] if asked in own else own or None


def load_model(args: argparse.Namespace, template, train_args):
    """The model to train: with one label for a reward model, speaking log-probabilities else; LoRA around it."""
    import torch
    from transformers import set_seed

    from alignment.training.logps import speak_logps
    from alignment.training.unpadding import check_packing, unpad

    set_seed(args.seed)
    reward = args.objective == "reward"
    kind = "AutoModelForSequenceClassification" if reward else "AutoModelForCausalLM"
    kwargs: dict[str, Any] = dict(cache_dir=args.cache_dir, dtype=torch.float32)
    kwargs |= {"num_labels": 1} if reward else {}
    kwargs |= {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    if args.lora_r and args.bf16:
        kwargs["dtype"] = torch.bfloat16  # the base is frozen; adapters are fp32
    if quantised(args):
        kwargs |= quantisation(quantised(args), "bfloat16" if args.bf16 else "float32")
        kwargs |= {"device_map": {"": train_args.device}}
    model = load_pretrained(kind, args.model_name_or_path, **kwargs)
    fit_embeddings(model, template.tokenizer)
    model.config.use_cache = False
    model.config.prompt_template = template.name
    if reward:
        model.config.reward_max_length = args.model_max_length
        unpad(model)
    else:
        speak_logps(model)
    if args.packing:
        check_packing(model)
    if not args.lora_r:
        return model
    return add_lora(
        model,
        r=args.lora_r,
        alpha=args.lora_alpha,
        dropout=args.lora_dropout,
        targets=args.lora_target_modules,
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
        quantised=quantised(args),
        gradient_checkpointing=args.gradient_checkpointing,
    )


# Build


def build_trainer(args: argparse.Namespace, train_args, model, template, sets):
    from alignment.training import trainers
    from alignment.training.batches import collate, collate_packed, pack, shuffled

    steps = {
        "sft": trainers.sft_step,
        "reward": trainers.reward_step,
        "dpo": functools.partial(trainers.dpo_step, beta=args.beta, length_normalized=args.length_normalized),
        "orpo": functools.partial(trainers.orpo_step, alpha=args.orpo_alpha),
    }
    pad_id = template.tokenizer.pad_token_id
    make = functools.partial(collate, pad_id=pad_id)
    if args.packing:
        sets = {name: pack(shuffled(items, args.seed), args.model_max_length) for name, items in sets.items()}
        make = functools.partial(collate_packed, pad_id=pad_id)
    return trainers.AlignmentTrainer(
        step=steps[args.objective],
        collate=make,
        items=sets["train"],
        eval_items=sets.get("eval"),
        packed=args.packing,
        async_save=args.async_save,
        model=model,
        args=train_args,
        processing_class=template.tokenizer,
    )


# Run and save


def train_and_save(
    args: argparse.Namespace, trainer, template, row_counts: dict, held: Run, resume: Path | None
) -> None:
    from alignment.training.checkpoints import check_checkpoint, keep_step
    from alignment.training.limits import StopAtLimit
    from alignment.training.references import References
    from alignment.training.saving import save_trained

    if resume:
        check_checkpoint(trainer, resume)
        trainer.rows_per_step = keep_step(trainer.args, resume)
    if args.objective == "dpo":
        start = contents(args.model_name_or_path, args.cache_dir)
        trainer.add_callback(References(trainer, args.output_dir, start))
    held.begin_training()
    if args.budget_tokens or args.max_hours:
        trainer.add_callback(StopAtLimit(trainer, args))
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    final = evaluated(trainer) if args.eval_data_path else {}

    history = [line for line in trainer.state.log_history if "loss" in line]
    steps = trainer.state.global_step

    def cards(folder: Path) -> None:
        if args.lora_r:
            write_base_card(folder, args.model_name_or_path, quantised(args), args.cache_dir)
        numbers = {"rows": row_counts, "steps": steps, "last step": (history or [{}])[-1], "evaluation": final}
        write_card(folder, held, what=MADE[args.objective], template=args.template, numbers=numbers)

    kind = "reward" if args.objective == "reward" else "logps"
    verdict = save_trained(
        trainer, args.output_dir, template, kind=kind, reward_statistics=args.normalize_reward, also=cards
    )
    if is_first():
        say(f"saved and loaded again in a fresh process: {json.dumps(verdict)}")
        results = {"rows": row_counts, "check": verdict, "steps": steps, "last": history[-1:], "evaluation": final}
        held.finish(results)
        shown = {**(history or [{}])[-1], **final}
        told = [
            f"{name} {value:.4f}"
            for name, value in shown.items()
            if name in ("loss", "accuracy", "margin") or name.startswith("eval_")
        ]
        say(f"{args.output_dir}: {steps} steps; {', '.join(told)}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def evaluated(trainer) -> dict[str, float]:
    """The metrics of the model as trained: those of the last step, where it was evaluated then."""
    state = trainer.state
    done = [line for line in state.log_history if "eval_loss" in line and line["step"] == state.global_step]
    found = done[-1] if done else trainer.evaluate()
    return {name: value for name, value in found.items() if name.startswith("eval_")}


if __name__ == "__main__":
    run(parse_args, main)
