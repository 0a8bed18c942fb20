"""Replies under a JSON schema: the simulated writer fills any, and what does not follow one is asked for again."""

import json
import random

import pytest
from jsonschema import Draft202012Validator

from alignment.command_line import UserError
from alignment.engines.schemas import fill
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply, Request, Sampling, generate, record_seed, request_key
from alignment.journal import Journal

GRADE = {
    "type": "object",
    "properties": {
        "feedback": {"type": "string", "minLength": 10},
        "score": {"type": "integer", "minimum": 1, "maximum": 5},
        "labels": {"type": "array", "items": {"enum": ["clear", "short"]}, "minItems": 1, "uniqueItems": True},
    },
    "required": ["feedback", "score", "labels"],
    "additionalProperties": False,
}
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "value": {"type": "number"},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["value"],
        }
    },
    "$ref": "#/$defs/node",
}
SCHEMAS = [
    GRADE,
    TREE,
    {"anyOf": [{"type": "string", "maxLength": 5}, {"type": "null"}, {"type": "boolean"}]},
    {"oneOf": [{"type": "integer", "minimum": 10}, {"const": "none"}]},
    {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"required": ["b"]}]},
    {"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
    {"type": "integer", "multipleOf": 7, "minimum": 10, "maximum": 50},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string"}], "items": False},
    {"type": "object", "minProperties": 3, "additionalProperties": {"type": "boolean"}},
    {"type": ["string", "null"]},
    {"type": "string", "minLength": 300},
    {},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=lambda schema: json.dumps(schema)[:40])
def test_any_schema_is_filled(schema):
    values = [fill(schema, random.Random(seed)) for seed in range(60)]
    assert all(Draft202012Validator(schema).is_valid(value) for value in values)
    assert len({json.dumps(value) for value in values}) > 2


def test_what_cannot_be_filled_is_said():
    with pytest.raises(UserError, match="cannot fill the schema"):
        fill({"type": "string", "not": {"type": "string"}}, random.Random(0))


REQUESTS = [Request(f"Grade answer {n}.", n) for n in range(60)]
UNDER = Sampling(64, schema=GRADE)


def run(engine, folder, **settings):
    with Journal(folder / "out.json") as journal:
        return generate(engine, REQUESTS, UNDER, journal=journal, label="grades", **settings)


def test_broken_replies_are_asked_for_again_with_other_seeds(tmp_path):
    """A third of the replies is broken off; after three more tries 60 / 3^4, so hardly one, is left invalid."""
    asked = []

    class Writer(SimulatedEngine):
        def complete(self, requests, sampling):
            asked.append(list(requests))
            return super().complete(requests, sampling)

    replies = run(Writer("w?malformed=0.33"), tmp_path)
    good = [reply for reply in replies if reply.text is not None]
    assert len(good) >= 56 and all(Draft202012Validator(GRADE).is_valid(json.loads(reply.text)) for reply in good)
    assert {reply.finish for reply in replies} <= {"stop", "invalid: no reply under the schema in 4 tries"}
    assert len(asked[0]) == 60 and 10 < len(asked[1]) < 30 and 2 <= len(asked) <= 4
    assert not {request.seed for request in asked[0]} & {request.seed for request in asked[1]}
    before = len(asked)
    assert run(Writer("w?malformed=0.33"), tmp_path) == replies and len(asked) == before  # all tries are journalled


def test_retries_are_bounded_and_what_is_never_valid_is_no_failure_that_heals(tmp_path):
    replies = run(SimulatedEngine("w?malformed=1"), tmp_path, schema_retries=1)
    assert {reply.finish for reply in replies} == {"invalid: no reply under the schema in 2 tries"}
    assert not any(reply.may_heal for reply in replies)
    journal = (tmp_path / "out.json.journal.jsonl").read_text()
    assert journal.count('"key"') == 120


def test_cut_off_json_is_not_valid_and_a_failure_stays_one(tmp_path):
    class Cut(SimulatedEngine):
        def complete(self, requests, sampling):
            for index, request in enumerate(requests):
                yield index, Reply(None, "failed: time-out") if request.seed == 7 else Reply('{"score": 1', "length")

    replies = run(Cut("w"), tmp_path, schema_retries=0)
    assert replies[7].finish == "failed: time-out" and replies[7].may_heal
    assert replies[0].finish.startswith("invalid")


@pytest.mark.parametrize(
    ("sampling", "known"),
    [
        (Sampling(8), "79336f035be08495a1562ca161c2ad72"),
        (Sampling(64, 1.2, 0.9, ("\n",)), "e4873767ad9767a26c9f1fa61817bfa7"),
        (Sampling(384, 0.0, stop=("Human:", "Assistant:")), "b4748d2e5517d9da5375dbd3570138ae"),
    ],
)
def test_keys_of_the_first_journals_are_found(sampling, known):
    """Keys as commit a01da03 computed them; a field that is set makes another."""
    engine, request = SimulatedEngine("w?quality=0.5"), Request("Query: é\n", 7)
    assert request_key(engine, request, sampling) == known
    for field, value in {"stop_ids": (5,), "repetition_penalty": 1.1, "schema": {}}.items():
        changed = Sampling(**{**vars(sampling), field: value})
        assert request_key(engine, request, changed) != known


def test_messages_and_ids_are_other_requests():
    engine, sampling = SimulatedEngine("w"), Sampling(8)
    forms = ["Hi", [{"role": "user", "content": "Hi"}], [5, 6]]
    assert len({request_key(engine, Request(form, 1), sampling) for form in forms}) == 3
    replies = [reply for _, reply in engine.complete([Request(form, 1) for form in forms], Sampling(100))]
    assert all(reply.text and reply.finish == "stop" for reply in replies) and len({r.text for r in replies}) == 3
    assert [Request(form, 1).is_chat for form in forms] == [False, True, False]


def test_faults_heal_in_the_next_run(tmp_path):
    """Those that a fault struck are asked for by the next run, and answered as if there had been none."""
    requests = [Request(f"Answer {n}\n\nAssistant:", record_seed(0, n)) for n in range(40)]

    def answers(name, folder):
        folder.mkdir(exist_ok=True)
        with Journal(folder / "out.json") as journal:
            return generate(SimulatedEngine(name), requests, Sampling(99), journal=journal, label="x")

    first = answers("w?faults=0.3", tmp_path / "a")
    lost = [n for n, reply in enumerate(first) if reply.text is None]
    assert 5 < len(lost) < 20 and {first[n].finish for n in lost} == {"failed: simulated fault"}
    assert answers("w?faults=0.3", tmp_path / "a") == answers("w", tmp_path / "b")
    assert all(reply.text is None for _ in range(2) for reply in answers("w?faults=1", tmp_path / "c"))
