"""alignment.rouge against its oracle, the package rouge 1.0.1: equal scores bit for bit, equal decisions of pools."""

import itertools
import math
import random
import subprocess
import sys

import pytest
from rouge import Rouge

from alignment.rouge import Match, Pool, rouge_l, tokenize

PACKAGE = Rouge(metrics=["rouge-l"])

QUESTIONS = [
    "What is the best way to clean a wooden floor?",
    "What is the best way to clean a leather sofa?",
    "what's the BEST way to clean a wooden floor",
    "How do I make an omelette? I have three eggs. I have no milk. I have a pan.",
    "I have three eggs. How do I make an omelette? I have a pan. I have no milk.",
    "How many planets are there in the solar system, and which of the planets is the largest of the planets?",
    "Which of the planets is the largest, and how many of the planets are in the solar system?",
    "Is 3.5 kg of flour (approx. 7.7 lbs.) enough for 2.5 loaves... or not?",
    "Is 7.7 kg of flour... enough?! e.g. for 3.5 loaves.",
    "Où est le café où tu étais? Où est le CAFE, naïve Zoë?",
    "ou est le cafe ou tu etais ? ou est le cafe , naive zoe ?",
    "北京的天气怎么样？北京今天下雨吗。",
    "今天北京下雨吗？",
    "Should I 🚀 or 🎉🎉? 👩‍👩‍👧 . 🚀 !",
    "🎉 🚀 . 👩‍👩‍👧",
    "İstanbul ve ılık ﬁne Straße ǅ ΑΣ ΌΣΟΣ",
    "tabs\tand\nnew lines\x0b\x1c\x85\u00a0\u2028\u3000 end\u200b\ufeff .",
    "lone \ud83d surrogate and \ufffd and \x00",
    "...",
    ". . ? . .",
    "? . . ?",
    "a",
]


def package(candidate: str, reference: str) -> float:
    """The oracle. 0.0 where it refuses a text, as alignment.rouge promises."""
    try:
        scores = PACKAGE.get_scores(" ".join(tokenize(candidate)), " ".join(tokenize(reference)))
    except ValueError as error:
        assert "at least 1 sentence" in str(error)
        return 0.0
    return scores[0]["rouge-l"]["f"]


def f(found: int, candidate_words: int, reference_words: int) -> float:
    """F as 2. of alignment.rouge has it."""
    p, r = found / candidate_words, found / reference_words
    return 2.0 * ((p * r) / (p + r + 1e-8))


def overlapping(found: int, candidate_words: int, reference_words: int) -> tuple[str, str]:
    """Two sentences of distinct words with `found` of them in common."""
    common = [f"w{i}" for i in range(found)]
    candidate = common + [f"x{i}" for i in range(candidate_words - found)]
    reference = [f"y{i}" for i in range(reference_words - found)] + common
    return " ".join(candidate), " ".join(reference)


@pytest.mark.parametrize(
    ("candidate", "reference", "counts"),
    [
        ("a b c d", "a b c d", (4, 4, 4)),
        ("a b x y", "z a b w", (2, 4, 4)),  # one half, but for the 1e-8
        ("b a", "a b", (1, 2, 2)),
        ("a a a a", "a", (1, 1, 1)),  # words count once
        ("a. b", "b. a", (2, 2, 2)),  # sentences may change places
        ("3.5", "5.3", (2, 2, 2)),  # and a number has two
        ("a .", ". a", (1, 1, 1)),
        ("...", "? . . ?", (1, 1, 2)),  # the empty word
        ("a b a", "b a", (2, 2, 2)),
    ],
)
def test_by_hand(candidate, reference, counts):
    assert rouge_l(candidate, reference) == f(*counts) == package(candidate, reference)


def test_order_of_arguments():
    """LCS length 2, "a b" or "a a": as candidate and reference change places, so does the one that is found."""
    one, other = "a b a", "a a b"
    assert rouge_l(one, other) == package(one, other) != package(other, one) == rouge_l(other, one)


