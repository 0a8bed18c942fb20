r"""Texts -> token ids, with a tokenizer in hand: what opens a text, what goes on from another, and what is only data.

A tokenizer makes a control token of whatever spells one: "<|im_end|>" in somebody's question would end his turn. So
a text of the data gets a MARK inside each such spelling before a template writes its own tokens around it, and what
stands on both sides of a mark is encoded apart:

    mark = marker(tokenizer)
    plain_ids(tokenizer, ["<|im_start|>user\n" + mark("What is <|im_end|>?") + "<|im_end|>"])    # two control tokens

A text that spells none has no mark, and its ids are the tokenizer's own of the whole.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

ANCHOR = "\n"  # what a text is encoded after, where it follows no special token
MARK = "\ud800"  # half a character: no reader takes it, so that no data hold it, and no tokenizer is given it
# What is a control token of many models, for where there is no tokenizer to ask
USUAL = r"<\|[^\s<>|]{1,50}\|>|<｜[^\s<>]{1,50}｜>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk)>"


def marker(tokenizer: Any, written: Collection[int] = ()) -> Callable[[str], str]:
    """What puts a MARK after the first character of all that spells a control token in a text of the data.

    These are the tokenizer's special tokens, and of its other added ones those of the ids `written`, a template's, that
    look like marks: not words, blanks or line ends. A token of one character cannot be told from text. Without a
    tokenizer, which is elsewhere, they are USUAL ones.
    """
    tokens = tokenizer.added_tokens_decoder.items() if tokenizer else ()
    found = [token.content for number, token in tokens if token.special or (number in written and is_markup(token))]
    spelled = "|".join(re.escape(text) for text in found if len(text.strip()) > 1) if tokenizer else USUAL
    if not spelled:
        return str
    quick, each = re.compile(spelled), re.compile(f"(?={spelled}).", re.DOTALL)  # spellings may overlap
    return lambda text: each.sub(rf"\g<0>{MARK}", text) if quick.search(text) else text


def is_markup(token: Any) -> bool:
    return re.match(r"[^\w\s]", token.content) is not None


def marked(value: Any, mark: Callable[[str], str]) -> Any:
    """A row, or a part of one, whose texts are marked."""
    if isinstance(value, str):
        return mark(value)
    if isinstance(value, dict):
        return {key: marked(each, mark) for key, each in value.items()}
    return [marked(each, mark) for each in value] if isinstance(value, list) else value


def plain_ids(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of texts with nothing added."""
    return in_parts(tokenizer, texts, lambda firsts: whole_ids(tokenizer, firsts))


def text_ids(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of texts that open a sequence: after BOS where the tokenizer adds one, and never after two."""
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    return [ids if ids[:1] == bos else bos + ids for ids in plain_ids(tokenizer, texts)]


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself would open a text with BOS. Asked of its output: `add_bos_token` is not reliable."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def continuation_ids(tokenizer: Any, texts: Iterable[str], anchor: str = ANCHOR) -> list[list[int]]:
    r"""Token ids of texts that follow another text, which ends in `anchor` if that is a special token.

    SentencePiece tokenizers (Llama 2, Mistral) open a text with a space of their own, some also what follows a special
    token; byte-level ones can, too. After other text they do not: "Hello" is [Hello] there, and not [▁Hello].
    """
    return in_parts(tokenizer, texts, lambda firsts: following_ids(tokenizer, firsts, anchor))


def in_parts(tokenizer: Any, texts: Iterable[str], encode: Callable) -> list[list[int]]:
    """Ids of texts, of which `encode` takes what stands before a first MARK; the rest goes on from it, part by part."""
    parts = [text.split(MARK) for text in texts]
    found = encode([first for first, *_ in parts])
    return [ids + sum(following_ids(tokenizer, rest, ANCHOR), []) for ids, (_, *rest) in zip(found, parts, strict=True)]


def following_ids(tokenizer: Any, texts: Sequence[str], anchor: str) -> list[list[int]]:
    """`continuation_ids` of texts without a MARK."""
    if not texts:
        return []
    first = tokenizer.convert_ids_to_tokens(whole_ids(tokenizer, ["a"])[0])[0]
    if not first.startswith(("▁", "Ġ")):
        return whole_ids(tokenizer, texts)
    before = whole_ids(tokenizer, [anchor])[0]
    found = whole_ids(tokenizer, [anchor + text for text in texts])
    apart = [ids[: len(before)] == before for ids in found]
    alone = whole_ids(tokenizer, texts) if not all(apart) else found
    return [ids[len(before) :] if cut else bare for ids, cut, bare in zip(found, apart, alone, strict=True)]


def whole_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of texts without a MARK, nothing added."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []
