"""Replies that can be used: what cannot is asked again with another seed, then counted with its reason.

    asked = ask(len(rows), request=make_request, read=read_reply, send=send, tries=4)
    asked.values[3]          # what `read` made of the reply to row 3, or None
    asked.reasons[3]         # why it is None

A reply that cannot be used never becomes data, and nothing is mended or guessed from it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.generation import Engine, Reply, Request, Sampling

NOT_ASKED = "not in the journal"


class Unusable(Exception):
    """Why a reply cannot be used; `hint` is what the next request is told about it."""

    def __init__(self, reason: str, hint: str = ""):
        super().__init__(reason)
        self.reason, self.hint = reason, hint


def filled(template: str, **slots: str) -> str:
    """A prompt with its {slots} filled; braces in the data stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda slot: slots.get(slot[1], slot[0]), template)


def chat(system: str, user: str, seed: int) -> Request:
    return Request([{"role": "system", "content": system}, {"role": "user", "content": user}], seed)


@dataclass
class Asked:
    """What came of some questions: a value each, None where no usable reply came, and the counts."""

    values: list[Any]
    reasons: list[str | None]  # why a question stays without a value
    first: int = 0  # usable at the first request
    again: Counter = field(default_factory=Counter)  # reason -> replies that could not be used
    failed: list[Reply] = field(default_factory=list)  # replies that another run may bring

    @property
    def given_up(self) -> Counter:
        """Reason -> questions that stay without a value whatever another run brings."""
        return Counter(reason for reason in self.reasons if reason and not Reply(None, reason).may_heal)

    @property
    def usable(self) -> int:
        return sum(value is not None for value in self.values)

    def counts(self) -> dict[str, Any]:
        return {
            "asked": len(self.values),
            "usable at first": self.first,
            "usable": self.usable,
            "replies unusable": dict(self.again),
            "given up": dict(self.given_up),
        }

    def rows(self) -> list[tuple[str, object]]:
        """The same as rows of a table."""
        found: list[tuple[str, object]] = [("asked", len(self.values)), ("usable at the first request", self.first)]
        found += [(f"unusable reply: {reason}", count) for reason, count in self.again.most_common()]
        found += [("usable in the end", self.usable)]
        return found + [(f"given up: {reason}", count) for reason, count in self.given_up.most_common()]


def ask(
    count: int,
    *,
    request: Callable[[int, int, str], Request],
    read: Callable[[int, str], Any],
    send: Callable[[Sequence[Request]], list[Reply]],
    tries: int,
) -> Asked:
    """Ask `count` questions until each has a usable reply, `tries` requests each at most.

    `request(question, attempt, hint)` makes a request, `read(question, text)` a value or raises Unusable. Replies are
    read in the questions' order, round by round, so what is kept depends on no order of arrival. What the engine did
    not bring, or what never follows its schema, is not asked again: the engine has tried.
    """
    asked, pending, hints = Asked([None] * count, [None] * count), list(range(count)), [""] * count
    for attempt in range(tries):
        replies = send([request(question, attempt, hints[question]) for question in pending])
        again = []
        for question, reply in zip(pending, replies, strict=True):
            if reply.text is None:
                asked.reasons[question] = reply.finish
                asked.failed += [reply] * reply.may_heal
                continue
            try:
                if reply.finish == "length":
                    raise Unusable("cut off at --max_new_tokens")
                asked.values[question], asked.reasons[question] = read(question, reply.text), None
                asked.first += attempt == 0
            except Unusable as error:
                asked.again[error.reason] += 1
                hints[question], asked.reasons[question] = error.hint, error.reason
                again.append(question)
        pending = again
        if not pending:
            break
    return asked


class SilentEngine:
    """An engine that is not asked: with it only what the journal holds is read, by a mended parser for nothing."""

    def __init__(self, engine: Engine):
        self.identity = engine.identity

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        return ((index, Reply(None, NOT_ASKED)) for index in range(len(requests)))
