#!/usr/bin/env python
r"""Multifaceted Bench: how well responses keep to the preferences of their system messages, graded by rubrics.

    python eval/multifaceted_bench.py --bench multifaceted_bench.json --compare sft.json dpo.json \
        --model_name_or_path JUDGE --output_file scores.json

Reads the bench, a file or a hub name, and responses to it as generate.py writes them. A judge, any engine, grades each
response by each rubric of its row from 1 to 5 (Janus, section 3.3). Writes {"summary", "instances"}: scores with 95%
bootstrap intervals over instances, by source and by dimension, and of several models the paired differences; and every
grade with its feedback, or the reason why there is none. What has no grade is counted by reason and averaged nowhere.

Replies stay in the journal beside the output. The same command goes on where it was stopped; --reparse reads them anew.

    python eval/multifaceted_bench.py --bench multifaceted_bench.json --ablate true empty shuffled opposite \
        --policy outputs/janus_sft --output_file ablation.json

asks how much a policy depends on the system message (alignment/janus/ablation.py has the conditions): the
log-probability of the gold response under each, how alike the policy's answers to an instruction are under its messages
(ROUGE-L), and with a judge their scores, by the rubrics of the row's own message. Several policies are compared with
the first. Rows of a collection will do where nothing is graded. Writes {"summary", "rows"}.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from alignment.asking import SilentEngine
from alignment.command_line import ArgumentParser, UserError, boolean, number, run, table, warn
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.engines.scoring import scored
from alignment.generation import JANUS, Reply, Request, Sampling, generate, record_seed, refuse_failures
from alignment.intervals import percent, with_interval
from alignment.janus.ablation import CONDITIONS, compared, messages_under, read_gold
from alignment.journal import Journal
from alignment.judging.answers import listed, names_of
from alignment.judging.bench import alike, checked, difference, given_in, read_bench, responses_to, scores
from alignment.judging.grades import AllGraded, Graded, add_grading_arguments, graded_by, wording
from alignment.records import read_json, write_whole
from alignment.run_cards import claim
from alignment.templates import CHOICES, RAW, rendering_from


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    add, switch = parser.add_argument, {"type": boolean, "nargs": "?", "const": True, "default": False}
    add("--bench", required=True, metavar="BENCH", help="multifaceted_bench.json, or its name on the hub")
    shown = "responses to the bench's rows, a file of generate.py for each model; several are compared"
    add("--responses", "--compare", dest="responses", nargs="+", metavar="FILE", help=shown)
    add("--output_file", type=Path, required=True, help="where results go, as JSON")
    shown = "shows the judge the system message too (default: False, as released)"
    add("--show_system", **switch, help=shown)
    shown = "grades of a response by a rubric, of which the mean counts; several need a temperature"
    add("--runs", type=number(int, 1, 1000), default=1, help=f"{shown} (default: 1; the paper's is 3)")
    add("--reparse", **switch, help="asks nothing: reads what the journal holds, by a parser that was mended")
    add("--seed", type=int, default=42, help="of the judge's draws and of the intervals' (default: 42)")
    add("--limit", type=number(int, 1), help="for a trial: only the bench's first so many rows (default: all)")
    add_grading_arguments(parser)
    group = parser.add_argument_group("ablation of the system message")
    add = group.add_argument
    shown = "in the place of --responses: what stands for the message; true, the row's own, is always among them"
    add("--ablate", nargs="+", choices=CONDITIONS, metavar="CONDITION", help=f"{', '.join(CONDITIONS)}; {shown}")
    add("--policy", nargs="+", metavar="MODEL", help="--ablate: whom it is measured on, folders or hub names")
    policies = ("vllm", "hf")
    add("--policy_backend", choices=policies, default="vllm", help="--ablate: what writes answers (default: vllm)")
    shown = "--ablate: of an answer, sampled as Janus's are; 0 writes none (default: 1024, the paper's)"
    add("--policy_max_new_tokens", type=number(int, 0), default=1024, help=shown)
    shown = "--ablate: default: the one that the policy's folder names, else its tokenizer's own"
    add("--policy_template", choices=[name for name in CHOICES if name != RAW], help=shown)
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    if bool(args.responses) == bool(args.ablate):
        parser.error("give one of --responses (files to be graded) and --ablate (conditions to be compared)")
    if args.responses and not args.model_name_or_path:
        parser.error("--responses needs --model_name_or_path JUDGE, who grades them")
    if bool(args.ablate) != bool(args.policy):
        parser.error("--ablate and --policy MODEL are given together")
    if args.ablate and args.plan:
        parser.error("--plan is for --responses: the log-probabilities of --ablate are known by computing them")
    if args.ablate and args.model_name_or_path and not args.policy_max_new_tokens:
        parser.error("--policy_max_new_tokens 0 writes no answers, so --model_name_or_path JUDGE has none to grade")
    return args


def main(args: Namespace) -> None:
    if args.runs > 1 and args.temperature == 0:
        raise UserError(
            f"--runs {args.runs} at --temperature 0 asks the same every time; add --temperature 1 --top_p 0.9"
        )
    if args.ablate:
        return ablate(args)
    bench = read_bench(args.bench)
    answers = {
        name: responses_to(bench, path, args.limit)
        for name, path in zip(names_of(args.responses), args.responses, strict=True)
    }
    rows, faults = checked(bench[: args.limit])
    engine, read = engine_from(args), {"inputs": [args.bench, *args.responses], "models": models_read(args)}
    with claim(args.output_file, args, script=__file__, **read, cache_dir=args.cache_dir) as held:
        if held.is_done() and not args.reparse:
            print(held.already())
            return show(read_json(args.output_file, "results")["summary"])
        warn_of(faults)
        held.begin()
        found = judged(SilentEngine(engine) if args.reparse else engine, rows, answers, args)
        models = by_model(found, answers)
        if not any(each.score is not None for own in models.values() for each in own):
            refuse_failures(found.asked.failed)
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in found.asked.given_up.most_common(3))
            raise UserError(f"no response has a grade by all of its rubrics ({reasons or 'all are empty'})")
        summary = summarised(args, rows, models, faults) | {"replies": found.asked.counts()}
        results = {"summary": summary, "instances": instances(rows, models)}
        write_whole(args.output_file, [json.dumps(results, ensure_ascii=False, indent=1) + "\n"])
        refuse_failures(found.asked.failed)
        held.finish({"instances": len(rows), "models": len(models)} | found.asked.counts())
    print(table([("replies", ""), *found.asked.rows()]))
    show(summary)


def warn_of(faults: Sequence[tuple[object, str, str]]) -> None:
    """Say which rubrics tell no grades apart, before anything is asked."""
    if faults:
        told = listed([f"id {name}, {dimension}: {fault}" for name, dimension, fault in faults])
        warn(f"{len(faults):,} rubrics cannot tell grades apart ({told})")


def judged(engine: Any, rows: list[dict], answers: dict[str, list], args: Namespace) -> AllGraded:
    """Every model's responses graded together, so that an engine computes what they share once."""
    pairs = [(row, text) for own in answers.values() for row, text in zip(rows, own, strict=True)]
    return graded_by(engine, pairs, args, runs=args.runs, show_system=args.show_system)


