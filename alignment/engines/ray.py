"""Replicas on a Ray cluster: what is asked goes out in blocks, replies and rewards stream back as they are ready.

    python generate.py --backend ray --ray_engine vllm --replicas 8 --n_gpu 2 ...     # 16 GPUs of whatever nodes

A replica is an actor that does what this process would do without Ray, with whatever engines and reward models it is
asked for: each is loaded once and kept. Ray Data makes its actors anew for each data set, which would load the model
again for every configuration of `rg` and every round of `pg`. What a replica owes when it or its node dies is given to
another, and a new replica takes its place where the cluster has room. Only this process reads and writes files, but for
the model's: a node needs the model under the same path, and an environment with these packages.
"""

from __future__ import annotations

import pickle
import socket
from argparse import Namespace
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

from tqdm import tqdm

from alignment.command_line import UserError
from alignment.generation import Engine, Reply, Request, Sampling
from alignment.pretrained import first_line

BLOCK = {"vllm": (256, 4_096), "hf": (64, 256), "simulated": (1, 256)}  # requests in one: at least, at most
SCORED = (64, 1_024)  # responses in one
BLOCKS_EACH = 8  # for a replica, where there is enough to do: so that all end at about the same time
TOGETHER = 0.2  # seconds whose answers travel together
DEATHS = 3  # of each replica, with no answer in between, before the run gives up
LOOK = 10.0  # seconds between looks at what is left of the cluster while nothing comes back


class RayEngine:
    """`inner`, the engine that `made` makes, in replicas that make it too. It is not loaded here, but tells what
    identifies it: a journal of one machine's run is the cluster's too."""

    def __init__(self, args: Namespace, inner: Engine, made: Callable[[], Engine]):
        self.identity = inner.identity
        self._replicas, self._made, self._size = replicas_of(args), made, BLOCK[args.ray_engine]
        self._files = None if args.ray_engine == "simulated" else file_sizes(args.model_name_or_path)

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        yield from self._replicas.answers("complete", self._made, self._files, requests, self._size, sampling)


class RayScorer:
    """`inner`, the scorer that `made` makes, in replicas."""

    def __init__(self, args: Namespace, inner: Any, made: Callable[[], Any]):
        self.identity = inner.identity
        self._replicas, self._made, self._files = replicas_of(args), made, file_sizes(args.reward_model)

    def score(self, rows: Sequence[dict], responses: Sequence[str]) -> list[float]:
        texts = list(zip(rows, responses, strict=True))
        found = dict(self._replicas.answers("score", self._made, self._files, texts, SCORED))
        return [found[index] for index in range(len(texts))]


# In a replica


class Replica:
    """The actor: one block after another is answered by what was made for it, once."""

    def __init__(self) -> None:
        self._made: dict[bytes, Any] = {}

    def ready(self) -> None:
        """Nothing: it answers once the actor is there."""

    def complete(self, made: Callable, files: Any, questions: list, sampling: Sampling) -> Iterator[list]:
        """Replies to a block, those of TOGETHER seconds at a time."""
        ready, since = [], monotonic()
        for answer in self._of(made, files).complete(questions, sampling):
            ready.append(answer)
            if monotonic() - since > TOGETHER:
                yield ready
                ready, since = [], monotonic()
        if ready:
            yield ready

    def score(self, made: Callable, files: Any, questions: list) -> Iterator[list]:
        """The block's rewards."""
        yield list(enumerate(self._of(made, files).score(*zip(*questions, strict=True))))

    def _of(self, made: Callable, files: Any) -> Any:
        name = pickle.dumps(made)
        if name not in self._made:
            if files is not None and files != file_sizes(files[0]):
                other = f"node {socket.gethostname()} has other files under {files[0]} than where the run was started"
                raise UserError(f"{other}; every node needs the same")
            self._made[name] = made()
        return self._made[name]


def file_sizes(name: str) -> tuple[str, dict[str, int]] | None:
    """A model's folder and the bytes of each file in it, as this machine sees them; None for what is no folder."""
    folder = Path(name).expanduser().absolute()
    if not folder.is_dir():
        return None
    return str(folder), {file.name: file.stat().st_size for file in folder.iterdir() if file.is_file()}


# Here


class ReplicaDied(Exception):
    """A replica, its node, or an answer on its way is lost."""


