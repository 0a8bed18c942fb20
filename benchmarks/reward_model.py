#!/usr/bin/env python
"""Reward model training, real tokens per second: ours beside the released way, and TRL's RewardTrainer where installed.

    python benchmarks/reward_model.py --model_name_or_path saved_models/SmolLM2-135M-Instruct --data_path pairs.json
    python benchmarks/reward_model.py --shape 7b --dtype bfloat16 --flat 1024          # MFU at 7B, on a GPU

One optimiser step of --pairs pairs, forward and backward, the same pairs each way. `released` pads everything to the
longest of the data (at most --model_max_length) and runs chosen and rejected as two forwards (A11); `ours` is what
train.py does: micro-batches of like length, both sides in one forward, no padding through the layers. Targets: at least
2x the released way, and at least TRL's.
"""

from __future__ import annotations

import argparse
import random
import tempfile

from sft_memory import SHAPES, clock_of, load_model, useful_flops, utilisation

from alignment.command_line import ArgumentParser, number, run, table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--model_name_or_path", default="saved_models/SmolLM2-135M-Instruct", help="a causal model's folder")
    flag("--shape", choices=SHAPES, help="random weights of this shape instead; default none")
    flag("--data_path", help="pairs as train.py reads them; default lengths drawn as the released data's are spread")
    flag("--flat", type=number(int, 8), help="every sample has this many tokens instead; for MFU")
    flag("--pairs", type=number(int, 1), default=32, help="pairs a step; default 32")
    flag("--batch_size", type=number(int, 1), default=4, help="pairs a micro-batch, on average; default 4")
    flag("--model_max_length", type=number(int, 8), default=1024, help="default 1024")
    flag("--gradient_checkpointing", action="store_true", help="both ways")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    flag("--seed", type=int, default=0, help="default 0")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    model = load_model(args, "AutoModelForSequenceClassification")
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.config.pad_token_id = 0
    items, longest = load_items(args, model.config.vocab_size)
    real = sum(len(sample) for item in items for sample in item)
    print(f"{len(items)} pairs, {real:,} real tokens, longest of the data {longest}, on {model.device}")
    rows, speeds = [("way", "seconds a step", "padded tokens", "real tokens/s")], {}
    for name, batches in (("released", released(items, longest, args)), ("ours", ours(items, args))):
        if name == "ours":
            from alignment.training.unpadding import unpad

            unpad(model)
        step(model, batches[:1], len(items))  # warm-up
        seconds = min(step(model, batches, len(items)) for _ in range(2))
        padded = sum(ids.numel() for batch in batches for ids, _ in batch)
        speeds[name] = real / seconds
        rows.append((name, f"{seconds:.2f}", padded, f"{speeds[name]:,.0f}"))
    flops = useful_flops(model, args.flat or 0)
    del model
    seconds = trl_seconds(args, items)
    if seconds:
        speeds["trl"] = real / seconds
        rows.append(("TRL, grouped by length", f"{seconds:.2f}", "-", f"{speeds['trl']:,.0f}"))
    print(table(rows))
    target = "as many tokens: nothing is padded" if args.flat else "target at least 2.00x"
    print(f"ours {speeds['ours'] / speeds['released']:.2f}x the released way ({target})")
    if seconds:
        print(f"ours {speeds['ours'] / speeds['trl']:.2f}x TRL's (target at least 1.00x)")
    print(f"ours: {utilisation(speeds['ours'] * flops, args.dtype)} (target at least 45%)")


