#!/usr/bin/env python
"""ROUGE-1, 2, L and Lsum of summaries against references, with intervals: CUT's measure of its summarisation (table 3).

    python generate.py --model_name_or_path MODEL --data_path summaries.json --output_file outputs/summaries.json
    python eval/summarisation.py --data_path outputs/summaries.json --reference_path summaries.json \
        --output_file outputs/rouge.json

Reads summaries, rows with `output` as generate.py writes them, and references, rows with `output` (or the column that
--reference_key names), of the same instructions and inputs in any order. Prints the mean F1 over summaries, in %, with
95% intervals of a bootstrap over them, precision and recall; --output_file has the scores of each, and a run card is
beside it. Where no summary came (null) there is no score; it is counted.

The scores are those of the package rouge_score without stemming: a word is a run of a to z and 0 to 9 in lower case.
ROUGE-L takes the text as one sentence; ROUGE-Lsum takes its lines for sentences, and counts of each reference line the
words that are in its longest common subsequence with any line of the summary. An empty summary scores 0 and is counted.
"""

from __future__ import annotations

import json
import re
from argparse import Namespace
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignment.command_line import ArgumentParser, UserError, nearest, number, run, table
from alignment.intervals import bootstrap, with_interval
from alignment.judging.answers import read_answers, read_questions
from alignment.records import read_json, read_rows, write_whole
from alignment.run_cards import claim

MEASURES = ("rouge1", "rouge2", "rougeL", "rougeLsum")
PARTS = ("precision", "recall", "f1")


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    flag("--data_path", type=Path, required=True, help="the summaries, rows with `output`")
    flag("--reference_path", type=Path, required=True, help="the references, rows of the same instructions")
    flag("--reference_key", default="output", metavar="KEY", help="column of the references (default: output)")
    flag("--output_file", type=Path, required=True, help="where the scores go, as JSON")
    flag("--seed", type=int, default=0, help="of the bootstrap (default: 0)")
    flag("--limit", type=number(int, 1), help="only the first N summaries, for a trial")
    return parser.parse_args(argv)


def main(args: Namespace) -> None:
    pairs = read_pairs(args.data_path, args.reference_path, args.reference_key, args.limit)
    inputs = [args.data_path, args.reference_path]
    with claim(args.output_file, args, script=__file__, inputs=inputs) as held:
        if held.is_done():
            print(held.already())
            return show(read_json(args.output_file, "results"))
        held.begin()
        items = [None if summary is None else rouge(summary, reference) for summary, reference in pairs]
        scored = [item for item in items if item]
        if not scored:
            raise UserError(f"summaries {args.data_path}: none of {len(pairs):,} came")
        empty = sum(summary is not None and not words(summary) for summary, _ in pairs)
        counts = {"summaries": len(scored), "empty": empty, "none came": len(pairs) - len(scored)}
        found = {"results": {name: averaged(scored, name, args.seed) for name in MEASURES}, "counts": counts}
        write_whole(args.output_file, [json.dumps(found | {"items": items}, indent=1) + "\n"])
        held.finish(counts)
    show(found)


# Rows


def read_pairs(path: Path, references: Path, key: str, limit: int | None) -> list[tuple[str | None, str]]:
    """(summary, reference) of the first `limit` references, in their order, None where no summary came. Raises
    UserError where the two files do not match, and for a reference without a word."""
    questions, rows = read_questions(references), read_rows(references, "references")
    texts = []
    for at, row in enumerate(rows):
        if key not in row:
            raise UserError(f"references {references}, row {at} has no {key!r}{nearest(key, row)}; see --reference_key")
        if not isinstance(row[key], str) or not words(row[key]):
            raise UserError(f"references {references}, row {at}: {key} is no text with a word in it")
        texts.append(row[key])
    _, answers = read_answers(str(path), questions, limit)
    return [(summary, reference) for (summary, *_), reference in zip(answers, texts, strict=False)]


# ROUGE


def words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def rouge(summary: str, reference: str) -> dict[str, list[float]]:
    """[precision, recall, F1] of each of MEASURES."""
    ours, theirs = words(summary), words(reference)
    found = {
        f"rouge{n}": scores(shared(grams(ours, n), grams(theirs, n)), len(ours) - n + 1, len(theirs) - n + 1)
        for n in (1, 2)
    }
    found["rougeL"] = scores(len(common(theirs, ours)), len(ours), len(theirs))
    lines, their_lines = ([words(line) for line in text.split("\n")] for text in (summary, reference))
    found["rougeLsum"] = scores(in_union(their_lines, lines), len(ours), len(theirs))
    return found


def scores(hits: int, ours: int, theirs: int) -> list[float]:
    """Precision, recall and F1 of `hits` of our and their n-grams; 0 where there is none."""
    precision, recall = hits / max(ours, 1), hits / max(theirs, 1)
    return [precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0]


def grams(tokens: Sequence[str], n: int) -> Counter:
    return Counter(tuple(tokens[at : at + n]) for at in range(len(tokens) - n + 1))


def shared(one: Counter, other: Counter) -> int:
    return (one & other).total()


def common(reference: Sequence[str], summary: Sequence[str]) -> list[int]:
    """The places in the reference of a longest common subsequence, of several the package's: it walks back through the
    table of lengths and, where the words differ, stays in the reference only if the summary's side is longer."""
    lengths = np.zeros((len(reference) + 1, len(summary) + 1), dtype=np.int32)
    for i, word in enumerate(reference):
        here = lengths[i, :-1] + np.array([word == each for each in summary], dtype=np.int32)
        # a cell is the highest of the one above, the one before, and the diagonal one plus a match
        lengths[i + 1, 1:] = np.maximum.accumulate(np.maximum(lengths[i, 1:], here))
    places, i, j = [], len(reference), len(summary)
    while i and j:
        if reference[i - 1] == summary[j - 1]:
            places.append(i - 1)
            i, j = i - 1, j - 1
        elif lengths[i, j - 1] > lengths[i - 1, j]:
            j -= 1
        else:
            i -= 1
    return places[::-1]


def in_union(references: Sequence[Sequence[str]], summary: Sequence[Sequence[str]]) -> int:
    """How many words of reference lines are in the union of their longest common subsequences with the lines of the
    summary, each word no oftener than it is in the summary, or in the reference."""
    left, theirs = (Counter(word for line in lines for word in line) for lines in (summary, references))
    hits = 0
    for line in references:
        for place in sorted({place for ours in summary for place in common(line, ours)}):
            word = line[place]
            if left[word] > 0 and theirs[word] > 0:
                left[word] -= 1
                theirs[word] -= 1
                hits += 1
    return hits


# Shown


def averaged(items: Sequence[dict], name: str, seed: int) -> dict:
    values = np.array([item[name] for item in items])  # (n, 3)
    means = dict(zip(PARTS, values.mean(0).tolist(), strict=True))
    return means | {"interval": bootstrap(values[:, 2], np.mean, seed=seed)}


def show(found: dict) -> None:
    rows = [("", "F1, % [95% interval]", "precision, %", "recall, %")]
    for name, each in found["results"].items():
        f1 = with_interval(100 * each["f1"], tuple(100 * end for end in each["interval"]), ".2f")
        rows.append((name.replace("rouge", "ROUGE-"), f1, *(f"{100 * each[part]:.2f}" for part in PARTS[:2])))
    print(table(rows))
    print(", ".join(f"{count:,} {what}" for what, count in found["counts"].items()))


if __name__ == "__main__":
    run(parse_args, main)
