#!/usr/bin/env python
r"""Which model answers better: its answers compared with another's by a judge, in both orders.

    python eval/pairwise.py --answers outputs/sft/alpaca_eval.json --reference davinci.json \
        --model_name_or_path JUDGE --output_file against_davinci.json

Reads answers as generate.py, AlpacaEval and MT-Bench write them, a file for each model: each against --reference, or
else every two of them, of three and more also in one order (Bradley-Terry). The questions are those that they say they
answer, or --questions: Vicuna's, MT-Bench's with second turns, any rows with an instruction.

The judge is any engine's model, which says which is better, or with --scores gives each 1 to 10; a --reward_model; or
for a control `--judge longest`. A verdict that flips with the order is a tie, one that cannot be read is none. First
the judge is tested itself (alignment/judging/self_test.py), and what is wrong with it is said.

    python eval/pairwise.py --answers base.json sft.json dpo.json --questions question.jsonl --scores \
        --model_name_or_path JUDGE --budget_tokens 2_000_000 --until_decided --output_file ladder.json

asks in random order, and stops where the budget ends, or where the win rate is on one side of a half by an interval
that holds although it is looked at all the time. What came until then is a result like any other.

Writes {"summary", "comparisons"}: win rates with 95% bootstrap intervals over questions, length-controlled too; ties,
flips, lengths; the self-test; and every reply. Replies stay in the journal beside the output: the same command goes on
where it was stopped, and --reparse reads them anew for nothing.
"""

from __future__ import annotations

import json
import random
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from alignment.asking import SilentEngine
from alignment.command_line import ArgumentParser, UserError, boolean, number, run, table, warn
from alignment.engines import add_engine_arguments, engine_from, models_read
from alignment.engines.scoring import add_scorer_arguments, models_scored_by, scored, scorer_from
from alignment.generation import Sampling, refuse_failures
from alignment.intervals import percent, with_interval
from alignment.journal import Journal
from alignment.judging.answers import Question, names_of, read_answers, read_questions
from alignment.judging.grades import wording
from alignment.judging.judges import EngineJudge, by_reward, longest
from alignment.judging.judgments import JUDGE_STOP
from alignment.judging.ladder import ladder
from alignment.judging.pairs import Compared, Pair, letters_given, prompts_of, schema_of
from alignment.judging.self_test import leaning, of_its_own, self_test
from alignment.judging.winrates import Outcome, place, side_of, standing, wins_of
from alignment.records import read_json, write_whole
from alignment.run_cards import claim

WAVE = 16  # questions that are asked together where a run may stop early
NEARLY = 0.95  # of the questions; the length-controlled rate hangs on the others
Names = tuple[str, str]


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    add, switch = parser.add_argument, {"type": boolean, "nargs": "?", "const": True, "default": False}
    positive = number(int, 1)
    add("--answers", nargs="+", required=True, metavar="FILE", help="a model's answers each, compared every two")
    add("--reference", metavar="FILE", help="whose answers those of --answers are compared with, and not each other")
    shown = "question.jsonl or other questions (default: those that the reference, or the first answers, say)"
    add("--questions", metavar="FILE", help=shown)
    add("--output_file", type=Path, required=True, help="where results go, as JSON")
    add("--model_name_or_path", metavar="JUDGE", help="a model that judges: a folder, hub or served name")
    add("--judge", choices=("longest",), help="longest: no model; the answer with more characters wins, as a control")
    shown = "asks for scores from 1 to 10, Vicuna's form (default: False, asks which is better, as MT-Bench)"
    add("--scores", **switch, help=shown)
    shown = "asks for a JSON object under a schema, for judges that else keep to no form (default: False)"
    add("--as_json", **switch, help=shown)
    shown = "default: 0, so that a pair always gets the same verdict; the released Vicuna evaluation's is 0.2"
    add("--temperature", type=number(float, 0), default=0.0, help=shown)
    add("--top_p", type=number(float, 0, 1, above=True), default=1.0, help="default: 1")
    add("--tries", type=positive, default=4, help="requests for a verdict at most (default: 4)")
    add("--max_new_tokens", type=positive, default=1024, help="of a reply (default: 1024, Vicuna's)")
    add("--batch_size", type=positive, default=256, help="hf: sequences decoded together at most (default: 256)")
    shown = "pairs for each part of the judge's self-test, 0 for no test (default: 20)"
    add("--self_test", type=number(int, 0), default=20, metavar="N", help=shown)
    shown = "asks no more of a pair of models once its win rate is on one side of a half (default: False)"
    add("--until_decided", **switch, help=shown)
    add("--reparse", **switch, help="asks nothing: reads what the journal holds, by a parser that was mended")
    add("--seed", type=int, default=42, help="of the questions' order, the judge's draws and intervals (default: 42)")
    add("--limit", type=positive, help="for a trial: only the first so many questions (default: all)")
    add_engine_arguments(parser)
    add_scorer_arguments(parser)
    args = parser.parse_args(argv)
    if sum(map(bool, (args.model_name_or_path, args.judge, args.reward_model))) != 1:
        parser.error("give one judge: --model_name_or_path JUDGE, --reward_model MODEL or --judge longest")
    if len(args.answers) < 2 and not args.reference:
        parser.error("--answers needs two files or more, or --reference FILE to compare the one with")
    if not args.model_name_or_path and (args.scores or args.as_json or args.budget_tokens or args.reparse):
        parser.error("--scores, --as_json, --budget_tokens and --reparse are for --model_name_or_path, which is asked")
    return args


