"""Models and tokenizers: what is found where, and that no folder's own code is run."""

import json

import pytest

from alignment.command_line import UserError
from alignment.pretrained import load_pretrained, load_tokenizer, local_folder


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
