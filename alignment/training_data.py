"""The rows that train.py learns from, checked at the door, one shape after.

    sft           input, output | instruction, (input,) output | (system,) prompt, output | prompt, completion |
                  messages | conversations (ShareGPT) ; another column can stand for the output, as a pair's chosen in
                  any of the forms below
    reward,       prompt, chosen, rejected | input, chosen, rejected | chosen, rejected (two dialogues that part at the
    dpo, orpo     last assistant turn, as in HH-RLHF) | text, score (two such dialogues and their scores, as DSP has
                  them) | question, answer_0, answer_1, score_0, score_1 (webgpt_comparisons) ; prompt, chosen, rejected
                  as texts or as lists of messages, or a prompt of turns "prompter: ..." and "assistant: ..." in one
                  text (oasst1_pairwise_rlhf_reward); a system beside them

from any source that `records.read_rows` reads, and the forms of other_forms.py. Several sources are read one after the
other, or mixed by shares (`mixed`). Imports no torch.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

from alignment.command_line import UserError, nearest
from alignment.other_forms import history_of, in_turns, renamed, standard, turns_of
from alignment.records import is_number, read_rows
from alignment.templates import is_dialogue, messages, split_dialogue

OBJECTIVES = ("sft", "reward", "dpo", "orpo")
PROMPT_KEYS = ("instruction", "prompt", "input")
# Why a row can teach nothing, in the order in which it is told
PARTED, OWN_TURN = "dialogues part before the last turn", "prompt ends in the assistant's turn"
USERS, TIE, EMPTY, EQUAL = "replies are the user's", "equal scores", "empty response", "equal responses"
REASONS = (PARTED, OWN_TURN, USERS, TIE, EMPTY, EQUAL)


@dataclass(frozen=True)
class Example:
    """What a template takes for the prompt, and one response to it (sft) or two, the better first. `row` from 0.

    `fault` is the one of REASONS why there are no responses.
    """

    row: int
    prompt: dict
    responses: tuple[str, ...]
    fault: str = ""


def read_examples(
    source: str, objective: str, limit: int | None = None, output_key: str = "output", ties: str | None = None
) -> list[Example]:
    """The examples of a data set, in order; sft learns the column `output_key`. UserError names file, row and key.

    Of a pair with equal scores the second is the better with `ties` "second". What can teach nothing is kept: `usable`
    drops and counts it.
    """
    rows = read_rows(source)[:limit]
    if not fits(standard(rows[0]), objective, output_key):
        refuse_columns(source, rows, objective, output_key)
    return examples_of(source, rows, objective, output_key, ties)


def examples_of(
    source: str, rows: list[dict], objective: str, output_key: str = "output", ties: str | None = None
) -> list[Example]:
    rows = [standard(row) for row in rows]
    if objective == "sft":
        return [read_demonstration(source, number, row, output_key) for number, row in enumerate(rows)]
    return [read_comparison(source, number, row, ties) for number, row in enumerate(rows)]


def fits(row: dict, objective: str, output_key: str) -> bool:
    """Whether a row has the columns of an objective."""
    if objective != "sft":
        return any(columns <= set(row) for columns in ({"chosen", "rejected"}, *map(set, SCORED)))
    output = row.get(output_key)
    has_prompt = any(key in row for key in PROMPT_KEYS) or isinstance(output, list) or is_dialogue(output)
    return (output_key in row and has_prompt) or ("messages" in row and output_key == "output")


def works(source: str, rows: list[dict], objective: str, output_key: str = "output") -> bool:
    """Whether an objective could learn something of all these rows."""
    try:
        return bool(usable(examples_of(source, rows, objective, output_key))[0])
    except UserError:
        return False


def refuse_columns(source: str, rows: list[dict], objective: str, output_key: str) -> NoReturn:
    """Say what columns an objective needs, and of what would work with these rows what it is."""
    row = rows[0]
    scored = "".join(f"; or {' and '.join(columns)}" for columns in SCORED)
    needs = f"chosen and rejected, beside prompt or input or as whole dialogues{scored}"
    if objective == "sft":
        other = "messages" if output_key == "output" else "as a whole dialogue"
        meant = "" if output_key in {"output", *row} else nearest(output_key, row)
        needs = f"{output_key} beside input, instruction or prompt; or {other}{meant}"
    found = [other for other in OBJECTIVES if other != objective and works(source, rows, other)]
    hint = f"; train.py --objective {' or '.join(found)} would fit" if found else ""
    if objective == "sft" and works(source, rows, objective, "chosen"):
        hint += f"{', and' if hint else ';'} --output_key chosen learns the better responses"
    names = renamed(row) if output_key == "output" else {}
    called = [{names.get(key, key): value for key, value in each.items()} for each in rows]
    if names and works(source, called, objective):
        hint += f"; rename {', '.join(f'{name} to {ours}' for name, ours in names.items())}"
    kind = "demonstrations need" if objective == "sft" else "comparisons need"
    raise UserError(f"data {source} has {', '.join(row)}; {kind} {needs}{hint}")


def text_of(source: str, number: int, row: dict, key: str) -> str:
    value = row.get(key)
    if not isinstance(value, str):
        what = "is missing" if key not in row else f"is a {type(value).__name__}, not a text"
        raise UserError(f"data {source}, row {number}: {key} {what}")
    return value


def messages_of(source: str, number: int, value: Any, key: str) -> list[dict]:
    good = (
        isinstance(value, list)
        and value
        and all(
            isinstance(turn, dict) and isinstance(turn.get("content"), str) and isinstance(turn.get("role"), str)
            for turn in value
        )
    )
    if not good:
        told = "is no list of messages with role and content"
        raise UserError(f"data {source}, row {number}: {key} {told}")
    return value


def beside(row: dict, turns: list[dict], place: str) -> dict:
    """A prompt of messages, and the row's own system message. Raises UserError, which opens with `place`, where both
    hold one and they differ."""
    own, system = row.get("system"), parted(turns)[0]
    if not isinstance(own, str | None):
        raise UserError(f"{place}: system is a {type(own).__name__}, not a text")
    if not own or not system:
        return ({} if own is None else {"system": own}) | {"prompt": turns}
    if own != system[0]["content"]:
        raise UserError(f"{place} hold another system message than the row's own")
    return {"prompt": turns}


def prompt_of(source: str, number: int, row: dict) -> dict:
    """The part of a row that a template reads, its texts checked."""
    kept = {key: row[key] for key in ("system", *PROMPT_KEYS) if row.get(key) is not None}
    if isinstance(kept.get("prompt"), list):
        turns = messages_of(source, number, kept["prompt"], "prompt")
        return beside(row, turns, f"data {source}, row {number}: prompt")
    for key in kept:
        text_of(source, number, row, key)
    if not any(key in kept for key in PROMPT_KEYS):
        raise UserError(f"data {source}, row {number}: prompt, instruction or input is missing")
    if row.get("history"):
        asked = {key: text for key, text in kept.items() if key != "system"}
        turns = history_of(row["history"], f"data {source}, row {number}") + messages(asked)
        return {key: kept[key] for key in ("system",) if key in kept} | {"prompt": turns}
    return kept | ({"prompt": turns_of(kept["prompt"])} if in_turns(kept) else {})


def read_demonstration(source: str, number: int, row: dict, output_key: str) -> Example:
    if row.get("messages") is None or output_key != "output":
        return responses_of(source, number, row, (output_key,))
    turns = messages_of(source, number, row["messages"], "messages")
    if turns[-1]["role"] != "assistant" or len(turns) < 2:
        raise UserError(f"data {source}, row {number}: messages do not end in an assistant's turn after another")
    prompt = beside(row, turns[:-1], f"data {source}, row {number}: messages")
    return Example(number, prompt, (turns[-1]["content"],))


def read_comparison(source: str, number: int, row: dict, ties: str | None) -> Example:
    scored = next((read for columns, read in SCORED.items() if row.get(columns[0]) is not None), None)
    if row.get("chosen") is None and scored:
        prompt, texts, scores = scored(source, number, row)
        if scores[0] == scores[1] and ties != "second":
            return Example(number, prompt, (), TIE)
        better = 0 if scores[0] > scores[1] else 1
        row = prompt | {"chosen": texts[better], "rejected": texts[1 - better]}
    return responses_of(source, number, row, ("chosen", "rejected"))


def responses_of(source: str, number: int, row: dict, keys: tuple[str, ...]) -> Example:
    """What is under `keys`: responses to a prompt beside them, as texts or messages, or dialogues that end in them."""
    has_prompt = any(row.get(key) is not None for key in PROMPT_KEYS)
    if all(isinstance(row.get(key), list) for key in keys):
        sides = [messages_of(source, number, row[key], key) for key in keys]
        place, context = f"data {source}, row {number}: {' and '.join(keys)}", sides[0][:-1]
        if any(side[-1]["role"] != "assistant" for side in sides):
            raise UserError(f"{place} do not end in an assistant's turn")
        if any(side[:-1] != context for side in sides):
            raise UserError(f"{place} part before their last turn")
        if not has_prompt and not context:
            raise UserError(f"{place} hold a reply and no prompt")
        prompt = prompt_of(source, number, row) if has_prompt else beside(row, context, place)
        if has_prompt and context:
            prompt = in_context(prompt, context, place)
        return Example(number, prompt, tuple(side[-1]["content"] for side in sides))
    texts = [text_of(source, number, row, key) for key in keys]
    if has_prompt:
        prompt = prompt_of(source, number, row)
        if in_turns(row) and prompt["prompt"][-1]["role"] == "assistant":  # users' turns are ranked there, too
            return Example(number, prompt, (), USERS)
        return Example(number, prompt, tuple(texts))
    if not all(map(is_dialogue, texts)):
        are = "are no dialogues" if len(keys) > 1 else "is no dialogue"
        missing = f"prompt, instruction or input is missing, and {' and '.join(keys)} {are}"
        raise UserError(f"data {source}, row {number}: {missing}")
    prompts, responses = zip(*map(split_dialogue, texts), strict=True)
    system = {"system": text_of(source, number, row, "system")} if row.get("system") is not None else {}
    if len(set(prompts)) > 1:
        return Example(number, system | {"prompt": prompts[0]}, (), PARTED)
    return Example(number, system | {"prompt": prompts[0]}, responses)


def in_context(prompt: dict, context: list[dict], place: str) -> dict:
    """A prompt with the turns that stand before it in the replies' lists, of which it is the last or all. Raises
    UserError, which opens with `place`, where prompt or system message there are others than the row's own."""
    (system, asked), (told_system, told) = (parted(turns) for turns in (messages(prompt), context))
    last = [turns[-1]["content"].strip() if turns else None for turns in (asked, told)]
    if last[0] != last[1] or (len(asked) > 1 and asked != told):
        raise UserError(f"{place} hold another prompt than the row's own")
    if system and told_system and system != told_system:
        raise UserError(f"{place} hold another system message than the row's own")
    if len(told) == len(asked) and (system or not told_system):
        return prompt
    kept = {"system": prompt["system"]} if "system" in prompt and not told_system else {}
    return kept | {"prompt": told if kept else [*(told_system or system), *told]}


