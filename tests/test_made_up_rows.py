"""scripts/made_up_rows.py: every reader takes its file."""

import json

import torch
from transformers import AutoModelForCausalLM

from alignment.judging.judgments import read_judgments
from alignment.pretrained import training_tokenizer
from alignment.static_hhh import read_comparisons
from alignment.training_data import read_examples, usable
from scripts import made_up_rows


def make(folder, *more):
    made_up_rows.main(made_up_rows.parse_args([str(folder), *more]))
    return {path.stem: path for path in folder.iterdir()}


def test_every_reader_takes_its_file(tmp_path, capsys):
    """Seven rows, of which rows 0 and 5 are satisfactory."""
    made = make(tmp_path / "rows", "--num_rows", "7")
    assert "7 rows each" in capsys.readouterr().out
    for objective, name in (("sft", "sft"), ("reward", "pairs"), ("dpo", "pairs"), ("orpo", "pairs")):
        assert len(usable(read_examples(str(made[name]), objective))[0]) == 7
    hhh = read_comparisons(made["hhh"])
    assert [pair.chosen[-1] + pair.rejected[-1] for pair in hhh] == ["!?"] * 7
    judged = read_judgments(str(made["judged"]))
    assert [row for row, found in enumerate(judged) if found["judgment"] is None] == [0, 5]
    assert (hhh[3].prompt, hhh[3].chosen) == (
        f"\n\nHuman: {judged[3]['instruction']}\n\nAssistant:",
        judged[3]["output"],
    )


def test_models_can_be_trained_and_asked(tmp_path, monkeypatch):
    """Random weights, and a tokenizer of bytes that opens a text, ends one and pads with three tokens of their own. No
    text is longer than asked for."""
    monkeypatch.setitem(made_up_rows.SMALL, "num_hidden_layers", 1)
    made = make(tmp_path / "rows", "--num_rows", "20", "--words", "6", "--models", "llama", "mistral")
    assert max(len(row["input"].split()) for row in json.loads(made["sft"].read_text())) in (5, 6)
    tokenizer = training_tokenizer(str(made["mistral"]))
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    ids = tokenizer("Ö, a?")["input_ids"]
    assert len(ids) == 7 and tokenizer.decode(ids, skip_special_tokens=True) == "Ö, a?"
    model = AutoModelForCausalLM.from_pretrained(made["mistral"])
    assert model.config.sliding_window == 128 and model(torch.tensor([ids])).logits.shape == (1, 7, len(tokenizer))


def test_seeded(tmp_path):
    first, same, other = (
        make(tmp_path / name, "--num_rows", "3", "--seed", seed) for name, seed in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    for name, path in first.items():
        assert path.read_bytes() == same[name].read_bytes() != other[name].read_bytes()
