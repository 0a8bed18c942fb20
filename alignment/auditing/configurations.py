"""Who beats whom: configurations of models and prompts, and the responses to one prompt.

    strengths(Counter({("13b", "7b"): 40, ("7b", "13b"): 10, ("7b", "1b"): 30}))   # {"13b": 2.3, "7b": 0.9, "1b": -3.2}
    circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})                                   # ["a", "b", "c"]

A reward is one number for each response, so what goes round in a circle it cannot learn.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import combinations
from typing import TypeVar

import numpy as np

from alignment.auditing.flags import Flag, prompts, share
from alignment.auditing.pairs import Pair
from alignment.intervals import Interval, percent, wilson

COLUMNS = 20  # configurations that the matrix shows
ROUNDS = 2000  # of Hunter's algorithm, each of k x k sums
Wins = Mapping[tuple[str, str], int]  # (better, worse) -> how often
T = TypeVar("T", bound=Hashable)


def strengths(wins: Wins) -> dict[str, float]:
    """The log-strength of each configuration, the strongest first, so that p(a over b) = sigmoid(a - b).

    Each two that met have half a win more on both sides: one that never lost would have none otherwise.
    """
    names = list(dict.fromkeys(name for pair in wins for name in pair))
    if not names:
        return {}
    won = np.zeros((len(names), len(names)))
    for (better, worse), count in wins.items():
        won[names.index(better), names.index(worse)] += count
    met = won + won.T
    total, games = (won + (met > 0) / 2).sum(1), met + (met > 0)
    strength = np.ones(len(names))
    for _ in range(ROUNDS):
        strength = total / (games / (strength[:, None] + strength)).sum(1)
        strength /= np.exp(np.log(strength).mean())
    found = dict(zip(names, np.log(strength).tolist(), strict=True))
    return dict(sorted(found.items(), key=lambda each: -each[1]))


def majorities(wins: Wins) -> dict[tuple[str, str], tuple[float, Interval]]:
    """(better, worse) of each two of which one wins more often, its share of their games, and the interval of that."""
    found = {}
    for first, second in combinations(dict.fromkeys(name for pair in wins for name in pair), 2):
        ahead, behind = sorted([(wins.get((a, b), 0), a, b) for a, b in ((first, second), (second, first))])[::-1]
        if ahead[0] > behind[0]:
            games = ahead[0] + behind[0]
            found[ahead[1:]] = ahead[0] / games, wilson(ahead[0], games)
    return found


def circle(beats: Mapping[T, set[T]]) -> list[T]:
    """Some circle of a relation, each of which beats the next and the last the first, or []."""
    try:
        TopologicalSorter(beats).prepare()
    except CycleError as error:
        return error.args[1][:0:-1]  # graphlib tells it from the beaten to who beats, the first once more at the end
    return []


# Flags


def configurations_flag(pairs: Sequence[Pair]) -> Flag:
    """Circles among configurations, and the matrix of all, the strongest first."""
    named = [pair for pair in pairs if pair.configurations]
    wins = Counter(pair.configurations for pair in named)
    longer = Counter(pair.configurations for pair in named if len(pair.chosen) > len(pair.rejected))
    names, ahead = list(strengths(wins)), majorities(wins)
    sure: dict[str, set[str]] = defaultdict(set)
    for (better, worse), (_, interval) in ahead.items():
        if interval[0] > 0.5:
            sure[better].add(worse)
    ring = circle(sure)
    links = list(zip(ring, ring[1:] + ring[:1], strict=True))
    told = ", ".join(f"{better} over {worse} in {percent(*ahead[better, worse])} %" for better, worse in links)
    links += [link[::-1] for link in links]
    seen = names[:COLUMNS]
    cells = [
        [{"wins": wins[a, b], "games": wins[a, b] + wins[b, a], "longer": longer[a, b]} for b in seen] for a in seen
    ]
    return Flag(
        name="configurations beat each other in a circle",
        said="pairs of the configurations of a circle, in which each surely wins more than half against the next"
        + (f": {told}" if told else ""),
        reason="no score can rank a circle",
        estimate=share((pair.configurations in links for pair in named), prompts(named)) if len(names) > 2 else None,
        above=0,
        missing="under three configurations are named by meta, a-vs-b",
        tables={"configurations": {"names": seen, "cells": cells}},
    )


def circles_flag(pairs: Sequence[Pair]) -> Flag:
    """Circles among the responses to one prompt, of three or more: two are a reversed pair."""
    own: dict[str, dict[tuple[str, str], Pair]] = defaultdict(dict)
    for pair in pairs:
        prompt, chosen, rejected = pair.key
        own[prompt].setdefault((chosen, rejected), pair)
    hits, found = [], []
    for edges in own.values():
        edges = {edge: pair for edge, pair in edges.items() if edge[::-1] not in edges}
        if not has_ring(edges):
            continue
        beats: dict[str, set[str]] = defaultdict(set)
        for better, worse in edges:
            beats[better].add(worse)
        ring = circle(beats)
        hits.append(bool(ring))
        for number, link in enumerate(zip(ring, ring[1:] + ring[:1], strict=True), 1):
            found.append(edges[link].example(f"{number} of {len(ring)} in a circle"))
    return Flag(
        name="responses to a prompt beat each other in a circle",
        said="prompts whose comparisons close a ring, and go round in it",
        reason="of three comparisons that a coin decides one in four is a circle; 10% is our choice",
        estimate=share(hits, range(len(hits))),
        above=0.1,
        missing="no prompt has three responses of which each met each, or a longer ring",
        examples=found,
    )


def has_ring(edges: Iterable[tuple[str, str]]) -> bool:
    """Whether comparisons close a ring, whoever wins: one joins two that were joined before."""
    group: dict[str, str] = {}

    def root(name: str) -> str:
        while name in group:
            name = group[name]
        return name

    for edge in edges:
        first, second = map(root, edge)
        if first == second:
            return True
        group[first] = second
    return False
