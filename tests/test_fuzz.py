"""Whatever a file holds: seeded mutations of good ones through every reader.

A reader ends in a UserError of one line that names the file, or gives what its contract says: texts that any file can
hold, numbers that can be compared, and what is stated beside each reader below. Replies: test_fuzz_replies.py.
"""

import gzip
import json
import random

import pytest
from mutations import TIMES, is_sound, mutated, says, torn

from alignment import few_shot, static_hhh, toxicity, truthfulqa
from alignment.auditing import benches
from alignment.auditing import pairs as audited
from alignment.choices import read_choices
from alignment.command_line import UserError
from alignment.janus import rows as janus
from alignment.janus.preferences import DIMENSIONS, TREE, Tree
from alignment.journal import Journal
from alignment.judging import answers, bench, criteria, judgments
from alignment.records import SURROGATE, read_prompts, read_responses, read_rows
from alignment.templates import TEMPLATES, instruction_of
from alignment.training_data import REASONS, read_examples
from eval import correctness_under_preference, run_evaluation
from generate import read_asked
from scripts import convert2alpaca

# Contracts


def are_examples(found) -> bool:
    """A prompt that each template spells or refuses in a line; one text (sft) or two, or the reason why none."""
    for each in found:
        assert each.fault in REASONS if not each.responses else not each.fault
        assert all(isinstance(text, str) for text in each.responses)
        for name in ("almost", "alpaca"):
            try:
                [text] = TEMPLATES[name](None).asked([each.prompt])
                assert isinstance(text, str) and not SURROGATE.search(text)
            except UserError as refused:
                assert "\n" not in str(refused)
    return True


def are_judged(found) -> bool:
    """Instruction and output that say something, an input that is a text, a judgment that says something or None."""
    return all(
        says(instruction_of(row)) and says(row["output"]) and isinstance(row["input"], str) and row["judgment"] != ""
        for row in found
    )


def are_rows(found) -> bool:
    return bool(found) and all(isinstance(row, dict) for row in found)


def are_questions(found) -> bool:
    return all(isinstance(each.id, str) and all(map(says, each.turns)) for each in found)


TURNS = [{"role": "system", "content": "S"}, {"role": "user", "content": "Why is it?"}]
REPLY, OTHER = ([{"role": "assistant", "content": text}] for text in ("It is so.", "No."))
SHARED = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
DIALOGUE = "\n\nHuman: Why?\n\nAssistant: "
DEMONSTRATIONS = [
    {"prompt": "Why?", "output": "So.", "system": "S", "history": [["a", "b"]]},
    {"messages": [*TURNS, *REPLY], "system": None},
    {"conversations": SHARED},
    {"instruction": "Sort.", "input": "3 1", "completion": "1 3"},
]
PAIRS = [
    {"prompt": "Why?", "chosen": "So.", "rejected": "No.", "meta": "a-vs-b", "id": 1},
    {"prompt": TURNS, "chosen": REPLY, "rejected": OTHER},
    {"chosen": [*TURNS, *REPLY], "rejected": [*TURNS, *OTHER], "system": "S"},
    {"chosen": DIALOGUE + "So.", "rejected": DIALOGUE + "No.", "type": "honest"},
    {"text": [DIALOGUE + "So.", DIALOGUE + "No."], "score": [1.0, 0.5]},
    {"question": {"full_text": "Why?"}, "answer_0": "So.", "answer_1": "No.", "score_0": 0.5, "score_1": -0.5},
    {"prompt": "prompter: Why?\nassistant: So.\nprompter: How?", "chosen": "So.", "rejected": "No."},
    {"conversations": SHARED[:1], "chosen": SHARED[1], "rejected": {"from": "gpt", "value": "No."}},
]
JUDGED = [
    {"instruction": "Sort.", "input": "3 1", "output": "1 3", "judgment": None, "score": 8, "id": 1},
    {"instruction": "Why?", "input": None, "output": "So.", "judgment": "It is too short.", "score": 1.5},
]
SET = [{"dimension": name, "subdimension": "sub", "preference": name, "description": "D."} for name in DIMENSIONS]
RUBRICS = [
    {"criteria": f"Is it {name}?", "score_descriptions": {score: f"{name} {score}" for score in "12345"}}
    for name in "abcd"
]
STAGE = [{"id": 1, "set": at, "split": "train", "prompt": "P", "preference_set": SET, "system": "S"} for at in (0, 1)]
BENCH = [
    {"source": "a", "preference_set": SET, "system": "S", "prompt": "P", "reference_answer": "R", "rubrics": RUBRICS}
]
HHH = [{"chosen": DIALOGUE + "So.", "rejected": DIALOGUE + "No.", "type": "honest"}]
TRUE = [{"question": "Why?", "mc1_targets": {"a": 1, "b": 0}, "mc2_targets": {"choices": ["a", "b"], "labels": [1, 0]}}]
ITEMS = [{"query": "Why?", "choices": ["a", "b"], "gold": 1}, {"question": "How?", "mc1_targets": {"a": 1, "b": 0}}]
ITEMS += [{"question": "Who?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"}]
TOXIC = [{"prompt": {"text": "a", "toxicity": 0.1}, "continuation": {"text": " b", "toxicity": None}}, {"prompt": "c"}]
VICUNA = [{"question_id": 1, "text": "Why?", "category": "c"}, {"question_id": 2, "text": "How?", "category": "c"}]
MT = [{"question_id": 1, "turns": ["a", "b"], "reference": ["x"]}, {"question_id": 2, "turns": ["c"], "category": "d"}]
SHEPHERD = [{"question": "Why?", "answer": "So.", "feedback": "Too short."}]
SCORER = {"documents": 2, "intercept": 0.1, "about": {}, "terms": {"a": [1, 0.5], "#a ": [1, -0.25]}}

