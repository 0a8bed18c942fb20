"""What reinforcement learning is after: reward models, functions and judges' grades, several of them with weights.

    rewards = Rewards(["outputs/reward-model", "brief.py:short=0.1", "judge:rubric"], judge=engine, folder=output_dir)
    scores = rewards.score([{"prompt": "How do I boil an egg?"}], ["Eight minutes in boiling water."])

    PATH[=weight]               a reward model of train.py, a folder or hub name; it is given text, as its tokenizer may
                                be another than the policy's
    FILE.py:FUNCTION[=weight]   function(rows, responses) -> a list of numbers, None for what it cannot score; the rows
                                are those of the data, dicts with all their columns
    judge:FORM[=weight]         grades of any engine: rubric, by the row's own `rubrics` or assets/judge/rubrics.json;
                                annotate or ai_judge, 1 for a satisfactory response and 0 for a faulty one

The total is the weighted sum, in which a reward model's score is normalised by the mean and deviation that training
left in its config, or else by those of all scores so far, and functions and judges count as they are. A response that
one of them cannot score has no total: it is left out and counted, never given 0. Imports torch only where a model is
asked.
"""

from __future__ import annotations

import math
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from alignment.command_line import UserError
from alignment.engines import BACKENDS, engine_from, models_read
from alignment.generation import Engine
from alignment.judging.criteria import rubrics_of
from alignment.records import is_number
from alignment.templates import Template
from alignment.training.reward_judges import JudgeReward
from alignment.training.reward_specs import Spec, checked, load_function, parse_rewards, told

if TYPE_CHECKING:
    from torch import nn

WIDEST = 3  # deviations from the mean that stand for the range of a reward model's training where none is known


def add_reward_arguments(parser: ArgumentParser) -> None:
    """--reward, and what says who judges."""
    group = parser.add_argument_group("reward")
    shown = (
        "a reward model, FILE.py:FUNCTION or judge:rubric, each with =WEIGHT after it (default: 1); several are added"
    )
    group.add_argument("--reward", nargs="+", required=True, metavar="REWARD", help=shown)
    group.add_argument(
        "--judge_model", metavar="JUDGE", help="judge: folder, hub or served name of the model that grades"
    )
    shown = "judge: what runs it (default: openai, a server, as this process's memory is the training's)"
    group.add_argument("--judge_backend", choices=BACKENDS, default="openai", help=shown)
    shown = "judge: the server's address, http://host:port/v1; key from OPENAI_API_KEY"
    group.add_argument("--judge_api_base", help=shown)


def judge_from(args: Namespace) -> Engine | None:
    """The engine that the --judge flags name, or None where no judge is asked for."""
    asked = [spec.text for spec in parse_rewards(args.reward) if spec.kind == "judge"]
    if not asked:
        return None
    if not args.judge_model:
        raise UserError(f"--reward {asked[0]} needs --judge_model")
    if args.judge_backend == "openai" and not args.judge_api_base:
        raise UserError(f"--reward {asked[0]} needs --judge_api_base, a server's address, or another --judge_backend")
    return engine_from(judge_arguments(args))


def judge_arguments(args: Namespace) -> Namespace:
    """The flags of an engine that runs the judge; what is not among them has its default."""
    return Namespace(
        model_name_or_path=args.judge_model,
        backend=args.judge_backend,
        use_hf=False,
        api_base=args.judge_api_base,
        cache_dir=args.cache_dir,
        batch_size=64,
    )


def read_by(args: Namespace) -> dict[str, list[str]]:
    """The files and models that the rewards are made of, for the run card: {"inputs", "models"}."""
    specs = parse_rewards(args.reward)
    models = [spec.place for spec in specs if spec.kind == "model"]
    if any(spec.kind == "judge" for spec in specs) and args.judge_model:
        models += models_read(judge_arguments(args))
    return {"inputs": [spec.place for spec in specs if spec.kind == "function"], "models": models}


# Rewards


