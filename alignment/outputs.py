"""May a run write here? A place that can be written to, nothing that the run reads, and held by no other process.

    check_writable(output, folder=False)
    check_no_input(output, inputs, folders_of_models)
    with locked(output) as was_killed: ...

For `run_cards.claim`, which asks all three. `writing` is for what is written otherwise than by `records.write_whole`.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from alignment.command_line import UserError, warn, why_unwritable
from alignment.flag_values import fault_of_output
from alignment.pretrained import first_line, is_model_file

FAILED_WRITE = re.compile("I/O error|inline_container|PytorchStreamWriter")  # as safetensors and torch tell of one


def check_writable(output: Path, *, folder: bool) -> None:
    """Raise UserError where `output`, a file or a `folder`, is none that can be written to, or made. Makes nothing."""
    if fault := fault_of_output(output, folder=folder):
        raise UserError(f"output {output}: {fault}")


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
def writing(path: Path) -> Iterator[None]:
    """UserError where something that writes `path` by itself, as safetensors, torch and matplotlib do, cannot."""
    from safetensors import SafetensorError

    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be written: {why_unwritable(error)}") from error
    except (SafetensorError, RuntimeError) as error:
        if not FAILED_WRITE.search(str(error)):
            raise
        raise UserError(
            f"{path} cannot be written ({first_line(error)}); make room, and the same command goes on"
        ) from error


@contextmanager
def locked(output: Path) -> Iterator[bool]:
    """Hold `output` alone; whether the process that held it last was killed. The kernel lets go of it at kill -9."""
    path = output.with_name(f".{output.name}.lock")
    while True:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            file = path.open("a+")
        except OSError as error:
            raise UserError(f"{output} cannot be written: {why_unwritable(error)}") from None
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
            try:
                was_killed = file.tell() > 0
                with suppress(OSError):  # a full disk has room for the lock, if not for the name of its holder
                    file.truncate(0)
                    os.write(file.fileno(), f"process {os.getpid()} on {socket.gethostname()}".encode())
                yield was_killed
            finally:
                path.unlink(missing_ok=True)
            return
