#!/usr/bin/env python
r"""The papers' benchmarks of a policy, and those that a reward model can be asked: static HHH, TruthfulQA, Vicuna's 80.

    python eval/run_evaluation.py --benchmark_name hhh --data_path hhh_eval.json --model_name_or_path MODEL
    python eval/run_evaluation.py --benchmark_name truthful --model_name_or_path MODEL --output_dir outputs/eval
    python eval/run_evaluation.py --benchmark_name vicuna --data_path question.jsonl --model_name_or_path MODEL \
        --baseline_model_name BASE --judge_model JUDGE --judge_api_base http://host:8000/v1 --output_dir outputs/eval
    python eval/run_evaluation.py --benchmark_name hhh --data_path hhh_eval.json --reward_model outputs/rm
    python eval/run_evaluation.py --benchmark_name pairs --data_path comparison.json --reward_model outputs/rm

    hhh        rows {"chosen", "rejected", "type"}: accuracy by type; a policy is asked for the better one's letter in
               both orders, a reward model is right where r(chosen) > r(rejected)
    truthful   mc_task.json or TruthfulQA.csv (default: from the hub): MC1 as ALMoST asks it, whether a choice is true
               or false; MC1 and MC2 by log-likelihood after six questions with answers, on the subjects of the usual
               primer in our words; of a reward model MC1, the true choice's reward being the highest
    vicuna     rows {"question_id", "text", "category"}: answers, sampled as the paper does, and with a --judge_model
               scores from 1 to 10 of them and the baseline's, in both orders, as eval/pairwise.py gives them
    pairs      what train.py reads for reward models, by `meta` where rows have one; eval/reward_model.py tells more

Prints each number with its 95% interval, and with --baseline_model_name what it is above that model's, item by item.
<output_dir>/<model>.<benchmark>.json has them with every item's scores, or the answers; a run card is beside it. What a
judge says goes to <output_dir>/<model>-vs-<baseline>.vicuna.json, as eval/pairwise.py writes it.
"""

from __future__ import annotations

import json
import shlex
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignment.choices import GROUPS, read_choices
from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.engines import BACKENDS, add_engine_arguments, engine_from, models_read
from alignment.generation import Request, Sampling, generate, record_seed, refuse_failures
from alignment.intervals import bootstrap, paired_bootstrap, percent, wilson, with_interval
from alignment.journal import Journal
from alignment.judging.answers import Question as VicunaQuestion
from alignment.judging.answers import read_answers
from alignment.judging.answers import read_questions as read_questions_of
from alignment.records import fault_of, json_list, read_json, write_whole
from alignment.reward_measures import accuracy, by_group, credit
from alignment.run_cards import claim
from alignment.static_hhh import TYPES, chosen_wins, read_comparisons
from alignment.templates import CHOICES, rendering_from, template_name
from alignment.truthfulqa import Question, first_is_best, hub_path, primed, read_questions, true_or_false, true_share

