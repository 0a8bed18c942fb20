"""A server that speaks OpenAI's protocol: `vllm serve`, several of them behind one address, or a provider."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from alignment.command_line import UserError
from alignment.generation import Reply, Request, Sampling

if TYPE_CHECKING:
    import openai


class OpenAIEngine:
    """An OpenAI-compatible server's /completions: concurrent; retried with back-off on 408, 409, 429, 5xx, time-outs,
    cut connections. A request that fails even so is a failed reply, and is tried again by the next run."""

    RETRIES = 8

    def __init__(self, model: str, api_base: str | None, concurrency: int, timeout: float):
        if not api_base or not re.match(r"https?://[^/]+", api_base):
            raise UserError(f"--backend openai needs --api_base http://host:port/v1, not {api_base!r}")
        self.identity = f"openai {model}"
        self._model, self._api_base = model, api_base
        self._concurrency, self._timeout = concurrency, timeout

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        loop = asyncio.new_event_loop()
        finished: asyncio.Queue = asyncio.Queue()
        work = loop.create_task(self._complete(requests, sampling, finished))
        try:
            for _ in requests:
                outcome = loop.run_until_complete(finished.get())
                if isinstance(outcome, Exception):
                    raise outcome
                yield outcome
        finally:
            work.cancel()
            loop.run_until_complete(asyncio.gather(work, return_exceptions=True))
            loop.close()

    async def _complete(self, requests: Sequence[Request], sampling: Sampling, finished: asyncio.Queue) -> None:
        """Put each (index, reply) on `finished` as it comes, or the error that ends the run."""
        import openai

        waiting = iter(enumerate(requests))
        settings = {"base_url": self._api_base, "max_retries": self.RETRIES, "timeout": self._timeout}

        async def worker(client: openai.AsyncOpenAI) -> None:
            for index, request in waiting:
                await finished.put((index, await self._one(client, request, sampling)))

        try:
            async with openai.AsyncOpenAI(api_key=os.environ.get("OPENAI_API_KEY") or "none", **settings) as client:
                await self._greet(client)
                await asyncio.gather(*(worker(client) for _ in range(min(self._concurrency, len(requests)))))
        except (openai.OpenAIError, UserError) as error:
            await finished.put(error if isinstance(error, UserError) else UserError(self._explain(error)))

    async def _greet(self, client: openai.AsyncOpenAI) -> None:
        """One cheap call, so that a wrong address or key is said at once and not after every request's retries."""
        import openai

        try:
            await client.with_options(max_retries=2).models.list()
        except openai.APIConnectionError:
            raise UserError(f"no server answers at --api_base {self._api_base}") from None
        except (openai.NotFoundError, openai.InternalServerError, openai.RateLimitError):
            pass  # it is there, and does not list its models or is busy

    async def _one(self, client: openai.AsyncOpenAI, request: Request, sampling: Sampling) -> Reply:
        import openai

        try:
            completion = await client.completions.create(
                model=self._model,
                prompt=request.prompt,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                stop=list(sampling.stop) or None,
                seed=request.seed,
            )
        except openai.BadRequestError as error:
            if "context length" in str(error):
                return Reply(None, "too long")
            raise
        except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError, openai.ConflictError):
            return Reply(None, "failed")  # after all retries
        choice = completion.choices[0]
        return Reply(choice.text, "length" if choice.finish_reason == "length" else "stop")

    def _explain(self, error: openai.OpenAIError) -> str:
        status = getattr(error, "status_code", None)
        if status in (401, 403):
            return f"the server at {self._api_base} refuses the key; set OPENAI_API_KEY"
        if status == 404:
            return f"the server at {self._api_base} has no model {self._model!r} or no /completions"
        return f"the server at {self._api_base} refuses the request: {' '.join(str(error).split())[:300]}"
