"""The training benchmarks measure the same computation both ways, and print their ratio."""

import json

import pytest
import torch

from benchmarks import attention, hhh, reward_model, self_play, sft_memory, truthful


def test_both_ways_have_the_same_loss(model_folder):
    """Full logits with transformers' loss and ours: equal to 1e-5, so that memory and time compare the same thing."""
    flags = ["--model_name_or_path", str(model_folder), "--length", "64", "--batch_size", "2", "--steps", "1", "--way"]
    full, ours = (sft_memory.measure(sft_memory.parse_args([*flags, way])) for way in ("full", "ours"))
    assert ours["loss"] == pytest.approx(full["loss"], rel=1e-5)


def test_reward_model_ways(model_folder, capsys):
    """Every pair is in each way once, released padded to the longest of the data and ours to less; ratios are shown."""
    flags = ["--model_name_or_path", str(model_folder), "--pairs", "8", "--model_max_length", "128"]
    args = reward_model.parse_args(flags)
    items, longest = reward_model.load_items(args, 100)
    theirs, ours = reward_model.released(items, longest, args), reward_model.ours(items, args)
    rows = [sum(ids.shape[0] for batch in way for ids, _ in batch) for way in (theirs, ours)]
    real = [sum(int(mask.sum()) for batch in way for _, mask in batch) for way in (theirs, ours)]
    padded = [sum(ids.numel() for batch in way for ids, _ in batch) for way in (theirs, ours)]
    assert rows == [16, 16] and real[0] == real[1] and padded[0] == 16 * 128 >= padded[1]
    reward_model.main(args)
    assert "the released way (target at least 2.00x)" in capsys.readouterr().out


def test_attention_row_by_row_is_its_own_oracle(capsys):
    """On a CPU there is no other way; rows that begin alike are told, and a mistake in a gradient would be seen."""
    flags = "--rows 3 --length 24 --shared 8 --heads 4 --kv_heads 2 --head_size 8 --window 6 --repeats 1"
    attention.main(attention.parse_args(flags.split()))
    head, _, row = capsys.readouterr().out.splitlines()
    lengths = attention.lengths_of(attention.parse_args(flags.split()))
    assert lengths[0] == 24 and min(lengths) >= 9
    assert f"3 rows, {sum(lengths)} tokens, {sum(lengths) - 16} of them distinct; 4/2 heads of 8, window 6" in head
    assert row.startswith("row by row") and row.endswith("0.0e+00")
    one, nan = torch.tensor([2.0, -4.0]), torch.tensor([float("nan"), 0.0])
    assert attention.difference([one, one + 1], [one, one]) == 0.25
    assert attention.difference([nan], [one]) == float("inf")


def test_hhh_ways_give_the_same_verdicts(tmp_path, model_folder, capsys):
    turn = "\n\nHuman: {}\n\nAssistant: {}"
    rows = [{"chosen": turn.format(n, "a" * n), "rejected": turn.format(n, "b"), "type": "other"} for n in range(1, 6)]
    (tmp_path / "hhh.json").write_text(json.dumps(rows))
    hhh.main(hhh.parse_args(["--model_name_or_path", str(model_folder), "--data_path", str(tmp_path / "hhh.json")]))
    out = capsys.readouterr().out
    assert "5 of 5 verdicts alike" in out and "(target at least 8x)" in out


def test_all_ways_of_scoring_candidates_give_the_same_rewards(model_folder, tmp_path, capsys):
    """Two prompts with three candidates and one: four ways are timed, and no reward differs by more than rounding."""
    turns = [
        {"input": f"\n\nHuman: {said}\n\nAssistant:", "candidates": [{"output": text} for text in texts]}
        for said, texts in (("Why?", ["Because.", "So it is, and so it was.", None, "No."]), ("When?", ["At noon."]))
    ]
    path = tmp_path / "self_play.jsonl"
    path.write_text(json.dumps({"turns": turns}) + "\n")
    self_play.score_all(self_play.parse_args(["--model_name_or_path", str(model_folder), "--self_play", str(path)]))
    lines = capsys.readouterr().out.splitlines()
    ways = [line for line in lines if "e-" in line or "e+" in line]
    assert len(ways) == 4 and all(float(line.split()[-1]) < 1e-5 for line in ways)
    assert "ratio of scoring 4 candidates of 2 prompts" in lines[-1]


def test_choices_both_ways_have_the_same_scores(tmp_path, model_folder, capsys):
    asked = {"mc1_targets": {"So.": 1, "No.": 0}, "mc2_targets": {"So.": 1, "Thus.": 1, "No.": 0}}
    (tmp_path / "mc_task.json").write_text(json.dumps([{"question": f"Why {n}?"} | asked for n in range(2)]))
    config = json.loads((model_folder / "config.json").read_text()) | {
        "max_position_embeddings": 2048
    }  # for the primer
    (model_folder / "config.json").write_text(json.dumps(config))
    words = ["--model_name_or_path", str(model_folder), "--data_path", str(tmp_path / "mc_task.json")]
    truthful.main(truthful.parse_args(words))
    _, likelihoods, verdicts = (line.split() for line in capsys.readouterr().out.splitlines())
    assert likelihoods[3] == "6" and verdicts[3] == "4"
    for line in (likelihoods, verdicts):
        assert line[-3:] == ["2", "of", "2"] and float(line[-4]) < 1e-4
