"""Seeded mutations of values and bytes for the fuzz tests, and what must hold of all that comes out."""

import copy
import json
import math
import random
from dataclasses import fields, is_dataclass

from alignment.records import SURROGATE

TIMES = 120  # mutations of each file and reply
NAN, HALF = float("nan"), "\ud83d"
# fmt: off
ODD = [
    None, True, 0, -1, 1.0, 2.5, 10**30, NAN, -math.inf, HALF, "", " ", "\n", "a\u2028\x85\rb", "\ufeff", "x" * 999,
    "</s><|im_end|>", "Human:", "\n\nHuman: a\n\nAssistant: b", "prompter: a", [], {}, [[]], [None], ["a"], [1, "a"],
    [{}], {"a": HALF}, {"role": "user", "content": None}, [{"role": ["user"], "content": "a"}],
    [{"from": "gpt", "value": 3}],
]
# fmt: on

# Mutations


def spots(value):
    """(container, key) of every place in a value from JSON."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from spots(value[key])


def mutated(value, draw: random.Random):
    """A value in one to three places of which something is replaced, lost, doubled, or has another name."""
    value = copy.deepcopy([value])
    for _ in range(draw.choice((1, 1, 2, 3))):
        container, key = draw.choice(list(spots(value)))
        what = draw.choice(("replace", "replace", "lose", "double", "nest", "rename"))
        if what == "replace":
            container[key] = copy.deepcopy(draw.choice(ODD))
        elif what == "nest":
            container[key] = draw.choice(([container[key]], {"a": container[key]}, json.dumps(container[key])))
        elif what == "lose" and container is not value:
            del container[key]
        elif what == "double" and isinstance(container, list):
            container.insert(key, copy.deepcopy(container[key]))
        elif what == "rename" and isinstance(container, dict):
            container[draw.choice(["id", "a", *container])] = container.pop(key)
    return value[0]


def torn(raw: bytes, draw: random.Random) -> bytes:
    """Bytes that were cut off, turned, doubled, or have others between them."""
    at, to = sorted(draw.randrange(len(raw) + 1) for _ in "ab")
    return draw.choice(
        (
            lambda: raw[:at],
            lambda: raw[:at] + raw[to:],
            lambda: raw[:to] + raw[at:],
            lambda: raw[:at] + draw.randbytes(3) + raw[at:],
            lambda: raw[:at] + draw.choice((b"\xff", b"\x00", b"\r", b"\n", b'"', b"\xe2\x80\xa8")) + raw[at:],
            lambda: raw[:at] + draw.choice((b"[" * 99_999, b"9" * 5_000, b"NaN", rb'"\ud83d"')) + raw[to:],
            lambda: raw.decode(errors="replace").encode("utf-16"),
            lambda: b"",
        )
    )()


def is_sound(value) -> bool:
    """Whether texts have no half character and numbers are finite, however deep."""
    if is_dataclass(value):
        return all(is_sound(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, dict):
        return all(map(is_sound, value)) and all(map(is_sound, value.values()))
    if isinstance(value, list | tuple):
        return all(map(is_sound, value))
    return (
        not SURROGATE.search(value) if isinstance(value, str) else not isinstance(value, float) or math.isfinite(value)
    )


def says(value) -> bool:
    return isinstance(value, str) and bool(value.strip())
