"""Rows as other tools and collections write them -> rows as training_data.py reads them.

    prompt, completion            TRL; texts, or both lists of messages
    conversations                 ShareGPT: [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}, ...];
                                  of pairs (LLaMA-Factory) the turns before
    chosen, rejected              a turn each that is no list
    history                       LLaMA-Factory: [[what the user said, what the assistant replied], ...] before a prompt
    prompt "prompter: ..."        oasst1_pairwise_rlhf_reward: turns in one text

Nothing is checked here, but for a history: what is in no such form stays as it is, and its reader says so.
"""

from __future__ import annotations

import re
from typing import Any

from alignment.command_line import UserError

SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}  # others are called as messages call them
ROLE = re.compile(r"(?:^|\n|(?<=\S))(prompter|assistant): ?")  # of oasst1, whose turns a line end parts, or nothing
# What other tools call a column that is read under another name
RENAMED = {
    **dict.fromkeys(("question", "query", "user_prompt", "user"), "prompt"),
    **dict.fromkeys(("response", "answer", "target", "assistant"), "output"),
    **dict.fromkeys(("preferred", "chosen_response"), "chosen"),
    **dict.fromkeys(("dispreferred", "rejected_response"), "rejected"),
}


def standard(row: dict) -> dict:
    """A row with what it says in another form under our names."""
    if row.get("completion") is not None and row.get("output") is None:
        row = row | {"output": row["completion"]}
    sides = {side: [in_message(row[side])] for side in ("chosen", "rejected") if isinstance(row.get(side), dict)}
    if row.get("conversations") is None:
        return row | sides
    key = "prompt" if "chosen" in row else "messages"
    own = {name: value for name, value in row.items() if value is not None}
    return {key: in_messages(row["conversations"])} | own | sides


def in_messages(turns: Any) -> Any:
    """Turns of ShareGPT as messages."""
    return [in_message(turn) for turn in turns] if isinstance(turns, list) else turns


def in_message(turn: Any) -> Any:
    if not isinstance(turn, dict) or not isinstance(who := turn.get("from"), str) or "value" not in turn:
        return turn
    return {"role": SPEAKERS.get(who, who), "content": turn["value"]}


def renamed(row: dict) -> dict[str, str]:
    """Which columns of a row would have to be called what."""
    found: dict[str, str] = {}
    for name in row:
        if (ours := RENAMED.get(name)) and ours not in row and ours not in found.values():
            found[name] = ours
    return found


def history_of(history: Any, place: str) -> list[dict]:
    """What was said before, as messages. Raises UserError, which opens with `place`, for no list of pairs of texts."""
    good = isinstance(history, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair) for pair in history
    )
    if not good:
        raise UserError(f"{place}: history is no list of [question, reply]")
    return [
        {"role": role, "content": text}
        for pair in history
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def in_turns(row: dict) -> bool:
    """Whether a row's prompt is a text of oasst1."""
    return isinstance(row.get("prompt"), str) and row["prompt"].startswith("prompter:")


def turns_of(text: str) -> list[dict]:
    """The messages of a text of oasst1: "prompter: ...", "assistant: ..." by turns. A role that comes twice running is
    what somebody wrote."""
    roles = {"prompter": "user", "assistant": "assistant"}
    marks: list[re.Match] = []
    for mark in ROLE.finditer(text):
        if not marks or mark[1] != marks[-1][1]:
            marks.append(mark)
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    said = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    return [{"role": roles[mark[1]], "content": each} for mark, each in zip(marks, said, strict=True)]
