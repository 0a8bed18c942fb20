#!/usr/bin/env python
"""Train on HF Trainer: supervised (sft), reward model (reward), DPO (dpo) or ORPO (orpo).

    python train.py --objective reward --model_name_or_path MODEL --data_path comparison.json --output_dir outputs/rm
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
import subprocess
import sys
from pathlib import Path
from typing import Any

from alignment.adapters import quantised
from alignment.command_line import REPOSITORY, ArgumentParser, UserError, boolean, nearest, number, run
from alignment.run_cards import check_output_dir, finished_with, write_run_card
from alignment.training_data import OBJECTIVES, control, counts, read_examples, report, usable

# Constants of the papers: ALMoST's commands (papers' sections 1.5, 1.6), Janus's training table (3.2)
DEFAULTS = {
    "sft": dict(learning_rate=2e-5, weight_decay=0.0, num_train_epochs=3.0, model_max_length=512),
    "reward": dict(learning_rate=2e-5, weight_decay=0.1, num_train_epochs=1.0, model_max_length=1024),
    "dpo": dict(learning_rate=5e-7, weight_decay=0.0, num_train_epochs=2.0, model_max_length=2048),
    "orpo": dict(learning_rate=5e-6, weight_decay=0.0, num_train_epochs=2.0, model_max_length=4096),
}
SAME_NAME = (  # ours and TrainingArguments'
    "per_device_train_batch_size per_device_eval_batch_size gradient_accumulation_steps gradient_checkpointing bf16 "
    "fp16 num_train_epochs max_steps learning_rate weight_decay lr_scheduler_type optim seed eval_steps save_strategy "
    "save_steps save_total_limit logging_steps report_to"
).split()
UNSHARDED_OPTIMISERS = ("bnb", "adamw_8bit", "paged", "lion", "ademamix", "adafactor")  # no DTensor goes into these
RANK = int(os.environ.get("RANK", 0))


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
    flag("--data_path", required=True, help=".json, .jsonl, .parquet or a data set's name on the hub")
    flag("--eval_data_path", help="the same for evaluation; evaluated at --eval_strategy and at the end")
    flag("--output_dir", type=Path, required=True, help="where the model goes")
    flag("--limit", type=positive, help="only the first N rows, for a trial; default all")
    flag("--template", default="almost", help="almost | alpaca | mistral (Janus) | chat; default almost")
    flag("--model_max_length", type=positive, help="tokens; default 512 sft, 1024 reward, 2048 dpo, 4096 orpo")
    # objectives
    flag("--packing", **switch, help="sft: several rows in a line, none sees another")
    flag("--beta", type=share, default=0.1, help="DPO's beta; default 0.1 (Janus)")
    flag("--orpo_alpha", type=share, default=0.1, help="weight of ORPO's odds-ratio term; default 0.1 (Janus)")
    flag("--normalize_reward", **switch, help="leave the rewards' mean and deviation in the config, for score()")
    flag("--control", choices=("length", "random"), help="what wins a training pair instead; default neither")
    # LoRA
    flag("--lora_r", type=number(int, 0), default=0, help="rank; default 0: all weights are trained")
    flag("--lora_alpha", type=share, default=16, help="default 16")
    flag("--lora_dropout", type=number(float, 0, 1), default=0.0, help="default 0")
    flag("--lora_target_modules", nargs="+", default=["all-linear"], help="names of modules; default all linear ones")
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
    flag("--optim", default="adamw_torch", help="default adamw_torch; Janus: adamw_bnb_8bit (not under --fsdp)")
    flag("--seed", type=int, default=42, help="of the head's weights, the order of rows, --control; default 42")
    # logs, evaluation, checkpoints
    flag("--evaluation_strategy", "--eval_strategy", default="no", choices=("no", "steps", "epoch"), help="default no")
    flag("--eval_steps", type=share, help="default --logging_steps")
    flag("--save_strategy", default="no", choices=("no", "steps", "epoch"), help="checkpoints to resume from")
    flag("--save_steps", type=share, default=500, help="default 500")
    flag("--save_total_limit", type=positive, help="checkpoints kept; default all")
    flag("--resume_from_checkpoint", help="a checkpoint folder, or True for the last in --output_dir")
    flag("--logging_steps", type=share, default=1, help="default 1")
    flag("--report_to", nargs="+", default=["none"], help="wandb, tensorboard, ...; default none")
    # FSDP
    flag("--fsdp", default="", help='"full_shard auto_wrap", "shard_grad_op auto_wrap", with "offload"; default off')
    flag("--fsdp_transformer_layer_cls_to_wrap", help="default the model's own layer class")
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Our flags, and under `trainer` those of TrainingArguments that are not ours."""
    parser = build_parser()
    argv = list(sys.argv[1:] if argv is None else argv)
    words = [parser._underscored(word) for word in argv]
    args, rest = parser.parse_known_args(words)
    args.trainer = trainer_flags(parser, rest) if rest else {}
    args.objective = args.objective or ("reward" if args.train_reward_model else "sft")
    if args.train_reward_model and args.objective != "reward":
        parser.error(f"--train_reward_model and --objective {args.objective} contradict each other")
    for name, value in DEFAULTS[args.objective].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.warmup_ratio is None and args.warmup_steps is None:
        args.warmup_steps = 10 if args.objective in ("dpo", "orpo") else None
        args.warmup_ratio = None if args.warmup_steps else 0.03
    if args.packing and args.objective != "sft":
        parser.error("--packing is for --objective sft: pairs are compared whole")
    if args.control and args.objective == "sft":
        parser.error("--control replaces preferences, and --objective sft has none")
    if args.normalize_reward and args.objective != "reward":
        parser.error("--normalize_reward is for --objective reward")
    if args.load_in_8bit and args.load_in_4bit:
        parser.error("--load_in_8bit and --load_in_4bit contradict each other; give one of them")
    if quantised(args) and not args.lora_r:
        parser.error("a quantised base is frozen: give --lora_r too")
    if args.evaluation_strategy != "no" and not args.eval_data_path:
        parser.error("--evaluation_strategy needs --eval_data_path")
    return args


