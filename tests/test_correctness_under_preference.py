"""What a system message breaks: items of every form, the choice, the counts by hand, and the script on a tiny model."""

import json
import statistics
from pathlib import Path

import pytest
from conftest import make_llama
from transformers import AutoModelForSequenceClassification

from alignment.command_line import UserError
from alignment.intervals import wilson
from alignment.run_cards import run_card_path
from eval import correctness_under_preference as script
from eval.correctness_under_preference import (
    CONDITIONS,
    MESSAGES,
    Item,
    by_condition,
    choice_of,
    draw_messages,
    item_of,
    read_items,
    read_messages,
    results,
    shown,
)

ARC = {"id": "M1", "query": "Question: Which?\nAnswer:", "choices": ["one", "two", "three"], "gold": 2}
TRUTHFUL = {"question": "Why?", "mc1_targets": {"No reason.": 1, "A reason.": 0}}


@pytest.fixture
def files(tmp_path):
    """Twelve items of ARC's form and six of TruthfulQA's."""
    arc = [ARC | {"id": f"M{i}", "choices": [f"{i} apples", f"{i} pears", "none"], "gold": i % 3} for i in range(12)]
    truthful = [{"question": f"Why {i}?", "mc1_targets": {"No": 1, f"Yes, {i}": 0, "So": 0}} for i in range(6)]
    (tmp_path / "arc.jsonl").write_text("\n".join(map(json.dumps, arc)))
    (tmp_path / "truthful.json").write_text(json.dumps(truthful))
    return [str(tmp_path / "arc.jsonl"), str(tmp_path / "truthful.json")]


def words(files, model, output, *more):
    given = ["--data_path", *files, "--model_name_or_path", model, "--output_path", output, *more]
    return script.parse_args(list(map(str, given)))


# Items


def test_items_of_each_form():
    """ARC and MMLU as they lie in files, TruthfulQA, and the three as the hub has them."""
    wanted = ("s", "M1", ARC["query"], ["one", "two", "three"], 2, False)
    assert item_of(ARC, 0, "a/s.jsonl") == Item(*wanted)
    hub = {"id": "M1", "question": ARC["query"], "answerKey": "C"}
    assert item_of(hub | {"choices": {"text": ARC["choices"], "label": ["A", "B", "C"]}}, 0, "s.json") == Item(*wanted)
    mmlu = {"question": "q", "choices": ["0", "1"], "answer": 0}
    assert item_of(mmlu, 7, "s.jsonl.gz") == Item("s.jsonl", 7, "q", ["0", "1"], 0, False)
    answers = ("s", 3, "Why?", ["No reason.", "A reason."], 0, True)
    assert item_of(TRUTHFUL, 3, "s.json") == Item(*answers)
    marked = {"choices": ["No reason.", "A reason."], "labels": [1, 0]}
    assert item_of(TRUTHFUL | {"mc1_targets": marked}, 3, "s.json") == Item(*answers)


@pytest.mark.parametrize(
    "row, said",
    [
        ({"query": "q", "choices": ["a", "b"]}, "row 0 has no 'gold' or 'answer' .its keys: query, choices"),
        (ARC | {"gold": None}, "has no 'gold' or 'answer'"),
        (ARC | {"gold": 3}, "row 0: the right choice is 3; give its place, 0 to 2"),
        (ARC | {"gold": -1}, "the right choice is -1"),
        (ARC | {"gold": True}, "the right choice is True"),
        (ARC | {"gold": "C"}, "the right choice is 'C'"),
        (ARC | {"choices": ["one"], "gold": 0}, "no list of two texts"),
        (ARC | {"choices": ["one", " ", "two"]}, "no list of two texts"),
        (ARC | {"choices": "one two"}, "no list of two texts"),
        ({"qestion": "q", "choices": ["a", "b"], "gold": 0}, "no text under 'query' or 'question'; did you mean 'qest"),
        (TRUTHFUL | {"mc1_targets": {"a": 1, "b": 1}}, "marks 2 choices as right"),
        (TRUTHFUL | {"mc1_targets": {"a": 0, "b": 0}}, "marks 0 choices as right"),
        (TRUTHFUL | {"mc1_targets": ["a", "b"]}, "marks 0 choices as right"),
    ],
)
def test_an_item_that_cannot_be_asked(tmp_path, row, said):
    (tmp_path / "items.json").write_text(json.dumps([row]))
    with pytest.raises(UserError, match=said):
        read_items(str(tmp_path / "items.json"))


