"""Ids of a training set, made once and kept beside the run: the other processes of a node, and a run that goes on, map
the file and tokenise nothing. What several processes map is in memory once.

    folder, notes = kept(output, print_of(tokenizer, rows, template="almost"), lambda: (items, {"too long": [3]}))
    items = KeptItems([folder])    # a sequence; each item is made when it is asked for

    encoded-<print>/ids.npy        int32, the ids of all samples
    encoded-<print>/samples.npy    int32 (samples, 5): number of its item, row, prompt_length, length, kind (CUT's)
    encoded-<print>/notes.json     what else is to be said of the rows, by their numbers

A folder is renamed into place once it is whole, and goes when the run has ended. Its print is of all that decides the
ids: texts, tokenizer, template, lengths, and the code and packages that make ids of them. So what is stale has another
name.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alignment.command_line import REPOSITORY
from alignment.outputs import writing
from alignment.run_cards import ASIDE, ENCODED
from alignment.training.batches import Item, Sample

CODE = "alignment/templates.py alignment/token_ids.py alignment/training/batches.py alignment/training/cut_lines.py"
PACKAGES = ("transformers", "tokenizers", "jinja2")
Notes = dict[str, list[int]]


def kept(output: Path, name: str, encode: Callable[[], tuple[Sequence[Item], Notes]]) -> tuple[Path | None, Notes]:
    """The folder in `output` that holds the items of a print, and notes of their rows: there already, or what `encode`
    gives. None, and nothing is written, where there are no items."""
    place = output / f"{ENCODED}{name}"
    if not place.is_dir():
        items, notes = encode()
        if not items:
            return None, notes
        with writing(place):
            write(place, items, notes)
    return place, json.loads((place / "notes.json").read_text(encoding="utf-8"))


def forget_others(output: Path, folders: Iterable[Path | None]) -> None:
    """Take away what an earlier run with other rows or flags has left in `output`."""
    for path in set(output.glob(f"{ENCODED}*")) - set(folders):
        shutil.rmtree(path, ignore_errors=True)


def write(place: Path, items: Sequence[Item], notes: Notes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=place.parent))
    try:
        numbered = [(number, sample) for number, item in enumerate(items) for sample in item]
        columns = [(n, s.row, s.prompt_length, len(s), getattr(s, "kind", -1)) for n, s in numbered]
        for name, values in (("samples", columns), ("ids", np.concatenate([sample.packed for _, sample in numbered]))):
            np.save(aside / f"{name}.npy", np.asarray(values, np.int32))
        (aside / "notes.json").write_text(json.dumps(notes), encoding="utf-8")
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        aside.rename(place)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class Part(NamedTuple):
    """A folder of items, mapped."""

    ids: np.ndarray
    samples: np.ndarray  # (samples, 5)
    ends: np.ndarray  # of each sample in `ids`
    firsts: np.ndarray  # the first sample of each item, and the number of all

    @classmethod
    def of(cls, folder: Path) -> Part:
        ids, samples = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("ids", "samples"))
        firsts = np.flatnonzero(np.diff(samples[:, 0], prepend=-1, append=-1))
        return cls(ids, samples, np.cumsum(samples[:, 3], dtype=np.int64), firsts)


class KeptItems(Sequence):
    """The items of several folders, one after the other, each made of its ids when it is asked for. `make` makes a
    sample of (row, ids, prompt_length), or with `kinds` of (row, ids, prompt_length, kind)."""

    def __init__(self, folders: Iterable[Path | None], make: Callable[..., Sample] = Sample, *, kinds: bool = False):
        self.parts = [Part.of(folder) for folder in folders if folder]
        self.ends = list(accumulate(len(part.firsts) - 1 for part in self.parts))
        self.make, self.kinds = make, kinds

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[each] for each in range(*place.indices(len(self)))]
        if not 0 <= place < len(self):
            raise IndexError(place)
        number = bisect_right(self.ends, place)
        part = self.parts[number]
        first, end = part.firsts[place - (self.ends[number - 1] if number else 0) :][:2]
        return tuple(self.sample(part, each) for each in range(first, end))

    def sample(self, part: Part, number: int) -> Sample:
        _, row, prompt_length, length, kind = part.samples[number].tolist()
        end = int(part.ends[number])
        return self.make(row, part.ids[end - length : end].tobytes(), prompt_length, *([kind] if self.kinds else []))


# What decides ids


def print_of(tokenizer: Any, rows: Iterable[Any], **settings: Any) -> str:
    """A print of texts, of what makes ids of them, and of the settings that it does it under."""
    digest = hashlib.sha256(json.dumps([code_print(), settings], sort_keys=True).encode())
    for told in (tokenizer_print(tokenizer), *rows):
        digest.update(json.dumps(told, sort_keys=True, default=str).encode())
    return digest.hexdigest()[:16]


def tokenizer_print(tokenizer: Any) -> list[Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else tokenizer.get_vocab()
    return [words, tokenizer.special_tokens_map, tokenizer.chat_template, type(tokenizer).__name__]


@cache
def code_print() -> str:
    """A print of the code that encodes: our files, the templates, and the versions of the packages."""
    paths = [*(REPOSITORY / path for path in CODE.split()), *sorted((REPOSITORY / "assets" / "templates").iterdir())]
    digest = hashlib.sha256("".join(importlib.metadata.version(name) for name in PACKAGES).encode())
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()
