"""ALMoST, step 1: synthetic comparisons from nothing but a language model, a hundred seed prompts and a few dialogues.

    --mode pg   seed prompts -> new prompts                     writes prompts.txt
    --mode rg   prompts x demonstrations x shots -> responses   writes <model>-<demo>-<k>shot.json, one a configuration
    --mode cs   responses -> ranked, filtered, binarised pairs  writes comparison.json

Each step reads what it finds, .jsonl and .parquet too, and writes these by --file_type, row by row. All three read and
write --output_dir, keep a journal of finished requests there, and go on where they were stopped:

    python synthetic_feedback.py --mode pg --prompt_file_path assets/seed_prompts.txt --num_generation 100 \\
        --model_name_or_path saved_models/SmolLM2-135M-Instruct --output_dir outputs/almost
"""

from __future__ import annotations

import argparse
import random
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

from alignment import few_shot, records
from alignment.command_line import ArgumentParser, UserError, boolean, nearest, number, run
from alignment.comparisons import Waterfall, compare, in_messages, parse_rubric
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.filters import QUERY_RULES, QUERY_RULES_AS_RELEASED, why_drop
from alignment.generation import (
    AT_ONCE,
    Reply,
    Request,
    Sampling,
    generate,
    parts,
    record_seed,
    refuse_failures,
    stream,
)
from alignment.journal import Journal
from alignment.pretrained import check_model
from alignment.run_cards import Run, claim
from alignment.templates import data_from

DUPLICATE = 0.5  # ROUGE-L F against a seed or accepted prompt; the released call, where its function's default is 0.7
STALLED = 1_000  # pg stops when the last so many candidates ...
STALLED_ACCEPTS = 5  # ... brought fewer than so many prompts
MANY = 100_000  # prompts, from which on, and at each doubling, pg says what twice as many cost to compare
SCORED_TOGETHER = 1_024  # pairs that --filter_reward_model sorts by length at a time


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add, positive = parser.add_argument, number(int, 1)
    add("--mode", required=True, choices=("pg", "rg", "cs"), help="which of the three steps")
    add("--output_dir", type=Path, required=True, help="folder of prompts.txt and all that follows")
    shown = "pg: the seed file; rg: demonstration files, several in one call load the model once"
    add("--prompt_file_path", type=Path, nargs="+", metavar="FILE", help=shown)
    shown = "folder or hub name; with --backend simulated also its settings: writer-7b?quality=0.4&latency=0.01"
    add("--model_name_or_path", metavar="MODEL", help=shown)
    add("--num_generation", type=positive, default=100, help="pg: prompts to accept (default: 100)")
    shown = "examples before the prompt: pg queries (default: 10); rg dialogues, one or several counts (default: 3)"
    add("--n_shot", type=positive, nargs="+", help=shown)
    shown = (
        "pg: candidates drawn between two updates of the shots' pool; hf: sequences decoded together at most "
        "(default: 256; the released code's 4 leaves an engine idle)"
    )
    add("--batch_size", type=positive, default=256, help=shown)
    add("--rubric", nargs="+", metavar="CONFIG", help="cs: configurations, best first; equal ranks as a,b")
    shown = "cs: keep only the pairs on which this reward model of train.py agrees (the paper's as-is RM validation)"
    add("--filter_reward_model", metavar="MODEL", help=shown)
    shown = "cs: prompt, chosen and rejected as texts or as lists of messages, for tools that else glue them together"
    add("--format", choices=("text", "messages"), help=f"{shown} (default: text)")
    shown = "what is written: a text of prompts and .json lists, or tables (default: json); any of them is read"
    add("--file_type", choices=("json", "jsonl", "parquet"), help=shown)
    add("--temperature", type=number(float, 0), help="default: 1.2 for pg, 1.0 for rg, as the paper")
    add("--top_p", type=number(float, 0, 1, above=True), default=0.9, help="default: 0.9, as the paper")
    shown = "default: 64 for pg; 384 for rg, 768 where the demonstrations' name has Faithful in it"
    add("--max_new_tokens", type=positive, help=shown)
    add("--seed", type=int, default=42, help="each record's own seed derives from it (default: 42)")
    add("--limit", type=positive, help="rg, cs: only the first so many prompts (default: all)")
    shown = "pg, rg: read queries, drop long ones, space turns as the released code does (docs/almost.md, A1 A2 A7)"
    add("--legacy", type=boolean, nargs="?", const=True, default=False, help=shown)
    add_engine_arguments(parser)
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    {"pg": generate_prompts, "rg": generate_responses, "cs": construct_comparisons}[args.mode](args)


