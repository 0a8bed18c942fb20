"""The openai engine against one small server that answers in every way there is: no hang, no traceback, right counts.

What a row is answered with is named in its prompt, so that odd answers and good ones are in flight side by side.
"""

import gzip
import hashlib
import json
import random
import socket
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from alignment.command_line import UserError
from alignment.engines.answers import REDIRECTED, REFUSED
from alignment.engines.openai import OpenAIEngine
from alignment.generation import Reply, Request, Sampling, generate, record_seed, refuse_failures
from alignment.journal import Journal
from alignment.secrecy import secrets_in, without_key

REQUESTS = [Request(f"Prompt {i}\n\nAssistant: ", record_seed(0, i)) for i in range(20)]
SECRET = "sk-canary-0123456789abcdef"


class Server(ThreadingHTTPServer):
    """An OpenAI-compatible server on loopback. `trouble` is the share of completions that go wrong, in four ways."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, trouble=0.0, key=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.trouble, self.key, self.draw = trouble, key, random.Random(0)
        self.bodies, self.paths, self.headers, self.tries = [], [], [], Counter()
        self.models = lambda handler: handler.answer(200, {"object": "list", "data": []})
        self.lock, self.closing = threading.Lock(), threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def base(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    @property
    def calls(self):
        return len(self.bodies)

    def stop(self):
        self.closing.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        pass  # the client has hung up, as it should


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the head's acknowledgement

    def log_message(self, *args):
        pass

    def send(self, status, raw, kind="application/json", **headers):
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def answer(self, status, body, **headers):
        self.send(status, json.dumps(body).encode(), **headers)

    def good(self, **changes):
        """A completion, or a chat's, with what was asked for in it."""
        text = said(self.prompt, self.body["seed"])
        shape = {"message": {"role": "assistant", "content": text}} if "messages" in self.body else {"text": text}
        choice = {"index": 0, "finish_reason": "stop", "logprobs": None} | shape | changes
        self.answer(200, {"id": "1", "object": "x", "created": 0, "model": "m", "choices": [choice]})

    def cut(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self):
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            return self.answer(401, {"error": {"message": f"wrong key {self.headers['Authorization']}"}})
        return self.server.models(self)

    def do_POST(self):
        if self.server.closing.is_set():
            return self.cut()
        self.body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        chat = self.body.get("messages")
        self.prompt = chat[-1]["content"] if chat else self.body["prompt"]
        with self.server.lock:
            self.server.bodies.append(self.body)
            self.server.paths.append(self.path)
            self.server.headers.append(self.headers)
            self.server.tries[str(self.prompt)] += 1
            self.tried = self.server.tries[str(self.prompt)]
            fate = self.server.draw.random() if self.server.draw.random() < self.server.trouble else 1
        if fate < 0.3:
            return self.answer(429, {"error": {"message": "slow down"}})
        if fate < 0.6:
            return self.answer(500, {"error": {"message": "oops"}})
        if fate < 0.7:
            return self.server.closing.wait(2.5)  # longer than the client waits
        if fate < 1:
            return self.cut()
        if self.body["model"] != "m":
            return self.answer(404, {"error": {"message": "no such model"}})
        kind = str(self.prompt).rpartition("\n")[2].partition(": ")[0]
        return KINDS[kind][0](self) if kind in KINDS else self.good()


def said(prompt, seed):
    return hashlib.sha256(f"{prompt} {seed}".encode()).hexdigest()


# Kinds of answer: what the server does, and the reply: the good text (WHOLE), a Reply, or its finish


WHOLE = object()
CONTEXT = "This model's maximum context length is 8 tokens. However, you requested 9 tokens."


def raw(body, kind="application/json", status=200, **headers):
    return lambda handler: handler.send(status, body, kind, **headers)


def body(value, status=200, **headers):
    return raw(json.dumps(value).encode(), status=status, **headers)


def choices(value):
    return body({"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": value})


def choice(**changes):
    return choices([{"index": 0, "text": " Fill the", "finish_reason": "stop", "logprobs": None} | changes])


def error(status, message, **headers):
    return body({"error": {"message": message, "type": "t", "code": status}}, status, **headers)


def once(act):
    """The first try is answered so, the next one well."""
    return lambda handler: act(handler) if handler.tried == 1 else handler.good()


def cut(handler):
    handler.cut()


def cut_in_the_middle(handler):
    handler.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')
    handler.cut()


