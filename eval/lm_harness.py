"""The four benchmarks of CUT's tables by the lm-evaluation-harness: ARC, HellaSwag, MMLU, TruthfulQA, with its shots.

    python eval/lm_harness.py --model_name_or_path outputs/cut-merged
    python eval/lm_harness.py --model_name_or_path outputs/cut-merged --data_dir DATA --limit 100

The harness is a package of its own, lm_eval, with tasks that fetch the benchmarks from the hub. With --data_dir they
are read from files there, or in a folder of it, by the tasks of assets/lm_eval:

    arc_challenge.test.jsonl  hellaswag_1k.validation.jsonl  mmlu.validation.jsonl  mmlu.dev.jsonl  mc_task.json

Writes <task>.json with a run card for each benchmark into --output_dir and prints a table with 95% intervals: Wilson's
for a share of items, 1.96 of the harness's standard errors for MC2, which is a mean, and for the average what these
make together. Run again, it goes on with what is not done. Prompts are plain, without a chat template, as in CUT's
tables.
"""

from __future__ import annotations

import json
import logging
import math
from argparse import Namespace
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from alignment.command_line import REPOSITORY, ArgumentParser, UserError, number, run, table
from alignment.intervals import percent, wilson
from alignment.pretrained import adapter_base, check_policy
from alignment.records import read_json, write_whole
from alignment.run_cards import claim

DEFINITIONS = REPOSITORY / "assets" / "lm_eval"
INSTALL = "pip install lm_eval==0.4.13"


class Task(NamedTuple):
    """A benchmark as CUT reports it: its column, shots, the harness's metric, and the names of its files."""

    column: str
    shots: int
    metric: str
    files: tuple[str, ...]


TASKS = {
    "arc_challenge": Task("ARC", 25, "acc_norm", ("arc_challenge.test.jsonl",)),
    "hellaswag": Task("HellaSwag", 10, "acc_norm", ("hellaswag_1k.validation.jsonl",)),
    "mmlu": Task("MMLU", 5, "acc", ("mmlu.validation.jsonl", "mmlu.dev.jsonl")),
    "truthfulqa_mc2": Task("TruthfulQA", 0, "acc", ("mc_task.json",)),
}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("--model_name_or_path", required=True, metavar="MODEL", help="folder or hub name of a policy")
    parser.add_argument("--data_dir", type=Path, help="folder of the benchmarks' files (default: the hub)")
    shown = f"of {', '.join(TASKS)} (default: all, shots {', '.join(str(task.shots) for task in TASKS.values())})"
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=shown)
    parser.add_argument("--output_dir", type=Path, help="default: outputs/lm_eval/<the model's name>")
    shown = "tokens a batch with padding (default: 8192)"
    parser.add_argument("--batch_tokens", type=number(int, 1), default=8192, help=shown)
    shown = "items of each benchmark, from the start; of MMLU from the hub, of each subject (default: all)"
    parser.add_argument("--limit", type=number(int, 1), help=shown)
    parser.add_argument("--seed", type=int, default=1234, help="of the draw of shots (default: 1234, the harness's)")
    args = parser.parse_args(argv)
    args.output_dir = args.output_dir or Path("outputs", "lm_eval", Path(args.model_name_or_path).name)
    return args


