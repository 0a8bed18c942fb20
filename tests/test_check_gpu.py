"""scripts/check_gpu.sh with a Python that only says what it was asked: each line is run, whatever became of another."""

import os
import subprocess

import pytest

from alignment.command_line import REPOSITORY

PYTHON = """#!/bin/bash
case "$*" in
    *device_count*) echo ${GPUS:-1} ;;
    -c*) echo "A card" ;;
    *made_up_rows*) ;;
    *benchmarks/attention.py*) printf 'Traceback\\nValueError: no kernel\\n' >&2; exit 1 ;;
    *train.py* | *train_rl.py*) echo '{"tolerance": 0.0002, "single": 1e-07, "padded": 0.0, "bf16": 0.01}'
        echo "trained" ;;
    *) echo "asked"; echo "1.5x" ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)

    def go(*words, **environment):
        env = os.environ | {"PYTHON": str(tmp_path / "python"), "LOGS": str(tmp_path)} | environment
        command = ["bash", str(REPOSITORY / "scripts" / "check_gpu.sh"), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True)

    return go


@pytest.mark.parametrize("what", ["train", "speed"])
def test_a_line_that_fails_says_why_and_the_next_one_runs(check, tmp_path, what):
    done = check(what)
    lines = done.stdout.splitlines()
    assert done.returncode == 1 and lines[0] == "A card" and not done.stderr
    failed = [line for line in lines if line.startswith("FAIL")]
    assert failed and all("ValueError: no kernel" in line for line in failed)
    names = {line.split()[2] for line in failed}
    assert names == ({"attention", "window", "shared"} if what == "train" else {"attention", "shared"})
    assert set(lines[-1].removeprefix("failed: ").split()) == names
    assert sum(line.startswith("ok ") for line in lines) == (26 if what == "train" else 7)
    log = (tmp_path / f"{what}-{'reward' if what == 'train' else 'cut_7b'}.log").read_text().splitlines()
    assert log[0].startswith("$ ") and len(log) == 3


def test_differences_and_figures_are_shown(check):
    trained = next(line for line in check("train").stdout.splitlines() if " dpo " in line)
    assert "tolerance: 0.0002,single: 1e-07,padded: 0.0,bf16: 0.01 trained" in trained
    assert "        1.5x" in check("speed").stdout.splitlines()


def test_lines_that_are_named_run_alone(check):
    done = check("train", ONLY="reward grpo")
    assert [line.split()[2] for line in done.stdout.splitlines() if line.startswith("ok ")] == ["reward", "grpo"]
    assert done.returncode == 0 and done.stdout.endswith("all ok\n")


def test_what_does_not_fit_into_the_time_is_left_out(check):
    done = check("speed", BUDGET="10")
    assert "left out, for want of time: reward_7b" in done.stdout and "ok" not in done.stdout and done.returncode == 1


@pytest.mark.parametrize(
    ("words", "said"), [(["quick"], "say train or speed"), ([], "say train"), (["train"], "no CUDA")]
)
def test_mistakes_are_one_line(check, words, said):
    done = check(*words, GPUS="0")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
