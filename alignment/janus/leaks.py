"""Does a system message give its instruction away?

    rule = LeakRule(prompts)
    rule.leaks(system, prompt)      # ["tcp", "ip model and for"], or [] where it does not

A system message says how to answer anything; one that tells what will be asked teaches a model to look there (section
3.1). It leaks where it shares four words in a row with its instruction, or one rare content word, with or without the
ending of a plural or a verb. Rare is a word that is neither in assets/janus/common_words.txt nor in the seed
preferences, which are about answers in general, nor in more than 1% of the instructions of the collection.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from functools import cache, lru_cache

from alignment.command_line import REPOSITORY
from alignment.janus.preferences import TREE
from alignment.records import read_text
from alignment.wording import grams

GRAM = 4  # words in a row
COMMON_SHARE = 0.01  # of the instructions: a word in more of them says little about one ...
COMMON_LEAST = 3  # ... if it is in so many at least
COMMON_WORDS = REPOSITORY / "assets" / "janus" / "common_words.txt"
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
ENDINGS = ("ing", "ed", "ly", "er", "e", "y")


def words_of(text: str) -> list[str]:
    return WORD.findall(text.lower())


@cache
def stem(word: str) -> str:
    """A word without its plural, then without its ending: crude, but the same for `applies`, `apply` and `applied`."""
    word = re.split("['’]", word)[0]
    if word.endswith(("ies", "ied")) and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("s") and not word.endswith(("ss", "us", "is")) and len(word) > 3:
        word = word[:-1]
    ending = next((ending for ending in ENDINGS if word.endswith(ending) and len(word) - len(ending) >= 3), "")
    word = word.removesuffix(ending)
    if len(word) > 4 and word[-1] == word[-2] and word[-1] not in "ls":
        word = word[:-1]  # planned, plan
    return word


@cache
def general_stems() -> frozenset[str]:
    """Stems of the words that say how an answer should be."""
    texts = [read_text(COMMON_WORDS, "word list"), read_text(TREE, "preference tree")]
    return frozenset(stem(word) for text in texts for word in words_of(text))


def is_content(word: str) -> bool:
    """Whether a word is of three letters or more, or a number of two digits."""
    return len(word) > 2 or (len(word) == 2 and word.isdecimal())


def content_stems(words: Iterable[str]) -> frozenset[str]:
    return frozenset(stem(word) for word in words if is_content(word))


class LeakRule:
    """The rule, with what is common in one collection."""

    def __init__(self, prompts: Iterable[str] = ()):
        found = [content_stems(words_of(prompt)) for prompt in prompts]
        holders = Counter(word for words in found for word in words)
        least = max(COMMON_LEAST, COMMON_SHARE * len(found))
        self._common = general_stems() | {word for word, count in holders.items() if count > least}

    def leaks(self, system: str, prompt: str) -> list[str]:
        """What a system message shares with its instruction: rare words, then runs of four words. Empty if nothing."""
        theirs, told = told_by(prompt)
        words = words_of(system)
        rare = {stem(word): word for word in reversed(words) if is_content(word)}
        found = [word for each, word in rare.items() if each in theirs and each not in self._common]
        return found[::-1] + list(dict.fromkeys(" ".join(run) for run in grams(words, GRAM) if run in told))


@lru_cache(maxsize=8)  # the system messages of an instruction come together
def told_by(prompt: str) -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    """Content stems and runs of words of an instruction."""
    words = words_of(prompt)
    return content_stems(words), frozenset(grams(words, GRAM))
