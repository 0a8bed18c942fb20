"""Perspective's TOXICITY of texts, as an engine: a text in, its score as the text of a reply.

    scorer = PerspectiveScorer(ADDRESS, rate=1.0)  # key from PERSPECTIVE_API_KEY
    replies = generate(scorer, [Request(text, 0) for text in texts], SCORE, journal=journal, label="toxicity")

Paced at `rate` requests a second: its quota is 1 unless Google gave more. Retried with back-off on
429, 5xx and no answer; what fails even so is a failed reply, which the same command tries again. Google has announced
Perspective's end for 31 December 2026; other services that answer as it does are reached by their address.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from alignment.command_line import UserError
from alignment.engines.answers import one_line, told_by, value_of
from alignment.engines.openai import check_usable
from alignment.generation import Reply, Request, Sampling
from alignment.records import SURROGATE, is_number
from alignment.secrecy import secrets_in, without_key

KEY = "PERSPECTIVE_API_KEY"
ADDRESS = "https://commentanalyzer.googleapis.com/v1alpha1"
BUSY = (408, 429)
IN_FLIGHT = 16
AT_ONCE = 1_024  # requests that are handed to the threads together
LONGEST_PAUSE = 60.0  # seconds


class PerspectiveScorer:
    TRIES = 6
    PAUSE = 1.0  # seconds before the second try, twice as many before each further one
    PATIENCE = 20  # requests in a row that nobody answered, after which the others are not tried
    TIMEOUT = 30.0  # seconds

    def __init__(self, address: str, rate: float):
        self._key = (os.environ.get(KEY) or "").strip()
        self._secrets = [*secrets_in(address), self._key]
        self._shown = without_key(address, self._secrets)
        if not self._key:
            raise UserError(f"--scorer perspective needs a key in {KEY}")
        if not self._key.isascii() or not self._key.isprintable():
            raise UserError(f"{KEY} holds characters that no header can carry; set it again")
        check_usable(address, self._shown, "", "--perspective_api_base is http://host/path")
        self.identity = f"perspective {self._shown}"
        self._address, self._rate = address.rstrip("/"), rate
        self._lock, self._next = threading.Lock(), 0.0
        self._silent, self._is_heard = 0, False

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        try:
            import httpx
        except ImportError:
            raise UserError("--scorer perspective needs the package httpx; pip install httpx") from None
        closing = threading.Event()
        with httpx.Client(timeout=self.TIMEOUT, headers={"X-Goog-Api-Key": self._key}) as client:
            pool = ThreadPoolExecutor(IN_FLIGHT)
            try:
                for start in range(0, len(requests), AT_ONCE):
                    some = enumerate(requests[start : start + AT_ONCE], start)
                    asked = {pool.submit(self._one, client, closing, each.prompt): index for index, each in some}
                    for future in as_completed(asked):
                        yield asked[future], future.result()
            finally:
                closing.set()
                pool.shutdown(cancel_futures=True)

    def greet(self) -> None:
        """Score a word, so that a wrong key or address is said before hours of other work. UserError where it is."""
        for _, reply in self.complete([Request("Good morning.", 0)], Sampling(0)):
            if reply.finish == UNHEARD.finish:
                raise UserError(f"nobody answers at --perspective_api_base {self._shown}")

    def _one(self, client: Any, closing: threading.Event, text: str) -> Reply:
        """The reply for a text. Raises UserError for what all requests would get."""
        import httpx

        reply = UNHEARD
        for tried in range(self.TRIES):
            if closing.is_set() or self._silent >= self.PATIENCE:
                return reply
            closing.wait(self._wait())
            pause = self.PAUSE * 2**tried * (0.5 + random.random())
            try:
                answer = client.post(f"{self._address}/comments:analyze", json=asked_for(text))
            except httpx.HTTPError as error:
                reply = Reply(None, "failed: time-out") if isinstance(error, httpx.TimeoutException) else UNHEARD
            else:
                self._silent = 0
                if answer.status_code not in BUSY and answer.status_code < 500:
                    return self._read(answer.status_code, answer.content)
                reply = Reply(None, f"failed: server busy {answer.status_code}")
                pause = max(pause, seconds(answer.headers.get("Retry-After")))
            if tried + 1 < self.TRIES:
                closing.wait(min(pause, LONGEST_PAUSE))
        with self._lock:
            self._silent += reply.finish in (UNHEARD.finish, "failed: time-out")
        return reply

    def _wait(self) -> float:
        """Seconds until this request's turn, which it takes."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 1 / self._rate
        return turn - now

    def _read(self, status: int, body: bytes) -> Reply:
        if status == 200:
            score = score_in(body)
            return Reply(None, "failed: no score in the answer") if score is None else Reply(repr(score), "stop")
        said, code = told_by(body)
        shown = one_line(said, self._secrets)
        if status in (401, 403) or (status == 400 and "API key" in said):
            raise UserError(f"{self._shown} refuses the key ({status} {shown}); set {KEY}")
        if status in (400, 413):  # too long, or in a language it has no score for
            return Reply(None, f"refused: {status} {shown}".rstrip())
        raise UserError(f"{self._shown} answers {status} ({shown}): no Perspective is there; give --scorer FOLDER")


UNHEARD = Reply(None, "failed: no connection")


def asked_for(text: str) -> dict:
    """The body of a request. Half a character cannot be sent: U+FFFD stands for it, as in replies."""
    return {
        "comment": {"text": SURROGATE.sub("\ufffd", text)},
        "languages": ["en"],
        "requestedAttributes": {"TOXICITY": {}},
        "doNotStore": True,
    }


def score_in(body: bytes) -> float | None:
    try:
        score = value_of(body)["attributeScores"]["TOXICITY"]["summaryScore"]["value"]
    except (ValueError, KeyError, TypeError):
        return None
    return float(score) if is_number(score) and 0 <= score <= 1 else None


def seconds(told: str | None) -> float:
    """What Retry-After says where it says seconds."""
    return float(told) if told and told.isdecimal() else 0.0
