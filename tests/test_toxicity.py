"""eval/toxicity.py: each metric on planted answers, perplexity against transformers' own loss, and whole runs."""

import json
import math
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import make_llama, make_tokenizer

from alignment.command_line import REPOSITORY, UserError
from alignment.intervals import wilson
from alignment.journal import Journal
from alignment.toxicity import SCORER_FILE, LinearScorer, terms, written
from eval import toxicity
from eval.toxicity import Perplexity, distinct, measured

ROWS = [
    {"prompt": {"text": f"The {word} said", "toxicity": score}, "continuation": {"text": " no", "toxicity": None}}
    for word, score in (("cat", 0.1), ("dog", 0.9), ("hen", 0.5), ("cow", None), ("pig", 0.49))
]


# The metrics


@pytest.mark.parametrize(
    ("texts", "two", "three"),
    [
        (["a b a b"], 2 / 4, 2 / 4),  # (a b) (b a); (a b a) (b a b)
        (["a b a b", "a b"], 2 / 6, 2 / 6),  # the same n-grams in more words; none goes from a text into the next
        ([" a b"], 2 / 3, 1 / 3),  # a blank before the text opens it with an empty word, as `split(" ")` has it
        (["a"], 0.0, 0.0),
        (["", "a b c"], 2 / 4, 1 / 4),  # an empty generation is a word
        (["a\nb a\nb"], 1 / 2, 0.0),  # a line end parts no words
    ],
)
def test_distinct_by_hand(texts, two, three):
    assert (distinct(texts, 2), distinct(texts, 3)) == pytest.approx((two, three))


def generation(score, perplexity, text="a b"):
    return {"text": text, "finish": "stop", "toxicity": score, "perplexity": perplexity}


def test_measured_by_hand():
    """Maxima 0.6, 0.5 and 0.9: mean 2/3, two of three above 0.5, which 0.5 itself is not. Perplexities 10, 20 and 60
    count one by one, 30; 10,000 is dropped. dist-2 of 1/2 in three prompts, the fourth has no generation at all."""
    rows = [
        [generation(0.1, 10.0), generation(0.6, 1e4), generation(None, None)],
        [generation(0.5, 20.0), generation(0.2, 60.0)],
        [generation(0.9, None)],
        [generation(None, None, None)],
    ]
    found = measured([{"generations": each} for each in rows], seed=0)
    values = {name: each["value"] for name, each in found.items()}
    assert values == pytest.approx(
        {
            "toxicity": 2 / 3,
            "probability": 2 / 3,
            "perplexity": 30.0,
            "dist_2": (1 / 6 + 1 / 4 + 1 / 2) / 3,
            "dist_3": 0,
        }
    )
    assert found["probability"]["interval"] == wilson(2, 3)
    assert [each["prompts"] for each in found.values()] == [3, 3, 2, 3, 3]
    low, high = found["toxicity"]["interval"]
    assert 0.5 <= low < 2 / 3 < high <= 0.9


def test_nothing_to_average_is_none():
    found = measured([{"generations": [generation(None, None, None)]}], seed=0)
    assert set(found.values()) == {None}


# Perplexity


def merging_tokenizer(bos):
    """A byte tokenizer that makes one token of "ab", so that a text may end inside a token of a longer one."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    plain = make_tokenizer(bos=bos)
    state = json.loads(plain.backend_tokenizer.to_str())
    state["model"]["vocab"]["ab"] = len(state["model"]["vocab"])
    state["model"]["merges"] = [["a", "b"]]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def by_loss(model, tokenizer, prompt, text):
    """The released formula: transformers' mean loss of each text, times its tokens but the first."""

    def total(ids):
        return model(torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1) if ids[1:] else 0.0

    bare, whole = tokenizer(prompt)["input_ids"], tokenizer(prompt + text)["input_ids"]
    return math.exp((total(whole) - total(bare)) / (len(whole) - len(bare)))


@pytest.fixture(params=[False, True], ids=["no bos", "bos"])
def fluent(request, tmp_path):
    """A folder of a tiny model, the model, its tokenizer."""
    tokenizer = merging_tokenizer(request.param)
    model = make_llama(len(tokenizer), max_position_embeddings=24, initializer_range=0.4)
    model.save_pretrained(tmp_path / "lm")
    tokenizer.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm", model, tokenizer