def parted(turns: list[dict]) -> tuple[list[dict], list[dict]]:
    """The system message that opens a conversation, if any, and the others."""
    opens = bool(turns) and turns[0]["role"] == "system"
    return turns[:opens], turns[opens:]


def dialogues_scored(source: str, number: int, row: dict) -> tuple[dict, list[str], list[float]]:
    """{"text": [a, b], "score": [1.0, 0.0]}: no prompt beside the dialogues, both, and their scores."""
    texts, scores = row["text"], row.get("score")
    good = isinstance(texts, list) and isinstance(scores, list) and len(texts) == len(scores) == 2
    if not good or not all(map(is_number, scores)):
        raise UserError(f"data {source}, row {number}: text and score are no two dialogues and two numbers")
    return {}, texts, scores


def answers_scored(source: str, number: int, row: dict) -> tuple[dict, list[str], list[float]]:
    """A row of webgpt_comparisons: the question, both answers, and their scores. What was quoted is not shown.

    The question is {"full_text": ...}, or a text, or under `question.full_text` in a flattened table.
    """
    question = row.get("question") or row.get("question.full_text")
    question = question.get("full_text") if isinstance(question, dict) else question
    scores = [row.get("score_0"), row.get("score_1")]
    if not isinstance(question, str) or not all(map(is_number, scores)):
        raise UserError(f"data {source}, row {number}: question, score_0 and score_1 are no text and two numbers")
    return {"prompt": question}, [text_of(source, number, row, key) for key in ("answer_0", "answer_1")], scores