# pg: seed prompts -> prompts


def generate_prompts(args: argparse.Namespace) -> None:
    seed_file = only_one(args.prompt_file_path, "--prompt_file_path", "the seed file")
    n_shot = only_one(args.n_shot or [10], "--n_shot", "a number of queries")
    seeds = few_shot.Seeds.read(seed_file, n_shot)
    engine = engine_from(args)
    sampling = Sampling(
        max_tokens=args.max_new_tokens or 64,
        temperature=1.2 if args.temperature is None else args.temperature,
        top_p=args.top_p,
        stop=() if args.legacy else few_shot.QUERY_STOP,
    )

    output = records.to_write(args.output_dir, "prompts", records.PROMPTS, args.file_type)
    with claim(output, args, script=__file__, inputs=[seed_file], **read_models(args)) as held:
        if held.is_done():
            return print(held.already())
        refuse_other_model(held)
        held.begin()
        with Journal(output) as journal:
            accepted, dropped, failed = mine(seeds, engine, sampling, journal, args, n_shot)
        candidates = len(accepted) + sum(dropped.values())
        if not accepted:
            refuse_failures(failed)
            raise UserError(f"none of {candidates} candidates was accepted ({describe(dropped)}); try another model")
        records.write_prompts(output, accepted)
        refuse_failures(failed)
        held.finish({"candidates": candidates, "dropped": dict(dropped), "accepted": len(accepted)})
    print(f"pg: {candidates:,} candidates -> {len(accepted):,} prompts ({describe(dropped)}): {output}")


def mine(seeds, engine, sampling, journal, args, n_shot) -> tuple[list[str], Counter, list[Reply]]:
    """Prompts accepted, at most --num_generation; how many candidates were dropped for which reason; failed replies.

    Candidates are drawn in rounds, each from the pool as the round before left it, and judged in their order; so what
    is accepted depends on the seed and the round sizes alone, however often the run is stopped. A round of which
    requests failed is the last: the next run tries these again and goes on.
    """
    from alignment.rouge import Pool

    parse, data = few_shot.parse_query_as_released if args.legacy else few_shot.parse_query, data_from(args)
    rules = QUERY_RULES_AS_RELEASED if args.legacy else QUERY_RULES
    pool = Pool(seeds.queries, threshold=DUPLICATE)
    accepted, dropped, failed, drawn = [], Counter(), [], 0
    reasons: dict[str, str | None] = {}
    recent = deque(maxlen=STALLED)  # 1 for each candidate accepted
    many = MANY
    while len(accepted) < args.num_generation and not failed:
        if len(recent) == STALLED and sum(recent) < STALLED_ACCEPTS:
            print(f"pg: stopped early: the last {STALLED:,} candidates brought only {sum(recent)} prompts")
            break
        size = round_size(args.num_generation - len(accepted), len(accepted), drawn, args.batch_size)
        requests = [
            draw_query_request(seeds, accepted, n_shot, args.seed, index) for index in range(drawn, drawn + size)
        ]
        asked = data.asked([{"prompt": request.prompt} for request in requests])
        requests = [request._replace(prompt=prompt) for request, prompt in zip(requests, asked, strict=True)]
        drawn += size
        label = f"pg {len(accepted)}/{args.num_generation}"
        replies = generate(engine, requests, sampling, journal=journal, label=label, schema_retries=args.schema_retries)
        failed = [reply for reply in replies if reply.may_heal]
        if len(pool) >= many:
            print(f"pg: {pool.cost()}", flush=True)
            many = 2 * len(pool)
        for reply in replies:
            query = parse(reply.text or "")
            if not args.plan or query not in reasons:  # a plan's stand-ins come again and again
                reason = reply.finish if reply.text is None else why_drop(query, rules)
                reason = reason or (None if records.one_line(query) == query else "no line holds it")
                reasons[query] = reason or ("near duplicate" if pool.is_duplicate(query) else None)
            reason = reasons[query]
            recent.append(reason is None)
            if reason:
                dropped[reason] += 1
            elif len(accepted) < args.num_generation:
                accepted.append(query)
                pool.add(query)
            else:
                dropped["not needed"] += 1
    return accepted, dropped, failed