def main(args: Namespace) -> None:
    paths = args.answers + ([args.reference] if args.reference else [])
    source = args.questions or paths[-1 if args.reference else 0]
    questions = read_questions(source)
    models = read_models(paths, questions, args.limit)
    pairs = [(name, list(models)[-1]) for name in list(models)[:-1]] if args.reference else [*combinations(models, 2)]
    asked = turns_asked(questions[: args.limit], models, pairs)
    unlimited = Namespace(**vars(args) | {"budget_tokens": None})  # the judge keeps to it, and gives a valid result
    engine = engine_from(unlimited) if args.model_name_or_path else None
    scorer = scorer_from(args) if args.reward_model else None
    read = {"inputs": [source, *paths], "models": [*(models_read(args) if engine else []), *models_scored_by(args)]}
    with claim(args.output_file, args, script=__file__, **read, cache_dir=args.cache_dir) as held:
        if held.is_done() and not args.reparse:
            print(held.already())
            summary = read_json(args.output_file, "results")["summary"]
            for line in summary["warnings"]:
                warn(line)
            return show(summary)
        held.begin()
        with Journal(args.output_file) as journal:
            judge = judge_from(args, engine, scorer, journal)
            report, warnings = tested(judge, asked, args)
            found, stopped = judged(judge, asked, args)
        replies = judge.asked if engine else None
        if not any(each.compared.value is not None for own in found.values() for each in own):
            refuse_failures(replies.failed if replies else [])
            reasons = replies.given_up.most_common(3) if replies else []
            told = ", ".join(f"{count:,} {reason}" for reason, count in reasons)
            raise UserError(f"no question has a verdict in both orders ({told or 'none has two answers'})")
        summary = summarised(args, models, found, len(questions[: args.limit])) | {"self_test": report}
        summary["stopped"], summary["tokens"] = stopped, judge.spent if engine else 0
        summary["replies"] = replies.counts() if replies else {}
        summary["warnings"] = [*warnings, *summary["warnings"]]
        results = {"summary": summary, "comparisons": comparisons(questions, found)}
        write_whole(args.output_file, [json.dumps(results, ensure_ascii=False, indent=1) + "\n"])
        refuse_failures(replies.failed if replies else [])
        held.finish({"models": len(models), "questions": summary["questions"]} | summary["replies"])
    if replies:
        print(table([("replies", ""), *replies.rows(), ("tokens, about", judge.spent)]))
    show(summary)


# What is compared


def read_models(paths: Sequence[str], questions: list[Question], limit: int | None) -> dict[str, list[tuple]]:
    """{model: for each question its answers}, named as all rows of its file say, or else as the file is."""
    files = names_of(paths, "--answers")
    found = [read_answers(path, questions, limit) for path in paths]
    names = [name or file for (name, _), file in zip(found, files, strict=True)]
    if len(set(names)) < len(names):
        names = files
    return {name: texts for name, (_, texts) in zip(names, found, strict=True)}


