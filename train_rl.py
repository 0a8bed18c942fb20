#!/usr/bin/env python
"""ALMoST, step 3: reinforce a policy against a reward, by PPO (the paper) or GRPO.

    python train_rl.py --model_name_or_path outputs/sft --data_path prompts.txt --reward outputs/rm --output_dir rl
    torchrun --nproc_per_node=4 train_rl.py --fsdp full_shard ...

Reads prompts.txt, a prompt a line, or rows with a prompt. Writes into --output_dir: the model and its tokenizer,
history.jsonl and history.png, samples.html (the same prompts' answers before, during and after), check.json,
checkpoints, and beside it <output_dir>.run.json. A run that was stopped goes on by the same command. docs/rl.md numbers
the details.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from contextlib import nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from alignment.adapters import ALL_LINEAR, write_base_card
from alignment.command_line import ArgumentParser, Progress, UserError, boolean, is_first, number, run, say
from alignment.generation import record_seed
from alignment.journal import key
from alignment.limits import add_limit_arguments
from alignment.model_cards import write_card
from alignment.pretrained import check_model, load_pretrained, training_tokenizer
from alignment.records import read_prompts, read_rows
from alignment.run_cards import Run, checkpoint_to_resume, claim
from alignment.templates import load_template
from alignment.training import let_memory_grow
from alignment.training.rewards import add_reward_arguments, judge_from, read_by
from alignment.training_data import PROMPT_KEYS, prompt_of
from train import UNSHARDED_OPTIMISERS

DEFAULTS = {  # ALMoST gives none: docs/rl.md says where each is from
    "ppo": dict(kl_coef=0.05, learning_rate=1e-6, num_ppo_epochs=4, num_generations=1, mini_batch_size=32),
    "grpo": dict(kl_coef=0.0, learning_rate=1e-6, num_ppo_epochs=1, num_generations=8, mini_batch_size=128),
}
FSDP_WORDS = ("full_shard", "shard_grad_op", "auto_wrap", "True")


def build_parser() -> ArgumentParser:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    switch = dict(type=boolean, nargs="?", const=True, default=False, metavar="BOOL")
    positive, share, above_0 = number(int, 1), number(float, 0), number(float, 0, above=True)
    many = number(int, 1, 1_000_000)
    # what and from what
    flag("--algorithm", choices=("ppo", "grpo"), default="ppo", help="default ppo (ALMoST)")
    flag("--model_name_or_path", required=True, help="the SFT policy, also the reference: a folder or a hub name")
    flag("--cache_dir", help="where transformers keeps what it downloads")
    flag("--data_path", required=True, help="prompts.txt, or rows with a prompt: .json, .jsonl, .parquet, hub name")
    flag("--output_dir", type=Path, required=True, help="where the model goes")
    flag("--limit", type=positive, help="only the first N prompts, for a trial; default all")
    flag("--template", default="almost", help="almost | alpaca | mistral (Janus) | chat; default almost")
    add_reward_arguments(parser)
    # rollouts
    flag("--rollouts", choices=("decoding", "vllm"), default="decoding", help="by the model in training itself, or by"
         " vLLM in this process, which is handed its weights and checked; default decoding")  # fmt: skip
    flag("--max_new_tokens", type=positive, default=256, help="tokens of a reply at most; default 256 (our choice)")
    flag("--temperature", type=number(float, 0, above=True), default=1.0, help="default 1: the policy as it is")
    flag("--rollout_batch_size", type=many, default=128, help="replies a step, all ranks; default 128 (our choice)")
    flag("--num_generations", type=many, help="replies to a prompt; default 1 ppo, 8 grpo (today's trainers)")
    flag("--generation_batch_size", type=positive, default=64, help="replies sampled together a device; default 64")
    # the reward
    flag("--kl_coef", type=share, help="weight of the KL to the SFT model: ppo, in the reward, default 0.05 (ALMoST,"
         " from memory); grpo, in the loss, default 0")  # fmt: skip
    flag("--target_kl", type=above_0, help="ppo: nats a reply that --kl_coef adapts to; default none")
    flag("--kl_horizon", type=positive, default=10_000, help="replies in which it does; default 10000 (Ziegler et al.)")
    flag("--max_kl", type=above_0, help="nats a reply: beyond, the run saves and ends; default none")
    flag(
        "--missing_eos_penalty", type=share, default=1.0, help="off the reward of a reply without end; default 1 (TRL)"
    )
    flag("--scale_rewards", **{**switch, "default": True}, help="grpo: over a group's deviation; default True")
    # the update
    flag(
        "--num_ppo_epochs",
        type=positive,
        help="times a step's replies are learned from; default 4 ppo (from memory), 1 grpo",
    )
    flag(
        "--mini_batch_size", type=positive, help="replies an optimiser step, all ranks; default 32 ppo, 128 grpo (ours)"
    )
    flag("--micro_batch_tokens", type=positive, default=16_384, help="with padding, a pass and device; default 16384")
    flag("--gamma", type=number(float, 0, 1), default=1.0, help="GAE: discount a token; default 1")
    flag("--gae_lambda", type=number(float, 0, 1), default=0.95, help="GAE's lambda; default 0.95 (Schulman et al.)")
    flag("--cliprange", type=above_0, default=0.2, help="of the ratio; default 0.2 (Schulman et al.)")
    flag("--cliprange_value", type=above_0, default=0.2, help="of the values; default 0.2 (trlX, TRL)")
    flag("--value_model", choices=("reward", "policy"), help="ppo: a model started from the reward model, or a head on"
         " the policy's states; default reward where the tokenizers agree")  # fmt: skip
    # LoRA
    flag("--lora_r", type=number(int, 0), default=0, help="rank; default 0: all weights are trained")
    flag("--lora_alpha", type=share, default=16, help="default 16")
    flag("--lora_target_modules", nargs="+", default=[ALL_LINEAR], help="names of modules; default all linear ones")
    # model and optimiser
    flag("--attn_implementation", help="sdpa, flash_attention_2, ...; default transformers' choice")
    flag("--gradient_checkpointing", **switch, help="keep no activations; slower, smaller")
    flag("--bf16", **switch, help="compute in bf16; weights in training stay fp32")
    flag("--num_train_epochs", type=number(float, 0, above=True), default=4.0, help="passes over the prompts; default 4"
         " (ALMoST's 80,000 replies to 20,000 prompts, from memory)")  # fmt: skip
    flag("--max_steps", type=positive, default=-1, help="stop after N steps; default -1: by epochs")
    flag("--learning_rate", type=share, help="default 1e-6 (ALMoST, from memory)")
    flag("--value_learning_rate", type=share, default=1e-5, help="ppo: of the values; default 1e-5 (our choice)")
    flag("--weight_decay", type=share, default=0.0, help="default 0")
    flag("--warmup_steps", type=number(int, 0), default=0, help="default 0")
    flag("--lr_scheduler_type", default="constant", help="default constant")
    flag("--optim", help="default adamw_torch, on CUDA adamw_torch_fused")
    flag("--max_grad_norm", type=number(float, 0, above=True), default=1.0, help="of policy and values; default 1")
    flag("--seed", type=int, default=42, help="of prompts, replies and mini-batches; default 42")
    # checkpoints
    flag("--save_steps", type=number(int, 0), default=50, help="steps between checkpoints; default 50, 0 for none")
    flag("--save_total_limit", type=positive, default=2, help="checkpoints kept; default 2")
    flag("--resume_from_checkpoint", default="True", help="default True: the newest whole one, if any; or a folder")
    flag("--fsdp", default="", help='"full_shard" or "shard_grad_op": weights spread over ranks; default off')
    add_limit_arguments(parser)
    return parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    args = parser.parse_args(argv)
    for name, value in DEFAULTS[args.algorithm].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.algorithm == "grpo" and args.num_generations < 2:
        parser.error("--algorithm grpo compares replies to one prompt; give --num_generations 2 or more")
    if args.rollout_batch_size % args.num_generations:
        parser.error(
            f"--rollout_batch_size {args.rollout_batch_size} is no multiple of {args.num_generations} generations"
        )
    for name, only in (("target_kl", "ppo"), ("value_model", "ppo")):
        if args.algorithm != only and getattr(args, name) is not None:
            parser.error(f"--{name} is for --algorithm {only}")
    if args.rollouts == "vllm" and (args.fsdp or int(os.environ.get("WORLD_SIZE", "1")) > 1):
        parser.error("--rollouts vllm is for one process without --fsdp; give --rollouts decoding")
    if args.rollouts == args.judge_backend == "vllm":
        parser.error("--rollouts vllm and --judge_backend vllm do not share a process; give another of either")
    unknown = [word for word in args.fsdp.split() if word not in FSDP_WORDS]
    if unknown:
        parser.error(f'--fsdp {unknown[0]!r} is unknown; give "full_shard" or "shard_grad_op"')
    if args.fsdp and any(name in (args.optim or "") for name in UNSHARDED_OPTIMISERS):
        parser.error(f"--optim {args.optim} cannot step weights that FSDP shards; give adamw_torch")
    return args


def main(args: argparse.Namespace) -> None:
    let_memory_grow()
    check_model(args.model_name_or_path)
    if args.rollouts == "vllm" and not find_spec("vllm"):
        raise UserError("--rollouts vllm: vllm is not installed; install it, or give --rollouts decoding")
    made_by = read_by(args)
    read = {
        "inputs": [args.data_path, *made_by["inputs"]],
        "models": [args.model_name_or_path, *made_by["models"]],
        "cache_dir": args.cache_dir,
    }
    try:
        with claim(args.output_dir, args, script=__file__, folder=True, **read) as held:
            if held.is_done():
                return say(held.already())
            resume = checkpoint_to_resume(held, args.resume_from_checkpoint)
            template, rows, prompts = load_data(args)
            trainer, results = reinforce(args, template, rows, prompts, held, resume)
            save(args, trainer, template, held, results)
    except KeyboardInterrupt:
        say("\ninterrupted; the same command goes on from the last checkpoint")
        sys.exit(130)


# Load


def load_data(args: argparse.Namespace):
    """The template, the rows with a prompt, and the prompts' ids."""
    from alignment.training.rollouts import encode_prompts

    if args.data_path.endswith(".txt"):
        rows = [{"prompt": line} for line in read_prompts(Path(args.data_path))][: args.limit]
    else:
        rows = [
            row | prompt_of(args.data_path, place, row)
            for place, row in enumerate(read_rows(args.data_path)[: args.limit])
        ]
    config = load_pretrained("AutoConfig", args.model_name_or_path, cache_dir=args.cache_dir)
    kinds = getattr(config, "architectures", None) or []
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        raise UserError(
            f"model {args.model_name_or_path} is a reward model ({kinds[0]}), no policy: it belongs to --reward"
        )
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or 1 << 30
    template = load_template(args.template, training_tokenizer(args.model_name_or_path, args.cache_dir))
    template.say_spelled(args.data_path, [[row.get(name) for name in ("system", *PROMPT_KEYS)] for row in rows])
    return template, rows, encode_prompts(template, rows, args.data_path, context, args.max_new_tokens)