# Pairs whose scores tell the better one: the columns that they are known by, and what reads them
SCORED = {("text", "score"): dialogues_scored, ("answer_0", "answer_1", "score_0", "score_1"): answers_scored}


# What is learned of it


def usable(examples: list[Example], *, own_turns: bool = True) -> tuple[list[Example], dict[str, list[int]]]:
    """The examples that can teach something, and the dropped rows' numbers by reason.

    Without `own_turns` prompts that end in the assistant's turn are dropped too (`Template.takes_own_turns`).
    """
    kept, dropped = [], {reason: [] for reason in REASONS}
    for example in examples:
        if reason := fault_of(example, own_turns):
            dropped[reason].append(example.row)
        else:
            kept.append(example)
    return kept, {reason: rows for reason, rows in dropped.items() if rows}


def fault_of(example: Example, own_turns: bool) -> str:
    """Why an example can teach nothing, or ""."""
    if example.fault:
        return example.fault
    if not own_turns and (messages(example.prompt) or [{}])[-1].get("role") == "assistant":
        return OWN_TURN
    if not all(response.strip() for response in example.responses):
        return EMPTY
    return EQUAL if len(set(example.responses)) < len(example.responses) else ""


def control(examples: list[Example], kind: str, seed: int) -> list[Example]:
    """The same pairs with the preference replaced: by `length` (characters, the longer one wins) or by a `random` coin.

    What a model learns from these is what it would seem to know without the preferences.
    """
    coin = random.Random(seed)
    chosen_first = {
        "length": lambda pair: (len(pair[0]), pair[0]) > (len(pair[1]), pair[1]),
        "random": lambda pair: coin.random() < 0.5,
    }[kind]
    return [
        example if chosen_first(example.responses) else replace(example, responses=example.responses[::-1])
        for example in examples
    ]


