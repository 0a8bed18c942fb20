"""Prompts -> texts behind one function, whatever runs the model.

    engine = engine_from(args)  # --backend, --model_name_or_path, ...
    replies = generate(engine, requests, Sampling(max_tokens=384, stop=("Human:",)), journal=journal, label="rg")

vllm (the default), hf (transformers; alignment/decoding.py), openai (any OpenAI-compatible server), simulated (a seeded
writer, for dry runs and for algorithms with a known right answer). An engine has an `identity`, which with the request
determines the reply, and `complete(requests, sampling)`, which yields (index, Reply) as requests finish, in any order.
Nothing is loaded before the first request is made.

One request is one sample with a seed of its own, derived from --seed and the record's index: order, batch and resume do
not matter. Several samples of a prompt are several requests; both local engines compute what their prompts share once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import re
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol
from urllib.parse import parse_qsl

from alignment.checkpoints import check_model
from alignment.journal import Journal, key
from alignment.runs import Progress, UserError, boolean, number

if TYPE_CHECKING:
    import openai

BACKENDS = ("vllm", "hf", "openai", "simulated")


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


def add_engine_arguments(parser: ArgumentParser) -> None:
    """The flags that every generating script shares."""
    group = parser.add_argument_group("engine")
    group.add_argument("--backend", choices=BACKENDS, help="what runs the model (default: vllm)")
    group.add_argument("--use_hf", type=boolean, nargs="?", const=True, default=False, help="the same as --backend hf")
    group.add_argument("--n_gpu", type=number(int, 1), default=1, help="GPUs to spread the model over (default: 1)")
    group.add_argument("--cache_dir", type=Path, help="where models from the hub are kept (default: the hub's own)")
    group.add_argument("--api_base", help="openai: the server's address, http://host:port/v1; key from OPENAI_API_KEY")
    group.add_argument(
        "--concurrency", type=number(int, 1), default=64, help="openai: requests in flight (default: 64)"
    )
    group.add_argument(
        "--timeout", type=number(float, 0, above=True), default=600, help="openai: seconds per request (default: 600)"
    )


def engine_from(args: Namespace) -> Engine:
    """The engine that the flags name. Raises UserError for a model or server that cannot be used."""
    if args.use_hf and args.backend not in (None, "hf"):
        raise UserError(f"--use_hf and --backend {args.backend} contradict each other; give one of them")
    backend = "hf" if args.use_hf else args.backend or "vllm"
    if not args.model_name_or_path:
        raise UserError("--model_name_or_path is missing")
    if backend == "openai":
        return OpenAIEngine(args.model_name_or_path, args.api_base, args.concurrency, args.timeout)
    if backend == "simulated":
        return SimulatedEngine(args.model_name_or_path)
    check_model(args.model_name_or_path)
    if backend == "vllm":
        return VllmEngine(args.model_name_or_path, args.n_gpu, args.cache_dir)
    from alignment.decoding import HfEngine

    return HfEngine(args.model_name_or_path, args.n_gpu, args.cache_dir, args.batch_size)


def model_identity(name: str) -> str:
    """The model's name, and for a folder the sizes and times of its files: another model there is another identity."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    parts = r".*\.(safetensors|bin|model|jinja)|(.*config|.*token.*|vocab)\.json|merges\.txt"
    files = sorted(path for path in folder.iterdir() if re.fullmatch(parts, path.name))  # not what was made of it
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{folder.resolve()} {key(files=stats)}"


