"""README.md of a saved folder: what a reader of a hub needs, and nothing of the machine that made it."""

import json
import shlex
import socket
from types import SimpleNamespace

import pytest

import finetune_unlikelihood
import merge
import train
from alignment.model_cards import command_of, licence_of
from alignment.training.saving import older, older_tokenizer


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model\n", "apache-2.0"),
        ('---\nlanguage: en\nlicense: "mit"\n---\n', "mit"),
        ("---\nlanguage: en\n---\nlicense: none of this\n", None),
        ("# license: mit\n", None),
        ("---\nlicense:\n- mit\n---\n", None),
        ("", None),
    ],
)
def test_the_licence_is_the_base_s(tmp_path, card, licence):
    (tmp_path / "README.md").write_text(card)
    assert licence_of(str(tmp_path)) == licence
    assert licence_of(str(tmp_path / "nowhere")) is None


def test_the_command_is_the_one_that_was_given(monkeypatch):
    given = "--data_path=/home/me/a.json --model ~/x/y --output_dir outputs/rm --lora_r 0 --prompt".split()
    monkeypatch.setattr("sys.argv", ["/home/me/train.py", *given, "a b"])
    wanted = "train.py --data_path=a.json --model y --output_dir outputs/rm --lora_r 0 --prompt 'a b'"
    assert command_of(SimpleNamespace(script="train.py")) == f"python {wanted}"
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert command_of(SimpleNamespace(script="train.py")) == f"torchrun --nproc_per_node=2 {wanted}"


@pytest.fixture
def made(quick, tmp_path, model_folder):
    """A reward model, CUT's adapter and what it is merged into, of one base with a licence; {folder: script}."""
    (model_folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# tiny\n")
    pairs = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d", "chosen": "e", "rejected": "f"}]
    judged = [{"instruction": "a", "input": "", "output": "b", "judgment": each} for each in (None, "No.")]
    for name, rows in (("pairs", pairs), ("judged", judged)):
        (tmp_path / f"{name}.json").write_text(json.dumps(rows))
    made = f"--data_path {tmp_path}/pairs.json --output_dir {tmp_path}/rm --max_steps 1 --template alpaca"
    run(train, f"--objective reward --model_name_or_path {model_folder} {made}")
    made = f"--data_path {tmp_path}/judged.json --output_dir {tmp_path}/cut --batch_size 2 --lora_r 2"
    run(finetune_unlikelihood, f"--base_model {model_folder} {made}")
    made = f"--peft_model_path {tmp_path}/cut --output_dir {tmp_path}/merged"
    run(merge, f"--base_model_name_or_path {model_folder} {made}")
    return {tmp_path / "rm": train, tmp_path / "cut": finetune_unlikelihood, tmp_path / "merged": merge}


def run(script, words):
    script.main(script.parse_args(words.split()))


def test_every_folder_has_its_card_and_is_for_transformers_4_too(made, tmp_path):
    """peft's own card has blanks to fill in; the command on ours is one that its script takes."""
    for folder, script in made.items():
        card = (folder / "README.md").read_text()
        assert card.startswith("---\nlibrary_name: ") and f"\n# {folder.name}\n" in card
        assert "[More Information Needed]" not in card and "\nlicense: apache-2.0\n" in card
        assert str(tmp_path) not in card and socket.gethostname() not in card
        (command,) = (line.split(maxsplit=2)[2] for line in card.splitlines() if line.startswith("    python "))
        assert script.parse_args(shlex.split(command))
        assert ("loss: " in card) == (script is not merge) and "template `alpaca`" in card
        config, tokenizer = (
            json.loads((folder / f"{name}.json").read_text()) for name in ("config", "tokenizer_config")
        )
        assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000
        assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "pipeline_tag: text-classification\n" in (tmp_path / "rm" / "README.md").read_text()
    assert "library_name: peft\n" in (tmp_path / "cut" / "README.md").read_text()


# What transformers 4 reads


def test_older():
    """The names of 4.57's own configs: Llama 3.1, Gemma 3, Pythia and Qwen 3's mixture."""
    llama3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0}
    found = older({"rope_parameters": llama3})
    assert found["rope_theta"] == 5e5 and found["rope_scaling"] == {"rope_type": "llama3", "factor": 8.0}
    local, whole = (
        {"rope_type": "default", "rope_theta": 1e4},
        {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
    )
    found = older({"rope_parameters": {"sliding_attention": local, "full_attention": whole}})
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    pythia = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.25}
    found = older({"model_type": "gpt_neox", "rope_parameters": pythia})
    assert (found["rotary_emb_base"], found["rotary_pct"], "rope_theta" in found) == (1e4, 0.25, False)
    assert older({"num_local_experts": 8})["num_experts"] == 8
    assert older({"n_embd": 32}) == {"n_embd": 32}  # learned positions


def test_older_tokenizer():
    theirs = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<a>"], "is_local": True}
    ours = {"tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<a>"]}
    assert older_tokenizer(theirs) == ours
    named = {"tokenizer_class": "LlamaTokenizer", "extra_special_tokens": {"image_token": "<a>"}}
    assert older_tokenizer(named) == named
