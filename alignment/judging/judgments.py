"""Judgments: the rows that hold them, the prompts that ask for them, and the reading of a judge's replies.

    train-alpaca*.json   [{"id", "instruction", "input", "output", "judgment", "score"}, ...]

`judgment` says what is wrong with `output`, or is null where it is satisfactory; `score` is optional, and 7 or more out
of 10 is satisfactory whatever the judgment says (CUT's released rule). A reply that does not follow its form is
malformed: it has a reason instead of a judgment, and nothing is guessed from it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from alignment.asking import filled
from alignment.command_line import REPOSITORY, UserError
from alignment.records import is_number, read_prompts, read_rows, read_text
from alignment.templates import fold_system, instruction_of, messages

SATISFACTORY_SCORE = 7
FAULTY_SCORE = 1  # what the released converter gives a row with a judgment
PROMPTS = REPOSITORY / "assets" / "judge"


# Rows, from any source that records.read_rows reads


def read_instructions(path: str | Path, *, with_output: bool = False) -> list[dict]:
    """Rows with an `instruction` (and an `output`), without what is null. A missing `input` becomes "", a missing `id`
    the row's number. A .txt file has an instruction a line, as prompts.txt."""
    is_text = Path(path).suffix == ".txt"
    rows = [{"instruction": line} for line in read_prompts(Path(path))] if is_text else read_rows(path)
    for number, row in enumerate(rows):
        if not isinstance(row.get("instruction"), str) or not row["instruction"].strip():
            raise UserError(f"data {path}, row {number} has no text under 'instruction'")
        if with_output and not isinstance(row.get("output"), str):
            raise UserError(f"data {path}, row {number} has no text under 'output'")
        check_input(path, number, row)
    there = [{name: value for name, value in row.items() if value is not None} for row in rows]
    return [{"id": number, "input": ""} | row for number, row in enumerate(there)]


def read_answers(paths: dict[str, Path]) -> tuple[list[str], dict[str, list[str]]]:
    """The instructions, and by name each file's answers in their order. UserError where the instructions differ."""
    rows = {name: read_instructions(path, with_output=True) for name, path in paths.items()}
    (first, own), *_ = rows.items()
    instructions = [row["instruction"] for row in own]
    for name, found in rows.items():
        if [row["instruction"] for row in found] != instructions:
            raise UserError(f"{paths[name]} answers other instructions than {paths[first]}")
    return instructions, {name: [row["output"] for row in found] for name, found in rows.items()}


def check_input(path: str | Path, number: int, row: dict) -> None:
    if not isinstance(row.get("input"), str | None):
        raise UserError(f"data {path}, row {number}: 'input' is no text")


def read_judgments(path: str | Path) -> list[dict]:
    """Rows whose `judgment` is a text or None, None also where `score` makes them satisfactory."""
    rows = read_rows(path)
    for number, row in enumerate(rows):
        for name in ("instruction", "output"):
            if not isinstance(row.get(name), str) or not row[name].strip():
                raise UserError(f"data {path}, row {number} has an empty {name!r}; remove the row")
        if "judgment" not in row:
            raise UserError(
                f"data {path}, row {number} has no 'judgment' (its keys: {', '.join(row)}); "
                "scripts/annotate_judgments.py makes them, null meaning satisfactory"
            )
        if row["judgment"] is not None and not (isinstance(row["judgment"], str) and row["judgment"].strip()):
            raise UserError(f"data {path}, row {number}: 'judgment' is neither text nor null")
        if row.get("score") is not None and not is_number(row["score"]):
            raise UserError(f"data {path}, row {number}: 'score' is neither a number nor null")
        check_input(path, number, row)
    return [row | {"input": row.get("input") or "", "judgment": fault(row)} for row in rows]


def fault(row: dict) -> str | None:
    """What is wrong with the row's output, None where it is satisfactory."""
    return None if (row.get("score") or 0) >= SATISFACTORY_SCORE else row["judgment"]


def downsampled(rows: list[dict], ratio: float, seed: int) -> list[dict]:
    """All flawed rows and int(flawed x ratio) of the satisfactory ones, in order; -1 keeps all (CUT, appendix A.4)."""
    good = [number for number, row in enumerate(rows) if row["judgment"] is None]
    keep = int((len(rows) - len(good)) * ratio)
    if ratio == -1 or keep >= len(good):
        return rows
    kept = set(random.Random(seed).sample(good, keep))
    return [row for number, row in enumerate(rows) if row["judgment"] is not None or number in kept]


# Controls: does what a judgment says matter?

BARE = "This response is not satisfactory."
CONTROLS = ("shuffled", "bare")


def controlled(rows: list[dict], kind: str, seed: int) -> list[dict]:
    """The rows, each flawed one with another flawed row's judgment (`shuffled`), or with BARE in its place (`bare`).

    Shuffled, every judgment is used once, and no row is given the text of its own. Raises UserError where there are too
    few different ones for that.
    """
    flawed = [number for number, row in enumerate(rows) if row["judgment"] is not None]
    if kind == "bare":
        given = dict.fromkeys(flawed, BARE)
    else:
        random.Random(seed).shuffle(flawed)
        alike: dict[str, list[int]] = {}
        for number in flawed:
            alike.setdefault(rows[number]["judgment"], []).append(number)
        ring = [number for numbers in alike.values() for number in numbers]
        step = max(map(len, alike.values()), default=0)  # past all that have one text
        if 2 * step > len(ring):
            told = f"{step} of {len(ring)} flawed rows have one judgment" if len(ring) > 1 else "there is 1 flawed row"
            raise UserError(f"--control shuffled: {told}, which leaves no other for each; take --control bare")
        given = {number: rows[ring[place - step]]["judgment"] for place, number in enumerate(ring)}
    return [row | {"judgment": given.get(number)} for number, row in enumerate(rows)]