# Run and save


def reinforce(args: argparse.Namespace, template, rows: list[dict], prompts: list, held: Run, resume: Path | None):
    """Load the models and take the steps. What is left of them: the policy, to be saved, and what the card tells."""
    import torch
    from accelerate import Accelerator
    from transformers import set_seed
    from transformers.utils import logging

    from alignment.training.limits import StepLimits
    from alignment.training.ppo import KLController
    from alignment.training.ranks import check_seen
    from alignment.training.rehearsal import REHEARSED, plan_rl
    from alignment.training.rewards import Rewards
    from alignment.training.rl_build import as_trainer, load_models, rollout_engine, training_arguments
    from alignment.training.rl_models import tempered
    from alignment.training.rl_state import Progressed
    from alignment.training.rl_update import Settings
    from alignment.training.rollouts import Sampler

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    set_seed(args.seed)
    train_args = training_arguments(args)
    accelerator = Accelerator(cpu=train_args.use_cpu, mixed_precision="bf16" if args.bf16 else "no")
    check_seen(args.output_dir)
    device = accelerator.device
    rewards = Rewards(
        args.reward, cache_dir=args.cache_dir, device=device, judge=judge_from(args), folder=args.output_dir
    )
    rewards.check_rows(rows)
    told = {"config": "by what training left in its config", "running": "by the mean and deviation of all so far"}
    normalised = f"; reward models normalised {told[rewards.normalises]}" if rewards.model is not None else ""
    say(f"rewards: {', '.join(rewards.names)}{normalised}")
    if args.temperature != 1:
        say(f"--temperature {args.temperature}: replies, log-probabilities and KL are of the policy at it")
    per_step = args.rollout_batch_size // args.num_generations
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * len(rows) / per_step)
    planned, limits = steps, StepLimits(args)
    if args.plan:
        steps = min(steps, REHEARSED)
        if args.plan.hardware:
            plan_rl(args, prompts, planned)
    policy, models, sharded = load_models(args, template, rewards, accelerator, train_args, steps)
    settings = Settings.of(args, pad_id=template.tokenizer.pad_token_id, accelerator=accelerator)
    sampler = Sampler(
        models, rewards, rows, settings, template=template, max_new_tokens=args.max_new_tokens,
        max_rows=args.generation_batch_size, engine=rollout_engine(args, models.policy.module),
    )  # fmt: skip
    controller = KLController(args.kl_coef, args.target_kl, args.kl_horizon)
    progressed = Progressed(args.output_dir, models, rewards, controller, run=key(**held.made_of))
    if resume and not args.plan:
        progressed.load(resume)
    held.begin_training()
    try:
        with tempered(models.policy.module, args.temperature):
            answered = loop(args, steps, prompts, template, models, sampler, settings, controller, progressed, limits)
    except torch.OutOfMemoryError as error:
        raise UserError(
            "no memory left on the device: give less --micro_batch_tokens or --generation_batch_size, or give "
            "--gradient_checkpointing, --fsdp or --lora_r; a checkpoint that is named goes on with other flags"
        ) from error
    if sampler.engine is not None:
        sampler.engine.close()
    if args.plan:
        plan_rl(args, prompts, planned, progressed.history)
    results = {"prompts": len(rows), "steps": progressed.step, "stopped": progressed.stopped}
    results |= {"last": progressed.history[-1:], "unscored": dict(rewards.unscored)}
    items = [each.item for each in answered]
    return as_trainer(policy, accelerator, train_args, template.tokenizer, items, sharded=sharded), results


