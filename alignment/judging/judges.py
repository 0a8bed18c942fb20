"""Who compares: a model that is asked, a reward model, or the rule that the longer answer wins.

    judge = EngineJudge(engine, sampling, journal, scores=False, tries=4, budget=200_000)
    found = judge([Pair("q1", "Why?", "Because.", "So."), ...])    # a Compared for each
    judge.spent, judge.is_spent       # tokens, and whether for lack of them something was not asked

A judge that is asked sees each pair in both orders. The others see no order, and so give one verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from alignment.asking import Asked
from alignment.generation import Engine, Reply, Request, Sampling, generate
from alignment.journal import Journal
from alignment.judging.pairs import Compared, Pair, Verdict, compared, together
from alignment.limits import tokens_of

SPENT = "the budget of tokens is spent"


class EngineJudge:
    """Any engine. `budget` is how many tokens of prompts and replies it may take, by their characters: a request is
    made only where its prompt and the longest reply would fit. Replies that the journal holds count too, so that the
    same command stops at the same place; what is asked again for a JSON schema's sake does not."""

    def __init__(
        self,
        engine: Engine,
        sampling: Sampling,
        journal: Journal,
        *,
        budget: int | None = None,
        schema_retries: int = 3,
        **how: Any,
    ):
        self._ask = partial(
            generate, engine, sampling=sampling, journal=journal, label="verdicts", schema_retries=schema_retries
        )
        self._longest, self._budget, self._how = sampling.max_tokens, budget, how
        self._asked: list[Asked] = []
        self._seen: set[tuple[str, int]] = set()  # the self-test asks some of what the run asks again
        self.spent, self.is_spent = 0, False

    def __call__(self, pairs: Sequence[Pair]) -> list[Compared]:
        found, asked = compared(pairs, self._send, **self._how)
        self._asked.append(asked)
        return found

    @property
    def asked(self) -> Asked:
        return together(self._asked)

    def _send(self, requests: Sequence[Request]) -> list[Reply]:
        replies = [Reply(None, SPENT)] * len(requests)
        waiting = list(range(len(requests)))
        while some := self._fitting(requests, waiting):  # replies that are short leave room for more
            for place, reply in zip(some, self._ask([requests[place] for place in some]), strict=True):
                replies[place] = reply
                if key(requests[place]) not in self._seen:
                    self.spent += tokens_of(requests[place].prompt) + tokens_of(reply.text or "")
                self._seen.add(key(requests[place]))
            waiting = waiting[len(some) :]
        self.is_spent |= bool(waiting)
        return replies

    def _fitting(self, requests: Sequence[Request], waiting: Sequence[int]) -> list[int]:
        """The first of those that wait, as many as certainly fit the budget."""
        if self._budget is None:
            return list(waiting)
        left, found = self._budget - self.spent, []
        for place in waiting:
            left -= 0 if key(requests[place]) in self._seen else tokens_of(requests[place].prompt) + self._longest
            if left < 0:
                break
            found.append(place)
        return found


def key(request: Request) -> tuple[str, int]:
    return request.prompt[-1]["content"], request.seed


def by_reward(rewards: Callable[[Sequence[dict], Sequence[str]], list[float]], pairs: Sequence[Pair]) -> list[Compared]:
    """The answer with the higher reward; of equals neither. `rewards` scores texts, each as a response to its row; an
    answer that meets several others is scored once."""
    sides = [each for pair in pairs for each in (pair, pair.swapped())]
    names = [(each.question, each.first, tuple(turn[:2] for turn in each.earlier)) for each in sides]
    once = dict(zip(names, sides, strict=True))
    found = dict(
        zip(once, rewards(list(map(row_of, once.values())), [each.first for each in once.values()]), strict=True)
    )
    own = [found[name] for name in names]
    return [by_keys(first, second) for first, second in zip(own[::2], own[1::2], strict=True)]


def row_of(pair: Pair) -> dict:
    """What the first answer of a pair responds to, as a row."""
    if not pair.earlier:
        return {"instruction": pair.question}
    turns = [(("user", question), ("assistant", own)) for question, own, _ in pair.earlier]
    said = [each for turn in turns for each in turn] + [("user", pair.question)]
    return {"prompt": [{"role": role, "content": text} for role, text in said]}


def longest(pairs: Sequence[Pair]) -> list[Compared]:
    """The control: the answer with more characters, whatever it says."""
    return [by_keys(len(pair.first), len(pair.second)) for pair in pairs]


def by_keys(first: float, second: float) -> Compared:
    return Compared((Verdict((first > second) - (first < second), reply=f"{first:g} and {second:g}"),))