def trainer_flags(parser: ArgumentParser, rest: list[str]) -> dict[str, Any]:
    """Flags of TrainingArguments that the parser does not spell out. Imports transformers only here."""
    from transformers import HfArgumentParser, TrainingArguments

    theirs = HfArgumentParser(TrainingArguments)
    given = [word.split("=")[0].replace("-", "_").replace("__", "--", 1) for word in rest if word.startswith("--")]
    known = {option: action.dest for action in theirs._actions for option in action.option_strings}
    for option in given or rest:
        if option not in known:
            parser.error(f"unknown argument {option}{nearest(option, [*parser._option_string_actions, *known])}")
    values = vars(theirs.parse_args([*rest, "--output_dir", "."]))
    return {known[option]: values[known[option]] for option in given}


def main(args: argparse.Namespace) -> None:
    say = print if RANK == 0 else (lambda *words: None)
    try:
        if finished_before(args):
            return say(f"{args.output_dir} holds this very run, finished; nothing to do")
        template, sets, row_counts = load_data(args, say)
        train_args = training_arguments(args, say)
        model = load_model(args, template, train_args)
        trainer = build_trainer(args, train_args, model, template, sets)
        train_and_save(args, trainer, template, row_counts, say)
    except KeyboardInterrupt:
        say(f"\ninterrupted; if {args.output_dir} has checkpoints, --resume_from_checkpoint True goes on from the last")
        sys.exit(130)


# Load


def finished_before(args: argparse.Namespace) -> bool:
    """Whether the output folder holds this run. Raises UserError where it holds another and none is to be resumed."""
    check_output_dir(args.output_dir)
    folder = args.output_dir
    if args.resume_from_checkpoint not in (None, "False", "false"):
        return False
    if finished_with(folder, args) and (folder / "check.json").exists():
        return True
    held = sorted(
        path.name for pattern in ("*.safetensors", "history.jsonl", "checkpoint-*") for path in folder.glob(pattern)
    )
    if held:
        raise UserError(
            f"output directory {folder} holds another run ({', '.join(held[:3])}); give another --output_dir, or "
            "--resume_from_checkpoint True to go on with it"
        )
    return False


def load_data(args: argparse.Namespace, say):
    """The template, items of "train" and "eval", and counts by reason for the run card."""
    from alignment.pretrained import check_model, training_tokenizer
    from alignment.templates import load_template
    from alignment.training.batches import encode_examples

    check_model(args.model_name_or_path)
    sets, row_counts = {}, {}
    examples = {"train": read_examples(args.data_path, args.objective, args.limit)}
    if args.eval_data_path:
        examples["eval"] = read_examples(args.eval_data_path, args.objective, args.limit)
    tokenizer = training_tokenizer(args.model_name_or_path, args.cache_dir)
    template = load_template(args.template, tokenizer)
    for name, read in examples.items():
        kept, dropped = usable(read)
        if args.control and name == "train":
            kept = control(kept, args.control, args.seed)
        sets[name], too_long = encode_examples(kept, template, args.model_max_length, cut=args.objective == "reward")
        dropped |= {"too long": too_long} if too_long else {}
        row_counts[name] = counts(len(read), len(sets[name]), dropped)
        say(f"{name}: {len(read):,} rows, {len(sets[name]):,} kept" + (f"; dropped {report(dropped)}" * bool(dropped)))
        if not sets[name]:
            path = args.data_path if name == "train" else args.eval_data_path
            raise UserError(f"data {path}: all {len(read)} rows were dropped: {report(dropped)}")
    return template, sets, row_counts