# Prompts and replies


class Verdict(NamedTuple):
    """A judge's reply, read: `judgment` None and no `malformed` is satisfactory; `malformed` is the reason if it is."""

    judgment: str | None
    malformed: str | None = None


FORMS = ("annotate", "ai_judge")


def read_form(form: str) -> str:
    """The prompt file of a form, checked to have both slots."""
    path = PROMPTS / f"{form}.txt"
    text = read_text(path, "judge prompt").removesuffix("\n")
    for slot in ("{instruction}", "{response}"):
        if slot not in text:
            raise UserError(f"judge prompt {path} has no {slot} slot")
    return text


def format_judge_prompt(form_text: str, row: dict, criterion: str = "") -> str:
    """What the judge is asked, of a rubric by one criterion. Braces in the data stay as they are."""
    return filled(form_text, instruction=instruction_of(row), response=row["output"], criterion=criterion)


def conversation(row: dict) -> str:
    """The slot of a row in any of the forms of templates.py: what the user says, or the turns of both where there are
    several. A system message opens the first."""
    turns = fold_system(messages(row))
    if len(turns) == 1:
        return turns[0]["content"]
    names = {"user": "Human", "assistant": "Assistant"}
    return "\n\n".join(f"{names.get(turn['role'], turn['role'])}: {turn['content']}" for turn in turns)


JUDGE_STOP = ("\n### Instruction:", "\n### Response:")
LEAD_IN = re.compile(r"^(?:#+\s*)?judge?ment:?\s*", re.IGNORECASE)


def parse_annotation(reply: str) -> Verdict:
    """`Satisfactory.` alone, or what is wrong. Praise with reservations is neither."""
    text = LEAD_IN.sub("", reply.strip())
    if not any(map(str.isalnum, text)):
        return Verdict(None, "empty")
    if re.fullmatch(r"['\"*]*satisfactory[.!'\"*]*", text, re.IGNORECASE):
        return Verdict(None)
    if re.match(r"['\"*]*satisfactory\b", text, re.IGNORECASE):
        return Verdict(None, "satisfactory, but goes on")
    if len(text.split()) < 3:
        return Verdict(None, "under 3 words")
    return Verdict(text)


def parse_ai_judgment(reply: str) -> Verdict:
    """A judgment that ends in `Yes.` (satisfactory) or `No.`; the last word decides."""
    text = LEAD_IN.sub("", reply.strip())
    if not any(map(str.isalnum, text)):
        return Verdict(None, "empty")
    found = re.search(r"(?:^|[\s\"'(*])(yes|no)[.!]?[\"')*]*$", text, re.IGNORECASE)
    if not found:
        return Verdict(None, "no Yes or No at the end")
    if found[1].lower() == "yes":
        return Verdict(None)
    judgment = text[: found.start()].rstrip(" \n\"'(*")
    return Verdict(judgment) if any(map(str.isalnum, judgment)) else Verdict(None, "No without a judgment")


PARSERS = {"annotate": parse_annotation, "ai_judge": parse_ai_judgment}


def parse_judgment(form: str, reply: str | None, finish: str, output: str) -> Verdict:
    """Any reply of an engine: what did not come, was cut off or only says the response again is malformed too."""
    if reply is None:
        return Verdict(None, f"no reply: {finish}")
    if finish == "length":
        return Verdict(None, "cut off at --max_new_tokens")
    verdict = PARSERS[form](reply)
    if verdict.judgment and verdict.judgment.strip() == output.strip():
        return Verdict(None, "repeats the response")
    return verdict


# What a judgment quotes

QUOTED = re.compile(r"\"([^\"]{3,})\"|“([^”]{3,})”|(?<!\w)'([^']{3,})'(?!\w)|`([^`]{3,})`|\*\*([^*]{3,})\*\*")


def _quotes(judgment: str) -> list[tuple[int, int, str]]:
    """The judgment's quotations: (start, end) of the words in it, and the words without punctuation around them."""
    found = []
    for match in QUOTED.finditer(judgment):
        group = next(number for number, text in enumerate(match.groups(), 1) if text)
        found.append((*match.span(group), match[group].strip(" .,;:")))
    return [quote for quote in found if quote[2]]


def quoted_spans(judgment: str, output: str) -> list[tuple[int, int]]:
    """Where the judgment's quotations stand in the output: (start, end) in characters, in order, each occurrence."""
    words = {text for _, _, text in _quotes(judgment)}
    return sorted({at.span() for text in words for at in re.finditer(re.escape(text), output)})


def quoted_in(judgment: str, output: str) -> list[tuple[str, bool]]:
    """The judgment in pieces, each with whether it quotes words that the output has."""
    pieces, done = [], 0
    for start, end, text in _quotes(judgment):
        if text in output:
            pieces += [(judgment[done:start], False), (judgment[start:end], True)]
            done = end
    return [piece for piece in [*pieces, (judgment[done:], False)] if piece[0]]


def counts_by_reason(verdicts: Sequence[Verdict]) -> dict[str, int]:
    """Rows in, faulty, satisfactory, and malformed by reason."""
    faulty = sum(verdict.judgment is not None for verdict in verdicts)
    malformed = [verdict.malformed for verdict in verdicts if verdict.malformed]
    counts = {"rows": len(verdicts), "faulty": faulty, "satisfactory": len(verdicts) - faulty - len(malformed)}
    return counts | {f"malformed: {reason}": malformed.count(reason) for reason in sorted(set(malformed))}
