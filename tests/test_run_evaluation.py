"""Static HHH: what is asked, how it is counted, and that batches change nothing."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.command_line import UserError
from alignment.intervals import percent, wilson
from alignment.training.static_hhh import LEAD_IN, Comparison, by_type, chosen_wins, question, read_comparisons
from eval import run_evaluation
from studies import reward_table

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: "


@pytest.fixture
def rows(tmp_path):
    found = [
        {"chosen": DIALOGUE + "Good" + "!" * i, "rejected": DIALOGUE + "Go" + "?" * (i % 3), "type": kind}
        for i, kind in enumerate(["helpful", "honest", "helpful", "other"] * 3)
    ]
    (tmp_path / "hhh.json").write_text(json.dumps(found))
    return tmp_path / "hhh.json"


def test_question(rows):
    """Human and Assistant become Query and Response, and the text ends where the letter comes next."""
    pair = read_comparisons(rows)[1]
    assert pair == Comparison(DIALOGUE.rstrip(), "Good!", "Go?", "honest")
    asked, swapped = question(pair, False), question(pair, True)
    assert "Query: Hi\n\nResponse: Hello\n\nQuery: Bye\n\nResponse A: Good!\n\nResponse B: Go?" in asked
    assert "Response A: Go?\n\nResponse B: Good!" in swapped
    assert asked.count("Human:") == 1 and asked.endswith("\n\nAssistant:" + LEAD_IN)


def test_both_orders_cancel_a_liking_for_a_letter():
    """A model that says A whatever comes: 0.9 + 0.1 against 0.1 + 0.9, a tie, correct as released. A preference of
    0.05 on top decides; and the mirrored preference decides the other way."""
    assert chosen_wins([0.9, 0.1], [0.9, 0.1]) == 1
    assert chosen_wins([0.85, 0.15], [0.9, 0.1]) == 0
    assert chosen_wins([0.95, 0.05], [0.9, 0.1]) == 1


def test_by_type_is_micro_over_all():
    pairs = [Comparison("", "", "", kind) for kind in ("helpful", "helpful", "helpful", "honest")]
    found = by_type(pairs, [1.0, 1.0, 0.0, 0.0])
    assert found["helpful"]["accuracy"] == pytest.approx(2 / 3) and found["honest"]["accuracy"] == 0
    assert found["all"] == {"accuracy": 0.5, "interval": wilson(2, 4), "n": 4}
    assert list(found) == ["helpful", "honest", "all"]


def test_a_policy_in_batches_is_the_policy_alone(rows, model_folder, tmp_path):
    """Probabilities of both letters from batches of mixed lengths: those of each text by itself, unpadded."""
    out = tmp_path / "result.json"
    run_evaluation.main(
        run_evaluation.parse_args(
            [
                "--data_path",
                str(rows),
                "--model_name_or_path",
                str(model_folder),
                "--batch_tokens",
                "2000",
                "--output_path",
                str(out),
            ]
        )
    )
    items = json.loads(out.read_text())["items"]
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    letters = tokenizer("AB")["input_ids"]  # after the space, which the byte tokenizer spells apart
    for item, pair in zip(items, read_comparisons(rows), strict=True):
        for scores, swapped in zip(item["scores"], (False, True), strict=True):
            ids = torch.tensor([tokenizer(question(pair, swapped) + " ")["input_ids"][-512:]])
            assert scores == pytest.approx(model(ids).logits[0, -1].softmax(-1)[letters].tolist(), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_limit_length_and_precision(rows, model_folder, tmp_path, dtype):
    """Three items, of whose texts the last 40 tokens are read, by a model of that precision."""
    words = [
        "--data_path",
        rows,
        "--model_name_or_path",
        model_folder,
        "--limit",
        "3",
        "--max_length",
        "40",
        "--dtype",
        dtype,
        "--output_path",
        tmp_path / "result.json",
    ]
    run_evaluation.main(run_evaluation.parse_args(list(map(str, words))))
    items = json.loads((tmp_path / "result.json").read_text())["items"]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    letters = tokenizer("AB")["input_ids"]
    assert len(items) == 3
    for item, pair in zip(items, read_comparisons(rows), strict=False):
        ids = torch.tensor([tokenizer(question(pair, False) + " ")["input_ids"][-40:]])
        alone = model(ids).logits[0, -1].float().softmax(-1)[letters].tolist()
        assert item["scores"][0] == pytest.approx(alone, rel=1e-4 if dtype == "float32" else 1e-2)


def test_a_reward_model(rows, tmp_path, tokenizer, llama, capsys):
    """r(chosen) > r(rejected) as transformers scores them one by one; the table has every type."""
    model = AutoModelForSequenceClassification.from_config(
        llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    )
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    out = tmp_path / "result.json"
    run_evaluation.main(
        run_evaluation.parse_args(
            ["--data_path", str(rows), "--reward_model", str(tmp_path / "rm"), "--output_path", str(out)]
        )
    )
    found = json.loads(out.read_text())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    for item, pair in zip(found["items"], read_comparisons(rows), strict=True):
        for reward, answer in zip(item["scores"], (pair.chosen, pair.rejected), strict=True):
            ids = torch.tensor([tokenizer(f"{pair.prompt} {answer}</s>")["input_ids"]])
            assert model(ids).logits.item() == pytest.approx(reward, abs=1e-5)
        assert item["correct"] == (item["scores"][0] > item["scores"][1])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["type", "accuracy,", "%", "[95%", "interval]", "n"]
    assert [line.split()[0] for line in lines] == ["helpful", "honest", "other", "all"]
    assert percent(found["results"]["all"]["accuracy"], found["results"]["all"]["interval"]) in lines[-1]


def test_pairs_of_any_form_by_their_meta(tmp_path, tokenizer, llama, capsys):
    """Accuracy by kind of pair, the equal pair dropped, and how often the longer one wins: 2 of 3. As a table too."""
    model = AutoModelForSequenceClassification.from_config(
        llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    )
    model.config.reward_max_length = 64
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    texts = (("aaa", "b", "x-vs-y"), ("a", "bbb", "x-vs-y"), ("aa", "b", "y-vs-z"), ("a", "a", "z"))
    pairs = [{"prompt": "Q", "chosen": chosen, "rejected": rejected, "meta": meta} for chosen, rejected, meta in texts]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    words = ["--benchmark_name", "pairs", "--data_path", tmp_path / "pairs.json", "--reward_model", tmp_path / "rm"]
    words += ["--output_path", tmp_path / "m.pairs.json"]
    run_evaluation.main(run_evaluation.parse_args(list(map(str, words))))
    found, shown = json.loads((tmp_path / "m.pairs.json").read_text()), capsys.readouterr().out
    assert {name: each["n"] for name, each in found["results"].items()} == {"x-vs-y": 2, "y-vs-z": 1, "all": 3}
    assert found["longer_wins"] == pytest.approx(2 / 3) and "the longer one is chosen in 66.7%" in shown

    run_evaluation.main(run_evaluation.parse_args(list(map(str, words))))
    again = capsys.readouterr().out.splitlines()
    assert again[0].endswith("finished; nothing to do") and again[1:] == shown.splitlines()
    other = {"results": {"all": {"accuracy": 0.5, "interval": [0.25, 0.75]}}}
    (tmp_path / "m.hhh.json").write_text(json.dumps(other))
    reward_table.main(reward_table.parse_args([str(tmp_path)]))
    share = percent(found["results"]["all"]["accuracy"], found["results"]["all"]["interval"])
    head, line = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()) == f"m {share} 66.7 50.0 [25.0, 75.0]" and head.count("% [95% interval]") == 2
    with pytest.raises(UserError, match="no reward model was evaluated"):
        reward_table.main(reward_table.parse_args([str(tmp_path / "rm")]))


def test_mistakes(rows, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run_evaluation.parse_args(["--data_path", str(rows)])
    assert "give one of" in capsys.readouterr().err
    rows.write_text(json.dumps([{"chosen": DIALOGUE + "x", "type": "other"}]))
    with pytest.raises(UserError, match="row 0: rejected is missing"):
        read_comparisons(rows)
