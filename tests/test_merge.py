"""merge.py on a tiny Llama with a LoRA adapter whose B is not zero."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

import merge
from alignment.adapters import check_base, write_base_card
from alignment.command_line import UserError
from alignment.pretrained import contents, fit_embeddings

pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def adapter(tmp_path, model_folder):
    return make_adapter(tmp_path / "adapter", model_folder)


def make_adapter(folder, base):
    """An adapter that moves the base's logits, with its base card."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["gate_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).save_pretrained(folder)
    write_base_card(folder, str(base), None)
    return folder


def run_merge(base, adapter, output):
    words = ["--base_model_name_or_path", base, "--peft_model_path", adapter, "--output_dir", output]
    merge.main(merge.parse_args([str(word) for word in words]))


def logits(folder):
    return merge.probe_logits(AutoModelForCausalLM.from_pretrained(folder))


def test_merged_checkpoint_is_plain_and_differs_from_the_base(tmp_path, model_folder, adapter, capsys):
    run_merge(model_folder, adapter, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(model_folder)
    from peft import PeftModel

    wanted = merge.probe_logits(PeftModel.from_pretrained(base, adapter))
    torch.testing.assert_close(logits(tmp_path / "merged"), wanted, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(model_folder), wanted, atol=1e-2)
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= names and "adapter_config.json" not in names
    assert AutoTokenizer.from_pretrained(tmp_path / "merged")("ab")["input_ids"]


def test_the_merged_model_is_asked_in_the_adapter_s_template(tmp_path, model_folder, adapter):
    """An adapter's folder names its template, as its training wrote it, and the base's may be another."""
    (adapter / "config.json").write_text(json.dumps({"prompt_template": "mistral"}))
    run_merge(model_folder, adapter, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["prompt_template"] == "mistral"


def test_twice_is_harmless(tmp_path, model_folder, adapter, capsys):
    run_merge(model_folder, adapter, tmp_path / "merged")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "merged").iterdir()}
    run_merge(model_folder, adapter, tmp_path / "merged")
    assert "is already made of this, finished; nothing to do" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "merged").iterdir()}


def test_output_of_something_else_is_refused_and_left(tmp_path, model_folder, adapter):
    before = contents(model_folder)
    with pytest.raises(UserError, match="is the model that this run reads"):
        run_merge(model_folder, adapter, model_folder)
    assert contents(model_folder) == before


def test_beyond_tolerance_nothing_is_left(tmp_path, model_folder, adapter, monkeypatch):
    """fp32 rounding alone is more than a tolerance of 0, so the check has something to find."""
    monkeypatch.setitem(merge.TOLERANCE, "float32", 0.0)
    with pytest.raises(UserError, match="not saved"):
        run_merge(model_folder, adapter, tmp_path / "merged")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "tiny"]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ([], "is no whole checkpoint: it has no trainer_state.json"),
        (["trainer_state.json", "model.safetensors.index.json"], "is no whole checkpoint: it has no weights"),
        (
            ["trainer_state.json", "adapter_model.bin", "adapter_model.safetensors"],
            "holds an adapter, whole: give it as",
        ),
        (["trainer_state.json", "pytorch_model.bin"], "has no shards: its model is loaded as it is"),
        (["trainer_state.json", "pytorch_model_fsdp_0/__0_0.distcp"], "pytorch_model_fsdp_0/.metadata, .* is missing"),
    ],
)
def test_a_checkpoint_without_shards_is_one_line(tmp_path, files, said):
    """What is whole and sharded is put together in tests/test_training.py."""
    place = tmp_path / "checkpoint-2"
    for name in files:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(
            b'{"global_step": 2}' if name.endswith(".json") else (2).to_bytes(8, "little") + b"{}"
        )
    words = ["--checkpoint_path", str(place), "--output_dir", str(tmp_path / "merged")]
    with pytest.raises(UserError, match=said) as error:
        merge.main(merge.parse_args(words))
    assert "\n" not in str(error.value) and not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    "given", [[], ["--peft_model_path", "a"], ["--checkpoint_path", "c", "--peft_model_path", "a"]]
)
def test_either_an_adapter_and_its_base_or_a_checkpoint(given, capsys):
    with pytest.raises(SystemExit) as exit:
        merge.parse_args(["--output_dir", "out", *given])
    assert exit.value.code == 2 and "or --checkpoint_path alone" in capsys.readouterr().err


