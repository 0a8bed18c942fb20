#!/usr/bin/env python
"""Score a policy or a reward model on static HHH, or a reward model on any comparisons.

    python eval/run_evaluation.py --benchmark_name hhh --data_path hhh_eval.json --model_name_or_path MODEL
    python eval/run_evaluation.py --benchmark_name hhh --data_path hhh_eval.json --reward_model outputs/rm
    python eval/run_evaluation.py --benchmark_name pairs --data_path comparison.json --reward_model outputs/rm

Reads rows {"chosen", "rejected", "type"}, or for `pairs` what train.py reads for reward models, by `meta` where the
rows have one; there it adds how often the longer response, in characters, is the chosen one. Prints accuracy with 95%
Wilson intervals by type and overall; --output_path also writes them with every item's scores, and a run card beside.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from hhh import LETTERS, Comparison, by_type, chosen_wins, question, read_comparisons  # noqa: E402

from alignment.records import write_whole  # noqa: E402
from alignment.runs import ArgumentParser, UserError, number, run, table, write_run_card  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--benchmark_name", choices=("hhh", "pairs"), default="hhh", help="default hhh")
    flag("--data_path", type=Path, required=True, help="the benchmark's rows, a JSON list")
    flag("--model_name_or_path", help="a policy: any causal model")
    flag("--reward_model", help="a reward model as train.py saves it")
    flag("--output_path", type=Path, help="where results go as JSON; default: only printed")
    flag("--batch_tokens", type=number(int, 1), default=8192, help="tokens a batch with padding; default 8192")
    flag("--max_length", type=number(int, 1), help="tokens of a text, cut from the left; default the model's own, for "
         "pairs what it was trained on")  # fmt: skip
    flag("--dtype", choices=("float32", "bfloat16", "auto"), default="auto", help="default as saved")
    flag("--limit", type=number(int, 1), help="only the first N items, for a trial; default all")
    args = parser.parse_args(argv)
    if bool(args.model_name_or_path) == bool(args.reward_model):
        parser.error("give one of --model_name_or_path (a policy) and --reward_model")
    if args.benchmark_name == "pairs" and not args.reward_model:
        parser.error("--benchmark_name pairs is for a --reward_model")
    return args


def main(args: argparse.Namespace) -> None:
    read = read_pairs if args.benchmark_name == "pairs" else read_comparisons
    pairs = read(args.data_path)[: args.limit]
    if args.reward_model:
        scores = reward_scores(args, pairs)
        correct = [float(chosen > rejected) for chosen, rejected in scores]
    else:
        scores = letter_scores(args, pairs)
        correct = [chosen_wins(in_order, swapped) for in_order, swapped in scores]
    result = by_type(pairs, correct)
    print(table([("type", "accuracy", "95% interval", "n")] + [
        (name, f"{100 * found['accuracy']:.1f}", "{:.1f} - {:.1f}".format(*(100 * x for x in found["interval"])),
         found["n"]) for name, found in result.items()]))  # fmt: skip
    longer = sum(len(pair.chosen) > len(pair.rejected) for pair in pairs) / len(pairs)
    if args.benchmark_name == "pairs":
        print(f"the longer one is chosen in {longer:.1%}")
    if args.output_path:
        items = [{"type": pair.type, "correct": c, "scores": s} for pair, c, s in
                 zip(pairs, correct, scores, strict=True)]  # fmt: skip
        results = {"results": result, "longer_wins": longer, "items": items}
        write_whole(args.output_path, [json.dumps(results, indent=1) + "\n"])
        write_run_card(args.output_path, args, counts={"items": len(pairs)}, inputs=[args.data_path])


def read_pairs(path: Path) -> list[Comparison]:
    """Comparisons in any form that train.py reads, of the type that their `meta` is. Raises UserError."""
    from alignment.training_data import read_examples, read_rows, usable

    kept, _ = usable(read_examples(str(path), "reward"))
    if not kept:
        raise UserError(f"data {path}: no row has two responses that differ")
    kinds = [str(row.get("meta", "pairs")) for row in read_rows(str(path))]
    return [Comparison(each.prompt, *each.responses, kinds[each.row]) for each in kept]


def reward_scores(args: argparse.Namespace, pairs) -> list[list[float]]:
    """[r(chosen), r(rejected)] of every pair, of texts as long as the model was trained on, or --max_length."""
    from alignment.reward_model import load, score

    model, template = load(args.reward_model, dtype=args.dtype)
    rows = [pair.prompt if isinstance(pair.prompt, dict) else {"prompt": pair.prompt} for pair in pairs] * 2
    answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    trained = getattr(model.config, "reward_max_length", None) if args.benchmark_name == "pairs" else None
    limit = args.max_length or trained or model.config.get_text_config().max_position_embeddings
    found = score(model, template, rows, answers, max_length=limit, batch_tokens=args.batch_tokens)
    return [list(both) for both in zip(found[: len(pairs)], found[len(pairs) :], strict=True)]


def letter_scores(args: argparse.Namespace, pairs) -> list[list[list[float]]]:
    """[[p(A), p(B)] with chosen first, the same with chosen second] of every pair."""
    import torch

    from alignment.checkpoints import check_model, load_pretrained, training_tokenizer
    from alignment.templates import continuation_ids, load_template
    from alignment.unpadding import unpad

    check_model(args.model_name_or_path)
    tokenizer = training_tokenizer(args.model_name_or_path)
    model = load_pretrained("AutoModelForCausalLM", args.model_name_or_path, dtype=args.dtype).eval()
    unpad(model.to("cuda" if torch.cuda.is_available() else "cpu"))
    spelled = continuation_ids(tokenizer, [f" {letter}" for letter in LETTERS])
    shared = len(os.path.commonprefix(spelled))  # a tokenizer may spell the space apart
    letters = [ids[shared] for ids in spelled]
    template = load_template("almost", tokenizer)
    limit = args.max_length or model.config.get_text_config().max_position_embeddings
    texts = [question(pair, swapped) for pair in pairs for swapped in (False, True)]
    prompts = [ids + spelled[0][:shared] for ids in template.text_ids(texts)]
    found = next_token_probabilities(model, prompts, letters, limit, args.batch_tokens)
    return [[found[i], found[i + 1]] for i in range(0, len(found), 2)]


def next_token_probabilities(model, prompts: list[list[int]], tokens: list[int], limit: int, batch_tokens: int):
    """p(token | prompt) of each token after each prompt: right-padded batches of like length, read at the last token.

    Only the last position goes through the head. A prompt over `limit` loses tokens from the left: the end asks (A14).
    """
    import torch

    from alignment.batches import Sample, budgeted_batches, collate

    samples = [Sample(row, ids[-limit:], len(ids[-limit:])) for row, ids in enumerate(prompts)]
    found: list[list[float]] = [[] for _ in prompts]
    with torch.inference_mode():
        for batch in budgeted_batches([len(sample) for sample in samples], batch_tokens):
            tensors = collate([(samples[i],) for i in batch], pad_id=0)
            inputs = {name: tensors[name].to(model.device) for name in ("input_ids", "attention_mask")}
            last = inputs["attention_mask"].sum(1) - 1  # (B,)
            keep = last.unique()
            logits = model(**inputs, use_cache=False, logits_to_keep=keep).logits  # (B, K, V)
            rows = torch.arange(len(batch), device=last.device)
            probabilities = logits[rows, torch.searchsorted(keep, last)].float().softmax(-1)[:, tokens]
            for i, values in zip(batch, probabilities.tolist(), strict=True):
                found[i] = values
    return found


if __name__ == "__main__":
    run(parse_args, main)
