"""What cannot be used is asked again, then counted; and replies that are read anew without asking."""

from alignment.asking import NOT_ASKED, SilentEngine, Unusable, ask, filled
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply, Request, Sampling, generate
from alignment.journal import Journal


def test_what_cannot_be_used_is_asked_again_then_counted():
    """Question 0 is usable at once, 1 at the second request, 2 never, 3 has no room; 4 fails and may heal."""
    sent = []

    def send(requests):
        sent.append([request.prompt for request in requests])
        endings = {"3": Reply(None, "too long"), "4": Reply(None, "failed: server")}
        return [endings.get(request.prompt[0], Reply(request.prompt, "stop")) for request in requests]

    def read(question, text):
        if question == 2 or (question == 1 and "again" not in text):
            raise Unusable("odd", "again")
        return text

    asked = ask(5, request=lambda q, attempt, hint: Request(f"{q} {hint}", attempt), read=read, send=send, tries=3)
    assert asked.values == ["0 ", "1 again", None, None, None]
    assert sent == [["0 ", "1 ", "2 ", "3 ", "4 "], ["1 again", "2 again"], ["2 again"]]
    assert asked.counts() == {
        "asked": 5,
        "usable at first": 1,
        "usable": 2,
        "replies unusable": {"odd": 4},
        "given up": {"too long": 1, "odd": 1},
    }
    assert asked.reasons == [None, None, "odd", "too long", "failed: server"]
    assert [reply.finish for reply in asked.failed] == ["failed: server"]


def test_a_reply_that_was_cut_off_is_not_used():
    def send(requests):
        return [Reply("half a", "length") for _ in requests]

    asked = ask(1, request=lambda *how: Request("x", 0), read=lambda q, text: text, send=send, tries=2)
    assert asked.values == [None] and asked.given_up == {"cut off at --max_new_tokens": 1}


def test_a_silent_engine_knows_what_the_journal_holds(tmp_path):
    """One request of two was answered by the engine of the same name; the other is not asked, and heals by no run."""
    engine, sampling = SimulatedEngine("writer"), Sampling(max_tokens=50)
    requests = [Request("Why?", 1), Request("How?", 2)]
    with Journal(tmp_path / "out") as journal:
        how = {"journal": journal, "label": "x"}
        (first,) = generate(engine, requests[:1], sampling, **how)
        replies = generate(SilentEngine(engine), requests, sampling, **how)
    assert replies == [first, Reply(None, NOT_ASKED)] and not replies[1].may_heal


def test_braces_in_the_data_stay():
    assert filled("{prompt}: {other}", prompt="{other} {prompt}") == "{other} {prompt}: {other}"
