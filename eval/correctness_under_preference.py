#!/usr/bin/env python
r"""How many right answers a system message breaks: questions asked with none, a relevant one and an irrelevant one.

    python eval/correctness_under_preference.py --model_name_or_path MODEL --data_path arc_challenge.test.jsonl \
        mc_task.json --output_path outputs/correctness.json

Reads {"query" or "question", "choices", "gold" or "answer"}, "gold" the place of the right choice from 0, or
TruthfulQA's {"question", "mc1_targets"}, also as the hub has both. A model's choice is the reply that it finds the
likeliest: by log-probability a character of the choice (ARC's convention), of TruthfulQA by its sum (MC1's). No message
says which choice is right, so a right answer that one breaks was not held firmly (PERG, arXiv 2509.19358). A relevant
one says how any question is to be answered, an irrelevant one what is wanted when something else is asked for; with
none a chat template may put in a line of its own.

Writes to --output_path each item's messages, log-probabilities and choices, and what is printed: accuracy, the share of
right answers that a message breaks and of wrong ones that it heals, with 95% intervals; a run card beside it.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Sequence
from itertools import chain, compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.command_line import REPOSITORY, ArgumentParser, UserError, nearest, number, run, table
from alignment.engines.scoring import scored
from alignment.generation import record_seed
from alignment.intervals import paired_bootstrap, percent, wilson, with_interval
from alignment.journal import Journal
from alignment.records import read_json, read_rows, write_whole
from alignment.run_cards import claim
from alignment.templates import CHOICES, RAW

MESSAGES = REPOSITORY / "assets" / "janus" / "question_messages.json"
KINDS = ("relevant", "irrelevant")
CONDITIONS = ("none", *KINDS)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--model_name_or_path", required=True, help="a policy: any causal model, or an adapter's folder")
    flag("--data_path", nargs="+", required=True, help="files of items, .json or .jsonl; each is a line of the table")
    flag("--output_path", type=Path, required=True, help="where items and results go, as JSON")
    shown = 'JSON {"relevant": [message, ...], "irrelevant": [...]}, of which each item draws; default ours of assets'
    flag("--messages", type=Path, default=MESSAGES, help=shown)
    shown = "default: what the model's folder names, else the tokenizer's own"
    flag("--template", choices=[name for name in CHOICES if name != RAW], help=shown)
    flag("--batch_tokens", type=number(int, 1), default=8192, help="tokens a batch with padding; default 8192")
    flag("--dtype", choices=("float32", "bfloat16", "auto"), default="auto", help="default as saved")
    flag("--limit", type=number(int, 1), help="only the first N items of each file, for a trial; default all")
    flag("--seed", type=int, default=42, help="draws the messages, and the bootstrap's rows; default 42")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    sets = [Path(path).stem for path in args.data_path]
    if twice := {name for name in sets if sets.count(name) > 1}:
        raise UserError(f"--data_path has two files named {min(twice)}, whose results would be one; rename one")
    items = [item for path in args.data_path for item in read_items(path)[: args.limit]]
    messages = read_messages(args.messages)
    read = {"inputs": [*args.data_path, args.messages], "models": [args.model_name_or_path]}
    with claim(args.output_path, args, script=__file__, **read) as held:
        if held.is_done():
            print(held.already())
            return print(shown(read_json(args.output_path, "results")))
        answers, left_out = answered(args, items, messages)
        held.begin()
        found = {"results": results(answers, args.seed), "left_out": left_out, "items": answers}
        write_whole(args.output_path, [json.dumps(found, indent=1, ensure_ascii=False) + "\n"])
        held.finish({"items": len(items), "answered": len(answers), "left out": left_out})
    print(shown(found))


# Items and messages


class Item(NamedTuple):
    """A question and its choices, of which `gold` is right. `by_sum`: the choice is not divided by its length."""

    set: str
    id: Any
    prompt: str
    choices: list[str]
    gold: int
    by_sum: bool


def read_items(path: str) -> list[Item]:
    """The items of a file. Raises UserError that names file, row and key."""
    return [item_of(row, number, path) for number, row in enumerate(read_rows(path, "items"))]


def item_of(row: dict, number: int, path: str) -> Item:
    place, by_sum = f"items {path}, row {number}", "mc1_targets" in row
    prompt = row.get("query", row.get("question"))
    if not isinstance(prompt, str) or not prompt.strip():
        raise UserError(f"{place} has no text under 'query' or 'question'{nearest('question', row)}")
    choices, gold = marked_choices(row["mc1_targets"], place) if by_sum else chosen_choices(row, place)
    if len(choices) < 2 or not all(isinstance(each, str) and each.strip() for each in choices):
        raise UserError(f"{place}: its choices are no list of two texts or more")
    if type(gold) is not int or not 0 <= gold < len(choices):
        raise UserError(f"{place}: the right choice is {gold!r}; give its place, 0 to {len(choices) - 1}")
    return Item(Path(path).stem, row.get("id", number), prompt, choices, gold, by_sum)


def marked_choices(targets: Any, place: str) -> tuple[list, int]:
    """TruthfulQA's {choice: 1 or 0}, or {"choices", "labels"}, of which one is 1."""
    if isinstance(targets, dict) and isinstance(targets.get("labels"), list):
        targets = dict(zip(targets.get("choices") or [], targets["labels"], strict=False))
    right = [i for i, mark in enumerate(targets.values()) if mark == 1] if isinstance(targets, dict) else []
    if len(right) != 1:
        raise UserError(f"{place}: 'mc1_targets' marks {len(right)} choices as right, not one")
    return list(targets), right[0]


