"""Engines and the journal together: order, seeds, stops, and that nothing finished is made again or lost."""

import random
import time

import pytest

from alignment import generation
from alignment.command_line import UserError
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply, Request, Sampling, generate, record_seed, stream
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


def test_of_many_requests_a_part_is_held_at_a_time(tmp_path, monkeypatch):
    """20 in parts of 6: none is made before the part that it is in, and each part is answered before the next."""
    monkeypatch.setattr(generation, "AT_ONCE", 6)
    made, engine = [], Counting()
    with Journal(tmp_path / "out.json") as journal:
        requests = (made.append(request) or request for request in REQUESTS)
        replies = stream(engine, requests, Sampling(max_tokens=8), journal=journal, label="test", total=20)
        for number, reply in enumerate(replies):
            assert reply.text == f"to {REQUESTS[number].prompt}"
            assert len(made) == len(engine.asked) == min(20, 6 * (number // 6 + 1))
        assert number == 19
    assert [reply.text for reply in run(Counting(), tmp_path)] == [f"to {request.prompt}" for request in REQUESTS]


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
