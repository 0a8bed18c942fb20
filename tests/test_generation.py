"""Engines and the journal together: order, seeds, stops, and that nothing finished is made again or lost."""

import hashlib
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignment.command_line import UserError
from alignment.engines.openai import OpenAIEngine
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply, Request, Sampling, generate, record_seed
from alignment.journal import Journal
from alignment.pretrained import check_model, model_identity

REQUESTS = [Request(f"Prompt {i}\n\nAssistant: ", record_seed(0, i)) for i in range(20)]


class Counting:
    """An engine that answers in a shuffled order and counts what it was asked."""

    identity = "counting 1"

    def __init__(self, failing=()):
        self.asked, self.failing = [], set(failing)

    def complete(self, requests, sampling):
        order = list(range(len(requests)))
        random.Random(len(requests)).shuffle(order)
        for index in order:
            self.asked.append(requests[index])
            failed = requests[index] in self.failing
            yield index, Reply(None, "failed") if failed else Reply(f"to {requests[index].prompt}", "stop")


def run(engine, tmp_path, requests=REQUESTS, sampling=None):
    with Journal(tmp_path / "out.json") as journal:
        return generate(engine, requests, sampling or Sampling(max_tokens=8), journal=journal, label="test")


def test_replies_come_in_the_requests_order(tmp_path):
    assert [reply.text for reply in run(Counting(), tmp_path)] == [f"to {request.prompt}" for request in REQUESTS]


def test_finished_requests_are_not_made_again_and_failed_ones_are(tmp_path):
    first = Counting(failing=REQUESTS[3:5])
    assert run(first, tmp_path)[3] == Reply(None, "failed")
    second = Counting()
    assert run(second, tmp_path)[3].text == f"to {REQUESTS[3].prompt}"
    assert sorted(second.asked) == sorted(REQUESTS[3:5])
    third = Counting()
    run(third, tmp_path)
    assert third.asked == []


@pytest.mark.parametrize(
    "changed",
    [
        {"sampling": Sampling(max_tokens=9)},
        {"sampling": Sampling(max_tokens=8, temperature=0.5)},
        {"sampling": Sampling(max_tokens=8, top_p=0.5)},
        {"sampling": Sampling(max_tokens=8, stop=("x",))},
        {"requests": [request._replace(seed=1) for request in REQUESTS]},
        {"requests": [request._replace(prompt=request.prompt + " ") for request in REQUESTS]},
        {"identity": "counting 2"},
    ],
)
def test_a_changed_setting_reuses_nothing_stale(tmp_path, changed):
    run(Counting(), tmp_path)
    engine = Counting()
    engine.identity = changed.pop("identity", engine.identity)
    run(engine, tmp_path, **changed)
    assert len(engine.asked) == len(REQUESTS)


def test_what_finished_before_a_crash_is_kept(tmp_path):
    class Crashing(Counting):
        def complete(self, requests, sampling):
            for number, outcome in enumerate(super().complete(requests, sampling)):
                if number == 7:
                    raise RuntimeError
                yield outcome

    with pytest.raises(RuntimeError):
        run(Crashing(), tmp_path)
    engine = Counting()
    run(engine, tmp_path)
    assert len(engine.asked) == len(REQUESTS) - 7


def test_record_seeds_are_stable_and_spread():
    assert record_seed(42, "pg", 0) == 1473668897
    seeds = {record_seed(seed, index) for seed in range(10) for index in range(100)}
    assert len(seeds) == 1000 and all(0 <= seed < 2**31 for seed in seeds)


# simulated


def complete(engine, requests, sampling):
    return [reply for _, reply in sorted(engine.complete(requests, sampling))]


def test_simulated_replies_depend_on_seed_and_prompt_alone():
    engine, sampling = SimulatedEngine("writer"), Sampling(max_tokens=100)
    whole = complete(engine, REQUESTS, sampling)
    assert complete(engine, REQUESTS[::-1], sampling) == whole[::-1]
    assert [complete(engine, [request], sampling)[0] for request in REQUESTS] == whole
    assert len(set(whole)) > 15
    assert complete(engine, [request._replace(seed=5) for request in REQUESTS], sampling) != whole


def test_simulated_stops_and_limits():
    free = complete(SimulatedEngine("writer"), REQUESTS, Sampling(max_tokens=1000))
    stopped = complete(SimulatedEngine("writer"), REQUESTS, Sampling(max_tokens=1000, stop=("Human:", "-----")))
    assert [Reply(reply.text.split("Human:")[0], "stop") for reply in free] == stopped
    short = complete(SimulatedEngine("writer"), REQUESTS, Sampling(max_tokens=5))
    assert all(len(reply.text.split(" ")) == 5 and reply.finish == "length" for reply in short)


def test_simulated_settings_do_what_they_say():
    many = [Request(f"{i} Assistant: ", i) for i in range(2000)]
    sampling = Sampling(max_tokens=1000, stop=("Human:",))

    def lengths(name):
        return sum(len(reply.text or "") for reply in complete(SimulatedEngine(name), many, sampling))

    assert lengths("w?quality=1") > 1.5 * lengths("w?quality=0.2")
    replies = complete(SimulatedEngine("w?refusals=0.2&faults=0.3"), many, sampling)
    faults = sum(reply.text is None for reply in replies) / len(many)
    refusals = sum("don't know" in (reply.text or "") for reply in replies) / len(many)
    assert abs(faults - 0.3) < 0.04 and abs(refusals - 0.2) < 0.04
    started = time.monotonic()
    complete(SimulatedEngine("w?latency=0.01"), many[:10], sampling)
    assert time.monotonic() - started >= 0.1
    for name in ("w?speed=1", "w?quality=high"):
        with pytest.raises(UserError):
            SimulatedEngine(name)


