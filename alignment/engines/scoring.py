"""Rewards of many responses: by a reward model in this process, by one that vLLM serves, or simulated.

    scorer = scorer_from(args)  # wrong paths are refused now; nothing is loaded before the first score
    rewards = scored(scorer, rows, responses, journal=journal, label="rewards")

    vllm serve outputs/reward-model --runner pooling  # then --reward_api_base http://localhost:8000

What is scored together goes into the journal together, under a hash of the scorer and of all these texts: a batch
changes a reward's last bits, and so a run that was killed gives the rewards of one that was not.
"""

from __future__ import annotations

import json
import math
import os
import random
from argparse import ArgumentParser, Namespace
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from alignment.command_line import Progress, UserError
from alignment.generation import parts
from alignment.journal import Journal, key
from alignment.limits import LimitedScorer
from alignment.pretrained import load_pretrained, model_identity, training_tokenizer
from alignment.secrecy import secrets_in, without_key
from alignment.templates import load_template

SCORED_TOGETHER = 1_024  # responses that are sorted by length, and journaled, at a time
SERVED_TOGETHER = 64  # responses in one request to a server
RETRIES = 8
SIMULATED = "simulated"


class Scorer(Protocol):
    """`identity` is all that determines a reward beside the texts; `score` gives one for each response to its row."""

    identity: str

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]: ...


def add_scorer_arguments(parser: ArgumentParser) -> None:
    """The flags of the scripts that choose by a reward model."""
    group = parser.add_argument_group("reward")
    shown = "a reward model of train.py: folder or hub name; simulated?noise=0.5 counts sentences, for dry runs"
    group.add_argument("--reward_model", metavar="MODEL", help=shown)
    shown = "http://host:port of a vLLM server (vllm serve MODEL --runner pooling) that scores; key from OPENAI_API_KEY"
    group.add_argument("--reward_api_base", metavar="URL", help=f"{shown} (default: this process scores)")


def scorer_from(args: Namespace) -> Scorer:
    """The scorer that the flags name, or what stands in for it in a plan. Raises UserError where --reward_model is
    missing, or no reward model."""
    if not args.reward_model:
        raise UserError("--reward_model is missing; give the model that scores")
    plan, hours = getattr(args, "plan", False), getattr(args, "max_hours", None)
    if plan or hours:
        own = {"plan": False, "max_hours": None} | ({"backend": "hf"} if plan and plan.hardware else {})
        scorer = scorer_from(Namespace(**vars(args) | own))
        if not plan:
            return LimitedScorer(scorer, hours)
        from alignment.engines.rehearsal import RehearsedScorer

        return RehearsedScorer(plan, scorer, args)
    if args.reward_model.partition("?")[0] == SIMULATED:
        return SimulatedScorer(args.reward_model)
    from alignment.training import reward_model

    reward_model.check(args.reward_model, args.cache_dir)
    if args.reward_api_base:
        return ServedScorer(args.reward_model, args.reward_api_base, args.concurrency, args.timeout, args.cache_dir)
    scorer = LocalScorer(args.reward_model, args.cache_dir)
    if args.backend != "ray":
        return scorer
    from alignment.engines.ray import RayScorer

    args = Namespace(**vars(args) | {"ray_engine": args.ray_engine or "vllm"})
    return RayScorer(args, scorer, partial(scorer_from, Namespace(**vars(args) | {"backend": args.ray_engine})))


def local_scorer(name: str, max_length: int | None, *, whole: bool) -> Scorer:
    """The scorer of a reward model here, or simulated, of texts of `max_length` tokens; by default as many as it was
    trained on, or with `whole` as many as it can read. Raises UserError for what is no reward model."""
    if name.partition("?")[0] == SIMULATED:
        return SimulatedScorer(name)
    from alignment.training import reward_model

    config = reward_model.check(name)
    own = config.get_text_config().max_position_embeddings
    trained = getattr(config, "reward_max_length", None)
    return LocalScorer(name, None, max_length or (own if whole or not trained else None))


def models_scored_by(args: Namespace) -> list[str]:
    """The reward models whose files this machine reads."""
    name = args.reward_model
    return [] if not name or name.partition("?")[0] == SIMULATED else [name]


def scored(
    scorer: Scorer, rows: Sequence[dict], responses: Sequence[str], *, journal: Journal, label: str
) -> list[float]:
    """The reward of each response to its row's prompt, in order. What the journal holds is not scored again.

    Raises UserError where a reward is not finite.
    """
    pairs = zip(rows, responses, strict=True)
    return list(scores_of(scorer, pairs, journal=journal, label=label, total=len(responses)))


def scores_of(
    scorer: Scorer, pairs: Iterable[tuple[dict, str]], *, journal: Journal, label: str, total: int
) -> Iterator[float]:
    """The same, one by one, of (row, response) of which there are `total`, or about as many."""
    with Progress(total, label) as progress:
        for some in parts(pairs, SCORED_TOGETHER):
            request = key(scorer=scorer.identity, texts=some)
            if found := journal.get(request):
                progress.skip(len(some))
                yield from json.loads(found[0])
                continue
            rows, responses = map(list, zip(*some, strict=True))
            fresh = scorer.score(rows, responses)
            for response, reward in zip(responses, fresh, strict=True):
                if not math.isfinite(reward):
                    raise UserError(
                        f"the reward model gives {reward} for {response[:60]!r}; are its weights sound? Train it again"
                    )
            journal.add(request, json.dumps(fresh), "scored")
            progress.update(len(fresh))
            yield from fresh


