"""studies/cut_beside_dpo.sh's scripts: UltraFeedback's rows as pairs and responses, and the table of both policies."""

import json
import shutil

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.adapters import write_base_card
from alignment.command_line import UserError
from alignment.judging.judgments import BARE, read_instructions, read_judgments
from alignment.templates import load_template
from studies import preference_table, ultrafeedback_rows

PAIR = {
    "prompt": "Say 1.",
    "chosen": "One.",
    "rejected": "Two.",
    "metadata": {"score_chosen": 9, "score_rejected": 4.5},
}
PUBLISHED = {
    "instruction": "Say 2.",
    "completions": [
        {"response": "b", "overall_score": 5.0},
        {"response": "a", "overall_score": 8.0},
        {"response": "c", "overall_score": 5.0},
        {"response": "d", "overall_score": 1.0},
    ],
}


def rows_of(tmp_path, rows, *flags):
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows))
    words = [str(data), "--output_dir", str(tmp_path / "out"), *flags]
    ultrafeedback_rows.main(ultrafeedback_rows.parse_args(words))
    return [
        json.loads((tmp_path / "out" / f"{name}.json").read_text()) for name in ("pairs", "responses", "instructions")
    ]


def test_pairs_are_all_of_unequal_score(tmp_path, capsys):
    """Scores b 5, a 8, c 5, d 1: of six pairs all but b and c, the better one chosen; every response once, of which
    the best of both instructions, One. and a, are satisfactory."""
    pairs, responses, instructions = rows_of(tmp_path, [PAIR, PUBLISHED])
    assert [(row["chosen"], row["rejected"]) for row in pairs] == [
        ("One.", "Two."), ("a", "b"), ("a", "c"), ("a", "d"), ("b", "d"), ("c", "d")
    ]  # fmt: skip
    assert [row["prompt"] for row in pairs] == ["Say 1."] + ["Say 2."] * 5
    assert [row["output"] for row in responses] == ["One.", "Two.", "b", "a", "c", "d"]
    assert [row["id"] for row in responses] == list(range(6))
    assert [row["judgment"] for row in responses] == [None, BARE, BARE, None, BARE, BARE]
    assert instructions == [{"instruction": "Say 1."}, {"instruction": "Say 2."}]
    assert read_instructions(tmp_path / "out" / "responses.json", with_output=True)[5]["instruction"] == "Say 2."
    counts = json.loads((tmp_path / "out" / "pairs.json.run.json").read_text())["counts"]
    assert counts["pairs"] == 6 and counts["pairs of equal score"] == 1 and counts["responses"] == 6


def test_blank_and_repeated_responses_are_counted_and_left_out(tmp_path):
    equal = PAIR | {"rejected": "One."}
    pairs, responses, instructions = rows_of(tmp_path, [PAIR, equal, PAIR | {"prompt": "?", "chosen": " "}])
    assert len(pairs) == 1 and [row["output"] for row in responses] == ["One.", "Two.", "One.", "Two."]
    assert read_judgments(tmp_path / "out" / "responses.json") == responses
    assert [row["instruction"] for row in instructions] == ["Say 1.", "?"]
    counts = json.loads((tmp_path / "out" / "pairs.json.run.json").read_text())["counts"]
    assert counts["blank or repeated responses"] == 2


