"""A chat template of a model's own is a program of somebody else: it is tried apart, under a bound, before it is used.

    check_ends("{% for m in messages %}...")      # UserError where it does not end, or fills the memory
    python -m alignment.template_trial            # the trial itself: JSON on stdin, 0 where the template ended

Whatever else goes wrong with a template shows where it is used. Imports nothing heavy.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import suppress
from functools import cache
from typing import NoReturn

from alignment.command_line import REPOSITORY, UserError

SECONDS, BYTES, LONGEST = 2, 1 << 29, 1 << 20  # processor time, memory, and characters of a few short messages
TALK = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]


@cache
def check_ends(text: str) -> None:
    """Raise UserError for a chat template that takes seconds, or memory without end, for a few words."""
    try:
        trial = subprocess.run(
            [sys.executable, "-m", "alignment.template_trial"],
            input=json.dumps(text),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=20 * SECONDS,
        )
        ended = trial.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        told = f"within {SECONDS} s and {BYTES >> 20} MiB"
        raise UserError(f"the tokenizer's chat template does not end {told}, of a few words; name another template")


def without_marks(text: str) -> str:
    """A chat template without the tags that tell transformers where in its output a reply stands."""
    mark = r"(\{%[-+]?\s*)(end|)generation(?=\s*[-+]?%\})"
    return re.sub(mark, lambda tag: tag[1] + ("endif" if tag[2] else "if true"), text)


def spell(text: str) -> None:
    """What transformers would make of a few messages. Raises AssertionError where that is a book."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(reason: str) -> NoReturn:
        raise TemplateError(reason)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: form}
    template = environment.from_string(without_marks(text))
    marks = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad", "unk")}
    for system in ([], [{"role": "system", "content": "s"}]):
        for turns in (1, 2, 3):
            with suppress(TemplateError):  # it refuses such a conversation
                said = template.render(messages=system + TALK[:turns], add_generation_prompt=turns != 2, **marks)
                assert len(said) <= LONGEST


def main() -> None:
    with suppress(ImportError, ValueError):  # where there is no such limit, the time-out is
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    try:
        spell(json.loads(sys.stdin.read()))
    except (MemoryError, AssertionError):
        sys.exit(1)
    except Exception:  # a template may raise anything; who uses it is told
        sys.exit(0)


if __name__ == "__main__":
    main()
