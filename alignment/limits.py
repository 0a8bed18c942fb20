"""What a run would take, and how much it may: the flags of every stage, and the engine that stops where they say.

    engine = Limited(engine, budget=Budget(2_000_000), hours=1.5)   # engine_from, where a flag is given
    budget.spent                                                    # tokens read and written so far, of all engines

A stage that asks a model makes a request only where its prompt and the longest reply would fit the budget, so none is
broken off and none is paid for in vain; what came is in the journal, and the same command goes on. Training stops
after a step: alignment/training/limits.py.
"""

from __future__ import annotations

import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from alignment.command_line import UserError, boolean, number
from alignment.generation import Engine, Reply, Request, Sampling

CHARACTERS = 4  # of a token, about: what a server counts differs, and is not told alike by all


class Budget:
    """Tokens that a run may read and write, and those that it has; one for all engines of a run."""

    def __init__(self, most: int):
        self.most, self.spent = most, 0

    def __str__(self) -> str:
        return f"{self.most}"


def budget(text: str) -> Budget:
    """An argparse type."""
    if (found := number(int, 1)(text)) >= 1 << 53:
        raise ArgumentTypeError(f"{text[:40]} is out of range")
    return Budget(found)


def plan(main: Callable[[Namespace], None], args: Namespace) -> None:
    """What run() calls in the place of `main` where --plan is given."""
    from alignment.planning import show

    show(main, args)


def plan_or_not(text: str) -> Callable | bool:
    """An argparse type."""
    return boolean(text) and plan


def add_limit_arguments(parser: ArgumentParser) -> None:
    """The flags that every stage shares which takes long."""
    group = parser.add_argument_group("what it takes, and how much it may")
    shown = "say what the run would take (requests or steps, tokens, memory, disk, hours, cost), and run nothing"
    group.add_argument("--plan", type=plan_or_not, nargs="?", const=plan, default=False, help=shown)
    shown = (
        "--plan: here, which times a few real rows on this machine, one of assets/hardware.json, as H100 or 64xH100, "
        "or of a file like it, FILE.json:NAME (default: here)"
    )
    group.add_argument("--hardware", default="here", metavar="NAME", help=shown)
    shown = "--plan: a JSON file of dollars: of an accelerator an hour, of a model's million tokens read and written"
    group.add_argument("--prices", metavar="FILE", help=shown)
    shown = (
        "stop where this run has read and written so many tokens, at 4 characters a token or those of training; what "
        "a journal or checkpoint has costs nothing, and the same command goes on (default: no limit)"
    )
    group.add_argument("--budget_tokens", type=budget, metavar="TOKENS", help=shown)
    shown = "stop after so many hours, likewise (default: no limit)"
    group.add_argument("--max_hours", type=number(float, 0, above=True), metavar="HOURS", help=shown)


def tokens_of(prompt: Any) -> int:
    """Tokens of a prompt, or of a reply's text: counted where it is ids, else about as many."""
    if isinstance(prompt, str):
        return len(prompt) // CHARACTERS
    if prompt and isinstance(prompt[0], dict):
        return sum(len(message["content"]) for message in prompt) // CHARACTERS
    return len(prompt)


class Limited:
    """An engine that makes no request which might go beyond the budget, and none after its hours. Then it raises
    UserError: what was answered is in the journal."""

    def __init__(self, engine: Engine, *, budget: Budget | None = None, hours: float | None = None):
        self.identity, self._engine, self._budget, self._hours = engine.identity, engine, budget, hours
        self._started, self._answers = time.monotonic(), 0

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        waiting = range(len(requests))
        while waiting:
            self._check_hours()
            some = waiting[: self._fitting([requests[index] for index in waiting], sampling)]
            if not some:
                longest = tokens_of(requests[waiting[0]].prompt) + sampling.max_tokens
                raise self._over(f"--budget_tokens {self._budget}", f"; the next may take {longest:,}")
            waiting = waiting[len(some) :]
            for count, (place, reply) in enumerate(
                self._engine.complete([requests[index] for index in some], sampling), 1
            ):
                self._answers += 1
                if self._budget:
                    self._budget.spent += tokens_of(requests[some[place]].prompt) + written(reply)
                yield some[place], reply
                if count < len(some):
                    self._check_hours()

    def _check_hours(self) -> None:
        if self._hours and time.monotonic() - self._started > 3600 * self._hours:
            raise self._over(f"--max_hours {self._hours:g}")

    def _fitting(self, requests: Sequence[Request], sampling: Sampling) -> int:
        """How many of the requests, from the first on, certainly fit."""
        if self._budget is None:
            return len(requests)
        left = self._budget.most - self._budget.spent
        for count, request in enumerate(requests):
            left -= tokens_of(request.prompt) + sampling.max_tokens
            if left < 0:
                return count
        return len(requests)

    def _over(self, limit: str, more: str = "") -> UserError:
        spent = f", {self._budget.spent:,} tokens" if self._budget else ""
        return UserError(f"stopped at {limit}: {self._answers:,} replies{spent}{more}; the same command goes on")


class LimitedScorer:
    """A reward model that scores nothing more after its hours: then it raises UserError."""

    def __init__(self, scorer: Any, hours: float):
        self.identity, self._scorer, self._hours, self._started = scorer.identity, scorer, hours, time.monotonic()

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        if time.monotonic() - self._started > 3600 * self._hours:
            raise UserError(f"stopped at --max_hours {self._hours:g}, before rewards; the same command goes on")
        return self._scorer.score(rows, responses)


def written(reply: Reply) -> int:
    return len(reply.ids) if reply.ids is not None else tokens_of(reply.text or "")
