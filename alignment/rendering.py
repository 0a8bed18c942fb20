"""A row -> the text that an engine is to continue, and where it should stop.

Engines take text and add BOS themselves where the model's tokenizer does; so the text never has one.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from typing import NamedTuple

from alignment.checkpoints import load_tokenizer
from alignment.templates import TEMPLATES, adds_bos, almost_text, alpaca_text, load_template, messages

RAW = "raw"  # the row's text as it is
CHOICES = (*(name for name in TEMPLATES if not name.endswith("_judgment")), RAW)


class Rendering(NamedTuple):
    name: str
    render: Callable[[dict], str]
    stop: tuple[str, ...]


def rendering_from(args: Namespace, default: str | None) -> Rendering:
    """What --template names for the engine that the flags name; `default` None is chat where the tokenizer has one.

    A server or simulated writer has no tokenizer here: `raw`, `alpaca` and `almost` do without one.
    """
    no_tokenizer = args.backend in ("openai", "simulated")
    name = args.template or default or (RAW if no_tokenizer else "chat")
    if name == RAW:
        return Rendering(name, lambda row: messages(row)[-1]["content"], ())
    if no_tokenizer and name in ("alpaca", "almost"):
        plain = {"alpaca": (alpaca_text, "\n\n### Instruction:"), "almost": (almost_text, "\n\nHuman:")}
        render, stop = plain[name]
        return Rendering(name, render, (stop,))
    tokenizer = load_tokenizer(args.model_name_or_path)
    if name == "chat" and not args.template and not tokenizer.chat_template:
        return Rendering(RAW, lambda row: messages(row)[-1]["content"], ())
    template = load_template(name, tokenizer)
    bos = tokenizer.bos_token if adds_bos(tokenizer) else None
    stop = (*template.stop, template.end) if template.end != tokenizer.eos_token else template.stop
    return Rendering(name, lambda row: template.render(row).removeprefix(bos or ""), stop)