def report(dropped: dict[str, list[int]]) -> str:
    """`3 empty response (rows 4, 7, 9)`, at most eight numbers each."""
    parts = []
    for reason, rows in dropped.items():
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        parts.append(f"{len(rows):,} {reason} (row{'s' if len(rows) > 1 else ''} {shown})")
    return "; ".join(parts)


# Files and mixtures of them


@dataclass
class Part:
    """What a file gives to a set: how many rows were read, the examples of it that are learned, the dropped rows'
    numbers by reason, and of a mixture how many usable rows it does not take. Examples are numbered through all files
    of the set, of which this one begins at `start`; the numbers of `dropped` are the file's own."""

    source: str
    start: int
    rows: int
    examples: list[Example]
    dropped: dict[str, list[int]] = field(default_factory=dict)
    not_drawn: int = 0

    @property
    def kept(self) -> int:
        return self.rows - self.not_drawn - sum(map(len, self.dropped.values()))

    def place(self, row: int) -> str:
        """Where a row of the set stands, as errors name it."""
        return f"data {self.source}, row {row - self.start}"

    def drop_unusable(self, *, own_turns: bool) -> None:
        self.examples, dropped = usable(self.examples, own_turns=own_turns)
        self.drop(dropped)

    def drop(self, dropped: dict[str, list[int]]) -> None:
        """Note what is not learned. Raises UserError where nothing is left."""
        self.dropped |= {reason: [row - self.start for row in rows] for reason, rows in dropped.items() if rows}
        if self.rows and not self.kept:
            told = report(self.dropped)
            raise UserError(f"data {self.source}: all {self.rows - self.not_drawn:,} rows were dropped: {told}")

    def counts(self) -> dict:
        """For the run card."""
        dropped = {reason: len(rows) for reason, rows in self.dropped.items()}
        left = {"not drawn": self.not_drawn} if self.not_drawn else {}
        return {"rows": self.rows, "kept": self.kept, "dropped": dropped} | left

    def __str__(self) -> str:
        left = f", {self.not_drawn:,} not drawn" if self.not_drawn else ""
        told = f"; dropped {report(self.dropped)}" if self.dropped else ""
        return f"{self.rows:,} rows, {self.kept:,} kept{left}{told}"