def by_model(found: AllGraded, names: Sequence[str]) -> dict[str, list[Graded]]:
    each = len(found.responses) // len(names)
    return {name: found.responses[place * each : (place + 1) * each] for place, name in enumerate(names)}


# Results


def summarised(args: Namespace, rows: list[dict], models: dict[str, list[Graded]], faults: list) -> dict[str, Any]:
    """All but the instances. `same_grade`: by dimension, how many rubrics gave all models the same grade, of those that
    graded them all; `only_grade`: the grade, where the judge gave no other."""
    given = {grade for own in models.values() for grade in given_in(own)}
    same: dict[str, list[bool]] = {}
    for row, *own in zip(rows, *models.values(), strict=True):
        for name, is_alike in zip(row["dimensions"], alike(row, own), strict=True):
            if is_alike is not None:
                same.setdefault(name, []).append(is_alike)
    return {
        "judge": args.model_name_or_path,
        "template": wording("grade_json.txt" if args.as_json else "grade.txt", "grade_user.txt"),
        "runs": args.runs,
        "show_system": args.show_system,
        "rubric_faults": [dict(zip(("id", "dimension", "fault"), each, strict=True)) for each in faults],
        "only_grade": given.pop() if len(given) == 1 else None,
        "models": {name: scores(rows, own, seed=args.seed) for name, own in models.items()},
        "compared": [
            {"first": one, "second": other} | difference(rows, models[one], models[other], seed=args.seed)
            for one, other in combinations(models, 2)
        ],
        "same_grade": {name: {"rubrics": sum(own), "of": len(own)} for name, own in same.items()},
    }


