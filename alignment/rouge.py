"""ROUGE-L against duplicate prompts: the scores of the package rouge 1.0.1, bit for bit, in a fraction of the time.

    pool = Pool(seed_prompts, threshold=0.5)
    if not pool.is_duplicate(prompt):
        pool.add(prompt)

ALMoST drops a mined prompt whose highest ROUGE-L F against the seeds and the prompts kept so far is 0.5 or more. The
released code asks the package for every pair, more than an hour of work for 10,000 prompts. Here the number of words in
common, which bounds the score, settles nearly all pairs, first without the words that most texts have, and bit-parallel
dynamic programming scores the rest (`python benchmarks/deduplication.py` measures both). What the package computes,
beyond what its name says:

1. A text is cut into sentences at every full stop, also that of `3.5`. Full stops themselves do not count.
2. Words are sets. With m and n distinct words in reference and candidate, and c distinct words in the longest common
   subsequences of any reference sentence with any candidate sentence: p = c/n, r = c/m, F = 2 (p r / (p + r + 1e-8)).
3. Of several longest common subsequences backtracking finds one. Where words repeat, they can differ in distinct words,
   so the way it turns at ties is part of the score, and the score is not symmetric.
4. By the 1e-8 a text scores below 1 against itself, and a pair at one half by hand scores below 0.5: it is kept.
5. Nothing but space between two full stops is a sentence of one empty word, which counts and matches as any other.
6. A text of nothing, or of one full stop, raises ValueError. Here it scores 0: never a duplicate, nor has it any.
7. A few hundred words overflow its recursion (RecursionError). Here there is no limit.

Departure: WordPiece of bert-base-uncased needs a vocabulary from a model hub, so rare words are not cut into pieces.
"""

import time
from array import array
from collections.abc import Iterable
from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np


class Match(NamedTuple):
    """The member of a pool nearest to a text: its score, and its index in order of addition."""

    score: float
    index: int


class Pool:
    """Texts kept so far. Indices count them from 0 in order of addition."""

    def __init__(self, texts: Iterable[str] = (), threshold: float = 0.5):
        """`threshold` is the lowest F of a duplicate, 0 < threshold <= 1 (else ValueError); 1.0 finds none (see 4)."""
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is {threshold}; a ROUGE-L threshold must be above 0 and at most 1")
        self.threshold = threshold
        self._members: list[_Text] = []
        self._sizes = array("q")  # distinct words of each member
        self._seconds = 0.0  # in which candidates were judged
        self._holders: dict[str, array] = {}  # word -> indices of the members that contain it
        for text in texts:
            self.add(text)

    def __len__(self) -> int:
        return len(self._members)

    def add(self, text: str) -> None:
        """Take the text in, duplicate or not."""
        member = _parse(text)
        for word in member.words:
            self._holders.setdefault(word, array("q")).append(len(self))
        self._members.append(member)
        self._sizes.append(len(member.words))

    def is_duplicate(self, text: str) -> bool:
        """Whether any member, as reference, gives this candidate a score of the threshold or more."""
        started, candidate = time.perf_counter(), _parse(text)
        found = any(
            _score(candidate, self._members[index]) >= self.threshold
            for _, index in self._bounds(candidate, self.threshold)
        )
        self._seconds += time.perf_counter() - started
        return found

    def cost(self) -> str:
        """What the texts so far took, and by that what twice as many would: each is compared with all before it."""
        so_far, more = (f"{seconds / 60:,.1f} minutes" for seconds in (self._seconds, 3 * self._seconds))
        return f"to tell near duplicates among {len(self):,} took {so_far}; among twice as many it takes {more} more"

    def nearest(self, text: str) -> Match | None:
        """The member with the highest score, the earliest of equals; None if all score 0."""
        candidate = _parse(text)
        best = Match(0.0, -1)
        for bound, index in self._bounds(candidate, 0.0):
            if bound < best.score:
                break
            score = _score(candidate, self._members[index])
            if score > best.score or score == best.score and index < best.index:
                best = Match(score, index)
        return best if best.score > 0 else None

    def _bounds(self, candidate: "_Text", least: float) -> list[tuple[float, int]]:
        """(upper bound of the score, index) of the members that share a word and can reach `least`, highest first.

        A member that reaches it shares so many words that it shares some even without the `spare` most frequent ones.
        So members are found by the others, and only of those that can still reach it each of these is looked up.
        """
        size = len(candidate.words)
        spare = _least_shared(size, least) - 1
        holders = sorted((self._holders[word] for word in candidate.words if word in self._holders), key=len)
        rare, frequent = holders[: max(0, len(holders) - spare)], holders[max(0, len(holders) - spare) :]
        if not rare:
            return []
        shared = np.bincount(np.concatenate(rare))  # words in common with each member
        indices = np.flatnonzero(shared)
        shared, sizes = shared[indices], np.frombuffer(self._sizes, np.int64)[indices]
        for left in range(len(frequent), -1, -1):
            # A score counts shared words only, and it grows with the count, in floats too: one word more moves it by
            # far more than rounding does. So the same expression on all words that may be shared is never too low.
            bounds = _f(np.minimum(shared + left, sizes), size, sizes)
            can = bounds >= least
            indices, sizes, shared, bounds = indices[can], sizes[can], shared[can], bounds[can]
            if left:
                holder = np.frombuffer(frequent[-left], np.int64)  # ascending
                shared = shared + (holder[np.searchsorted(holder[:-1], indices)] == indices)
        order = np.argsort(-bounds, kind="stable")
        return list(zip(bounds[order].tolist(), indices[order].tolist(), strict=True))