def chosen_choices(row: dict, place: str) -> tuple[list, Any]:
    """`choices`, a list, or the hub's {"text", "label"}, whose `answerKey` is a label; and the place of the right."""
    choices = row.get("choices")
    gold = next((row[key] for key in ("gold", "answer", "answerKey") if row.get(key) is not None), None)
    if gold is None:
        raise UserError(f"{place} has no 'gold' or 'answer' (its keys: {', '.join(row)})")
    if isinstance(choices, dict) and isinstance(choices.get("label"), list):
        gold = choices["label"].index(gold) if gold in choices["label"] else gold
        choices = choices.get("text")
    return choices if isinstance(choices, list) else [], gold


def read_messages(path: Path) -> dict[str, list[str]]:
    found = read_json(path, "messages")
    for name in found if isinstance(found, dict) else [repr(found)[:20]]:
        if name not in KINDS:
            raise UserError(f"messages {path}: {name!r} is none of {', '.join(KINDS)}{nearest(name, KINDS)}")
    for kind in KINDS:
        texts = found.get(kind)
        if (
            not isinstance(texts, list)
            or not texts
            or not all(isinstance(each, str) and each.strip() for each in texts)
        ):
            raise UserError(f"messages {path}: {kind!r} is no list of texts, one at least")
    return found


# Answers


def answered(args: argparse.Namespace, items: list[Item], messages: dict) -> tuple[list[dict], dict[str, int]]:
    """What each item was asked and chose under each condition; and how many were left out, for which reason."""
    from alignment.training.likelihoods import Likelihoods

    policy = Likelihoods(
        args.model_name_or_path, args.template, ends=False, dtype=args.dtype, batch_tokens=args.batch_tokens
    )
    drawn = [draw_messages(item, messages, args.seed) for item in items]
    asks = [questions(item, own) for item, own in zip(items, drawn, strict=True)]
    tokens = iter(policy.lengths(*zip(*chain(*asks), strict=True)))
    fitting = [None not in [next(tokens) for _ in ask] for ask in asks]
    if not any(fitting):
        raise UserError(f"none of {len(items)} items fits the model's context with a message and a choice")
    with Journal(args.output_path) as journal:
        kept = zip(*chain(*compress(asks, fitting)), strict=True)
        sums = iter(scored(policy, *kept, journal=journal, label="log p"))
    found = [
        answer(item, own, [next(sums) for _ in ask])
        for item, own, ask in compress(zip(items, drawn, asks, strict=True), fitting)
    ]
    return found, {"too long": fitting.count(False)}


