#!/usr/bin/env python
"""Self-play's two costs, beside the way they are usually paid.

    python benchmarks/self_play.py --model_name_or_path saved_models/SmolLM2-135M-Instruct --backend hf

scoring     all dialogues' candidates in batches of like length, without padding, each prompt once; beside one prompt
            at a time, its candidates padded to the longest. Target: at least 2x. Ways between split it.
generation  self-play's first turn, --num_candidates answers a prompt, beside rg on the same prompts, one answer each.
            Target: at least 0.9 of rg's responses a second; the candidates of a prompt share what its prompt costs.

The candidates scored are all of --self_play, as self_play.py wrote them. The reward model is --model_name_or_path
with a new head, whose rewards mean nothing and cost what any do. All ways' rewards are compared.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from sft_memory import clock_of

from alignment.command_line import REPOSITORY, ArgumentParser, UserError, number, run, table
from alignment.engines import add_engine_arguments, engine_from
from alignment.few_shot import REPLY_STOP, Demonstrations, Seeds
from alignment.generation import Request, Sampling, record_seed
from alignment.records import read_rows


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add, positive = parser.add_argument, number(int, 1)
    add("--model_name_or_path", required=True, help="folder or hub name")
    add("--self_play", type=Path, default=REPOSITORY / "data" / "self_play.jsonl", help="default: data/self_play.jsonl")
    add("--limit", type=positive, help="scoring: only the first so many dialogues (default: all)")
    add("--num_prompts", type=positive, default=32, help="generation (default: 32)")
    add("--num_candidates", type=positive, default=4, help="generation (default: 4)")
    add("--max_new_tokens", type=positive, default=128, help="generation (default: 128)")
    add("--batch_size", type=positive, default=256, help="hf: rows together (default: 256)")
    add_engine_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    score_all(args)
    generate_all(args)


def score_all(args: argparse.Namespace) -> None:
    from alignment.pretrained import load_pretrained, training_tokenizer
    from alignment.templates import load_template
    from alignment.training import reward_model, unpadding

    tokenizer = training_tokenizer(args.model_name_or_path, args.cache_dir)
    template = load_template("almost", tokenizer)
    settings = {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    model = load_pretrained("AutoModelForSequenceClassification", args.model_name_or_path, **settings).eval()
    groups, clock = read_groups(args.self_play, args.limit), clock_of(model)
    rows = [{"prompt": prompt} for prompt, responses in groups for _ in responses]
    texts = [response for _, responses in groups for response in responses]

    def together() -> list[float]:
        return reward_model.score(model, template, rows, texts)

    def apart() -> list[float]:
        scores = (reward_model.score(model, template, [{"prompt": p}] * len(some), some) for p, some in groups)
        return [reward for found in scores for reward in found]

    reward_model.score(model, template, rows[:1], texts[:1])  # warm-up
    found = {"one prompt at a time": timed(apart, clock), "together": timed(together, clock)}
    unpadding.unpad(model)
    worth, unpadding.WORTH_SHARING = unpadding.WORTH_SHARING, 0.0
    found["together, no padding"] = timed(together, clock)
    unpadding.WORTH_SHARING = worth
    found["ours: and each prompt once"] = timed(together, clock)

    expected, slowest = found["one prompt at a time"]
    shown, before = [("scoring", "seconds", "responses/s", "times the way above", "largest difference")], slowest
    for name, (rewards, seconds) in found.items():
        gap = max(abs(one - other) for one, other in zip(rewards, expected, strict=True))
        shown.append((name, f"{seconds:.2f}", f"{len(texts) / seconds:.1f}", f"{before / seconds:.2f}", f"{gap:.1e}"))
        before = seconds
    print(table(shown))
    print(
        f"ratio of scoring {len(texts)} candidates of {len(groups)} prompts: {slowest / before:.2f} (target at least 2)"
    )


def read_groups(path: Path, limit: int | None) -> list[tuple[str, list[str]]]:
    """(input, its candidates) of each turn, whether the filter keeps them or not: four each, as they were written."""
    turns = [turn for row in read_rows(path)[:limit] for turn in row.get("turns") or ()]
    kept = [(turn["input"], [each["output"] for each in turn["candidates"] if each["output"]]) for turn in turns]
    found = [(prompt, responses) for prompt, responses in kept if responses]
    if not found:
        raise UserError(f"data {path} has no turn with candidates")
    return found


def timed(work: Callable[[], list], clock: Callable[[], float]) -> tuple[list, float]:
    """What it gave, and its seconds: of CPU time where there is no GPU, so that other work does not count."""
    started = clock()
    return work(), clock() - started


def generate_all(args: argparse.Namespace) -> None:
    shown = Demonstrations.read(REPOSITORY / "assets" / "Faithful_prompt.txt", 3)
    queries = Seeds.read(REPOSITORY / "assets" / "seed_prompts.txt", 1).queries
    prompts = [shown.format_prompt(queries[at % len(queries)], 3) for at in range(args.num_prompts)]
    engine = engine_from(args)
    sampling = Sampling(args.max_new_tokens, top_p=0.9, stop=REPLY_STOP)
    for _ in engine.complete([Request(prompts[0], 0)] * 2, Sampling(4)):
        pass  # loads the model
    rates = []
    for name, candidates in (("rg", 1), ("self-play", args.num_candidates)):
        requests = [Request(text, record_seed(0, at, k)) for at, text in enumerate(prompts) for k in range(candidates)]
        started = time.perf_counter()
        replies = [reply for _, reply in engine.complete(requests, sampling)]
        seconds = time.perf_counter() - started
        rates.append(len(replies) / seconds)
        print(f"{name:10} {len(replies):4} responses in {seconds:6.1f} s: {rates[-1]:.2f} /s")
    print(f"ratio of generation, self-play to rg: {rates[1] / rates[0]:.2f} (target at least 0.9)")


if __name__ == "__main__":
    run(parse_args, main)