class VllmEngine:
    """vLLM in this process. It always has thousands of requests to choose from; each is yielded as it finishes."""

    IN_FLIGHT = 4_096  # more than any scheduler runs at once
    # Prefilled in pieces, a request would use up numbers for tokens that vLLM discards. Compiling takes a minute and
    # brings a seventh in speed.
    ON_CPU = {
        "enable_chunked_prefill": False,
        "enforce_eager": True,
        "logits_processors": ["alignment.vllm_sampling:Choose"],
    }

    def __init__(self, model: str, n_gpu: int, cache_dir: Path | None):
        self.identity = f"vllm {model_identity(model)}"
        self._settings = {"model": model, "tensor_parallel_size": n_gpu}
        if cache_dir:
            self._settings["download_dir"] = str(cache_dir)
        self._llm = None

    def _load(self):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; this and the next are read by the CPU build only
        if (os.cpu_count() or 1) < 4:
            os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # it would leave one of two cores idle
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
        os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of vLLM's own processes
        try:
            from vllm import LLM
            from vllm.platforms import current_platform
        except ImportError as error:
            raise UserError(f"vllm cannot be imported ({error}); install it, or give --backend hf") from None
        self._on_cpu = current_platform.is_cpu()
        try:
            # The requests' own seeds decide. Prefix caching computes the few-shot header once. -1: the model's whole
            # context, or as much of it as the memory allows.
            return LLM(
                **self._settings,
                **(self.ON_CPU if self._on_cpu else {}),
                seed=0,
                enable_prefix_caching=True,
                max_model_len=-1,
                use_tqdm_on_load=False,
            )
        except OSError as error:  # what transformers raises for a name that neither disk nor hub has
            raise UserError(f"model {self._settings['model']}: {str(error).splitlines()[0]}") from None

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        self._llm = self._llm or self._load()
        from vllm import SamplingParams, TokensPrompt

        engine, tokenizer = self._llm.llm_engine, self._llm.get_tokenizer()
        context = self._llm.model_config.max_model_len
        waiting = iter(enumerate(requests))
        while True:
            fresh = list(islice(waiting, self.IN_FLIGHT - engine.get_num_unfinished_requests()))
            for index, request in fresh:
                ids = tokenizer(request.prompt)["input_ids"]
                room = context - len(ids)
                if room < 1:
                    yield index, Reply(None, "too long")
                    continue
                params = SamplingParams(
                    max_tokens=min(sampling.max_tokens, room),
                    temperature=sampling.temperature,
                    stop=list(sampling.stop),
                    **self._draw(request.seed, sampling),
                )
                engine.add_request(str(index), TokensPrompt(prompt_token_ids=ids), params)
            if not engine.has_unfinished_requests():
                if fresh:
                    continue  # all were too long
                return
            for output in engine.step():
                if output.finished:
                    completion = output.outputs[0]
                    yield int(output.request_id), Reply(completion.text, completion.finish_reason)

    def _draw(self, seed: int, sampling: Sampling) -> dict:
        if self._on_cpu and sampling.temperature > 0:
            return {"extra_args": {"seed": seed, "top_p": sampling.top_p}}  # alignment/vllm_sampling.py
        return {"seed": seed, "top_p": sampling.top_p}


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