def test_an_instruction_that_does_not_fit_is_left_out(tmp_path, model_folder):
    """The longest that is learned of PAIR is CUT's prompt with the verdict, One. or Two., and the end. One token less
    leaves it out, and --limit takes the next."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    (prompt,) = load_template("alpaca", tokenizer).prompt_ids([{"instruction": "Say 1.", "judgment": BARE}])
    (judged,) = load_template("alpaca_judgment", tokenizer).prompt_ids([{"instruction": "Say 1.", "judgment": BARE}])
    longest = len(judged) + len(tokenizer("One.")["input_ids"]) + 1
    assert len(judged) > len(prompt)
    words = ["--limit", "1", "--model_name_or_path", str(model_folder), "--cutoff_len"]
    for less, used in ((0, "Say 1."), (1, "Say 2.")):
        *_, instructions = rows_of(tmp_path, [PAIR, PUBLISHED], *words, str(longest - less))
        assert instructions == [{"instruction": used}]
    counts = json.loads((tmp_path / "out" / "pairs.json.run.json").read_text())["counts"]
    assert counts["instructions with a response over --cutoff_len"] == counts["instructions"] == 1
    with pytest.raises(SystemExit):
        rows_of(tmp_path, [PAIR], "--cutoff_len", "99")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (
            [PAIR | {"metadata": {"score_chosen": 5, "score_rejected": 5}}],
            "no instruction has two responses of unequal",
        ),
        ([PAIR, {"prompt": "x", "chosen": "y", "rejected": "z"}], "row 1 has neither 'completions' nor 'metadata'"),
        ([PAIR | {"metadata": {"score_chosen": 5}}], "row 0: a response is no text, or its score no number"),
        ([PAIR | {"chosen": None}], "row 0: a response is no text"),
        ([PAIR | {"prompt": ""}], "row 0: the instruction is no text"),
        ([PUBLISHED | {"completions": "a"}], "row 0: 'completions' is no list of objects"),
    ],
)
def test_wrong_rows_are_one_line_and_write_nothing(rows, said, tmp_path):
    with pytest.raises(UserError, match=said):
        rows_of(tmp_path, rows)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]


@pytest.fixture
def models(tmp_path, model_folder):
    """The tiny Llama, and two adapters of it: one whose B is zero, and another."""
    names = [str(model_folder)]
    for name, zero in (("same", True), ("other", False)):
        torch.manual_seed(1)
        config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=zero, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path / name)
        write_base_card(tmp_path / name, str(model_folder), None)
        for path in (model_folder / "config.json", *model_folder.glob("token*")):
            shutil.copy(path, tmp_path / name)
        names.append(str(tmp_path / name))
    return names


def table_of(data, models, *flags):
    words = [str(data), "--models", *models, "--template", "alpaca", *flags]
    preference_table.main(preference_table.parse_args(words))


def test_table_compares_with_the_first(tmp_path, models, capsys):
    """8 pairs, of which one repeats its response and one is long. A zero adapter leaves every number."""
    pairs = [{"prompt": f"Say {n}.", "chosen": f"It is {n}.", "rejected": "No. " * n} for n in range(1, 7)]
    pairs += [{"prompt": "x", "chosen": "y", "rejected": "y"}, {"prompt": "x", "chosen": "y" * 300, "rejected": "z"}]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    table_of(tmp_path / "pairs.json", models, "--cutoff_len", "300")
    head, _, first, same, other = capsys.readouterr().out.splitlines()
    assert head == "6 pairs, 1 unusable, 1 too long"
    assert same.split()[1:6] == first.split()[1:6] != other.split()[1:6]
    assert "+0.0000 [+0.0000, +0.0000]" in same and "+0.0000 [" not in other and "+" not in first
    gaps = [float(line.split()[3]) for line in (first, other)]
    more, low, high = (float(word.strip("[,]")) for word in other.split()[6:9])
    assert more == pytest.approx(gaps[1] - gaps[0], abs=1.1e-3) and low <= more <= high


def test_means_and_gap_by_hand(tmp_path, models):
    """A token's mean, end token included: log p of the reply alone from plain logits, over its tokens."""
    from alignment.training_data import Example

    args = preference_table.parse_args(["d", "--models", "m", "--template", "alpaca", "--cutoff_len", "200"])
    examples = [Example(0, {"prompt": "Hi"}, ("Yes", "No")), Example(1, {"prompt": "Hi" * 99}, ("a", "b"))]
    found = preference_table.token_means(models[0], examples, args)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(models[0]), AutoTokenizer.from_pretrained(models[0])
    (prompt,) = load_template("alpaca", tokenizer).prompt_ids([{"prompt": "Hi"}])
    for column, text in enumerate(("Yes", "No")):
        reply = tokenizer(text)["input_ids"] + [tokenizer.eos_token_id]
        with torch.no_grad():
            logps = model(torch.tensor([prompt + reply])).logits[0].log_softmax(-1)
        each = [logps[len(prompt) + n - 1, token].item() for n, token in enumerate(reply)]
        assert found[0, column] == pytest.approx(sum(each) / len(each), abs=1e-4)
    assert np.isnan(found[1]).all()
    assert preference_table.gap(np.array([[-1.0, -3.0], [-2.0, -1.0]])) == 0.5


@pytest.mark.parametrize(
    ("pairs", "flags", "said"),
    [
        ([{"prompt": "x", "chosen": "y", "rejected": "y"}], [], "no pair can be compared"),
        ([{"prompt": "x", "chosen": "y", "rejected": "z"}], ["--cutoff_len", "8"], "no pair fits --cutoff_len 8"),
    ],
)
def test_no_pair_to_compare_is_said(pairs, flags, said, tmp_path, model_folder):
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    with pytest.raises(UserError, match=said):
        table_of(tmp_path / "pairs.json", [str(model_folder)], *flags)
