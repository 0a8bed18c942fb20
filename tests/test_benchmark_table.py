"""studies/benchmark_table.py: a line of Markdown for each policy, reward model and control, from what was measured."""

import json
import os
import subprocess

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.intervals import with_interval
from eval import reward_model
from studies import benchmark_table


def of(share, **more):
    return {"accuracy": share, "interval": [share - 0.1, share + 0.1], "n": 10} | more


def test_the_table(tmp_path, capsys):
    """A policy has letters and choices, a reward model the rest; what a random choice gets stands in its line; no line
    where nothing was measured."""
    measures = {"mc1_true_or_false": of(0.3, chance=0.25), "mc1": of(0.4, chance=0.25), "mc2": of(0.5, chance=0.45)}
    files = {"base.hhh": {"all": of(0.6)}, "base.truthful": measures, "simulated.truthful": {"mc1_reward": of(0.7)}}
    for name, found in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": found}))
    for name, more in (("hhh", [0] * 4), ("dsp", [0] * 4), ("pairs", [*range(-4, 6)] * 3)):
        rows = [
            {"prompt": str(at), "chosen": "It is. So." + "o" * max(n, 0), "rejected": "It is, so." + "o" * max(-n, 0)}
            for at, n in enumerate(more)
        ]
        (tmp_path / "rows.json").write_text(json.dumps(rows))
        words = ["--data_path", tmp_path / "rows.json", "--output_file", tmp_path / f"{name}.json"]
        reward_model.main(reward_model.parse_args([*map(str, words), "--reward_model", "simulated"]))
    capsys.readouterr()
    benchmark_table.main(benchmark_table.parse_args([str(tmp_path)]))
    head, rule, *lines, empty, told, how = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in (head, *lines)]
    assert {len(each) for each in cells} == {10} and rule == "|" + "---|" * 10
    by_name = {each[0]: each[1:] for each in cells[1:]}
    assert list(by_name) == ["base", "longest", "random", "simulated"]
    shares = ["60.0 [50.0, 70.0]", "30.0 [20.0, 40.0]", "40.0 [30.0, 50.0]", "50.0 [40.0, 60.0]"]
    assert by_name["base"] == [*shares, "–", "–", "–", "–", "–"]
    assert by_name["random"][1:4] == ["25.0", "25.0", "45.0"] and by_name["random"][0].startswith("50.0 [")
    assert by_name["simulated"][1:4] == ["–", "70.0 [60.0, 80.0]", "–"]
    known = json.loads((tmp_path / "pairs.json").read_text())["models"]["simulated"]["correlations"]
    beyond = known["reward and preference, partial"]
    assert by_name["longest"][7] == "50.0 [50.0, 50.0]" and by_name["simulated"][8] == with_interval(
        beyond["value"], tuple(beyond["interval"]), "+z.2f"
    )
    assert all(cell.startswith("100.0 [") for cell in (by_name["simulated"][0], *by_name["simulated"][4:6]))
    counts = "4 of static HHH, 4 of DSP, 30 of held-out pairs, 9 of these as long as each other to 10%; 10 questions."
    assert told == f"Choices: {counts}" and how.endswith("a reward model's MC1 by its reward.")
    assert (tmp_path / "benchmark_table.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UserError, match="--base other is none of base$"):
        benchmark_table.main(benchmark_table.parse_args([str(tmp_path), "--base", "other"]))
    (tmp_path / "benchmark_table.png").unlink()
    (tmp_path / "benchmark_table.png").mkdir()
    with pytest.raises(UserError, match="benchmark_table.png cannot be written"):
        benchmark_table.main(benchmark_table.parse_args([str(tmp_path)]))
    with pytest.raises(UserError, match="hhh.json does not exist"):
        benchmark_table.main(benchmark_table.parse_args([str(tmp_path / "none")]))


def test_differences_are_of_the_same_items():
    """One of two questions turns right: 50 points, of which a bootstrap of two rows may draw none or both. MC2 is 0.1
    higher in each, so its interval is that alone, though the two questions are far apart."""
    base = [{"correct": 1.0, "mc1_true_or_false": 0.0, "mc1": 0.0, "mc2": at} for at in (0.1, 0.8)]
    tuned = [each | {"mc1": at, "mc2": each["mc2"] + 0.1} for at, each in zip((0.0, 1.0), base, strict=True)]
    measured = {name: {"base": {"items": base}, "tuned": {"items": tuned}} for name in ("hhh", "truthful")}
    assert benchmark_table.differences(measured, "tuned", "base") == (
        "static HHH +0.0 [+0.0, +0.0]; MC1, true or false +0.0 [+0.0, +0.0]; MC1 +50.0 [+0.0, +100.0]; "
        "MC2 +10.0 [+10.0, +10.0]"
    )


def test_the_picture_shows_what_the_table_says():
    """A policy beside reward models on static HHH alone; no coin, and no model where a number is missing."""
    choices = {
        name: {"models": {"longest": {"all": of(0.6), "balanced": None}, "random": {"all": of(0.5)}}}
        for name in ("hhh", "dsp", "pairs")
    }
    for at, name in enumerate(choices):
        choices[name]["models"]["rm"] = {"all": of(0.7 + at / 10), "balanced": of(0.2)}
    shown = benchmark_table.panels({"base": of(0.4)}, choices)
    assert list(shown["static HHH"]) == ["base", "longest", "rm"] and shown == {
        "static HHH": {"base": of(0.4), "longest": of(0.6), "rm": of(0.7)},
        "DSP": {"longest": of(0.6), "rm": of(0.7 + 1 / 10)},
        "held-out pairs": {"longest": of(0.6), "rm": of(0.7 + 2 / 10)},
        "longer and shorter alike": {"rm": of(0.2)},
    }
    for each in choices.values():
        each["models"]["rm"]["balanced"] = None
    assert "longer and shorter alike" not in benchmark_table.panels({}, choices)


def test_models_of_one_name_are_refused(tmp_path):
    """Results are files of that name, of which the second would take the first's place."""
    given = dict.fromkeys(("ANSWERS", "HHH", "DSP", "TRUTHFUL"), "none") | {
        "POLICIES": "a/sft b/sft",
        "PYTHON": "false",
    }
    command = ["bash", str(REPOSITORY / "studies" / "benchmark_table.sh")]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True)
    said = "two of MODEL, POLICIES and REWARD_MODELS are called sft; give links of other names\n"
    assert (done.returncode, done.stderr) == (2, said)