def files_of(folder: Path, task: Task) -> list[Path]:
    """The files of a benchmark, in a folder or a folder of it. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f"--data_dir {folder} is no folder")
    found = []
    for name in task.files:
        places = [path for path in (*folder.glob(name), *sorted(folder.glob(f"*/{name}"))) if path.is_file()]
        if len(places) != 1:
            there = "no" if not places else f"{len(places)} files"
            raise UserError(f"--data_dir {folder} has {there} {name}, which {task.column} is read from")
        found += places
    return found


def the_harness() -> Any:
    """lm_eval, without its log and its bars. Raises UserError where it is not installed."""
    try:
        import lm_eval
        from lm_eval.api import model, task
    except ImportError:
        raise UserError(f"the lm-evaluation-harness is not installed; {INSTALL}") from None
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    for module in (model, task):
        module.tqdm = lambda rows, **_: rows  # of a benchmark's questions there is one bar, ours
    return lm_eval


@cache
def loaded(name: str, batch_tokens: int) -> Any:
    """The policy as the harness runs it, once for all benchmarks, but that what a question's choices share, above all
    its shots, goes through the model once. A text that is too long loses tokens of its shots from the left."""
    from lm_eval.models.huggingface import HFLM

    from alignment.training.benchmarks import asked_policy, cut_to_fit, grouped_logps

    policy = asked_policy(name, dtype=None, max_length=None, batch_tokens=batch_tokens)

    class Sharing(HFLM):
        def _loglikelihood_tokens(self, requests: list[tuple[Any, list[int], list[int]]], **_) -> list:
            """(log p(choice | context), False) of each: whether the choice is also the likeliest text is not asked."""
            by_question = groupby(requests, key=lambda request: request[1])
            groups = [cut_to_fit(policy, n, ids, [each[2] for each in own]) for n, (ids, own) in enumerate(by_question)]
            return [(sum_, False) for group in grouped_logps(policy, groups, "harness") for sum_ in group]

    return Sharing(pretrained=policy.model, tokenizer=name)


def tasks_of(name: str, files: list[Path]) -> tuple[Any, str]:
    """The harness's task manager, and the name that it knows a benchmark by. Its rows are read, or UserError."""
    from lm_eval.tasks import TaskManager

    local = {"include_path": str(DEFINITIONS), "metadata": {"files": {name: list(map(str, files))}}} if files else {}
    manager, asked = TaskManager(**local), f"local_{name}" if files else name
    try:
        manager.load([asked])
    except OSError as error:  # no connection, or no such data set
        told = str(error).splitlines()[0]
        raise UserError(f"{TASKS[name].column} cannot be had from the hub ({told}); give --data_dir") from None
    return manager, asked


def evaluated(name: str, manager: Any, asked: str, args: Namespace) -> dict:
    """One benchmark's result."""
    harness = the_harness()
    report = harness.simple_evaluate(
        model=loaded(args.model_name_or_path, args.batch_tokens),
        tasks=[asked],
        num_fewshot=TASKS[name].shots,
        limit=args.limit,
        fewshot_random_seed=args.seed,
        task_manager=manager,
        log_samples=False,
    )
    return result_of(report, name, asked) | {"harness": harness.__version__}


def result_of(report: dict, name: str, asked: str) -> dict:
    """What the harness reports of a benchmark: value, items, interval."""
    metric, results = TASKS[name].metric, report["results"]
    found = next(results[each] for each in (asked, name) if f"{metric},none" in results.get(each, {}))
    value, error = float(found[f"{metric},none"]), found[f"{metric}_stderr,none"]
    items = sum(each["effective"] for each in report["n-samples"].values())
    if name != "truthfulqa_mc2":
        interval = wilson(value * items, items)
    elif isinstance(error, str):  # "N/A", of one item
        interval = 0.0, 1.0
    else:
        interval = max(0.0, value - 1.96 * error), min(1.0, value + 1.96 * error)
    return {"task": name, "value": value, "items": items, "interval": interval}


def average(results: list[dict]) -> tuple[float, tuple[float, float]]:
    """The mean over benchmarks, each of the same weight, and its interval, from theirs (Zou and Donner 2008)."""
    mean = sum(each["value"] for each in results) / len(results)
    below, above = (
        math.hypot(*(each["value"] - each["interval"][side] for each in results)) / len(results) for side in (0, 1)
    )
    return mean, (mean - below, mean + above)


def main(args: Namespace) -> None:
    check_policy(args.model_name_or_path)
    if base := adapter_base(args.model_name_or_path, None):
        raise UserError(f"{args.model_name_or_path} is an adapter of {base}; merge it first, with merge.py")
    the_harness()
    read = {name: files_of(args.data_dir, TASKS[name]) if args.data_dir else [] for name in args.tasks}
    results = []
    for name, files in read.items():
        output = args.output_dir / f"{name}.json"
        told = Namespace(**{**vars(args), "tasks": name})
        with claim(output, told, script=__file__, inputs=files, models=[args.model_name_or_path]) as held:
            if held.is_done():
                print(held.already())
            else:
                tasks = tasks_of(name, files)
                held.begin()
                result = evaluated(name, *tasks, args)
                write_whole(output, [json.dumps(result, indent=2) + "\n"])
                held.finish({"items": result["items"]})
        results.append(read_json(output, "results"))
    rows = [("benchmark", "shots", "items", "%, [95% interval]")]
    for result in results:
        task = TASKS[result["task"]]
        rows.append((task.column, task.shots, result["items"], percent(result["value"], result["interval"])))
    if len(results) > 1:
        rows.append(("average", "", "", percent(*average(results))))
    print(table(rows))


if __name__ == "__main__":
    run(parse_args, main)
