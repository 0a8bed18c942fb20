r"""A scorer of toxicity that needs no server, fitted on the scores that Perspective gave RealToxicityPrompts.

    python scripts/fit_toxicity.py --data_path real_toxicity_prompts/train.jsonl --output_dir outputs/toxicity_scorer
    python eval/toxicity.py --scorer outputs/toxicity_scorer --model_name_or_path MODEL --data_path val.jsonl \
        --output_file outputs/toxicity/MODEL.json

Reads the released rows, .jsonl or .parquet: {"prompt": {"text", "toxicity"}, "continuation": {"text", "toxicity"}}.
Writes <output_dir>/scorer.json, plain JSON, with a run card beside it. The scorer is ridge regression on TF-IDF of
words, pairs of words and pieces of words. A fifth of the rows, prompt and continuation of a row together, is held out:
how well the scores agree there is printed and saved with the scorer, and is that of the very scorer that is saved.

Ridge draws scores to their mean, so that it says "more than 0.5" less often than Perspective does: both shares are
printed. Compare toxicities by this scorer among themselves, not with ones by Perspective.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from alignment.agreement import pearson, ranks, spearman
from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.intervals import bootstrap, with_interval
from alignment.records import write_whole
from alignment.run_cards import claim
from alignment.toxicity import (
    PARTS,
    SCORER_FILE,
    TOXIC,
    LinearScorer,
    Scored,
    load_scorer,
    rarity_of,
    read_scored,
    terms,
    weights_of,
    written,
)

HELD_OUT = 0.2  # of the rows
LEAST_ROWS = 10
LEAST_TEXTS = 2  # that a term is in, to be looked at
ALPHA = 0.3  # of ridge: the best of 0.3, 1 and 3 on another split (seed 0 of numpy) of the validation set's 5,000 rows


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    parser.add_argument("--data_path", type=Path, required=True, help="rows of RealToxicityPrompts")
    parser.add_argument("--output_dir", type=Path, required=True, help=f"where {SCORER_FILE} goes")
    parser.add_argument("--seed", type=int, default=42, help="of the rows held out, and of the bootstrap (default: 42)")
    parser.add_argument("--limit", type=number(int, 1), help="only the first so many rows, for a trial")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    texts = [each for each in read_scored(args.data_path) if args.limit is None or each.row < args.limit]
    fitted_on, held_out = split(texts, args.seed)
    output = args.output_dir / SCORER_FILE
    with claim(output, args, script=__file__, inputs=[args.data_path]) as held:
        if held.is_done():
            print(held.already())
            return show(load_scorer(args.output_dir).about)
        held.begin()
        scorer = fit([each.text for each in fitted_on], np.array([each.toxicity for each in fitted_on]))
        scores = [scorer.score(each.text) for each in held_out]
        scorer.about.update(fitted_on=len(fitted_on), held_out=agreement(held_out, scores, args.seed))
        write_whole(output, written(scorer))
        again = load_scorer(args.output_dir)
        different = sum(again.score(each.text) != score for each, score in zip(held_out, scores, strict=True))
        if different:
            raise UserError(f"{output}: loaded again it scores {different} of {len(held_out)} texts differently")
        held.finish({"texts": len(texts), "fitted_on": len(fitted_on), "held_out": len(held_out)})
    print(f"{len(fitted_on):,} texts -> {len(scorer.saved['terms']):,} terms: {output}, loaded again: the same scores")
    show(scorer.about)


def split(texts: Sequence[Scored], seed: int) -> tuple[list[Scored], list[Scored]]:
    """Texts to fit on, and those held out; of a row both or none. Raises UserError for fewer than LEAST_ROWS rows."""
    rows = sorted({each.row for each in texts})
    if len(rows) < LEAST_ROWS:
        raise UserError(f"{len(rows)} rows with scores are too few, as a fifth is held out; give {LEAST_ROWS} at least")
    apart = set(random.Random(seed).sample(rows, round(len(rows) * HELD_OUT)))
    return [each for each in texts if each.row not in apart], [each for each in texts if each.row in apart]


# Ridge on TF-IDF


def fit(texts: Sequence[str], scores: np.ndarray) -> LinearScorer:
    """The scorer whose squared errors on the texts' `scores` (n,), plus ALPHA times its coefficients', are least."""
    containing = Counter(term for text in texts for term in set(terms(text)))
    kept = {term: count for term, count in sorted(containing.items()) if count >= LEAST_TEXTS}
    rarity = {term: rarity_of(len(texts), count) for term, count in kept.items()}
    place = {term: number for number, term in enumerate(kept)}
    weights = [weights_of(text, rarity) for text in texts]
    rows = np.repeat(np.arange(len(texts)), [len(each) for each in weights])  # (N,) of the N weights that are not 0
    columns = np.array([place[term] for each in weights for term in each], dtype=np.intp)  # (N,)
    values = np.array([value for each in weights for value in each.values()])  # (N,)
    coefficients, intercept = ridge(rows, columns, values, len(kept), scores, ALPHA)
    found = {term: [count, short(coefficients[place[term]])] for term, count in kept.items()}
    return LinearScorer(found, len(texts), short(intercept), {})


def short(number: float) -> float:
    return float(f"{number:.6g}")


def ridge(
    rows: np.ndarray, columns: np.ndarray, values: np.ndarray, width: int, target: np.ndarray, alpha: float
) -> tuple[np.ndarray, float]:
    """argmin over w (width,), b of |Xw + b - y|^2 + alpha |w|^2, for X (n, width) of `values` at `rows`, `columns`.

    By conjugate gradients on the n duals a of (H XX' H + alpha) a = Hy, H taking the mean off: w = X'Ha.
    """
    total = len(target)

    def times(w: np.ndarray) -> np.ndarray:  # (width,) -> (n,)
        return np.bincount(rows, values * w[columns], minlength=total)

    def transposed(a: np.ndarray) -> np.ndarray:  # (n,) -> (width,)
        return np.bincount(columns, values * a[rows], minlength=width)

    goal = target - target.mean()
    duals, rest = np.zeros(total), goal.copy()
    way, square = rest.copy(), rest @ rest
    for _ in range(1_000):
        if square <= 1e-16 * (goal @ goal):
            break
        image = times(transposed(way))
        image += alpha * way - image.mean()  # `way` has no mean: it is made of `goal` and of such images
        step = square / (way @ image)
        duals += step * way
        rest -= step * image
        before, square = square, rest @ rest
        way = rest + square / before * way
    found = transposed(duals)
    return found, float((target - times(found)).mean())


# How well do the scores agree?


def agreement(texts: Sequence[Scored], scores: Sequence[float], seed: int) -> dict[str, dict]:
    """Of all texts and of each part of the rows: how many, MEASURES with their intervals over rows (None where there is
    no value, as without a toxic text), and the share above TOXIC by the scorer and by Perspective."""
    place = {row: number for number, row in enumerate(dict.fromkeys(each.row for each in texts))}
    both = np.full((len(place), len(PARTS), 2), np.nan)  # by the scorer, by Perspective
    for each, score in zip(texts, scores, strict=True):
        both[place[each.row], PARTS.index(each.part)] = score, each.toxicity
    found = {}
    for name, some in {"all": both, **{part: both[:, at : at + 1] for at, part in enumerate(PARTS)}}.items():
        if len(pairs := there(some)) < 2:
            continue
        found[name] = {"n": len(pairs), "toxic": (pairs > TOXIC).mean(0).tolist()}
        for measure, statistic in MEASURES.items():
            interval = bootstrap(some, lambda drawn, of=statistic: of(there(drawn)), seed=seed, resamples=500)
            values = [statistic(pairs), *interval]
            found[name][measure] = values if np.isfinite(values).all() else None
    return found


def there(both: np.ndarray) -> np.ndarray:
    """Rows and parts (n, parts, 2) -> the texts that are there (m, 2)."""
    flat = both.reshape(-1, 2)
    return flat[~np.isnan(flat[:, 0])]


def auc(both: np.ndarray) -> float:
    """How often a text that is toxic by the second column has the higher score in the first, a tie counting half."""
    toxic = both[:, 1] > TOXIC
    count, others = toxic.sum(), (~toxic).sum()
    if not count or not others:
        return np.nan
    return float((ranks(both[:, 0])[toxic].sum() - count * (count + 1) / 2) / (count * others))


MEASURES = {"spearman": spearman, "pearson": pearson, "auc": auc}


def show(about: dict) -> None:
    head = ("held out", "n", *(f"{name} [95% interval]" for name in MEASURES), "> 0.5 by it, %", "by Perspective, %")
    rows = [
        (
            name,
            found["n"],
            *(with_interval(value[0], value[1:]) if (value := found[measure]) else "-" for measure in MEASURES),
            *(f"{100 * share:.1f}" for share in found["toxic"]),
        )
        for name, found in about["held_out"].items()
    ]
    print(table([head, *rows]))


if __name__ == "__main__":
    run(parse_args, main)
