r"""Text -> prompt, and reply -> text. Format and parse are neighbours, and stop strings stand beside the template.

ALMoST's formats (section 2 of the paper; `docs/almost.md` numbers the details):

    seed file           an instruction line, then one query a line
    query prompt        {instruction}\n\n + k x "Query: {query}\n" + "Query:"
    demonstration file  {header} + k x "\n\n-----\n\nHuman:  ...\n\nAssistant:  ..." (several turns each)
    response prompt     header and the first k demonstrations, separator, "\n\nHuman:  {prompt}\n\nAssistant: "
    user prompt         the same of User_prompt.txt, after a dialogue of whole turns, with "\n\nHuman: " at its end
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alignment.command_line import UserError
from alignment.records import read_text

SEPARATOR = "\n\n-----"
SPEAKERS = ("Human", "Assistant")


@dataclass(frozen=True)
class Seeds:
    """The seed file of prompt generation: an instruction and the queries to start from."""

    instruction: str
    queries: list[str]

    @classmethod
    def read(cls, path: Path, n_shot: int) -> Seeds:
        """Raises UserError where the file has no instruction line or fewer queries than shots."""
        lines = [line.strip() for line in read_text(path, "seed file").split("\n") if line.strip()]
        if not lines[0].startswith("###"):
            raise UserError(f"seed file {path}, line 1 is no instruction: '### Instruction: ...' is expected")
        if len(lines) - 1 < n_shot:
            raise UserError(f"seed file {path} has {len(lines) - 1} prompts, fewer than the {n_shot} shots of --n_shot")
        return cls(lines[0], lines[1:])


def format_query_prompt(instruction: str, shots: list[str]) -> str:
    """The few-shot text whose continuation is a new query."""
    return f"{instruction}\n\n" + "".join(f"Query: {shot}\n" for shot in shots) + "Query:"


QUERY_STOP = ("\n",)


def parse_query(reply: str) -> str:
    """The query a reply holds, or "". The prompt ends in `Query:`, so the reply itself opens with it (A1)."""
    return re.split(r"query:", reply.split("\n")[0], flags=re.IGNORECASE)[0].strip()


def parse_query_as_released(reply: str) -> str:
    """The released code's reading: the first line that starts with `Query:`, blanks aside, so the second query or none
    (A1). Each `Query:` goes, and what follows another spelling of it, or a [SEP]. Before such a cut only blanks and
    newlines go, so that a tab there makes the query one that is cut off."""
    line = next((line for line in reply.split("\n") if line.strip().startswith("Query:")), "")
    return re.split(r"(?i:query\s?:)|\[SEP\]", line.replace("Query:", "").strip())[0].strip("\n ")


@dataclass(frozen=True)
class Demonstrations:
    """A header and example dialogues, which a base model continues as the assistant they show."""

    name: str  # HHH, Faithful: the file's name without _prompt
    header: str
    dialogues: list[str]

    @classmethod
    def read(cls, path: Path, n_shot: int) -> Demonstrations:
        """Raises UserError where the file has no dialogue, or fewer than shots (A8)."""
        header, *dialogues = read_text(path, "prompt file").rstrip().split(SEPARATOR)
        dialogues = [dialogue for dialogue in dialogues if dialogue.strip()]
        for number, dialogue in enumerate(dialogues, 1):
            if "Human:" not in dialogue or "Assistant:" not in dialogue:
                raise UserError(f"prompt file {path}, dialogue {number} lacks a 'Human:' or 'Assistant:' turn")
        if not dialogues:
            raise UserError(f"prompt file {path} has no dialogues: none follows a '-----' line")
        if n_shot > len(dialogues):
            raise UserError(f"prompt file {path} has {len(dialogues)} dialogues, fewer than the {n_shot} of --n_shot")
        return cls(path.stem.removesuffix("_prompt"), header, dialogues)

    def format_prompt(self, prompt: str, n_shot: int, *, legacy: bool = False) -> str:
        """The text whose continuation is the assistant's reply to `prompt`, after the first `n_shot` dialogues.

        The turn is spaced as the file's own turns are. Their last space is left to the reply's first token, where
        tokenizers put it. `legacy` is the released `Human: {prompt}` under two-space demonstrations (A7).
        """
        if legacy:
            return f"{self._shown(n_shot)}\n\nHuman: {prompt}\n\nAssistant: "
        return self.format_turns([prompt], n_shot)

    def format_turns(self, turns: Sequence[str], n_shot: int) -> str:
        """The same after a dialogue of several turns, Human's first: the text that whose turn is next continues."""
        spaces = re.search(r"Human:( *)", self.dialogues[0])[1]
        told = "".join(f"\n\n{SPEAKERS[place % 2]}:{spaces}{said}" for place, said in enumerate(turns))
        return f"{self._shown(n_shot)}{told}\n\n{SPEAKERS[len(turns) % 2]}:{spaces[:-1]}"

    def _shown(self, n_shot: int) -> str:
        return SEPARATOR.join([self.header, *self.dialogues[:n_shot]]) + SEPARATOR


REPLY_STOP = ("Human:", "Assistant:", SEPARATOR)


def parse_reply(text: str) -> str:
    """The assistant's turn alone. Generating with REPLY_STOP and cutting afterwards give the same text (A5).

    Of its ends only blanks and newlines go, as released, so that the filter sees a tab or a no-break space there.
    """
    text = text.split(SEPARATOR)[0]
    return text.split("Assistant:")[0].split("Human:")[0].strip("\n ")
