"""ALMoST, step 2: reward-guided self-play. A user and an assistant talk, and the reward model picks each answer.

    python self_play.py --model_name_or_path saved_models/SmolLM2-135M-Instruct --output_dir outputs/almost \\
        --prompt_file_path assets/Faithful_prompt.txt --reward_model outputs/reward-model

Reads prompts.txt in --output_dir, one dialogue a prompt, and writes beside it almost_train.json, a row of {"input",
"output"} for each answer, which train.py --objective sft learns; self_play.jsonl, a dialogue a line with all candidates
and their rewards; and the run card. A turn is a user's message and its answer, the best of --num_candidates by the
reward model among those that pass the filter of comparisons. A journal keeps every reply and reward.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from alignment import few_shot, records
from alignment.command_line import REPOSITORY, ArgumentParser, UserError, number, run, table
from alignment.engines import BACKENDS, add_engine_arguments, engine_from, models_read
from alignment.engines.scoring import Scorer, add_scorer_arguments, models_scored_by, scored, scorer_from
from alignment.filters import QUERY_RULES, RESPONSE_RULES, why_drop
from alignment.generation import Engine, Reply, Request, Sampling, generate, record_seed, refuse_failures
from alignment.intervals import bootstrap, with_interval
from alignment.journal import Journal
from alignment.ranking import WAYS, choose
from alignment.rouge import Pool
from alignment.run_cards import claim
from alignment.templates import CHOICES, Template, almost_text, data_from, rendering_from

USER_PROMPT = REPOSITORY / "assets" / "User_prompt.txt"
USER_TOKENS = 64  # of a user's message, as of a prompt in pg
USER_STOP = (*few_shot.REPLY_STOP, "\n\n")
WHOLE = "max_turns reached"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    add, positive = parser.add_argument, number(int, 1)
    add("--output_dir", type=Path, required=True, help="folder of prompts.txt and of all that this writes")
    add("--model_name_or_path", metavar="MODEL", required=True, help="the assistant: a folder or hub name")
    add(
        "--prompt_file_path", type=Path, metavar="FILE", help="the assistant's demonstrations, as of rg; a base model's"
    )
    shown = "the assistant is a policy that was trained with this template, and sees no demonstrations"
    add("--template", choices=CHOICES, help=shown)
    add("--user_model", metavar="MODEL", help="who plays the user (default: the assistant's model)")
    add("--user_backend", choices=BACKENDS, help="the user model's --backend (default: the assistant's)")
    shown = "dialogues that show the user's part (default: assets/User_prompt.txt)"
    add("--user_prompt_file_path", type=Path, metavar="FILE", default=USER_PROMPT, help=shown)
    add("--n_shot", type=positive, default=3, help="dialogues shown to each (default: 3, the paper's, from memory)")
    add(
        "--num_candidates",
        type=number(int, 1, 100_000),
        default=4,
        help="answers to choose from (default: 4, as the paper, from memory)",
    )
    add(
        "--max_turns",
        type=positive,
        default=2,
        help="of a user and an answer each (default: 2, the paper's, from memory)",
    )
    add(
        "--choose",
        choices=WAYS,
        default="reward",
        help="which answer is taken; the others are controls (default: reward)",
    )
    add("--temperature", type=number(float, 0), default=1.0, help="of both (default: 1.0, as rg)")
    add("--top_p", type=number(float, 0, 1, above=True), default=0.9, help="of both (default: 0.9, as rg)")
    shown = "of an answer (default: 384; 768 where the demonstrations' name has Faithful in it, as rg)"
    add("--max_new_tokens", type=positive, help=shown)
    add("--batch_size", type=positive, default=256, help="hf: sequences decoded together at most (default: 256)")
    add("--seed", type=int, default=42, help="each message's own seed derives from it (default: 42)")
    add("--limit", type=positive, help="only the first so many prompts (default: all)")
    add_scorer_arguments(parser)
    add_engine_arguments(parser)
    args = parser.parse_args(argv)
    if not args.reward_model and args.choose == "reward" and args.num_candidates > 1:
        parser.error("--reward_model is missing: it chooses the answers; or give --choose random or longest")
    if bool(args.prompt_file_path) == bool(args.template):
        parser.error("give --prompt_file_path for a model that is shown demonstrations, or --template for a policy")
    if args.num_candidates > 1 and args.temperature == 0:
        parser.error(f"at --temperature 0 all {args.num_candidates} candidates are the same")
    return args


@dataclass
class Dialogue:
    """What was said so far, the user's message first, and the candidates behind each answer."""

    said: list[str]
    turns: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""  # why no turn follows

    @property
    def messages(self) -> list[dict[str, str]]:
        roles = ("user", "assistant")
        return [{"role": roles[place % 2], "content": text} for place, text in enumerate(self.said)]

    @property
    def text(self) -> str:
        """The dialogue so far in the `almost` template, open for the next answer."""
        return almost_text({"prompt": self.messages})


