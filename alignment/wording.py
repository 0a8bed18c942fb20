"""What a text looks like: its words, how varied they are, whether it loops or refuses.

    distinct([["a", "b", "c"], ["a", "b"]], 2)  # 0.67: of three runs of two words two are different
    repeated("a b c d a b c d")                 # 0.2: of five runs of four words the last came before
    refuses("I'm sorry, but I can't do that.")  # True

Words are those of rouge.py, lower-case and without marks. Refusals are known in English alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from alignment.rouge import tokenize

RUN = 4  # words
OPENING = 300  # characters in which a refusal says that it is one
CANNOT = r"(?:can(?:no|')t|unable|not able|won't|will not|couldn't|could not)"
REFUSALS = (
    rf"\bas an? (?:ai|(?:large )?language model|assistant)\b[^.!?]{{0,80}}\b(?:{CANNOT}|do(?:n't| not) have)\b",
    rf"\b(?:sorry|apologi[sz]e|afraid)\b[^.!?]{{0,60}}\bi(?: am|'m)? {CANNOT}\b",
    rf"\bi(?: am|'m)? {CANNOT}(?: to)? (?:help|assist|provide|answer|comply|do (?:that|this)|give|tell|write)\b",
)
REFUSAL = re.compile("|".join(REFUSALS), re.IGNORECASE)


def words(text: str) -> list[str]:
    """Lower-case words without marks; a Chinese character is one."""
    return [word for word in tokenize(text) if word[0].isalnum()]


def grams(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Each run of `size` words."""
    return zip(*(words[at:] for at in range(size)), strict=False)


def distinct(texts: Sequence[Sequence[str]], size: int) -> float:
    """Distinct-n of texts as words: different runs of `size` words over all runs; 1 where there are none.

    What Janus's toxicity tables call so (eval/toxicity.py) divides by words, by which short texts seem less varied.
    """
    runs = [run for text in texts for run in grams(text, size)]
    return len(set(runs)) / len(runs) if runs else 1.0


def repeated(text: str) -> float:
    """The share of a text's runs of four words that came before in it, in [0, 1); 0 where it has none."""
    runs = list(grams(words(text), RUN))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def refuses(text: str) -> bool:
    """Whether a text's opening says, by one of a few English turns, that it will not or cannot do what is asked."""
    return REFUSAL.search(text[:OPENING].replace("’", "'")) is not None
