"""Prompts -> texts behind one function, whatever runs the model: the contract that alignment/engines/ carries out.

    engine = engine_from(args)  # alignment/engines: --backend, --model_name_or_path, ...
    replies = generate(engine, requests, Sampling(max_tokens=384, stop=("Human:",)), journal=journal, label="rg")

An engine has an `identity`, which with the request determines the reply, and `complete(requests, sampling)`, which
yields (index, Reply) as requests finish, in any order. Nothing is loaded before the first request is made.

One request is one sample with a seed of its own, derived from --seed and the record's index: order, batch and resume do
not matter. Several samples of a prompt are several requests; both local engines compute what their prompts share once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple, Protocol

from alignment.command_line import Progress
from alignment.journal import Journal, key


@dataclass(frozen=True)
class Sampling:
    """How to sample. Temperature 0 is greedy; generation ends before any of `stop`, which is not in the text."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()


class Request(NamedTuple):
    prompt: str
    seed: int


class Reply(NamedTuple):
    """What came back. `finish` is "stop", "length" (cut at max_tokens or at the context's end), or, where text is
    None, "too long" (the prompt leaves no room in the context) or "failed"."""

    text: str | None
    finish: str


class Engine(Protocol):
    identity: str

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]: ...


def record_seed(seed: int, *index: object) -> int:
    """A seed in [0, 2**31) for one record, from the run's seed and what names the record."""
    digest = hashlib.sha256(":".join(map(str, (seed, *index))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def generate(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, *, journal: Journal, label: str
) -> list[Reply]:
    """One reply per request, in their order. What the journal holds is not generated again; what finishes is added."""
    settings = asdict(sampling)
    keys = [key(engine=engine.identity, sampling=settings, prompt=r.prompt, seed=r.seed) for r in requests]
    replies = [Reply(*found) if (found := journal.get(k)) else None for k in keys]
    pending = [i for i, reply in enumerate(replies) if reply is None]
    if pending:
        with Progress(len(pending), label) as progress:
            for position, reply in engine.complete([requests[i] for i in pending], sampling):
                index = pending[position]
                replies[index] = reply
                if reply.text is not None:
                    journal.add(keys[index], reply.text, reply.finish)
                progress.update(failed=reply.text is None)
    return replies