def training_arguments(args: argparse.Namespace, say):
    """TrainingArguments of today's transformers from flags as the papers spell them; what is translated is said."""
    import torch
    from transformers import TrainingArguments
    from transformers.utils import logging

    from alignment.training.history import check_reports

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
    given = {word.split("=")[0] for word in sys.argv}
    notes = ["--evaluation_strategy -> --eval_strategy"] if "--evaluation_strategy" in given else []
    values["warmup_steps"] = args.warmup_steps if args.warmup_ratio is None else args.warmup_ratio
    if args.warmup_ratio is not None and "--warmup_ratio" in given:
        notes.append(f"--warmup_ratio {args.warmup_ratio} -> --warmup_steps {args.warmup_ratio} (a share of all steps)")
    cuda = torch.cuda.is_available()
    values["use_cpu"] = not cuda
    if args.tf32 is not None:
        notes += [] if cuda else ["--tf32 -> left out: there is no CUDA device"]
        values |= {"tf32": args.tf32} if cuda else {}
    fsdp, fsdp_notes = translate_fsdp(args)
    for note in notes + fsdp_notes:
        say(f"translated: {note}")
    try:
        train_args = TrainingArguments(**{**values, **fsdp, **args.trainer})
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"transformers refuses the arguments: {str(error).splitlines()[0]}") from error
    if train_args.n_gpu > 1:
        say("several GPUs and one process: the first is used; start with torchrun --nproc_per_node=N to use N")
        train_args._n_gpu = 1
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
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return {}, [f"{shown} -> left out: there is one process, and nothing to shard over"]
    if not can_shard():
        return {}, [f"{shown} -> left out: there is no CUDA device; processes share gradients over gloo"]
    if any(name in args.optim for name in UNSHARDED_OPTIMISERS):
        raise UserError(
            f"--optim {args.optim} cannot step weights that FSDP shards; give adamw_torch, or adamw_torch_8bit, "
            "which needs the package torchao"
        )
    config: dict[str, Any] = {
        "version": 2,
        "reshard_after_forward": "shard_grad_op" not in words,
        "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
        "state_dict_type": "FULL_STATE_DICT",
        "cpu_offload": "offload" in words,
    }
    layer = layer_class(args)
    if layer:
        config["transformer_layer_cls_to_wrap"] = layer
    return {"fsdp": True, "fsdp_config": config}, [f"{shown} -> fsdp_config {json.dumps(config)}"]


def can_shard() -> bool:
    """Whether accelerate shards here: it passes FSDP over, silently, where there are only CPUs."""
    import torch

    return torch.cuda.is_available()


def layer_class(args: argparse.Namespace) -> list[str] | None:
    """The layer to wrap: the one asked for where the model has it, else the model's own (a Mistral is no Llama)."""
    from transformers import AutoModelForCausalLM

    from alignment.pretrained import load_pretrained

    config = load_pretrained("AutoConfig", args.model_name_or_path, cache_dir=args.cache_dir)
    own = list(AutoModelForCausalLM._model_mapping[type(config)]._no_split_modules or [])
    asked = args.fsdp_transformer_layer_cls_to_wrap
    return [asked] if asked in own else own or None


def load_model(args: argparse.Namespace, template, train_args):
    """The model to train: with one label for a reward model, speaking log-probabilities else; LoRA around it."""
    import torch
    from transformers import set_seed

    from alignment.adapters import quantisation
    from alignment.pretrained import fit_embeddings, load_pretrained
    from alignment.training.logps import speak_logps
    from alignment.training.unpadding import unpad

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
    return add_lora(args, model, reward) if args.lora_r else model


def add_lora(args: argparse.Namespace, model, reward: bool):
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    if quantised(args):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=args.gradient_checkpointing)
    elif args.gradient_checkpointing:
        model.enable_input_require_grads()
    targets = args.lora_target_modules
    config = LoraConfig(
        r=args.lora_r,
        lora_alpha=args.lora_alpha,
        lora_dropout=args.lora_dropout,
        target_modules=targets[0] if targets == ["all-linear"] else targets,
        task_type="SEQ_CLS" if reward else "CAUSAL_LM",
    )
    try:
        return get_peft_model(model, config)
    except ValueError as error:
        raise UserError(f"--lora_target_modules: {str(error).splitlines()[0]}") from error


# Build