def garbage(handler):
    handler.wfile.write(b"\x00\x01 no HTTP at all\r\n\r\n")
    handler.cut()


def hang(handler):
    handler.server.closing.wait(30)


def trickle(handler):
    """A byte now and then, which no time-out between bytes ends."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n\r\n")
    while not handler.server.closing.wait(0.1):
        handler.wfile.write(b" ")


def trickle_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not handler.server.closing.wait(0.1):
        handler.wfile.write(b"X: y\r\n")


def flood(handler):
    """Chunks without an end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while not handler.server.closing.wait(0.02):
        handler.wfile.write(b"400\r\n" + b" " * 1024 + b"\r\n")


def zipped(handler):
    text = json.dumps({"choices": [{"text": "in a gzip", "finish_reason": "stop"}]}).encode()
    handler.send(200, gzip.compress(text), Content_Encoding="gzip")


def other_shape(handler):
    text = said(handler.prompt, handler.body["seed"])
    if "messages" in handler.body:
        return choice(text=text)(handler)
    return choices([{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}])(handler)


def echo(status):
    """What it was sent, the key in it, in body and headers."""
    return lambda handler: error(status, f"You sent {handler.headers['Authorization']}", X_Key=SECRET)(handler)


KINDS = {
    # whole replies
    "length": (lambda handler: handler.good(finish_reason="length"), WHOLE),
    "no usage, no id": (body({"choices": [{"text": "bare", "finish_reason": "stop"}]}), Reply("bare", "stop")),
    "the other shape": (other_shape, WHOLE),
    "empty text": (choice(text=""), Reply("", "stop")),
    "text beside an empty error": (
        body({"error": None, "choices": [{"text": "a", "finish_reason": "stop"}]}),
        Reply("a", "stop"),
    ),
    "null text, message beside it": (choice(text=None, message={"content": "b"}), Reply("b", "stop")),
    "two choices": (choices([{"text": t, "finish_reason": "stop"} for t in "cd"]), Reply("c", "stop")),
    "lone surrogate": (choice(text="half \ud83d of it"), Reply("half \ufffd of it", "stop")),
    "surrogate pair": (choice(text="\U0001f600"), Reply("\U0001f600", "stop")),
    "odd line ends": (choice(text="a\rb\u2028c\x00"), Reply("a\rb\u2028c\x00", "stop")),
    "byte-order mark": (raw(b'\xef\xbb\xbf{"choices": [{"text": "e", "finish_reason": "stop"}]}'), Reply("e", "stop")),
    "JSON called HTML": (
        raw(b'{"choices": [{"text": "f", "finish_reason": "stop"}]}', "text/html"),
        Reply("f", "stop"),
    ),
    "gzip": (zipped, Reply("in a gzip", "stop")),
    "the key in a text": (choice(text=f"it is {SECRET}."), Reply("it is ***.", "stop")),
    "429 once": (once(error(429, "slow down")), WHOLE),
    "503 once": (once(error(503, "overloaded")), WHOLE),
    "cut once": (once(cut), WHOLE),
    "cut in the middle once": (once(cut_in_the_middle), WHOLE),
    "hang once": (once(hang), WHOLE),
    # no choices, no text, no end
    "choices []": (choices([]), "failed: no choices"),
    "choices null": (choices(None), "failed: no choices"),
    "choices missing": (body({"id": "1"}), "failed: no choices"),
    "choices a dict": (choices({"text": "a", "finish_reason": "stop"}), "failed: no choices"),
    "choices a text": (choices("stop"), "failed: no choices"),
    "choices of null": (choices([None]), "failed: no choices"),
    "choices of texts": (choices(["a"]), "failed: no choices"),
    "choices of lists": (choices([["a"]]), "failed: no choices"),
    "text null": (choice(text=None), "failed: no text"),
    "text a number": (choice(text=5), "failed: no text"),
    "text a list": (choice(text=["a"]), "failed: no text"),
    "text true": (choice(text=True), "failed: no text"),
    "text missing": (choices([{"finish_reason": "stop"}]), "failed: no text"),
    "message null": (choices([{"finish_reason": "stop", "message": None}]), "failed: no text"),
    "message a text": (choices([{"finish_reason": "stop", "message": "a"}]), "failed: no text"),
    "content null": (choices([{"finish_reason": "stop", "message": {"content": None}}]), "failed: no text"),
    "content of parts": (choices([{"finish_reason": "stop", "message": {"content": [{}]}}]), "failed: no text"),
    "finish null": (choice(finish_reason=None), "failed: no finish_reason"),
    "finish missing": (choices([{"text": "a"}]), "failed: no finish_reason"),
    "finish a list": (choice(finish_reason=["stop"]), "failed: no finish_reason"),
    "finish abort": (choice(finish_reason="abort"), "failed: finish_reason abort"),
    "finish tool_calls": (choice(finish_reason="tool_calls"), "failed: finish_reason tool_calls"),
    "finish unheard of": (choice(finish_reason="Stop\n\x1b[31m"), "failed: finish_reason Stop [31m"),
    "finish filter": (choice(finish_reason="content_filter"), "failed: content filter"),
    # no completion under 200
    "web page": (raw(b"<html>gateway is restarting</html>", "text/html"), "failed: a web page"),
    "web page called JSON": (raw(b"\n<!doctype html>"), "failed: a web page"),
    "error under 200": (error(200, "overloaded"), "failed: error under 200: overloaded"),
    "error text under 200": (body({"error": "over\nloaded"}), "failed: error under 200: over loaded"),
    "too long under 200": (error(200, CONTEXT), "too long"),
    "a list": (body([{"text": "a", "finish_reason": "stop"}]), "failed: no choices"),
    "a text": (body("stop"), "failed: no choices"),
    "null": (body(None), "failed: no choices"),
    "half a JSON": (raw(b'{"choices": [{"text": " Fill'), "failed: no JSON"),
    "nothing": (raw(b""), "failed: no JSON"),
    "plain text": (raw(b"stop", "text/plain"), "failed: no JSON"),
    "event stream": (raw(b'data: {"choices": []}\n\ndata: [DONE]\n\n', "text/event-stream"), "failed: no JSON"),
    "bad UTF-8": (raw(b'{"choices": [{"text": "\xff\xfe", "finish_reason": "stop"}]}'), "failed: no JSON"),
    "too deep": (raw(b"[" * 200_000), "failed: no JSON"),
    "too many digits": (raw(b'{"choices": ' + b"9" * 5000 + b"}"), "failed: no JSON"),
    "204": (raw(b"", status=204), "failed: no JSON"),
    # other statuses
    "500": (error(500, "oops"), "failed: server error 500"),
    "502 web page": (raw(b"<html>bad gateway</html>", "text/html", 502), "failed: server error 502"),
    "503 for an hour": (error(503, "overloaded", Retry_After="3600"), "failed: server error 503"),
    "503 from one that knows no time": (error(503, "overloaded", Retry_After="nan"), "failed: server error 503"),
    "429": (error(429, "content length of the context window"), "failed: server busy 429"),
    "408": (error(408, "slow"), "failed: server busy 408"),
    "409": (error(409, "locked"), "failed: server busy 409"),
    "600": (error(600, "beyond"), "failed: server error 600"),
    "401 for a row": (error(401, "no"), f"{REFUSED} 401"),
    "402": (error(402, "no credit"), f"{REFUSED} 402"),
    "404 for a row": (error(404, "gone"), f"{REFUSED} 404"),
    "403 moderation": (error(403, "your input was flagged"), "failed: content filter"),
    "400 filter": (body({"error": {"message": "management", "code": "content_filter"}}, 400), "failed: content filter"),
    "302": (lambda handler: raw(b"", status=302, Location=handler.server.elsewhere)(handler), f"{REDIRECTED} 302"),
    "307": (lambda handler: raw(b"", status=307, Location=handler.server.elsewhere)(handler), f"{REDIRECTED} 307"),
    "308 to nowhere": (raw(b"", status=308), f"{REDIRECTED} 308"),
    # what no other run heals
    "400": (error(400, "no\n such\x1b thing"), "refused: 400 no such thing"),
    "400 without a word": (raw(b"", status=400), "refused: 400"),
    "400 web page": (raw(b"<html>no</html>", "text/html", 400), "refused: 400 a web page"),
    "400 in half a character": (error(400, "half \ud83d"), "refused: 400 half"),
    "400 at length": (error(400, "a" * 10_000), "refused: 400 " + "a" * 120),
    "413": (error(413, "too much"), "refused: 413 too much"),
    "422": (body({"detail": [{"msg": "not so", "input": "a context length"}]}, 422), "refused: 422 not so"),
    "400 context": (error(400, CONTEXT), "too long"),
    "413 context": (error(413, "the request exceeds the available context size"), "too long"),
    "422 context": (body({"error": "`inputs` must have less than 8 tokens. Given: 9"}, 422), "too long"),
    "400 echo": (echo(400), "refused: 400 You sent Bearer ***"),
    "200 echo": (echo(200), "failed: error under 200: You sent Bearer ***"),
    # no answer
    "cut": (cut, "failed: no connection"),
    "cut in the middle": (cut_in_the_middle, "failed: no connection"),
    "garbage": (garbage, "failed: no connection"),
    "no gzip": (raw(b"no gzip", Content_Encoding="gzip"), "failed: no connection"),
    "hang": (hang, "failed: time-out"),
    "trickle": (trickle, "failed: time-out"),
    "trickle of headers": (trickle_headers, "failed: time-out"),
    "flood": (flood, "failed: time-out"),
}