def instances(rows: list[dict], models: dict[str, list[Graded]]) -> list[dict]:
    """Every grade with its feedback, or why there is none; lists of runs."""
    found = []
    for place, row in enumerate(rows):
        own = {name: responses[place] for name, responses in models.items()}
        same = alike(row, list(own.values()))
        told = {
            name: {
                "score": each.score,
                "reason": each.reason,
                "rubrics": [
                    {key: [getattr(verdict, key) for verdict in runs] for key in ("grade", "feedback", "reason")}
                    for runs in each.verdicts
                ],
            }
            for name, each in own.items()
        }
        rubrics = [
            {"dimension": name, "criteria": rubric["criteria"], "same_grade": is_alike}
            for name, rubric, is_alike in zip(row["dimensions"], row["rubrics"], same, strict=True)
        ]
        found.append({key: row[key] for key in ("id", "source", "prompt")} | {"rubrics": rubrics, "models": told})
    return found


def show(summary: dict[str, Any]) -> None:
    models = summary["models"]

    def line(name: str, value) -> tuple[str, ...]:
        found = [value(each) for each in models.values()]
        return (name, *(with_interval(own["mean"], own["interval"], ".2f") if own else "none" for own in found))

    rows = [("score [95% interval]", *models), line("all", lambda each: each["score"])]
    for part in ("by_dimension", "by_source"):
        names = dict.fromkeys(name for each in models.values() for name in each[part])
        rows += [line(name or "no source", lambda each, n=name, p=part: each[p].get(n)) for name in names]
    rows.append(("instances", *(each["score"]["n"] if each["score"] else 0 for each in models.values())))
    for reason in dict.fromkeys(reason for each in models.values() for reason in each["without_score"]):
        rows.append((f"without a score: {reason}", *(each["without_score"].get(reason, 0) for each in models.values())))
    for grade in "12345":
        rows.append((f"grades of {grade}", *(each["grades"].get(grade, 0) for each in models.values())))
    print(table(rows))
    for pair in summary["compared"]:
        head = (f"{pair['first']} - {pair['second']}", "difference [95% interval]", "wins", "ties", "losses", "wins, %")
        told = [
            (
                name,
                with_interval(own["difference"], own["interval"], "+z.2f"),
                *(own[each] for each in ("wins", "ties", "losses")),
                percent(own["win_rate"], own["win_interval"]),
            )
            for name, own in pair.items()
            if isinstance(own, dict)
        ]
        print(table([head, *told]) if told else f"{pair['first']} and {pair['second']} have no scores to compare")
    if summary["same_grade"]:
        told = ", ".join(f"{name} {own['rubrics']:,} of {own['of']:,}" for name, own in summary["same_grade"].items())
        print(f"rubrics that give all models the same grade: {told}")
    if summary["only_grade"] is not None:
        warn(f"the judge gave nothing but {summary['only_grade']}: its grades tell nothing apart")


# The system message's ablation

WITHOUT = {"logp": "log p: prompt and gold response do not fit whole", "output": "an answer", "score": "a score"}