class Replicas:
    """The actors of a run, shared by all that it asks: `count`, or as many as the cluster has room for, each of `n_gpu`
    GPUs where the cluster has any and of a CPU elsewhere."""

    def __init__(self, address: str, count: int | None, n_gpu: int, engine: str):
        self._address, self._count, self._n_gpu, self._engine = address, count, n_gpu, engine
        self._idle: list[Any] = []
        self._starting: dict[Any, Any] = {}  # what comes once a replica is there -> the replica
        self._is_connected = False

    def answers(
        self, method: str, made: Callable, files: Any, questions: Sequence, size: tuple[int, int], *more: Any
    ) -> Iterator[tuple[int, Any]]:
        """(index, answer) of each question, once, as they come, by a method of Replica. Raises the UserError that ended
        a replica's work, and UserError where the cluster cannot go on."""
        if not self._is_connected:
            self._connect()
        import ray

        waiting = deque(blocks(len(questions), self._count, size))
        busy: dict[Any, tuple[Any, dict[int, int]]] = {}  # a stream of answers -> the replica, and what it owes
        deaths, quiet = 0, 0.0
        try:
            while waiting or any(owed for _, owed in busy.values()):
                while waiting and self._idle:
                    replica, owed = self._idle.pop(), waiting.popleft()
                    block = [questions[index] for index in owed.values()]
                    asked = getattr(replica, method).options(num_returns="streaming").remote(made, files, block, *more)
                    busy[asked] = replica, owed
                for _ in range(min(self._count - len(busy), len(waiting)) - len(self._starting)):
                    replica = self._start()
                    self._starting[replica.ready.remote()] = replica
                done, _ = ray.wait([*busy, *self._starting], timeout=LOOK, fetch_local=False)
                quiet = 0.0 if done else self._look(quiet)
                for each in done:
                    replica, owed = busy.pop(each, None) or (self._starting.pop(each), {})
                    try:
                        found = received(each)
                    except ReplicaDied as death:
                        deaths += 1
                        if deaths > DEATHS * self._count:
                            raise UserError(f"replicas die one after another on the Ray cluster: {death}") from death
                        ray.kill(replica)
                        if owed:
                            waiting.appendleft(dict(enumerate(owed.values())))
                        continue
                    if found is None:
                        assert not owed, "a replica ended, and did not answer all that it was asked"
                        self._idle.append(replica)
                        continue
                    busy[each], deaths = (replica, owed), 0
                    for place, answer in found:
                        yield owed.pop(place), answer
        finally:
            for replica, owed in busy.values():
                ray.kill(replica) if owed else self._idle.append(replica)

    @property
    def idle(self) -> int:
        """How many are there and have nothing to do."""
        return len(self._idle)

    def _connect(self) -> None:
        """Raises UserError where no cluster answers, or it cannot hold the replicas."""
        check_answers(self._address)
        import ray

        try:
            ray.init(self._address, log_to_driver=False, logging_level="ERROR", ignore_reinit_error=True)
        except (ConnectionError, RuntimeError, ValueError, OSError) as error:
            raise UserError(f"--ray_address {self._address}: no Ray cluster answers ({first_line(error)})") from None
        what, each = self._takes()
        free, room = int(ray.available_resources().get(what, 0) // each), self._room()
        wanted = self._count or min(free, room)
        if not 0 < wanted <= room:
            has = f"has room for {room}, of which {min(free, room)} now, of {each} {what} each"
            raise UserError(f"--replicas {max(wanted, 1)}: the Ray cluster at {self._address} {has}")
        self._count, self._is_connected = wanted, True

    def _takes(self) -> tuple[str, int]:
        """What a replica takes of a node, and how much of it."""
        import ray

        on_gpus = self._engine != "simulated" and (self._n_gpu > 1 or "GPU" in ray.cluster_resources())
        return ("GPU", self._n_gpu) if on_gpus else ("CPU", 1)

    def _room(self) -> int:
        """Replicas that the cluster's nodes, as they are now, would hold if nobody else used them."""
        import ray

        what, each = self._takes()
        return sum(int(node["Resources"].get(what, 0) // each) for node in ray.nodes() if node["Alive"])

    def _start(self) -> Any:
        import ray

        what, each = self._takes()
        takes = {"num_gpus": each} if what == "GPU" else {}
        return ray.remote(num_cpus=1, **takes)(Replica).remote()

    def _look(self, quiet: float) -> float:
        """Seconds without an answer, `quiet` before. Raises UserError where no node is left that holds a replica."""
        if not self._room():
            raise UserError("no node of the Ray cluster is left that has room for a replica; the same command goes on")
        if quiet < 60 <= quiet + LOOK:
            tqdm.write("ray: no answer for a minute; replicas load their model, or wait for room on the cluster")
        return quiet + LOOK


RUNNING: dict[tuple, Replicas] = {}  # of this process


def replicas_of(args: Namespace) -> Replicas:
    """The replicas that the flags name, the same for all that a run asks."""
    if find_spec("ray") is None:
        raise UserError("--backend ray needs Ray: pip install -r requirements-ray.txt")
    named = args.ray_address, args.replicas, args.n_gpu, args.ray_engine
    return RUNNING.setdefault(named, Replicas(*named))


def received(stream: Any) -> list[tuple[int, Any]] | None:
    """What came next of a replica: answers, or None where it is ready for a block. Raises ReplicaDied, and the
    UserError that ended its work."""
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


def blocks(count: int, replicas: int, size: tuple[int, int]) -> list[dict[int, int]]:
    """`count` questions in blocks of a size between two: each {place in the block: index of the question}."""
    least, most = size
    length = max(1, min(max(-(-count // (BLOCKS_EACH * replicas)), least), -(-count // replicas), most))
    return [dict(enumerate(range(start, min(start + length, count)))) for start in range(0, count, length)]


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