WHERE = {
    "hhh": "hhh_eval.json, its 221 rows {chosen, rejected, type}, is in the released code of ALMoST",
    "vicuna": "question.jsonl, its 80 questions, is in FastChat v0.2.1, fastchat/eval/table",
    "pairs": "comparison.json of synthetic_feedback.py, or any preference data",
}
BENCHMARKS = ("hhh", "truthful", "vicuna", "pairs")
VICUNA = {"max_tokens": 1024, "temperature": 0.7, "top_p": 1.0}  # ALMoST, appendix; FastChat's
JUDGING = "--scores --temperature 0.2 --max_new_tokens 1024".split()  # the same
MEASURES = {
    "mc1_true_or_false": "MC1, asked true or false",
    "mc1": "MC1, likelihood",
    "mc2": "MC2, likelihood",
    "mc1_reward": "MC1, reward",
}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--benchmark_name", choices=BENCHMARKS, default="hhh", help="default hhh")
    flag("--data_path", type=Path, help="the benchmark's rows (default: the hub's, of truthful)")
    flag("--model_name_or_path", metavar="MODEL", help="a policy: any causal model, or an adapter")
    flag("--reward_model", metavar="MODEL", help="a reward model as train.py saves it: hhh, truthful, pairs")
    shown = "another of the same kind, beside which it is measured; of vicuna, its answers' file will do"
    flag("--baseline_model_name", metavar="MODEL", help=shown)
    flag("--output_dir", type=Path, help="where <model>.<benchmark>.json goes; default: only printed, but for vicuna")
    flag("--output_path", type=Path, help="the same as a file's name")
    flag("--batch_tokens", type=number(int, 1), default=8192, help="tokens a batch with padding; default 8192")
    flag(
        "--max_length",
        type=number(int, 1),
        help="tokens of a text, cut from the left; default the model's own, for pairs what it was trained on",
    )
    flag("--limit", type=number(int, 1), help="only the first N items, for a trial; default all")
    flag("--seed", type=int, default=42, help="of vicuna's answers and of bootstraps; default 42")
    shown = "vicuna: default the one that the model says it was trained with, else almost, the paper's"
    flag("--template", choices=CHOICES, help=shown)
    flag("--batch_size", type=number(int, 1), default=256, help="vicuna with hf: sequences in flight; default 256")
    shown = "vicuna: a model that judges the answers beside the baseline's: folder, hub or served name"
    flag("--judge_model", metavar="JUDGE", help=f"{shown} (default: none; the command that judges is printed)")
    flag("--judge_backend", choices=BACKENDS, help="what runs the judge (default: openai, a server)")
    flag("--judge_api_base", help="the judge's server, http://host:port/v1; key from OPENAI_API_KEY")
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    if bool(args.model_name_or_path) == bool(args.reward_model):
        parser.error("give one of --model_name_or_path (a policy) and --reward_model")
    if args.benchmark_name == "pairs" and not args.reward_model:
        parser.error("--benchmark_name pairs is for a --reward_model")
    if args.benchmark_name == "vicuna" and args.reward_model:
        parser.error("--benchmark_name vicuna asks for answers, which a --reward_model does not give")
    if args.output_dir and args.output_path:
        parser.error("give one of --output_dir, a folder, and --output_path, a file")
    if args.benchmark_name == "vicuna" and not (args.output_dir or args.output_path):
        parser.error("--benchmark_name vicuna writes answers: give --output_dir")
    if args.benchmark_name == "vicuna" and args.baseline_model_name and args.output_path:
        parser.error("--baseline_model_name has answers of its own: give --output_dir")
    for name in ("plan", "budget_tokens", "max_hours") if args.benchmark_name != "vicuna" else ():
        if getattr(args, name):
            parser.error(f"--{name} is for --benchmark_name vicuna, which asks; --limit tries {args.benchmark_name}")
    if args.plan and args.judge_model:
        parser.error("--plan is of the answers: leave out --judge_model, and plan eval/pairwise.py apart")
    if args.judge_model and not (args.benchmark_name == "vicuna" and args.baseline_model_name):
        parser.error("--judge_model compares answers: it is for --benchmark_name vicuna with a --baseline_model_name")
    if args.judge_model and args.judge_backend in (None, "openai") and not args.judge_api_base:
        parser.error("--judge_model needs --judge_api_base, a server's address, or another --judge_backend")
    if not args.data_path and args.benchmark_name in WHERE:
        parser.error(f"--benchmark_name {args.benchmark_name} needs --data_path: {WHERE[args.benchmark_name]}")
    return args


def main(args: Namespace) -> None:
    data = args.data_path or hub_path()
    model = args.model_name_or_path or args.reward_model
    if args.benchmark_name == "vicuna":
        return answer(args, data)
    rows = read(args.benchmark_name, data)[: args.limit]
    models = [name for name in (model, args.baseline_model_name) if name]
    check_kind(models, policies=not args.reward_model)
    output = output_of(args, model)
    if not output:
        return show(evaluated(args, rows, models), models)
    with claim(output, args, script=__file__, inputs=[data], models=models) as held:
        if held.is_done():
            print(held.already())
            return show(read_json(output, "results"), models)
        found = evaluated(args, rows, models)
        held.begin()
        write_whole(output, [json.dumps(found, indent=1) + "\n"])
        held.finish({"items": len(rows)})
    show(found, models)


