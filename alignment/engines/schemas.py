"""Values that follow a JSON schema, drawn at random: what the simulated writer answers under one."""

from __future__ import annotations

import json
import math
import random
from typing import Any

from alignment.command_line import UserError

WORDS = "amber basil cedar dune ember fjord grove heath inlet jetty".split()
SENTENCES = ("It is clear and short.", "The second step is missing.", "Every claim has its reason.", "It runs on.")


def fill(schema: dict, draw: random.Random) -> Any:
    """A value that follows a JSON schema. Raises UserError for one that this writer cannot fill."""
    from jsonschema import Draft202012Validator

    for _ in range(20):  # words like `not` and `if` are left to luck
        value = drawn(schema, draw, schema, 0)
        if Draft202012Validator(schema).is_valid(value):
            return value
    raise UserError(f"the simulated writer cannot fill the schema {json.dumps(schema)[:200]}")


def drawn(schema: Any, draw: random.Random, root: dict, depth: int) -> Any:
    """A value for a part of a schema; what the schema leaves open is a word."""
    if schema in (True, False, {}):
        return draw.choice(WORDS)
    if "$ref" in schema:
        part = root
        for step in schema["$ref"].removeprefix("#").strip("/").split("/"):
            part = part[step.replace("~1", "/").replace("~0", "~")] if step else part
        return drawn(part, draw, root, depth + 1)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return draw.choice(schema["enum"])
    for way in ("anyOf", "oneOf"):
        if way in schema:
            ways = sorted(schema[way], key=lambda each: len(json.dumps(each))) if depth > 6 else schema[way]
            chosen = ways[0] if depth > 6 else draw.choice(ways)
            return drawn({**{k: v for k, v in schema.items() if k != way}, **chosen}, draw, root, depth + 1)
    if "allOf" in schema:
        together: dict[str, Any] = {k: v for k, v in schema.items() if k != "allOf"}
        for each in schema["allOf"]:
            merged = {**together.get("properties", {}), **each.get("properties", {})}
            required = [*together.get("required", []), *each.get("required", [])]
            together |= each | ({"properties": merged} if merged else {}) | ({"required": required} if required else {})
        return drawn(together, draw, root, depth + 1)
    kind = schema.get("type") or ("object" if "properties" in schema else "array" if "items" in schema else "string")
    return FILLERS[draw.choice(kind) if isinstance(kind, list) else kind](schema, draw, root, depth)


def drawn_object(schema: dict, draw: random.Random, root: dict, depth: int) -> dict:
    required = set(schema.get("required", []))
    names = [name for name in schema.get("properties", {}) if name in required or (depth < 4 and draw.random() < 0.5)]
    names += sorted(required - set(names))
    open_ended = schema.get("additionalProperties", {})
    parts = {name: schema.get("properties", {}).get(name, open_ended) for name in names}
    short = schema.get("minProperties", 0) - len(parts)
    parts |= {f"{thing}_{n}": open_ended for n, thing in zip(range(short), WORDS * 9, strict=False)}
    return {name: drawn(part, draw, root, depth + 1) for name, part in parts.items()}


def drawn_array(schema: dict, draw: random.Random, root: dict, depth: int) -> list:
    first = schema.get("prefixItems", [])
    least = schema.get("minItems", len(first) or 1)
    count = draw.randint(least, max(least, min(schema.get("maxItems", least + 2), least + 2)))
    found: list = []
    for place in range(count * 9):
        part = first[place] if place < len(first) else schema.get("items", {})
        value = drawn(part, draw, root, depth + 1)
        if not schema.get("uniqueItems") or value not in found:
            found.append(value)
        if len(found) == count:
            break
    return found


def drawn_number(schema: dict, draw: random.Random, root: dict, depth: int) -> float:
    whole = schema.get("type") == "integer"
    edge = 1 if whole else 1e-6
    low = schema["exclusiveMinimum"] + edge if "exclusiveMinimum" in schema else schema.get("minimum")
    high = schema["exclusiveMaximum"] - edge if "exclusiveMaximum" in schema else schema.get("maximum")
    low = (high - 10 if high is not None else 0) if low is None else low
    high = low + 10 if high is None else high
    step = schema.get("multipleOf", 1 if whole else None)
    if step is None:
        return round(draw.uniform(low, high), 3) if high - low > 0.01 else low
    return step * draw.randint(math.ceil(low / step), math.floor(high / step))


def drawn_text(schema: dict, draw: random.Random, root: dict, depth: int) -> str:
    if "pattern" in schema:
        import rstr

        return rstr.Rstr(draw).xeger(schema["pattern"].removeprefix("^").removesuffix("$"))
    least, most = schema.get("minLength", 0), schema.get("maxLength", 1 << 20)
    text = draw.choice(SENTENCES)
    while len(text) < least:
        text += " " + draw.choice(SENTENCES)
    return text[:most]


FILLERS = {
    "object": drawn_object,
    "array": drawn_array,
    "number": drawn_number,
    "integer": drawn_number,
    "string": drawn_text,
    "boolean": lambda schema, draw, root, depth: draw.random() < 0.5,
    "null": lambda schema, draw, root, depth: None,
}