class Speaker:
    """An engine in one role: from dialogues to the requests for their next messages."""

    def __init__(self, engine: Engine, sampling: Sampling, asked: Callable[[Sequence[Dialogue]], list]):
        self.engine, self.sampling, self.asked = engine, sampling, asked

    def speak(self, dialogues: Sequence[Dialogue], seeds: Sequence[int], journal: Journal, label: str) -> list[Reply]:
        """A reply for each. Raises UserError where some failed that another run may bring: what came is journaled."""
        requests = [Request(prompt, seed) for prompt, seed in zip(self.asked(dialogues), seeds, strict=True)]
        replies = generate(self.engine, requests, self.sampling, journal=journal, label=label)
        refuse_failures(replies)
        return replies


def main(args: argparse.Namespace) -> None:
    prompts_file = records.prompts_file(args.output_dir)
    prompts = records.read_prompts(prompts_file)[: args.limit]
    assistant = assistant_from(args)
    theirs = user_arguments(args)
    user = user_from(args, theirs, assistant.engine)
    scorer = scorer_from(args) if args.reward_model or args.reward_api_base else None
    read = {
        "inputs": [prompts_file, args.user_prompt_file_path, *filter(None, [args.prompt_file_path])],
        "models": dict.fromkeys([*models_read(args), *models_read(theirs), *models_scored_by(args)]),
        "cache_dir": args.cache_dir,
    }
    output, told = args.output_dir / "almost_train.json", args.output_dir / "self_play.jsonl"
    with claim(output, args, script=__file__, **read) as held:
        if held.is_done() and told.exists():
            return print(held.already())
        held.begin()
        dialogues = [Dialogue([prompt]) for prompt in prompts]
        with Journal(output) as journal:
            for turn in range(args.max_turns):
                if turn:
                    ask(user, dialogues, turn, args, journal)
                answer(assistant, scorer, dialogues, turn, args, journal)
        rows = [
            {"input": turn["input"], "output": turn["candidates"][turn["chosen"]]["output"]}
            for dialogue in dialogues
            for turn in dialogue.turns
            if turn["chosen"] is not None
        ]
        ends = Counter(dialogue.ended or WHOLE for dialogue in dialogues)
        if not rows:
            raise UserError(f"no answer came out of {len(prompts)} dialogues ({describe(ends)}); try another model")
        records.write_whole(told, map(line_of, dialogues))
        records.write_whole(output, records.json_list(rows))
        summary = summarise(dialogues, args.seed)
        held.finish({"dialogues": len(dialogues), "ended": dict(ends), "rows": len(rows), "summary": summary})
    if summary:
        print(
            table([("of the answers", "mean [95% interval]"), *((name, shown) for name, (_, shown) in summary.items())])
        )
    print(f"{len(dialogues):,} dialogues ({describe(ends)}) -> {len(rows):,} answers: {output}")


# Who speaks