def round_size(missing: int, accepted: int, drawn: int, most: int) -> int:
    """Candidates to draw next: as many as are missing at the rate so far, in [16, most]."""
    rate = (accepted + 1) / (drawn + 2)
    return min(most, max(16, round(missing / rate)))


def draw_query_request(seeds, accepted: list[str], n_shot: int, seed: int, index: int) -> Request:
    """One candidate's request. Its shots are uniform over seeds and accepted prompts, so seeds thin out."""
    own_seed = record_seed(seed, "pg", index)
    population = range(len(seeds.queries) + len(accepted))
    chosen = random.Random(own_seed).sample(population, n_shot)
    shots = [seeds.queries[i] if i < len(seeds.queries) else accepted[i - len(seeds.queries)] for i in chosen]
    return Request(few_shot.format_query_prompt(seeds.instruction, shots), own_seed)


# rg: prompts -> responses of each configuration


def generate_responses(args: argparse.Namespace) -> None:
    prompts_file = records.prompts_file(args.output_dir)
    num_prompts = count_prompts(prompts_file, args.limit)
    if not args.prompt_file_path:
        raise UserError("--prompt_file_path is missing: give the demonstration files")
    shots = args.n_shot or [3]
    configurations = [
        (path, few_shot.Demonstrations.read(path, max(shots)), n_shot)
        for path in args.prompt_file_path
        for n_shot in shots
    ]
    engine = engine_from(args)
    finishes, said = Counter(), 0
    with ExitStack() as claims:
        held = []
        for path, demonstrations, n_shot in configurations:  # all of them before any work
            name = configuration_name(args.model_name_or_path, demonstrations.name, n_shot)
            if any(run.output.stem == name for run in held):
                raise UserError(f"two of the configurations are called {name}; rename one of the demonstration files")
            inputs = [prompts_file, path]
            output = records.to_write(args.output_dir, name, records.RESPONSES, args.file_type)
            held.append(claims.enter_context(claim(output, args, script=__file__, inputs=inputs, **read_models(args))))
            refuse_other_model(held[-1])
        for run_of, (_, demonstrations, n_shot) in zip(held, configurations, strict=True):
            if run_of.is_done():
                print(run_of.already())
                continue
            run_of.begin()
            sampling = Sampling(
                max_tokens=args.max_new_tokens or (768 if "Faithful" in demonstrations.name else 384),
                temperature=1.0 if args.temperature is None else args.temperature,
                top_p=args.top_p,
                stop=few_shot.REPLY_STOP,
            )
            requests = response_requests(args, prompts_file, demonstrations, n_shot)
            own, own_said = respond(engine, requests, sampling, num_prompts, run_of)
            finishes, said = finishes + own, said + own_said
    refuse_failures(Reply(None, finish) for finish in finishes.elements())
    if finishes and not said:
        raise UserError(f"no request got a reply ({describe(finishes)})")


def response_requests(args, prompts_file: Path, demonstrations, n_shot: int) -> Iterator[Request]:
    """The requests of one configuration, in the prompts' order; a part of them is held."""
    data, number = data_from(args), 0
    for queries in parts(islice(records.prompts_of(prompts_file), args.limit), AT_ONCE):
        shown = [{"prompt": demonstrations.format_prompt(query, n_shot, legacy=args.legacy)} for query in queries]
        for prompt in data.asked(shown):
            yield Request(prompt, record_seed(args.seed, demonstrations.name, n_shot, number))
            number += 1


def respond(engine, requests, sampling: Sampling, num_prompts: int, held: Run) -> tuple[Counter, int]:
    """One configuration: a reply per query, null where none came, in `<model>-<demo>-<k>shot.json`, written as they
    come. How many replies finished for which reason, and how many say something."""
    finishes, came, said = Counter(), 0, 0

    def texts(replies: Iterator[Reply]) -> Iterator[str | None]:
        nonlocal came, said
        for reply in replies:
            finishes[reply.finish] += 1
            came += reply.text is not None
            said += bool(reply.text)
            yield None if reply.text is None else few_shot.parse_reply(reply.text)

    with Journal(held.output) as journal:
        how = {"journal": journal, "label": held.output.stem, "total": num_prompts}
        replies = stream(engine, requests, sampling, **how, schema_retries=held.args.schema_retries)
        records.write_responses(held.output, held.of_inputs(texts(replies)))
    if came and not any(Reply(None, finish).may_heal for finish in finishes):
        held.finish({"prompts": num_prompts, "finish": dict(finishes)})
    print(f"rg: {num_prompts:,} prompts -> {came:,} replies ({describe(finishes)}): {held.output}")
    return finishes, said


