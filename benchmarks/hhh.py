#!/usr/bin/env python
"""Static HHH, items per second: batched as eval/run_evaluation.py does it, beside one question at a time.

    python benchmarks/hhh.py --model_name_or_path saved_models/SmolLM2-135M-Instruct --data_path hhh_eval.json

The other way is the plain one: every question alone through `generate` for one token, and the letters' probabilities
out of its scores. Both in the same precision and process, on the same items; their verdicts are compared too. Target:
at least 8x, on a GPU; a CPU is busy with one question already, so that there is little to save.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from alignment.command_line import ArgumentParser, number, run, table
from alignment.static_hhh import chosen_wins, read_comparisons


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--model_name_or_path", default="saved_models/SmolLM2-135M-Instruct", help="a causal model's folder")
    flag("--data_path", type=Path, required=True, help="static HHH, a JSON list")
    flag("--limit", type=number(int, 1), default=40, help="items; default 40")
    flag("--batch_tokens", type=number(int, 1), default=8192, help="tokens a batch of ours; default 8192")
    flag("--dtype", choices=("float32", "bfloat16"), default="float32", help="default float32")
    return parser.parse_args(argv)


def one_by_one(policy, prompts: list[list[int]], tokens: list[int]) -> list[list[float]]:
    """What `next_token_probabilities` gives, by a `generate` for each prompt."""
    import torch

    found = []
    for ids in prompts:
        inputs = torch.tensor([ids[-policy.limit :]], device=policy.model.device)
        out = policy.model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=1,
            do_sample=False,
            return_dict_in_generate=True,
            output_logits=True,
            pad_token_id=0,
        )
        found.append(out.logits[0][0].float().softmax(-1)[tokens].tolist())
    return found


def main(args: argparse.Namespace) -> None:
    from alignment.training.benchmarks import asked_policy, letter_scores, next_token_probabilities

    pairs = read_comparisons(args.data_path)[: args.limit]
    policy = asked_policy(args.model_name_or_path, dtype=args.dtype, max_length=None, batch_tokens=args.batch_tokens)
    rows, verdicts, rates = [("way", "seconds", "items/s")], {}, {}
    for name, way in (("one by one", one_by_one), ("ours", next_token_probabilities)):
        took: list[float] = []

        def timed(policy, prompts, tokens, way=way, took=took):
            way(policy, prompts[:2], tokens)  # warm-up
            started = time.perf_counter()
            found = way(policy, prompts, tokens)
            took.append(time.perf_counter() - started)
            return found

        scores = letter_scores(policy, pairs, probabilities=timed)
        verdicts[name] = [chosen_wins(*each) for each in scores]
        rates[name] = len(pairs) / took[0]
        rows.append((name, f"{took[0]:.2f}", f"{rates[name]:.2f}"))
    print(table(rows))
    same = sum(a == b for a, b in zip(*verdicts.values(), strict=True))
    ratio = rates["ours"] / rates["one by one"]
    print(f"ours {ratio:.2f}x (target at least 8x); {same} of {len(pairs)} verdicts alike")


if __name__ == "__main__":
    run(parse_args, main)
