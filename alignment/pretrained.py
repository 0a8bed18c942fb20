"""Models and tokenizers from a folder or the hub, and what identifies one. What cannot be loaded is a UserError.

    check_model(name)                                            # before anything is imported
    tokenizer = load_tokenizer(name)                             # as it is
    tokenizer = training_tokenizer(name)                         # with a padding token of its own
    model = load_pretrained("AutoModelForCausalLM", name, dtype="auto")
    contents(name)                                               # {"weights", "files"}: hashes of what is in it

Imports neither torch nor transformers before one of them is asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

from alignment.command_line import UserError, warn
from alignment.hashes import remembered, sha256
from alignment.journal import key
from alignment.records import read_json

PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")
MODEL_FILES = r".*\.(safetensors|bin|model|jinja)|(.*config|.*token.*|vocab)\.json|merges\.txt"
WEIGHT_FILES = r".*\.safetensors|(pytorch_model|adapter_model).*\.bin|.*\.gguf"
ADAPTER_CONFIG = "adapter_config.json"
SETTINGS = ("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json")
MOST_LAYERS = 10_000
LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
CHUNK = 1 << 22  # bytes read at a time
DEVICES, DRIVER = Path("/dev"), Path("/proc/driver/nvidia/version")
LEAST_DRIVER = {"11": 450, "12": 525, "13": 580}  # of CUDA's versions


def check_model(name: str) -> None:
    """Raise UserError where `name` is meant as a folder and is none that holds a model. Hub names pass."""
    path = Path(name).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise UserError(f"model {name} has no config.json: it is no model's folder")
        settings = {each: read_settings(path / each, "model file") for each in SETTINGS if (path / each).is_file()}
        for key, value in settings["config.json"].items():
            if "layers" in key and type(value) is int and value > MOST_LAYERS:  # built one by one, before any weight
                raise UserError(
                    f"model config {path / 'config.json'}: {key} is {value:,}, of which no model has so many"
                )
        return
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".")
    if not is_hub_name or ("/" in name and path.parent.is_dir()):
        raise UserError(f"model {name} does not exist")


def check_policy(name: str, cache_dir: str | Path | None = None) -> None:
    """`check_model`, and UserError where what is on this machine is a reward model, whose head for words is made up."""
    check_model(name)
    folder = local_folder(name, cache_dir)
    if folder and (folder / "config.json").is_file():
        kinds = read_settings(folder / "config.json", "model config").get("architectures")
        if isinstance(kinds, list) and any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
            raise UserError(f"model {name} is a reward model; name a policy")


def read_settings(path: Path, what: str) -> dict[str, Any]:
    """A JSON file of names and values. Raises UserError for any other."""
    found = read_json(path, what)
    if not isinstance(found, dict):
        raise UserError(f"{what} {path} holds no names with values, but a {type(found).__name__}")
    return found


def load_pretrained(kind: str, name: str, **settings: Any) -> Any:
    """What transformers' Auto class `kind` makes of `name`: a model, or its config.

    Raises UserError where it cannot, and where weights would be random: a new classification head alone may be.
    """
    import transformers

    check_model(name)
    hush()
    if kind != "AutoConfig":
        warn_of_unseen_gpu()
        settings |= {"output_loading_info": True}
    try:
        made = getattr(transformers, kind).from_pretrained(name, trust_remote_code=False, **settings)
    except Exception as error:  # whatever transformers stumbles over in files that may hold anything
        raise UserError(f"model {name}: {why_not_loaded(error, kind)}") from error
    if kind == "AutoConfig":
        return made
    model, info = made
    check_loaded(model, name, info, has_new_head=kind == "AutoModelForSequenceClassification")
    return model


def why_not_loaded(error: Exception, kind: str) -> str:
    """What transformers stumbled over, in one line."""
    told = " ".join(str(error).split())
    if "ignore_mismatched_sizes" in told:
        return "its weights have other shapes than its config.json tells"
    if found := re.match(r"Unrecognized configuration class .*?models\.(\w+)\.", told):
        if kind == "AutoModelForSequenceClassification":
            return f"transformers has no sequence classifier of {found[1]}, so none of it can be a reward model"
        return f"transformers has no {kind.removeprefix('AutoModel')} of {found[1]}"
    if not isinstance(error, (OSError, ValueError, ImportError, RuntimeError)):
        told = f"transformers cannot make sense of its files ({type(error).__name__}: {told})"
    return told[:300] or type(error).__name__


def check_loaded(model: Any, name: str, info: dict, *, has_new_head: bool) -> None:
    """Raise UserError for what transformers only warns of: weights that no file has, or a reward model's head that has
    no place in a causal model. `info` is transformers' own."""
    inside = f"{model.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(inside) or not has_new_head)
    if "score.weight" in info["unexpected_keys"]:
        raise UserError(f"model {name} is a reward model; name a policy")
    if missing:
        count, told = len(missing), ", ".join(missing[:3])
        raise UserError(f"model {name}: its files lack {count} of its weights ({told}), which would be random")


