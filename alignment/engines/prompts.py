"""For the engines that run a model here: their identity, a request -> token ids, and ids -> a reply's text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignment.command_line import UserError
from alignment.generation import Request
from alignment.pretrained import model_identity
from alignment.templates import load_template


def identity(backend: str, model: str, max_model_len: int | None, dtype: str | None) -> str:
    """What the journal knows an engine by. A setting that is not given is no part of it."""
    settings = {"max_model_len": max_model_len, "dtype": dtype}
    return " ".join([backend, model_identity(model), *(f"{name}={value}" for name, value in settings.items() if value)])


def prompt_ids(tokenizer: Any, requests: Sequence[Request]) -> tuple[list[list[int]], set[int]]:
    """Token ids of each request's prompt, and the ids that end a reply to messages beside the model's own end.

    A text gets what the tokenizer opens a text with; messages are rendered by the model's own chat template, a system
    role folded into the first turn where it refuses one; ids are taken as they are. Raises UserError for messages where
    the tokenizer has no chat template.
    """
    found: list[list[int]] = [[] for _ in requests]
    texts = [i for i, request in enumerate(requests) if isinstance(request.prompt, str)]
    if texts:
        for i, ids in zip(texts, tokenizer([requests[i].prompt for i in texts])["input_ids"], strict=True):
            found[i] = ids
    chats = [i for i, request in enumerate(requests) if request.is_chat]
    ends: set[int] = set()
    if chats:
        if not tokenizer.chat_template:
            raise UserError("messages need a chat template, and the model's tokenizer has none")
        template = load_template("chat", tokenizer)
        ends = {template.end_id}
        for i, ids in zip(chats, template.prompt_ids([{"prompt": requests[i].prompt} for i in chats]), strict=True):
            found[i] = ids
    for i in set(range(len(requests))) - {*texts, *chats}:
        found[i] = list(requests[i].prompt)
    return found, ends


def cut_reply(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> tuple[str, list[int]]:
    """A reply's text up to the first of the stop strings, and those of its ids that lie before it as a whole."""
    ids = list(ids)
    text = tokenizer.decode(ids, skip_special_tokens=True)
    cuts = [at for each in stop if (at := text.find(each)) >= 0]
    if not cuts:
        return text, ids
    while ids and len(tokenizer.decode(ids, skip_special_tokens=True)) > min(cuts):
        ids.pop()
    return text[: min(cuts)], ids