class LocalScorer:
    """A reward model in this process, on the first GPU where there is one; of texts as long as it was trained on, or of
    `max_length` tokens."""

    def __init__(self, name: str, cache_dir: Path | None, max_length: int | None = None):
        self.identity = f"reward {model_identity(name)}" + (f" of {max_length} tokens" if max_length else "")
        self._name, self._cache_dir, self._max_length, self._loaded = name, cache_dir, max_length, None

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        from alignment.training import reward_model

        self._loaded = self._loaded or reward_model.load(self._name, cache_dir=self._cache_dir)
        return reward_model.score(*self._loaded, rows, responses, max_length=self._max_length)


class ServedScorer:
    """A reward model behind vLLM's /classify, which is sent the ids of training, made here by the model's template."""

    def __init__(self, name: str, api_base: str, concurrency: int, timeout: float, cache_dir: Path | None):
        from alignment.engines.openai import check_usable

        self._secrets = secrets_in(api_base)
        self._shown = without_key(api_base, self._secrets)
        self._key = (os.environ.get("OPENAI_API_KEY") or "").strip() or "none"
        check_usable(api_base, self._shown, self._key, "--reward_api_base is http://host:port")
        self.identity = f"served reward {model_identity(name)}"  # of the files here, which the server is to have too
        self._name, self._address = name, urlsplit(api_base)
        self._concurrency, self._timeout = concurrency, timeout
        config = load_pretrained("AutoConfig", name, cache_dir=cache_dir)
        self._template = load_template(
            getattr(config, "prompt_template", "almost"), training_tokenizer(name, cache_dir)
        )
        self._max_length = getattr(config, "reward_max_length", None)
        self._is_bare = getattr(config, "problem_type", None) == "regression"  # vLLM then has no activation
        self._client: Any = None

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        from alignment.training.reward_model import encode_texts

        ids = [sample.ids for sample in encode_texts(self._template, rows, responses, self._max_length)]
        if self._client is None and ids:
            self._open(ids[0])
        parts = [ids[start : start + SERVED_TOGETHER] for start in range(0, len(ids), SERVED_TOGETHER)]
        with ThreadPoolExecutor(self._concurrency) as pool:
            return [reward for part in pool.map(self._ask, parts) for reward in part]

    def _open(self, probe: list[int]) -> None:
        """Raise UserError where the server gives the sigmoid of a reward, which its own default is."""
        import openai

        path = self._address.path.rstrip("/").removesuffix("/v1")  # /classify stands beside it
        self._client = openai.OpenAI(
            api_key=self._key,
            base_url=self._address._replace(path=path, query="", fragment="").geturl(),
            default_query=dict(parse_qsl(self._address.query, keep_blank_values=True)),
            max_retries=RETRIES,
            timeout=self._timeout,
        )
        if not self._is_bare and self._ask([probe]) == self._ask([probe], use_activation=True):
            raise UserError(f"the server at {self._shown} gives probabilities: it passes over use_activation=false")

    def _ask(self, ids: list[list[int]], use_activation: bool = False) -> list[float]:
        import openai

        from alignment.engines.answers import one_line, told_by

        body = {"model": self._name, "input": ids, "use_activation": use_activation, "add_special_tokens": False}
        try:
            found = self._client.post("/classify", cast_to=object, body=body)
            rows = sorted(found["data"], key=lambda row: row["index"])
            rewards = [float(reward) for row in rows for reward in row["probs"]]
        except openai.APIConnectionError:
            raise UserError(f"no server answers at --reward_api_base {self._shown}") from None
        except openai.APIStatusError as error:
            said = one_line(told_by(error.response.content)[0], self._secrets)
            raise UserError(f"the reward server at {self._shown} refuses: {error.status_code} {said}") from None
        except (TypeError, KeyError, ValueError):
            rewards = []
        if len(rewards) != len(ids):
            raise UserError(f"the server at {self._shown} gives no reward for each text; is it a reward model's?")
        return rewards


class SimulatedScorer:
    """The number of whole sentences of a response, as a simulated writer's quality is, plus Gaussian noise of the
    deviation `noise`, drawn from the texts alone: `simulated?noise=0.5` (default 0)."""

    def __init__(self, name: str):
        self.identity = name
        settings = dict(parse_qsl(name.partition("?")[2], keep_blank_values=True))
        try:
            self._noise = float(settings.pop("noise", 0))
        except ValueError:
            raise UserError(f"--reward_model {name}: noise is no number") from None
        if settings or not 0 <= self._noise < math.inf:
            raise UserError(f"--reward_model {name}: noise=N, of 0 or more, is its only setting")

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        return [
            response.count(".") + self._noise * random.Random(f"{json.dumps(row)} {response}").gauss()
            for row, response in zip(rows, responses, strict=True)
        ]
