"""Prompts -> replies behind one function, whatever runs the model: the contract that alignment/engines/ carries out.

    engine = engine_from(args)  # alignment/engines: --backend, --model_name_or_path, ...
    replies = generate(engine, requests, Sampling(max_tokens=384, stop=("Human:",)), journal=journal, label="rg")

An engine has an `identity`, which with the request determines the reply, and `complete(requests, sampling)`, which
yields (index, Reply) as requests finish, in any order: one for each request, whatever becomes of it. Nothing is loaded
before the first request is made. A UserError ends the run: a wrong address, a key refused. Of more requests than are to
be held, `stream` gives the replies one by one.

One request is one sample with a seed of its own, derived from --seed and the record's index: order, batch and resume do
not matter. Several samples of a prompt are several requests; both local engines compute what their prompts share once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

from alignment.command_line import Progress, UserError
from alignment.journal import Journal, key

Message = dict[str, str]
T = TypeVar("T")
AT_ONCE = 32_768  # requests that an engine is given: many times what any has in flight, and few enough to be held
JANUS = {"temperature": 1.0, "top_p": 0.9, "repetition_penalty": 1.03}  # the released inference code's sampling
FIRST_SETTINGS = ("max_tokens", "temperature", "top_p", "stop")  # part of a journal's key whatever they are


@dataclass(frozen=True)
class Sampling:
    """How to sample. Temperature 0 is greedy; generation ends before any of `stop`, which is not in the text, and at
    any of `stop_ids` beside the model's own end. `schema` is a JSON schema that the reply follows."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    repetition_penalty: float = 1.0
    schema: dict[str, Any] | None = None

    @property
    def determinants(self) -> dict[str, Any]:
        """What of it determines a reply. What was added since the first journals counts where it is set."""
        settings = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: value for name, (value, usual) in settings.items() if name in FIRST_SETTINGS or value != usual}


class Request(NamedTuple):
    """`prompt` is a text to continue; or messages, which the model's own chat template renders (a server does it
    itself); or token ids, which nothing is added to."""

    prompt: str | list[Message] | list[int]
    seed: int

    @property
    def is_chat(self) -> bool:
        return isinstance(self.prompt, list) and bool(self.prompt) and isinstance(self.prompt[0], dict)


class Reply(NamedTuple):
    """What came back. A whole reply has a text and its `finish` is "stop" or "length" (cut at max_tokens or at the
    context's end). Else `text` is None and `finish` the reason: "failed: ..." where another run may heal it (server,
    time-out, filter), or what none can: "too long" (no room in the context), "refused: ...", "invalid: ...".

    `ids` are the reply's tokens where the engine has them, without what ended it.
    """

    text: str | None
    finish: str
    ids: tuple[int, ...] | None = None

    @property
    def may_heal(self) -> bool:
        return self.finish.startswith("failed")


class Engine(Protocol):
    identity: str

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]: ...


def record_seed(seed: int, *index: object) -> int:
    """A seed in [0, 2**31) for one record, from the run's seed and what names the record."""
    digest = hashlib.sha256(":".join(map(str, (seed, *index))).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def request_key(engine: Engine, request: Request, sampling: Sampling) -> str:
    """The journal's key of a request: a hash of everything that determines its reply."""
    return key(engine=engine.identity, sampling=sampling.determinants, prompt=request.prompt, seed=request.seed)


def generate(
    engine: Engine,
    requests: Sequence[Request],
    sampling: Sampling,
    *,
    journal: Journal,
    label: str,
    schema_retries: int = 3,
) -> list[Reply]:
    """`stream` as a list, where all replies are needed at once."""
    how = {"journal": journal, "label": label, "total": len(requests), "schema_retries": schema_retries}
    return list(stream(engine, requests, sampling, **how))


def stream(
    engine: Engine,
    requests: Iterable[Request],
    sampling: Sampling,
    *,
    journal: Journal,
    label: str,
    total: int,
    schema_retries: int = 3,
) -> Iterator[Reply]:
    """One reply per request, in their order, of which AT_ONCE are held at a time, and there are `total`. What the
    journal holds is not generated again; what finishes is added.

    Under a schema, a reply that does not follow it is asked for again with other seeds, `schema_retries` times, and
    then is "invalid". Whole replies of all tries are in the journal.
    """
    with Progress(total, label) as progress:
        for some in parts(requests, AT_ONCE):
            replies = asked(engine, some, sampling, journal, progress)
            if sampling.schema is not None:
                ask_again(engine, some, replies, sampling, journal=journal, label=label, tries=schema_retries)
            yield from replies


def parts(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Items in lists of a size, and a shorter last one."""
    items = iter(items)
    while some := list(islice(items, size)):
        yield some


def asked(
    engine: Engine, requests: Sequence[Request], sampling: Sampling, journal: Journal, progress: Progress
) -> list[Reply]:
    keys = [request_key(engine, request, sampling) for request in requests]
    replies = [Reply(*found) if (found := journal.get(k)) else None for k in keys]
    pending = [i for i, reply in enumerate(replies) if reply is None]
    progress.skip(len(requests) - len(pending))
    if pending:
        for position, reply in engine.complete([requests[i] for i in pending], sampling):
            index = pending[position]
            replies[index] = reply
            if reply.text is not None:
                journal.add(keys[index], reply.text, reply.finish)
            progress.update(failed=reply.text is None)
    return replies


def ask_again(
    engine: Engine,
    requests: Sequence[Request],
    replies: list[Reply],
    sampling: Sampling,
    *,
    journal: Journal,
    label: str,
    tries: int,
) -> None:
    """Put others in the place of replies that do not follow the schema."""
    for attempt in range(tries + 1):
        wrong = [i for i, reply in enumerate(replies) if reply.text is not None and not follows(reply.text, sampling)]
        if not wrong or attempt == tries:
            break
        again = [Request(requests[i].prompt, record_seed(requests[i].seed, "schema", attempt)) for i in wrong]
        with Progress(len(again), f"{label}, again") as progress:
            for i, reply in zip(wrong, asked(engine, again, sampling, journal, progress), strict=True):
                replies[i] = reply
    for i in wrong:
        replies[i] = Reply(None, f"invalid: no reply under the schema in {tries + 1} tries")


def follows(text: str, sampling: Sampling) -> bool:
    """Whether a reply is JSON that follows the schema."""
    from jsonschema import Draft202012Validator

    try:
        return Draft202012Validator(sampling.schema).is_valid(json.loads(text))
    except (ValueError, RecursionError):
        return False


def refuse_failures(replies: Iterable[Reply]) -> None:
    """Raise UserError where replies failed that another run may bring. Call it once what came is written, without a run
    card, so that the same command tries these again."""
    failed = Counter(
        reply.finish.removeprefix("failed").lstrip(": ") or "no reply" for reply in replies if reply.may_heal
    )
    if failed:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in failed.most_common(3))
        what, these = ("1 request", "it") if failed.total() == 1 else (f"{failed.total():,} requests", "these")
        raise UserError(f"{what} failed ({reasons}); the same command tries {these} again")
