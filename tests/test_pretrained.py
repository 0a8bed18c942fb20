"""Models and tokenizers: what is found where, and that no folder's own code is run."""

import json
import os
import subprocess
import sys

import pytest
import torch

from alignment import pretrained
from alignment.command_line import REPOSITORY, UserError
from alignment.pretrained import load_pretrained, load_tokenizer, local_folder, training_tokenizer


def test_a_tokenizer_is_the_folders_also_beside_mistrals_own(model_folder):
    """A tekken.json in a Mistral's folder is of another tokenizer, which knows no special token in a text."""
    expected = load_tokenizer(str(model_folder))("[INST] Hi [/INST]")["input_ids"]
    config = json.loads((model_folder / "config.json").read_text()) | {"model_type": "mistral"}
    (model_folder / "config.json").write_text(json.dumps(config))
    (model_folder / "tekken.json").write_text(json.dumps({"config": {"version": "v3"}}))
    assert load_tokenizer(str(model_folder))("[INST] Hi [/INST]")["input_ids"] == expected


@pytest.mark.parametrize("ends, is_told", [(2, False), ([1, 2], False), (None, False), (5, True), ([5, 1], True)])
def test_an_end_that_only_the_tokenizer_knows_is_told(model_folder, capfd, ends, is_told):
    """The toy's </s> is 2, <s> is 1 and <|im_end|> 5; a generation config adds to the config's ends."""
    (model_folder / "generation_config.json").unlink()
    config = json.loads((model_folder / "config.json").read_text()) | {"eos_token_id": ends}
    (model_folder / "config.json").write_text(json.dumps(config))
    training_tokenizer(str(model_folder))
    told = capfd.readouterr().err
    assert ("ends a text with '</s>'" in told and "<|im_end|>" in told) if is_told else told == ""
    (model_folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 3]}))
    training_tokenizer(str(model_folder))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("model_type", ["never_heard_of", "llama"])
def test_code_that_a_folder_brings_is_not_run(tmp_path, model_folder, model_type, monkeypatch):
    """Not even where somebody says y: a model of a known kind is loaded without it, any other is one line."""
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    ran = tmp_path / "ran"
    (model_folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w').close()\nclass C: pass\nclass M: pass\nclass T: pass\n"
    )
    for name, entries in (
        ("config.json", {"AutoConfig": "own.C", "AutoModelForCausalLM": "own.M"}),
        ("tokenizer_config.json", {"AutoTokenizer": ["own.T", None]}),
    ):
        config = json.loads((model_folder / name).read_text()) | {"auto_map": entries}
        config |= {"model_type": model_type} if name == "config.json" else {}
        (model_folder / name).write_text(json.dumps(config))
    kinds = ("AutoConfig", "AutoModelForCausalLM")
    if model_type == "llama":
        assert all(load_pretrained(kind, str(model_folder)) is not None for kind in kinds)
    else:
        for kind in kinds:
            with pytest.raises(UserError) as error:
                load_pretrained(kind, str(model_folder))
            assert "\n" not in str(error.value)
    try:
        load_tokenizer(str(model_folder))
    except UserError as error:
        assert "\n" not in str(error)
    assert not ran.exists()


def test_a_hub_name_is_found_in_its_cache(tmp_path, model_folder):
    """As the hub's client lays out a cache: models--owner--name/snapshots/<revision>, and refs/main that names it."""
    assert local_folder(str(model_folder)) == model_folder
    cache = tmp_path / "cache"
    snapshot = cache / "models--owner--tiny" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    model_folder.rename(snapshot)
    (cache / "models--owner--tiny" / "refs").mkdir()
    (cache / "models--owner--tiny" / "refs" / "main").write_text("abc")
    assert local_folder("owner/tiny", cache) == snapshot
    assert local_folder("owner/tiny") is None and local_folder("owner/other", cache) is None
    assert local_folder("writer-7b?quality=0.4") is None
    assert len(load_tokenizer("owner/tiny", cache)) > 200


# A GPU that torch does not see

OPEN_MODULE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}.104.05  Release Build\nGCC version: 12.2.0\n"