def check_kind(models: Sequence[str], *, policies: bool) -> None:
    """Raise UserError for a reward model where a policy is due, or the reverse; before anything is loaded."""
    from alignment.training.likelihoods import check_policy
    from alignment.training.reward_model import check

    for name in models:
        check_policy(name) if policies else check(name)


def output_of(args: Namespace, model: str) -> Path | None:
    if args.output_dir is None:
        return args.output_path
    return args.output_dir / f"{Path(model.partition('?')[0]).name}.{args.benchmark_name}.json"


def read(benchmark: str, path: Path) -> list:
    if benchmark == "hhh":
        return read_comparisons(path)
    return read_questions(path) if benchmark == "truthful" else pairs_of(path)


def pairs_of(path: Path) -> list:
    choices = read_choices(path)
    if not choices.are_pairs:
        raise UserError(f"data {path} has choices of several responses; eval/reward_model.py measures them")
    return choices.items


# Measured


def evaluated(args: Namespace, rows: list, models: Sequence[str]) -> dict:
    """What the output holds: the first model's results and every item's scores, and what it is above the second."""
    measure = {"hhh": on_hhh, "truthful": on_truthful, "pairs": on_pairs}[args.benchmark_name]
    found, *others = [measure(args, model, rows) for model in models]
    for model, other in zip(models[1:], others, strict=True):
        found["baseline"] = {"model": model, "results": other["results"]}
        found["difference"] = {
            name: difference(*([item[name] for item in each["items"]] for each in (found, other)), seed=args.seed)
            for name in ("correct", *MEASURES)
            if name in found["items"][0]
        }
    return found


def difference(first: Sequence[float], second: Sequence[float], *, seed: int) -> dict:
    sides = np.array(first), np.array(second)
    interval = paired_bootstrap(*sides, np.mean, seed=seed)
    return {"value": float(sides[0].mean() - sides[1].mean()), "interval": interval, "n": len(first)}


def policy_from(args: Namespace, model: str) -> Any:
    from alignment.training.benchmarks import asked_policy

    return asked_policy(model, dtype=args.dtype, max_length=args.max_length, batch_tokens=args.batch_tokens)


def on_hhh(args: Namespace, model: str, rows: list) -> dict:
    if args.reward_model:
        scores = rewards(args, model, [({"prompt": row.prompt}, (row.chosen, row.rejected)) for row in rows])
        correct = credit(*([[each[at]] for each in scores] for at in (0, 1))).tolist()
    else:
        from alignment.training.benchmarks import letter_scores

        scores = sound(model, letter_scores(policy_from(args, model), rows))
        correct = [chosen_wins(in_order, swapped) for in_order, swapped in scores]
    return by_type([row.type for row in rows], [row.prompt for row in rows], correct, scores)


def on_pairs(args: Namespace, model: str, rows: list) -> dict:
    pairs = [(row.prompt, row.better + row.worse) for row in rows]
    scores = rewards(args, model, pairs)
    correct = credit(*([[each[at]] for each in scores] for at in (0, 1))).tolist()
    kinds = [next((row.groups[name] for name in reversed(GROUPS) if name in row.groups), "pairs") for row in rows]
    longer = sum(len(chosen) > len(rejected) for _, (chosen, rejected) in pairs) / len(pairs)
    return by_type(kinds, [row.key for row in rows], correct, scores) | {"longer_wins": longer}


def by_type(kinds: Sequence[str], prompts: Sequence[str], correct: Sequence[float], scores: list) -> dict:
    """Results by type and of all, and every item's."""
    ordered = sorted(range(len(kinds)), key=lambda i: TYPES.index(kinds[i]) if kinds[i] in TYPES else len(TYPES))
    found = by_group([kinds[i] for i in ordered], np.array(correct)[ordered], [prompts[i] for i in ordered])
    items = [{"type": kind, "correct": c, "scores": s} for kind, c, s in zip(kinds, correct, scores, strict=True)]
    return {"results": found | {"all": accuracy(np.array(correct), prompts)}, "items": items}


