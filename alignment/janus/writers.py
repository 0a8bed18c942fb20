"""What a model is asked in each mode, and the reading of its reply: format and parse are neighbours.

    PreferenceSets   pa   instruction -> four preferences
    SystemMessages   sm   four preferences -> one paragraph that weaves them
    Responses        gr   system message + instruction -> response
    Rubrics          rb   one preference -> criteria and five score descriptions

Each has `asks`, a question each; `schema`, which its replies follow, or None; `request(question, attempt, hint)` and
`read(question, text)`, which raises Unusable. `read` sees the questions in order and remembers what it took, so that
what is written for one instruction differs. Prompts are those of assets/janus/, ours: the paper's are not released.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from typing import Any

from alignment.asking import Asked, Unusable, chat, filled
from alignment.command_line import REPOSITORY
from alignment.generation import Request, record_seed
from alignment.janus.leaks import LeakRule
from alignment.janus.preferences import Preference, Tree, closed, listed, read_set, set_line
from alignment.janus.rows import SCORES
from alignment.janus.splits import NEAR_SET, folded
from alignment.records import read_json, read_text
from alignment.rouge import Pool, rouge_l

ASSETS = REPOSITORY / "assets" / "janus"
NEAR_OTHER = 0.5  # ROUGE-L F of two sets of one instruction from which they are too alike
NEAR_ANY = NEAR_SET - 0.02  # of two of the collection: under what ds proves of the bench, as the score is not symmetric
OPENINGS = (
    "You are",
    "You serve as",
    "You write as",
    "As",
    "Act as",
    "Your task is",
    "Your role is",
    "Imagine yourself as",
)
SECOND_PERSON = re.compile(r"\byou(?:r|rs|rself)?\b", re.IGNORECASE)
LIST_ITEM = re.compile(r"(?:^|\s)(?:[*#•-]|\d[.)])\s")


def prompt_text(name: str) -> str:
    return read_text(ASSETS / name, "prompt").removesuffix("\n")


def text_schema(least: int, most: int) -> dict[str, Any]:
    """A text of so many characters."""
    return {"type": "string", "minLength": least, "maxLength": most}


class Distinct:
    """Texts taken so far for each instruction, compared without case and white space."""

    def __init__(self):
        self._taken: dict[str, set[str]] = {}

    def take(self, name: object, text: str) -> None:
        own = self._taken.setdefault(str(name), set())
        if folded(text) in own:
            raise Unusable("the same as another of its instruction")
        own.add(folded(text))


class PreferenceSets:
    """Sets that are not near another of their instruction, nor any of the collection: so none that comes after the
    bench's, which is asked first, repeats one of these."""

    def __init__(self, instructions: Sequence[dict], num_sets: int, tree: Tree, seed: int):
        self.asks = [(row, number) for row in instructions for number in range(num_sets)]
        self.schema = tree.schema()
        self._tree, self._seed = tree, seed
        self._system, self._user = prompt_text("preference_set.txt"), prompt_text("preference_set_user.txt")
        self._lines: dict[str, list[str]] = {}
        self._every = Pool(threshold=NEAR_ANY)

    def request(self, question: int, attempt: int, hint: str) -> Request:
        row, number = self.asks[question]
        draw = random.Random(record_seed(self._seed, "pa", row["id"], attempt))
        shown = self._tree.examples(draw, lead=number)
        examples = "\n".join(f"- {dimension}: {line}" for dimension, part in shown.items() for line in part)
        lines = [f"- {line}" for line in self._lines.get(str(row["id"]), [])] if hint else []
        taken = "\n".join(["", hint, *lines, ""]) if lines else ""
        text = filled(self._user, prompt=row["prompt"], examples=examples, taken=taken)
        return chat(self._system, text, record_seed(self._seed, "pa", row["id"], number, attempt))

    def read(self, question: int, text: str) -> list[Preference]:
        found = read_set(text, self._tree)
        line, own = set_line(found), self._lines.setdefault(str(self.asks[question][0]["id"]), [])
        if any(rouge_l(line, other) >= NEAR_OTHER for other in own):
            raise Unusable("near another set of its instruction", "Others are described already; choose otherwise:")
        if self._every.is_duplicate(line):
            raise Unusable("near another set of the collection")
        own.append(line)
        self._every.add(line)
        return found