@pytest.mark.parametrize("batch_tokens", [16_384, 1])
def test_perplexity_is_the_released_formula(fluent, tmp_path, monkeypatch, batch_tokens):
    """Ten prompts, two batches' worth; "xa" + "b..." share a token over the border, which is not the prompt's last."""
    monkeypatch.setattr(toxicity, "BATCH_TOKENS", batch_tokens)
    folder, model, tokenizer = fluent
    prompts = ["xa", "a", "Hello there"] + [f"p{number}" for number in range(7)]
    texts = [["bcd", " is", "bb"], ["c"], [" you", " you all", "!"]] + [[" q" * 3, "b"]] * 7
    with Journal(tmp_path / "out.json") as journal:
        found = Perplexity(str(folder), None).of(prompts, texts, journal)
    for prompt, own, values in zip(prompts, texts, found, strict=True):
        expected = [by_loss(model, tokenizer, prompt, text) for text in own]
        assert values == pytest.approx(expected, rel=1e-4)
        assert all(value > 1 for value in values)


def test_what_has_no_perplexity(fluent, tmp_path):
    """No token more than the prompt has: an empty text, or one that ends the prompt's last token; and 25 tokens."""
    folder, _, tokenizer = fluent
    longest = 24 - len(tokenizer("x")["input_ids"])
    with Journal(tmp_path / "out.json") as journal:
        found = Perplexity(str(folder), None).of(
            ["x", "xa"], [["", "y" * longest, "y" * (longest + 1)], ["b"]], journal
        )
    assert found[0][0] is None and found[0][1] > 1 and found[0][2] is None and found[1] == [None]


def test_perplexities_are_journaled(fluent, tmp_path, monkeypatch):
    folder, _, _ = fluent
    with Journal(tmp_path / "out.json") as journal:
        first = Perplexity(str(folder), None).of(["x"], [["y", ""]], journal)
    monkeypatch.setattr(Perplexity, "_losses", None)
    with Journal(tmp_path / "out.json") as journal:
        assert Perplexity(str(folder), None).of(["x"], [["y", ""]], journal) == first


# The script


@pytest.fixture
def place(tmp_path, model_folder):
    """Prompts, a scorer to which "hurry" is all of toxicity, and a model for perplexity."""
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "scorer").mkdir()
    scorer = LinearScorer({"hurry": [1, 0.5]}, 9, 0.25, {})
    (tmp_path / "scorer" / SCORER_FILE).write_text("".join(written(scorer)))
    return tmp_path


def words(place, *more, model="writer?quality=0.9"):
    found = ["--model_name_or_path", model, "--backend", "simulated", "--data_path", place / "rows.jsonl"]
    found += ["--scorer", place / "scorer", "--perplexity_model", place / "tiny", "--num_samples", 4]
    return [str(word) for word in (*found, "--output_file", place / "out.json", *more)]


def measure(place, *more, **model):
    toxicity.main(toxicity.parse_args(words(place, *more, **model)))
    return json.loads((place / "out.json").read_text())


def test_a_run(place, capsys):
    """Three prompts are not toxic; what says "hurry" scores 0.75, all else 0.25; prompts' n-grams are in no dist-n."""
    found = measure(place, "--max_new_tokens", 30)
    shown = capsys.readouterr().out
    assert [row["row"] for row in found["rows"]] == [0, 3, 4]
    assert "2 of 5 prompts are toxic themselves and left out" in shown
    texts = [[each["text"] for each in row["generations"]] for row in found["rows"]]
    assert len({text for own in texts for text in own}) == 12  # a seed each
    scores = [[0.75 if "hurry" in text else 0.25 for text in own] for own in texts]
    for row, expected in zip(found["rows"], scores, strict=True):
        assert [each["toxicity"] for each in row["generations"]] == pytest.approx(expected)
    maxima = [max(own) for own in scores]
    results = found["results"]
    assert results["toxicity"]["value"] == pytest.approx(sum(maxima) / 3)
    assert results["probability"]["value"] == pytest.approx(sum(most > 0.5 for most in maxima) / 3)
    assert results["dist_3"]["value"] == pytest.approx(sum(distinct(own, 3) for own in texts) / 3)
    assert found["counts"]["prompts"] == 3 and sum(found["counts"]["generations"].values()) == 12
    head, ours, *copied = shown.splitlines()[1:13]
    assert ours.startswith("writer ") and ours.endswith("ours") and len(copied) == 10
    assert all("copied, from" in line for line in copied) and copied[-1].split()[2:4] == ["0.256", "0.061"]

    toxicity.main(toxicity.parse_args(words(place, "--max_new_tokens", 30)))
    again = capsys.readouterr().out.splitlines()
    assert again[0].endswith("finished; nothing to do") and again[1:4] == [head, ours, copied[0]]
    card = json.loads((place / "out.json.run.json").read_text())
    assert str(place / "scorer" / SCORER_FILE) in card["inputs"] and str(place / "tiny") in card["models"]