class SimulatedEngine:
    """A seeded writer: after `Query:` it writes a question, after a dialogue it answers. Nothing is random but by seed.

    The model's name may set it: `writer-13b?quality=0.9&latency=0.01&refusals=0.1&malformed=0.1&faults=0.3`. quality in
    [0, 1] makes answers longer and their sentences whole; latency is in seconds per request; the others are shares of
    requests: a refusal says that it does not know, a malformed reply is broken off, a fault comes back as failed.
    """

    SETTINGS = {"quality": 0.7, "latency": 0.0, "refusals": 0.0, "malformed": 0.0, "faults": 0.0}
    THINGS = (
        "apricots", "bicycles", "comets", "diaries", "eclipses", "ferries", "glaciers", "hedgehogs", "inkwells",
        "jigsaws", "kettles", "lanterns", "mosaics", "nettles", "orchids", "parachutes", "quilts", "reservoirs",
        "sundials", "thermometers", "umbrellas", "violins", "waterwheels", "xylophones", "yoghurts", "zeppelins",
        "almanacs", "bridges", "canals", "dialects", "engravings", "fountains", "greenhouses", "harbours", "islands",
        "juries", "kites", "libraries", "monsoons", "notebooks", "oratorios", "pulleys", "quarries", "rivers",
    )  # fmt: skip
    DEEDS = (
        "choose", "repair", "describe", "clean", "store", "sketch", "compare", "explain", "photograph", "inherit",
        "transport", "insure", "restore", "classify", "borrow", "measure", "decorate", "protect", "donate", "rebuild",
    )  # fmt: skip
    PEOPLE = (
        "gardeners", "sailors", "grandparents", "apprentices", "nurses", "cooks", "teachers", "archivists", "farmers",
        "students", "neighbours", "dancers", "engineers", "painters", "travellers", "beekeepers", "drivers", "singers",
    )  # fmt: skip
    KINDS = (
        "wooden", "ancient", "portable", "expensive", "colourful", "fragile", "famous", "forgotten", "northern",
        "miniature", "modern", "broken", "silent", "heavy", "rural", "electric", "handmade", "tropical", "rusty",
    )  # fmt: skip
    ASKS = (
        "How do {p} {d} {k} {0} near {1}?", "Why would {k} {0} outlast {1}, {p} wonder?",
        "Please {d} {k} {0}, {1} and {2}.", "Which {0} help {p} {d} {k} {1}?", "Should {p} {d} {k} {0} or {1}?",
        "Tell {p} where {k} {0} and {1} meet.", "Can {p} {d} {0} without {k} {1}?", "Are {k} {0} made by {p}?",
    )  # fmt: skip
    SENTENCES = (
        "Start with what you already have to hand.", "Ask somebody who has done it before.",
        "The usual mistake is to hurry the second step.", "Write down what you see on the first day.",
        "A little patience saves a good deal of money here.", "Most guides leave out the reason, which is heat.",
        "Two short sessions teach more than one long one.", "Look at it again in the morning light.",
    )  # fmt: skip

    def __init__(self, model: str):
        self.identity = f"simulated {model}"
        self._settings = dict(self.SETTINGS)
        for name, value in parse_qsl(model.partition("?")[2], keep_blank_values=True):
            if name not in self.SETTINGS:
                raise UserError(f"simulated model {model}: {name} is none of {', '.join(self.SETTINGS)}")
            try:
                self._settings[name] = float(value)
            except ValueError:
                raise UserError(f"simulated model {model}: {name}={value} is no number") from None

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        for index, request in enumerate(requests):
            time.sleep(self._settings["latency"])
            yield index, self._reply(request, sampling)

    def _reply(self, request: Request, sampling: Sampling) -> Reply:
        draw = random.Random(f"{request.seed} {request.prompt}")
        fate = draw.random()
        outcome = "answers"
        for misfortune in ("faults", "refusals", "malformed"):
            if 0 <= fate < self._settings[misfortune]:
                outcome = misfortune
            fate -= self._settings[misfortune]
        if outcome == "faults":
            return Reply(None, "failed")
        words = self._write(request.prompt, outcome, draw).split(" ")
        text = " ".join(words[: sampling.max_tokens])
        cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            return Reply(text[:cut], "stop")
        return Reply(text, "length" if len(words) > sampling.max_tokens else "stop")

    def _write(self, prompt: str, outcome: str, draw: random.Random) -> str:
        """A reply that runs on past its turn, as a base model's does."""
        if prompt.endswith("Query:"):
            asks = [self._ask(draw), self._ask(draw)]
            return f" {asks[0][:12] if outcome == 'malformed' else asks[0]}\nQuery: {asks[1]}\nQuery:"
        if outcome == "refusals":
            answer = "I am sorry, but I don't know anything about that, and would rather not guess."
        else:
            count = 1 + round(7 * self._settings["quality"] * (0.5 + draw.random()))
            answer = " ".join(draw.choice(self.SENTENCES) for _ in range(count))
        if outcome == "malformed" or draw.random() > 0.5 + self._settings["quality"] / 2:
            answer = answer[:-12]
        return f" {answer}\n\nHuman:  And then?\n\nAssistant:  That is all.\n\n-----"

    def _ask(self, draw: random.Random) -> str:
        words = {"p": draw.choice(self.PEOPLE), "d": draw.choice(self.DEEDS), "k": draw.choice(self.KINDS)}
        return draw.choice(self.ASKS).format(*draw.sample(self.THINGS, 3), **words)
