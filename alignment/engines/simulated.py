"""A seeded writer in a model's place."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import parse_qsl

from alignment.command_line import UserError
from alignment.engines.schemas import fill
from alignment.generation import Reply, Request, Sampling


class SimulatedEngine:
    """A seeded writer: after `Query:` or `Human:` it writes a question, after a dialogue and to messages it answers,
    and under a schema it fills it. Nothing is random but by seed.

    The model's name may set it: `writer-13b?quality=0.9&latency=0.01&refusals=0.1&malformed=0.1&faults=0.3`. quality in
    [0, 1] makes answers longer and their sentences whole; latency is in seconds per request; the others are shares of
    requests: a refusal says that it does not know, a malformed reply is broken off (under a schema it does not follow
    it), a fault comes back as failed. Faults heal: none strikes where only requests that it struck are asked for, as
    the next run does. With faults=1 all fail, always.
    """

    SETTINGS = {"quality": 0.7, "latency": 0.0, "refusals": 0.0, "malformed": 0.0, "faults": 0.0}
    MISFORTUNES = ("faults", "refusals", "malformed")
    THINGS = (
        "apricots bicycles comets diaries eclipses ferries glaciers hedgehogs inkwells jigsaws kettles lanterns "
        "mosaics nettles orchids parachutes quilts reservoirs sundials thermometers umbrellas violins waterwheels "
        "xylophones yoghurts zeppelins almanacs bridges canals dialects engravings fountains greenhouses harbours "
        "islands juries kites libraries monsoons notebooks oratorios pulleys quarries rivers"
    ).split()
    DEEDS = (
        "choose repair describe clean store sketch compare explain photograph inherit transport insure restore "
        "classify borrow measure decorate protect donate rebuild"
    ).split()
    PEOPLE = (
        "gardeners sailors grandparents apprentices nurses cooks teachers archivists farmers students neighbours "
        "dancers engineers painters travellers beekeepers drivers singers"
    ).split()
    KINDS = (
        "wooden ancient portable expensive colourful fragile famous forgotten northern miniature modern broken "
        "silent heavy rural electric handmade tropical rusty"
    ).split()
    ASKS = (
        "How do {p} {d} {k} {0} near {1}?",
        "Why would {k} {0} outlast {1}, {p} wonder?",
        "Please {d} {k} {0}, {1} and {2}.",
        "Which {0} help {p} {d} {k} {1}?",
        "Should {p} {d} {k} {0} or {1}?",
        "Tell {p} where {k} {0} and {1} meet.",
        "Can {p} {d} {0} without {k} {1}?",
        "Are {k} {0} made by {p}?",
    )
    SENTENCES = (
        "Start with what you already have to hand.",
        "Ask somebody who has done it before.",
        "The usual mistake is to hurry the second step.",
        "Write down what you see on the first day.",
        "A little patience saves a good deal of money here.",
        "Most guides leave out the reason, which is heat.",
        "Two short sessions teach more than one long one.",
        "Look at it again in the morning light.",
    )

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
        fates = [self._fate(request) for request in requests]
        healed = self._settings["faults"] < 1 and all(fate == "faults" for fate in fates)
        for index, (request, fate) in enumerate(zip(requests, fates, strict=True)):
            if self._settings["latency"]:
                time.sleep(self._settings["latency"])  # of 0 too it would wait, for its turn
            yield index, self._reply(request, sampling, "answers" if healed else fate)

    def _fate(self, request: Request) -> str:
        if not any(self._settings[misfortune] for misfortune in self.MISFORTUNES):
            return "answers"
        fate = random.Random(f"{request.seed} {text_of(request)}").random()
        for misfortune in self.MISFORTUNES:
            if 0 <= fate < self._settings[misfortune]:
                return misfortune
            fate -= self._settings[misfortune]
        return "answers"

    def _reply(self, request: Request, sampling: Sampling, outcome: str) -> Reply:
        draw = random.Random(f"{request.seed} {text_of(request)}")
        draw.random()  # its fate
        if outcome == "faults":
            return Reply(None, "failed: simulated fault")
        if sampling.schema is not None:
            filled = json.dumps(self._fill(request, sampling.schema, draw))
            return Reply(filled[:-1] if outcome == "malformed" else filled, "stop")
        words = self._write(request, outcome, draw).split(" ")
        text = " ".join(words[: sampling.max_tokens])
        cut = min((at for stop in sampling.stop if (at := text.find(stop)) >= 0), default=None)
        if cut is not None:
            return Reply(text[:cut], "stop")
        return Reply(text, "length" if len(words) > sampling.max_tokens else "stop")

    def _fill(self, request: Request, schema: dict, draw: random.Random) -> Any:
        return fill(schema, draw)

    def _write(self, request: Request, outcome: str, draw: random.Random) -> str:
        """A reply that runs on past its turn, as a base model's does."""
        prompt = text_of(request)
        if prompt.rstrip().endswith("Human:"):
            ask = self._ask(draw)
            return f" {ask[:12] if outcome == 'malformed' else ask}\n\nAssistant:  That is all.\n\n-----"
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


def text_of(request: Request) -> str:
    """What a request says, whatever its form."""
    return request.prompt if isinstance(request.prompt, str) else json.dumps(request.prompt)
