"""Rewards of many responses: simulated, by a model here, and by a small server that answers like vLLM's /classify."""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from conftest import make_llama, make_tokenizer

from alignment.command_line import ArgumentParser, UserError
from alignment.engines import add_engine_arguments, scoring
from alignment.engines.scoring import add_scorer_arguments, models_scored_by, scored, scorer_from
from alignment.journal import Journal

ROWS = [{"prompt": f"What is {number}?"} for number in (1, 1, 2, 3, 3, 3, 4, 5)]
RESPONSES = ["One.", "It is one, or so.", "Two", "3.", "Three. Yes.", "", "Four\n\nand more.", "w" * 60]


def make_reward_model(folder, **facts):
    """A one-label Llama of heads wide enough for vLLM, its scores some units apart."""
    import torch
    from transformers import LlamaForSequenceClassification

    tokenizer = make_tokenizer()
    config = make_llama(len(tokenizer), hidden_size=128, num_attention_heads=2, num_key_value_heads=2).config
    config.num_labels = 1
    config.update({"prompt_template": "almost", **facts})
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def scorer(reward_model, *more):
    parser = ArgumentParser("")
    add_engine_arguments(parser)
    add_scorer_arguments(parser)
    return scorer_from(parser.parse_args([*(["--reward_model", reward_model] if reward_model else []), *more]))


def rewards(scorer, tmp_path, rows=ROWS, responses=RESPONSES):
    with Journal(tmp_path / "out.json") as journal:
        return scored(scorer, rows, responses, journal=journal, label="rewards")


def ours(folder, rows=ROWS, responses=RESPONSES):
    from alignment.training.reward_model import load, score

    return score(*load(folder, device="cpu"), rows, responses)


# Simulated


def test_the_simulated_reward_counts_sentences(tmp_path):
    assert rewards(scorer("simulated"), tmp_path) == [1, 1, 0, 1, 2, 0, 1, 0]
    assert rewards(scorer("simulated?noise=0"), tmp_path) == [1, 1, 0, 1, 2, 0, 1, 0]


