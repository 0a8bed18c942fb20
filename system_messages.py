"""Janus, the data: thousands of preferences as system messages, and what a model learns from them.

    --mode pa      instructions -> sets of four preferences           writes preference_sets.json
    --mode sm      a set -> the system message that weaves it         writes system_messages.json
    --mode gr      system message + instruction -> gold response      writes responses.json
    --mode rb      preferences -> rubrics that grade by them          writes rubrics.json
    --mode ds      all of these -> what is learned and measured       writes multifaceted_*.json
    --mode import  the published collection, hub or file              writes multifaceted_*.json
    --mode report  what is in the collection                          writes report.html

All read and write --output_dir, each the files of those before it. What asks a model keeps a journal of finished
requests there, and goes on where it was stopped:

    python system_messages.py --mode pa --data_path instructions.jsonl --output_dir outputs/janus \\
        --model_name_or_path saved_models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from alignment import records
from alignment.asking import Asked, ask
from alignment.command_line import ArgumentParser, Progress, UserError, number, run, table
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.generation import Sampling, generate, refuse_failures
from alignment.janus import preferences, rows, splits, writers
from alignment.janus.leaks import LeakRule
from alignment.journal import Journal
from alignment.run_cards import check_no_input, claim

MODES = ("pa", "sm", "gr", "rb", "ds", "import", "report")
MAX_TOKENS = {"pa": 768, "sm": 512, "gr": 1024, "rb": 768}  # gr's is that of the released inference code


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add, positive = parser.add_argument, number(int, 1)
    add("--mode", required=True, choices=MODES, help="which of the seven steps")
    add("--output_dir", type=Path, required=True, help="folder of all that this writes")
    shown = "pa: instructions, .json, .jsonl, .parquet, .txt or a hub name; import: parts of the published collection"
    add("--data_path", nargs="+", metavar="DATA", help=shown)
    shown = (
        "pa: the column of the instruction (default: the first there of instruction, prompt, user_prompt, turns, text)"
    )
    add("--instruction_key", metavar="KEY", help=shown)
    shown = (
        "pa: instructions of the bench, apart from those of training (default: some of --data_path, by --bench_share)"
    )
    add("--bench_data_path", nargs="+", metavar="DATA", help=shown)
    shown = "pa: share of --data_path that is drawn for the bench, 0 for none (default: 0.05, our choice)"
    add("--bench_share", type=number(float, 0, 1), default=0.05, help=shown)
    shown = (
        "pa: seed preferences, {dimension: {subdimension: [preference, ...]}} (default: assets/janus/preferences.json)"
    )
    add("--preference_tree", type=Path, default=preferences.TREE, metavar="FILE", help=shown)
    add("--model_name_or_path", metavar="MODEL", help="who writes: a folder or hub name; for ds, import, report none")
    shown = "pa: preference sets of an instruction (default: 3, as the paper)"
    add("--num_sets", type=number(int, 1, 100_000), default=3, help=shown)
    shown = "rb: rows that get rubrics; ds needs those of the bench (default: bench, as the paper)"
    add("--rubrics_for", choices=("bench", "all"), default="bench", help=shown)
    shown = "requests for a usable reply at most, the first included (default: 4)"
    add("--tries", type=positive, default=4, help=shown)
    shown = "default: 1.0, that of the released inference and rubric code"
    add("--temperature", type=number(float, 0), default=1.0, help=shown)
    add("--top_p", type=number(float, 0, 1, above=True), default=0.9, help="default: 0.9, likewise")
    shown = "tokens of a reply (default: pa 768, sm 512, gr 1024, rb 768; gr's is the released inference code's)"
    add("--max_new_tokens", type=positive, help=shown)
    add("--batch_size", type=positive, default=256, help="hf: sequences decoded together at most (default: 256)")
    add("--seed", type=int, default=42, help="each record's own seed derives from it (default: 42)")
    shown = "for a trial: only the first so many instructions (pa) or rows (sm, gr, rb) (default: all)"
    add("--limit", type=positive, help=shown)
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    if args.mode in ("pa", "import") and not args.data_path:
        parser.error(f"--data_path is missing: --mode {args.mode} reads it")
    return args


def main(args: argparse.Namespace) -> None:
    modes: dict[str, Callable[[argparse.Namespace], None]] = {
        "pa": augment_preferences,
        "sm": write_system_messages,
        "gr": write_responses,
        "rb": write_rubrics,
        "ds": build_sets,
        "import": import_published,
        "report": write_report,
    }
    modes[args.mode](args)


# What asks a model


def make(args: argparse.Namespace, inputs: list, writer, rows_made: Callable[[Asked], tuple[list[dict], dict]]) -> None:
    """One mode that asks: its output held, `writer`'s questions asked, the rows that are made of the answers written,
    the counts shown and kept on the card."""
    output = args.output_dir / rows.STAGES[args.mode]
    most = args.max_new_tokens or MAX_TOKENS[args.mode]
    sampling = Sampling(max_tokens=most, temperature=args.temperature, top_p=args.top_p, schema=writer.schema)
    engine, models = engine_from(args), models_read(args)
    with claim(output, args, script=__file__, inputs=inputs, models=models, cache_dir=args.cache_dir) as held:
        if held.is_done():
            return print(held.already())
        held.begin()
        with Journal(output) as journal:
            how = {"journal": journal, "label": args.mode, "schema_retries": args.schema_retries}

            def send(requests):
                return generate(engine, requests, sampling, **how)

            asked = ask(len(writer.asks), request=writer.request, read=writer.read, send=send, tries=args.tries)
        made, counts = rows_made(asked)
        if not made:
            refuse_failures(asked.failed)
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in asked.given_up.most_common(3))
            raise UserError(
                f"of {len(asked.values):,} questions none got a usable reply ({reasons}); try another model"
            )
        records.write_whole(output, records.json_list(made))
        print(table([("replies", ""), *asked.rows()]))
        refuse_failures(asked.failed)
        held.finish(counts | asked.counts() | {"rows": len(made)})
    print(f"{args.mode}: {len(made):,} rows: {output}")


def read_stage(args: argparse.Namespace, mode: str) -> tuple[Path, list[dict]]:
    path = rows.stage_path(args.output_dir, mode)
    return path, list(rows.stage_rows(path, mode))


def extended(asks: Sequence[dict], key: str, asked: Asked) -> list[dict]:
    """The rows that got a value, with it under `key`."""
    return [row | {key: value} for row, value in zip(asks, asked.values, strict=True) if value is not None]


def augment_preferences(args: argparse.Namespace) -> None:
    tree = preferences.Tree.read(args.preference_tree)
    bench, train, dropped = read_splits(args)
    told = "".join(f", {count:,} left out: {reason}" for reason, count in dropped.items())
    print(f"pa: {len(train):,} instructions for training, {len(bench):,} for the bench{told}")
    writer = writers.PreferenceSets([*bench, *train], args.num_sets, tree, args.seed)
    benches = {str(row["id"]) for row in bench}

    def rows_made(asked: Asked) -> tuple[list[dict], dict]:
        made = [
            {"id": row["id"], "set": number, "split": "bench" if str(row["id"]) in benches else "train"}
            | {key: row[key] for key in ("main_source", "original_source", "prompt")}
            | {"preference_set": found}
            for (row, number), found in zip(writer.asks, asked.values, strict=True)
            if found is not None
        ]
        return made, {"instructions": {"train": len(train), "bench": len(bench)}, "left out": dropped}

    make(args, [*args.data_path, *(args.bench_data_path or []), args.preference_tree], writer, rows_made)


def read_splits(args: argparse.Namespace) -> tuple[list[dict], list[dict], dict[str, int]]:
    """Instructions of the bench and of training, and how many were left out for which reason."""
    read = partial(rows.read_instructions, key=args.instruction_key)
    if args.bench_data_path:
        both, count = read([*args.data_path, *args.bench_data_path]), len(read(args.data_path))
        train, bench = both[:count][: args.limit], both[count:][: args.limit]
    else:
        found = read(args.data_path)[: args.limit]
        drawn = splits.draw_bench(found, args.bench_share, args.seed)
        bench, train = ([row for row in found if (str(row["id"]) in drawn) == side] for side in (True, False))
    return splits.without_duplicates(bench, train)


def write_system_messages(args: argparse.Namespace) -> None:
    path, sets = read_stage(args, "pa")
    rule = LeakRule({str(row["id"]): row["prompt"] for row in sets}.values())
    writer = writers.SystemMessages(sets[: args.limit], rule, args.seed)
    make(args, [path], writer, lambda asked: (extended(writer.asks, "system", asked), {}))


def write_responses(args: argparse.Namespace) -> None:
    path, messages = read_stage(args, "sm")
    writer = writers.Responses(messages[: args.limit], args.seed)

    def rows_made(asked: Asked) -> tuple[list[dict], dict]:
        from alignment.janus.measures import likeness

        made = extended(writer.asks, "output", asked)
        alike = likeness(made)
        if alike["pairs"]:
            scores = f"mean {alike['mean']:.3f}, highest {alike['max']:.3f}"
            print(f"ROUGE-L of two responses to one instruction: {scores}, over {alike['pairs']:,} pairs")
        return made, {"rouge_l_of_responses": alike}

    make(args, [path], writer, rows_made)


def write_rubrics(args: argparse.Namespace) -> None:
    path, responses = read_stage(args, "gr")
    wanted = [row for row in responses if args.rubrics_for == "all" or row["split"] == "bench"][: args.limit]
    if not wanted:
        raise UserError(f"{path} has no row of the bench; draw one with --mode pa, or give --rubrics_for all")
    writer = writers.Rubrics(wanted, args.seed)

    def rows_made(asked: Asked) -> tuple[list[dict], dict]:
        made, lacking = writers.with_rubrics(wanted, asked)
        return made, {"rows without all four": lacking}

    make(args, [path], writer, rows_made)


# ds, import, report: these ask nobody


def build_sets(args: argparse.Namespace) -> None:
    path = rows.stage_path(args.output_dir, "gr")
    bench = [row for row in rows.stage_rows(path, "gr") if row["split"] == "bench"]
    reading = partial(rows.one_by_one, path, trusted=True)  # a row at a time, once for each file that is written
    inputs, rubrics = [path], {}
    if bench:
        inputs.append(rows.stage_path(args.output_dir, "rb"))
        rubrics = {(str(row["id"]), row["set"]): row for row in rows.stage_rows(inputs[1], "rb")}
    for row in bench:
        own = rubrics.get((str(row["id"]), row["set"]))
        if own and any(own[key] != row[key] for key in ("preference_set", "system", "output")):
            raise UserError(
                f"{inputs[1]}: set {row['set']} of id {row['id']!r} is not that of {path}; run --mode rb again"
            )
    graded = [(row, own["rubrics"]) for row in bench if (own := rubrics.get((str(row["id"]), row["set"])))]

    def pairs_of(kind: str):
        return splits.pairs(reading(), kind, args.seed)

    makers = {
        "sft": lambda: splits.demonstrations(reading()),
        "small": lambda: splits.one_each(reading(), args.seed),
        **{kind: partial(pairs_of, kind) for kind in ("dpo", "orpo", "rm")},
        "rm_test": lambda: splits.pairs(bench, "rm_test", args.seed),
        "bench": lambda: (splits.bench_row(*each) for each in graded),
    }
    with claim(args.output_dir / rows.FILES["sft"], args, script=__file__, inputs=inputs) as held:
        if held.is_done() and all(
            (args.output_dir / rows.FILES[kind]).exists() for kind in held.card()["counts"]["rows"]
        ):
            return print(held.already())
        compared = splits.prove_unseen(reading(), bench)
        if not compared:
            raise UserError(
                f"{path} has no row of training; give --mode pa more instructions, or a lower --bench_share"
            )
        held.begin()
        written = write_files(args.output_dir, makers)
        lacking = len(bench) - len(graded)
        counts = {
            "rows": written,
            "instructions compared with the bench": compared,
            "bench rows without rubrics": lacking,
        }
        held.finish(counts)
    print(table([("file", "rows"), *((rows.FILES[kind], count) for kind, count in written.items())]))
    if bench:
        print(f"ds: {compared:,} training instructions and their sets are unseen by the bench, exact and near")
    if lacking:
        print(f"ds: {lacking:,} rows of the bench have no rubrics and are left out")
    if "dpo" not in written:
        print("ds: no pairs: no instruction has two different responses")


def write_files(folder: Path, makers: dict[str, Callable]) -> dict[str, int]:
    """Write the published files and count their rows; of one without rows nothing stays, nor what another run left."""
    written = {}
    with Progress(len(makers), "files", unit="file") as progress:
        for kind, maker in makers.items():
            path, count = folder / rows.FILES[kind], 0

            def counted(made=maker):
                nonlocal count
                for count, row in enumerate(made(), 1):  # noqa: B007
                    yield row

            records.write_whole(path, records.json_list(counted()))
            if count:
                written[kind] = count
            else:
                path.unlink()
            progress.update()
    return written


def import_published(args: argparse.Namespace) -> None:
    found: dict[str, list[dict]] = {}
    for source in args.data_path:
        for kind, row in rows.published(source):
            found.setdefault(kind, []).append(row)
    kinds = [kind for kind in rows.FILES if kind in found]
    for kind in kinds:
        check_no_input(args.output_dir / rows.FILES[kind], args.data_path, [])
    with claim(args.output_dir / rows.FILES[kinds[0]], args, script=__file__, inputs=args.data_path) as held:
        if held.is_done() and all((args.output_dir / rows.FILES[kind]).exists() for kind in kinds):
            return print(held.already())
        held.begin()
        written = write_files(args.output_dir, {kind: partial(iter, found[kind]) for kind in kinds})
        held.finish({"rows": written})
    print(table([("file", "rows"), *((rows.FILES[kind], count) for kind, count in written.items())]))


def write_report(args: argparse.Namespace) -> None:
    from alignment.janus import measures
    from alignment.pages import page

    tree = preferences.Tree.read(args.preference_tree)
    path, found = measures.newest(args.output_dir)
    output = args.output_dir / "report.html"
    with claim(output, args, script=__file__, inputs=[path, args.preference_tree]) as held:
        if held.is_done():
            return print(held.already())
        held.begin()
        data = measures.report(found, tree, path.name, args.seed)
        records.write_whole(output, [page("multifaceted_report.html", data)])
        held.finish(data["counts"])
    print(table([("", ""), *data["counts"].items()]))
    print(f"report: {output}")


if __name__ == "__main__":
    run(parse_args, main)