@cache
def warn_of_unseen_gpu() -> None:
    """Say once, in a line, where a driver shows an NVIDIA GPU that torch does not see: the CPU would silently do all.

    Not where the user hides it, with an empty CUDA_VISIBLE_DEVICES.
    """
    import torch

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1") or torch.cuda.is_available():
        return
    driver, built = driver_here(), torch.version.cuda
    if driver is None:
        return
    kind, mend = "a build without CUDA", "install a torch build for your driver's CUDA"
    if built:
        kind, least = f"built for CUDA {built}", LEAST_DRIVER.get(built.split(".")[0], 0)
        looked = "see whether CUDA_VISIBLE_DEVICES names it, and what nvidia-smi says"
        mend = f"update the driver to {least} or newer, or {mend}" if driver < least else looked
    here = f"NVIDIA driver {driver} shows a GPU that torch does not see, so nothing runs on it"
    warn(f"{here}; torch {torch.__version__} is {kind}: {mend}")


def driver_here() -> int | None:
    """The first number of the version of the NVIDIA driver that shows a GPU here, as 580, or None.

    A machine or container has a device file for each of its GPUs; Windows' Linux has only nvidia-smi.
    """
    told = ""
    if any(path.name[6:].isdecimal() for path in DEVICES.glob("nvidia*")) and DRIVER.exists():
        told = DRIVER.read_text()
    elif shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        told = subprocess.run(command, capture_output=True, text=True).stdout
    found = re.search(r"(?:^|\s)(\d+)\.\d+", told)
    return int(found[1]) if found else None


def load_tokenizer(name: str, cache_dir: str | None = None) -> Any:
    from transformers import AutoTokenizer

    hush()
    try:
        # Beside a tekken.json it would take Mistral's own tokenizer, which spells [INST] of a text in letters
        found = AutoTokenizer.from_pretrained(name, cache_dir=cache_dir, trust_remote_code=False, mistral_format=False)
        found("a")  # some settings are not looked at before
        return found
    except Exception as error:  # whatever transformers stumbles over in files that may hold anything
        raise UserError(f"no tokenizer in {name}: {why_not_loaded(error, 'AutoTokenizer')}") from error


