#!/usr/bin/env python
"""TruthfulQA, CPU seconds: as eval/run_evaluation.py does it, beside one choice at a time.

    python benchmarks/truthful.py --data_path mc_task.json --limit 8

The other way is the plain one: the model on primer, question and choice for each choice by itself, and on each question
of true or false. Both in the same precision and process, on the same questions and one thread; their scores and
verdicts are compared too. Target: at least 4x for MC1 and MC2, whose choices share primer and question, and 2x for true
or false, whose choices share the instruction and the question.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from alignment.command_line import ArgumentParser, number, run, table
from alignment.truthfulqa import first_is_best, primed, read_questions, true_or_false, true_share


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--model_name_or_path", default="saved_models/SmolLM2-135M-Instruct", help="a causal model's folder")
    flag("--data_path", type=Path, required=True, help="mc_task.json or TruthfulQA.csv")
    flag("--limit", type=number(int, 1), default=8, help="questions; default 8")
    flag("--batch_tokens", type=number(int, 1), default=8192, help="tokens a batch of ours; default 8192")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    return parser.parse_args(argv)


def one_by_one(policy, prompts: Sequence[list[int]], replies: Sequence[list[int]]) -> list[float]:
    """log p(reply | prompt) of each, from the logits of the whole text."""
    import torch

    found = []
    with torch.inference_mode():
        for prompt, reply in zip(prompts, replies, strict=True):
            ids = torch.tensor([prompt + reply], device=policy.model.device)
            logps = policy.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
            found.append(logps.gather(1, ids[0, len(prompt) :, None]).sum().item())
    return found


def main(args: argparse.Namespace) -> None:
    import torch

    from alignment.token_ids import continuation_ids
    from alignment.training.benchmarks import asked_policy, choice_logps, opened_alike, verdict_logps
    from alignment.truthfulqa import VERDICTS

    torch.set_num_threads(1)
    policy = asked_policy(args.model_name_or_path, dtype=args.dtype, max_length=None, batch_tokens=args.batch_tokens)
    questions = read_questions(args.data_path)[: args.limit]
    choices = [question.choices for question in questions]
    asked = [[true_or_false(question, choice) for choice in question.single] for question in questions]
    opening, (true, _) = opened_alike(policy, VERDICTS)

    def likelihoods_alone() -> list[list[float]]:
        found = []
        for question, own in zip(questions, choices, strict=True):
            prompts = policy.prompt_ids([primed(question)]) * len(own)
            found.append(
                one_by_one(policy, prompts, continuation_ids(policy.template.tokenizer, [f" {c}" for c in own]))
            )
        return found

    def verdicts_alone() -> list[list[float]]:
        return [
            one_by_one(policy, [ids + opening for ids in policy.prompt_ids(texts)], [[true]] * len(texts))
            for texts in asked
        ]

    def ours() -> list[list[float]]:
        return choice_logps(policy, [primed(question) for question in questions], choices)

    ways = {
        "MC1 and MC2": (likelihoods_alone, ours, 4),
        "true or false": (verdicts_alone, lambda: verdict_logps(policy, asked), 2),
    }
    rows = [
        ("", "choices", "one by one, CPU s", "ours, CPU s", "ratio", "target", "scores differ by", "verdicts alike")
    ]
    for name, (alone, together, target) in ways.items():
        (slow, before), (fast, after) = timed(alone), timed(together)
        gap = max(abs(a - b) for one, two in zip(before, after, strict=True) for a, b in zip(one, two, strict=True))
        same = sum(verdict(name, *each) for each in zip(questions, before, after, strict=True))
        count = sum(map(len, before))
        rows.append(
            (
                name,
                count,
                f"{slow:.1f}",
                f"{fast:.1f}",
                f"{slow / fast:.1f}x",
                f"{target}x",
                f"{gap:.1e}",
                f"{same} of {len(questions)}",
            )
        )
    print(table(rows))


def timed(way) -> tuple[float, list[list[float]]]:
    started = time.process_time()
    found = way()
    return time.process_time() - started, found


def verdict(name: str, question, before: Sequence[float], after: Sequence[float]) -> bool:
    """Whether both ways give the question the same MC1, and by likelihood the same MC2 to 0.001."""
    if name == "true or false":
        return first_is_best(before) == first_is_best(after)
    sides = [dict(zip(question.choices, logps, strict=True)) for logps in (before, after)]
    mc1 = [first_is_best([side[choice] for choice in question.single]) for side in sides]
    mc2 = [true_share([side[c] for c in question.true + question.false], len(question.true)) for side in sides]
    return mc1[0] == mc1[1] and abs(mc2[0] - mc2[1]) < 1e-3


if __name__ == "__main__":
    run(parse_args, main)