def assistant_from(args: argparse.Namespace) -> Speaker:
    """The assistant: a model after --n_shot demonstrations, or with --template a policy as it was trained."""
    tokens, drawn = args.max_new_tokens or 384, {"temperature": args.temperature, "top_p": args.top_p}
    if args.template:
        rendering = rendering_from(args, None)
        ends = (rendering.end_id,) if rendering.end else ()
        sampling = Sampling(tokens, **drawn, stop=rendering.stop, stop_ids=ends)
        return Speaker(
            engine_from(args), sampling, lambda some: rendering.asked([{"prompt": each.messages} for each in some])
        )
    shown = few_shot.Demonstrations.read(args.prompt_file_path, args.n_shot)
    tokens = args.max_new_tokens or (768 if "Faithful" in shown.name else 384)
    sampling = Sampling(tokens, **drawn, stop=few_shot.REPLY_STOP)
    return Speaker(engine_from(args), sampling, partial(after_demonstrations, shown, args.n_shot, data_from(args)))


def user_arguments(args: argparse.Namespace) -> argparse.Namespace:
    """The engine's flags as they are for the user's model."""
    model, backend = args.user_model or args.model_name_or_path, args.user_backend or args.backend
    return argparse.Namespace(**vars(args) | {"model_name_or_path": model, "backend": backend})


def user_from(args: argparse.Namespace, theirs: argparse.Namespace, engine: Engine) -> Speaker:
    """The user's part, by the assistant's engine where model and backend are the same."""
    shown = few_shot.Demonstrations.read(args.user_prompt_file_path, args.n_shot)
    is_same = (theirs.model_name_or_path, theirs.backend) == (args.model_name_or_path, args.backend)
    sampling = Sampling(USER_TOKENS, args.temperature, args.top_p, USER_STOP)
    engine, data = engine if is_same else engine_from(theirs), data_from(theirs)
    return Speaker(engine, sampling, partial(after_demonstrations, shown, args.n_shot, data))


def after_demonstrations(
    shown: few_shot.Demonstrations, n_shot: int, data: Template, dialogues: Sequence[Dialogue]
) -> list[str | list[int]]:
    """What an engine is asked to continue: dialogues after the first demonstrations."""
    return data.asked([{"prompt": shown.format_turns(each.said, n_shot)} for each in dialogues])


# A turn


def ask(user: Speaker, dialogues: Sequence[Dialogue], turn: int, args: argparse.Namespace, journal: Journal) -> None:
    """The user's next message in every dialogue that goes on. One that is no new question ends its dialogue."""
    going = [at for at, dialogue in enumerate(dialogues) if not dialogue.ended]
    seeds = [record_seed(args.seed, "user", at, turn) for at in going]
    replies = user.speak([dialogues[at] for at in going], seeds, journal, f"user, turn {turn + 1}")
    for at, reply in zip(going, replies, strict=True):
        dialogue = dialogues[at]
        message = few_shot.parse_reply(reply.text or "").strip()
        if reason := why_no_question(message, reply, dialogue.said):
            dialogue.ended = f"user: {reason}"
        else:
            dialogue.said.append(message)


def why_no_question(message: str, reply: Reply, said: Sequence[str]) -> str | None:
    """Why a user's message ends the dialogue (none came, it is degenerate, it says what was said), or None."""
    if reply.text is None:
        return reply.finish
    if reply.finish == "length":
        return "cut off"
    if reason := why_drop(message, QUERY_RULES):
        return reason
    if message.casefold() in (each.casefold() for each in said):
        return "repeated"
    return "near duplicate" if Pool(said).is_duplicate(message) else None