@pytest.fixture
def server():
    server = Server()
    yield server
    server.stop()


@pytest.fixture
def quick(monkeypatch):
    """One retry, without much of a pause."""
    import openai._base_client

    monkeypatch.setattr(OpenAIEngine, "RETRIES", 1)
    monkeypatch.setattr(OpenAIEngine, "PAUSES", (0.01,))
    monkeypatch.setattr(openai._base_client, "INITIAL_RETRY_DELAY", 0.05)


def run(engine, tmp_path, requests=REQUESTS, sampling=None):
    with Journal(tmp_path / "out.json") as journal:
        return generate(engine, requests, sampling or Sampling(max_tokens=8), journal=journal, label="test")


def asked(kind, number, chat):
    prompt = f"{kind}: {number}"
    return Request([{"role": "user", "content": prompt}] if chat else prompt, number)


@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
def test_every_kind_of_answer_costs_its_own_row_alone(server, tmp_path, quick, monkeypatch, capfd, chat):
    """Each kind between good rows: the expected reply, no more calls than the tries, nothing of the key, no hang."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    other = Server()
    server.elsewhere = f"{other.base}/completions"
    rows = [kind for name in KINDS for kind in (name, "good")]
    requests = [asked(kind, number, chat) for number, kind in enumerate(rows)]
    started = time.monotonic()
    replies = run(OpenAIEngine("m", server.base, 32, 1.5), tmp_path, requests)
    assert time.monotonic() - started < 30
    expected = {}
    for number, kind in enumerate(rows):
        found = KINDS.get(kind, (None, WHOLE))[1]
        whole = Reply(said(f"{kind}: {number}", number), "length" if kind == "length" else "stop")
        expected[number] = whole if found is WHOLE else Reply(None, found) if isinstance(found, str) else found
    wrong = {rows[n]: (reply, expected[n]) for n, reply in enumerate(replies) if reply != expected[n]}
    assert wrong == {}
    lines = [json.loads(line) for line in (tmp_path / "out.json.journal.jsonl").read_bytes().splitlines()]
    whole = Counter((reply.text, reply.finish) for reply in expected.values() if reply.text is not None)
    assert Counter((line["text"], line["finish"]) for line in lines) == whole
    assert set(server.paths) == {"/v1/chat/completions" if chat else "/v1/completions"}
    assert other.calls == 0  # no redirect was followed
    other.stop()
    failed = sum(reply.finish.startswith("failed") for reply in expected.values())
    with pytest.raises(UserError, match=f"^{failed} requests failed") as caught:
        refuse_failures(replies)
    shown = "".join(capfd.readouterr()) + str(caught.value) + str(replies)
    shown += "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert SECRET not in shown and "Traceback" not in shown
    assert any(SECRET in sent["Authorization"] for sent in server.headers)  # it was there to be leaked
    heals = {kind for kind in KINDS if expected[rows.index(kind)].may_heal}
    calls = server.calls
    for kind in heals:
        monkeypatch.setitem(KINDS, kind, (Handler.good, WHOLE))
    again = run(
        OpenAIEngine("m", server.base, 32, 5), tmp_path, [each for each in requests if asked_kind(each) in heals]
    )
    assert all(reply.text for reply in again) and server.calls - calls == len(again)


def asked_kind(request):
    return (request.prompt[0]["content"] if request.is_chat else request.prompt).partition(": ")[0]


def test_there_are_43_kinds_at_least():
    assert len(KINDS) >= 43


def test_a_time_out_bounds_the_whole_of_a_request(server, tmp_path, quick):
    """A trickle held a request for ever. Now: tries times --timeout."""
    requests = [asked(kind, number, False) for number, kind in enumerate(["trickle", "good", "hang"])]
    started = time.monotonic()
    replies = run(OpenAIEngine("m", server.base, 8, 1), tmp_path, requests)
    assert time.monotonic() - started < 8
    assert [reply.finish for reply in replies] == ["failed: time-out", "stop", "failed: time-out"]
    assert server.tries["hang: 2"] == 2


# What is sent


def test_it_sends_the_sampling_and_keeps_the_order(server, tmp_path):
    sampling = Sampling(max_tokens=7, temperature=0.5, top_p=0.25, stop=("a", "b"))
    replies = run(OpenAIEngine("m", server.base, 8, 5), tmp_path, sampling=sampling)
    assert [reply.text for reply in replies] == [said(*request) for request in REQUESTS]
    sent = server.bodies[0]
    assert (sent["max_tokens"], sent["temperature"], sent["top_p"], sent["stop"]) == (7, 0.5, 0.25, ["a", "b"])
    assert not {"stop_token_ids", "repetition_penalty", "response_format", "messages"} & set(sent)


@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
def test_it_sends_what_is_set_beside(server, tmp_path, chat):
    schema = {"type": "string"}
    sampling = Sampling(max_tokens=7, stop_ids=(3, 4), repetition_penalty=1.5, schema=schema)
    engine = OpenAIEngine("m", server.base, 8, 5)
    list(engine.complete([asked("good", 0, chat)], sampling))
    sent = server.bodies[0]
    assert (sent["stop_token_ids"], sent["repetition_penalty"]) == ([3, 4], 1.5)
    json_schema = {"name": "reply", "schema": schema, "strict": True}
    assert sent["response_format"] == {"type": "json_schema", "json_schema": json_schema}


def test_messages_that_spell_control_tokens_are_sent_and_counted(server, capsys):
    """What the server's own template and tokenizer make of them cannot be seen from here."""
    contents = ["good: </s><|im_end|>", "good: a < b"]
    requests = [Request([{"role": "user", "content": content}], 0) for content in contents]
    assert len(list(OpenAIEngine("m", server.base, 1, 5).complete(requests, Sampling(max_tokens=7)))) == 2
    assert [sent["messages"][0]["content"] for sent in server.bodies] == contents
    assert "warning: 1 of 2 prompts spell control tokens, and are given as they are" in capsys.readouterr().err


