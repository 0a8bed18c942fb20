#!/usr/bin/env python
"""Replies a second of two replicas on two cores, beside one on one core, of a Ray cluster that this starts and stops.

    python benchmarks/replicas.py --ray_engine simulated --requests 400
    python benchmarks/replicas.py --ray_engine hf --model_name_or_path saved_models/SmolLM2-135M-Instruct --requests 48

Each node is pinned to a core of its own, and has room for one replica. A replica has loaded its model before the time
starts, on a request of its own. Targets: 1.9 times for a simulated writer that takes 50 ms a request, 1.6 for hf.
Both ways must give all replies, and the simulated writer the same ones; hf's differ where a batch has other rows, so
tokens a second are compared.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, number, run, table
from alignment.engines import REPLICATED, engine_from
from alignment.engines.ray import RUNNING, replicas_of
from alignment.generation import Reply, Request, Sampling
from alignment.limits import written
from alignment.records import read_prompts


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag, positive = parser.add_argument, number(int, 1)
    flag("--ray_engine", choices=REPLICATED, default="simulated", help="what a replica runs (default: simulated)")
    flag("--model_name_or_path", default="writer-7b?latency=0.05", help="(default: a simulated writer of 50 ms)")
    flag("--prompts", type=Path, default=Path("data/almost_prompts.txt"), help="one a line (default: the sample's)")
    flag("--requests", type=positive, default=400, help="(default: 400)")
    flag("--max_new_tokens", type=positive, default=64, help="of a reply (default: 64)")
    flag("--batch_size", type=positive, default=8, help="hf: sequences together (default: 8)")
    return parser.parse_args(argv)


def main(args: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise UserError("two cores are needed")
    prompts = read_prompts(args.prompts)
    texts = [f"\n\nHuman: {prompts[i % len(prompts)]}\n\nAssistant:" for i in range(args.requests)]
    requests = [Request(text, seed) for seed, text in enumerate(texts)]
    cluster = Cluster(core=cores[0])
    try:
        one, alone = measure(args, cluster, requests, 1)
        cluster.start("second", core=cores[1])
        two, together = measure(args, cluster, requests, 2)
    finally:
        cluster.stop()
    alike = sum(alone[i] == together.get(i) for i in alone)
    if any(len(found) < len(requests) or None in (each.text for each in found.values()) for found in (alone, together)):
        raise UserError("not every request got a reply")
    if args.ray_engine == "simulated" and alike < len(requests):
        raise UserError("two replicas gave other replies than one")
    tokens = [sum(map(written, found.values())) for found in (alone, together)]
    rows = [("replicas", "seconds", "replies/s", "tokens/s")]
    for count, each, own in ((1, one, tokens[0]), (2, two, tokens[1])):
        rows.append((str(count), f"{each:.1f}", f"{len(requests) / each:.2f}", f"{own / each:.1f}"))
    print(table(rows))
    ratio = tokens[1] / two / (tokens[0] / one)
    print(f"two replicas {ratio:.2f} times one (target {1.9 if args.ray_engine == 'simulated' else 1.6})")
    print(f"{alike} of {len(requests)} replies are the same")


def measure(args: Namespace, cluster: Cluster, requests: list[Request], count: int) -> tuple[float, dict[int, Reply]]:
    given = vars(args) | {
        "backend": "ray",
        "use_hf": False,
        "ray_address": cluster.address,
        "replicas": count,
        "n_gpu": 1,
    }
    engine, sampling = engine_from(Namespace(**given)), Sampling(args.max_new_tokens)
    warm = [Request(requests[0].prompt, seed) for seed in range(count)]
    while replicas_of(Namespace(**given)).idle < count:  # all there; then each loads its model
        list(engine.complete(warm, Sampling(1)))
    list(engine.complete(warm, Sampling(1)))
    started = time.perf_counter()
    found = dict(engine.complete(requests, sampling))
    seconds = time.perf_counter() - started
    RUNNING.clear()  # the replicas end, and leave their room to the next ones
    return seconds, found


class Cluster:
    """A Ray cluster on this machine: node `head`, and those that are started, of one CPU each where nothing else is
    said, on a `core` of its own where one is given."""

    def __init__(self, core: int | None = None):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"127.0.0.1:{self._port}"
        self._node("head", ["--head", f"--port={self._port}", "--include-dashboard=false"], 1, core)

    def start(self, name: str, *, cpus: int = 1, core: int | None = None) -> None:
        self._node(name, [f"--address={self.address}"], cpus, core)

    def _node(self, name: str, words: list[str], cpus: int, core: int | None) -> None:
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-name={name}", f"--num-cpus={cpus}"]
        command += ["--disable-usage-stats", "--object-store-memory=100000000", *words]
        pin = None if core is None else lambda: os.sched_setaffinity(0, {core})
        done = subprocess.run(command, capture_output=True, text=True, preexec_fn=pin)
        if done.returncode:
            raise UserError(f"ray start: {done.stderr.strip().splitlines()[-1]}")

    def kill(self, name: str) -> int:
        """End a node as a power cut would; how many processes that were."""
        return kill("raylet/raylet", f"--node-name={name}", f":{self._port}")

    def stop(self) -> None:
        import ray

        ray.shutdown()
        kill("/ray/", f":{self._port}")
        kill("/ray/", f"--gcs_server_port={self._port}")


def kill(*words: str) -> int:
    found = processes(*words)
    for process in found:
        os.kill(process, signal.SIGKILL)
    return len(found)


def processes(*words: str) -> list[int]:
    """Ids of those on whose command line all the words are; Linux."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if all(word in line for word in words) and int(folder.name) != os.getpid():
            found.append(int(folder.name))
    return found


if __name__ == "__main__":
    run(parse_args, main)
