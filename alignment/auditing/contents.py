"""What the texts hold: refusals, loops, little variety, items of benchmarks, and what no training should be given."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from alignment.auditing.benches import WAYS, Bench, Leaks
from alignment.auditing.flags import SHOWN, Estimate, Flag, share
from alignment.auditing.pairs import Pair
from alignment.filters import RESPONSE_RULES, why_drop
from alignment.generation import record_seed
from alignment.intervals import bootstrap
from alignment.wording import distinct, refuses, repeated, words

LOOP = 0.3  # of a response's runs of four words that came before: it goes in circles
BLOCK, FIRST_WORDS, BLOCKS = 25, 40, 4  # responses of a block, the words of each that count, blocks at least


def responses_of(pairs: Iterable[Pair]) -> list[tuple[Pair, str, str]]:
    """Each response to each prompt once, with a pair that has it and its side there."""
    found: dict[tuple[str, str], tuple[Pair, str, str]] = {}
    for pair in pairs:
        for side, text in (("chosen", pair.chosen), ("rejected", pair.rejected)):
            found.setdefault((pair.prompt, text), (pair, side, text))
    return list(found.values())


def by_side(hits: Sequence[bool], responses: Sequence[tuple[Pair, str, str]]) -> str:
    """`12 chosen and 40 rejected`, of those that hit."""
    sides = Counter(side for hit, (_, side, _) in zip(hits, responses, strict=True) if hit)
    return f"{sides['chosen']:,} chosen and {sides['rejected']:,} rejected"


def refusals_flag(pairs: Sequence[Pair]) -> Flag:
    responses = responses_of(pairs)
    hits = [refuses(text) for _, _, text in responses]
    return Flag(
        name="many responses refuse",
        said="responses that open by saying that they will not or cannot, or what a language model has not: "
        + by_side(hits, responses),
        reason="a model that learns from them learns to refuse, or that nothing is worse; 5% is our choice",
        estimate=share(hits, (pair.prompt for pair, _, _ in responses)),
        above=0.05,
        examples=[
            pair.example(side, response=text) for hit, (pair, side, text) in zip(hits, responses, strict=True) if hit
        ],
    )


def loops_flag(pairs: Sequence[Pair]) -> Flag:
    responses = responses_of(pairs)
    shares = [repeated(text) for _, _, text in responses]
    hits = [found > LOOP for found in shares]
    worst = sorted(zip(shares, responses, strict=True), key=lambda each: -each[0])[:SHOWN]
    return Flag(
        name="responses repeat themselves",
        said=f"responses of which more than {LOOP:.0%} of the runs of four words came before in them: "
        + by_side(hits, responses),
        reason="a reward model that saw few or many learns to like or hate lists; 5% is our choice",
        estimate=share(hits, (pair.prompt for pair, _, _ in responses)),
        above=0.05,
        examples=[
            pair.example(f"{side}, {found:.0%}", response=text) for found, (pair, side, text) in worst if found > LOOP
        ],
    )


def diversity_flag(pairs: Sequence[Pair], seed: int) -> Flag:
    """Distinct-2 in blocks, whose size it depends on, so that files of any size can be compared."""
    texts = [pair.chosen for pair in {pair.prompt: pair for pair in reversed(pairs)}.values()]
    random.Random(record_seed(seed, "blocks")).shuffle(texts)
    starts = range(0, len(texts) - BLOCK + 1, BLOCK)
    blocks = [distinct([words(text)[:FIRST_WORDS] for text in texts[at : at + BLOCK]], 2) for at in starts]
    enough = len(blocks) >= BLOCKS
    found = np.array(blocks)
    return Flag(
        name="responses are alike",
        said=f"distinct-2, mean over blocks of {BLOCK} chosen responses to different prompts: different pairs of "
        f"neighbouring words over all such pairs in the first {FIRST_WORDS} words of each",
        reason="answers of HH, UltraFeedback and AlpacaEval's models have 91 to 92%, and no block of them is under 85%",
        estimate=Estimate(found.mean().item(), bootstrap(found, np.mean, seed=seed), len(blocks)) if enough else None,
        below=0.75,
        missing=f"under {BLOCK * BLOCKS} different prompts",
    )


def leaks_flag(pairs: Sequence[Pair], benches: Sequence[Bench]) -> Flag:
    """Items of benches in prompts or responses, what was found exactly first among the examples."""
    own: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        own[pair.prompt].append(pair)
    leaking: set[str] = set()
    found: dict[str, list[dict]] = {way: [] for way in WAYS}
    table = []
    for bench in benches:
        leaks, ways = Leaks(bench), {}  # of each item the first of WAYS by which it is found anywhere
        for prompt, (pair, *others) in own.items():
            whole = dict.fromkeys(["\n".join(pair.turns), *pair.turns[-1:]])
            inside = [text for each in (pair, *others) for text in (each.chosen, each.rejected)]
            for item, way, shared in leaks.of(whole, inside):
                leaking.add(prompt)
                ways[item] = min(way, ways.get(item, way), key=WAYS.index)
                found[way].append(pair.example(f"{bench.name}, item {item}, {way}: {shared}"))
        table.append({"bench": bench.name, "items": len(bench.items), "found": len(ways), **Counter(ways.values())})
    return Flag(
        name="items of a benchmark are in it",
        said=f"prompts that hold an item of {', '.join(bench.name for bench in benches)}, they or their responses",
        reason="what was trained on measures nothing: none is the only good number",
        estimate=share((prompt in leaking for prompt in own), own) if benches else None,
        above=0,
        missing="no --bench was given",
        examples=[example for way in WAYS for example in found[way]],
        tables={"benches": table},
    )


def unusable_flag(dropped: dict[str, list[int]], kept: int) -> Flag:
    lost = sum(map(len, dropped.values()))
    told = ", ".join(f"{len(rows):,} {reason}" for reason, rows in dropped.items())
    hits = [True] * lost + [False] * kept
    return Flag(
        name="rows teach nothing",
        said="rows that train.py drops" + (f": {told}" if told else ""),
        reason="what made so many unusable rows may have harmed others; 5% is our choice",
        estimate=share(hits, range(len(hits))),
        above=0.05,
    )


def dropped_rules(pairs: Sequence[Pair]) -> list[dict]:
    """What cs's filter of responses would drop, by its rules in their order, with an example of each; no fault in
    responses that people wrote."""
    rows: dict[str, dict] = {}
    for pair, side, text in responses_of(pairs):
        if reason := why_drop(text.strip("\n "), RESPONSE_RULES):
            row = rows.setdefault(reason, {"reason": reason, "chosen": 0, "rejected": 0})
            row[side] += 1
            row.setdefault("example", pair.example(side, response=text))
    return [rows[reason] for reason, _ in RESPONSE_RULES if reason in rows]
