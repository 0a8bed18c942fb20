"""What several test files build on: toy tokenizers and a tiny Llama, made here, from nothing but their packages."""

import os
import tempfile

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ROOM = tempfile.TemporaryDirectory(prefix="tests-", ignore_cleanup_errors=True)  # gone at the end, with what is in it
os.environ["TMPDIR"] = ROOM.name  # where torchrun and vLLM, started by a test, leave their folders and sockets
os.environ["XDG_CACHE_HOME"] = ROOM.name + "/cache"  # nothing is remembered from one run to the next
VISIBLE = os.environ.get("CUDA_VISIBLE_DEVICES")
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported: tolerances and two ranks are for CPUs


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of two workers (scripts/test.sh) one runs the slow tests first, as two vLLM at once take each other's memory and
    cores; the rest goes by files, which share what they build."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)
    for item in items:
        group = "slow" if item.get_closest_marker("slow") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_gpus(**more: str) -> dict[str, str]:
    """The environment for a process that runs a real engine: this one's, with the GPUs that are hidden from it."""
    hidden = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    return hidden | ({} if VISIBLE is None else {"CUDA_VISIBLE_DEVICES": VISIBLE}) | more


def make_tokenizer(kind: str = "bytes", *, bos: bool = False, pad: str | None = "<pad>"):
    """A tokenizer without merges. `bytes`: byte-level, as GPT-2's and Llama 3's. `pieces`: opens a text with ▁, as
    SentencePiece's of Llama 2. `bos` opens a text with <s>; pad=None leaves it without a pad token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    specials = ["<unk>", "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
    if kind == "bytes":
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    else:
        alphabet = ["▁", "\n", *map(chr, range(33, 127))]
    vocabulary = {token: number for number, token in enumerate(specials + alphabet)}
    backend = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    if kind == "bytes":
        backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    else:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)])
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token=pad,
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def make_llama(vocab_size: int, **changes):
    """A Llama of two layers and width 32, seeded, in fp32 and eval mode."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocab_size, **{**config, **changes})).eval()


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def llama(tokenizer):
    return make_llama(len(tokenizer))


@pytest.fixture
def model_folder(tmp_path, tokenizer, llama):
    """A folder as from_pretrained wants it: the tiny Llama and the byte tokenizer."""
    folder = tmp_path / "tiny"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def wide_folder(tmp_path, tokenizer):
    """The same, of width 64, which 4-bit kernels need."""
    folder = tmp_path / "wide"
    make_llama(len(tokenizer), hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def quick(monkeypatch):
    """What was saved is loaded again in this process, which a fresh one repeats only in the tests that are about it."""
    from alignment.training import checking, saving

    monkeypatch.setattr(saving, "ask_fresh_process", lambda folder: checking.verify(str(folder)))