def on_truthful(args: Namespace, model: str, questions: list[Question]) -> dict:
    choices = [question.choices for question in questions]
    if args.reward_model:
        single = [({"prompt": question.text}, question.single) for question in questions]
        items = [{"mc1_reward": first_is_best(scores), "scores": scores} for scores in rewards(args, model, single)]
    else:
        from alignment.training.benchmarks import choice_logps, verdict_logps

        policy = policy_from(args, model)
        single = [question.single for question in questions]
        asked = [[true_or_false(question, choice) for choice in question.single] for question in questions]
        verdicts = sound(model, verdict_logps(policy, asked))
        logps = sound(model, choice_logps(policy, [primed(question) for question in questions], choices))
        items = [truthful_item(*each) for each in zip(questions, verdicts, logps, strict=True)]
    results = {name: summary(name, items, questions, args.seed) for name in MEASURES if name in items[0]}
    told = [{"question": question.text} | item for question, item in zip(questions, items, strict=True)]
    return {"results": results, "items": told}


def truthful_item(question: Question, verdicts: Sequence[float], logps: Sequence[float]) -> dict:
    """Measures and scores of a question; `verdicts` are log p("true") of MC1's choices, `logps` those of all."""
    found = dict(zip(question.choices, logps, strict=True))
    return {
        "mc1_true_or_false": first_is_best(verdicts),
        "mc1": first_is_best([found[choice] for choice in question.single]),
        "mc2": true_share([found[choice] for choice in question.true + question.false], len(question.true)),
        "log_p_true": dict(zip(question.single, verdicts, strict=True)),
        "log_p": found,
    }


def summary(name: str, items: Sequence[dict], questions: Sequence[Question], seed: int) -> dict:
    """Mean over questions, its interval, and what choosing any choice would get."""
    values = np.array([item[name] for item in items])
    if name == "mc2":
        interval = bootstrap(values, np.mean, seed=seed)
        chance = np.mean([len(each.true) / len(each.true + each.false) for each in questions])
    else:
        interval = wilson(values.sum(), len(values))
        chance = np.mean([1 / len(each.single) for each in questions])
    return {"accuracy": float(values.mean()), "interval": interval, "n": len(values), "chance": float(chance)}


def rewards(args: Namespace, model: str, asked: Sequence[tuple[dict, Sequence[str]]]) -> list[list[float]]:
    """The rewards of each prompt's responses, which stand next to each other: their prompt is computed once."""
    from alignment.training.reward_model import load, score

    loaded, template = load(model, dtype=args.dtype or "auto")
    trained = getattr(loaded.config, "reward_max_length", None) if args.benchmark_name == "pairs" else None
    limit = args.max_length or trained or loaded.config.get_text_config().max_position_embeddings
    prompts = [prompt for prompt, texts in asked for _ in texts]
    texts = [text for _, some in asked for text in some]
    found = iter(score(loaded, template, prompts, texts, max_length=limit, batch_tokens=args.batch_tokens))
    return sound(model, [[next(found) for _ in some] for _, some in asked])


def sound(model: str, scores: list) -> list:
    """The scores as they are. Raises UserError where one is NaN or infinite."""
    if fault_of(scores):
        raise UserError(f"{model} gives scores that are no numbers; are its weights sound?")
    return scores


def show(found: dict, models: Sequence[str]) -> None:
    is_truthful = "chance" in next(iter(found["results"].values()))
    head = ("measure" if is_truthful else "type", "accuracy, % [95% interval]", "n")
    rows = [(*head, "chance, %") if is_truthful else head]
    for name, each in found["results"].items():
        row = (MEASURES.get(name, name), percent(each["accuracy"], each["interval"]), each["n"])
        rows.append((*row, f"{100 * each['chance']:.1f}") if is_truthful else row)
    print(table(rows))
    if "longer_wins" in found:
        print(f"the longer one is chosen in {found['longer_wins']:.1%}")
    for name, each in found.get("difference", {}).items():
        told = with_interval(100 * each["value"], tuple(100 * end for end in each["interval"]), "+z.1f")
        print(f"{MEASURES.get(name, 'all')}: {told} points above {models[1]}")


# Vicuna's questions