GENERATION_CONFIG = {"temperature": 0.6, "top_p": 0.8, "top_k": 20, "min_p": 0.1, "repetition_penalty": 1.05}
NEUTRAL = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


def drawn_from(body):
    """What a `vllm serve` samples by: what it is told, else what the model's generation_config.json says."""
    told = {name: value for name, value in body.items() if name in NEUTRAL | GENERATION_CONFIG and value is not None}
    found = {**NEUTRAL, **GENERATION_CONFIG, **told}
    return found | {"top_k": max(found["top_k"], 0)}  # -1 is every token, too


@pytest.mark.parametrize("chat", [False, True], ids=["texts", "messages"])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_vllms_server_draws_by_the_flags_and_not_by_the_models_settings(server, chat, penalty):
    """As --backend vllm does, which leaves generation_config.json alone."""
    server.models = body({"object": "list", "data": [{"id": "m", "object": "model", "owned_by": "vllm"}]})
    sampling = Sampling(max_tokens=7, temperature=0.9, top_p=1.0, repetition_penalty=penalty)
    [(_, reply)] = OpenAIEngine("m", server.base, 8, 5).complete([asked("good", 0, chat)], sampling)
    assert reply.text
    flags = {"temperature": 0.9, "top_p": 1.0, "repetition_penalty": penalty}
    assert drawn_from(server.bodies[0]) == NEUTRAL | flags