def ablate(args: Namespace) -> None:
    from alignment.training.likelihoods import check_policy

    rows = read_gold(args.bench)
    told = {each: messages_under(each, rows, args.seed)[: args.limit] for each in dict.fromkeys(["true", *args.ablate])}
    rows = rows[: args.limit]
    for path in args.policy:
        check_policy(path)
    judge = engine_from(args) if args.model_name_or_path else None
    bench, faults = checked(read_bench(args.bench)[: args.limit]) if judge else ([], [])
    read = {"inputs": [args.bench], "models": [*args.policy, *(models_read(args) if judge else [])]}
    with claim(args.output_file, args, script=__file__, **read, cache_dir=args.cache_dir) as held:
        if held.is_done() and not args.reparse:
            print(held.already())
            return show_ablation(read_json(args.output_file, "results")["summary"])
        warn_of(faults)
        held.begin()
        measured, failed = measure(args, rows, told)
        summary = {"rows": len(rows), "left_out": {each: own.count(None) for each, own in told.items()}}
        if judge:
            found = score(SilentEngine(judge) if args.reparse else judge, bench, measured, args)
            failed += found.asked.failed
            summary |= {"judge": args.model_name_or_path, "replies": found.asked.counts()}
        summary |= compared(rows, measured, args.seed) | {"missing": missing(told, measured)}
        items = [
            {"prompt": row["prompt"], "system": {each: own[place] for each, own in told.items()}}
            | {"policies": {name: at(place, own) for name, own in measured.items()}}
            for place, row in enumerate(rows)
        ]
        results = {"summary": summary, "rows": items}
        write_whole(args.output_file, [json.dumps(results, ensure_ascii=False, indent=1) + "\n"])
        refuse_failures(failed)
        held.finish({"rows": len(rows), "conditions": list(told), "policies": len(measured)})
    show_ablation(summary)


def measure(args: Namespace, rows: list[dict], told: dict[str, list]) -> tuple[dict[str, dict], list[Reply]]:
    """{policy: {"logp", "logp_per_token", "output": {condition: a value a row}}}, None where a condition leaves out the
    row or there is none; and the replies that another run may bring."""
    cells = [(each, place) for each, own in told.items() for place, text in enumerate(own) if text is not None]
    prompts = [{"system": told[each][place], "prompt": rows[place]["prompt"]} for each, place in cells]
    golds = [rows[place]["gold"] for _, place in cells]
    seeds = [record_seed(args.seed, "ablate", place) for _, place in cells]  # the same under every condition
    found: dict[str, dict] = {}
    failed: list[Reply] = []
    with Journal(args.output_file) as journal:
        for path in args.policy:
            own = gold_logps(path, prompts, golds, args, journal)
            if args.policy_max_new_tokens:
                replies = answers_of(path, prompts, seeds, args, journal)
                own["output"] = [reply.text for reply in replies]
                failed += [reply for reply in replies if reply.may_heal]
            found[path] = {what: by_condition(told, dict(zip(cells, own[what], strict=True))) for what in own}
    return found, failed


def score(judge: Any, bench: list[dict], measured: dict[str, dict], args: Namespace) -> AllGraded:
    """Grade all answers by the rubrics of the row's own message, and put their scores into `measured`."""
    texts = {(name, each): own["output"][each] for name, own in measured.items() for each in own["output"]}
    found = judged(judge, bench, texts, args)
    for (name, each), own in by_model(found, texts).items():
        measured[name].setdefault("score", {})[each] = [one.score for one in own]
    return found


def by_condition(told: dict[str, list], found: dict[tuple[str, int], Any]) -> dict[str, list]:
    """{(condition, row): value} as a list for each condition with an entry a row, None where there is none."""
    return {name: [found.get((name, place)) for place in range(len(own))] for name, own in told.items()}


def missing(told: dict[str, list], measured: dict[str, dict]) -> dict[str, dict[str, dict[str, int]]]:
    """{policy: {what: {condition: rows}}} that have a message and no value."""
    return {
        name: {
            what: {each: own[what][each].count(None) - told[each].count(None) for each in told}
            for what in WITHOUT
            if what in own
        }
        for name, own in measured.items()
    }


