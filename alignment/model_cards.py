"""README.md of a folder that holds a model of ours: what it is, what made it, from what, and what was measured.

    write_card(folder, held, what="A reward model", template="almost", numbers={"loss": 0.61})

`held` is the run that makes it (run_cards.py). Of a path of this machine the card has the last name alone.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignment.pretrained import ADAPTER_CONFIG, local_folder, read_settings
from alignment.records import write_whole
from alignment.run_cards import Run, commit, versions
from alignment.secrecy import without_key

LICENCE = re.compile(r"\A---\n(?:.*\n)*?license:[ \t]*(\S+)", re.MULTILINE)  # in a card's head
# Of these a folder that we saved was loaded by transformers 4.57.6, and gave the same log-probabilities
READ_BY_4 = set(
    "gemma2 gemma3_text gpt2 gpt_neox gpt_oss lfm2 llama mamba mistral mixtral olmo2 olmo3 phi phi3 qwen2 qwen2_moe "
    "qwen3 qwen3_moe smollm3 stablelm".split()
)


def write_card(folder: Path, held: Run, *, what: str, template: str | None, numbers: Mapping[str, Any]) -> None:
    """Write README.md into the folder of a model that is already there, before it is moved to `held.output`."""
    config = read_settings(folder / "config.json", "model config")
    is_adapter = (folder / ADAPTER_CONFIG).is_file()
    is_reward = what.startswith("A reward model")
    bases = list(dict.fromkeys(held.models))
    licence = licence_of(bases[0], held.cache_dir) if bases else None
    head = {
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": "text-classification" if is_reward else "text-generation",
        "license": licence,
        "base_model": next((name for name in bases if not is_path(name)), None),
    }
    lines = ["---", *(f"{name}: {value}" for name, value in head.items() if value), "---", ""]
    lines += [
        f"# {held.output.resolve().name}",
        "",
        f"{what}{', as an adapter' if is_adapter else ''}. It was made by",
        "",
    ]
    lines += [f"    {command_of(held)}", "", "## From what", ""]
    lines += [f"- model {portable(name)}{shown_hash(found)}" for name, found in held.made_of["models"].items()]
    lines += [f"- data {portable(name)}{shown_hash(found)}" for name, found in held.made_of["inputs"].items()]
    lines += [f"- the base's licence: {licence or 'not stated'}", ""]
    lines += ["## Measured", "", *(f"- {name}: {shown(value)}" for name, value in flat(numbers)), ""]
    lines += ["## Use", "", *usage(config, template, is_reward), ""]
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    lines += [f"Made with {made_with}; code {commit() or 'unknown'}."]
    write_whole(folder / "README.md", [line + "\n" for line in lines])


def usage(config: Mapping[str, Any], template: str | None, is_reward: bool) -> list[str]:
    """How the model is asked, and by which transformers."""
    lines = []
    if template:
        told = "which is the tokenizer's chat template too: a conversation that ends in a reply gives the trained ids"
        lines += [f"- prompts in the template `{template}`, {told}"]
    if is_reward:
        lines += ["- the score is the one logit, read at the last token; no sigmoid (vLLM: `use_activation=False`)"]
    kind = config.get("model_type")
    reads = "transformers 4.57 and newer load it" if kind in READ_BY_4 else "it needs transformers 5"
    return [*lines, f"- {reads}"]


def licence_of(base: str, cache_dir: Any = None) -> str | None:
    """The licence that the head of a base's card names; None where it has no card here, or the card none."""
    folder = local_folder(base, cache_dir)
    card = folder / "README.md" if folder else None
    if not card or not card.is_file():
        return None
    found = LICENCE.match(card.read_text("utf-8", errors="replace").partition("\n---\n")[0])
    return found[1].strip("'\"") if found else None


def command_of(held: Run) -> str:
    """The command line of a run as it was given, or, where its script was called from another, all that its arguments
    hold."""
    is_own = Path(sys.argv[0]).name == held.script
    words, processes = sys.argv[1:] if is_own else words_of(vars(held.args)), os.environ.get("WORLD_SIZE", "1")
    opening = ["python"] if processes == "1" else ["torchrun", f"--nproc_per_node={processes}"]
    return without_key(shlex.join([*opening, held.script, *map(portable, words)]))


def words_of(arguments: Mapping[str, Any]) -> list[str]:
    """The words of a command line that says all that these arguments hold."""
    words = []
    for name, value in {**arguments, **(arguments.get("trainer") or {})}.items():
        values = [str(each) for each in (value if isinstance(value, (list, tuple)) else [value])]
        if name != "trainer" and value is not None and value is not False and value not in ("", []):
            words += [f"--{name}", *values]
    return words


def is_path(name: str) -> bool:
    return Path(name).expanduser().exists() or name.startswith(("/", "~", "."))


def portable(word: str) -> str:
    """A word of a command line, --flag=value among them, without where on this machine something is."""
    flag, equals, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    return flag + equals + (Path(value).name if value.startswith(("/", "~")) else value)


def shown_hash(found: Any) -> str:
    """The first figures of a file's sha256, or of a model's weights."""
    weights = found.get("weights") if isinstance(found, dict) else found
    return f" (sha256 {weights[:12]})" if isinstance(weights, str) else ""


def flat(numbers: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """(name, value) of what a run counted, what is inside named by both names."""
    found: list[tuple[str, Any]] = []
    for name, value in numbers.items():
        inside = isinstance(value, Mapping)
        found += flat(value, f"{before}{name} ") if inside else [(f"{before}{name}", value)]
    return found


def shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
