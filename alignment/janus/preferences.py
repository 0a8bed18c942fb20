"""Preferences: a tree of dimension > subdimension > preference, and sets of one preference from each dimension.

    tree = Tree.read(TREE)
    tree.examples(draw, lead=0)    # what a writer is shown: a few preferences of each dimension
    read_set(reply, tree)          # a reply that follows tree.schema() -> a list of four, each {"dimension",
                                   # "subdimension", "preference", "description"}

The paper's hierarchy (section 3.1): the four dimensions are fixed, below them the writer may invent. A set goes from
general to specific, and the system message that is written for it weaves its four preferences into one.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.asking import Unusable
from alignment.command_line import REPOSITORY, UserError, nearest
from alignment.records import fault_of, read_json

DIMENSIONS = ("style", "background_knowledge", "informativeness", "harmlessness")
KEYS = ("dimension", "subdimension", "preference", "description")
TREE = REPOSITORY / "assets" / "janus" / "preferences.json"
LENGTHS = {"subdimension": (3, 40), "preference": (3, 80), "description": (40, 400)}  # characters, least and most
NEW_SUBDIMENSION = "^[a-z]{3,20}( [a-z]{3,20})?$"  # an aspect in one or two words: the schema holds a model to it

Preference = dict[str, str]  # KEYS -> texts


@dataclass(frozen=True)
class Tree:
    """Seeds by dimension and subdimension: (preference, description), where the description may be empty."""

    seeds: dict[str, dict[str, list[tuple[str, str]]]]

    @classmethod
    def read(cls, path: Path) -> Tree:
        """{dimension: {subdimension: [preference or {"preference", "description"}, ...]}}. Names of dimensions in any
        case, with blanks or underscores. Raises UserError for one that is missing, empty or none of the four."""
        found, place = read_json(path, "preference tree"), f"preference tree {path}"
        if not isinstance(found, dict):
            raise UserError(f"{place} holds a {type(found).__name__}, not an object with the four dimensions")
        if fault := fault_of(found):
            raise UserError(f"{place} {fault}")
        named = {name.strip().lower().replace(" ", "_"): part for name, part in found.items()}
        for name in named:
            if name not in DIMENSIONS:
                raise UserError(f"{place}: {name!r} is none of {', '.join(DIMENSIONS)}{nearest(name, DIMENSIONS)}")
        for name in DIMENSIONS:
            if name not in named:
                raise UserError(f"{place} has no dimension {name}; a tree has all of {', '.join(DIMENSIONS)}")
            if not isinstance(named[name], dict) or not named[name]:
                raise UserError(f"{place}: dimension {name} is empty; give it a subdimension with its preferences")
        return cls(
            {
                name: {sub.lower(): leaves(part, f"{place}: {name} > {sub}") for sub, part in named[name].items()}
                for name in DIMENSIONS
            }
        )

    def names(self, dimension: str) -> dict[str, str]:
        """Preference -> subdimension."""
        return {leaf: sub for sub, part in self.seeds[dimension].items() for leaf, _ in part}

    def schema(self) -> dict[str, Any]:
        """What a reply follows: for each dimension a subdimension and a preference, seeds or invented, and a text."""

        def text(key: str, known: list[str]) -> dict[str, Any]:
            least, most = LENGTHS[key]
            free: dict[str, Any] = {"type": "string", "minLength": least, "maxLength": most}
            if key == "subdimension":
                free = {"type": "string", "pattern": NEW_SUBDIMENSION}
            return {"anyOf": [{"enum": known}, free]} if known else free

        def entry(dimension: str) -> dict[str, Any]:
            names = self.names(dimension)
            known = {"subdimension": list(self.seeds[dimension]), "preference": list(names), "description": []}
            return closed({key: text(key, known[key]) for key in KEYS[1:]})

        return closed({dimension: entry(dimension) for dimension in DIMENSIONS})

    def examples(self, draw: random.Random, lead: int) -> dict[str, list[str]]:
        """For each dimension three lines: two seeds of one subdimension and one of another. Draws that are seeded alike
        and differ in `lead` begin at different subdimensions, so the sets of one instruction set out apart."""
        found = {}
        for dimension, part in self.seeds.items():
            order = draw.sample(list(part), len(part))
            own, other = order[lead % len(order)], order[(lead + 1) % len(order)]
            drawn = [(own, leaf) for leaf in draw.sample(part[own], min(2, len(part[own])))]
            drawn += [(other, leaf) for leaf in draw.sample(part[other], 1) if other != own]
            found[dimension] = [". ".join(filter(None, (f"{sub} > {name}", told))) for sub, (name, told) in drawn]
        return found


def closed(properties: dict[str, Any]) -> dict[str, Any]:
    """A schema of an object that has all of these properties and no other."""
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def leaves(part: Any, place: str) -> list[tuple[str, str]]:
    if not isinstance(part, list) or not part:
        raise UserError(f"{place} is no list of preferences")
    found = []
    for number, each in enumerate(part):
        each = {"preference": each} if isinstance(each, str) else each
        texts = [each.get("preference"), each.get("description", "")] if isinstance(each, dict) else [None]
        if not all(isinstance(text, str) for text in texts) or not texts[0].strip():
            raise UserError(f"{place}, preference {number} is neither a text nor {{preference, description}}")
        found.append((texts[0].strip(), texts[1].strip()))
    return found


def read_set(text: str, tree: Tree) -> list[Preference]:
    """The preference set in a reply that follows the tree's schema. Raises Unusable with the reason."""
    reply = json.loads(text)
    found = []
    for dimension in DIMENSIONS:
        entry = {key: " ".join(reply[dimension][key].split()) for key in KEYS[1:]}
        for key, (least, most) in LENGTHS.items():
            if not least <= len(entry[key]) <= most or not any(map(str.isalpha, entry[key])):
                raise Unusable(f"{key} is no text of {least} to {most} characters")
        seeded = tree.names(dimension).get(entry["preference"])
        entry["subdimension"] = (seeded or entry["subdimension"]).lower()
        said = entry["preference"].lower()
        if said in (entry["subdimension"], dimension, dimension.replace("_", " ")):
            raise Unusable("preference repeats its dimension or subdimension")
        if entry["description"].lower().rstrip(".") == said:
            raise Unusable("description repeats the preference")
        found.append({"dimension": dimension} | entry)
    for key in ("preference", "description"):
        if len({each[key].lower() for each in found}) < len(found):
            raise Unusable(f"has a {key} twice")
    return found


def set_line(preferences: list[Preference]) -> str:
    """What tells a set from another, in a line: subdimension and preference of each dimension."""
    return "; ".join(f"{each['subdimension']} {each['preference']}" for each in preferences)


def listed(preferences: list[Preference]) -> str:
    """A set as a writer is shown it, a preference a line."""
    return "\n".join(f"- {each['dimension']}: {each['preference']}. {each['description']}" for each in preferences)
