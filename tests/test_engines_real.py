"""The real engines on the embedded model: vLLM in a script's process, and `vllm serve` behind the openai engine.

vLLM takes half a minute to start, so each is started once, and everything that needs it asks the same one. The model is
the one that scripts/setup.sh makes.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest
from conftest import with_gpus
from jsonschema import Draft202012Validator

from alignment.command_line import REPOSITORY
from alignment.engines.openai import OpenAIEngine
from alignment.engines.prompts import prompt_ids
from alignment.engines.vllm import VllmEngine
from alignment.generation import Reply, Request, Sampling
from alignment.pretrained import load_tokenizer

pytestmark = pytest.mark.slow
MODEL = REPOSITORY / "saved_models" / "SmolLM2-135M-Instruct"
SCRIPT = REPOSITORY / "synthetic_feedback.py"
HHH = REPOSITORY / "assets" / "HHH_prompt.txt"
PROMPTS = ["What is the capital of France?", "How do I boil an egg?", "Why is the sky blue?", "word " * 9_000]
ENVIRONMENT = with_gpus(VLLM_CPU_KVCACHE_SPACE="1")

CLOSING = "<|im_end|>"  # what the chat template writes after a reply
TEXT = "The capital of France is"
MESSAGES = [
    {"role": "system", "content": "You answer in one short sentence."},
    {"role": "user", "content": "What is the capital of France?"},
]
SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["city", "score"],
    "additionalProperties": False,
}
ASKED = [[{"role": "user", "content": f"Rate a city as JSON with city and score. {i}"}] for i in range(6)]

VLLM = """
import json, sys
from alignment.engines.vllm import VllmEngine
from alignment.generation import Request, Sampling
import synthetic_feedback

if __name__ == "__main__":
    rg, asked, replies = json.loads(sys.argv[1]), *sys.argv[2:]
    start, started = VllmEngine._load, []
    VllmEngine._load = lambda self: (started.append(self), start(self))[1]
    synthetic_feedback.main(synthetic_feedback.parse_args(rg))
    [engine] = started  # the one that rg used, and only one
    found = {}
    for name, (prompts, sampling) in json.load(open(asked)).items():
        requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
        found[name] = [reply for _, reply in sorted(engine.complete(requests, Sampling(**sampling)))]
    json.dump(found, open(replies, "w"))
"""


def rg_words(folder, *more):
    words = ["--mode", "rg", "--prompt_file_path", HHH, "--n_shot", 1, 3, "--max_new_tokens", 48]
    return [str(word) for word in (*words, "--output_dir", folder, *more)]


def rg_files(folder):
    (folder / "prompts.txt").write_text("".join(prompt + "\n" for prompt in PROMPTS))
    return lambda: [json.loads(path.read_text()) for path in sorted(folder.glob("*shot.json"))]


def check_rg(files):
    assert len(files) == 2 and files[0] != files[1]
    for replies in files:
        assert len(replies) == len(PROMPTS) and all(replies[:3]) and replies[3] is None  # longer than the context
        assert not any(stop in reply for reply in replies[:3] for stop in ("Human:", "Assistant:", "-----"))


# vLLM in a script's process


def changed(folder, files):
    """The embedded model in a folder of its own, with these settings in its JSON files."""
    folder.mkdir(parents=True)
    for path in MODEL.iterdir():
        (folder / path.name).symlink_to(path)
    for name, changes in files.items():
        settings = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        (folder / name).unlink(missing_ok=True)
        (folder / name).write_text(json.dumps(settings | changes))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The embedded model with an EOS that is not what its chat template closes a turn with, as in many a base model,
    and with a second EOS in a list. Beside its files lie those by which vLLM knows Mistral's own repositories, which
    would give it other settings, other weights and a tokenizer to which special tokens in a text are letters."""
    zebra = load_tokenizer(str(MODEL))(" zebra")["input_ids"]
    assert len(zebra) == 1
    folder = tmp_path_factory.mktemp("models") / "base"
    files = {
        "tokenizer_config.json": {"eos_token": "<|endoftext|>"},
        "config.json": {"eos_token_id": 0},
        "generation_config.json": {"eos_token_id": [0, *zebra]},
        "params.json": {"dim": 8},
        "tekken.json": {"config": {"version": "v3"}},
        "model.safetensors.index.json": {"weight_map": {"lm_head.weight": "model.safetensors"}},
    }
    (changed(folder, files) / "consolidated.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")  # no weights
    return folder


