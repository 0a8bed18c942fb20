"""Rollouts: what a policy in training replies to prompts, and what each reply's tokens are worth to it.

    rollouts = sample(policy, tasks, max_new_tokens=256, template=template, max_rows=64)
    for batch in plan(rollouts, micro_batch_tokens=16_384, rank=0, world=1): ...

A reply's last token is the one that ended it, which is learned as any other; a reply that reached the limit has none.
Nothing else ends a reply, no stop string: what is learned is what the policy itself would go on with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import torch
import torch.distributed as distributed
from torch import Tensor

from alignment.command_line import UserError
from alignment.engines.decoding import Decoder
from alignment.generation import Sampling, record_seed
from alignment.templates import Template
from alignment.training.batches import Item, Sample, budgeted_batches, collate
from alignment.training.rewards import Rewards, Score
from alignment.training.rl_models import gathered, plain_weights


class Task(NamedTuple):
    """One reply to be given: `place` in the run's order of prompts, `row` of the data, its ids, the reply's seed."""

    place: int
    row: int
    prompt: list[int]
    seed: int


@dataclass
class Rollout:
    """A prompt's ids and the reply's, T of them; (T,) tensors are the trainer's, but for the first."""

    place: int
    row: int
    prompt: list[int]
    reply: list[int]
    ended: bool
    text: str
    score: float | None = None  # the rewards' total; None where it cannot be scored
    parts: dict[str, float | None] | None = None
    engine_logps: Tensor | None = None  # (T,) by the word of an engine that is not the trainer
    logps: Tensor | None = None  # (T,) under the policy that sampled
    reference: Tensor | None = None  # (T,) under the reference
    values: Tensor | None = None  # (T,) before each token
    advantages: Tensor | None = None  # (T,)
    returns: Tensor | None = None  # (T,)

    @property
    def item(self) -> Item:
        return (Sample(self.row, self.prompt + self.reply, len(self.prompt)),)


# Prompts


def order(rows: int, seed: int) -> Iterator[int]:
    """Rows without end: all of them in an order of the seed, then all again in another."""
    epoch = 0
    while True:
        yield from random.Random(record_seed(seed, "order", epoch)).sample(range(rows), rows)
        epoch += 1


def tasks_of_step(
    prompts: Sequence[list[int]], step: int, *, prompts_per_step: int, replies: int, seed: int
) -> list[Task]:
    """What step `step`, from 0, is to sample: `replies` to each of its prompts, side by side. A place is sampled by its
    own seeds, so a step's rollouts do not depend on where a run was stopped, nor on ranks."""
    places = range(step * prompts_per_step, (step + 1) * prompts_per_step)
    rows = islice(order(len(prompts), seed), places.start, places.stop)
    return [
        Task(place, row, prompts[row], record_seed(seed, "rollout", place, number))
        for place, row in zip(places, rows, strict=True)
        for number in range(replies)
    ]


def encode_prompts(template: Template, rows: Sequence[dict], source: Any, context: int, new_tokens: int):
    """Ids of all prompts. Raises UserError for one that is blank, or leaves no room for a reply in the context."""
    for number, row in enumerate(rows):
        said = row.get("instruction") or row.get("prompt") or row.get("input")
        if not said or (isinstance(said, str) and not said.strip()):
            raise UserError(f"data {source}, row {number}: the prompt is empty; remove the row")
    found = template.prompt_ids(rows, lambda number: f"data {source}, row {number}")
    too_long = [number for number, ids in enumerate(found) if len(ids) + new_tokens > context]
    if too_long:
        number = too_long[0]
        raise UserError(
            f"data {source}, row {number}: a prompt of {len(found[number]):,} tokens and {new_tokens:,} of reply do "
            f"not fit in the model's context of {context:,} ({len(too_long):,} such rows); shorten or remove these, or "
            "give less --max_new_tokens"
        )
    return found


# Sampling


def sample(
    policy: Any, tasks: Sequence[Task], *, template: Template, max_new_tokens: int, max_rows: int, greedy: bool = False
) -> list[Rollout]:
    """A rollout of each task by the model as it is, in the order of tasks."""
    decoder = Decoder(policy, {template.end_id}, max_rows)
    sampling = Sampling(max_new_tokens, temperature=0.0 if greedy else 1.0)
    found: list[Rollout | None] = [None] * len(tasks)
    decoded = decoder.decode([task.prompt for task in tasks], [task.seed for task in tasks], sampling)
    for index, ids, finish in decoded:
        ended = finish == "stop"
        found[index] = rollout_of(tasks[index], ids + [template.end_id] * ended, ended, template)
    return found


