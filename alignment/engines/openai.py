"""A server that speaks OpenAI's protocol: `vllm serve`, several of them behind one address, or a provider.

    OPENAI_API_KEY=... python synthetic_feedback.py --backend openai --api_base http://localhost:8000/v1 ...

A text or token ids go to /completions, messages to /chat/completions. Whatever a server sends, each request ends in a
whole reply or in one that says why it is none (answers.py), in a time that --timeout bounds; and a run that a server
refuses as a whole ends with one line.

`vllm serve` fills what a request leaves open from the model's generation_config.json. It is recognised by its list of
models, and told all that shapes its sampling, so that it draws as vLLM does in this process. Other servers may refuse
what OpenAI's protocol lacks, and are not told.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from alignment.command_line import UserError
from alignment.engines.answers import REDIRECTED, REFUSED, one_line, owners, reply_from, reply_to_refusal, told_by
from alignment.generation import Reply, Request, Sampling
from alignment.records import SURROGATE
from alignment.secrecy import secrets_in, without_key
from alignment.templates import as_they_are, fold_system
from alignment.token_ids import marker

if TYPE_CHECKING:
    import openai

GREETING = 60  # seconds, at most, for the first call, which costs a server nothing
GRACE = 60  # seconds of back-off that a request has beside its tries
TIMED_OUT, UNHEARD = Reply(None, "failed: time-out"), Reply(None, "failed: no connection")
# What vLLM's server would else take from the model's generation_config.json
NEUTRAL = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
# What a request can do without, in the order in which it is given up, and how a server says that it takes none
CONCESSIONS = {
    "schema": re.compile(r"response_format|schema|guided|structured|grammar", re.IGNORECASE),
    "system": re.compile(r"system|\broles?\b", re.IGNORECASE),
}


@dataclass
class Course:
    """What a run has heard of its server so far, a request at a time."""

    alike: int  # so many first requests that are refused as all would be are a no to the run
    patience: int  # so many in a row say something of the server, and not of the requests
    silent: int = 0  # requests in a row that no answer came to, after all tries
    finishes: Counter[str] = field(default_factory=Counter)  # of those that an answer came to

    @property
    def gone(self) -> bool:
        return self.silent >= self.patience

    def is_hopeless(self, reply: Reply) -> bool:
        """Take note of a reply; whether nothing came yet but this same refusal, and often enough."""
        if reply in (TIMED_OUT, UNHEARD):
            self.silent += 1
            return False
        self.silent = 0
        self.finishes[reply.finish] += 1
        of_all = reply.finish.startswith((REFUSED, REDIRECTED))
        enough = self.alike if of_all else self.patience
        is_refusal = of_all or reply.finish.startswith("refused")
        return is_refusal and self.finishes.total() == self.finishes[reply.finish] >= enough


class OpenAIEngine:
    """Concurrent; retried with back-off on 408, 409, 429, 5xx and cut connections, and at once on time-outs. A request
    that fails even so is a failed reply, and is tried again by the next run."""

    RETRIES = 8
    TRIES = 3  # of a request that runs out of time, each of --timeout
    PAUSES = (0.5, 1.0)  # seconds before a server that does not answer is greeted again

    def __init__(self, model: str, api_base: str | None, concurrency: int, timeout: float):
        self._secrets = secrets_in(api_base or "")
        self._shown = without_key(api_base or "", self._secrets)
        self._key = (os.environ.get("OPENAI_API_KEY") or "").strip() or "none"
        check_usable(api_base, self._shown, self._key)
        self.identity = f"openai {model}"
        self._model, self._api_base = model, api_base
        self._concurrency, self._timeout = concurrency, timeout
        self._conceded: set[str] = set()  # what the server was heard not to take
        self._is_vllm = False

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        chats = ["\n".join(turn["content"] for turn in request.prompt) for request in requests if request.is_chat]
        as_they_are([*map(marker(None), chats)])  # of texts it is said where they are made
        loop = asyncio.new_event_loop()
        finished: asyncio.Queue[tuple[int, Reply] | None] = asyncio.Queue()
        work = loop.create_task(self._complete(requests, sampling, finished))
        work.add_done_callback(lambda _: finished.put_nowait(None))  # whatever ends it, nobody waits for more
        try:
            for _ in requests:
                outcome = loop.run_until_complete(finished.get())
                if outcome is None:
                    raise self._ending(work.exception())
                yield outcome
        finally:
            work.cancel()
            loop.run_until_complete(asyncio.gather(work, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    def _ending(self, error: BaseException | None) -> BaseException:
        """What to raise for what ended the work. A fault of the client or of this code is one line too: it would be the
        same with the next request, and what has finished is in the journal."""
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if isinstance(error, UserError) or not isinstance(error, Exception):
            return error or AssertionError("requests without replies")
        what = f"{type(error).__name__}: {one_line(str(error), self._secrets)}"
        ending = UserError(f"requests to {self._shown} cannot be made: {what}")
        ending.__cause__ = error
        return ending

    async def _complete(self, requests: Sequence[Request], sampling: Sampling, finished: asyncio.Queue) -> None:
        """Put each (index, reply) on `finished` as it comes. Raises what ends the run, alone or in a group."""
        waiting = iter(enumerate(requests))
        alike = min(max(self._concurrency, 3), len(requests))
        course = Course(alike=alike, patience=max(20, 3 * self._concurrency))

        async def worker(client: openai.AsyncOpenAI) -> None:
            for index, request in waiting:
                if course.gone:
                    reply = Reply(None, "failed: server gone")
                else:
                    reply = await self._one(client, request, sampling)
                    if course.is_hopeless(reply):
                        path = "/chat/completions" if request.is_chat else "/completions"
                        raise UserError(self._explain(reply, path))
                finished.put_nowait((index, reply))

        async with self._client() as client:
            await self._greet(client)
            async with asyncio.TaskGroup() as group:
                for _ in range(min(self._concurrency, len(requests))):
                    group.create_task(worker(client))

    def _client(self) -> openai.AsyncOpenAI:
        """The openai client, but that a time-out bounds a whole try, and that no redirect takes the key elsewhere."""
        import httpx
        import openai

        class Bounded(openai.DefaultAsyncHttpxClient):
            async def send(self, request: Any, **settings: Any) -> Any:
                """httpx's own time-outs run from byte to byte, so that a byte now and then holds a request for ever."""
                try:
                    async with asyncio.timeout(request.extensions["timeout"]["read"]):
                        return await super().send(request, **settings)
                except TimeoutError:
                    raise openai.APITimeoutError(request=request) from None

        # There are --concurrency workers; the client's own limit is 1,000
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._concurrency)
        address = urlsplit(self._api_base)
        return openai.AsyncOpenAI(
            api_key=self._key,
            base_url=address._replace(query="", fragment="").geturl(),
            default_query=dict(parse_qsl(address.query, keep_blank_values=True)),
            max_retries=self.RETRIES,
            timeout=self._timeout,
            http_client=Bounded(follow_redirects=False, limits=limits),
        )

    async def _greet(self, client: openai.AsyncOpenAI) -> None:
        """One cheap call, so that a wrong address or key is said at once and not after every request's retries. Its
        answer tells vLLM's servers from others."""
        import openai

        client = client.with_options(max_retries=0, timeout=min(self._timeout, GREETING))
        for pause in (*self.PAUSES, None):
            try:
                found = await client.models.with_raw_response.list()  # raw: some have a web page there
                self._is_vllm = "vllm" in owners(found.http_response.content)
            except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
                raise UserError(self._explain(Reply(None, f"{REFUSED} {error.status_code}"), "/models")) from None
            except openai.APIStatusError:
                pass  # it is there, and does not list its models or is busy
            except openai.APIConnectionError as error:
                if pause is None or isinstance(error, openai.APITimeoutError):
                    raise UserError(f"no server answers at --api_base {self._shown}") from None
                await asyncio.sleep(pause)
                continue
            return

    async def _one(self, client: openai.AsyncOpenAI, request: Request, sampling: Sampling) -> Reply:
        """A request's reply. One that is refused is made again without what the server may not take."""
        conceded, named, first = set(self._conceded), set(), None
        while True:
            reply, said = await self._asked(client, request, self._settings(request, sampling, conceded))
            if reply.text is not None:
                self._conceded |= named
            if not reply.finish.startswith("refused"):
                return reply
            first = first or reply
            left = [name for name in needs(request, sampling) if name not in conceded]
            if not left:
                return first
            fitting = [name for name in left if CONCESSIONS[name].search(said)][:1]
            conceded.add((fitting or left)[0])
            named.update(fitting)

    async def _asked(self, client: openai.AsyncOpenAI, request: Request, settings: dict) -> tuple[Reply, str]:
        """A reply and, where it is none, what the server said."""
        import openai

        endpoint = client.chat.completions if request.is_chat else client.completions
        try:
            async with asyncio.timeout(self.TRIES * self._timeout + GRACE):
                return reply_from(await self._body(endpoint, settings), self._secrets), ""
        except (TimeoutError, openai.APITimeoutError):
            return TIMED_OUT, ""
        except openai.APIConnectionError:
            return UNHEARD, ""
        except openai.APIStatusError as error:
            body = error.response.content
            return reply_to_refusal(error.status_code, body, self._secrets), told_by(body)[0]

    async def _body(self, endpoint: Any, settings: dict) -> bytes:
        """What comes under status 200, raw: the client's own reading takes any JSON, and a page, for a completion."""
        import openai

        for left in reversed(range(min(self.TRIES, self.RETRIES + 1))):
            try:
                return (await endpoint.with_raw_response.create(**settings)).http_response.content
            except openai.APITimeoutError:
                if not left:
                    raise
        raise AssertionError("no try was made")

    def _settings(self, request: Request, sampling: Sampling, conceded: set[str]) -> dict[str, Any]:
        """The arguments of the client's call. Half a character cannot be sent: U+FFFD stands for it, as in replies."""
        extra: dict[str, Any] = dict(NEUTRAL) if self._is_vllm else {}
        if sampling.stop_ids:
            extra["stop_token_ids"] = list(sampling.stop_ids)
        if sampling.repetition_penalty != 1.0:
            extra["repetition_penalty"] = sampling.repetition_penalty
        if sampling.schema is not None and "schema" not in conceded:
            form = {"name": "reply", "schema": sampling.schema, "strict": True}
            extra["response_format"] = {"type": "json_schema", "json_schema": form}
        prompt: Any = request.prompt
        if request.is_chat:
            found = fold_system(prompt) if "system" in conceded else prompt
            prompt = [{name: SURROGATE.sub("\ufffd", text) for name, text in message.items()} for message in found]
        elif isinstance(prompt, str):
            prompt = SURROGATE.sub("\ufffd", prompt)
        return {
            "messages" if request.is_chat else "prompt": prompt,
            "model": self._model,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": list(sampling.stop) or None,
            "seed": request.seed,
            "extra_body": extra or None,
        }

    def _explain(self, reply: Reply, path: str) -> str:
        """Why a server refuses the run as a whole, and what to do."""
        what, _, status = reply.finish.rpartition(" ")
        if what == REDIRECTED:
            return f"the server at {self._shown} redirects to another address ({status}); give that as --api_base"
        if what == REFUSED and status in ("401", "403"):
            return f"the server at {self._shown} refuses the key; set OPENAI_API_KEY"
        if what == REFUSED and status == "404":
            return f"the server at {self._shown} has no model {self._model!r} or no {path}"
        said = f"status {status}" if what == REFUSED else reply.finish.removeprefix("refused: ")
        return f"the server at {self._shown} refuses the requests: {said}"


def needs(request: Request, sampling: Sampling) -> list[str]:
    """Which of CONCESSIONS a request could make."""
    has_system = request.is_chat and request.prompt[0].get("role") == "system"
    return ["schema"] * (sampling.schema is not None) + ["system"] * has_system


def check_usable(
    api_base: str | None, shown: str, key: str, flag: str = "--backend openai needs --api_base http://host:port/v1"
) -> None:
    """Raise UserError, which opens with `flag`, for an address or a key that no request can be made with."""
    try:
        address = urlsplit(api_base or "")
        usable = address.scheme in ("http", "https") and address.hostname and address.port != 0
        usable = usable and address.hostname.encode("idna") and not re.search(r"[\s\x00-\x1f]", api_base or "")
    except ValueError:  # no such port; a bracket without its other; a name that no host can have
        usable = False
    if not usable:
        raise UserError(f"{flag}, not {shown if api_base else api_base!r}")
    if not key.isascii() or not key.isprintable():
        raise UserError("OPENAI_API_KEY holds characters that no header can carry; set it again")