@pytest.fixture(scope="module")
def tokenizer(base):
    return load_tokenizer(str(base))


@pytest.fixture(scope="module")
def vllm(base, tokenizer, tmp_path_factory):
    """{"rg": the two files of an rg run, name: replies to what was asked under that name}, from one start of vLLM."""
    folder = tmp_path_factory.mktemp("vllm")
    read = rg_files(folder)
    text_ids = tokenizer(TEXT)["input_ids"]
    [chat_ids], ends = prompt_ids(tokenizer, [Request(MESSAGES, 0)])
    greedy = {"max_tokens": 40, "temperature": 0.0}
    zebras = "A horse and a zebra. A horse and a zebra. A horse and a zebra. A horse and a"
    asked = {
        "text": ([TEXT, text_ids, zebras, []], greedy),
        "text to a string": ([TEXT], greedy | {"stop": ["ris"]}),
        "text, penalty": ([TEXT, zebras], greedy | {"repetition_penalty": 1.8}),
        "messages": ([MESSAGES, chat_ids], greedy),
        "ids to an id": ([chat_ids], greedy | {"stop_ids": list(ends)}),
        "schema": (ASKED, {"max_tokens": 60, "top_p": 0.95, "schema": SCHEMA}),
        "schema, greedy": (ASKED[:1], greedy | {"schema": SCHEMA, "repetition_penalty": 1.1}),
    }
    (folder / "ask.py").write_text(VLLM)
    (folder / "asked.json").write_text(json.dumps(asked))
    words = [json.dumps(rg_words(folder, "--model_name_or_path", base)), folder / "asked.json", folder / "replies.json"]
    command = [sys.executable, folder / "ask.py", *words]
    environment = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]
    replies = json.loads((folder / "replies.json").read_text())
    return {"rg": read()} | {name: [Reply(*each) for each in found] for name, found in replies.items()}


def test_vllm_writes_two_configurations_with_one_start(vllm):
    check_rg(vllm["rg"])