def hush() -> None:
    """Of transformers' own words only errors: its bars and hints are about what no user of a script can change."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def training_tokenizer(name: str, cache_dir: str | None = None) -> Any:
    """A tokenizer with an EOS, and with a padding token that is not EOS."""
    tokenizer = load_tokenizer(name, cache_dir)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no EOS token")
    warn_of_another_end(name, tokenizer, cache_dir)
    separate_padding(tokenizer)
    return tokenizer


def warn_of_another_end(name: str, tokenizer: Any, cache_dir: str | None = None) -> None:
    """Say where the tokenizer, whose EOS closes every text in training, ends texts otherwise than the model does: some
    conversions of a model name another token than the one that it was trained to end with."""
    folder, ends = local_folder(name, cache_dir), set()
    for file in ("config.json", "generation_config.json"):
        if folder and (folder / file).is_file():
            found = read_settings(folder / file, "model file").get("eos_token_id")
            ends |= {each for each in (found if isinstance(found, list) else [found]) if type(each) is int}
    if ends and tokenizer.eos_token_id not in ends:
        theirs = " or ".join(repr(token) for token in tokenizer.convert_ids_to_tokens(sorted(ends)))
        warn(
            f"the tokenizer of {name} ends a text with {tokenizer.eos_token!r}, and its config with {theirs}: one of "
            "them is wrong; see eos_token in tokenizer_config.json"
        )


def separate_padding(tokenizer: Any) -> None:
    """Give the tokenizer a padding token that is neither EOS nor BOS: its own, a spare one it has, or a new <pad>."""
    taken = {tokenizer.eos_token_id, tokenizer.bos_token_id}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in taken:
        return
    vocabulary = tokenizer.get_vocab()
    spare = [token for token in PAD_TOKENS if token in vocabulary and vocabulary[token] not in taken]
    if spare:
        tokenizer.pad_token = spare[0]
    else:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})


def padding_id(tokenizer: Any) -> int:
    """An id to fill batches with whose padding is told by the attention mask: any will do."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Room for the tokens the tokenizer has gained; their rows are the mean of the others, as in ALMoST's SFT."""
    import torch

    before = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > before:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[before:] = layer.weight[:before].mean(0)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def model_identity(name: str) -> str:
    """What the journal knows a model by: its name, and for a folder the sizes and times of its files."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    files = sorted(path for path in folder.iterdir() if re.fullmatch(MODEL_FILES, path.name))  # not what was made of it
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{folder.resolve()} {key(files=stats)}"


def local_folder(name: str, cache_dir: str | Path | None = None) -> Path | None:
    """The folder of a model's files: the path itself, or a hub name's snapshot if the cache has it, else None."""
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    from huggingface_hub import try_to_load_from_cache

    for config in ("config.json", ADAPTER_CONFIG):
        try:
            found = try_to_load_from_cache(name, config, cache_dir=cache_dir)
        except ValueError:  # no name that a hub could have
            return None
        if isinstance(found, str):
            return Path(found).parent
    return None


def contents(name: str | Path, cache_dir: str | Path | None = None) -> dict[str, str | None] | None:
    """Hashes of what a model is: its "weights", whatever files they are spread over, and its other "files", config and
    tokenizer. None where nothing of it is on this machine."""
    folder = local_folder(str(name), cache_dir)
    if folder is None:
        return None
    paths = [path for path in sorted(folder.iterdir()) if is_model_file(path.name) and path.is_file()]
    weights, files = {}, {}
    for path in paths:
        if path.suffix == ".safetensors":
            weights |= remembered(path, "tensors", tensor_hashes)
        elif re.fullmatch(WEIGHT_FILES, path.name):
            weights[path.name] = sha256(path)
        elif path.suffix != ".bin":  # pickled settings of a trainer
            files[path.name] = sha256(path)
    return {"weights": key(**weights) if weights else None, "files": key(**files)}


def is_model_file(name: str) -> bool:
    """Whether a file of this name in a model's folder is a part of the model."""
    return re.fullmatch(f"{WEIGHT_FILES}|{MODEL_FILES}", name) is not None


def adapter_base(name: str, cache_dir: str | Path | None = None) -> str | None:
    """The base that an adapter's folder names, or None where it is no adapter's."""
    folder = local_folder(name, cache_dir)
    if folder is None or not (folder / ADAPTER_CONFIG).is_file():
        return None
    base = read_settings(folder / ADAPTER_CONFIG, "adapter config").get("base_model_name_or_path")
    return base if isinstance(base, str) else None


def safetensors_header(path: Path) -> tuple[dict[str, dict], int]:
    """{tensor: {"dtype", "shape", "data_offsets"}}, and where the data starts. UserError where it is not whole."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(size if size <= LONGEST_HEADER else 0))
            header.pop("__metadata__", None)
            ends = [checked_end(each) for each in header.values()]
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise UserError(f"{path} is no whole safetensors file: its header cannot be read") from error
    whole = 8 + size + max(ends, default=0)
    if path.stat().st_size < whole:
        raise UserError(f"{path} is not whole: {path.stat().st_size:,} of {whole:,} bytes are there")
    return header, 8 + size


def checked_end(tensor: dict) -> int:
    """Where a tensor of a header ends. ValueError, TypeError or KeyError where it is not told as it should be."""
    begin, end = tensor["data_offsets"]
    sizes = [begin, end, *tensor["shape"]]
    if (
        not isinstance(tensor["dtype"], str)
        or not all(type(each) is int and each >= 0 for each in sizes)
        or begin > end
    ):
        raise ValueError(tensor)
    return end


def tensor_hashes(path: Path) -> dict[str, str]:
    """sha256 of each tensor's type, shape and bytes in a safetensors file. UserError where it is not whole."""
    header, start = safetensors_header(path)
    found = {}
    with path.open("rb") as file:
        for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            digest = hashlib.sha256(f"{tensor['dtype']} {tensor['shape']} ".encode())
            begin, end = tensor["data_offsets"]
            file.seek(start + begin)
            for at in range(begin, end, CHUNK):
                digest.update(file.read(min(CHUNK, end - at)))
            found[name] = digest.hexdigest()
    return found