# Messages


def test_our_messages_are_of_one_length():
    """Both kinds eight times, no text twice, and as long: what breaks is not told by how much was read."""
    found = read_messages(MESSAGES)
    lengths = {kind: [len(text) for text in texts] for kind, texts in found.items()}
    assert {kind: len(set(texts)) for kind, texts in found.items()} == {"relevant": 8, "irrelevant": 8}
    assert statistics.mean(lengths["relevant"]) == pytest.approx(statistics.mean(lengths["irrelevant"]), rel=0.02)


def test_messages_are_drawn_by_seed_and_item():
    messages = {"relevant": list("abcdefgh"), "irrelevant": list("ABCDEFGH")}
    items = [Item("s", number, "q", ["a", "b"], 0, False) for number in range(40)]
    drawn = [draw_messages(item, messages, 1) for item in items]
    assert {own["none"] for own in drawn} == {""}
    assert all({own[kind] for own in drawn} == set(messages[kind]) for kind in messages)
    assert drawn == [draw_messages(item, messages, 1) for item in items]
    assert drawn != [draw_messages(item, messages, 2) for item in items]


@pytest.mark.parametrize(
    "found, said",
    [
        ({"relevant": ["a"], "irelevant": ["b"]}, "'irelevant' is none of relevant, irrelevant; did you mean 'irrele"),
        ({"relevant": ["a"], "irrelevant": []}, "'irrelevant' is no list of texts"),
        ({"relevant": ["a"]}, "'irrelevant' is no list"),
        ({"relevant": [" "], "irrelevant": ["b"]}, "'relevant' is no list"),
        (["a"], "is none of relevant, irrelevant"),
    ],
)
def test_messages_that_cannot_be_used(tmp_path, found, said):
    (tmp_path / "messages.json").write_text(json.dumps(found))
    with pytest.raises(UserError, match=said):
        read_messages(tmp_path / "messages.json")
    (tmp_path / "messages.json").write_text("")
    with pytest.raises(UserError, match="is empty"):
        read_messages(tmp_path / "messages.json")


# Choices and counts


def test_the_choice_by_character_or_by_sum():
    """-4 over 2 characters is -2 each, -6 over 4 is -1.5: the longer one; by sum the shorter. Of equals a wrong one."""
    item = Item("s", 0, "q", ["ab", "abcd"], 0, False)
    assert choice_of(item, [-4.0, -6.0]) == 1 and choice_of(item._replace(by_sum=True), [-4.0, -6.0]) == 0
    assert choice_of(item, [-2.0, -4.0]) == 1 and choice_of(item._replace(gold=1), [-2.0, -4.0]) == 0


def answers_of(name, *marks):
    """An answer for each mark: (right with none, relevant, irrelevant)."""
    return [
        {"set": name, "gold": 0, "choice": {c: 1 - m for c, m in zip(CONDITIONS, own, strict=True)}} for own in marks
    ]


MARKS = [(1, 1, 1), (1, 1, 0), (1, 0, 0), (1, 1, 1), (0, 1, 0), (0, 0, 0)]


def test_what_breaks_and_what_heals():
    """Six items, four right with none. Relevant: 3 of the 4 stay right and 1 of the 2 wrong heals, so 4 of 6 are right,
    0 more. Irrelevant: 2 of the 4 break, none heals, so 2 of 6 are right, 2 less."""
    found = by_condition(answers_of("s", *MARKS), 0)
    assert found["none"] == {"n": 6, "accuracy": {"value": 4 / 6, "interval": wilson(4, 6), "of": 6}}
    relevant, irrelevant = found["relevant"], found["irrelevant"]
    assert relevant["accuracy"]["value"] == 4 / 6 and relevant["added"]["value"] == 0
    assert relevant["broken"] == {"value": 1 / 4, "interval": wilson(1, 4), "of": 4}
    assert relevant["healed"] == {"value": 1 / 2, "interval": wilson(1, 2), "of": 2}
    assert irrelevant["added"]["value"] == pytest.approx(-2 / 6)
    assert irrelevant["broken"]["value"] == 1 / 2 and irrelevant["healed"]["value"] == 0
    low, high = irrelevant["added"]["interval"]
    assert low < -2 / 6 < high <= 0  # paired: no item is better under it, so no resample is


