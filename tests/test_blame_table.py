"""studies/blame_table.py: its sums by hand, and a run on a tiny Llama with an adapter that changes nothing."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from alignment.adapters import write_base_card
from studies import blame_table


def test_gap_by_hand():
    """Blamed -3 and -1, kept -0.5 in one row and -1.5 in another: means -2 and -1, so the gap is 1. Shifted by +1 on
    the kept token of the first row it is 1.5."""
    masks = {0: torch.tensor([True, False]), 1: torch.tensor([True, False])}

    def sums(first):
        return blame_table.row_sums({0: torch.tensor([-3.0, first]), 1: torch.tensor([-1.0, -1.5])}, masks)

    assert blame_table.means(sums(-0.5)).tolist() == [-2, -1] and blame_table.gap(sums(-0.5)) == 1
    assert blame_table.difference(sums(0.5), sums(-0.5), seed=0).startswith("+0.500 [")
    assert blame_table.difference(sums(-0.5), sums(-0.5), seed=0) == "+0.000 [+0.000, +0.000]"


def test_nothing_blamed_has_no_gap():
    kept = blame_table.row_sums({0: torch.tensor([-3.0, -1.0])}, {0: torch.tensor([False, False])})
    assert kept.tolist() == [[0, 0, -4, 2]]
    assert blame_table.difference(kept, kept, seed=0) == "+nan [+nan, +nan]"


def test_run(tmp_path, model_folder, capsys):
    """An adapter whose B is zero leaves every number; one that is not does not."""
    rows = [{"instruction": f"Say {n}.", "output": f"It is {n}.", "judgment": "Too long."} for n in range(6)]
    (tmp_path / "rows.json").write_text(json.dumps([*rows, {**rows[0], "judgment": None}]))
    for name, zero in (("same", True), ("other", False)):
        config = LoraConfig(r=2, target_modules=["up_proj"], init_lora_weights=zero, task_type="CAUSAL_LM")
        get_peft_model(AutoModelForCausalLM.from_pretrained(model_folder), config).save_pretrained(tmp_path / name)
        write_base_card(tmp_path / name, str(model_folder), None)
    flags = ["--adapters", tmp_path / "same", tmp_path / "other", "--threshold", "1.0", "--versus", "same", "other"]
    words = ["--base_model", model_folder, "--data_path", tmp_path / "rows.json", *flags]
    blame_table.main(blame_table.parse_args(list(map(str, words))))
    head, columns, base, same, other = capsys.readouterr().out.splitlines()
    assert head.startswith("6 flawed rows, 54 tokens, ")
    assert [each.strip() for each in columns.split("more than ")[1:]] == ["base", "same", "other"]
    assert same.split()[1:4] == base.split()[1:4] != other.split()[1:4]
    assert "+0.000 [+0.000, +0.000]" in same and "+0.000 [" not in other


def test_versus_is_one_of_the_adapters(capsys):
    with pytest.raises(SystemExit) as exit:
        blame_table.parse_args(["--base_model", "m", "--data_path", "d", "--versus", "x"])
    assert exit.value.code == 2 and "none of --adapters" in capsys.readouterr().err
