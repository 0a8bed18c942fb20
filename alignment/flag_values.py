"""Values that no flag of any script can have: asked of every one of them by the parser (command_line.py)."""

from __future__ import annotations

import math
import os
import re
import reprlib
from pathlib import Path
from typing import Any

LONGEST = 180  # bytes of an output's name, to which endings of 75 are added: file systems take 255
LARGEST = 1e9  # of any number with a point: seconds, steps, rates
OUTPUTS = {"output_file": False, "output_path": False, "output_dir": True, "work_dir": True}  # is it a folder?


def fault_of_text(name: str, text: str) -> str | None:
    """Why a word cannot be the value of any flag: it is empty, no text, or a path that no system has."""
    if not text:
        return "is empty; give it a value, or leave it out"
    if "\0" in text or not text.isprintable() and any("\ud800" <= each <= "\udfff" for each in text):
        return f"{text!a} is no UTF-8 text"
    if text.startswith("~") and "/" in text:
        return f"{text.split('/')[0]} is no user here"
    if name.endswith("api_base"):
        return None if re.match(r"https?://[^/]", text) else "is no address, such as http://host:8000/v1"
    if any(len(os.fsencode(part)) > 255 for part in text.split("/")):
        return f"a name in it has more than 255 bytes: {reprlib.repr(text)}"
    return None


def fault_of_value(name: str, value: Any) -> str | None:
    """Why no script can do with a flag's value: a number that is none or too large, or an output that cannot be."""
    if isinstance(value, float) and not abs(value) <= LARGEST:
        return f"{value} is " + ("out of range" if math.isfinite(value) else "no finite number")
    if isinstance(value, int) and not (0 <= value < 2**32 if name == "seed" else abs(value) < 2**31):
        most = "from 0 to 4294967295" if name == "seed" else "2147483647 at most"
        return f"{reprlib.repr(value)} is out of range: {most}"
    if isinstance(value, Path) and name in OUTPUTS:
        return fault_of_output(value, folder=OUTPUTS[name])
    return None


def fault_of_output(output: Path, *, folder: bool) -> str | None:
    """Why nothing can be written to `output`, a file or a `folder`, or None. Makes nothing."""
    if not folder and str(output) in (".", "..", "/"):
        return f"{str(output)!r} is no file's name"
    if any(len(os.fsencode(part)) > LONGEST for part in output.parts):
        return f"a name in it has more than {LONGEST} bytes"
    existing = output
    while not os.path.lexists(existing) and existing != existing.parent:
        existing = existing.parent
    if not existing.exists():
        return f"{existing} is a link to {os.readlink(existing)}, which does not exist"
    if existing.resolve().parts[1:2] in (("proc",), ("sys",)):
        return f"{existing.resolve()} is the system's own"
    there = existing == output
    if there and existing.is_dir() != folder:
        return f"{output} is a {'file, not a folder' if folder else 'folder, not a file'}"
    if there and not folder and not existing.is_file():
        return f"{output} is a device or a pipe, not a file"
    place = existing if folder or not there else existing.parent
    if not place.is_dir():
        return f"{place} is a file, not a folder"
    if not os.access(place, os.W_OK | os.X_OK) or os.statvfs(place).f_flag & os.ST_RDONLY:
        return f"{place} is not writable"
    return None