@pytest.mark.parametrize("owner", ["openai", None, ["vllm"]])
def test_another_server_is_sent_nothing_that_it_may_refuse(server, owner):
    server.models = body({"object": "list", "data": [{"id": "m", "owned_by": owner}, "m"]})
    [(_, reply)] = OpenAIEngine("m", server.base, 8, 5).complete([asked("good", 0, False)], Sampling(8))
    assert reply.text and not {"top_k", "min_p", "repetition_penalty"} & set(server.bodies[0])


def test_as_many_are_in_flight_as_concurrency_says(server, monkeypatch):
    """Eight copies of a model have room for 2,048 requests, and the client's own limit is 1,000; here it is 2, and each
    request is answered once all eight are there."""
    monkeypatch.setattr("openai._base_client.DEFAULT_CONNECTION_LIMITS", httpx.Limits(max_connections=2))
    monkeypatch.setattr(OpenAIEngine, "RETRIES", 0)
    together, good = threading.Barrier(8, timeout=30), Handler.good
    monkeypatch.setattr(Handler, "good", lambda handler: together.wait() >= 0 and good(handler))
    requests = [asked("good", number, False) for number in range(8)]
    assert all(reply.text for _, reply in OpenAIEngine("m", server.base, 8, 60).complete(requests, Sampling(8)))


