"""Replicas of an engine on a Ray cluster: requests go out in blocks, replies stream back as they finish.

    python generate.py --backend ray --ray_engine vllm --replicas 8 --n_gpu 2 ...     # 16 GPUs of whatever nodes

A replica is an actor that loads the model once and keeps it for the whole run, however often it is asked: Ray Data
makes its actors anew for each data set, which would load the model again for every configuration of `rg` and every
round of `pg`. What a replica owes when it or its node dies is given to another, and a new replica takes its place where
the cluster has room. Only this process reads and writes files, but for the model's: a node needs the model under the
same path, and an environment with these packages.
"""

from __future__ import annotations

import socket
from argparse import Namespace
from collections import deque
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from alignment.command_line import UserError
from alignment.generation import Engine, Reply, Request, Sampling
from alignment.pretrained import first_line

BLOCK = {"vllm": (256, 4_096), "hf": (64, 256), "simulated": (1, 256)}  # requests of one: at least, at most
BLOCKS_EACH = 8  # for a replica, where requests are enough: so that all end at about the same time
TOGETHER = 0.2  # seconds whose replies travel together
DEATHS = 3  # of each replica, with no reply in between, before the run gives up
LOOK = 10.0  # seconds between looks at what is left of the cluster while nothing comes back


class RayEngine:
    """`inner`, the engine that the flags name, as replicas on a cluster. It is not loaded here, but tells what
    identifies it: a journal of one machine's run is the cluster's too."""

    def __init__(self, args: Namespace, inner: Engine):
        if find_spec("ray") is None:
            raise UserError("--backend ray needs Ray: pip install -r requirements-ray.txt")
        self.identity = inner.identity
        self._args, self._replicas = args, 0
        self._idle: list[Any] = []

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        self._replicas = self._replicas or self._connect()
        import ray

        waiting = deque(blocks(len(requests), self._replicas, self._args.ray_engine))
        busy: dict[Any, tuple[Any, dict[int, int]]] = {}  # what comes next -> the replica, and what it owes
        deaths, quiet = 0, 0.0
        try:
            while waiting or any(owed for _, owed in busy.values()):
                while waiting and self._idle:
                    replica, owed = self._idle.pop(), waiting.popleft()
                    asked = [requests[index] for index in owed.values()]
                    busy[replica.complete.options(num_returns="streaming").remote(asked, sampling)] = replica, owed
                coming = sum(isinstance(each, ray.ObjectRef) for each in busy)
                for _ in range(min(self._replicas - len(busy), len(waiting) - coming)):
                    replica = self._start()
                    busy[replica.ready.remote()] = replica, {}
                done, _ = ray.wait([*busy], timeout=LOOK, fetch_local=False)
                quiet = 0.0 if done else self._look(quiet, bool(deaths))
                for each in done:
                    replica, owed = busy[each]
                    try:
                        found = received(each)
                    except ReplicaDied as death:
                        deaths += 1
                        if deaths > DEATHS * self._replicas:
                            raise UserError(f"replicas die one after another on the Ray cluster: {death}") from death
                        del busy[each]
                        ray.kill(replica)
                        if owed:
                            waiting.appendleft(dict(enumerate(owed.values())))
                        continue
                    if found is None:
                        assert not owed, "a replica ended, and did not answer all that it was asked"
                        del busy[each]
                        self._idle.append(replica)
                        continue
                    deaths = 0
                    for place, reply in found:
                        yield owed.pop(place), reply
        finally:
            for each, (replica, owed) in busy.items():
                is_free = not owed and not isinstance(each, ray.ObjectRef)
                self._idle.append(replica) if is_free else ray.kill(replica)

    def _connect(self) -> int:
        """How many replicas the cluster is to hold. Raises UserError where none answers, or it cannot hold them."""
        address = self._args.ray_address
        check_answers(address)
        import ray

        try:
            if not ray.is_initialized():  # another engine of this run may have been first
                ray.init(address, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UserError(f"--ray_address {address}: no Ray cluster answers ({first_line(error)})") from None
        what, each = self._takes()
        free = int(ray.available_resources().get(what, 0) // each)
        wanted, room = self._args.replicas or free, self._room()
        if not 0 < wanted <= room:
            has = f"the Ray cluster at {address} has room for {room}, of which {min(free, room)} now, of {each} {what} each"
            raise UserError(f"--replicas {max(wanted, 1)}: {has}")
        return wanted

    def _takes(self) -> tuple[str, int]:
        """What a replica takes of a node, and how much of it."""
        import ray

        on_gpus = self._args.ray_engine != "simulated" and (self._args.n_gpu > 1 or "GPU" in ray.cluster_resources())
        return ("GPU", self._args.n_gpu) if on_gpus else ("CPU", 1)

    def _room(self) -> int:
        """Replicas that the cluster's nodes, as they are now, would hold if nobody else used them."""
        import ray

        what, each = self._takes()
        return sum(int(node["Resources"].get(what, 0) // each) for node in ray.nodes() if node["Alive"])

    def _start(self) -> Any:
        import ray

        name = self._args.model_name_or_path
        what, each = self._takes()
        takes = {"num_gpus": each} if what == "GPU" else {}
        files = None if self._args.ray_engine == "simulated" else file_sizes(name)
        return ray.remote(num_cpus=1, **takes)(Replica).remote(self._args, files)

    def _look(self, quiet: float, lost: bool) -> float:
        """Seconds without a reply, `quiet` before. Raises UserError where no node is left that would hold a replica."""
        if not self._room():
            raise UserError("no node of the Ray cluster is left that has room for a replica; the same command goes on")
        if quiet < 60 <= quiet + LOOK and not lost:
            tqdm.write("ray: no reply for a minute; replicas load their model, or wait for room on the cluster")
        return quiet + LOOK


class ReplicaDied(Exception):
    """A replica, its node, or a reply on its way is lost."""


def received(stream: Any) -> list[tuple[int, Reply]] | None:
    """What came next of a replica: replies, or None where it is ready for a block. Raises ReplicaDied, and the
    UserError that ended a replica's work."""
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        if isinstance(stream, ray.ObjectRef):
            return ray.get(stream)
        return ray.get(next(stream))
    except StopIteration:
        return None
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except RayError as error:
        raise ReplicaDied(first_line(error)) from error


class Replica:
    """The actor: an engine that is asked for one block after another."""

    def __init__(self, args: Namespace, files: dict[str, int] | None):
        from alignment.engines import engine_from

        self._args, self._node = args, socket.gethostname()
        if files is not None and files != file_sizes(args.model_name_or_path):
            self._engine = None
            return
        self._engine = engine_from(Namespace(**vars(args) | {"backend": args.ray_engine, "use_hf": False}))

    def ready(self) -> None:
        if self._engine is None:
            name = self._args.model_name_or_path
            raise UserError(
                f"node {self._node} has other files than this machine under {name}; every node needs the same"
            )

    def complete(self, requests: list[Request], sampling: Sampling) -> Iterator[list[tuple[int, Reply]]]:
        ready, since = [], monotonic()
        for found in self._engine.complete(requests, sampling):
            ready.append(found)
            if monotonic() - since > TOGETHER:
                yield ready
                ready, since = [], monotonic()
        if ready:
            yield ready


def blocks(count: int, replicas: int, engine: str) -> list[dict[int, int]]:
    """`count` requests in blocks: each {place in the block: index of the request}."""
    least, most = BLOCK[engine]
    size = min(max(-(-count // (BLOCKS_EACH * replicas)), least), -(-count // replicas), most)
    starts = range(0, count, max(size, 1))
    return [dict(enumerate(range(start, min(start + size, count)))) for start in starts]


def check_answers(address: str) -> None:
    """Raise UserError where nothing listens at an address host:port; Ray itself would try for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in address:
        raise UserError(f"--ray_address {address}: give host:port of the head node, or auto on a node of the cluster")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--ray_address {address}: no Ray cluster answers ({first_line(error)})") from None


def file_sizes(name: str) -> dict[str, int] | None:
    """Bytes of each file of a model's folder, as this machine sees it; None for what is no folder here."""
    folder = Path(name).expanduser()
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()} if folder.is_dir() else None
