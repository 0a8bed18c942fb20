"""The real engines on the embedded model: vLLM in the script's process, and `vllm serve` behind the openai engine.

vLLM takes half a minute to start, so each is started once. The model is the one that scripts/setup.sh makes.
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from alignment.command_line import REPOSITORY

pytestmark = pytest.mark.slow
MODEL = REPOSITORY / "saved_models" / "SmolLM2-135M-Instruct"
SCRIPT = REPOSITORY / "synthetic_feedback.py"
HHH = REPOSITORY / "assets" / "HHH_prompt.txt"
PROMPTS = ["What is the capital of France?", "How do I boil an egg?", "Why is the sky blue?", "word " * 9_000]
ENVIRONMENT = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(prompt + "\n" for prompt in PROMPTS))
    return tmp_path


def rg(folder, *more):
    command = [
        sys.executable,
        str(SCRIPT),
        "--mode",
        "rg",
        "--prompt_file_path",
        str(HHH),
        "--n_shot",
        "1",
        "3",
        "--max_new_tokens",
        "48",
        "--output_dir",
        str(folder),
        *more,
    ]
    process = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-3000:]
    return [json.loads(path.read_text()) for path in sorted(folder.glob("*shot.json"))]


def test_vllm_writes_two_configurations_with_one_start(folder):
    files = rg(folder, "--model_name_or_path", str(MODEL))
    assert len(files) == 2 and files[0] != files[1]
    for replies in files:
        assert len(replies) == len(PROMPTS) and all(replies[:3]) and replies[3] is None  # longer than the context
        replies.pop()
        assert not any(stop in reply for reply in replies for stop in ("Human:", "Assistant:", "-----"))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def vllm_version():
    from alignment.run_cards import versions

    return versions().get("vllm") or versions()["vllm-cpu"] + "+cpu"  # which it knows its platform by


def test_openai_engine_through_vllm_serve(folder):
    port = free_port()
    serve = [
        shutil.which("vllm", path=os.path.dirname(sys.executable)),
        "serve",
        str(MODEL),
        "--port",
        str(port),
        "--host",
        "127.0.0.1",
        "--served-model-name",
        "smollm2",
        "--max-model-len",
        "4096",
        "--api-key",
        "sesame",
        "--enforce-eager",
        "--no-enable-chunked-prefill",
    ]
    # `serve` asks for the version of a package named vllm, which the CPU build, vllm-cpu, isn't called
    metadata = folder / "names" / "vllm-0.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm_version()}\n")
    log = folder / "serve.log"
    with log.open("w") as output:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(folder / "names")}
        server = subprocess.Popen(serve, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
        words = ["--backend", "openai", "--model_name_or_path", "smollm2", "--api_base", f"http://127.0.0.1:{port}/v1"]
        ENVIRONMENT["OPENAI_API_KEY"] = "sesame"
        files = rg(folder, *words)
        assert len(files) == 2 and all(all(replies[:3]) and replies[3] is None for replies in files)
        ENVIRONMENT["OPENAI_API_KEY"] = "wrong"
        with pytest.raises(AssertionError, match="refuses the key; set OPENAI_API_KEY"):
            rg(folder, *words, "--seed", "7")
    finally:
        server.terminate()
        server.wait(30)
