"""ALMoST's comparisons (section 2.2): ranked configurations' replies to a prompt -> filtered, binarised pairs, counted.

names, ranks = parse_rubric(["llama-2-30b-Faithful-3shot", "llama-2-7b-HHH-1shot"])
rows = compare(prompts, [replies, others], names, ranks, counts := Waterfall(names))
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from alignment.command_line import UserError, table
from alignment.filters import RESPONSE_RULES, why_drop
from alignment.ranking import binarise
from alignment.records import RESPONSES


def parse_rubric(words: list[str]) -> tuple[list[str], list[int]]:
    """Configurations and their ranks, 0 the best. `A B,C D`, or as one list, `[A, [B, C], D]`: B and C are equals."""
    text = " ".join(words)
    if text.startswith("["):
        groups = re.findall(r"\[([^][]*)\]|([^][, ]+)", text[1:].removesuffix("]"))
        groups = [[name.strip() for name in (tie or single).split(",")] for tie, single in groups]
    else:
        groups = [word.split(",") for word in words]
    ends = re.compile(rf"({'|'.join(map(re.escape, RESPONSES))})$")
    named = [(ends.sub("", name), rank) for rank, group in enumerate(groups) for name in group]
    if not all(name for name, _ in named):
        raise UserError(f"--rubric {' '.join(words)} has an empty name; equal ranks are written a,b without a space")
    names = [name for name, _ in named]
    if len(groups) < 2:
        raise UserError("--rubric needs two ranks at least, best first: nothing can be compared with one")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise UserError(f"--rubric names {twice[0]} twice")
    return names, [rank for _, rank in named]


def compare(
    queries: Iterable[str],
    responses: Sequence[Iterable[str | None]],
    names: Sequence[str],
    ranks: Sequence[int],
    counts: Waterfall,
) -> Iterator[dict]:
    """The comparisons in the prompts' order, of prompts and each configuration's replies to them, as they come; what
    there is of replies beyond the prompts is left. `counts` is filled on the way."""
    for query, *replies in zip(queries, *responses, strict=False):
        kept = []
        for column, reply in enumerate(replies):
            reason = "no reply" if reply is None else why_drop(reply, RESPONSE_RULES)
            if reason:
                counts.dropped[column][reason] += 1
            else:
                kept.append(column)
        counts.kept[len(kept)] += 1
        lengths = [len(replies[column]) for column in kept]
        for high, low in binarise([ranks[column] for column in kept], lengths):
            chosen, rejected = kept[high], kept[low]
            counts.pairs[chosen, rejected] += 1
            counts.longer[chosen, rejected] += lengths[high] > lengths[low]
            yield {
                "prompt": query,
                "chosen": replies[chosen],
                "rejected": replies[rejected],
                "meta": f"{names[chosen]}-vs-{names[rejected]}",
            }


def in_messages(row: dict) -> dict:
    """A comparison as a conversation of one turn and two replies to it, which train.py reads as it reads the texts."""
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return row | {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


class Waterfall:
    """What happened on the way from responses to comparisons."""

    def __init__(self, names: list[str]):
        self.names = names
        self.dropped = [Counter() for _ in names]  # per configuration: reason -> responses
        self.kept = Counter()  # kept responses of a prompt -> prompts
        self.pairs = Counter()  # (chosen, rejected) configuration -> pairs
        self.longer = Counter()  # likewise, where the chosen is the longer
        self.refused: Counter | None = None  # meta -> pairs on which --filter_reward_model disagrees

    def total(self) -> int:
        return sum(self.pairs.values()) - sum((self.refused or {}).values())

    def as_dict(self) -> dict:
        return {
            "prompts": sum(self.kept.values()),
            "prompts_by_kept_responses": {str(kept): self.kept[kept] for kept in sorted(self.kept)},
            "dropped": {name: dict(dropped) for name, dropped in zip(self.names, self.dropped, strict=True)},
            "pairs": {self._pair(pair): count for pair, count in sorted(self.pairs.items())},
            "chosen_is_longer": {self._pair(pair): count for pair, count in sorted(self.longer.items())},
        } | ({} if self.refused is None else {"refused_by_reward_model": dict(sorted(self.refused.items()))})

    def _pair(self, pair: tuple[int, int]) -> str:
        return f"{self.names[pair[0]]}-vs-{self.names[pair[1]]}"

    def tables(self) -> str:
        """Responses by configuration and reason, then pairs by configurations, as aligned text."""
        prompts_seen = sum(self.kept.values())
        reasons = [reason for reason, _ in [("no reply", None), *RESPONSE_RULES]]
        reasons = [reason for reason in reasons if any(dropped[reason] for dropped in self.dropped)]
        head = ["responses", *self.names]
        rows = [[reason, *(dropped[reason] for dropped in self.dropped)] for reason in reasons]
        kept = ["kept", *(prompts_seen - sum(dropped.values()) for dropped in self.dropped)]
        pairs = [["pairs", "", "chosen is longer"]] + [
            [self._pair(pair), count, f"{self.longer[pair] / count:.0%}"] for pair, count in sorted(self.pairs.items())
        ]
        if self.refused is not None:
            pairs[0].append("reward model agrees")
            for row in pairs[1:]:
                row.append(row[1] - self.refused[row[0]])
        responses = [head, ["in", *(prompts_seen for _ in self.names)], *rows, kept]
        return f"{table(responses)}\n\n{table(pairs)}\n"
