"""The same again: pairs that come twice or turned round, prompts and responses that are nearly one."""

from __future__ import annotations

import random
from collections.abc import Sequence

from alignment.auditing.flags import SHOWN, Flag, prompts, share
from alignment.auditing.pairs import Pair
from alignment.generation import record_seed
from alignment.janus.splits import NEAR_PROMPT
from alignment.rouge import Pool

NEAR_RESPONSE = 0.9  # ROUGE-L F of two responses that are nearly one
COMPARED = 1000  # prompts, and pairs, at most that are drawn for ROUGE-L


def repeats_flag(pairs: Sequence[Pair]) -> Flag:
    seen: dict[tuple[str, str, str], int] = {}
    hits, found = [], []
    for pair in pairs:
        hits.append(pair.key in seen)
        if hits[-1]:
            found.append(pair.example(f"as row {seen[pair.key]}"))
        seen.setdefault(pair.key, pair.row)
    return Flag(
        name="pairs come twice",
        said="pairs that an earlier row has already, but for case and white space",
        reason="it is learned twice, and may be both trained on and held out; 1% is our choice",
        estimate=share(hits, prompts(pairs)),
        above=0.01,
        examples=found,
    )


def reversed_flag(pairs: Sequence[Pair]) -> Flag:
    """Pairs whose reverse is there too; and how many responses are chosen in one pair and rejected in another."""
    unlike = [pair for pair in pairs if pair.key[1] != pair.key[2]]  # in more than case and white space
    rows = {pair.key: pair.row for pair in unlike}
    turned = [rows.get((pair.key[0], pair.key[2], pair.key[1])) for pair in pairs]
    chosen, rejected = ({(pair.key[0], pair.key[side]) for pair in unlike} for side in (1, 2))
    anywhere = {text for _, text in chosen} & {text for _, text in rejected}
    both = {"for one prompt, as a chain of three has it": len(chosen & rejected)}
    both["for different prompts"] = len(anywhere - {text for _, text in chosen & rejected})
    return Flag(
        name="pairs contradict each other",
        said="pairs whose chosen and rejected response are rejected and chosen in another row",
        reason="nothing can learn both; 1% is our choice",
        estimate=share((row is not None for row in turned), prompts(pairs)),
        above=0.01,
        examples=[
            pair.example(f"the reverse of row {row}")
            for pair, row in zip(pairs, turned, strict=True)
            if row is not None
        ],
        tables={"both_sides": both},
    )


def near_prompts_flag(pairs: Sequence[Pair], seed: int) -> Flag:
    own = {pair.prompt: pair for pair in reversed(pairs)}  # the first pair of each prompt
    drawn = random.Random(record_seed(seed, "prompts")).sample(sorted(own), min(len(own), COMPARED))
    pool, hits, found = Pool(threshold=NEAR_PROMPT), [], []
    for prompt in drawn:
        hits.append(pool.is_duplicate(prompt))
        if hits[-1] and len(found) < SHOWN:
            match = pool.nearest(prompt)
            found.append(own[prompt].example(f"ROUGE-L {match.score:.2f} with: {drawn[match.index]}"))
        pool.add(prompt)
    drawn_of = f" of {len(drawn):,} drawn" if len(drawn) < len(own) else ""
    return Flag(
        name="prompts nearly come twice",
        said=f"different prompts{drawn_of} that are nearly an earlier one, ROUGE-L {NEAR_PROMPT:g} or more",
        reason="less is asked than there are prompts, and what is held out is not new; 10% is our choice",
        estimate=share(hits, drawn),
        above=0.1,
        examples=found,
    )


def near_responses_flag(pairs: Sequence[Pair], seed: int) -> Flag:
    drawn = random.Random(record_seed(seed, "pairs")).sample(list(pairs), min(len(pairs), COMPARED))
    hits = [Pool([pair.chosen], threshold=NEAR_RESPONSE).is_duplicate(pair.rejected) for pair in drawn]
    drawn_of = f" of {len(drawn):,} drawn" if len(drawn) < len(pairs) else ""
    return Flag(
        name="chosen and rejected are nearly one",
        said=f"pairs{drawn_of} whose responses have ROUGE-L {NEAR_RESPONSE:g} or more",
        reason="they differ in a word or two, and mostly teach noise; 10% is our choice",
        estimate=share(hits, prompts(drawn)),
        above=0.1,
        examples=[pair.example() for pair, hit in zip(drawn, hits, strict=True) if hit],
    )
