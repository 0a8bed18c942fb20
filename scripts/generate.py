"""generate.py at the place and with the flags that it has in CUT's released code.

    python scripts/generate.py --base_model_name_or_path saved_models/cut-1plus-13b
    python scripts/generate.py --base_model_name_or_path saved_models/cut-1plus-13b --data_path rows.json --device cpu

Reads and writes what generate.py does, and takes all of its flags: `python generate.py --help`. Released besides are
--device and --verbose, and that --template may be the path of a template's file.
"""

from __future__ import annotations

import importlib.util
import os
import re
from argparse import ArgumentTypeError, Namespace
from pathlib import Path

from alignment.command_line import REPOSITORY, ArgumentParser, UserError, boolean, run
from alignment.records import read_json, read_rows
from alignment.templates import CHOICES, TEMPLATES


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__)
    shown = "auto: all GPUs that are visible (default); cpu; cuda, the first; cuda:1, the second"
    parser.add_argument("--device", type=device, default="auto", help=shown)
    shown = "print each instruction with its response (default: False; the released script also waits for a key)"
    parser.add_argument("--verbose", type=boolean, nargs="?", const=True, default=False, help=shown)
    shown = "a template's name, or the released file of one: ../templates/alpaca.json (default: as generate.py)"
    parser.add_argument("--template", help=shown)
    own, rest = parser.parse_known_args(parser.words(argv))
    named = ["--template", template_name(own.template)] if own.template else []
    return Namespace(asked=script().parse_args([*rest, *named]), device=own.device, verbose=own.verbose)


def script():
    """generate.py of the repository's root, whose name this script has too."""
    spec = importlib.util.spec_from_file_location("root_generate", REPOSITORY / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def device(word: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", word):
        raise ArgumentTypeError(f"{word!r} is none of auto, cpu, cuda, cuda:0, cuda:1, ...")
    return word


def template_name(given: str) -> str:
    """The template that a released file's path names. Raises UserError where the file asks otherwise than ours."""
    path = Path(given)
    if path.suffix != ".json":
        return given
    if path.stem not in CHOICES:
        raise UserError(f"--template {given}: no template is called {path.stem!r}, but {', '.join(CHOICES)}")
    if path.is_file():
        asked = read_json(path, "template")
        ours = TEMPLATES["alpaca"](None).render({"instruction": "{instruction}"})
        if path.stem == "alpaca" and not (isinstance(asked, dict) and asked.get("prompt_no_input") == ours):
            raise UserError(f"--template {given} has another 'prompt_no_input' than assets/templates/alpaca.jinja")
    return path.stem


def show_only(wanted: str) -> None:
    """Let this process, and those that it starts, see the devices that --device names, before CUDA is asked."""
    if wanted == "auto":
        return
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    place = int(wanted.partition(":")[2] or 0)
    if wanted == "cpu":
        shown = ""
    elif visible:
        shown = visible[place] if place < len(visible) else ""
    else:
        shown = str(place)
    os.environ["CUDA_VISIBLE_DEVICES"] = shown
    import torch

    if wanted != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {wanted} is not here; give auto or cpu")


def main(args: Namespace) -> None:
    show_only(args.device)
    script().main(args.asked)
    if args.verbose and not args.asked.interactive:
        for row in read_rows(args.asked.output_file or Path(args.asked.model_name_or_path) / "alpaca_eval.json"):
            print(f"instruction {row['instruction']}\noutput {row['output']}\n")


if __name__ == "__main__":
    run(parse_args, main)
