"""Best of n: the candidates of each row, their rewards, which of them is the response, and what n brings.

    pools = with_rewards(pools, scores_of)   # (row, candidates), one by one, however many there are
    at = chosen_in(pool, "reward", seed)

A candidate is {"output", "reward", "finish"}. An output is null where none came; it may be empty.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from alignment.command_line import table
from alignment.generation import Reply, record_seed
from alignment.intervals import with_interval
from alignment.outputs import writing
from alignment.ranking import best_of_n_curve, choose
from alignment.records import write_whole

PROMPT_KEYS = ("system", "instruction", "input")  # what of a row a template reads
Answered = tuple[dict, list[dict]]  # a row and its candidates
Chosen = tuple[dict, list[dict], int | None]  # and the place of the one that is the response, as chosen_in has it


def candidate_seeds(seed: int, row: int, n: int) -> list[int]:
    """One for each candidate. The first is that of a run without --n, so that a greater n only adds to the pool."""
    return [record_seed(seed, "generate", row, *([candidate] if candidate else [])) for candidate in range(n)]


def candidate_of(reply: Reply) -> dict:
    """A reply as .candidates.jsonl tells it. One that did not come has no output; one may be empty."""
    return {"output": None if reply.text is None else reply.text.strip(), "reward": None, "finish": reply.finish}


def there(pool: Sequence[dict]) -> list[dict]:
    """The candidates that say something."""
    return [each for each in pool if each["output"]]


def with_rewards(
    pools: Iterable[Answered], scores_of: Callable[[Iterable[tuple[dict, str]]], Iterator[float]]
) -> Iterator[Answered]:
    """Score all candidates of all rows, a row's next to each other: their prompt is computed once. `scores_of` gives
    the rewards of (prompt, output), in their order; what waits for what it is scored with is held."""
    waiting: deque[tuple[Answered, int]] = deque()  # rows, and how many rewards there are once a row has all of its own
    unscored, asked = deque(), 0

    def pairs() -> Iterator[tuple[dict, str]]:
        nonlocal asked
        for row, pool in pools:
            said = there(pool)
            asked += len(said)
            waiting.append(((row, pool), asked))
            unscored.extend(said)
            prompt = {name: row[name] for name in PROMPT_KEYS if name in row}
            yield from ((prompt, each["output"]) for each in said)

    for scored, reward in enumerate(scores_of(pairs()), 1):
        unscored.popleft()["reward"] = reward
        while waiting and waiting[0][1] <= scored:
            yield waiting.popleft()[0]
    yield from (answered for answered, _ in waiting)


def chosen_in(pool: Sequence[dict], how: str, seed: int) -> int | None:
    """The place of the candidate that is the row's response: of those that say something, else the first that is empty;
    None where none came."""
    places = [place for place, each in enumerate(pool) if each["output"]]
    if not places:
        return next((place for place, each in enumerate(pool) if each["output"] == ""), None)
    rewards = [pool[place]["reward"] for place in places]
    return places[choose(how, rewards, [len(pool[place]["output"]) for place in places], seed)]


def pool_line(row: dict, pool: Sequence[dict], chosen: int | None) -> str:
    told = {name: row[name] for name in ("instruction", "system") if name in row}
    line = told | {"candidates": pool, "chosen": chosen}
    return json.dumps(line, ensure_ascii=False) + "\n"


def points_shown(curve: Sequence[dict]) -> list[dict]:
    """The points for a table and an axis: n a power of two, and the last."""
    return [point for point in curve if point["n"].bit_count() == 1 or point is curve[-1]]


def curve_table(curve: Sequence[dict]) -> str:
    head = ("n", "KL bound, nats", "reward of best [95% interval]", "reward of longest", "characters of best")
    forms = {"reward": "z.3f", "longest_reward": "z.3f", "length": ".0f"}
    rows = [
        (
            point["n"],
            f"{point['kl']:.3f}",
            *(with_interval(*point[name].values(), form) for name, form in forms.items()),
        )
        for point in points_shown(curve)
    ]
    return table([head, *rows])


def draw_curve(curve: Sequence[dict], path: Path) -> None:
    """Rewards of the best and the longest, and the length of the best, over the KL bound, with their intervals."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        print(f"matplotlib is not installed: {path.with_suffix('.json').name} is written, {path.name} is not")
        return
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    panels = {
        "mean reward": {"reward": "best of n", "longest_reward": "longest of n"},
        "mean length, characters": {"length": "best of n"},
    }
    ticks = {point["kl"]: f"{point['kl']:.2f}\n({point['n']})" for point in points_shown(curve)}
    for place, (title, lines) in enumerate(panels.items(), 1):
        axes = figure.add_subplot(1, 2, place, title=title, xlabel="KL bound, nats (n)")
        for name, label in lines.items():
            kl = [point["kl"] for point in curve]
            axes.plot(kl, [point[name]["mean"] for point in curve], ".-", label=label)
            axes.fill_between(kl, *zip(*(point[name]["interval"] for point in curve), strict=True), alpha=0.2)
        axes.set_xticks(list(ticks), ticks.values())
        axes.legend(fontsize="x-small")
    with writing(path):
        figure.savefig(path, dpi=120)


class Curve:
    """What the choice among n brings, of the rows of which every candidate has an output."""

    def __init__(self) -> None:
        self._of, self._rewards, self._lengths = 0, [], []

    def add(self, pool: Sequence[dict]) -> None:
        self._of += 1
        if len(there(pool)) == len(pool):
            self._rewards.append([each["reward"] for each in pool])
            self._lengths.append([len(each["output"]) for each in pool])

    def write(self, path: Path, seed: int) -> dict:
        """Write and return {"rows", "of", "curve"}: the curve, and of how many of the rows it is; beside it the
        picture."""
        points = best_of_n_curve(self._rewards, self._lengths, seed=seed)
        found = {"rows": len(self._rewards), "of": self._of, "curve": points}
        write_whole(path, [json.dumps(found, indent=1) + "\n"])
        if points:
            draw_curve(points, path.with_suffix(".png"))
        return found