class SystemMessages:
    """Paragraphs in the second person, from the preferences alone: the writer never sees the instruction."""

    schema = closed({"opening": {"enum": list(OPENINGS)}, "body": text_schema(120, 1600)})

    def __init__(self, asks: Sequence[dict], rule: LeakRule, seed: int):
        self.asks, self._rule, self._seed = asks, rule, seed
        self._system, self._user = prompt_text("system_message.txt"), prompt_text("system_message_user.txt")
        self._distinct = Distinct()

    def request(self, question: int, attempt: int, hint: str) -> Request:
        row = self.asks[question]
        avoid = f"\nThe paragraph does without these words: {hint}\n" if hint else ""
        text = filled(self._user, preferences=listed(row["preference_set"]), avoid=avoid)
        return chat(self._system, text, record_seed(self._seed, "sm", row["id"], row["set"], attempt))

    def read(self, question: int, text: str) -> str:
        row, reply = self.asks[question], json.loads(text)
        body = " ".join(reply["body"].split())
        found = body if body.lower().startswith(reply["opening"].lower()) else f"{reply['opening']} {body}"
        if not SECOND_PERSON.search(found):
            raise Unusable("not in the second person")
        if LIST_ITEM.search(found):
            raise Unusable("a list, not a paragraph")
        if not found.endswith((".", "!")):
            raise Unusable("does not end in a sentence")
        if shared := self._rule.leaks(found, row["prompt"]):
            raise Unusable("leaks its instruction", ", ".join(shared[:8]))
        self._distinct.take(row["id"], found)
        return found


class Responses:
    schema = None

    def __init__(self, asks: Sequence[dict], seed: int):
        self.asks, self._seed, self._distinct = asks, seed, Distinct()

    def request(self, question: int, attempt: int, hint: str) -> Request:
        row = self.asks[question]
        return chat(row["system"], row["prompt"], record_seed(self._seed, "gr", row["id"], row["set"], attempt))

    def read(self, question: int, text: str) -> str:
        row, found = self.asks[question], text.strip()
        if not any(map(str.isalnum, found)):
            raise Unusable("empty")
        if folded(row["system"])[:80] in folded(found):
            raise Unusable("repeats the system message")
        self._distinct.take(row["id"], found)
        return found


class Rubrics:
    """One question for each preference of each row, in the set's order."""

    schema = closed(
        {
            "criteria": text_schema(20, 400),
            "score_descriptions": closed({score: text_schema(40, 300) for score in SCORES}),
        }
    )

    def __init__(self, rows: Sequence[dict], seed: int):
        self.asks = [(row, preference) for row in rows for preference in row["preference_set"]]
        examples = "\n\n".join(shown(each) for each in read_json(ASSETS / "rubric_examples.json", "rubric examples"))
        self._system, self._user = filled(prompt_text("rubric.txt"), examples=examples), prompt_text("rubric_user.txt")
        self._seed = seed

    def request(self, question: int, attempt: int, hint: str) -> Request:
        row, preference = self.asks[question]
        text = filled(self._user, prompt=row["prompt"], **preference)
        dimension = preference["dimension"]
        return chat(self._system, text, record_seed(self._seed, "rb", row["id"], row["set"], dimension, attempt))

    def read(self, question: int, text: str) -> dict:
        reply = json.loads(text)
        scores = {score: " ".join(reply["score_descriptions"][score].split()) for score in SCORES}
        found = {"criteria": " ".join(reply["criteria"].split()), "score_descriptions": scores}
        if not all(any(map(str.isalpha, each)) for each in (found["criteria"], *scores.values())):
            raise Unusable("a part is no text")
        if len(set(map(folded, scores.values()))) < len(SCORES):
            raise Unusable("two scores are described alike")
        return found


def shown(example: dict) -> str:
    """An example of rubric_examples.json as the prompt shows it: the preference, and the reply that is wanted."""
    reply = {key: example[key] for key in ("criteria", "score_descriptions")}
    return f"Preference: {example['preference']}\n{json.dumps(reply)}"


def with_rubrics(rows: Sequence[dict], asked: Asked) -> tuple[list[dict], int]:
    """The rows of which every preference got a rubric, with them under `rubrics`; and how many did not."""
    found, at = [], 0
    for row in rows:
        own = asked.values[at : at + len(row["preference_set"])]
        at += len(own)
        if all(own):
            found.append(row | {"rubrics": own})
    return found, len(rows) - len(found)
