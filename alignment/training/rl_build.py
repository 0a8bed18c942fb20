"""The models of a run of reinforcement, from the flags of train_rl.py."""

from __future__ import annotations

from argparse import Namespace
from contextlib import nullcontext
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from alignment.adapters import add_lora
from alignment.command_line import UserError, say
from alignment.pretrained import load_pretrained
from alignment.templates import Template
from alignment.training.batches import Item
from alignment.training.rewards import Rewards
from alignment.training.rl_models import ValueHead, causal, shard, value_from
from alignment.training.rl_update import Learner, Models
from alignment.training.trainer_flags import check_works


def training_arguments(args: Namespace) -> TrainingArguments:
    """What transformers makes of the flags that choose optimiser and precision. UserError where it refuses them."""
    cuda = torch.cuda.is_available()
    kept = ("learning_rate", "weight_decay", "lr_scheduler_type", "bf16", "seed")
    try:
        found = TrainingArguments(
            output_dir=str(args.output_dir),
            report_to=[],
            use_cpu=not cuda,
            optim=args.optim or ("adamw_torch_fused" if cuda else "adamw_torch"),
            **{name: getattr(args, name) for name in kept},
        )
        Trainer.get_optimizer_cls_and_kwargs(found)
    except (ValueError, ImportError, RuntimeError) as error:
        raise UserError(f"transformers refuses the arguments: {str(error).splitlines()[0]}") from error
    check_works(found)
    return found


def load_models(
    args: Namespace, template: Template, rewards: Rewards, accelerator: Any, train_args: TrainingArguments, steps: int
) -> tuple[nn.Module, Models, bool]:
    """The policy as it will be saved, the models that a step is taken with, and whether they are sharded."""
    optimiser, flags = Trainer.get_optimizer_cls_and_kwargs(train_args)
    sharded = bool(args.fsdp) and accelerator.num_processes > 1
    if args.fsdp and not sharded:
        say(f'translated: --fsdp "{args.fsdp}" -> left out: there is one process, and nothing to shard over')
    spread = partial(shard, bf16=args.bf16, reshard_after_forward="shard_grad_op" not in args.fsdp)
    adapter = {"r": args.lora_r, "alpha": args.lora_alpha, "dropout": 0.0, "targets": args.lora_target_modules}
    adapter |= {"gradient_checkpointing": args.gradient_checkpointing}

    def load(dtype):
        settings = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
        model = causal(args.model_name_or_path, template, dtype=dtype, cache_dir=args.cache_dir, **settings)
        return model.to(accelerator.device)

    def learner(module, rate):
        schedule = partial(
            get_scheduler, args.lr_scheduler_type, num_warmup_steps=args.warmup_steps, num_training_steps=steps
        )
        settings = {**flags, "lr": rate, "weight_decay": args.weight_decay}
        return Learner(module, lambda weights: optimiser(weights, **settings), schedule)

    core = policy = load(torch.bfloat16 if args.lora_r and args.bf16 else torch.float32)
    if args.gradient_checkpointing:
        core.gradient_checkpointing_enable({"use_reentrant": False})
    if args.lora_r:
        policy = add_lora(core, task_type="CAUSAL_LM", **adapter).to(accelerator.device)
    value, scoring = None, nullcontext
    if args.algorithm == "ppo":
        agree = rewards.model is not None and rewards.template.tokenizer.get_vocab() == template.tokenizer.get_vocab()
        if args.value_model == "reward" and not agree:
            raise UserError(
                "--value_model reward: there is no reward model whose tokenizer is the policy's; leave it out"
            )
        if agree and args.value_model != "policy":
            value = value_from(
                rewards, accelerator.device, adapter if args.lora_r else None, args.gradient_checkpointing
            )
            scoring = value.disable_adapter if args.lora_r else scoring
            value = spread(value) if sharded and not args.lora_r else value
        else:
            value = ValueHead(core.config.get_text_config().hidden_size).to(accelerator.device)
        started = "a head on the policy's states" if isinstance(value, ValueHead) else "started from the reward model"
        say(f"values: {started}")
    reference = None
    if not args.lora_r and (args.algorithm == "ppo" or args.kl_coef or args.max_kl):
        reference = load(torch.bfloat16 if args.bf16 and sharded else torch.float32).requires_grad_(False)
        reference = spread(reference) if sharded else reference
    spread(core) if sharded else None
    models = Models(
        policy=learner(core, args.learning_rate),
        value=learner(value, args.value_learning_rate) if value else None,
        reference=reference,
        switch=policy.disable_adapter if args.lora_r else None,
        autocast=nullcontext if sharded else accelerator.autocast,
        scoring=scoring,
    )
    return policy, models, sharded


def rollout_engine(args: Namespace, core: nn.Module) -> Any | None:
    """What replies in the policy's place, holding the weights that the policy started from; None where it does so
    itself."""
    if args.rollouts == "decoding":
        return None
    config = load_pretrained("AutoConfig", args.model_name_or_path, cache_dir=args.cache_dir)
    rows, kept = core.get_input_embeddings().weight.shape[0], config.get_text_config().vocab_size
    if rows != kept:
        raise UserError(
            f"--rollouts vllm: {args.model_name_or_path} has {kept:,} tokens and its policy {rows:,}, padding added; "
            "give --rollouts decoding"
        )
    from alignment.engines.vllm_policy import VllmPolicy

    return VllmPolicy(
        args.model_name_or_path,
        dtype="bfloat16" if args.bf16 else "float32",
        temperature=args.temperature,
        max_rows=args.generation_batch_size,
        cache_dir=args.cache_dir,
    )


def as_trainer(
    policy: nn.Module,
    accelerator: Any,
    train_args: TrainingArguments,
    tokenizer: Any,
    items: list[Item],
    *,
    sharded: bool,
) -> SimpleNamespace:
    """What save_trained reads of a trainer: all that has to stay in memory of a run that has ended."""
    return SimpleNamespace(
        model=policy,
        model_wrapped=policy,
        accelerator=accelerator,
        args=train_args,
        processing_class=tokenizer,
        is_fsdp_enabled=sharded,
        train_dataset=SimpleNamespace(items=items),
        packed=False,
        callback_handler=SimpleNamespace(),
    )