@pytest.fixture
def gpu(tmp_path, monkeypatch):
    """A machine whose driver shows a GPU: by its device file, or, as under Windows, by nvidia-smi alone."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(pretrained, "DEVICES", tmp_path)
    monkeypatch.setattr(pretrained, "DRIVER", tmp_path / "version")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    pretrained.warn_of_unseen_gpu.cache_clear()

    def shown(driver, built, by="a device file"):
        monkeypatch.setattr(torch.version, "cuda", built)
        if by == "a device file":
            (tmp_path / "nvidia0").touch()
            (tmp_path / "version").write_text(OPEN_MODULE.format(driver))
        else:
            (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\necho {driver}.54\n")
            (tmp_path / "nvidia-smi").chmod(0o755)

    yield shown
    pretrained.warn_of_unseen_gpu.cache_clear()


@pytest.mark.parametrize("by", ["a device file", "nvidia-smi"])
@pytest.mark.parametrize(
    ("driver", "built", "said"),
    [
        (535, "13.0", "is built for CUDA 13.0: update the driver to 580 or newer, or install a torch build for your"),
        (535, None, "is a build without CUDA: install a torch build for your driver's CUDA"),
        (580, "13.0", "is built for CUDA 13.0: see whether CUDA_VISIBLE_DEVICES names it, and what nvidia-smi says"),
    ],
)
def test_a_gpu_that_torch_does_not_see_is_one_line(gpu, model_folder, capsys, by, driver, built, said):
    gpu(driver, built, by)
    capsys.readouterr()
    for _ in range(2):
        load_pretrained("AutoModelForCausalLM", str(model_folder))
    said_once = capsys.readouterr().err
    assert said_once.startswith(f"warning: NVIDIA driver {driver} shows a GPU that torch does not see")
    assert said in said_once and said_once.count("\n") == 1


@pytest.mark.parametrize("why", ["hidden", "seen", "none", "another rank", "control device"])
def test_where_no_gpu_is_missed_nothing_is_said(gpu, monkeypatch, tmp_path, capsys, why):
    if why != "none":
        gpu(535, "13.0")
    if why == "hidden":
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    elif why == "seen":
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    elif why == "another rank":
        monkeypatch.setenv("RANK", "1")
    elif why == "control device":  # a container that was given none of its machine's GPUs
        (tmp_path / "nvidia0").rename(tmp_path / "nvidiactl")
    pretrained.warn_of_unseen_gpu()
    assert capsys.readouterr() == ("", "")


def test_what_torch_itself_says_of_an_old_driver_is_not_said_too(tmp_path):
    program = tmp_path / "script.py"
    program.write_text(
        "import warnings\nfrom alignment.command_line import run\n"
        "run(list, lambda _: warnings.warn('CUDA initialization: The NVIDIA driver on your system is too old'))\n"
    )
    env = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, program], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_weights_that_would_be_random_are_refused(tmp_path, tokenizer):
    """transformers warns, and trains or speaks on. A new head on a causal model alone is meant to be random."""
    from conftest import make_llama

    for name, tied in (("causal", False), ("tied", True)):
        make_llama(len(tokenizer), tie_word_embeddings=tied).save_pretrained(tmp_path / name)
        assert load_pretrained("AutoModelForCausalLM", str(tmp_path / name)).num_parameters()
        reward = load_pretrained("AutoModelForSequenceClassification", str(tmp_path / name), num_labels=1)
        reward.save_pretrained(tmp_path / f"{name}-reward")
        assert load_pretrained("AutoModelForSequenceClassification", str(tmp_path / f"{name}-reward"), num_labels=1)
        with pytest.raises(UserError, match="is a reward model; name a policy"):
            load_pretrained("AutoModelForCausalLM", str(tmp_path / f"{name}-reward"))
    config = json.loads((tmp_path / "causal" / "config.json").read_text())
    (tmp_path / "causal" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    for kind in ("AutoModelForCausalLM", "AutoModelForSequenceClassification"):
        with pytest.raises(UserError, match="its files lack 9 of its weights .model.layers.2..*which would be random"):
            load_pretrained(kind, str(tmp_path / "causal"))