@pytest.mark.parametrize("text", ["", " ", ".", " .\n", "\u200b", "\ud83d"])
def test_no_sentence(text):
    """The package raises, whichever of the two it is."""
    tokenized = " ".join(tokenize(text))
    for pair in [(tokenized, "a b"), ("a b", tokenized)]:
        with pytest.raises(ValueError):
            PACKAGE.get_scores(*pair)
    assert rouge_l(text, "a b") == rouge_l("a b", text) == rouge_l(text, text) == 0.0
    pool = Pool(["a b", text], threshold=1e-9)
    assert not pool.is_duplicate(text) and pool.nearest(text) is None
    assert pool.nearest("b").index == 0


def test_questions():
    scores = set()
    for pair in itertools.product(QUESTIONS, repeat=2):
        score = package(*pair)
        assert rouge_l(*pair) == score, pair
        scores.add(score)
    assert len(scores) > 50


@pytest.mark.parametrize("words", ["a b", "a b .", "a b c . ,", "a . é e", "🎉 🚀 . 京", "a b c d e f g h . ?"])
def test_random_texts(words):
    """Few different words, so that longest common subsequences tie often."""
    rng = random.Random(words)
    asymmetric = 0
    for _ in range(2000):
        one, other = (" ".join(rng.choices(words.split(), k=rng.randint(0, 14))) for _ in range(2))
        score = package(one, other)
        assert rouge_l(one, other) == score, (one, other)
        asymmetric += rouge_l(other, one) != score
    assert asymmetric > 10


def test_long_texts():
    """Where the package needs a deeper recursion than Python allows."""
    rng = random.Random(0)
    one, other = (" ".join(rng.choices([f"w{i}" for i in range(400)], k=550)) for _ in range(2))
    with pytest.raises(RecursionError):
        package(one, other)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(5000)
    try:
        score = package(one, other)
    finally:
        sys.setrecursionlimit(limit)
    assert 0 < rouge_l(one, other) == score


def near_duplicates(number: int, rng: random.Random) -> list[str]:
    """Sentences, and earlier ones again with words dropped, exchanged, moved and full stops put in."""
    vocabulary = [f"w{i}" for i in range(60)] + ["the", "a", "of", "?"] * 5
    texts = [rng.choices(vocabulary, k=rng.randint(1, 12))]
    while len(texts) < number:
        words = list(rng.choice(texts)) if rng.random() < 0.6 else rng.choices(vocabulary, k=rng.randint(1, 12))
        for _ in range(rng.randint(0, 6)):
            place = rng.randrange(len(words))
            words[place : place + rng.randint(0, 1)] = rng.choices([*vocabulary, ".", words[0]], k=rng.randint(0, 1))
            words = words or ["."]
        texts.append(words)
    return [" ".join(words) for words in texts]


@pytest.fixture(scope="module")
def scored():
    """Texts, and the package's scores [candidate][reference] of all pairs."""
    texts = near_duplicates(180, random.Random(0))
    return texts, [[package(candidate, reference) for reference in texts] for candidate in texts]


def test_deduplication(scored):
    """The same prompts are kept as by all pairs, for thresholds at scores that occur and at the floats beside them."""
    texts, scores = scored
    occurring = random.Random(1).sample(sorted({score for row in scores for score in row if score}), 12)
    beside = [math.nextafter(score, limit) for score in occurring for limit in (0, 1)]
    results = set()
    for threshold in [0.5, 1e-9, 1.0, *occurring, *beside]:
        pool = Pool(threshold=threshold)
        kept = []
        for candidate, text in enumerate(texts):
            duplicate = any(scores[candidate][reference] >= threshold for reference in kept)
            assert pool.is_duplicate(text) == duplicate, (threshold, text)
            if not duplicate:
                pool.add(text)
                kept.append(candidate)
        assert len(pool) == len(kept)
        results.add(tuple(kept))
        if threshold == 0.5:
            assert 40 < len(kept) < 140
    assert len(results) > 15  # the thresholds differ in what they keep


def test_what_twice_as_many_take():
    """Each text is compared with all before: twice as many take four times as long, three times more."""
    pool = Pool(["a b"])
    pool._seconds = 120.0
    assert (
        pool.cost() == "to tell near duplicates among 1 took 2.0 minutes; among twice as many it takes 6.0 minutes more"
    )


