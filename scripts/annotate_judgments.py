"""Instructions + responses -> judgments by any judge: satisfactory, or what exactly is wrong.

    python scripts/annotate_judgments.py --model_name_or_path judge-70b --data_path saved_models/cut-1/iter2.json \\
        --output_file data/iter/train-alpaca-sample-iter2.json

Reads .json or .jsonl rows of instruction, (input,) and output, as generate.py writes them. Writes the rows that
finetune_unlikelihood.py reads: judgment is null where the response is satisfactory. --form ai_judge asks as the paper's
own judge was taught: a judgment, then Yes or No.

Raw replies stay in the journal beside the output; run again, they are read anew and nothing is paid for twice. A reply
that does not follow its form is counted by reason and its row left out; nothing is guessed.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.generation import Reply, Request, Sampling, generate, record_seed, refuse_failures
from alignment.journal import Journal
from alignment.judging.judgments import (
    FAULTY_SCORE,
    FORMS,
    JUDGE_STOP,
    Verdict,
    counts_by_reason,
    format_judge_prompt,
    parse_judgment,
    read_form,
    read_instructions,
)
from alignment.records import json_list, write_whole
from alignment.run_cards import claim
from alignment.templates import CHOICES, rendering_from


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--model_name_or_path", required=True, metavar="JUDGE", help="folder, hub or served name")
    parser.add_argument("--data_path", type=Path, required=True, help="instruction, (input,) output: .json or .jsonl")
    parser.add_argument("--output_file", type=Path, required=True, help="the .json of judgments")
    parser.add_argument("--form", choices=FORMS, default="annotate", help="what is asked (default: annotate)")
    parser.add_argument("--template", choices=CHOICES, help="default: the judge's chat template, raw where it has none")
    parser.add_argument("--temperature", type=number(float, 0), default=0.0, help="default: 0, greedy")
    parser.add_argument("--top_p", type=number(float, 0, 1, above=True), default=1.0, help="default: 1")
    parser.add_argument("--max_new_tokens", type=number(int, 1), default=512, help="default: 512")
    parser.add_argument("--batch_size", type=number(int, 1), default=256, help="hf: sequences in flight (default: 256)")
    parser.add_argument("--seed", type=int, default=42, help="each row's own seed derives from it (default: 42)")
    parser.add_argument("--limit", type=number(int, 1), help="only the first so many rows, for a trial")
    add_engine_arguments(parser)
    return parser.parse_args(argv)


def judge(rows: list[dict], args: Namespace) -> tuple[list[Verdict], list[Reply]]:
    """One verdict a row, and the judge's replies; a blank response is not asked about."""
    engine, rendering, form = engine_from(args), rendering_from(args, None), read_form(args.form)
    asked = [row for row in range(len(rows)) if rows[row]["output"].strip()]
    questions = rendering.asked([{"instruction": format_judge_prompt(form, rows[row])} for row in asked])
    requests = [
        Request(question, record_seed(args.seed, "judge", row)) for row, question in zip(asked, questions, strict=True)
    ]
    ends = (rendering.end_id,) if rendering.end else ()
    sampling = Sampling(args.max_new_tokens, args.temperature, args.top_p, (*rendering.stop, *JUDGE_STOP), ends)
    with Journal(args.output_file) as journal:
        replies = generate(
            engine, requests, sampling, journal=journal, label=f"judge {args.form}", schema_retries=args.schema_retries
        )
    verdicts = [Verdict(None, "blank response")] * len(rows)
    for row, reply in zip(asked, replies, strict=True):
        verdicts[row] = parse_judgment(args.form, reply.text, reply.finish, rows[row]["output"])
    return verdicts, replies


def judged_rows(rows: list[dict], verdicts: list[Verdict]) -> list[dict]:
    """The rows whose verdict could be read, as finetune_unlikelihood.py reads them."""
    return [
        {name: row[name] for name in ("id", "instruction", "input", "output")}
        | {"judgment": verdict.judgment, "score": None if verdict.judgment is None else FAULTY_SCORE}
        for row, verdict in zip(rows, verdicts, strict=True)
        if not verdict.malformed
    ]


def main(args: Namespace) -> None:
    rows = read_instructions(str(args.data_path), with_output=True)[: args.limit]
    read = {"inputs": [args.data_path], "models": models_read(args), "cache_dir": args.cache_dir}
    with claim(args.output_file, args, script=__file__, **read) as held:
        if held.is_done():
            return print(held.already())
        held.begin()
        verdicts, replies = judge(rows, args)
        counts = counts_by_reason(verdicts)
        found = judged_rows(rows, verdicts)
        if not found:
            refuse_failures(replies)
            reasons = [f"{count} {reason}" for reason, count in counts.items() if reason.startswith("malformed")]
            where = f"the replies are in the journal beside {args.output_file}"
            raise UserError(f"no reply could be read ({', '.join(reasons)}); {where}")
        write_whole(args.output_file, json_list(found))
        refuse_failures(replies)
        held.finish(counts)
    print(table([(f"{args.data_path} -> {args.output_file}", ""), *counts.items()]))


if __name__ == "__main__":
    run(parse_args, main)
