"""UltraFeedback -> the pairs that DPO learns, and the responses that a judge reads for CUT: of the same instructions.

    python studies/ultrafeedback_rows.py train_clean.jsonl --output_dir outputs/cut_beside_dpo --limit 1000

Reads rows of an instruction, its `completions` and each one's overall_score, as UltraFeedback is published, or rows of
prompt, chosen, rejected and metadata (score_chosen, score_rejected), its pairs. Writes into --output_dir

    pairs.json         every two responses of unequal score, the better one chosen, as in the paper
    responses.json     every response once, for scripts/annotate_judgments.py; its judgment is what scores can say, null
                       of an instruction's best and a bare verdict of the others, until a judge says what is wrong
    instructions.json  every instruction once, for generate.py
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections import Counter
from itertools import combinations
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.judging.judgments import BARE
from alignment.pretrained import training_tokenizer
from alignment.records import is_number, json_list, read_rows, write_whole
from alignment.run_cards import claim
from alignment.templates import Template, load_template

Scored = list[tuple[str, float]]  # a response and its score


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("data_path", help="rows of UltraFeedback: .json, .jsonl, .parquet or a hub name")
    parser.add_argument("--output_dir", type=Path, required=True, help="where the files go")
    parser.add_argument("--limit", type=number(int, 1), help="instructions, from the start (default: all)")
    shown = "tokens; instructions with a longer response are left out, as one method would cut it and one drop it"
    parser.add_argument("--cutoff_len", type=number(int, 8), help=f"{shown} (default: none is)")
    parser.add_argument("--model_name_or_path", metavar="MODEL", help="whose tokens --cutoff_len counts")
    args = parser.parse_args(argv)
    if bool(args.cutoff_len) != bool(args.model_name_or_path):
        parser.error("--cutoff_len and --model_name_or_path go together")
    return args


def scored_responses(place: str, row: dict) -> tuple[str, Scored]:
    """The instruction of a row, and its responses with their scores. Raises UserError, which opens with `place`."""
    if "completions" in row:
        each = row["completions"]
        if not isinstance(each, list) or not all(isinstance(one, dict) for one in each):
            raise UserError(f"{place}: 'completions' is no list of objects")
        instruction, found = row.get("instruction"), [(one.get("response"), one.get("overall_score")) for one in each]
    else:
        scores = row.get("metadata")
        if not isinstance(scores, dict):
            raise UserError(f"{place} has neither 'completions' nor 'metadata' with score_chosen and score_rejected")
        instruction = row.get("prompt")
        found = [(row.get(side), scores.get(f"score_{side}")) for side in ("chosen", "rejected")]
    if not isinstance(instruction, str) or not instruction.strip():
        raise UserError(f"{place}: the instruction is no text")
    for response, score in found:
        if not isinstance(response, str) or not is_number(score):
            raise UserError(f"{place}: a response is no text, or its score no number")
    return instruction, found


def pairs_of(instruction: str, responses: Scored) -> list[dict]:
    """Every two responses of unequal score."""
    ranked = sorted(responses, key=lambda each: -each[1])
    return [
        {"prompt": instruction, "chosen": better[0], "rejected": worse[0]}
        for better, worse in combinations(ranked, 2)
        if better[1] > worse[1]
    ]


def lengths_of(template: Template, instruction: str, responses: Scored) -> list[int]:
    """Tokens of each response after the longest prompt that it is learned with: CUT's, with a bare verdict."""
    (prompt,) = template.prompt_ids([{"instruction": instruction, "judgment": BARE}])
    return [len(prompt) + len(reply) for reply in template.response_ids([text for text, _ in responses])]


def main(args: Namespace) -> None:
    template = None
    if args.cutoff_len:
        template = load_template("alpaca_judgment", training_tokenizer(args.model_name_or_path))
    with claim(args.output_dir / "pairs.json", args, script=__file__, inputs=[args.data_path]) as held:
        pairs, answered, counts = [], [], Counter()
        for number, row in enumerate(read_rows(args.data_path)):
            if counts["rows used"] == args.limit:
                break
            instruction, given = scored_responses(f"data {args.data_path}, row {number}", row)
            responses = list({text: (text, score) for text, score in given if text.strip()}.values())
            if template and max(lengths_of(template, instruction, responses), default=0) > args.cutoff_len:
                counts["instructions with a response over --cutoff_len"] += 1
                continue
            found = pairs_of(instruction, responses)
            counts["rows used"] += 1
            counts["blank or repeated responses"] += len(given) - len(responses)
            counts["pairs of equal score"] += math.comb(len(responses), 2) - len(found)
            pairs += found
            best = max((score for _, score in responses), default=None)
            for text, score in responses:
                judgment = None if score == best else BARE
                answered.append({"instruction": instruction, "input": "", "output": text, "judgment": judgment})
        if not pairs:
            raise UserError(f"data {args.data_path}: no instruction has two responses of unequal score")
        instructions = [{"instruction": each} for each in dict.fromkeys(row["instruction"] for row in answered)]
        counts |= {"instructions": len(instructions), "responses": len(answered), "pairs": len(pairs)}
        held.begin()  # seconds of work, so it is done again instead of asking each file whether it is as it was
        write_whole(args.output_dir / "responses.json", json_list({"id": n} | row for n, row in enumerate(answered)))
        write_whole(args.output_dir / "instructions.json", json_list(instructions))
        write_whole(args.output_dir / "pairs.json", json_list(pairs))
        held.finish(counts)
    print(table([(f"{args.data_path} -> {args.output_dir}", ""), *counts.items()]))


if __name__ == "__main__":
    run(parse_args, main)