class Score(NamedTuple):
    """Of one response: `parts` by name, as their makers gave them, and the weighted sum of what they are normalised to;
    None where it cannot be scored."""

    total: float | None
    parts: dict[str, float | None]


class Rewards:
    """All that --reward names, as one. The first reward model is `model`, None where there is none, with its `template`
    and `model_name`; `ranges` is (low, high) of the scores that it gave in training, None where that is not known."""

    def __init__(
        self,
        specs: Sequence[str],
        *,
        cache_dir: str | Path | None = None,
        device: Any = None,
        judge: Engine | None = None,
        folder: Path | None = None,
    ):
        """`judge` answers judge:FORM, and its journal goes into `folder`. Models are loaded last, onto `device`, by
        default the first GPU. Raises UserError for what cannot be used."""
        self.specs = parse_rewards(specs)
        self._functions = {spec.name: load_function(spec) for spec in self.specs if spec.kind == "function"}
        self._judges = {
            spec.name: JudgeReward(spec.name, spec.place, judge, folder) for spec in self.specs if spec.kind == "judge"
        }
        self._models = load_models([spec for spec in self.specs if spec.kind == "model"], cache_dir, device)
        self.running = {name: Running() for name, (model, _) in self._models.items() if moments(model.config) is None}
        self.unscored: Counter[str] = Counter()  # responses so far, by who could not score them and why
        self.model_name: str | None = next(iter(self._models), None)
        self.model: nn.Module | None = self._models[self.model_name][0] if self.model_name else None
        self.template: Template | None = self._models[self.model_name][1] if self.model_name else None
        self.ranges = range_of(self.model.config) if self.model is not None else None

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.specs]

    @property
    def normalises(self) -> str:
        """How reward models' scores are normalised: by their "config", by a "running" mean, or "none" as there is no
        reward model. One running is enough to say so."""
        return "running" if self.running else "config" if self._models else "none"

    def check_rows(self, rows: Sequence[dict]) -> None:
        """Raise UserError for a row that could not be judged; call it with all rows before any work."""
        if any(spec.place == "rubric" for spec in self.specs):
            for number, row in enumerate(rows):
                rubrics_of(row, f"data, row {number}")

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[Score]:
        """The rewards of each response to the row of its place, which has a form that templates.py takes. Texts are as
        data has them: without the blank that a template puts before a response.

        Under torchrun all ranks call it together, once a step and each with its own rows, maybe none: what is running
        is of all ranks' scores, those of this call included.
        """
        assert len(rows) == len(responses), "a response to each row"
        parts = {spec.name: self._asked(spec, rows, responses) if rows else [] for spec in self.specs}
        for name, running in self.running.items():
            running.add(of_all_ranks(parts[name]))
        counted = {spec.name: self._normalised(spec.name, parts[spec.name]) for spec in self.specs}
        found = []
        for place in range(len(rows)):
            values = [(spec.weight, counted[spec.name][place]) for spec in self.specs]
            unscored = any(value is None for _, value in values)
            total = None if unscored else math.fsum(weight * value for weight, value in values)
            found.append(Score(total, {name: values[place] for name, values in parts.items()}))
        return found

    def outside(self, scores: Iterable[Score]) -> float | None:
        """The share of scores outside `ranges`, None where there is no range: the reward model never saw their like."""
        values = [value for score in scores if (value := score.parts.get(self.model_name)) is not None]
        if self.ranges is None or not values:
            return None
        low, high = self.ranges
        return sum(not low <= value <= high for value in values) / len(values)

    def state_dict(self) -> dict[str, tuple[int, float, float]]:
        """The running statistics, for exact resumption."""
        return {name: astuple(running) for name, running in self.running.items()}

    def load_state_dict(self, state: dict[str, Sequence[float]]) -> None:
        assert set(state) == set(self.running), "the state is of other rewards"
        self.running = {name: Running(*values) for name, values in state.items()}

    def _normalised(self, name: str, values: list[float | None]) -> list[float | None]:
        if name not in self._models:
            return values
        mean, std = moments(self._models[name][0].config) or self.running[name].moments
        return [None if value is None else (value - mean) / std for value in values]

    def _asked(self, spec: Spec, rows: Sequence[dict], responses: Sequence[str]) -> list[float | None]:
        """One reward's values, as it gives them."""
        if spec.kind == "function":
            return self._called(spec, rows, responses)
        if spec.kind == "judge":
            values, reasons = self._judges[spec.name].score(rows, responses)
            self.unscored.update(f"{spec.name}: {reason}" for reason in reasons if reason)
            return values
        from alignment.training.reward_model import score

        model, template = self._models[spec.name]
        longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        trained = getattr(model.config, "reward_max_length", None)
        values = score(model, template, rows, responses, max_length=trained or longest)
        for number, value in enumerate(values):
            if not math.isfinite(value):
                raise UserError(
                    f"reward model {spec.place} gives {value} for response {number} of a step; is it whole?"
                )
        return values

    def _called(self, spec: Spec, rows: Sequence[dict], responses: Sequence[str]) -> list[float | None]:
        try:
            found = self._functions[spec.name](list(rows), list(responses))
            found = found.tolist() if hasattr(found, "tolist") else found  # an array or a tensor
            found = list(found) if hasattr(found, "__iter__") else found
        except Exception as error:  # the user's own code, which may raise anything
            raise UserError(f"reward function {spec.place}:{spec.function} {told(error, spec.place)}") from error
        values = checked(found, len(rows), f"reward function {spec.place}:{spec.function}")
        self.unscored.update(f"{spec.name}: None" for value in values if value is None)
        return values


