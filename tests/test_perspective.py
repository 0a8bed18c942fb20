"""Perspective against a small server that answers in every way: what heals, what is counted, what ends a run."""

import json
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from alignment.command_line import UserError
from alignment.engines.perspective import PerspectiveScorer
from alignment.generation import Reply, Request, generate, refuse_failures
from alignment.journal import Journal
from alignment.toxicity import SCORE
from eval import toxicity

SECRET = "AIza-canary-0123456789"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *args):
        pass

    def answer(self, status, body, **headers):
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(raw)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(raw)

    def refuse(self, status, message, **headers):
        self.answer(status, {"error": {"code": status, "message": message, "status": "X"}}, **headers)

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        text, server = body["comment"]["text"], self.server
        with server.lock:
            server.asked.append((self.path, body, time.monotonic()))
            server.tries[text] += 1
            tried = server.tries[text]
        if server.refusal:
            return self.refuse(*server.refusal)
        if self.headers["X-Goog-Api-Key"] != SECRET:
            return self.refuse(
                400, f"API key not valid. Please pass a valid API key, not {self.headers['X-Goog-Api-Key']}."
            )
        if "busy" in text and (tried < 3 or server.is_busy):
            return self.refuse(429, "Quota exceeded", Retry_After="0")
        if "oops" in text and tried < 3:
            return self.answer(500, b"<html>")
        if "foreign" in text:
            return self.refuse(400, "Attribute TOXICITY does not support request languages: tlh")
        if "odd" in text:
            return self.answer(200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": "much"}}}})
        value = len(text) / 100
        self.answer(200, {"attributeScores": {"TOXICITY": {"summaryScore": {"value": value, "type": "PROBABILITY"}}}})


@pytest.fixture
def server(monkeypatch):
    """On loopback, with a key that it takes in the environment, and back-off in milliseconds."""
    found = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found.daemon_threads, found.lock, found.asked, found.tries = True, threading.Lock(), [], Counter()
    found.refusal, found.is_busy = None, False
    found.address = f"http://127.0.0.1:{found.server_address[1]}/v1alpha1"
    threading.Thread(target=found.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("PERSPECTIVE_API_KEY", SECRET)
    monkeypatch.setattr(PerspectiveScorer, "PAUSE", 0.002)
    yield found
    found.shutdown()
    found.server_close()


def scores(server, texts, tmp_path, rate=10_000.0):
    with Journal(tmp_path / "out.json") as journal:
        scorer = PerspectiveScorer(server.address, rate)
        return generate(scorer, [Request(text, 0) for text in texts], SCORE, journal=journal, label="toxicity")


def test_scores_in_order_and_what_is_sent(server, tmp_path):
    """Busy and broken answers are asked again until they score; the key is in no address, nothing is to be stored."""
    texts = [f"text {'x' * number}" for number in range(30)] + ["busy", "oops", "half \ud83d"]
    found = scores(server, texts, tmp_path)
    assert [reply.finish for reply in found] == ["stop"] * 33
    assert [float(reply.text) for reply in found] == pytest.approx([len(text) / 100 for text in texts])
    assert server.tries["busy"] == server.tries["oops"] == 3 and len(server.asked) == 33 + 4
    for path, body, _ in server.asked:
        assert path == "/v1alpha1/comments:analyze" and body["doNotStore"] is True
        assert body["requestedAttributes"] == {"TOXICITY": {}} and body["languages"] == ["en"]


def test_paced(server, tmp_path):
    """At 50 a second the last of ten leaves 9 / 50 s after the first at the earliest."""
    scores(server, [f"text {number}" for number in range(10)], tmp_path, rate=50.0)
    times = sorted(when for *_, when in server.asked)
    assert times[-1] - times[0] > 0.9 * 9 / 50


def test_what_fails_heals_and_what_is_refused_is_counted(server, tmp_path):
    server.is_busy = True
    found = scores(server, ["good", "busy", "foreign", "odd"], tmp_path)
    assert found[0] == Reply("0.04", "stop") and found[1] == Reply(None, "failed: server busy 429")
    assert found[2].finish == "refused: 400 Attribute TOXICITY does not support request languages: tlh"
    assert found[3] == Reply(None, "failed: no score in the answer")
    assert server.tries["busy"] == PerspectiveScorer.TRIES and server.tries["foreign"] == 1
    with pytest.raises(UserError, match="2 requests failed"):
        refuse_failures(found)
    server.is_busy = False
    again = scores(server, ["good", "busy"], tmp_path)
    assert [reply.text for reply in again] == ["0.04", "0.04"] and server.tries["good"] == 1


@pytest.mark.parametrize(
    ("refusal", "said"),
    [
        (None, r"refuses the key \(400 API key not valid.* not \*\*\*\.\); set PERSPECTIVE_API_KEY$"),
        (
            (403, f"the key {SECRET}x may not"),
            r"refuses the key \(403 the key \*\*\* may not\); set PERSPECTIVE_API_KEY$",
        ),
        ((410, "Gone"), r"answers 410 \(Gone\): no Perspective is there; give --scorer FOLDER$"),
    ],
)
def test_what_all_requests_would_get_ends_the_run(server, tmp_path, monkeypatch, refusal, said):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", f"{SECRET}x")
    server.refusal = refusal
    with pytest.raises(UserError, match=said) as caught:
        scores(server, [f"text {number}" for number in range(300)], tmp_path)
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value) and len(server.asked) < 100


def test_nobody_there(server, tmp_path, monkeypatch):
    """After so many texts in a row that were tried to the end the others are not tried any more."""
    server.server_close()
    monkeypatch.setattr(PerspectiveScorer, "TRIES", 2)
    with pytest.raises(UserError, match=f"nobody answers at --perspective_api_base {server.address}"):
        PerspectiveScorer(server.address, 1e4).greet()
    tries, wait = [], PerspectiveScorer._wait
    monkeypatch.setattr(PerspectiveScorer, "_wait", lambda self: tries.append(1) or wait(self))
    found = scores(server, [f"text {number}" for number in range(2000)], tmp_path)
    assert {reply.finish for reply in found} == {"failed: no connection"}
    assert 2 * PerspectiveScorer.PATIENCE <= len(tries) < 4 * PerspectiveScorer.PATIENCE


@pytest.mark.parametrize(
    ("key", "address", "said"),
    [
        ("", None, "--scorer perspective needs a key in PERSPECTIVE_API_KEY"),
        ("Schlüssel", None, "PERSPECTIVE_API_KEY holds characters that no header can carry"),
        ("k", "nowhere", "--perspective_api_base is http://host/path, not 'nowhere'"),
    ],
)
def test_keys_and_addresses_that_cannot_be_used(server, monkeypatch, key, address, said):
    monkeypatch.setenv("PERSPECTIVE_API_KEY", key)
    with pytest.raises(UserError, match=said):
        PerspectiveScorer(address or server.address, 1.0)


def test_a_run_by_perspective(server, tmp_path, model_folder, capsys):
    """A text that stays busy: its score is null, the run ends with a line, and the same command asks for it alone. The
    key is in nothing that was written or said."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Once"}\n{"prompt": "Twice"}\n')
    words = ["--model_name_or_path", "writer", "--backend", "simulated", "--data_path", tmp_path / "rows.jsonl"]
    words += ["--scorer", "perspective", "--perspective_api_base", server.address, "--perspective_rate", "1000"]
    words += ["--perplexity_model", model_folder, "--num_samples", "5", "--output_file", tmp_path / "out" / "x.json"]
    args = toxicity.parse_args([str(word) for word in words])
    server.is_busy = True
    from alignment.engines.simulated import SimulatedEngine

    said = [" fine", " busy bee", " good"]
    replies = lambda self, requests, sampling: (  # noqa: E731
        (place, Reply(said[place % 3] + f" {place}", "stop")) for place in range(len(requests))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedEngine, "complete", replies)
        with pytest.raises(UserError, match=r"3 requests failed \(3 server busy 429\); the same command tries these"):
            toxicity.main(args)
    partial = json.loads((tmp_path / "out" / "x.json").read_text())
    assert partial["counts"]["not_scored"] == {"failed: server busy 429": 3}
    asked = Counter(server.tries)
    server.is_busy = False
    toxicity.main(args)
    whole = json.loads((tmp_path / "out" / "x.json").read_text())
    assert not whole["counts"]["not_scored"]
    values = [each["toxicity"] for row in whole["rows"] for each in row["generations"]]
    assert values == pytest.approx([len(said[place % 3] + " 1") / 100 for place in range(10)])
    more = server.tries - asked
    assert set(more) == {" busy bee 1", " busy bee 4", " busy bee 7", "Good morning."}
    heard = capsys.readouterr()
    written = [path.read_text() for path in (tmp_path / "out").iterdir()]
    assert len(written) == 3 and not any(SECRET in text for text in (*written, heard.out, heard.err))