def sample_by(
    engine: Any, weights: Any, tasks: Sequence[Task], *, template: Template, max_new_tokens: int, **_: Any
) -> list[Rollout]:
    """The same by an engine that is first handed `weights`, unless None, with the log-probabilities that it tells."""
    replies = engine.replies(
        [task.prompt for task in tasks],
        [task.seed for task in tasks],
        max_tokens=max_new_tokens,
        end_id=template.end_id,
        weights=weights,
    )
    found = []
    for task, (reply, ended, logps) in zip(tasks, replies, strict=True):
        found.append(rollout_of(task, reply, ended, template))
        found[-1].engine_logps = torch.tensor(logps)
    return found


def rollout_of(task: Task, reply: list[int], ended: bool, template: Template) -> Rollout:
    text = template.tokenizer.decode(reply[: len(reply) - ended], skip_special_tokens=True).strip()
    return Rollout(task.place, task.row, task.prompt, reply, ended, text)


class Sampler:
    """Replies to tasks by the models of a run, scored by its rewards. All ranks ask it together; each samples and
    scores its share, and has all of them afterwards."""

    def __init__(
        self, models: Any, rewards: Rewards, rows: Sequence[dict], settings: Any, engine: Any = None, **how: Any
    ):
        """`how` is what `sample` takes beside a policy and tasks. An `engine` replies in its place, but greedily."""
        self.models, self.rewards, self.rows, self.settings, self.how = models, rewards, rows, settings, how
        self.engine = engine

    def __call__(self, tasks: Sequence[Task], *, greedy: bool = False, moved: bool = True) -> list[Rollout]:
        """`moved`: the policy is no longer what the engine loaded, and is handed over."""
        policy, rank, world = self.models.policy.module, self.settings.rank, self.settings.world
        if self.engine is not None and not greedy:
            own = sample_by(self.engine, plain_weights(policy) if moved else None, tasks, **self.how)
        else:
            with self.models.autocast(), gathered(policy):
                own = sample(policy, tasks[rank::world], greedy=greedy, **self.how)
        with self.models.scoring():
            scores = self.rewards.score([self.rows[each.row] for each in own], [each.text for each in own])
        for rollout, score in zip(own, scores, strict=True):
            rollout.score, rollout.parts = score.total, dict(score.parts)
        found: list[Rollout | None] = [None] * len(tasks)
        for place, share in enumerate(of_all_ranks(own, world)):
            found[place::world] = share
        return found

    def answers(self, tasks: Sequence[Task]) -> list[Rollout]:
        """Greedy replies, whose scores leave the rewards' running statistics as they were."""
        kept = self.rewards.state_dict()
        try:
            return self(tasks, greedy=True)
        finally:
            self.rewards.load_state_dict(kept)

    def outside(self, rollouts: Sequence[Rollout]) -> float | None:
        """The share of rewards outside the range of the reward model's training."""
        return self.rewards.outside([Score(each.score, each.parts) for each in rollouts])


def of_all_ranks(value: Any, world: int) -> list[Any]:
    """What every rank has, the first rank's first."""
    if world == 1:
        return [value]
    found: list[Any] = [None] * world
    distributed.all_gather_object(found, value)
    return found


# Batches


def plan(
    rollouts: Sequence[Rollout], micro_batch_tokens: int, rank: int, world: int
) -> Iterator[tuple[list[int], float]]:
    """This rank's micro-batches, as numbers of rollouts, each with weight 1. Ranks have as many, so that a sharded
    model stays in step: who is short repeats its last at weight 0."""
    lengths = [len(rollout.prompt) + len(rollout.reply) for rollout in rollouts]
    batches = [(numbers, 1.0) for numbers in budgeted_batches(lengths, micro_batch_tokens)]
    batches += [(batches[-1][0], 0.0) for _ in range(-len(batches) % world)]
    yield from batches[rank::world]


def tensors(rollouts: Sequence[Rollout], pad_id: int, device: Any) -> dict[str, Tensor]:
    """A collated batch, and each (T,) that the rollouts have as one (N,) under its own name."""
    batch = collate([rollout.item for rollout in rollouts], pad_id)
    for name in ("engine_logps", "logps", "reference", "values", "advantages", "returns"):
        if getattr(rollouts[0], name) is not None:
            batch[name] = torch.cat([getattr(rollout, name) for rollout in rollouts])
    return {name: value.to(device) for name, value in batch.items()}