# Reward models


def load_models(
    specs: Sequence[Spec], cache_dir: str | Path | None, device: Any
) -> dict[str, tuple[nn.Module, Template]]:
    """{name: (model, template)}, all of them checked before the first is loaded."""
    if not specs:
        return {}
    from alignment.training import reward_model

    for spec in specs:
        reward_model.check(spec.place, cache_dir)
    return {spec.name: reward_model.load(spec.place, device=device, cache_dir=cache_dir) for spec in specs}


def moments(config: Any) -> tuple[float, float] | None:
    """(mean, deviation) that training left in a reward model's config (--normalize_reward)."""
    mean, std = getattr(config, "reward_mean", None), getattr(config, "reward_std", None)
    return (mean, std) if is_number(mean) and is_number(std) and std > 0 else None


def range_of(config: Any) -> tuple[float, float] | None:
    """(low, high) of the rewards in training by a reward model's config, else three deviations around their mean."""
    low, high = getattr(config, "reward_min", None), getattr(config, "reward_max", None)
    if is_number(low) and is_number(high):
        return low, high
    if found := moments(config):
        mean, std = found
        return mean - WIDEST * std, mean + WIDEST * std
    return None


@dataclass
class Running:
    """Mean and sum of squared deviations of all values so far, a batch at a time (Welford 1962; Chan et al. 1983). What
    a batch adds doesn't depend on its order, which several processes may change."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def add(self, values: Sequence[float]) -> None:
        if not values:
            return
        mean = math.fsum(values) / len(values)
        squares = math.fsum((value - mean) ** 2 for value in values)
        count, gap = self.count + len(values), mean - self.mean
        self.squares += squares + gap * gap * self.count * len(values) / count
        self.mean += gap * len(values) / count
        self.count = count

    @property
    def moments(self) -> tuple[float, float]:
        """(mean, deviation), the latter never 0: equal values are rounding apart, and normalise to nearly 0."""
        return self.mean, math.sqrt(self.squares / max(1, self.count - 1)) + 1e-8


def of_all_ranks(values: list[float]) -> list[float]:
    """The values of all processes that torchrun started, or of the only one."""
    import torch.distributed as distributed

    if not distributed.is_available() or not distributed.is_initialized() or distributed.get_world_size() == 1:
        return values
    found: list[list[float]] = [[] for _ in range(distributed.get_world_size())]
    distributed.all_gather_object(found, values)
    return [value for each in found for value in each]