def answer(
    assistant: Speaker,
    scorer: Scorer | None,
    dialogues: Sequence[Dialogue],
    turn: int,
    args: argparse.Namespace,
    journal: Journal,
) -> None:
    """The assistant's answer in every dialogue that goes on: of its candidates that pass the filter the one that
    --choose names. Where none passes, the dialogue ends before this turn."""
    going = [at for at, dialogue in enumerate(dialogues) if not dialogue.ended]
    asked = [(at, candidate) for at in going for candidate in range(args.num_candidates)]
    seeds = [record_seed(args.seed, "assistant", at, turn, candidate) for at, candidate in asked]
    replies = iter(assistant.speak([dialogues[at] for at, _ in asked], seeds, journal, f"assistant, turn {turn + 1}"))
    for at in going:
        dialogue = dialogues[at]
        candidates = [candidate_of(next(replies)) for _ in range(args.num_candidates)]
        dialogue.turns.append(
            {"user": dialogue.said[-1], "input": dialogue.text, "candidates": candidates, "chosen": None}
        )
    current = {at: dialogues[at].turns[-1] for at in going}
    passing = [(turn, each) for turn in current.values() for each in turn["candidates"] if each["dropped"] is None]
    if scorer:
        rows, texts = [{"prompt": turn["input"]} for turn, _ in passing], [each["output"] for _, each in passing]
        rewards = scored(scorer, rows, texts, journal=journal, label=f"rewards, turn {turn + 1}")
        for (_, each), reward in zip(passing, rewards, strict=True):
            each["reward"] = reward
    for at, found in current.items():
        places = [place for place, each in enumerate(found["candidates"]) if each["dropped"] is None]
        if not places:
            dialogues[at].ended = "assistant: no candidate passes the filter"
            continue
        kept = [found["candidates"][place] for place in places]
        rewards, lengths = [each["reward"] for each in kept], [len(each["output"]) for each in kept]
        taken = choose(args.choose, rewards, lengths, record_seed(args.seed, "choose", at, turn))
        found["chosen"] = places[taken]
        dialogues[at].said.append(kept[taken]["output"])


def candidate_of(reply: Reply) -> dict[str, Any]:
    """A candidate as self_play.jsonl has it: `dropped` is why it may not be chosen, or None."""
    text = None if reply.text is None else few_shot.parse_reply(reply.text)
    dropped = reply.finish if text is None else why_drop(text, RESPONSE_RULES)
    return {"output": text, "finish": reply.finish, "dropped": dropped, "reward": None}


# What came of it


def line_of(dialogue: Dialogue) -> str:
    row = {"turns": dialogue.turns, "ended": dialogue.ended or WHOLE}
    return json.dumps(row, ensure_ascii=False) + "\n"


def summarise(dialogues: Sequence[Dialogue], seed: int) -> dict[str, tuple[float, str]]:
    """Of the turns with an answer: rewards, lengths, and how often the longest was the choice. Each a mean over turns
    with its interval, for which whole dialogues are drawn again."""
    figures = [[figures_of(turn) for turn in each.turns if turn["chosen"] is not None] for each in dialogues]
    figures = [turns for turns in figures if turns]
    found = {}
    for name in figures[0][0] if figures else ():
        rows = np.array([[sum(turn[name] for turn in turns), len(turns)] for turns in figures])
        value, interval = mean_of(rows), bootstrap(rows, mean_of, seed=seed)
        found[name] = (value, with_interval(value, interval))
    return found


def mean_of(rows: np.ndarray) -> float:
    """The mean over turns of rows (dialogues, 2): a dialogue's sum and its number of turns."""
    return float(rows[:, 0].sum() / rows[:, 1].sum())


def figures_of(turn: dict[str, Any]) -> dict[str, float]:
    """What one turn's candidates say, those that passed the filter. A single candidate's gain is 0."""
    kept = [each for each in turn["candidates"] if each["dropped"] is None]
    chosen, lengths = turn["candidates"][turn["chosen"]], [len(each["output"]) for each in kept]
    found = {}
    if chosen["reward"] is not None:
        rewards = [each["reward"] for each in kept]
        mean = sum(rewards) / len(rewards)
        found = {"reward, best": max(rewards), "reward, mean": mean, "reward, worst": min(rewards)}
        found |= {"reward, chosen": chosen["reward"], "gain over one sample": chosen["reward"] - mean}
    found |= {"characters, chosen": len(chosen["output"]), "characters, mean": sum(lengths) / len(lengths)}
    return found | {"share where the longest is chosen": float(len(chosen["output"]) == max(lengths))}


def describe(counts: Counter) -> str:
    return ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())


if __name__ == "__main__":
    run(parse_args, main)