def test_it_sends_token_ids_as_they_are(server, tmp_path):
    [reply] = run(OpenAIEngine("m", server.base, 8, 5), tmp_path, [Request([1, 2, 3], 0)])
    assert server.bodies[0]["prompt"] == [1, 2, 3] and server.paths == ["/v1/completions"]
    assert reply == Reply(said([1, 2, 3], 0), "stop")


def test_half_a_character_is_sent_as_a_replacement(server):
    """It hung the run: a request that cannot be encoded ended the worker that nobody looked at."""
    prompts = ["half \ud83d", [{"role": "user", "content": "half \ud83d"}]]
    engine = OpenAIEngine("m", server.base, 1, 5)
    replies = sorted(engine.complete([Request(prompt, 0) for prompt in prompts], Sampling(8)))
    assert [reply.text for _, reply in replies] == [said("half \ufffd", 0)] * 2


def refuse(monkeypatch, pattern, message):
    """From now on the server refuses what holds `pattern`, and says `message`."""
    good = Handler.good

    def act(handler):
        return error(400, message)(handler) if pattern in json.dumps(handler.body) else good(handler)

    monkeypatch.setattr(Handler, "good", act)


SYSTEM = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("message", ["System role not supported", "no"])
def test_a_system_role_is_folded_where_it_is_refused(server, tmp_path, monkeypatch, message):
    """Once the server has said so, it is not asked again; where it said nothing of it, each row may be another case."""
    refuse(monkeypatch, '"system"', message)
    requests = [Request(SYSTEM, 0), Request(SYSTEM, 1)]
    replies = run(OpenAIEngine("m", server.base, 1, 5), tmp_path, requests)
    assert [reply.text for reply in replies] == [said("Be brief.\nHi", seed) for seed in (0, 1)]
    assert server.calls == (3 if "System" in message else 4)


@pytest.mark.parametrize("message", ["response_format json_schema is not supported", "no"])
def test_a_schema_is_left_out_where_it_is_refused(server, monkeypatch, message):
    refuse(monkeypatch, "response_format", message)
    engine = OpenAIEngine("m", server.base, 1, 5)
    requests = [Request("a", 0), Request(SYSTEM, 1)]
    replies = dict(engine.complete(requests, Sampling(8, schema={"type": "string"})))
    assert replies == {0: Reply(said("a", 0), "stop"), 1: Reply(said("Hi", 1), "stop")}
    assert server.calls == (3 if "schema" in message else 4)
    assert server.bodies[-1]["messages"] == SYSTEM  # the system role stays


def test_a_row_that_is_refused_in_every_form_says_why_first(server):
    requests = [Request([SYSTEM[0], {"role": "user", "content": "400: 0"}], 0), Request("a", 0)]
    engine = OpenAIEngine("m", server.base, 1, 5)
    replies = dict(engine.complete(requests, Sampling(8, schema={"type": "string"})))
    assert replies[0] == Reply(None, "refused: 400 no such thing") and replies[1].text
    assert server.calls == 4


# The course of a run


def test_through_a_server_in_trouble_nothing_is_lost(server, tmp_path, monkeypatch):
    """30% of calls end in 429, 500, a hang or a cut connection; every reply is there and right, and is made once."""
    monkeypatch.setattr(OpenAIEngine, "TRIES", 8)
    server.trouble = 0.3
    requests = [Request(f"p{i}", i) for i in range(60)]
    replies = run(OpenAIEngine("m", server.base, 16, 1), tmp_path, requests)
    assert [reply.text for reply in replies] == [said(*request) for request in requests]
    assert server.calls > 60
    calls = server.calls
    run(OpenAIEngine("m", server.base, 16, 1), tmp_path, requests)
    assert server.calls == calls


