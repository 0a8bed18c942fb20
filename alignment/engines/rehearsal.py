"""What stands in for engines and reward models while a stage is planned (planning.py): they count, and time a few.

A probe is real rows through the real engine, so many as show how it fares with rows beside each other: a sixteenth of
what is asked first, from 8 rows to as many as it runs at once. The time of all is then

    fixed + request · requests + step · steps + token · tokens written                 (of a model in this process)

since what all prompts begin with is read once, and a step costs something whatever is in it, as weights are read, and
something for each row. One request and all of the probe's tell these apart, for a token and for more. Of servers,
replicas and simulated writers all time is laid on the requests.
"""

from __future__ import annotations

import json
import resource
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from alignment.command_line import UserError
from alignment.engines.decoding import TOKEN_BUDGET
from alignment.engines.prompts import prompt_ids
from alignment.engines.simulated_judge import SimulatedJudge
from alignment.footprint import Shape
from alignment.generation import Reply, Request, Sampling
from alignment.limits import tokens_of, written
from alignment.pretrained import load_tokenizer

PROBED = 8  # requests at least
ALONE = 16  # tokens that a request by itself is timed for
SIMULATED = 64  # stand-ins, where no reply is known
SHARE = 16  # of the requests, one in so many
AT_ONCE = {"vllm": 256, "simulated": 8}  # requests that an engine runs together
LINE = 75  # bytes of a journal's line beside the text
READ_WEIGHTS = 1e9  # bytes a second, from a disk; assumed
SAMPLED_LOGITS = 6  # times (rows, vocabulary) numbers of 4 bytes that drawing a token takes
SCORED = 32  # responses that a reward model is timed with


class Timed(NamedTuple):
    """Seconds; and of how many prompt tokens a probe's request had, on average."""

    fixed: float
    request: float
    step: float
    token: float
    prompt: float


# Engines