def test_all_prompts_and_the_first_of_them(place):
    assert [row["row"] for row in measure(place, "--prompts", "all", "--limit", 3)["rows"]] == [0, 1, 2]


def test_prompts_as_plain_texts(place):
    (place / "rows.jsonl").write_text('{"prompt": "Once"}\n')
    assert measure(place)["rows"][0]["prompt"] == "Once"


def test_empty_generations_are_counted_and_score_nothing(place, monkeypatch, capsys):
    """An engine that says nothing half of the time, a blank once."""
    from alignment.engines.simulated import SimulatedEngine
    from alignment.generation import Reply

    said = ["", " hurry", " ", " no"]
    replies = lambda self, requests, sampling: (  # noqa: E731
        (place, Reply(said[place % 4], "stop")) for place in range(len(requests))
    )
    monkeypatch.setattr(SimulatedEngine, "complete", replies)
    found = measure(place, "--limit", 1)
    assert [each["toxicity"] for each in found["rows"][0]["generations"]] == [None, 0.75, None, 0.25]
    assert [each["perplexity"] is None for each in found["rows"][0]["generations"]] == [True, False, False, False]
    assert found["counts"]["not_scored"] == {"empty": 2} and found["results"]["probability"]["value"] == 1
    assert found["results"]["dist_2"]["value"] == 3 / 7  # ("" hurry) ("" "") ("" no) in 1 + 2 + 2 + 2 words
    assert "in no average: 2 generations: empty, 1 without perplexity" in capsys.readouterr().out


def test_a_chat_reply_follows_a_blank(place, monkeypatch):
    """Perplexity of "The cat said" + " " + reply, as a chat's reply has no blank before it."""
    heard = []
    monkeypatch.setattr(Perplexity, "of", lambda self, prompts, texts, journal: heard.append(texts) or texts)
    monkeypatch.setattr(toxicity, "measured", lambda rows, seed: dict.fromkeys(toxicity.MEASURES))
    monkeypatch.setattr(toxicity, "counted", lambda *_: {"not_scored": {}, "no_perplexity": 0, "perplexity_dropped": 0})
    for template in ("raw", "almost"):
        found = measure(place, "--template", template, "--limit", 1)
        texts = [each["text"] for each in found["rows"][0]["generations"]]
        assert heard.pop() == [[("" if template == "raw" else " ") + text for text in texts]]


def test_failures_are_tried_again(place):
    """Some requests fail at first: what came is written, exit with a line, and the same command completes it."""
    with pytest.raises(UserError, match="requests? failed .*the same command tries"):
        measure(place, model="w?faults=0.4")
    partial = json.loads((place / "out.json").read_text())
    assert partial["counts"]["not_scored"]["not generated"] > 0 and not (place / "out.json.run.json").exists()
    whole = measure(place, model="w?faults=0.4")
    assert not whole["counts"]["not_scored"]
    for before, after in zip(partial["rows"], whole["rows"], strict=True):
        for one, other in zip(before["generations"], after["generations"], strict=True):
            assert one["text"] in (None, other["text"])


def test_no_generation_at_all(place, monkeypatch):
    """Nothing to heal: the reason is said once. What may heal is tried again."""
    from alignment.engines.simulated import SimulatedEngine
    from alignment.generation import Reply

    def nothing(finish):
        return lambda self, requests, sampling: ((i, Reply(None, finish)) for i in range(len(requests)))

    for finish, said in (
        ("too long", r"none of 12 generations came \({'too long': 12}\)"),
        ("failed: x", "tries these again"),
    ):
        monkeypatch.setattr(SimulatedEngine, "complete", nothing(finish))
        with pytest.raises(UserError, match=said):
            measure(place)
        assert not (place / "out.json").exists()


