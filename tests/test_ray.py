"""--backend ray on a real cluster of two nodes, which this file starts and stops: what comes back, whatever dies."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.engines import engine_from, models_read
from alignment.engines.ray import Replica, blocks
from alignment.generation import Request, Sampling

WRITER = "writer-7b?quality=0.5&latency=0.01&refusals=0.1"
REQUESTS = [Request(f"\n\nHuman: How do I mend thing {i}?\n\nAssistant:", i) for i in range(150)]
SAMPLING = Sampling(max_tokens=64)


def processes(*words):
    """Ids of those on whose command line all the words are."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


def kill(*words):
    found = processes(*words)
    for process in found:
        os.kill(process, signal.SIGKILL)
    return len(found)


class Cluster:
    """A node `head` of one CPU, and others of as many."""

    def __init__(self):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self.start("head", "--head", f"--port={self.port}", "--include-dashboard=false")

    def start(self, name, *words):
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-name={name}", "--num-cpus=1"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def stop(self):
        kill("/ray/", f":{self.port}")
        kill("/ray/", f"--gcs_server_port={self.port}")

    def arguments(self, **more):
        given = {"backend": "ray", "ray_engine": "simulated", "model_name_or_path": WRITER, "batch_size": 8}
        return Namespace(**given | {"use_hf": False, "ray_address": self.address} | more)


@pytest.fixture(scope="module")
def cluster():
    made = Cluster()
    try:
        made.start("second", f"--address={made.address}")
        yield made
    finally:
        import ray

        ray.shutdown()
        made.stop()


@pytest.fixture(scope="module")
def engine(cluster):
    return engine_from(cluster.arguments())


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
    made = blocks(count, replicas, "simulated")
    assert [len(block) for block in made] == sizes
    assert [index for block in made for index in block.values()] == list(range(count))


def test_a_node_with_other_files_than_this_machine_is_refused(cluster, model_folder):
    asked = cluster.arguments(ray_engine="hf", model_name_or_path=str(model_folder))
    with pytest.raises(UserError, match="has other files than this machine under"):
        Replica(asked, {"config.json": 1}).ready()


@pytest.mark.parametrize(
    "given, said",
    [
        ({"replicas": 3}, "--replicas 3: the Ray cluster at {address} has room for 2, of which "),
        ({"ray_engine": "hf", "n_gpu": 2}, "--replicas 1: the Ray cluster at {address} has room for 0, of which 0 now, of"),
        ({"ray_address": "127.0.0.1:1"}, "--ray_address 127.0.0.1:1: no Ray cluster answers"),
        ({"ray_address": "ray://head"}, "--ray_address ray://head: give host:port of the head node, or auto"),
    ],
)
def test_a_cluster_that_cannot_do_it_is_refused_in_a_line(engine, cluster, given, said, model_folder):
    asked = cluster.arguments(**{"model_name_or_path": str(model_folder)} | given)
    with pytest.raises(UserError) as refused:
        list(engine_from(asked).complete(REQUESTS[:1], SAMPLING))
    assert str(refused.value).startswith(said.format(address=cluster.address))


@pytest.fixture(scope="module")
def third(cluster):
    cluster.start("third", f"--address={cluster.address}")


@pytest.mark.slow
def test_transformers_in_replicas_writes_what_it_writes_here(cluster, third, model_folder):
    asked = cluster.arguments(ray_engine="hf", model_name_or_path=str(model_folder), replicas=1)
    here = engine_from(Namespace(**vars(asked) | {"backend": "hf"}))
    engine = engine_from(asked)
    assert engine.identity == here.identity
    assert dict(engine.complete(REQUESTS[:6], SAMPLING)) == dict(here.complete(REQUESTS[:6], SAMPLING))


@pytest.mark.slow
def test_a_node_that_dies_takes_no_request_with_it(cluster, third, expected):
    cluster.start("fourth", f"--address={cluster.address}")
    engine = engine_from(cluster.arguments(replicas=2))
    replies, killed = [], 0
    for found in engine.complete(REQUESTS, SAMPLING):
        replies.append(found)
        if len(replies) == 20:
            killed = kill("raylet/raylet", "--node-name=fourth")
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