# models


def test_models_that_do_not_exist(tmp_path, model_folder):
    check_model(str(model_folder))
    check_model("some-org/some-model")
    (tmp_path / "empty").mkdir()
    for name, said in [
        (tmp_path / "none", "does not exist"),
        ("./none", "does not exist"),
        (f"{tmp_path.name}/a/b", "does not exist"),
        ("assets/none", "does not exist"),  # the folder is there, so a folder is meant
        (tmp_path / "empty", "no config.json"),
    ]:
        with pytest.raises(UserError, match=said):
            check_model(str(name))


def test_a_model_trained_anew_in_the_same_folder_is_another_model(model_folder):
    before = model_identity(str(model_folder))
    (model_folder / "alpaca_eval.json").write_text("[]")  # an output kept beside the model is no part of it
    assert model_identity(str(model_folder)) == before
    weights = model_folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    assert model_identity(str(model_folder)) != before


# openai


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server on loopback. `trouble` is the share of completions that go wrong, in four ways."""

    def __init__(self, trouble=0.0, key=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.trouble, self.key, self.draw, self.calls, self.bodies = trouble, key, random.Random(0), 0, []
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.answer(401, {"error": {"message": "wrong key"}})
        return self.answer(200, {"object": "list", "data": []})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.calls += 1
            self.server.bodies.append(body)
            fate = self.server.draw.random() if self.server.draw.random() < self.server.trouble else None
        if fate is not None and fate < 0.25:
            return self.answer(429, {"error": {"message": "slow down"}})
        if fate is not None and fate < 0.5:
            return self.answer(500, {"error": {"message": "oops"}})
        if fate is not None and fate < 0.75:
            time.sleep(1.5)  # longer than the client waits
        elif fate is not None:
            self.close_connection = True
            self.connection.close()
            return None
        if body["model"] != "m":
            return self.answer(404, {"error": {"message": "no such model"}})
        if "too long" in body["prompt"]:
            return self.answer(400, {"error": {"message": "maximum context length is 8 tokens"}})
        choice = {"index": 0, "text": said(body["prompt"], body["seed"]), "finish_reason": "stop", "logprobs": None}
        try:
            self.answer(200, {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]})
        except BrokenPipeError:
            self.close_connection = True


def said(prompt, seed):
    return hashlib.sha256(f"{prompt} {seed}".encode()).hexdigest()


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()


def test_openai_sends_the_sampling_and_keeps_the_order(server, tmp_path):
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.25, stop=("a", "b"))
    replies = run(OpenAIEngine("m", server.base, 8, 5), tmp_path, sampling=sampling)
    assert [reply.text for reply in replies] == [said(*request) for request in REQUESTS]
    body = server.bodies[0]
    assert (body["max_tokens"], body["temperature"], body["top_p"], body["stop"]) == (7, 0.5, 0.25, ["a", "b"])


def test_openai_through_a_server_in_trouble_loses_nothing(server, tmp_path):
    """30% of calls end in 429, 500, a hang or a cut connection; every reply is there and right, and is made once."""
    server.trouble = 0.3
    requests = [Request(f"p{i}", i) for i in range(60)]
    replies = run(OpenAIEngine("m", server.base, 16, 0.5), tmp_path, requests)
    assert [reply.text for reply in replies] == [said(*request) for request in requests]
    assert server.calls > 60
    calls = server.calls
    run(OpenAIEngine("m", server.base, 16, 0.5), tmp_path, requests)
    assert server.calls == calls


def test_openai_gives_up_on_a_request_and_tries_it_again_in_the_next_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenAIEngine, "RETRIES", 0)
    server.trouble = 0.5
    replies = run(OpenAIEngine("m", server.base, 16, 0.5), tmp_path)
    lost = [reply for reply in replies if reply.text is None]
    assert 0 < len(lost) < len(REQUESTS) and {reply.finish for reply in lost} == {"failed"}
    server.trouble, calls = 0, server.calls
    assert all(reply.text for reply in run(OpenAIEngine("m", server.base, 16, 5), tmp_path))
    assert server.calls == calls + len(lost)


def test_openai_says_what_is_wrong_at_once(server, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="needs --api_base"):
        OpenAIEngine("m", None, 8, 5)
    with pytest.raises(UserError, match="no server answers at --api_base http://127.0.0.1:9/v1"):
        run(OpenAIEngine("m", "http://127.0.0.1:9/v1", 8, 1), tmp_path)
    with pytest.raises(UserError, match="has no model 'other'"):
        run(OpenAIEngine("other", server.base, 8, 5), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    server.key = "right"
    with pytest.raises(UserError, match="refuses the key; set OPENAI_API_KEY"):
        run(OpenAIEngine("m", server.base, 8, 5), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    assert all(reply.text for reply in run(OpenAIEngine("m", server.base, 8, 5), tmp_path))


def test_openai_prompt_too_long_is_that_requests_affair(server, tmp_path):
    requests = [Request("fine", 0), Request("far too long", 1)]
    assert run(OpenAIEngine("m", server.base, 8, 5), tmp_path, requests)[1] == Reply(None, "too long")