def at(place: int, measured: dict[str, dict[str, list]]) -> dict[str, dict]:
    """What was measured of a row, under each condition."""
    return {name: {what: own[name][place] for what, own in measured.items()} for name in measured["logp"]}


def gold_logps(path: str, prompts: list[dict], golds: list[str], args: Namespace, journal: Journal) -> dict[str, list]:
    """log p of each gold response, its end included: the sum, and the mean of its tokens; None where it does not fit
    the policy's context together with its prompt, whole."""
    from alignment.training.likelihoods import Likelihoods

    policy = Likelihoods(path, args.policy_template, dtype=args.dtype or "auto")
    tokens = policy.lengths(prompts, golds)
    fitting = [i for i, count in enumerate(tokens) if count is not None]
    asked = [prompts[i] for i in fitting], [golds[i] for i in fitting]
    sums = dict(zip(fitting, scored(policy, *asked, journal=journal, label="log p of gold"), strict=True))
    policy.release()
    every = range(len(golds))
    return {
        "logp": [sums.get(i) for i in every],
        "logp_per_token": [sums[i] / tokens[i] if i in sums else None for i in every],
    }


def answers_of(path: str, prompts: list[dict], seeds: list[int], args: Namespace, journal: Journal) -> list[Reply]:
    own = {
        "model_name_or_path": path,
        "backend": args.policy_backend,
        "use_hf": False,
        "template": args.policy_template,
    }
    writer = Namespace(**vars(args) | own)
    rendering = rendering_from(writer, None)
    ends = (rendering.end_id,) if rendering.end else ()
    sampling = Sampling(args.policy_max_new_tokens, stop=rendering.stop, stop_ids=ends, **JANUS)
    requests = [Request(asked, seed) for asked, seed in zip(rendering.asked(prompts), seeds, strict=True)]
    return generate(engine_from(writer), requests, sampling, journal=journal, label="answers")


COLUMNS = (  # of the ablation's table: head, number, part of it, form, factor
    ("log p of gold, a token", "logp_per_token", None, "z.3f", 1),
    ("true - it", "logp_per_token", "drop", "+z.3f", 1),
    ("true likelier, %", "logp_per_token", "below", ".1f", 100),
    ("score", "score", None, ".2f", 1),
    ("true - it", "score", "drop", "+z.2f", 1),
    ("ROUGE-L of answers", "rouge_l_mean", None, ".3f", 1),
    ("of the two most alike", "rouge_l_max", None, ".3f", 1),
)


def show_ablation(summary: dict[str, Any]) -> None:
    def cell(part: dict | None, form: str, factor: float = 1) -> str:
        if not part or part["mean"] is None:
            return "–"
        return with_interval(factor * part["mean"], tuple(factor * end for end in part["interval"]), form)

    for name, own in summary["policies"].items():
        columns = [column for column in COLUMNS if column[1] in own]
        lines = [(name, "rows", *(head for head, *_ in columns))]
        for each in dict.fromkeys([*summary["left_out"], *own.get("rouge_l_mean", ())]):
            found = [(own[what].get(each), part, *how) for _, what, part, *how in columns]
            cells = [cell(value and (value.get(part) if part else value), *how) for value, part, *how in found]
            lines.append((each, own["logp"][each]["rows"] if each in own["logp"] else "–", *cells))
        print(table(lines))
    for pair in summary["compared"]:
        head = (f"{pair['second']} - {pair['first']}", "true - it, log p a token", "true - it, score")
        told = [
            (each, cell(pair["logp_per_token"][each], "+z.3f"), cell(pair.get("score", {}).get(each), "+z.2f"))
            for each in pair["logp_per_token"]
        ]
        print(table([head, *told]))
    for each, count in summary["left_out"].items():
        if count:
            print(f"{each}: {count:,} of {summary['rows']:,} rows are left out, which have no such message")
    for name, own in summary["missing"].items():
        for what, counts in own.items():
            if any(counts.values()):
                told = ", ".join(f"{count:,} of {each}" for each, count in counts.items() if count)
                print(f"{name}: rows without {WITHOUT[what]}: {told}")


if __name__ == "__main__":
    run(parse_args, main)