def test_it_gives_up_on_a_request_and_tries_it_again_in_the_next_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenAIEngine, "RETRIES", 0)
    server.trouble = 0.5
    replies = run(OpenAIEngine("m", server.base, 16, 1), tmp_path)
    lost = [reply for reply in replies if reply.text is None]
    assert 0 < len(lost) < len(REQUESTS) and all(reply.may_heal for reply in lost)
    server.trouble, calls = 0, server.calls
    assert all(reply.text for reply in run(OpenAIEngine("m", server.base, 16, 5), tmp_path))
    assert server.calls == calls + len(lost)


def test_a_server_that_goes_is_not_asked_a_thousand_times(server, tmp_path, quick):
    """Half of the first 60 rows are lost, never many in a row; then all: after 20 of them the rest fails at once."""
    kinds = ["cut", "good"] * 30 + ["cut"] * 1000
    requests = [asked(kind, number, False) for number, kind in enumerate(kinds)]
    replies = run(OpenAIEngine("m", server.base, 4, 5), tmp_path, requests)
    found = Counter(reply.finish for reply in replies)
    assert found["stop"] == 30 and found["failed: no connection"] in range(50, 54)
    assert found["failed: server gone"] == 1060 - 30 - found["failed: no connection"]
    assert server.calls <= 30 + 2 * 53


def test_a_server_that_stops_listening_leaves_what_came(server, tmp_path, quick):
    engine = OpenAIEngine("m", server.base, 2, 5)
    replies = []
    for outcome in engine.complete([asked("good", number, False) for number in range(400)], Sampling(8)):
        replies.append(outcome)
        if len(replies) == 5:
            server.stop()
    found = Counter(reply.finish for _, reply in replies)
    assert len(replies) == 400 and found["stop"] >= 5 and found["failed: server gone"] > 300


def test_it_says_what_is_wrong_at_once(server, tmp_path, quick, monkeypatch):
    with pytest.raises(UserError, match="no server answers at --api_base http://127.0.0.1:9/v1"):
        run(OpenAIEngine("m", "http://127.0.0.1:9/v1", 8, 1), tmp_path)
    with pytest.raises(UserError, match="has no model 'other' or no /completions"):
        run(OpenAIEngine("other", server.base, 8, 5), tmp_path)
    assert server.calls <= 16
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    server.key = "right"
    with pytest.raises(UserError, match="refuses the key; set OPENAI_API_KEY"):
        run(OpenAIEngine("m", server.base, 8, 5), tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "right")
    assert all(reply.text for reply in run(OpenAIEngine("m", server.base, 8, 5), tmp_path))
    monkeypatch.setenv("OPENAI_API_KEY", f"{SECRET}\x07\u00e4")
    with pytest.raises(UserError, match="OPENAI_API_KEY holds characters") as caught:
        OpenAIEngine("m", server.base, 8, 5)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "kind, line",
    [
        ("401 for a row", "refuses the key; set OPENAI_API_KEY"),
        ("402", "refuses the requests: status 402"),
        ("404 for a row", "has no model 'm' or no /completions"),
        ("307", r"redirects to another address \(307\); give that as --api_base"),
        ("400 echo", r"refuses the requests: 400 You sent Bearer \*\*\*"),
    ],
)
def test_what_is_refused_from_the_first_ends_the_run(server, tmp_path, monkeypatch, kind, line):
    """Of 500 rows no more are asked than it takes to know. After one good row it is each row's own affair."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    server.elsewhere = server.base
    requests = [asked(kind, number, False) for number in range(500)]
    with pytest.raises(UserError, match=line) as caught:
        run(OpenAIEngine("m", server.base, 4, 5), tmp_path, requests)
    assert server.calls < 30 and SECRET not in str(caught.value) and "\n" not in str(caught.value)
    requests = [asked("good", 500, False), *requests[:40]]
    finishes = [reply.finish for reply in run(OpenAIEngine("m", server.base, 1, 5), tmp_path, requests)]
    assert finishes[0] == "stop" and "stop" not in finishes[1:]


def test_three_rows_of_three_that_are_refused_are_rows(server, tmp_path):
    """A 400 is of the row until so many in a row are refused alike that it cannot be."""
    replies = run(OpenAIEngine("m", server.base, 1, 5), tmp_path, [asked("400", n, False) for n in range(3)])
    assert {reply.finish for reply in replies} == {"refused: 400 no such thing"}
    refuse_failures(replies)


def test_a_fault_of_the_client_ends_the_run_and_not_never(server, tmp_path, monkeypatch):
    """An error that nobody thought of left the run waiting for ever. What came before it is kept."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    settings = OpenAIEngine._settings

    def broken(self, request, *rest):
        if request.seed == 5:
            raise LookupError(f"a fault\nwith {SECRET}")
        return settings(self, request, *rest)

    monkeypatch.setattr(OpenAIEngine, "_settings", broken)
    requests = [Request(f"p{n}", n) for n in range(10)]
    with pytest.raises(UserError, match=r"cannot be made: LookupError: a fault with \*\*\*$"):
        run(OpenAIEngine("m", server.base, 1, 5), tmp_path, requests)
    assert len((tmp_path / "out.json.journal.jsonl").read_text().splitlines()) == 5


