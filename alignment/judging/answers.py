"""Questions, and the answers of several models to them, matched by id or by text.

    questions = read_questions("question.jsonl")
    {"question_id", "text", "category"}                       Vicuna's
    {"question_id", "turns": [...], "category", "reference"}  MT-Bench's, of several turns
    {"instruction", "input"}, or a prompt a line              AlpacaEval's, and ours

    name, texts = read_answers("answers.json", questions)     # for each question a text for each turn, or None
    {"instruction", "output", "generator"}                    AlpacaEval's and generate.py's, of one turn
    {"question_id", "model_id", "choices": [{"turns"}]}       MT-Bench's

A question may have an `instruction_difficulty`, as the hub's file of AlpacaEval gives it to its 805.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignment.command_line import UserError
from alignment.records import is_number, read_prompts, read_rows
from alignment.templates import instruction_of

SHOWN = 5  # of rows that an error names


class Question(NamedTuple):
    id: str
    turns: tuple[str, ...]
    reference: tuple[str, ...] = ()  # a right answer to each turn, where there are any
    category: str | None = None
    difficulty: float | None = None


# Questions


def read_questions(source: str | Path) -> list[Question]:
    """The questions of a file, or those that a file of answers says it answers. Raises UserError for a row without one,
    and for two that are the same or have the same id."""
    is_text = Path(source).suffix == ".txt"
    rows = [{"instruction": line} for line in read_prompts(Path(source))] if is_text else read_rows(source, "questions")
    found = [question_of(row, number, f"questions {source}, row {number}") for number, row in enumerate(rows)]
    ids, texts = {}, {}
    for number, each in enumerate(found):
        for seen, key in ((ids, each.id), (texts, same(each.turns[0]) + "\n" + same("\n".join(each.turns[1:])))):
            if key in seen:
                raise UserError(f"questions {source}: rows {seen[key]} and {number} have the same id, or ask the same")
            seen[key] = number
    return found


def question_of(row: dict, number: int, place: str) -> Question:
    turns = row["turns"] if "turns" in row else [asked_in(row)]
    if not is_texts(turns) or not turns or not all(each.strip() for each in turns):
        raise UserError(f"{place} has no question under 'turns', 'text', 'instruction' or 'prompt'")
    reference = row.get("reference") or []
    if not is_texts(reference) or len(reference) > len(turns):
        raise UserError(f"{place}: 'reference' is no list of a text for each turn")
    if not is_number(difficulty := row.get("instruction_difficulty", 0)) and difficulty is not None:
        raise UserError(f"{place}: 'instruction_difficulty' is no number")
    category = next((str(row[name]) for name in ("category", "dataset") if row.get(name) is not None), None)
    return Question(id_of(row, number), tuple(turns), tuple(reference), category, row.get("instruction_difficulty"))


def asked_in(row: dict) -> Any:
    """The one text that a row asks, None where it has none."""
    if isinstance(row.get("instruction"), str) and isinstance(row.get("input"), str | None):
        return instruction_of(row)
    return next((row[name] for name in ("text", "prompt", "instruction") if row.get(name) is not None), None)


def id_of(row: dict, otherwise: object) -> str:
    return next((str(row[name]) for name in ("question_id", "id") if row.get(name) is not None), str(otherwise))


def is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


def same(text: str) -> str:
    """A text by which rows are matched: whatever its white space."""
    return " ".join(text.split())


# Answers


def read_answers(path: str, questions: Sequence[Question], limit: int | None = None) -> tuple[str | None, list[tuple]]:
    """Who answers, where all rows name one; and for each of the first `limit` questions its answers, one for each turn,
    None where there is none. Raises UserError that names what is missing, double or foreign."""
    by_id = {each.id: place for place, each in enumerate(questions)}
    by_text = {same(each.turns[0]): place for place, each in enumerate(questions)}
    rows = read_rows(path, "answers")
    texts = [answers_in(row, f"answers {path}, row {number}") for number, row in enumerate(rows)]

    def place_of(row: dict) -> int | None:
        asked = asked_in(row)
        return by_text.get(same(asked)) if isinstance(asked, str) else by_id.get(id_of(row, None))

    places = matched(
        [place_of(row) for row in rows],
        [each.id for each in questions][:limit],
        f"answers {path} and the questions do not match",
        f"of the {len(questions[:limit]):,} questions have no answer",
    )
    found = [texts[places[place]] for place in range(len(questions[:limit]))]
    names = [row.get("generator") or row.get("model_id") for row in rows]
    name = names[0] if isinstance(names[0], str) and all(each == names[0] for each in names) else None
    return name, [
        (*own, *[None] * len(asked.turns))[: len(asked.turns)] for own, asked in zip(found, questions, strict=False)
    ]


def answers_in(row: dict, place: str) -> list[str | None]:
    """The answers of a row to its question's turns."""
    if "choices" in row:
        choices = row["choices"]
        turns = choices[0].get("turns") if isinstance(choices, list) and choices and isinstance(choices[0], dict) else 0
        if not is_texts(turns):
            raise UserError(f"{place} has no texts under 'choices', 0, 'turns'")
        return turns
    if not isinstance(row.get("output", 0), str | None):
        raise UserError(f"{place} has no text under 'output', nor null")
    return [row["output"]]


def matched(places: Sequence[int | None], names: Sequence[object], what: str, missing: str) -> dict[int, int]:
    """Of rows and the places where they belong, None for a foreign one: {place: row}. Raises UserError that opens with
    `what` where one of the named places has no row, one has two, or a row is foreign."""
    found: dict[int, int] = {}
    foreign, doubled = [], []
    for number, place in enumerate(places):
        if place is None:
            foreign.append(number)
        elif place in found:
            doubled.append(number)
        else:
            found[place] = number
    faults = [
        f"{len(some):,} {told} ({listed(some)})"
        for some, told in (
            ([name for place, name in enumerate(names) if place not in found], missing),
            (foreign, "of its rows belong to none of them"),
            (doubled, "of its rows belong to one that has another"),
        )
        if some
    ]
    if faults:
        raise UserError(f"{what}: {'; '.join(faults)}")
    return found


def listed(names: Sequence[object]) -> str:
    return ", ".join(map(str, names[:SHOWN])) + (", ..." if len(names) > SHOWN else "")


def names_of(paths: Sequence[str], flag: str = "--responses") -> list[str]:
    """Short names that tell the files apart: their stems, or the ends of their paths that do."""
    for parts in range(1, 9):
        names = ["/".join([*Path(path).parts[:-1], Path(path).stem][-parts:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    raise UserError(f"{flag} names a file twice: {', '.join(paths)}")