def loop(args, steps, prompts, template, models, sampler, settings, controller, progressed, limits) -> list:
    """From step to step, until all are made or the KL is beyond --max_kl. Answers to the first prompts at the end.
    Raises UserError, with a checkpoint, where the run's limits are reached."""
    from transformers import set_seed

    from alignment.training import rl_monitor
    from alignment.training.rl_update import advantages, compared, measure, update, usable
    from alignment.training.rollouts import Task, tasks_of_step

    shown = [Task(-1, row, prompts[row], 0) for row in range(min(len(prompts), rl_monitor.SHOWN))]
    texts = [template.render(sampler.rows[task.row]).strip() for task in shown]

    def snapshot() -> list:
        answered = sampler.answers(shown)
        progressed.columns.append(rl_monitor.answers(progressed.step, answered))
        if is_first():
            rl_monitor.write_samples(
                args.output_dir, texts, progressed.columns, f"{args.algorithm}, {args.model_name_or_path}"
            )
        return answered

    moments = rl_monitor.snapshots(steps)
    if not progressed.step and not progressed.columns:
        snapshot()
    with Progress(steps - progressed.step, args.algorithm, "step") if is_first() else nullcontext() as bar:
        while progressed.step < steps and not progressed.stopped:
            step, began = progressed.step, time.monotonic()
            tasks = tasks_of_step(
                prompts,
                step,
                prompts_per_step=args.rollout_batch_size // args.num_generations,
                replies=args.num_generations,
                seed=args.seed,
            )
            set_seed(record_seed(args.seed, "step", step))  # for reward functions that draw
            rollouts = progressed.rollouts(partial(sampler, tasks, moved=step > 0))
            sampled = time.monotonic()
            used = usable(rollouts, settings)
            if not used:
                why = ", ".join(sampler.rewards.unscored) or "groups of one"
                raise UserError(f"step {step + 1}: none of {len(rollouts)} replies could be scored ({why})")
            measure(models, used, settings)
            try:
                handed = compared(used, args.bf16) if args.rollouts == "vllm" else {}
            except UserError as error:
                raise progressed.without_step(error, args.save_total_limit) from None
            advantages(models, used, settings, controller.coef, first=step == 0)
            line = {"step": step + 1, **rl_monitor.measured(rollouts, used, sampler.outside(rollouts)), **handed}
            if args.max_kl and line["kl"] > args.max_kl:
                progressed.stopped = (
                    f"KL {line['kl']:.2f} nats a reply after {step} steps, beyond --max_kl {args.max_kl:g}"
                )
                say(f"stopped: {progressed.stopped}")
                break
            line |= {"kl_coef": controller.coef, "learning_rate": models.policy.scheduler.get_last_lr()[0]}
            line |= update(models, used, settings, controller.coef, step)
            if "kl" in line:
                controller.update(line["kl"], len(used))
            progressed.log(line | {"sampling_seconds": sampled - began, "update_seconds": time.monotonic() - sampled})
            for words in rl_monitor.warnings(progressed.history):
                say(f"step {step + 1}: {words}")
            if progressed.step in moments and progressed.step < steps:
                snapshot()
            limit = limits.reached(sum(len(each.prompt) + len(each.reply) for each in rollouts))
            stops = limit and progressed.step < steps
            if stops or (args.save_steps and progressed.step % args.save_steps == 0):
                progressed.save(args.save_total_limit)
            if stops:
                told = f"stopped at {limit} after step {progressed.step} of {steps}; a checkpoint is saved"
                raise UserError(f"{told}, and the same command goes on from it")
            if bar:
                bar.update()
    return snapshot()


def save(args: argparse.Namespace, trainer, template, held: Run, results: dict) -> None:
    """The policy, checked by a fresh process on its own answers, and the run card."""
    from alignment.training.rl_state import drawn
    from alignment.training.saving import save_trained

    def cards(folder: Path) -> None:
        if args.lora_r:
            write_base_card(folder, args.model_name_or_path, None, args.cache_dir)
        numbers = {"steps": results["steps"], "last step": (results["last"] or [{}])[0]}
        what = f"A policy, reinforced against a reward by {args.algorithm.upper()}"
        write_card(folder, held, what=what, template=args.template, numbers=numbers)

    verdict = save_trained(trainer, args.output_dir, template, kind="logps", also=cards)
    if is_first():
        say(f"saved and loaded again in a fresh process: {json.dumps(verdict)}")
        drawn(args.output_dir)
        held.finish(results | {"check": verdict})
        last = (results["last"] or [{}])[0]
        shown = [f"{name} {last[name]:.4f}" for name in ("reward", "kl", "length") if name in last]
        say(f"{args.output_dir}: {results['steps']} steps; {', '.join(shown)}")
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()


if __name__ == "__main__":
    run(parse_args, main)