def load_items(args: argparse.Namespace, vocabulary: int):
    """Items of two samples, and the longest of all the data. Drawn lengths are log-normal with median 200."""
    from alignment.training.batches import Sample, encode_examples

    if args.data_path:
        from alignment.pretrained import training_tokenizer
        from alignment.templates import load_template
        from alignment.training_data import read_examples, usable

        template = load_template("almost", training_tokenizer(args.model_name_or_path))
        examples, _ = usable(read_examples(args.data_path, "reward"))
        items, _ = encode_examples(examples, template, args.model_max_length, cut=True)
        longest = max(len(sample) for item in items for sample in item)
        return random.Random(args.seed).sample(items, min(args.pairs, len(items))), longest
    draw = random.Random(args.seed)

    def sample(row: int) -> Sample:
        length = args.flat or min(args.model_max_length, max(16, int(draw.lognormvariate(5.3, 0.7))))
        return Sample(row, [draw.randrange(10, vocabulary) for _ in range(length)], length // 4)

    return [(sample(row), sample(row)) for row in range(args.pairs)], args.flat or args.model_max_length


def released(items, width: int, args: argparse.Namespace):
    """Micro-batches as released: everything padded to the longest of the data, chosen and rejected apart."""
    from alignment.training.batches import collate

    batches = []
    for start in range(0, len(items), args.batch_size):
        sides = zip(*items[start : start + args.batch_size], strict=True)
        batches.append([padded(collate([(sample,) for sample in side], 0), width) for side in sides])
    return batches


def padded(batch, width: int):
    import torch.nn.functional as F

    short = width - batch["input_ids"].shape[1]
    return F.pad(batch["input_ids"], (0, short)), F.pad(batch["attention_mask"], (0, short))


def ours(items, args: argparse.Namespace):
    """Micro-batches as train.py plans them, as many as the released way has, both sides in one."""
    from alignment.training.batches import collate, plan_step

    lengths = [max(map(len, item)) for item in items]
    plan = [batch for batch in plan_step(lengths, -(-len(items) // args.batch_size)) if batch]
    made = [collate([items[i] for i in batch], 0) for batch in plan]
    return [[(batch["input_ids"], batch["attention_mask"])] for batch in made]


def step(model, batches, pairs: int) -> float:
    """Seconds of forward and backward over all micro-batches."""
    clock = clock_of(model)
    import torch

    from alignment.training.losses import bradley_terry

    model.zero_grad(set_to_none=True)
    started = clock()
    for forwards in batches:
        rewards = torch.cat(
            [
                model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device)).logits[:, 0].float()
                for ids, mask in forwards
            ]
        )
        (bradley_terry(*rewards.chunk(2)).sum() / pairs).backward()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - started


def trl_seconds(args: argparse.Namespace, items) -> float | None:
    """Seconds of a step of TRL's RewardTrainer on the same pairs, grouped by length; None where TRL is not installed.

    Its optimiser is plain SGD at rate 0, so that next to nothing is added to forward and backward.
    """
    try:
        from trl import RewardConfig, RewardTrainer
    except ImportError as error:
        return print(f"TRL is not here, so not compared ({error}); pip install trl datasets, and run again")
    import datasets
    import torch
    from transformers import TrainerCallback

    from alignment.pretrained import training_tokenizer

    model = load_model(args, "AutoModelForSequenceClassification")
    model.config.pad_token_id = 0
    rows = [{"chosen_ids": a.ids, "rejected_ids": b.ids} for a, b in items]
    times: list[float] = []
    clock = clock_of(model)

    class Clock(TrainerCallback):
        def on_step_begin(self, *_, **__):
            self.started = clock()

        def on_step_end(self, *_, **__):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            times.append(clock() - self.started)

    config = RewardConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=args.batch_size,
        learning_rate=0.0,
        optim="sgd",
        gradient_accumulation_steps=-(-len(items) // args.batch_size),
        max_steps=2,
        report_to="none",
        logging_steps=100,
        save_strategy="no",
        train_sampling_strategy="group_by_length",
        length_column_name="length",
        disable_tqdm=True,
        gradient_checkpointing=args.gradient_checkpointing,
        bf16=args.dtype == "bfloat16",
        max_length=None,
        use_cpu=not torch.cuda.is_available(),
        disable_dropout=False,
        remove_unused_columns=False,
    )
    trainer = RewardTrainer(
        model=model,
        args=config,
        train_dataset=datasets.Dataset.from_list(rows),
        callbacks=[Clock()],
        processing_class=training_tokenizer(args.model_name_or_path),
    )
    trainer.train_dataset = trainer.train_dataset.add_column("length", [max(map(len, item)) for item in items])
    trainer.train()
    return min(times)


if __name__ == "__main__":
    run(parse_args, main)