QUESTIONS = [answers.Question("1", ("Why?",)), answers.Question("2", ("How?", "Who?"))]
READERS = {  # what it reads: a good value, the reader, and its contract
    "rows": (PAIRS, read_rows, are_rows),
    "sft": (DEMONSTRATIONS, lambda path: read_examples(str(path), "sft"), are_examples),
    "pairs": (PAIRS, lambda path: read_examples(str(path), "reward"), are_examples),
    "chosen as output": (PAIRS[:4], lambda path: read_examples(str(path), "sft", output_key="chosen"), are_examples),
    "choices": ([*PAIRS, PAIRS[0] | {"chosen": "a"}], read_choices, lambda found: bool(found.items)),
    "best of": (
        [{"prompt": "P", "chosen": ["a"], "rejected": ["b"], "id": 1}],
        read_choices,
        lambda found: found.items,
    ),
    "audited pairs": (PAIRS, lambda path: audited.read_pairs(str(path)), lambda found: isinstance(found, tuple)),
    "judgments": (JUDGED, judgments.read_judgments, are_judged),
    "instructions": (JUDGED, judgments.read_instructions, lambda found: all(says(row["instruction"]) for row in found)),
    "asked": (
        JUDGED,
        lambda path: read_asked(path, None, None),
        lambda found: all(says(r["instruction"]) for r in found),
    ),
    "replies": (["a", None, "BAD"], lambda path: read_responses(path, 3), lambda found: len(found) == 3),
    "questions": (VICUNA, answers.read_questions, are_questions),
    "MT-Bench": (MT, answers.read_questions, are_questions),
    "answers": (
        [{"question_id": 1, "output": "So.", "generator": "g"}],
        lambda path: answers.read_answers(str(path), QUESTIONS[:1]),
        lambda found: isinstance(found[0], str | None) and len(found[1]) == 1,
    ),
    "bench": (BENCH, lambda path: bench.read_bench(str(path)), lambda found: all(says(row["prompt"]) for row in found)),
    "janus instructions": (
        [*JUDGED, {"turns": ["a"], "instruction": "b"}],
        lambda p: janus.read_instructions([p], None),
        bool,
    ),
    "stage": (
        STAGE,
        lambda path: list(janus.stage_rows(path, "sm")),
        lambda found: all(says(r["system"]) for r in found),
    ),
    "published": ([BENCH[0] | {"output": "O"}], lambda path: list(janus.published(str(path))), bool),
    "published pairs": (
        [STAGE[0] | {"chosen": REPLY, "rejected": "b"}],
        lambda path: list(janus.published(str(path))),
        bool,
    ),
    "tree": (json.loads(TREE.read_text()), Tree.read, lambda found: set(found.seeds) == set(DIMENSIONS)),
    "HHH": (HHH, static_hhh.read_comparisons, lambda found: all(says(each.chosen) for each in found)),
    "TruthfulQA": (TRUE, truthfulqa.read_questions, lambda found: all(says(each.text) for each in found)),
    "items": (
        ITEMS,
        lambda p: correctness_under_preference.read_items(str(p)),
        lambda f: all(0 <= i.gold < len(i.choices) for i in f),
    ),
    "Vicuna": (VICUNA, run_evaluation.read_asked, lambda found: all(says(each.turns[0]) for each in found)),
    "benches": (
        VICUNA,
        benches.read_bench,
        lambda found: all(isinstance(t, str) for item in found.items for t in item),
    ),
    "toxic prompts": (TOXIC, toxicity.read_prompts, lambda found: all(says(each.text) for each in found)),
    "toxic texts": (TOXIC, toxicity.read_scored, lambda found: all(0 <= each.toxicity <= 1 for each in found)),
    "rubrics": (
        [{"rubrics": [{"description": "Is it so?", "weight": 2}, {"description": "Is it kind?"}]}, {"prompt": "a"}],
        lambda path: [criteria.rubrics_of(row, f"{path}, row") for row in read_rows(path)],
        lambda found: all(says(each.description) and each.weight > 0 for own in found for each in own),
    ),
    "critiques": (SHEPHERD, convert2alpaca.convert, lambda found: all(isinstance(r["output"], str) for r in found[0])),
}