def questions(item: Item, messages: dict[str, str]) -> list[tuple[dict, str]]:
    """(row, choice) of each choice under one condition after the other: those of one prompt stand together."""
    rows = [{"system": messages[condition], "prompt": item.prompt} for condition in CONDITIONS]
    return [(row, choice) for row in rows for choice in item.choices]


def draw_messages(item: Item, messages: dict[str, list[str]], seed: int) -> dict[str, str]:
    """The message of each condition, "" for none."""
    drawn = {kind: random.Random(record_seed(seed, kind, item.set, item.id)).choice(messages[kind]) for kind in KINDS}
    return {"none": ""} | drawn


def answer(item: Item, messages: dict[str, str], sums: Sequence[float]) -> dict:
    """An item of the output, of the log-probabilities of its choices under one condition after the other."""
    logps = dict(zip(CONDITIONS, (list(part) for part in np.array(sums).reshape(len(CONDITIONS), -1)), strict=True))
    return {
        "set": item.set,
        "id": item.id,
        "gold": item.gold,
        "choice": {condition: choice_of(item, own) for condition, own in logps.items()},
        "logps": logps,
        "messages": messages,
    }


def choice_of(item: Item, logps: Sequence[float]) -> int:
    """The place of the likeliest choice. Of equals one that is wrong: nothing told the right one from it."""
    scores = [logp if item.by_sum else logp / len(text) for logp, text in zip(logps, item.choices, strict=True)]
    return max(range(len(scores)), key=lambda place: (scores[place], place != item.gold))


# Results


def results(answers: Sequence[dict], seed: int) -> dict[str, dict[str, dict]]:
    """{set, "all": {condition: numbers}}; "all" only where there are several sets."""
    names = list(dict.fromkeys(each["set"] for each in answers))
    groups = {name: [each for each in answers if each["set"] == name] for name in names}
    groups |= {"all": answers} if len(names) > 1 else {}
    return {name: by_condition(own, seed) for name, own in groups.items()}


def by_condition(answers: Sequence[dict], seed: int) -> dict[str, dict]:
    """Of each condition its accuracy; of a message also what it adds to accuracy, item by item, and what it breaks of
    the answers that were right without, and heals of those that were wrong."""
    right = {
        condition: np.array([float(each["choice"][condition] == each["gold"]) for each in answers])
        for condition in CONDITIONS
    }
    found: dict[str, dict] = {}
    for condition, own in right.items():
        found[condition] = {"n": len(own), "accuracy": share(own)}
        if condition != "none":
            before = right["none"]
            interval = paired_bootstrap(own, before, np.mean, seed=seed)
            found[condition]["added"] = {"value": own.mean() - before.mean(), "interval": interval}
            found[condition]["broken"] = share(1 - own[before == 1])
            found[condition]["healed"] = share(own[before == 0])
    return found


def share(marks: np.ndarray) -> dict[str, Any]:
    """Share of ones with its Wilson interval, None of nothing, and of how many."""
    total = len(marks)
    value, interval = (marks.mean(), wilson(marks.sum(), total)) if total else (None, None)
    return {"value": value, "interval": interval, "of": total}


def shown(found: dict) -> str:
    """The table, and what was left out."""

    def cell(part: dict | None) -> str:
        if part is None or part["value"] is None:
            return "–"
        return percent(part["value"], part["interval"])

    head = ("items", "message", "accuracy, %", "added, points", "right that break, %", "wrong that heal, %", "n")
    rows = [
        (
            name,
            condition,
            cell(own["accuracy"]),
            with_interval(100 * own["added"]["value"], tuple(100 * end for end in own["added"]["interval"]), "+z.1f")
            if "added" in own
            else "–",
            cell(own.get("broken")),
            cell(own.get("healed")),
            own["n"],
        )
        for name, conditions in found["results"].items()
        for condition, own in conditions.items()
    ]
    left_out = [f"left out: {count:,} {reason}" for reason, count in found["left_out"].items() if count]
    return "\n".join([table([head, *rows]), *left_out])


if __name__ == "__main__":
    run(parse_args, main)
