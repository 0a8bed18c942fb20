"""A YAML file of flags -> the words of a command line, for --config.

    model_name_or_path: outputs/sft
    data-path: [a.json, b.json]
    bf16: true
    lr_scheduler_kwargs: {num_cycles: 2}

A value is the flag's own words: `no`, `2e-5` and `1e400` stay as they are written, and null leaves a flag out.
"""

from __future__ import annotations

import json
import re
from typing import Any

LONGEST = 1 << 20  # bytes
NULL = "tag:yaml.org,2002:null"


def read_config(path: str) -> list[tuple[str, int, Any]]:
    """(key, its line from 1, value) of a mapping: text, None, a list of texts, or a mapping. Raises ValueError."""
    import yaml

    class Words(yaml.BaseLoader):
        """Every scalar is text, but for null."""

    Words.add_implicit_resolver(NULL, re.compile(r"(~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
    Words.add_constructor(NULL, lambda loader, node: None)
    try:
        with open(path, "rb") as file:
            raw = file.read(LONGEST + 1)
        if len(raw) > LONGEST:
            raise ValueError(f"{path} has more than a megabyte")
        loader = Words(raw.decode("utf-8-sig"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise ValueError(f"{path} holds no mapping of flags to values")
        entries = [
            (
                loader.construct_object(key, deep=True),
                key.start_mark.line + 1,
                loader.construct_object(value, deep=True),
            )
            for key, value in root.value
        ]
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{path}{at} is no YAML: {getattr(error, 'problem', None) or error}".split("\n")[0]) from None
    except RecursionError:
        raise ValueError(f"{path} is nested too deeply to be read") from None
    names = [str(name).replace("-", "_") for name, _, _ in entries]
    for at, (name, line, value) in enumerate(entries):
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"{path}, line {line}: {name!r} is no flag's name")
        if names[at] in ("config", "help", "version"):
            raise ValueError(f"{path}, line {line}: {name} is no flag of a file")
        if names[at] in names[:at]:
            raise ValueError(f"{path}, line {line}: {name} comes twice")
        if isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise ValueError(f"{path}, line {line}: {name} holds more than a list of words")
    return entries


def words_of(flag: str, value: str | list | dict, nargs: int | str | None) -> list[str]:
    """A flag with its value on a command line. `nargs` is argparse's: 0 where the flag is there or not, "+" or "*"
    where it takes several. Raises ValueError."""
    if nargs == 0:
        return [flag] if value in ("true", "True", "yes", "1") else []
    if isinstance(value, list) and len(value) != 1:
        if nargs not in ("+", "*"):
            raise ValueError(f"{flag} takes one value, not a list of {len(value)}")
        return [flag, *value]
    value = value[0] if isinstance(value, list) else value
    return [f"{flag}={value if isinstance(value, str) else json.dumps(value)}"]
