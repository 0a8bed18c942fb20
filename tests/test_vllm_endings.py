"""vLLM, the real one, that does not come to its end: a core that is killed, an interrupt, GPUs that do not fit."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from test_engines_real import ENVIRONMENT, MODEL, SCRIPT, rg_words

pytestmark = pytest.mark.slow


@pytest.fixture
def under_way(tmp_path):
    """An rg run in a session of its own, as a terminal's, of whose requests one is done; what it wrote; its journal."""
    (tmp_path / "prompts.txt").write_text("".join(f"Tell me a story about {n} dwarfs.\n" for n in range(60)))
    words = rg_words(tmp_path, "--model_name_or_path", MODEL, "--n_shot", 1, "--max_new_tokens", 384)
    with (tmp_path / "said").open("w") as said:
        process = subprocess.Popen(
            [sys.executable, SCRIPT, *words], env=ENVIRONMENT, stdout=said, stderr=said, start_new_session=True
        )
    deadline = time.monotonic() + 900
    while not any(path.stat().st_size for path in tmp_path.glob("*.journal.jsonl")):
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()[-3000:]
        time.sleep(0.2)
    yield process, (tmp_path / "said").read_text, next(tmp_path.glob("*.journal.jsonl"))
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_core_that_is_killed_ends_the_run_in_one_line(under_way):
    """vLLM waited for its next output for ever. No answer is in the journal that was not whole."""
    import psutil

    process, said, journal = under_way
    [core] = [child for child in psutil.Process(process.pid).children() if "EngineCore" in child.name()]
    core.kill()
    assert process.wait(120) == 2
    lines = [line for line in said().splitlines() if "dwarfs" not in line]
    assert "vllm died: its process was killed by signal 9" in lines[-1] and "Traceback" not in said()
    assert {json.loads(line)["finish"] for line in journal.read_text().splitlines()} <= {"stop", "length"}


def test_an_interrupt_is_one_line(under_way):
    process, said, _ = under_way
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(120) == 130
    assert said().rstrip().endswith("synthetic_feedback.py: interrupted; the same command goes on from here")
    assert "Traceback" not in said()


def test_heads_that_the_gpus_do_not_divide(tmp_path):
    """The model has nine."""
    (tmp_path / "prompts.txt").write_text("Hello?\n")
    words = rg_words(tmp_path, "--model_name_or_path", MODEL, "--n_shot", 1, "--n_gpu", 2)
    done = subprocess.run([sys.executable, SCRIPT, *words], env=ENVIRONMENT, capture_output=True, text=True)
    heads = "Total number of attention heads (9) must be divisible by tensor parallel size (2); change --n_gpu"
    assert done.returncode == 2 and done.stderr.endswith(f"vllm cannot run {MODEL}: {heads}\n")
    assert "Traceback" not in done.stderr + done.stdout