def test_its_noise_is_gaussian_and_of_the_texts_alone():
    """2,000 draws of deviation 0.5: their mean is 0 to 4 x 0.5 / sqrt(2000) = 0.045, their deviation 0.5 to
    4 x 0.5 / sqrt(4000) = 0.032, and 95% are within 1.96 x 0.5 = 0.98, to 4 x sqrt(.95 x .05 / 2000) = 2%."""
    rows, responses = [{"prompt": str(i // 2)} for i in range(2000)], [f"{i % 2}" for i in range(2000)]
    found = scorer("simulated?noise=0.5").score(rows, responses)
    assert abs(statistics.mean(found)) < 0.045 and abs(statistics.pstdev(found) - 0.5) < 0.032
    assert abs(sum(abs(reward) < 0.98 for reward in found) / 2000 - 0.95) < 0.02
    assert len(set(found)) == 2000  # neither prompt nor response alone makes it
    assert scorer("simulated?noise=0.5").score(rows[::-1], responses[::-1]) == found[::-1]


# What is refused, before anything is loaded


@pytest.mark.parametrize(
    ("reward_model", "flags", "said"),
    [
        (None, [], "--reward_model is missing"),
        (None, ["--reward_api_base", "http://localhost:1"], "--reward_model is missing"),
        ("simulated?noise=loud", [], "simulated[?]noise=loud: noise is no number"),
        ("simulated?noise=-1", [], "noise=N, of 0 or more, is its only setting"),
        ("simulated?noise=nan", [], "noise=N, of 0 or more"),
        ("simulated?nois=1", [], "noise=N, of 0 or more, is its only setting"),
        ("./nowhere", [], "does not exist"),
        ("tiny", [], "is no reward model: its config has 2 labels, not one"),
        ("tiny", ["--reward_api_base", "http://localhost:1"], "is no reward model"),
        ("rm", ["--reward_api_base", "http://:8000"], "--reward_api_base is http://host:port, not 'http://:8000"),
    ],
)
def test_what_cannot_score_is_refused(tmp_path, model_folder, monkeypatch, reward_model, flags, said):
    monkeypatch.chdir(tmp_path)
    make_reward_model("rm")
    with pytest.raises(UserError, match=said) as refused:
        scorer(reward_model, *flags)
    assert "\n" not in str(refused.value)


def test_the_models_that_a_card_names(tmp_path):
    parser = ArgumentParser("")
    add_scorer_arguments(parser)
    words = [[], ["--reward_model", "simulated?noise=1"], ["--reward_model", "out/rm", "--reward_api_base", "http://h"]]
    assert [models_scored_by(parser.parse_args(each)) for each in words] == [[], [], ["out/rm"]]


# In this process, and what the journal keeps


def test_a_model_here_gives_what_score_gives(tmp_path):
    folder = make_reward_model(tmp_path / "rm")
    found = rewards(scorer(folder), tmp_path)
    assert found == ours(folder) and statistics.pstdev(found) > 0.5


def test_a_model_that_was_trained_again_scores_again(tmp_path):
    """Its files' times are part of the journal's key, of a model here and of one that is served."""
    folder = make_reward_model(tmp_path / "rm")
    served = ["--reward_api_base", "http://localhost:1"]
    before = scorer(folder).identity, scorer(folder, *served).identity
    os.utime(tmp_path / "rm" / "model.safetensors", ns=(1, 1))
    after = scorer(folder).identity, scorer(folder, *served).identity
    assert len({*before, *after}) == 4


class Counted:
    """A scorer that gives a text's length and keeps what it was asked; it stops at the text "stop"."""

    def __init__(self, identity="counted"):
        self.identity, self.asked = identity, []

    def score(self, rows, responses):
        self.asked.append(list(responses))
        if "stop" in responses:
            raise KeyboardInterrupt
        return [{"nan": math.nan, "inf": -math.inf}.get(text, len(text) / 3) for text in responses]


def test_what_was_scored_together_is_journaled_together(tmp_path, monkeypatch):
    """Chunks of 3. Interrupted in the third, the next run asks for that alone; another text asks for its chunk; another
    prompt too; another scorer for all. Thirds come back to the last bit."""
    monkeypatch.setattr(scoring, "SCORED_TOGETHER", 3)
    first, second, third = RESPONSES[:3], RESPONSES[3:6], RESPONSES[6:]
    counted, texts = Counted(), [*first, *second, "stop", third[1]]
    with pytest.raises(KeyboardInterrupt):
        rewards(counted, tmp_path, responses=texts)
    assert counted.asked == [first, second, texts[6:]]
    counted = Counted()
    assert rewards(counted, tmp_path) == [len(text) / 3 for text in RESPONSES] and counted.asked == [third]
    for rows, responses, asked in (
        (ROWS, RESPONSES, []),
        (ROWS, [*first, "new", *second[1:], *third], [["new", *second[1:]]]),
        ([{"prompt": "new"}, *ROWS[1:]], RESPONSES, [first]),
    ):
        counted = Counted()
        rewards(counted, tmp_path, rows, responses)
        assert counted.asked == asked
    other = Counted("other")
    rewards(other, tmp_path)
    assert other.asked == [first, second, third]


def test_no_response_no_reward(tmp_path):
    counted = Counted()
    assert rewards(counted, tmp_path, [], []) == [] and counted.asked == []


@pytest.mark.parametrize(("text", "said"), [("nan", "gives nan for 'nan'; "), ("inf", "gives -inf for 'inf'; ")])
def test_a_reward_that_is_not_finite_ends_the_run_and_keeps_the_others(tmp_path, monkeypatch, text, said):
    monkeypatch.setattr(scoring, "SCORED_TOGETHER", 3)
    responses = [*RESPONSES[:4], text, *RESPONSES[5:]]
    with pytest.raises(UserError, match=said):
        rewards(Counted(), tmp_path, responses=responses)
    counted = Counted()
    with pytest.raises(UserError, match=said):
        rewards(counted, tmp_path, responses=responses)
    assert counted.asked == [responses[3:6]]


# Served


class Server(ThreadingHTTPServer):
    """vLLM's /classify on loopback, which keeps what it was sent. `act(handler, rewards)` may answer otherwise."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.paths, self.keys, self.act = [], [], [], Handler.good
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def send(self, status, raw, kind="application/json"):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def rows(self, probs):
        data = [{"index": i, "label": "LABEL_0", "probs": each, "num_classes": 1} for i, each in enumerate(probs)]
        self.send(200, json.dumps({"object": "list", "data": data[::-1]}).encode())

    def good(self, rewards):
        activated = self.body["use_activation"] is not False
        self.rows([[1 / (1 + math.exp(-reward)) if activated else reward] for reward in rewards])

    def do_POST(self):
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.bodies.append(self.body)
        self.server.paths.append(self.path)
        self.server.keys.append(self.headers["Authorization"])
        self.server.act(self, list(map(reward_of, self.body["input"])))


def reward_of(ids):
    return sum((place % 7 - 3) * token for place, token in enumerate(ids)) / 100


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(scoring, "RETRIES", 0)
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("end", ["", "/v1/", "/v1?key=query99"])
def test_a_server_is_sent_the_ids_of_training_and_answers_in_any_order(server, tmp_path, monkeypatch, end):
    from alignment.training.reward_model import encode_texts, load

    monkeypatch.setattr(scoring, "SERVED_TOGETHER", 3)
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    folder = make_reward_model(tmp_path / "rm", reward_max_length=48)
    found = rewards(scorer(folder, "--reward_api_base", server.base + end), tmp_path)
    _, template = load(folder, device="cpu")
    ids = [sample.ids for sample in encode_texts(template, ROWS, RESPONSES, 48)]
    assert found == list(map(reward_of, ids)) and max(map(len, ids)) == 48
    probes, asked = server.bodies[:2], server.bodies[2:]
    assert [(body["input"], body["use_activation"]) for body in probes] == [(ids[:1], False), (ids[:1], True)]
    assert sorted(body["input"] for body in asked) == sorted([ids[:3], ids[3:6], ids[6:]])
    assert all(body["model"] == folder and not body["add_special_tokens"] for body in server.bodies)
    assert not any(body["use_activation"] for body in asked)
    assert set(server.paths) == {"/classify" + end.removeprefix("/v1").strip("/")} and set(server.keys) == {
        "Bearer sesame"
    }


def test_what_a_server_gave_is_not_asked_again(server, tmp_path):
    folder = make_reward_model(tmp_path / "rm")
    found = rewards(scorer(folder, "--reward_api_base", server.base), tmp_path)
    server.bodies.clear()
    assert rewards(scorer(folder, "--reward_api_base", server.base), tmp_path) == found and server.bodies == []


def test_a_server_without_an_activation_gives_rewards(server, tmp_path):
    """Of a model of regression vLLM has no sigmoid, whatever is asked for."""
    server.act = lambda handler, rewards: handler.rows([[reward] for reward in rewards])
    folder = make_reward_model(tmp_path / "rm", problem_type="regression")
    found = rewards(scorer(folder, "--reward_api_base", server.base), tmp_path)
    assert len(set(found)) == len(RESPONSES)


def answers(status, raw, kind="application/json"):
    return lambda handler, rewards: handler.send(status, raw, kind)


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda handler, rewards: handler.rows([[0.5] for _ in rewards]), "gives probabilities: it passes over"),
        (lambda handler, rewards: handler.rows([[0.5, 0.5] for _ in rewards]), "no reward for each text; is it a rew"),
        (lambda handler, rewards: handler.rows([[None] for _ in rewards]), "no reward for each text"),
        (lambda handler, rewards: handler.rows([]), "no reward for each text"),
        (answers(200, b"<html>welcome</html>", "text/html"), "no reward for each text"),
        (answers(200, b'{"data": ['), "no reward for each text"),
        (answers(200, b"[1]"), "no reward for each text"),
        (answers(200, b'{"data": [{"index": 0}]}'), "no reward for each text"),
        (answers(401, b'{"error": {"message": "sesame is wrong"}}'), "refuses: 401 [*][*][*] is wrong"),
        (
            answers(400, b"This model's maximum context length is 8 tokens"),
            "refuses: 400 This.*context length is 8 tokens",
        ),
        (answers(404, b"no /classify"), "refuses: 404 no /classify"),
        (lambda handler, rewards: handler.connection.shutdown(2), "no server answers at --reward_api_base http://127"),
    ],
)
def test_a_server_that_gives_no_rewards_is_one_line(server, tmp_path, monkeypatch, act, said):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    server.act = act
    folder = make_reward_model(tmp_path / "rm")
    with pytest.raises(UserError, match=said) as refused:
        rewards(scorer(folder, "--reward_api_base", server.base), tmp_path)
    assert "\n" not in str(refused.value) and "sesame" not in str(refused.value)


def test_no_server_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "RETRIES", 0)
    folder = make_reward_model(tmp_path / "rm")
    with pytest.raises(UserError, match="no server answers at --reward_api_base http://127.0.0.1:9"):
        rewards(scorer(folder, "--reward_api_base", "http://127.0.0.1:9"), tmp_path)


@pytest.mark.slow
def test_vllm_serves_what_score_gives(tmp_path):
    """`vllm serve --runner pooling` and the model here agree to 1e-4, in fp32."""
    from test_engines_real import ENVIRONMENT, free_port, vllm_version

    folder, port = make_reward_model(tmp_path / "rm"), free_port()
    metadata = tmp_path / "names" / "vllm-0.dist-info" / "METADATA"  # `serve` asks for the version of a package `vllm`
    metadata.parent.mkdir(parents=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm_version()}\n")
    vllm = shutil.which("vllm", path=os.path.dirname(sys.executable))
    flags = ["--runner", "pooling", "--dtype", "float32", "--enforce-eager", "--max-model-len", "512"]
    flags += ["--max-num-batched-tokens", "512", "--max-num-seqs", "8"]  # what it warms up for
    flags += ["--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path / "serve.log"
    with log.open("w") as output:
        environment = {**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "names")}
        process = subprocess.Popen(
            [vllm, "serve", folder, *flags], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.5)
        found = rewards(scorer(folder, "--reward_api_base", f"http://127.0.0.1:{port}"), tmp_path)
        assert found == pytest.approx(ours(folder), abs=1e-4)
    finally:
        process.terminate()
        process.wait(60)