def turns_asked(
    questions: Sequence[Question], models: dict[str, list[tuple]], pairs: Sequence[Names]
) -> dict[Names, list[tuple[Outcome, Pair]]]:
    """For each two models every turn that both answer, and all turns before it; outcomes still without a verdict."""
    found: dict[Names, list[tuple[Outcome, Pair]]] = {}
    for first, second in pairs:
        found[first, second] = own = []
        for at, (question, one, other) in enumerate(zip(questions, models[first], models[second], strict=True)):
            earlier: tuple[tuple[str, str, str], ...] = ()
            for turn, (text, a, b) in enumerate(zip(question.turns, one, other, strict=True), 1):
                if a is None or b is None:
                    break
                reference = question.reference[turn - 1] if turn <= len(question.reference) else None
                pair = Pair(f"{question.id} {turn}", text, a, b, reference, earlier, question.category)
                told = (question.category, question.difficulty)
                own.append((Outcome(at, turn, Compared(()), (len(a), len(b)), *told), pair))
                earlier += ((text, a, b),)
    return found


# Judging


def judge_from(args: Namespace, engine: Any, scorer: Any, journal: Journal) -> Callable[..., list[Compared]]:
    if args.judge == "longest":
        return longest
    if scorer is not None:
        return partial(by_reward, partial(scored, scorer, journal=journal, label="rewards"))
    schema = schema_of(args.scores) if args.as_json else None
    stop = () if schema else JUDGE_STOP
    return EngineJudge(
        SilentEngine(engine) if args.reparse else engine,
        Sampling(args.max_new_tokens, args.temperature, args.top_p, stop, schema=schema),
        journal,
        budget=args.budget_tokens and args.budget_tokens.most - args.budget_tokens.spent,
        schema_retries=args.schema_retries,
        scores=args.scores,
        as_json=args.as_json,
        tries=args.tries,
        seed=args.seed,
    )


def tested(judge: Any, asked: dict[Names, list[tuple[Outcome, Pair]]], args: Namespace) -> tuple[dict, list[str]]:
    """The judge's self-test, on pairs of all models; its warnings are said before anything else is asked."""
    if not args.self_test:
        return {}, []
    pairs = [pair for own in asked.values() for _, pair in own]
    report, warnings = self_test(judge, pairs, count=args.self_test, seed=args.seed)
    for line in warnings:
        warn(line)
    return report, warnings


def judged(
    judge: Any, asked: dict[Names, list[tuple[Outcome, Pair]]], args: Namespace
) -> tuple[dict[Names, list[Outcome]], str | None]:
    """The outcomes of each two models, and what stopped the run early: "budget", "decided", or None. What may stop asks
    in random order, so that what it has asked is a sample of the questions."""
    order = list(dict.fromkeys(outcome.question for own in asked.values() for outcome, _ in own))
    size = len(order)
    if args.budget_tokens or args.until_decided:
        random.Random(args.seed).shuffle(order)
        size = WAVE
    found: dict[Names, list[Outcome]] = {names: [] for names in asked}
    for start in range(0, len(order), max(1, size)):
        open_ = [names for names in asked if not (args.until_decided and side_of(found[names]))]
        if not open_:
            return found, "decided"
        places = {question: at for at, question in enumerate(order[start : start + size])}
        wave = [(names, *each) for names in open_ for each in asked[names] if each[0].question in places]
        wave.sort(key=lambda each: places[each[1].question])
        verdicts = judge([pair for _, _, pair in wave])
        for (names, outcome, _), compared in zip(wave, verdicts, strict=True):
            found[names].append(outcome._replace(compared=compared))
        if getattr(judge, "is_spent", False):
            return found, "budget"
    return found, None


# Results


def summarised(
    args: Namespace, models: dict[str, list[tuple]], found: dict[Names, list[Outcome]], questions: int
) -> dict[str, Any]:
    pairs = {names: standing(own, seed=args.seed) for names, own in found.items()}
    everything = [each.compared for own in found.values() for each in own]
    letters = letters_given(everything)
    judge = args.model_name_or_path or args.reward_model or args.judge
    summary: dict[str, Any] = {
        "judge": judge,
        "form": ("scores" if args.scores else "preference") if args.model_name_or_path else "rule",
        "template": wording(*prompts_of(args.scores, args.as_json)) if args.model_name_or_path else None,
        "questions": questions,
        "without_answer": {name: sum(None in own for own in texts) for name, texts in models.items()},
        "pairs": [{"first": first, "second": second} | own for (first, second), own in pairs.items()],
        "place": place(everything, seed=args.seed),
        "verdicts": dict(letters),
        "ladder": ladder(list(models), wins_of(list(models), found, questions), seed=args.seed)
        if len(models) > 2
        else [],
        "warnings": [],
    }
    if args.model_name_or_path and len(letters) == 1:
        said = next(iter(letters))
        summary["warnings"].append(f"the judge said nothing but {said}: its verdicts tell nothing apart")
    elif summary["place"] and not args.self_test:
        summary["warnings"] += leaning(summary["place"])
    name = Path(judge.partition("?")[0]).name
    summary["warnings"] += of_its_own(name, {names: own["win_rate"] for names, own in pairs.items()})
    for line in summary["warnings"]:
        warn(line)
    return summary


