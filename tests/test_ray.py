"""--backend ray on a real cluster of two nodes, which this file starts and stops: what comes back, whatever dies."""

import json
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace

import pytest
from replicas import Cluster, processes
from test_scoring import make_reward_model

from alignment.command_line import REPOSITORY, UserError
from alignment.engines import engine_from, models_read
from alignment.engines.ray import BLOCK, RUNNING, RayScorer, Replica, blocks
from alignment.engines.scoring import scorer_from
from alignment.generation import Request, Sampling

WRITER = "writer-7b?quality=0.5&latency=0.01&refusals=0.1"
REQUESTS = [Request(f"\n\nHuman: How do I mend thing {i}?\n\nAssistant:", i) for i in range(150)]
SAMPLING = Sampling(max_tokens=64)


def arguments(cluster, **more):
    given = {"backend": "ray", "ray_engine": "simulated", "model_name_or_path": WRITER, "batch_size": 8}
    return Namespace(**given | {"use_hf": False, "ray_address": cluster.address} | more)


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        made.start("second")
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="module")
def engine(cluster):
    return engine_from(arguments(cluster))


@pytest.fixture(scope="module")
def expected():
    alone = engine_from(Namespace(backend="simulated", model_name_or_path=WRITER, use_hf=False))
    return dict(alone.complete(REQUESTS, SAMPLING))


def test_every_request_is_answered_once_and_as_on_one_machine(engine, expected):
    replies = list(engine.complete(REQUESTS, SAMPLING))
    assert len(replies) == len(REQUESTS) and dict(replies) == expected
    replicas = processes("ray::Replica")
    assert len(replicas) == 2
    assert dict(engine.complete(REQUESTS[:5], SAMPLING)) == {i: expected[i] for i in range(5)}
    assert processes("ray::Replica") == replicas  # they are kept, and with them the model


def test_what_a_killed_replica_owed_is_answered_by_another(engine, expected):
    replies = []
    for found in engine.complete(REQUESTS, SAMPLING):
        replies.append(found)
        if len(replies) == 20:
            os.kill(processes("ray::Replica")[0], signal.SIGKILL)
    assert len(replies) == len(REQUESTS) and dict(replies) == expected


def test_the_identity_is_that_of_the_engine_which_the_replicas_run(engine):
    assert engine.identity == f"simulated {WRITER}"
    assert models_read(Namespace(backend="ray", ray_engine="hf", use_hf=False, model_name_or_path="m")) == ["m"]


@pytest.mark.parametrize("count, replicas, sizes", [(150, 2, [10] * 15), (3, 2, [1, 1, 1]), (0, 2, []), (1, 8, [1])])
def test_blocks_are_small_enough_for_all_replicas_to_end_together(count, replicas, sizes):
    made = blocks(count, replicas, BLOCK["simulated"])
    assert [len(block) for block in made] == sizes
    assert [index for block in made for index in block.values()] == list(range(count))


def test_a_node_with_other_files_than_this_machine_is_refused(model_folder):
    seen = str(model_folder), {"config.json": 1}
    with pytest.raises(UserError, match="has other files under .* than where the run was started"):
        next(Replica().complete(engine_from, seen, REQUESTS, SAMPLING))


@pytest.mark.parametrize(
    "given, said",
    [
        ({"replicas": 3}, "--replicas 3: the Ray cluster at {address} has room for 2, of which "),
        (
            {"ray_engine": "hf", "n_gpu": 2},
            "--replicas 1: the Ray cluster at {address} has room for 0, of which 0 now, of",
        ),
        ({"ray_address": "127.0.0.1:1"}, "--ray_address 127.0.0.1:1: no Ray cluster answers"),
        ({"ray_address": "ray://head"}, "--ray_address ray://head: give host:port of the head node, or auto"),
    ],
)
def test_a_cluster_that_cannot_do_it_is_refused_in_a_line(engine, cluster, given, said, model_folder):
    asked = arguments(cluster, **{"model_name_or_path": str(model_folder)} | given)
    with pytest.raises(UserError) as refused:
        list(engine_from(asked).complete(REQUESTS[:1], SAMPLING))
    assert str(refused.value).startswith(said.format(address=cluster.address))


@pytest.fixture(scope="module")
def third(cluster):
    cluster.start("third")


@pytest.fixture(autouse=True)
def replicas_of_their_own():
    """Replicas that only a test knows end with it."""
    yield
    RUNNING.clear()


@pytest.mark.slow
def test_transformers_in_replicas_writes_what_it_writes_here(cluster, third, model_folder):
    asked = arguments(cluster, ray_engine="hf", model_name_or_path=str(model_folder), replicas=1)
    here = engine_from(Namespace(**vars(asked) | {"backend": "hf"}))
    engine = engine_from(asked)
    assert engine.identity == here.identity
    assert dict(engine.complete(REQUESTS[:6], SAMPLING)) == dict(here.complete(REQUESTS[:6], SAMPLING))


@pytest.mark.slow
def test_rewards_of_replicas_are_those_of_this_machine(cluster, third, tmp_path):
    make_reward_model(tmp_path / "rm")
    asked = arguments(
        cluster, reward_model=str(tmp_path / "rm"), reward_api_base=None, cache_dir=None, replicas=1, n_gpu=1
    )
    rows, responses = [{"prompt": f"question {i}"} for i in range(5)], [f"answer {i}" for i in range(5)]
    scorer, here = scorer_from(asked), scorer_from(Namespace(**vars(asked) | {"backend": "hf"}))
    assert isinstance(scorer, RayScorer) and scorer.identity == here.identity
    assert scorer.score(rows, responses) == here.score(rows, responses)


@pytest.mark.slow
def test_a_node_that_dies_takes_no_request_with_it(cluster, third, expected):
    cluster.start("fourth", cpus=2)  # one is free elsewhere, so it holds a replica
    engine = engine_from(arguments(cluster, replicas=2))
    replies, killed = [], 0
    for found in engine.complete(REQUESTS, SAMPLING):
        replies.append(found)
        if len(replies) == 20:
            killed = cluster.kill("fourth")
    assert killed and len(replies) == len(REQUESTS) and dict(replies) == expected


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_from_its_journal(cluster, third, tmp_path):
    prompts = [f"How do I mend thing number {i} at home?" for i in range(200)]
    for folder in ("alone", "ray"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "prompts.txt").write_text("\n".join(prompts) + "\n")
    command = [sys.executable, str(REPOSITORY / "synthetic_feedback.py"), "--mode", "rg", "--n_shot", "1"]
    command += ["--model_name_or_path", WRITER, "--prompt_file_path", str(REPOSITORY / "assets" / "HHH_prompt.txt")]
    subprocess.run([*command, "--backend", "simulated", "--output_dir", str(tmp_path / "alone")], check=True)
    command += ["--backend", "ray", "--ray_engine", "simulated", "--ray_address", cluster.address, "--replicas", "1"]
    command += ["--output_dir", str(tmp_path / "ray")]
    journal = tmp_path / "ray" / "writer-7b-HHH-1shot.json.journal.jsonl"
    run = subprocess.Popen(command)
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 20:
        assert run.poll() is None
        time.sleep(0.05)
    run.kill()
    run.wait()
    before = len(journal.read_bytes().splitlines())
    assert before < len(prompts)
    subprocess.run(command, check=True)
    keys = [json.loads(line)["key"] for line in journal.read_bytes().splitlines()]
    assert len(keys) == len(set(keys)) == len(prompts)
    written = [(tmp_path / folder / "writer-7b-HHH-1shot.json").read_bytes() for folder in ("alone", "ray")]
    assert written[0] == written[1]
