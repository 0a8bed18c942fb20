"""May a run write here? A place that can be written to, nothing that the run reads, and held by no other process.

    check_writable(output.parent)
    check_no_input(output, inputs, folders_of_models)
    with locked(output) as was_killed: ...

For `run_cards.claim`, which asks all three.
"""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from alignment.command_line import UserError, warn
from alignment.pretrained import is_model_file


def check_writable(folder: Path) -> None:
    """Raise UserError where `folder` is none that can be written to, or made. Makes nothing."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"output directory {folder}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise UserError(f"output directory {folder}: {existing} is not writable")


def check_no_input(output: Path, inputs: Sequence[str | Path], folders: Sequence[Path | None]) -> None:
    """Raise UserError where writing `output` would overwrite something that the run reads."""
    for path in map(Path, inputs):
        if path.exists() and output.exists() and output.samefile(path):
            raise UserError(f"output {output} is an input of this run; give another")
    for folder in filter(None, folders):
        is_inside = output.parent.exists() and output.parent.samefile(folder) and is_model_file(output.name)
        if is_inside or (output.exists() and output.samefile(folder)):
            raise UserError(f"output {output} is the model that this run reads, or a part of it; give another")


@contextmanager
def locked(output: Path) -> Iterator[bool]:
    """Hold `output` alone; whether the process that held it last was killed. The kernel lets go of it at kill -9."""
    path = output.with_name(f".{output.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise UserError(f"{output} cannot be written: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "another process"
                raise UserError(f"{output} is being written by {holder}; wait for it, or stop it") from None
            except OSError as error:  # some mounts of Lustre, NFS and FUSE have no locks
                warn(f"{output} cannot be locked ({error.strerror}): let no second run write it")
            else:
                if not path.exists() or path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                    continue  # its holder took it away meanwhile
            was_killed = file.tell() > 0
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}")
            file.flush()
            try:
                yield was_killed
            finally:
                path.unlink(missing_ok=True)
            return