def test_sets_apart_and_together():
    found = results(answers_of("s", *MARKS[:4]) + answers_of("t", *MARKS[4:]), 0)
    assert list(found) == ["s", "t", "all"] and list(results(answers_of("s", *MARKS), 0)) == ["s"]
    assert found["t"]["none"]["accuracy"]["value"] == 0 and found["t"]["relevant"]["broken"]["value"] is None
    lines = shown({"results": json.loads(json.dumps(found)), "left_out": {"too long": 2}}).splitlines()
    assert lines[-1] == "left out: 2 too long" and len(lines) == 11
    relevant_of_t = next(line for line in lines if line.startswith("t ") and " relevant" in line)
    assert relevant_of_t.split() == ["t", "relevant", *"50.0 [9.5, 90.5] +50.0 [+0.0, +100.0] –".split()] + [
        *"50.0 [9.5, 90.5] 2".split()
    ]


# The script


def test_the_script_and_the_same_command_again(files, model_folder, tmp_path, capsys, monkeypatch):
    """Each item's choice is that of its log-probabilities, which are the policy's own, one by one; done is done."""
    from alignment.training.likelihoods import Likelihoods

    out = tmp_path / "out" / "result.json"
    args = words(files, model_folder, out, "--batch_tokens", 900)
    script.main(args)
    table, found = capsys.readouterr().out, json.loads(out.read_text())
    assert [each["set"] for each in found["items"]] == ["arc"] * 12 + ["truthful"] * 6
    assert len({tuple(each["logps"][c]) for each in found["items"] for c in CONDITIONS}) == 18 * 3
    items = [item for path in files for item in read_items(path)]
    policy = Likelihoods(str(model_folder), ends=False)
    for item, each in list(zip(items, found["items"], strict=True))[::5]:
        for condition in CONDITIONS:
            row = {"system": each["messages"][condition], "prompt": item.prompt}
            alone = [policy.score([row], [choice])[0] for choice in item.choices]
            assert each["logps"][condition] == pytest.approx(alone, abs=1e-3)
            assert each["choice"][condition] == choice_of(item, alone)
    assert found["results"] == json.loads(json.dumps(results(found["items"], 42)))
    assert len(table.splitlines()) == 10 and json.loads(run_card_path(out).read_text())["counts"]["answered"] == 18

    monkeypatch.setattr(Likelihoods, "score", lambda *args: pytest.fail("asked again"))
    script.main(args)
    assert capsys.readouterr().out.partition("nothing to do\n")[2] == table
    run_card_path(out).unlink()  # as where it was killed before the end: the journal has the log-probabilities
    before = out.read_text()
    script.main(args)
    assert out.read_text() == before and capsys.readouterr().out == table


def test_what_does_not_fit_is_left_out_of_all_conditions(files, tmp_path, tokenizer, capsys):
    """A model of 460 positions: the item with a long question is counted, not cut; one of 60 takes none."""
    rows = [ARC | {"id": f"M{i}", "query": "Which?" * (40 if i == 3 else 1)} for i in range(12)]
    Path(files[0]).write_text("\n".join(map(json.dumps, rows)))
    tokenizer.save_pretrained(tmp_path / "m")
    make_llama(len(tokenizer), max_position_embeddings=460).save_pretrained(tmp_path / "m")
    script.main(words(files[:1], tmp_path / "m", tmp_path / "r.json"))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["left_out"] == {"too long": 1} and len(found["items"]) == 11
    assert "M3" not in [each["id"] for each in found["items"]] and "left out: 1 too long" in capsys.readouterr().out
    make_llama(len(tokenizer), max_position_embeddings=60).save_pretrained(tmp_path / "m")
    with pytest.raises(UserError, match="none of 12 items fits"):
        script.main(words(files[:1], tmp_path / "m", tmp_path / "s.json"))


def test_mistakes(files, tmp_path, llama, tokenizer, capsys):
    config = llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match="is a reward model"):
        script.main(words(files, tmp_path / "rm", tmp_path / "r.json"))
    with pytest.raises(UserError, match="two files named arc"):
        script.main(words([files[0], files[0]], tmp_path / "rm", tmp_path / "r.json"))
    with pytest.raises(SystemExit):
        words(files, "m", tmp_path / "r.json", "--template", "mistrl")
    assert "did you mean 'mistral'" in capsys.readouterr().err
    assert not (tmp_path / "r.json").exists()