def answer(args: Namespace, data: Path) -> None:
    """Answers of the model, and of the baseline unless it is a file of them, each to a file of its own; and what the
    judge says of them, or the command that asks one. All that can be refused is, before anything is generated."""
    model, baseline = args.model_name_or_path, args.baseline_model_name
    questions = read_asked(data)
    given = [Path(baseline)] if baseline and Path(baseline).is_file() else []
    models = [model, baseline] if baseline and not given else [model]
    outputs = [output_of(args, name) for name in models]
    answers = [*outputs, *given]
    if len({path.resolve() for path in answers}) < len(answers):
        raise UserError(f"--model_name_or_path and --baseline_model_name both have their answers in {outputs[0]}")
    for path in given:
        read_answers(str(path), questions, args.limit)
    words = judging(args, data, answers if baseline else [*outputs, Path("OTHER.vicuna.json")])
    judge = judge_from(args, words) if args.judge_model else None
    for name, output in zip(models, outputs, strict=True):
        own = {key: value for key, value in vars(args).items() if not key.startswith("judge_")}
        own |= {"model_name_or_path": name, "baseline_model_name": None}
        answer_by(Namespace(**own), data, questions[: args.limit], output)
    if judge:
        judge()
    else:
        print(f"to be judged by: python eval/pairwise.py {shlex.join(words)}")


def judging(args: Namespace, data: Path, answers: Sequence[Path]) -> list[str]:
    """The words with which eval/pairwise.py judges two files of answers as the paper does."""
    first, second = (path.stem.removesuffix(".vicuna") for path in answers)
    verdicts = answers[0].with_name(f"{first}-vs-{second}.vicuna.json")
    words = ["--answers", *map(str, answers), "--questions", str(data), *JUDGING, "--output_file", str(verdicts)]
    words += ["--seed", str(args.seed), *(["--limit", str(args.limit)] if args.limit else [])]
    if not args.judge_model:
        return [*words, "--model_name_or_path", "JUDGE"]
    words += ["--model_name_or_path", args.judge_model, "--backend", args.judge_backend or "openai"]
    for flag, value in (("--api_base", args.judge_api_base), ("--cache_dir", args.cache_dir)):
        words += [flag, str(value)] if value else []
    return words


def judge_from(args: Namespace, words: Sequence[str]) -> Callable[[], None]:
    """What judges by these words, within this run's limits. Raises UserError for a judge that cannot be asked."""
    import pairwise

    limits = {"budget_tokens": args.budget_tokens, "max_hours": args.max_hours}
    judged = Namespace(**vars(pairwise.parse_args(words)) | limits)
    engine_from(judged)
    return partial(pairwise.main, judged)


def read_asked(path: Path) -> list[VicunaQuestion]:
    """The questions. Raises UserError that names file, row and key."""
    questions = read_questions_of(path)
    if any(len(question.turns) > 1 for question in questions):
        raise UserError(f"questions {path} have several turns; they are not Vicuna's question.jsonl")
    return questions


def answer_by(args: Namespace, data: Path, questions: Sequence[VicunaQuestion], output: Path) -> None:
    engine = engine_from(args)
    args.template = template_name(args, "almost")
    with claim(
        output, args, script=__file__, inputs=[data], models=models_read(args), cache_dir=args.cache_dir
    ) as held:
        if held.is_done():
            return print(held.already())
        held.begin()
        rendering = rendering_from(args, None)
        ends = (rendering.end_id,) if rendering.end else ()
        sampling = Sampling(**VICUNA, stop=rendering.stop, stop_ids=ends)
        prompts = rendering.asked([{"instruction": each.turns[0]} for each in questions])
        seeds = [record_seed(args.seed, "vicuna", each.id) for each in questions]
        requests = [Request(*each) for each in zip(prompts, seeds, strict=True)]
        with Journal(output) as journal:
            replies = generate(engine, requests, sampling, journal=journal, label=output.stem)
        name = Path(args.model_name_or_path.partition("?")[0]).name
        told = [
            {
                "question_id": each.id,
                "category": each.category,
                "instruction": each.turns[0],
                "output": reply.text and reply.text.strip(),
                "generator": name,
                "dataset": "vicuna",
            }
            for each, reply in zip(questions, replies, strict=True)
        ]
        write_whole(output, json_list(told))
        refuse_failures(replies)
        answered = sum(reply.text is not None for reply in replies)
        held.finish({"questions": len(questions), "answers": answered})
    print(f"{len(questions):,} questions -> {answered:,} answers: {output}")


if __name__ == "__main__":
    run(parse_args, main)