def test_relative_error():
    """Wanted (3, 4), found (3, 5): differences 0 and 1, so sqrt(1 / 25)."""
    assert merge.relative_error(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert merge.relative_error(torch.tensor([float("nan")]), torch.tensor([1.0])) == float("inf")


def changed_copy(model_folder, output, layer):
    """The same model but for one weight."""
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.get_submodule(layer).weight[0, 0] += 0.01
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(output)
    return output


def test_another_base_is_refused_whatever_it_is_called(tmp_path, model_folder, adapter):
    other = changed_copy(model_folder, tmp_path / "other" / "tiny", "model.layers.1.mlp.up_proj")
    with pytest.raises(UserError, match="was trained on .* not the same"):
        run_merge(other, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_the_same_base_elsewhere_is_accepted(tmp_path, model_folder, adapter):
    model_folder.rename(tmp_path / "moved")
    assert check_base(adapter, str(tmp_path / "moved")) is None


def test_adapter_without_a_base_card_goes_by_name(tmp_path, model_folder, adapter):
    (adapter / "base_model.json").unlink()
    assert check_base(adapter, str(model_folder)) is None
    with pytest.raises(UserError, match="was trained on .*tiny, not on other"):
        check_base(adapter, "other")


def test_adapter_that_does_not_fit(tmp_path, model_folder, adapter):
    config = json.loads((model_folder / "config.json").read_text()) | {"intermediate_size": 48}
    from transformers import LlamaConfig, LlamaForCausalLM

    LlamaForCausalLM(LlamaConfig(**config)).save_pretrained(model_folder)
    (adapter / "base_model.json").unlink()
    with pytest.raises(UserError, match="does not fit the base"):
        run_merge(model_folder, adapter, tmp_path / "merged")


def test_files_that_are_not_whole(tmp_path, model_folder, adapter):
    for path in (adapter / "adapter_model.safetensors", model_folder / "model.safetensors"):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        with pytest.raises(UserError, match=f"{path.name} is not whole"):
            run_merge(model_folder, adapter, tmp_path / "merged")
        path.write_bytes(whole)
        assert not (tmp_path / "merged").exists()


def test_a_padding_token_that_training_added_has_its_row(tmp_path, model_folder):
    """The adapter's tokenizer has one token more than the base: the merged model has an embedding for it."""
    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), AutoModelForCausalLM.from_pretrained(model_folder)
    tokenizer.add_special_tokens({"pad_token": "<filler>"})
    fit_embeddings(model, tokenizer)
    adapter = tmp_path / "adapter"
    config = LoraConfig(r=4, target_modules=["up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, config).save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    write_base_card(adapter, str(model_folder), None)
    run_merge(model_folder, adapter, tmp_path / "merged")
    merged, saved = (kind.from_pretrained(tmp_path / "merged") for kind in (AutoModelForCausalLM, AutoTokenizer))
    batch = saved(["a", "ab"], return_tensors="pt", padding=True)
    assert merged(**batch).logits.shape[-1] == len(saved) == merged.config.pad_token_id + 1


def test_a_reward_models_adapter_is_not_merged(tmp_path, model_folder, adapter):
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"task_type": "SEQ_CLS"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="is a reward model's, which is loaded as it is"):
        run_merge(model_folder, adapter, tmp_path / "merged")


def test_no_adapter(tmp_path, model_folder):
    with pytest.raises(UserError, match="no adapter_config.json"):
        run_merge(model_folder, model_folder, tmp_path / "merged")
