"""vLLM's processes: what they say stays off the terminal, and what a failure comes to is one line.

with overheard() as said:        # what this process and those that start in here write goes to a nameless file
    llm = LLM(...)
cores = watched(llm)             # from here on the end of a process ends the wait for its next output
raise UserError(why(error, text_of(said), cores))
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import active_children
from multiprocessing.connection import wait
from threading import Thread
from typing import IO, Any

from alignment.pretrained import first_line

LONGEST = 300  # characters of what vLLM said
MEMORY = "give a smaller --max_model_len or --gpu_memory_utilization, or more GPUs by --n_gpu"
# What vLLM says, of which the match is shown, and what to change
REMEDIES = (
    (r"Total number of attention heads \(\d+\) must be divisible by tensor parallel size \(\d+\)", "change --n_gpu"),
    (r"\d+ is not divisible by \d+", "change --n_gpu"),
    (r"World size \(\d+\) is larger than the number of available GPUs \(\d+\)", "give a smaller --n_gpu"),
    (
        r"Free memory on device .*? is less than desired GPU memory utilization \([^)]*\)",
        "give a smaller --gpu_memory_utilization, or end what else uses the GPU",
    ),
    (
        r"No available memory for the cache blocks|To serve at least one request .*? KV cache memory \([^)]*\)",
        "give a smaller --max_model_len, a larger --gpu_memory_utilization, or more GPUs by --n_gpu",
    ),
    (r"CUDA out of memory(\. Tried to allocate [\d.]+ \w+)?", MEMORY),
    (
        r"User-specified max_model_len \(\d+\) is greater than the derived max_model_len \([^)]*\)",
        "give a smaller --max_model_len",
    ),
    (r"Bfloat16 is only supported on GPUs with compute capability of at least \d+\.\d+", "give --dtype float16"),
    (r"The model type '[\w-]+' does not support float16", "give --dtype bfloat16"),
)
ERROR = re.compile(r"\b(?:[A-Za-z_]+\.)*[A-Z]\w*(?:Error|Exception): *(\S.*)")
CONSEQUENCES = ("Engine core initialization failed", "EngineCore encountered", "cancelled", "Executor failed")
SEE_ALL = "VLLM_LOGGING_LEVEL=INFO shows what vLLM says"


@contextmanager
def overheard() -> Iterator[IO[bytes] | None]:
    """The file that standard output and error go to meanwhile, those of new processes for good. None where the user
    asks vLLM for more than its errors, and so sees all."""
    if os.environ.get("VLLM_LOGGING_LEVEL", "ERROR") != "ERROR":
        yield None
        return
    said = tempfile.TemporaryFile()  # noqa: SIM115, it stays open for what is written later
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    try:
        for stream in kept:
            os.dup2(said.fileno(), stream)
        yield said
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for stream, own in kept.items():
            os.dup2(own, stream)
            os.close(own)


def text_of(said: IO[bytes] | None) -> str:
    """What was written so far. By pread, since the processes that write share the file's place."""
    return "" if said is None else os.pread(said.fileno(), 1 << 24, 0).decode(errors="replace")


def watched(llm: Any) -> Sequence[Any]:
    """The processes of a vLLM engine. vLLM marks one that was killed as dead, but goes on waiting for its next output:
    so the end of any is put where that output would come. None where vLLM runs in this process."""
    from vllm.v1.engine.exceptions import EngineDeadError

    client = llm.llm_engine.engine_core
    if not hasattr(client, "outputs_queue"):
        return ()
    cores, outputs = list(client.resources.engine_manager.processes), client.outputs_queue

    def tell() -> None:
        wait([core.sentinel for core in cores])
        outputs.put(EngineDeadError())

    Thread(target=tell, daemon=True).start()
    return cores


# Holds on to the processes that it is told of, and kills them once its parent is gone. What is forked from the parent
# has the other end of the pipe too, so that its end tells nothing.
GUARD = """
import os, select, signal, sys
parent, held = os.pidfd_open(int(sys.argv[1])), []
while parent not in select.select([0, parent], [], [])[0]:
    for pid in os.read(0, 4096).split():
        try:
            held.append(os.pidfd_open(int(pid)))
        except ProcessLookupError:
            pass
for each in held:
    signal.pidfd_send_signal(each, signal.SIGKILL)
"""


def guard() -> None:
    """Start a process that kills vLLM's once this one is gone, whatever ended it: after `kill -9` they would keep the
    GPU's memory, which the next run needs. Called before they start, so that none is missed while they load."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    command = [sys.executable, "-c", GUARD, str(os.getpid())]
    keeper = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, bufsize=1, start_new_session=True, **quiet)

    def tell() -> None:
        told: set[int | None] = set()
        while keeper.poll() is None:
            for pid in {child.pid for child in active_children()} - told:
                keeper.stdin.write(f"{pid}\n")
                told.add(pid)
            time.sleep(0.1)

    Thread(target=tell, daemon=True).start()


def why(error: Exception, said: str, cores: Sequence[Any] = ()) -> str:
    """One line: what went wrong first, and what to change where that is known."""
    for pattern, remedy in REMEDIES:
        if found := re.search(pattern, f"{said}\n{error}"):
            return f"{found[0]}; {remedy}"
    for core in cores:
        core.join(5)  # it ends, or has ended
        if core.exitcode is not None and core.exitcode < 0:
            return f"its process was killed by signal {-core.exitcode}; is there memory enough?"
    causes = [found[1] for found in ERROR.finditer(said) if not found[1].startswith(CONSEQUENCES)]
    return f"{(causes or [first_line(error)])[0][:LONGEST]}; {SEE_ALL}"