def test_words_that_most_texts_have():
    """Frequent words alone make a duplicate, or decide whether one is: against all pairs, also of members that share
    every word and of one word."""
    draw, common = random.Random(3), "the a of to ?".split()
    texts = [" ".join(draw.sample(common, draw.randint(1, 5))) for _ in range(40)]
    for _ in range(160):
        rare = [f"w{draw.randrange(12)}" for _ in range(draw.randint(0, 6))]
        texts.append(" ".join(draw.sample(common + rare, draw.randint(1, len(common + rare)))))
    for threshold in (0.3, 0.5, 0.8):
        pool, kept = Pool(threshold=threshold), []
        for text in texts:
            duplicate = any(rouge_l(text, other) >= threshold for other in kept)
            assert pool.is_duplicate(text) == duplicate, text
            if not duplicate:
                pool.add(text)
                kept.append(text)
        assert 5 < len(kept) < len(texts)


def test_nearest(scored):
    texts, scores = scored
    pool = Pool(texts)
    for text, row in zip(texts, scores, strict=True):
        assert pool.nearest(text) == (Match(max(row), row.index(max(row))) if any(row) else None)
    assert pool.nearest("nothing like it") is None


def test_nearest_of_equals():
    """Both score as one word of four; the later one has two in common, so it is scored first."""
    pool = Pool(["a q r s", "b a q r", "a q r s"])
    assert pool.nearest("a b c d") == Match(f(1, 4, 4), 0)


def test_order_of_adding(scored):
    texts, scores = scored
    members, candidates = texts[:90], texts[90:]
    order = random.Random(2).sample(range(90), 90)
    pool, shuffled = Pool(members), Pool(members[index] for index in order)
    decisions = [pool.is_duplicate(text) for text in candidates]
    assert decisions == [shuffled.is_duplicate(text) for text in candidates]
    assert decisions == [max(row[:90]) >= 0.5 for row in scores[90:]]
    assert len(set(decisions)) == 2


def test_around_one_half():
    """4 c = m + n is one half by hand, and kept for the 1e-8; one word more in common is a duplicate."""
    halves = 0
    for candidate_words, reference_words in itertools.product(range(1, 14), repeat=2):
        for found in range(min(candidate_words, reference_words) + 1):
            candidate, reference = overlapping(found, candidate_words, reference_words)
            score = package(candidate, reference)
            assert score == rouge_l(candidate, reference)
            assert Pool([reference]).is_duplicate(candidate) == (score >= 0.5)
            assert (score >= 0.5) == (4 * found > candidate_words + reference_words)
            halves += 4 * found == candidate_words + reference_words
    assert halves > 20


@pytest.mark.parametrize(("found", "candidate_words", "reference_words"), [(1, 2, 2), (3, 5, 7), (7, 9, 13), (6, 6, 6)])
def test_threshold_is_inclusive(found, candidate_words, reference_words):
    candidate, reference = overlapping(found, candidate_words, reference_words)
    score = package(candidate, reference)
    for threshold, duplicate in [(math.nextafter(score, 0), True), (score, True), (math.nextafter(score, 1), False)]:
        assert Pool([reference], threshold).is_duplicate(candidate) is duplicate


def test_bound_alone_decides_nothing():
    """All words in common, in reverse: the bound says duplicate, the subsequence of one word does not."""
    assert not Pool(["a b c d e f"]).is_duplicate("f e d c b a")
    assert Pool(["a b c d e f", "f e d c x y"]).is_duplicate("f e d c b a")


@pytest.mark.parametrize("threshold", [0, -0.5, 1.01, math.nan])
def test_threshold_out_of_range(threshold):
    with pytest.raises(ValueError, match="threshold"):
        Pool(threshold=threshold)


def test_empty_pool():
    pool = Pool()
    assert len(pool) == 0 and not pool.is_duplicate("a") and pool.nearest("a") is None


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("What's NEW, Zoë?", ["what", "'", "s", "new", ",", "zoe", "?"]),
        ("3.5 kg...", ["3", ".", "5", "kg", ".", ".", "."]),
        ("天气 ok", ["天", "气", "ok"]),
        ("a\x00\u200b\ufffd\ud83db\tc\u3000d", ["ab", "c", "d"]),
        ("", []),
    ],
)
def test_tokenize(text, tokens):
    assert tokenize(text) == tokens


def test_import_is_light():
    code = "import sys, alignment.rouge; print({'torch', 'vllm', 'tokenizers', 'rouge'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "set()\n"
