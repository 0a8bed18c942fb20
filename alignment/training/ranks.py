"""Several processes, on one node or on many: what the first makes for all, and that all see its folder.

    found = from_first(lambda: read_rows(path))    # made once, by the first; the others wait
    check_seen(output)                             # UserError where a node has another folder under this name

One process is first and alone, and none of this costs it anything.
"""

from __future__ import annotations

import socket
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as distributed

from alignment.command_line import UserError, is_first
from alignment.outputs import writing

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # for what the first process does alone: tokenise millions of rows, load a model anew
UNSEEN_FOR = 35  # seconds for which an NFS client may remember that a folder was not there, and some


def are_several() -> bool:
    return distributed.is_initialized() and distributed.get_world_size() > 1


@cache
def patient_group() -> Any:
    """All processes, over gloo: NCCL gives up after half an hour, and moves no Python object."""
    return distributed.new_group(backend="gloo", timeout=PATIENCE)


def meet() -> None:
    """Wait until all processes are here. Raises UserError where one has ended."""
    if are_several():
        told(distributed.barrier, patient_group())


def from_first(make: Callable[[], T]) -> T:
    """What `make` gives the first process, for all; others do not call it. All processes call this together."""
    if not are_several():
        return make()
    group = patient_group()  # together, before the first goes its way
    found: list[Any] = [make() if is_first() else None]
    told(distributed.broadcast_object_list, found, 0, group)
    return found[0]


def of_all(value: T) -> list[T]:
    """Each process's value, in the order of their ranks."""
    if not are_several():
        return [value]
    found: list[Any] = [None] * distributed.get_world_size()
    told(distributed.all_gather_object, found, value, patient_group())
    return found


def told(ask: Callable, *args: Any) -> None:
    try:
        ask(*args)
    except RuntimeError as error:
        raise UserError("another process has ended, and has said why") from error


def check_seen(output: Path) -> None:
    """Raise UserError where a process does not see what the first one writes beside `output`: its node has a folder of
    its own under that name, and a checkpoint would be spread over both."""
    if not are_several():
        return

    def leave() -> Path:
        with writing(output.parent):
            output.parent.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkstemp(prefix=f".{output.name}.", suffix=".seen", dir=output.parent)[1])

    token = from_first(leave).name
    try:
        until = time.monotonic() + UNSEEN_FOR
        while not (is_there := (output.parent / token).exists()) and time.monotonic() < until:
            time.sleep(0.2)
        hosts = of_all((is_there, socket.gethostname()))
    finally:
        if is_first():
            (output.parent / token).unlink(missing_ok=True)
    blind = sorted({f"process {rank} on {host}" for rank, (is_there, host) in enumerate(hosts) if not is_there})
    if blind:
        raise UserError(
            f"{', '.join(blind)} does not see {output.parent.resolve()} of {hosts[0][1]}; give an --output_dir that "
            "all nodes see"
        )