def test_vllm_would_take_mistrals_tokenizer(base, tokenizer):
    """It is for `tokenizer_mode` to say, and what it says gives the ids that prompts are rendered for."""
    from vllm.tokenizers.registry import get_tokenizer, resolve_tokenizer_args

    assert resolve_tokenizer_args(str(base))[0] == "mistral"
    text = "<|im_start|>user"
    found = get_tokenizer(str(base), tokenizer_mode=VllmEngine.AS_TRANSFORMERS["tokenizer_mode"])(text)["input_ids"]
    assert found == tokenizer(text)["input_ids"] and found[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")


def test_vllm_continues_text_and_ids_alike(vllm, tokenizer):
    text, ids, ended, empty = vllm["text"]
    assert text == ids and "Paris" in text.text and text.finish == "length"
    assert len(text.ids) == 40 and tokenizer.decode(text.ids, skip_special_tokens=True) == text.text
    assert (ended.text, ended.finish, ended.ids) == ("", "stop", [])  # at the second EOS of generation_config.json
    assert empty.text is None and empty.finish.startswith("refused")


def test_vllm_ends_before_a_stop_string(vllm, tokenizer):
    free, [cut] = vllm["text"][0], vllm["text to a string"]
    assert cut.text == free.text[: free.text.index("ris")] and cut.finish == "stop"
    assert cut.ids == free.ids[: len(cut.ids)] and cut.text.startswith(tokenizer.decode(cut.ids))


def test_vllm_penalises_repetition(vllm):
    """Of the reply's tokens, and of the prompt's, which without it makes the next one a zebra."""
    free, penalised, not_zebra = vllm["text"][0], *vllm["text, penalty"]
    assert len(set(free.ids)) < 30 < 36 < len(set(penalised.ids))
    assert not_zebra.ids


def test_vllm_ends_a_chat_where_its_template_closes_a_turn(vllm, tokenizer):
    """EOS is another token. Ids are ids: without being told, their reply goes on."""
    told, untold = vllm["messages"]
    assert "Paris" in told.text and told.finish == "stop" and tokenizer.decode(told.ids) == told.text
    assert vllm["ids to an id"] == [told]
    assert untold.finish == "length" and tokenizer.convert_tokens_to_ids(CLOSING) in untold.ids
    assert untold.ids[: len(told.ids)] == told.ids


def test_vllm_decodes_under_a_schema(vllm):
    """Beside our own sampler, and greedily with a penalty: what the grammar masks has no probability."""
    follows = Draft202012Validator(SCHEMA).is_valid
    assert all(reply.finish == "stop" and follows(json.loads(reply.text)) for reply in vllm["schema"])
    assert len({reply.text for reply in vllm["schema"]}) > 2
    outside = [re.sub(r'"(?:\\.|[^"\\])*"', "", reply.text) for reply in vllm["schema"]]
    assert not re.search(r"\s", "".join(outside)), outside
    assert all(follows(json.loads(reply.text)) for reply in vllm["schema, greedy"])


# vLLM as a server


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def vllm_version():
    from alignment.run_cards import versions

    return versions().get("vllm") or versions()["vllm-cpu"] + "+cpu"  # which it knows its platform by


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The address of a `vllm serve`, of a model whose own settings are to take the likeliest token always."""
    folder = tmp_path_factory.mktemp("serve")
    model = changed(folder / "model", {"generation_config.json": {"do_sample": True, "top_k": 1}})
    port = free_port()
    serve = [
        shutil.which("vllm", path=os.path.dirname(sys.executable)),
        "serve",
        str(model),
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
        server = subprocess.Popen(
            serve, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 900
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)  # what has not ended by then


def rg(folder, server, key, *more):
    read = rg_files(folder)
    words = rg_words(folder, "--backend", "openai", "--model_name_or_path", "smollm2", "--api_base", server, *more)
    environment = {**ENVIRONMENT, "OPENAI_API_KEY": key}
    return subprocess.run([sys.executable, SCRIPT, *words], env=environment, capture_output=True, text=True), read


def test_rg_through_a_server(server, tmp_path):
    done, read = rg(tmp_path, server, "sesame")
    assert done.returncode == 0, done.stderr[-3000:]
    check_rg(read())
    refused, _ = rg(tmp_path, server, "wrong", "--seed", "7")
    assert refused.returncode == 2 and "refuses the key; set OPENAI_API_KEY" in refused.stderr


def test_a_server_takes_text_messages_ids_and_a_schema(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    engine = OpenAIEngine("smollm2", server, 8, 120)
    tokenizer = load_tokenizer(str(MODEL))
    greedy = Sampling(max_tokens=40, temperature=0)

    def ask(prompts, sampling):
        requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
        return [reply for _, reply in sorted(engine.complete(requests, sampling))]

    text, ids = ask([TEXT, tokenizer(TEXT)["input_ids"]], greedy)
    assert text.text == ids.text and "Paris" in text.text
    [chat_ids], ends = prompt_ids(tokenizer, [Request(MESSAGES, 0)])
    [messages] = ask([MESSAGES], greedy)
    [same] = ask([chat_ids], greedy)
    assert (
        "Paris" in messages.text
        and (same.text, same.finish) == (messages.text, messages.finish)
        and same.finish == "stop"
    )
    assert len({reply.text for reply in ask([TEXT] * 6, Sampling(max_tokens=12))}) > 2  # not by the model's top_k
    follows = Draft202012Validator(SCHEMA).is_valid
    rated = ask(ASKED, Sampling(max_tokens=60, top_p=0.95, schema=SCHEMA))
    assert all(reply.finish == "stop" and follows(json.loads(reply.text)) for reply in rated)
    assert len({reply.text for reply in rated}) > 2
