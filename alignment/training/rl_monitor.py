"""What a run of reinforcement shows of itself: a line of numbers a step, words where a reward is being gamed, and a
page with the same prompts' answers before, during and after."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from alignment.pages import page
from alignment.records import write_whole
from alignment.training import ppo
from alignment.training.rollouts import Rollout

WINDOW = 5  # steps whose mean is compared with that of others
LONGER = 1.5  # times the first window's length is a length that runs away
UNENDED = 0.5  # times the first window's share of replies that end by themselves is a share that falls away
FAR, FARTHER = 10.0, 1.5  # nats a reply, and times the window before, is a KL that does
STRANGE = 0.1  # share of rewards outside the range of the reward model's training
PANELS = ("reward", "kl", "length", "entropy", "eos_rate", "clip_fraction", "explained_variance", "policy_loss")
SAMPLES_PAGE, SHOWN = "samples.html", 8  # prompts on it


def mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def measured(rollouts: Sequence[Rollout], used: Sequence[Rollout], outside: float | None) -> dict[str, Any]:
    """What a step's rollouts say, as they were sampled: means over replies. Of `used` (those that were measured) KL and
    values too; `outside` is the rewards' own word.

    `kl` and `kl_k3` are nats a reply. The entropy is -log π of what was sampled, a token's mean: unbiased, and free.
    """
    scored = [rollout for rollout in rollouts if rollout.score is not None]
    lengths = [len(rollout.reply) for rollout in rollouts]
    found: dict[str, Any] = {"reward": mean([rollout.score for rollout in scored])}
    for name in scored[0].parts if scored and len(scored[0].parts) > 1 else ():
        found[f"reward_{name}"] = mean([rollout.parts[name] for rollout in scored])
    if used and used[0].reference is not None:
        for name, estimate in (("kl", ppo.kl_k1), ("kl_k3", ppo.kl_k3)):
            found[name] = mean([estimate(each.logps, each.reference).sum().item() for each in used])
    if used:
        found["entropy"] = -torch.cat([each.logps for each in used]).mean().item()
    if used and used[0].returns is not None:
        values, returns = (torch.cat([getattr(each, name) for each in used]) for name in ("values", "returns"))
        found["explained_variance"] = ppo.explained_variance(values, returns)
    found |= {
        "length": mean(lengths),
        "eos_rate": mean([float(rollout.ended) for rollout in rollouts]),
        "reward_length_correlation": ppo.correlation(
            [rollout.score for rollout in scored], [len(rollout.reply) for rollout in scored]
        ),
        "outside_range": outside,
        "unscored": len(rollouts) - len(scored),
        "left_out": len(rollouts) - len(used),
    }
    return {name: value for name, value in found.items() if value is not None}


def warnings(history: Sequence[dict[str, Any]]) -> list[str]:
    """What to look at, in words, once a window: a reward that climbs for the wrong reason, or that is a guess."""
    if len(history) % WINDOW or len(history) < WINDOW:
        return []

    def of(name: str, window: Sequence[dict[str, Any]]) -> float | None:
        return mean([line[name] for line in window if name in line])

    first, before, now = history[:WINDOW], history[-2 * WINDOW : -WINDOW], history[-WINDOW:]
    found = []
    if before and of("reward", now) > of("reward", first):
        climbs = f"the reward climbs ({of('reward', first):.2f} -> {of('reward', now):.2f})"
        if of("length", now) > LONGER * of("length", first):
            length, together = of("length", now), of("reward_length_correlation", now) or 0.0
            found.append(
                f"{climbs} while replies grow from {of('length', first):.0f} to {length:.0f} tokens (correlation of "
                f"reward and length {together:.2f}): it may be paid for length"
            )
        if of("eos_rate", now) < UNENDED * of("eos_rate", first):
            found.append(
                f"{climbs} while the replies that end by themselves fall from {of('eos_rate', first):.0%} to "
                f"{of('eos_rate', now):.0%}: it may be paid for running into --max_new_tokens"
            )
        kl, earlier = of("kl", now), of("kl", before)
        if kl is not None and kl > FAR and kl > FARTHER * earlier:
            found.append(
                f"{climbs} while the KL runs away ({earlier:.1f} -> {kl:.1f} nats a reply): read {SAMPLES_PAGE}; a "
                "larger --kl_coef or a --max_kl holds it"
            )
    if (share := of("outside_range", now)) and share > STRANGE:
        found.append(
            f"{share:.0%} of the rewards are outside the range of the reward model's training: it guesses there"
        )
    return found


def snapshots(max_steps: int) -> set[int]:
    """The steps after which the page's prompts are answered: before, at each quarter, and after."""
    return {round(max_steps * quarter / 4) for quarter in range(5)}


def answers(step: int, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """A column of the page."""
    shown = [{"text": each.text, "reward": each.score, "ended": each.ended, "parts": each.parts} for each in rollouts]
    return {"step": step, "answers": shown}


def write_samples(folder: Path, prompts: Sequence[str], columns: Sequence[dict[str, Any]], title: str) -> None:
    data = {"title": title, "prompts": list(prompts), "columns": list(columns)}
    write_whole(folder / SAMPLES_PAGE, [page("rl_samples.html", data)])