def configuration_name(model: str, demonstrations: str, n_shot: int) -> str:
    """`llama-2-7b-hf-Faithful-3shot`, as released."""
    return f"{Path(model.partition('?')[0]).name.lower()}-{demonstrations}-{n_shot}shot"


# cs: responses -> comparisons


def construct_comparisons(args: argparse.Namespace) -> None:
    names, ranks = parse_rubric(args.rubric or [])
    files = check_configurations(names, args.output_dir)
    prompts_file = records.prompts_file(args.output_dir)
    output = records.to_write(args.output_dir, "comparison", records.RESPONSES, args.file_type)
    read = {"inputs": [prompts_file, *files], "models": [args.filter_reward_model], "cache_dir": args.cache_dir}
    with claim(output, args, script=__file__, **read) as held:
        if held.is_done():
            return print(held.already())
        num_prompts = count_prompts(prompts_file, args.limit)
        for file in files:  # all of each, before the old comparisons go
            deque(records.responses_of(file, num_prompts, args.limit), maxlen=0)
        held.begin()
        counts = Waterfall(names)
        queries = islice(records.prompts_of(prompts_file), args.limit)
        responses = [records.responses_of(file, num_prompts, args.limit) for file in files]
        comparisons = compare(queries, responses, names, ranks, counts)
        if args.filter_reward_model:
            comparisons = validate(comparisons, args.filter_reward_model, args.cache_dir, counts)
        form = in_messages if args.format == "messages" else dict
        like = form({"prompt": "", "chosen": "", "rejected": "", "meta": ""})
        records.write_rows(output, held.of_inputs(map(form, comparisons)), like)
        held.finish(counts.as_dict())
    print(counts.tables())
    print(f"cs: {num_prompts:,} prompts x {len(names)} -> {counts.total():,} comparisons: {output}")


def check_configurations(names: list[str], folder: Path) -> list[Path]:
    """The response files of these configurations."""
    there = sorted(path.stem for form in records.RESPONSES for path in folder.glob(f"*shot{form}"))
    files = [records.found(folder, name, records.RESPONSES) for name in names]
    for name, file in zip(names, files, strict=True):
        if file is None or not file.is_file():
            raise UserError(f"--rubric: {folder / name}.json does not exist{nearest(name, there)}")
    return files


def validate(comparisons: Iterator[dict], model_name: str, cache_dir: Path | None, counts: Waterfall) -> Iterator[dict]:
    """The comparisons whose chosen response has the higher reward, by a model trained on other data (section 2.2)."""
    check_model(model_name)
    from alignment.training import reward_model

    model, template = reward_model.load(model_name, cache_dir=cache_dir)
    counts.refused = Counter()
    while chunk := list(islice(comparisons, SCORED_TOGETHER)):
        chosen, rejected = (
            reward_model.score(model, template, chunk, [row[side] for row in chunk]) for side in ("chosen", "rejected")
        )
        for row, high, low in zip(chunk, chosen, rejected, strict=True):
            if high > low:
                yield row
            else:
                counts.refused[row["meta"]] += 1


# What the modes share


def only_one(values: list | None, flag: str, what: str):
    if not values or len(values) > 1:
        raise UserError(f"--mode pg needs {flag} once: {what}")
    return values[0]


def refuse_other_model(held: Run) -> None:
    """Raise UserError where the output was made by another model: names of files do not tell all of a model."""
    card = held.card()
    if card:
        ours, theirs = (
            list(side.get("models", {}).values()) or side["arguments"].get("model_name_or_path")
            for side in (held.made_of, card)
        )
        if ours != theirs:
            other = card["arguments"].get("model_name_or_path")
            raise UserError(
                f"{held.output} was made by another model ({other}); give another --output_dir, or remove it"
            )


def read_models(args: argparse.Namespace) -> dict:
    return {"models": models_read(args), "cache_dir": args.cache_dir}


def count_prompts(path: Path, limit: int | None) -> int:
    """How many prompts a file has, the first `limit` at most. All of it is checked."""
    count = sum(1 for _ in records.prompts_of(path))
    return min(count, limit or count)


def describe(counts: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common()) or "none dropped"


if __name__ == "__main__":
    run(parse_args, main)