class Rehearsed:
    """An engine that answers with replies like those of `engine`, and asks that for no more than a probe."""

    def __init__(self, plan: Any, engine: Any, args: Namespace, backend: str):
        self.identity, self.name = engine.identity, args.model_name_or_path
        self._plan, self._engine, self._args, self._backend = plan, engine, args, backend  # planning.Plan
        self._runs = (args.ray_engine or "vllm") if backend == "ray" else backend
        self.is_local, self.is_served = self._runs in ("vllm", "hf"), backend == "openai"
        self.start = 0.0  # seconds that loading takes, and imports the first time
        self._simulated = SimulatedJudge("judge")

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        part = self._plan.part(self, sampling)
        part.add(requests, self._plan.draw)
        known = self._plan.found_since()
        if len(known) >= PROBED or (known and not part.replies):
            part.stand_ins = [Reply(*each) for each in known]
            part.replies = [self._tokens(each) for each in part.stand_ins]
            part.source = f"as {len(known)} of the journal"
        if part.timed is None and self._plan.hardware is None:
            self._probe(part, requests, sampling)
        for index, request in enumerate(requests):
            reply = self._stand_in(part, request, sampling)
            if reply.text is not None:
                self._plan.journal_bytes += LINE + len(json.dumps(reply.text, ensure_ascii=False).encode())
            yield index, reply

    def _stand_in(self, part: Any, request: Request, sampling: Sampling) -> Reply:
        if part.source or len(part.stand_ins) == SIMULATED:
            return self._plan.draw.choice(part.stand_ins)
        part.stand_ins.append(self._simulated._reply(request, sampling, "answers"))
        return part.stand_ins[-1]

    # Tokens

    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.name, self._args.cache_dir) if self.is_local else None

    @property
    def counts_by(self) -> str:
        return "by the model's tokenizer" if self.is_local else "at 4 characters a token"

    def ids(self, requests: Sequence[Request]) -> list[list[int]]:
        return prompt_ids(self.tokenizer, requests)[0]

    def count(self, requests: Sequence[Request]) -> list[int]:
        """Tokens of each prompt."""
        return list(map(len, self.ids(requests))) if self.is_local else [tokens_of(each.prompt) for each in requests]

    def _tokens(self, reply: Reply) -> int:
        """Tokens of a reply, the one that ended it among them."""
        if reply.ids is None and self.is_local:
            return len(self.tokenizer(reply.text, add_special_tokens=False)["input_ids"]) + (reply.finish == "stop")
        return written(reply) + (reply.finish == "stop")

    # Timed here

    def _probe(self, part: Any, requests: Sequence[Request], sampling: Sampling) -> None:
        """Send some of the requests to the engine, and see how long they take and what comes."""
        width = AT_ONCE.get(self._runs) or (self._args.concurrency if self._runs == "openai" else self._args.batch_size)
        count = min(len(requests), max(PROBED, min(len(requests) // SHARE, width)))
        drawn = self._plan.draw.sample(list(requests), min(len(requests), 2 * count))
        some, others = drawn[:count], drawn[-count:]  # others where there are as many, as engines keep prompts
        clock = self._plan.clock(in_process=self._backend == "hf")

        def took(asked: Sequence[Request], tokens: int) -> tuple[float, list[Reply]]:
            began = clock()
            replies = [reply for _, reply in self._engine.complete(asked, replace(sampling, max_tokens=tokens))]
            return clock() - began, replies

        started = clock() if self._plan.started else self._plan.began[clock]
        self._plan.started = True
        in_process = self._backend in ("vllm", "hf")
        try:
            took(others[:1], 1)  # loads it
            if self.is_local and not self.start:
                self.start = clock() - started
            if in_process:
                one, _ = took(others[:1], 1)
                alone, (longer, *_) = took(others[:1], min(ALONE, sampling.max_tokens))
                first, _ = took(others, 1)
            seconds, replies = took(some, sampling.max_tokens)
        except UserError as error:
            self._plan.end(error)
        whole = [reply for reply in replies if reply.text is not None]
        if not whole:
            self._plan.end(UserError(f"--plan: none of {count} requests got a reply ({replies[0].finish})"))
        lengths = list(map(self._tokens, whole))
        prompt = sum(self.count(some)) / count
        if in_process:
            steps = max(1, self._tokens(longer) - 1 if longer.text is not None else 1)
            part.timed = timed(one, (alone - one) / steps, first, seconds, count, lengths)._replace(prompt=prompt)
        else:
            part.timed = Timed(0.0, seconds / count, 0.0, 0.0, prompt)
        part.rows, self.peak = count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if not part.replies:
            part.stand_ins, part.replies, part.source = whole, lengths, f"as {len(whole)} of a probe"

    # What all takes

    def seconds(self, part: Any) -> float | None:
        """Of all requests, once the model is loaded; None where nothing tells."""
        if self._plan.hardware is not None:
            return self._by_sheet(part) if self.is_local else None
        timed, tokens = part.timed, part.written()
        longer = part.read()[0] / part.requests / timed.prompt
        steps = max(max(part.replies), tokens / self._rows(part))
        return timed.fixed + part.requests * timed.request * longer + steps * timed.step + tokens * timed.token

    def _rows(self, part: Any) -> int:
        """Requests in flight."""
        if self._runs != "hf":
            return min(part.requests, AT_ONCE.get(self._runs, part.requests))
        rows = min(part.requests, self._args.batch_size)
        return max(1, min(rows, TOKEN_BUDGET // self._longest(part))) if self.on_cpu else rows

    def _longest(self, part: Any) -> int:
        """Tokens of a row at most, what all prompts begin with left out."""
        ids = self.ids(part.sample)
        return max(map(len, ids)) - shared(ids) + part.bound

    @cached_property
    def on_cpu(self) -> bool:
        import torch

        return self._plan.hardware is None and not torch.cuda.is_available()

    @cached_property
    def shape(self) -> Shape:
        return Shape.of(self.name, self._args.cache_dir)

    @property
    def itemsize(self) -> int:
        if self._args.dtype:
            return 4 if self._args.dtype == "float32" else 2
        return 4 if self.on_cpu and self._runs == "hf" else self.shape.itemsize

    @property
    def accelerators(self) -> int:
        return self._plan.hardware.count if self._plan.hardware else self._args.n_gpu

    def memory(self, parts: Sequence[Any]) -> dict[str, float]:
        """Bytes on one accelerator, or of this process."""
        part = max(parts, key=lambda each: self._rows(each) * self._longest(each))
        rows = self._rows_on_sheet(part) if self._plan.hardware else self._rows(part)
        row = self._longest(part) * self.shape.cache_bytes(self.itemsize) + SAMPLED_LOGITS * 4 * self.shape.vocabulary
        if self.on_cpu and self._backend == "hf":  # in this process, whose peak the probe has shown
            return {f"the probe's {part.rows} rows": self.peak, f"{rows - part.rows} more": (rows - part.rows) * row}
        weights = self.shape.weights * self.itemsize
        return {"weights": weights / self._args.n_gpu, f"{rows} rows": rows * row / self._args.n_gpu}

    # By data sheets

    def _rows_on_sheet(self, part: Any) -> int:
        """Requests in flight on each replica: what the memory holds beside the weights, as many as vLLM takes."""
        sheet, many = self._plan.hardware, self._args.n_gpu
        room = many * sheet.gb * 1e9 * self._args.gpu_memory_utilization - self.shape.weights * self.itemsize
        rows = int(room / (self._longest(part) * self.shape.cache_bytes(self.itemsize)))
        if rows < 1:
            need = (
                f"{self.shape.weights * self.itemsize / 2**30:,.0f} GiB of weights and a row of {self._longest(part):,}"
            )
            told = f"{need} tokens do not fit {many} x {sheet.name}"
            raise UserError(f"--plan: {told}; give --n_gpu {2 * many}")
        return min(rows, AT_ONCE["vllm"] if self._runs == "vllm" else self._args.batch_size, part.requests)

    def _by_sheet(self, part: Any) -> float:
        sheet, many, shape = self._plan.hardware, self._args.n_gpu, self.shape
        replicas = sheet.count // many
        if not replicas:
            raise UserError(f"--hardware {sheet.count}x{sheet.name} has no room for --n_gpu {many}")
        if self._backend != "ray":
            replicas = 1
        elif self._args.replicas:
            replicas = min(replicas, self._args.replicas)
        self.start = shape.weights * self.itemsize / READ_WEIGHTS
        ids, tokens = self.ids(part.sample), part.written()
        prompt, reply = part.read()[0] / part.requests, tokens / part.requests
        rows = self._rows_on_sheet(part)
        reading = part.requests * (prompt - shared(ids)) * shape.forward_flops(prompt) / (many * sheet.flops)
        held = shape.weights * self.itemsize + rows * (prompt + reply / 2) * shape.cache_bytes(self.itemsize)
        step = max(
            held / (many * sheet.tb_per_second * 1e12 * sheet.read),
            rows * shape.forward_flops(prompt + reply) / (many * sheet.flops),
        )
        return (reading + tokens / rows * step) / replicas


class RehearsedScorer:
    """A reward model whose rewards are drawn; the first few responses are scored, and timed, by the real one."""

    def __init__(self, plan: Any, scorer: Any, args: Namespace):
        self.identity, self._plan, self._scorer, self._args = scorer.identity, plan, scorer, args
        self.texts, self._tokens, self._each = 0, 0, None
        plan.scored.append(self)

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        if self._each is None and self._plan.hardware is None:
            some = slice(0, SCORED)
            self._scorer.score(rows[:1], responses[:1])  # loads it
            clock = self._plan.clock(in_process=True)
            began = clock()
            self._scorer.score(rows[some], responses[some])
            self._each = (clock() - began) / len(responses[some])
        self.texts += len(responses)
        asked = (json.dumps(row, ensure_ascii=False) + text for row, text in zip(rows, responses, strict=True))
        self._tokens += sum(map(tokens_of, asked))
        return [self._plan.draw.gauss() for _ in responses]

    def seconds(self) -> float:
        if self._plan.hardware is None:
            return self.texts * self._each
        shape, sheet = Shape.of(self._args.reward_model, self._args.cache_dir), self._plan.hardware
        return self._tokens * shape.forward_flops(self._tokens / self.texts) / (sheet.flops * sheet.count)


def timed(one: float, step: float, first: float, seconds: float, rows: int, lengths: Sequence[int]) -> Timed:
    """What a probe took: `one` request for its first token, a `step` for a further one; `rows` requests for the `first`
    token of each, and for whole replies of these lengths `seconds`. All in seconds."""
    request = max(0.0, first - one) / (rows - 1) if rows > 1 else one
    steps, tokens = max(lengths) - 1, sum(lengths) - len(lengths)
    inside = (seconds - first - step * steps) / (tokens - steps) if tokens > steps else 0.0  # a row more in a step
    inside = min(max(0.0, inside), step)
    return Timed(max(0.0, first - rows * request), request, step - inside, inside, 0.0)


def shared(ids: Sequence[Sequence[int]]) -> int:
    """Tokens that all prompts begin with, of which engines compute the keys once."""
    first, last = min(ids), max(ids)
    return next((at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other), len(first))