def read_parts(sources: Sequence[str], objective: str, *, limit: int | None, **how: Any) -> list[Part]:
    """The examples of files one after the other, of the first `limit` rows of all. `how` is of `read_examples`."""
    parts: list[Part] = []
    for source in sources:
        start = sum(part.rows for part in parts)
        left = None if limit is None else limit - start
        found = [] if left == 0 else read_examples(source, objective, left, **how)
        numbered = [replace(example, row=start + example.row) for example in found] if start else found
        parts.append(Part(source, start, len(found), numbered))
    return parts


def check_shares(shares: Sequence[float], sources: Sequence[str]) -> None:
    """Raise UserError where these are no shares of these files."""
    told = " ".join(map(str, shares))
    if len(shares) != len(sources):
        raise UserError(f"--data_shares {told}: give one for each of {len(sources)} files of --data_path")
    if not math.isclose(sum(shares), 1, abs_tol=1e-3):
        raise UserError(f"--data_shares {told} sum to {sum(shares):g}, not to 1")


def mixed(parts: Sequence[Part], shares: Sequence[float], limit: int | None, seed: int) -> list[Part]:
    """Of usable examples the largest mixture of these shares in which none comes twice, of `limit` at most: int(share x
    size) of each part. Raises UserError where that is none.

    What is drawn of a part depends on the seed alone, and what a smaller mixture draws a larger one draws too.
    """
    size = min([len(part.examples) / share for part, share in zip(parts, shares, strict=True)] + [limit or math.inf])
    found = []
    for part, share in zip(parts, shares, strict=True):
        wanted = int(share * size + 1e-6)  # a product of floats may be a hair below what it stands for
        if not wanted:
            raise UserError(
                f"data {part.source} gives no row to a mixture of {int(size):,}, of which its share is {share}; give "
                "more rows, or other shares"
            )
        drawn = random.Random(seed).sample(part.examples, len(part.examples))[:wanted]
        found.append(replace(part, examples=drawn, not_drawn=len(part.examples) - wanted))
    return found


def counts(parts: Sequence[Part]) -> dict:
    """A set, for the run card: of all its files, and where it has several of each."""
    if len(parts) == 1:
        return parts[0].counts()
    each = {part.source: part.counts() for part in parts}
    dropped = sum((Counter(found["dropped"]) for found in each.values()), Counter())
    totals = {name: sum(found[name] for found in each.values()) for name in ("rows", "kept")}
    return totals | {"dropped": dict(dropped), "files": each}
