"""The tests see no GPU, and a process that runs a real engine sees those that the user lets it see."""

import os
import subprocess
import sys

import pytest

from alignment.command_line import REPOSITORY

PROGRAM = """
import os, sys
import conftest
print("torch" in sys.modules, repr(os.environ["CUDA_VISIBLE_DEVICES"]))
print(conftest.with_gpus(MORE="1").get("CUDA_VISIBLE_DEVICES"), conftest.with_gpus(MORE="1")["MORE"])
"""


@pytest.mark.parametrize("visible", [None, "", "2,3"])
def test_gpus_are_hidden_before_torch_is_imported(visible):
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    env |= {"PYTHONPATH": str(REPOSITORY / "tests")} | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True)
    assert done.stdout == f"False ''\n{visible} 1\n", done.stderr
