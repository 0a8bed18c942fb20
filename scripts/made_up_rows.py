"""Rows of made-up words for every trainer and for static HHH, and models without sense to try them on (check_gpu.sh).

    python scripts/made_up_rows.py outputs/made_up --num_rows 256 --models llama mistral

Writes into the folder, each of the same texts of 5 to --words words:

    pairs.json    {"prompt", "chosen", "rejected"}
    sft.json      {"input", "output"}
    hhh.json      {"chosen", "rejected", "type"}, both sides Human/Assistant dialogues
    judged.json   {"instruction", "output", "judgment"}, of which every fifth is satisfactory, null

and for each of --models a folder of its name with random weights and a tokenizer whose tokens are bytes: four layers of
width 512, `mistral` with a window of 128 tokens, and `7b` in Llama 2 7B's shape, 13.5 GB in bf16.
"""

from __future__ import annotations

import random
from argparse import Namespace
from pathlib import Path

from alignment.command_line import ArgumentParser, number, run
from alignment.outputs import writing
from alignment.records import json_list, write_whole

WORDS = ("alpha", "beta", "gamma", "delta")
SMALL = dict(hidden_size=512, intermediate_size=1024, num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=4)
MODELS = {
    "llama": ("llama", SMALL),
    "mistral": ("mistral", SMALL | {"sliding_window": 128}),
    "7b": ("llama", {"vocab_size": 32_000, "dtype": "bfloat16"}),  # its other defaults are Llama 7B's
}


def parse_args(argv: list[str] | None = None) -> Namespace:
    parser = ArgumentParser(__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="where the four files go")
    parser.add_argument("--num_rows", type=number(int, 1), default=256, help="rows of each; default 256")
    parser.add_argument("--words", type=number(int, 5), default=200, help="of the longest text; default 200")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[], help="models to make; default none")
    parser.add_argument("--seed", type=int, default=0, help="of words and weights; default 0")
    return parser.parse_args(argv)


def files(num_rows: int, seed: int, words: int = 200) -> dict[str, list[dict]]:
    """The rows of each file by its name."""
    draw = random.Random(seed)

    def text() -> str:
        return " ".join(draw.choices(WORDS, k=draw.randint(5, words)))

    pairs = [{"prompt": text(), "chosen": text() + "!", "rejected": text() + "?"} for _ in range(num_rows)]
    judgments = [text() if row % 5 else None for row in range(num_rows)]
    return {
        "pairs": pairs,
        "sft": [{"input": pair["prompt"], "output": pair["chosen"]} for pair in pairs],
        "hhh": [
            {side: f"\n\nHuman: {pair['prompt']}\n\nAssistant: {pair[side]}" for side in ("chosen", "rejected")}
            | {"type": "other"}
            for pair in pairs
        ],
        "judged": [
            {"instruction": pair["prompt"], "output": pair["chosen"], "judgment": judgment}
            for pair, judgment in zip(pairs, judgments, strict=True)
        ],
    }


def make_tokenizer():
    """A byte is a token; <s> opens a text, </s> ends one, and <pad> is neither."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["<s>", "</s>", "<pad>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    backend = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", model_max_length=2048
    )


def make_model(name: str, folder: Path, seed: int) -> None:
    """A model of MODELS and its tokenizer into the folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer, (kind, shape) = make_tokenizer(), MODELS[name]
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    shape = {"vocab_size": len(tokenizer), "dtype": "float32"} | shape
    torch.manual_seed(seed)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        config = AutoConfig.for_model(kind, max_position_embeddings=2048, **ids, **shape)
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, shape["dtype"]))
    with writing(folder):
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def main(args: Namespace) -> None:
    made = files(args.num_rows, args.seed, args.words)
    for name, rows in made.items():
        write_whole(args.folder / f"{name}.json", json_list(rows))
    for name in args.models:
        make_model(name, args.folder / name, args.seed)
    print(f"{args.num_rows} rows each: {', '.join(f'{name}.json' for name in made)} in {args.folder}")


if __name__ == "__main__":
    run(parse_args, main)