@pytest.mark.parametrize("name", READERS)
def test_readers(name, tmp_path, capfd):
    good, read, holds = READERS[name]
    draw, path, taken = random.Random(name), tmp_path / "good.json", 0
    path.write_text(json.dumps(good))
    assert holds(read(path))
    for number in range(TIMES):
        suffix = draw.choice((".json", ".json", ".jsonl", ".json.gz", ""))
        path = tmp_path / f"{number}{suffix}"
        value = mutated(good, draw)
        is_lines = suffix == ".jsonl" and isinstance(value, list)
        raw = ("\n".join(map(json.dumps, value)) if is_lines else json.dumps(value)).encode()
        raw = torn(raw, draw) if number % 3 == 0 else raw
        path.write_bytes(gzip.compress(raw) if suffix.endswith("gz") else raw)
        try:
            found = read(path)
        except UserError as refused:
            assert "\n" not in str(refused) and str(tmp_path) in str(refused), (path, str(refused))
        else:
            taken += 1
            assert is_sound(found) and holds(found), path
    assert 0 < taken < TIMES


# Files that are texts, and the journal

PROMPT_FILE = (few_shot.SEPARATOR + "\n\nHuman: Why?\n\nAssistant: So.").join(["Header."] + [""] * 3)
SEEDS = "### Instruction: ask\n\nWhy?\nHow?\nWho?\n"


def is_prompts(found) -> bool:
    return all(line.strip() and "\n" not in line for line in found)


TEXTS = {
    "prompts": ("Why?\nHow?\n", read_prompts, is_prompts),
    "seeds": (SEEDS, lambda path: few_shot.Seeds.read(path, 1), lambda found: is_prompts(found.queries)),
    "demonstrations": (
        PROMPT_FILE,
        lambda path: few_shot.Demonstrations.read(path, 1),
        lambda found: found.format_prompt("Why?", 1).endswith("Assistant:"),
    ),
    "csv": ('prompt,output\n"a ""b""",c\nd,"e\nf"\n', lambda path: read_rows(path), are_rows),
    "scorer": (
        json.dumps(SCORER),
        lambda path: toxicity.load_scorer(path.parent),
        lambda found: 0 <= found.score("a") <= 1,
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_texts(name, tmp_path):
    good, read, holds = TEXTS[name]
    draw, taken = random.Random(name), 0
    path = tmp_path / {"csv": "a.csv", "scorer": toxicity.SCORER_FILE}.get(name, "a.txt")
    path.write_text(good)
    assert holds(read(path))
    for _ in range(TIMES):
        path.write_bytes(torn(good.encode(), draw))
        try:
            found = read(path)
        except UserError as refused:
            assert "\n" not in str(refused) and str(tmp_path) in str(refused), str(refused)
        else:
            taken += 1
            assert is_sound(found) and holds(found), path.read_bytes()
    assert 0 < taken < TIMES


def test_journals(tmp_path):
    """A reply is what it was, or none: never another, nor half of one."""
    path, draw = tmp_path / "out.json.journal.jsonl", random.Random(0)
    whole = {str(number): ("é\u2028 text " * number, "stop") for number in range(4)}
    for number in range(TIMES):
        path.unlink(missing_ok=True)
        with Journal(tmp_path / "out.json") as journal:
            for key, reply in whole.items():
                journal.add(key, *reply)
        if number % 2:
            path.write_bytes(torn(path.read_bytes(), draw))
        else:
            lines = [json.loads(line) for line in path.read_text().split("\n")[:-1]]
            found = mutated({"lines": lines}, draw)
            lines = found.get("lines") if isinstance(found, dict) else found
            path.write_text(
                "".join(json.dumps(line) + "\n" for line in (lines if isinstance(lines, list) else [lines]))
            )
        before = path.read_bytes()
        try:
            with Journal(tmp_path / "out.json") as journal:
                found = [journal.get(key) for key in whole]
        except UserError as refused:
            assert "\n" not in str(refused) and path.read_bytes() == before
        else:
            assert all(
                reply is None or is_sound(reply) and all(isinstance(each, str) for each in reply) for reply in found
            )
