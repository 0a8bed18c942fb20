"""Models and tokenizers from a folder or the hub. What cannot be loaded is said in one line: UserError.

    check_model(name)                                            # before anything is imported
    tokenizer = load_tokenizer(name)                             # as it is
    tokenizer = training_tokenizer(name)                         # with a padding token of its own
    model = load_pretrained("AutoModelForCausalLM", name, dtype="auto")

Imports neither torch nor transformers before one of them is asked for.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from alignment.command_line import UserError
from alignment.journal import key

PAD_TOKENS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<|endoftext|>", "<unk>")


def check_model(name: str) -> None:
    """Raise UserError where `name` is meant as a folder and is none that holds a model. Hub names pass."""
    path = Path(name).expanduser()
    if path.exists():
        if not (path / "config.json").is_file():
            raise UserError(f"model {name} has no config.json: it is no model's folder")
        return
    is_hub_name = re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name) and not name.startswith(".")
    if not is_hub_name or ("/" in name and path.parent.is_dir()):
        raise UserError(f"model {name} does not exist")


def load_pretrained(kind: str, name: str, **settings: Any) -> Any:
    """What transformers' Auto class `kind` makes of `name`: a model, or its config."""
    import transformers
    from safetensors import SafetensorError

    try:
        return getattr(transformers, kind).from_pretrained(name, **settings)
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model {name}: {first_line(error)}") from error


def load_tokenizer(name: str, cache_dir: str | None = None) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(name, cache_dir=cache_dir)
    except (OSError, ValueError, KeyError, AttributeError, ImportError) as error:
        raise UserError(f"no tokenizer in {name}: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def training_tokenizer(name: str, cache_dir: str | None = None) -> Any:
    """A tokenizer with an EOS, and with a padding token that is not EOS."""
    tokenizer = load_tokenizer(name, cache_dir)
    if tokenizer.eos_token_id is None:
        raise UserError(f"the tokenizer of {name} has no EOS token")
    separate_padding(tokenizer)
    return tokenizer


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


def fit_embeddings(model: Any, tokenizer: Any) -> None:
    """Room for a token the tokenizer has gained; its row is the mean of the others, as in ALMoST's SFT."""
    import torch

    if len(tokenizer) > model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                if layer is not None:
                    layer.weight[-1] = layer.weight[:-1].mean(0)
    model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    model.config.pad_token_id = tokenizer.pad_token_id


def model_identity(name: str) -> str:
    """The model's name, and for a folder the sizes and times of its files: another model there is another identity."""
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return name
    parts = r".*\.(safetensors|bin|model|jinja)|(.*config|.*token.*|vocab)\.json|merges\.txt"
    files = sorted(path for path in folder.iterdir() if re.fullmatch(parts, path.name))  # not what was made of it
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"{folder.resolve()} {key(files=stats)}"