@cache
def _least_shared(size: int, least: float) -> int:
    """Words at least that a candidate of `size` words shares with a member that can score `least`, one at least; a
    member of these words alone scores highest. More than `size` where none can."""
    return next((shared for shared in range(1, size + 1) if _f(shared, size, shared) >= least), size + 1)


def rouge_l(candidate: str, reference: str) -> float:
    """ROUGE-L F in [0, 1), `rouge.Rouge().get_scores(candidate, reference)[0]["rouge-l"]["f"]` on the joined tokens.

    0.0 where the package raises because a text is empty or a lone full stop.
    """
    return _score(_parse(candidate), _parse(reference))


def tokenize(text: str) -> list[str]:
    """Lower-case words and single punctuation marks, without accents: what BERT does before WordPiece.

    Lone surrogates are dropped, as BERT drops what is not a character.
    """
    normalizer, pre_tokenizer = _bert()
    normal = normalizer.normalize_str(text.encode("utf-8", "ignore").decode("utf-8"))
    return [word for word, _ in pre_tokenizer.pre_tokenize_str(normal)]


@cache
def _bert():
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer

    normalizer = BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=True, lowercase=True)
    return normalizer, BertPreTokenizer()


class _Text(NamedTuple):
    sentences: list[list[str]]
    words: set[str]


def _parse(text: str) -> _Text:
    pieces = " ".join(tokenize(text)).split(".")
    sentences = [piece.split() or [""] for piece in pieces if piece]  # the empty word: see 5
    return _Text(sentences, {word for sentence in sentences for word in sentence})


def _score(candidate: _Text, reference: _Text) -> float:
    if not candidate.words or not reference.words:
        return 0.0  # the package raises: see 6
    pairs = product(reference.sentences, candidate.sentences)
    found = set().union(*(_subsequence_words(*pair) for pair in pairs))
    return _f(len(found), len(candidate.words), len(reference.words))


def _f(found, candidate_size, reference_size):
    """F from counts, numbers or arrays; the package's order of operations, since it decides the last bit."""
    precision = found / candidate_size
    recall = found / reference_size
    return 2.0 * ((precision * recall) / (precision + recall + 1e-8))


def _subsequence_words(reference: list[str], candidate: list[str]) -> set[str]:
    """The words of that longest common subsequence of two sentences which the package's backtracking finds.

    The table of lengths has a row for each reference word, a column for each candidate word. A row is one integer, the
    bit set of the columns where it steps up by one; the next row costs a few operations (Allison and Dix, 1986).
    """
    columns: dict[str, int] = {}  # word -> bit set of its columns
    for column, word in enumerate(candidate):
        columns[word] = columns.get(word, 0) | 1 << column

    rows = []
    steps = 0
    for word in reference:
        matches = columns.get(word, 0)
        ends = steps | matches
        steps = ends & (ends ^ (ends - (steps << 1 | 1)))
        rows.append((word, matches, steps))

    # Backtracking starts at the last cell. A match is taken, diagonally; else, if the row above is longer than the
    # column to the left, which is where this row steps up, one row up; else one column left. So in each row we go left
    # to the first match or step, and leave it upwards.
    words = set()
    left = -1  # mask of the columns not yet passed: all
    for word, matches, steps in reversed(rows):
        column = (left & (matches | steps)).bit_length()  # counted from 1; 0: none
        if not column:
            break
        if matches >> (column - 1) & 1:
            words.add(word)
            column -= 1
        left = (1 << column) - 1
    return words