def build_trainer(args: argparse.Namespace, train_args, model, template, sets):
    from alignment.training import trainers
    from alignment.training.batches import collate, collate_packed, pack, shuffled

    steps = {
        "sft": trainers.sft_step,
        "reward": trainers.reward_step,
        "dpo": functools.partial(trainers.dpo_step, beta=args.beta),
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
        model=model,
        args=train_args,
        processing_class=template.tokenizer,
    )


def add_references(args: argparse.Namespace, trainer) -> None:
    """DPO: log-probabilities under the model as it starts, computed once, kept under a print of model and data."""
    import torch
    from transformers import TrainerCallback

    from alignment.training.trainers import fingerprint

    sets = {"train": trainer.train_dataset} | ({"eval": trainer.eval_dataset} if trainer.eval_dataset else {})
    paths = {
        name: args.output_dir / f"reference-{name}-{fingerprint(trainer.model, data.items)}.pt"
        for name, data in sets.items()
    }

    class References(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            for name, path in paths.items():
                if not path.exists():
                    if args.resume_from_checkpoint:
                        raise UserError(f"cannot resume: {path} is missing, the reference's log-probabilities")
                    found = trainer.pair_logps(name)
                    if RANK == 0:
                        path.parent.mkdir(parents=True, exist_ok=True)
                        torch.save(found, path.with_suffix(".tmp"))
                        path.with_suffix(".tmp").rename(path)
                    trainer.accelerator.wait_for_everyone()
                trainer.references[name] = torch.load(path)

    trainer.add_callback(References())


# Run and save


def train_and_save(args: argparse.Namespace, trainer, template, row_counts: dict, say) -> None:
    from alignment.adapters import write_base_card

    if args.objective == "dpo":
        add_references(args, trainer)
    trainer.train(resume_from_checkpoint=checkpoint(args))
    final = evaluated(trainer) if args.eval_data_path else {}
    reward = args.objective == "reward"
    trainer.round_weights()
    if args.normalize_reward:
        trainer.keep_reward_statistics()
    check = trainer.check_rows(8, "reward" if reward else "logps")
    trainer.save_final(args.output_dir)
    if RANK == 0:
        if args.lora_r:
            write_base_card(args.output_dir, args.model_name_or_path, quantised(args))
        (args.output_dir / "check.json").write_text(json.dumps(check))
        trainer.release()
        verdict = verify(args.output_dir)
        say(f"saved and loaded again in a fresh process: {json.dumps(verdict)}")
        if not verdict["agrees"]:
            raise UserError(f"{args.output_dir} does not give what the trained model gave: {json.dumps(verdict)}")
        history = [line for line in trainer.state.log_history if "loss" in line]
        results = {
            "rows": row_counts,
            "check": verdict,
            "steps": trainer.state.global_step,
            "last": history[-1:],
            "evaluation": final,
        }
        inputs = [Path(path) for path in (args.data_path, args.eval_data_path) if path and Path(path).is_file()]
        write_run_card(args.output_dir, args, counts=results, inputs=inputs)
        say(
            f"{args.output_dir}: {trainer.state.global_step} steps; "
            + ", ".join(
                f"{name} {value:.4f}"
                for name, value in {**(history or [{}])[-1], **final}.items()
                if name in ("loss", "accuracy", "margin") or name.startswith("eval_")
            )
        )
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


def evaluated(trainer) -> dict[str, float]:
    """The metrics of the model as trained: those of the last step, where it was evaluated then."""
    state = trainer.state
    done = [line for line in state.log_history if "eval_loss" in line and line["step"] == state.global_step]
    found = done[-1] if done else trainer.evaluate()
    return {name: value for name, value in found.items() if name.startswith("eval_")}


def checkpoint(args: argparse.Namespace) -> str | None:
    """The checkpoint to resume from, or None. Raises UserError for a folder that is none."""
    asked = args.resume_from_checkpoint
    if asked in (None, "False", "false"):
        return None
    if asked in ("True", "true"):
        found = sorted(args.output_dir.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
        if not found:
            raise UserError(f"--resume_from_checkpoint: {args.output_dir} has no checkpoint-*")
        asked = str(found[-1])
    if not (Path(asked) / "trainer_state.json").is_file():
        raise UserError(f"--resume_from_checkpoint {asked} is no checkpoint: it has no trainer_state.json")
    return asked


def verify(folder: Path) -> dict:
    """alignment.training.saving in a fresh process, which knows nothing but the folder."""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    command = [sys.executable, "-m", "alignment.training.saving", str(folder.resolve())]
    done = subprocess.run(command, cwd=REPOSITORY, env=alone, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines or done.returncode not in (0, 1):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{folder} was saved and cannot be loaded again: {said}")
    return json.loads(lines[-1])


if __name__ == "__main__":
    run(parse_args, main)