def test_killed_and_run_again_it_is_the_same(place):
    """kill -9 while it generates; then nothing is generated twice, and the output is that of a run left alone."""
    slow = "writer?quality=0.9&latency=0.05"
    journal = place / "out.json.journal.jsonl"
    command = [sys.executable, str(REPOSITORY / "eval" / "toxicity.py"), *words(place, model=slow)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not journal.exists() or journal.read_bytes().count(b"\n") < 3:
        assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    begun = journal.read_bytes()
    assert 3 <= begun.count(b"\n") < 12 and not (place / "out.json").exists()
    measure(place, model=slow)
    resumed = (place / "out.json").read_bytes()
    lines = journal.read_bytes()
    assert lines.startswith(begun[: begun.rfind(b"\n") + 1]) and lines.count(b"\n") == 12 + 12 + 1
    for path in (journal, place / "out.json"):
        path.unlink()
    measure(place, model=slow)
    assert (place / "out.json").read_bytes() == resumed


# Mistakes


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": {"toxicity": 0.1}}, "row 1 has no text under 'prompt'"),
        ({"prompt": " "}, "row 1 has no text under 'prompt'"),
        ({"continuation": {"text": "x"}}, "row 1 has no text under 'prompt'"),
        ({"prompt": {"text": "x", "toxicity": 2}}, "row 1: the 'toxicity' of its prompt is no number from 0 to 1"),
    ],
)
def test_rows_without_a_prompt(place, row, said):
    (place / "rows.jsonl").write_text(json.dumps({"prompt": "Once"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=said):
        measure(place)
    assert not (place / "out.json").exists() and not (place / "out.json.journal.jsonl").exists()


def test_only_toxic_prompts(place):
    (place / "rows.jsonl").write_text(json.dumps(ROWS[1]) + "\n")
    with pytest.raises(UserError, match="every prompt is toxic itself; add --prompts all"):
        measure(place)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scorer", "none"], "--scorer none is neither perspective nor a folder"),
        (["--scorer", "perspectiv"], "did you mean 'perspective'"),
        (["--perplexity_model", "./none"], "model ./none does not exist; name another by --perplexity_model"),
        (["--perplexity_model", "nobody/nothing"], "model nobody/nothing: .*name another by --perplexity_model"),
    ],
)
def test_wrong_flags(place, flags, said):
    with pytest.raises(UserError, match=said) as caught:
        measure(place, *flags)
    assert "\n" not in str(caught.value) and not (place / "out.json").exists()


def test_scorers_that_are_none(place):
    with pytest.raises(UserError, match="tiny has no scorer.json; scripts/fit_toxicity.py makes one"):
        measure(place, "--scorer", place / "tiny")
    scorer = place / "scorer" / SCORER_FILE
    sound = json.loads(scorer.read_text())
    for wrong in ([], {}, sound | {"terms": {"a": 1}}, sound | {"intercept": None}, sound | {"terms": {"a": [1, "x"]}}):
        scorer.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match="is none of scripts/fit_toxicity.py; make it again"):
            measure(place)


def test_perplexity_by_no_causal_model(place):
    config = json.loads((place / "tiny" / "config.json").read_text())
    (place / "tiny" / "config.json").write_text(
        json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]})
    )
    with pytest.raises(UserError, match="is no causal model: its config names LlamaForSequenceClassification"):
        measure(place)


def test_no_samples(place, capsys):
    with pytest.raises(SystemExit) as ended:
        measure(place, "--num_samples", 0)
    assert ended.value.code == 2 and "--num_samples: 0 is out of range" in capsys.readouterr().err


def test_terms():
    """Words and their pairs, then pieces of 2, 3, 4 and 5 characters of each word between blanks."""
    pieces = ["# o", "#oh", "#h ", "# oh", "#oh ", "# oh ", "# n", "#no", "#o ", "# no", "#no ", "# no "]
    assert terms("Oh  no") == ["oh", "no", "oh no", *pieces]
    assert terms("") == [] and terms("!")[0] == "# !"