def comparisons(questions: Sequence[Question], found: dict[Names, list[Outcome]]) -> list[dict]:
    """Every verdict with the whole reply, or the reason why there is none."""
    return [
        {
            "id": questions[each.question].id,
            "turn": each.turn,
            "first": first,
            "second": second,
            "value": each.compared.value,
            "is_flip": each.compared.is_flip,
            "reason": each.compared.reason,
            "characters": each.lengths,
            "verdicts": [verdict._asdict() for verdict in each.compared.verdicts],
        }
        for (first, second), own in found.items()
        for each in own
    ]


def show(summary: dict[str, Any]) -> None:
    def rated(own: dict | None, key: str = "mean") -> str:
        return percent(own[key], own["interval"]) if own else "none"

    head = ("wins of the first, % [95% interval]", "length-controlled", "questions", "wins", "ties", "losses")
    rows: list[tuple] = [("", *head, "flips, %", "characters", "without a verdict")]
    for pair in summary["pairs"]:
        control = pair["length_controlled"]
        rows.append(
            (
                f"{pair['first']} - {pair['second']}",
                rated(pair["win_rate"]),
                rated(control, "win_rate") if control and any(control["weights"].values()) else "none",
                pair["win_rate"]["n"] if pair["win_rate"] else 0,
                *(pair[name] for name in ("wins", "ties", "losses")),
                f"{100 * pair['flips']['mean']:.1f}" if pair["flips"] else "–",
                " and ".join(f"{each:,.0f}" for each in pair.get("characters", ())) or "–",
                sum(pair["without_verdict"].values()),
            )
        )
        rows += [
            (f"  turn {turn}", rated(own), "", own["n"], *[""] * 6) for turn, own in pair.get("by_turn", {}).items()
        ]
    if test := summary["self_test"]:
        parts = (
            ("verdicts that flip with the order", test["flips"]),
            ("an answer said twice over wins against the same said once", test["padded"]),
            ("the better answer is found where it is known", test["known"]),
        )
        told = [(what, rated(own), own["n"] if own else 0) for what, own in parts]
        print(table([("the judge's self-test", "%", "pairs"), *told]))
    print(table(rows))
    for pair in summary["pairs"]:
        if sums := pair.get("one_by_one", {}).get("scores"):  # earlier results have none
            told = ", ".join(f"{pair['one_by_one'][name]:,} {name}" for name in ("wins", "ties", "losses"))
            scores = " to ".join(f"{each:,g}" for each in sums)
            print(f"{pair['first']} - {pair['second']}, each order for itself: {told}; scores {scores} in sum")
    if summary["ladder"]:
        told = [
            (
                each["model"],
                with_interval(each["points"], each["interval"], "+z.0f"),
                "{}–{}".format(*each["rank_interval"]),
                each["n"],
            )
            for each in summary["ladder"]
        ]
        print(table([("ladder", "points [95% interval]", "rank", "comparisons"), *told]))
    if summary["place"]:
        told = with_interval(*list(summary["place"]["verdicts"].values())[:2], "+z.2f")
        points = summary["place"]["points"]
        more = (
            f", and {with_interval(points['mean'], points['interval'], '+z.2f')} points of its score" if points else ""
        )
        print(f"lean to the answer that is shown first, from -1 to 1: {told}{more}")
    if apart := [
        f"{pair['first']} and {pair['second']}" for pair in summary["pairs"] if max(pair.get("longer", [0])) > NEARLY
    ]:
        print(f"one is nearly always longer, so that its length can hardly be told from the model: {', '.join(apart)}")
    for name, count in summary["without_answer"].items():
        if count:
            print(f"{name}: {count:,} of {summary['questions']:,} questions are without an answer to a turn, left out")
    reasons = {"budget": "the budget of tokens is spent", "decided": "every win rate is on one side of a half"}
    if summary["stopped"]:
        asked = ", ".join(f"{pair['win_rate']['n'] if pair['win_rate'] else 0:,}" for pair in summary["pairs"])
        print(f"stopped as {reasons[summary['stopped']]}: {asked} of {summary['questions']:,} questions have a value")


if __name__ == "__main__":
    run(parse_args, main)