# The address


@pytest.mark.parametrize(
    "act",
    [
        raw(b"<html>Welcome to nginx!</html>", "text/html"),
        raw(b'{"data": ['),
        raw(b"\xff\xfe"),
        body([]),
        body(None),
        body({"data": 5}),
        error(404, "no models here"),
        error(503, "busy", Retry_After="100"),
        raw(b"", status=302, Location="http://127.0.0.1:9/"),
    ],
    ids=["page", "half", "bytes", "list", "null", "number", "404", "503", "302"],
)
def test_whatever_is_at_models_the_rows_are_answered(server, tmp_path, act):
    server.models = act
    started = time.monotonic()
    assert all(reply.text for reply in run(OpenAIEngine("m", server.base, 8, 5), tmp_path))
    assert time.monotonic() - started < 8


@pytest.mark.parametrize("act", [cut, garbage, hang, trickle])
def test_no_answer_at_models_is_no_server(server, tmp_path, quick, act):
    server.models = act
    with pytest.raises(UserError, match="no server answers at --api_base http://127.0.0.1"):
        run(OpenAIEngine("m", server.base, 8, 1), tmp_path)


@pytest.mark.parametrize(
    "address",
    "http://h:99999/v1 http://h:-1/v1 http://h:x/v1 http://h:0/v1 http:///v1 http:// h:80/v1 ftp://h/v1 http://[::1/v1"
    " http://a..b/v1".split()
    + [None, "", "http://a b/v1", "http://h/v1\n", f"http://{'a' * 70}.de/v1", f"ftp://me:{SECRET}@h/v1?key={SECRET}"],
)
def test_an_address_that_cannot_be_one(address):
    with pytest.raises(UserError, match="needs --api_base http://host:port/v1, not ") as caught:
        OpenAIEngine("m", address, 8, 5)
    assert SECRET not in str(caught.value)


def test_what_an_address_carries_is_used_and_never_shown(server, tmp_path, monkeypatch, capfd):
    """user:password goes as Basic, ?key= with each request; a server that echoes all of it gives nothing away."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    address = server.base.replace("://", "://me:pass%2Fword@") + "?key=query-secret&api-version=2"
    good = Handler.good

    def echoing(handler):
        if "echo" in handler.prompt:
            return error(400, f"{handler.path} {handler.headers['Authorization']} pass/word pass%2Fword")(handler)
        return good(handler)

    monkeypatch.setattr(Handler, "good", echoing)
    replies = run(OpenAIEngine("m", address, 1, 5), tmp_path, [Request("a", 0), Request("echo", 1)])
    assert replies[0].text and server.paths[0] == "/v1/completions?key=query-secret&api-version=2"
    assert server.headers[0]["Authorization"].startswith("Basic ")
    basic = server.headers[0]["Authorization"].split()[1]
    assert replies[1].finish.startswith("refused: 400 /v1/completions?key=***")
    monkeypatch.setattr(Handler, "do_POST", lambda handler: handler.answer(401, {"error": address}))
    with pytest.raises(UserError, match=r"at http://\*\*\*@127.0.0.1:\d+/v1\?\*\*\* refuses the key") as caught:
        run(OpenAIEngine("m", address, 1, 5), tmp_path, [Request("b", 0)])
    shown = str(replies) + str(caught.value) + "".join(capfd.readouterr())
    assert not [secret for secret in ("pass/word", "pass%2F", "query-secret", basic) if secret in shown]


def test_without_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    assert without_key(f"a {SECRET} b") == "a *** b"
    assert without_key("see http://me:pw@h:1/v1?key=a, or http://h/v1") == "see http://***@h:1/v1?*** or http://h/v1"
    assert without_key("mail me@h about pw", ["pw"]) == "mail me@h about pw"  # too short to be one
    assert secrets_in("http://token@h/v1")[0] == "token" and secrets_in("http://h/v1") == []
    monkeypatch.delenv("OPENAI_API_KEY")
    assert without_key("plain") == "plain"
