"""Folders of models that may hold anything: each is one line that names it, or works. Never a traceback, never a run
without end."""

import json

import pytest
from conftest import CHATML, make_llama, make_tokenizer

from alignment.adapters import add_lora, check_base, with_adapter, write_base_card
from alignment.command_line import UserError
from alignment.pretrained import (
    adapter_base,
    check_model,
    contents,
    load_pretrained,
    load_tokenizer,
    safetensors_header,
)
from alignment.templates import load_template

DEEP = "[" * 100_000
JSONS = {
    "empty": "",
    "blank": "  \n",
    "half": '{"model_type": "lla',
    "list": "[]",
    "text": '"llama"',
    "number": "7",
    "null": "null",
    "deep": DEEP,
    "digits": '{"a": ' + "7" * 6000 + "}",
    "bytes": b"\xff\xfe\x00{",
    "surrogate": '{"model_type": "\\ud800"}',
    "none of its names": "{}",
}
CONFIGS = {
    "type is a number": {"model_type": 7},
    "type is a list": {"model_type": ["llama"]},
    "type is unknown": {"model_type": "never_heard_of"},
    "width is a text": {"hidden_size": "wide"},
    "width is 0": {"hidden_size": 0},
    "width is negative": {"hidden_size": -32},
    "width is null": {"hidden_size": None},
    "width does not divide": {"num_attention_heads": 5},
    "layers without end": {"num_hidden_layers": 10**12},
    "layers are a text": {"num_hidden_layers": "two"},
    "more layers than weights": {"num_hidden_layers": 3},
    "words are a list": {"vocab_size": [1, 2]},
    "more words than weights": {"vocab_size": 10**6},
    "rope is a text": {"rope_parameters": "default"},
    "rope is unknown": {"rope_parameters": {"rope_type": "spiral", "rope_theta": 1e4}},
    "activation is unknown": {"hidden_act": "never_heard_of"},
    "dtype is unknown": {"dtype": "float7"},
    "labels are a number": {"id2label": 3},
    "quantised by nobody": {"quantization_config": {"quant_method": "never_heard_of"}},
    "quantised by a text": {"quantization_config": "yes"},
    "layer kinds are a text": {"layer_types": "full_attention"},
}
TEMPLATES = {
    "syntax": "{% for m in messages %}",
    "unknown tag": "{% never_heard_of %}",
    "raises": "{{ raise_exception('no') }}",
    "undefined": "{{ messages[0]['content']['a']['b'] }}",
    "divides by zero": "{{ 1 / 0 }}",
    "adds a number": "{{ messages + 1 }}",
    "calls a text": "{{ 'a'() }}",
    "range too large": "{% for i in range(10**9) %}a{% endfor %}",
    "loops in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "gigabytes": "{{ 'a' * 10**10 }}",
    "gigabytes in a reply": "{% generation %}{{ 'a' * 10**10 }}{% endgeneration %}",
    "a book": "{% for i in range(99999) %}a very long text of nothing at all{% endfor %}",
    "padded": "{{ '%1000000000d' % 1 }}",
    "calls itself": "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    "reaches for python": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
}
TOKENIZERS = {
    "model is unknown": {"model": {"type": "never_heard_of"}},
    "no model": {"model": None},
    "vocabulary is a list": {"model": {"type": "BPE", "vocab": [], "merges": []}},
    "merges are numbers": {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [1, 2]}},
    "ids are texts": {"model": {"type": "BPE", "vocab": {"a": "b"}, "merges": []}},
    "added tokens are a text": {"added_tokens": "many"},
    "a pattern without end": {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated"}},
}
SETTINGS = {
    "class is unknown": {"tokenizer_class": "NeverHeardOf"},
    "class is a number": {"tokenizer_class": 7},
    "end is a number": {"eos_token": 2},
    "end is a list": {"eos_token": ["</s>"]},
    "length is a text": {"model_max_length": "long"},
    "specials are a text": {"extra_special_tokens": "many"},
    "template is a number": {"chat_template": 7},
    "template is a list of numbers": {"chat_template": [1, 2]},
    "templates without a default": {"chat_template": [{"name": "tools", "template": "a"}]},
    "decoder is a list": {"added_tokens_decoder": [1]},
}


ADAPTERS = {
    "kind is unknown": {"peft_type": "NEVER_HEARD_OF"},
    "rank is a text": {"r": "two"},
    "rank is 0": {"r": 0},
    "targets are a number": {"target_modules": 7},
    "targets are nothing's": {"target_modules": ["c_fc"]},
    "base is a number": {"base_model_name_or_path": 7},
    "patterns are a list": {"rank_pattern": [1]},
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    tokenizer = make_tokenizer()
    make_llama(len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whole_adapter(whole, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    base = load_pretrained("AutoModelForCausalLM", str(whole))
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "targets": ["q_proj"]}
    add_lora(base, task_type="CAUSAL_LM", **lora).save_pretrained(folder)
    write_base_card(folder, str(whole), None)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    """A copy of the whole folder, to be spoilt; its large files are links."""
    return linked(whole, tmp_path / "model")


@pytest.fixture
def adapter(whole_adapter, tmp_path):
    return linked(whole_adapter, tmp_path / "adapter")


def linked(whole, made):
    made.mkdir()
    for path in whole.iterdir():
        (made / path.name).symlink_to(path)
    return made


def put(path, content):
    path.unlink(missing_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def change(path, **changes):
    put(path, json.dumps(json.loads(path.read_text()) | changes))


def use(folder):
    """What a script does with a model's folder, from the first look to the first prompt."""
    check_model(str(folder))
    contents(folder)
    load_pretrained("AutoConfig", str(folder))
    tokenizer = load_tokenizer(str(folder))
    load_template("chat", tokenizer).prompt_ids([{"prompt": "a"}])
    load_pretrained("AutoModelForCausalLM", str(folder))


def use_adapter(folder, base):
    """What merge.py does with an adapter's folder."""
    check_base(folder, str(base))
    adapter_base(str(folder))
    with_adapter(load_pretrained("AutoModelForCausalLM", str(base)), folder)


def one_line(folder, base=None, *, works=False):
    """Using it is a line that says where, or where `works`, also nothing at all."""
    try:
        use_adapter(folder, base) if base else use(folder)
    except UserError as error:
        assert 10 < len(str(error)) < 600 and "\n" not in str(error)
    else:
        assert works


def test_the_folder_that_is_spoilt_below_works(folder):
    use(folder)


@pytest.mark.parametrize("content", JSONS)
@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_json_that_is_none_of_it(folder, name, content):
    put(folder / name, JSONS[content])
    one_line(folder, works=content in ("surrogate", "none of its names"))


@pytest.mark.parametrize("case", CONFIGS)
def test_config(folder, case):
    change(folder / "config.json", **CONFIGS[case])
    one_line(folder, works=case == "quantised by nobody")


@pytest.mark.parametrize("case", TEMPLATES)
def test_chat_template(folder, case):
    put(folder / "chat_template.jinja", TEMPLATES[case])
    one_line(folder)


@pytest.mark.parametrize("case", TOKENIZERS)
def test_tokenizer(folder, case):
    change(folder / "tokenizer.json", **TOKENIZERS[case])
    one_line(folder)


@pytest.mark.parametrize("case", SETTINGS)
def test_tokenizer_config(folder, case):
    (folder / "chat_template.jinja").unlink()
    change(folder / "tokenizer_config.json", **{"chat_template": CHATML} | SETTINGS[case])
    one_line(folder, works=True)


@pytest.mark.parametrize("content", JSONS)
@pytest.mark.parametrize("name", ["adapter_config.json", "base_model.json", "adapter_model.safetensors"])
def test_adapter_files(adapter, whole, name, content):
    put(adapter / name, JSONS[content])
    one_line(adapter, whole, works=name == "base_model.json" and content in ("surrogate", "none of its names"))


@pytest.mark.parametrize("case", ADAPTERS)
def test_adapter_config(adapter, whole, case):
    change(adapter / "adapter_config.json", **ADAPTERS[case])
    one_line(adapter, whole, works=case == "base is a number")  # the base card names it


HEADERS = {
    "no object": [],
    "no offsets": {"a": {"dtype": "F32", "shape": [1]}},
    "one offset": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}},
    "offsets are texts": {"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", "4"]}},
    "offsets backwards": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}},
    "offsets negative": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}},
    "offsets without end": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 10**30]}},
    "type is a number": {"a": {"dtype": 7, "shape": [1], "data_offsets": [0, 4]}},
    "shape is a text": {"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}},
    "tensor is a list": {"a": [1]},
    "more than the file": {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}},
}


@pytest.mark.parametrize("case", [*HEADERS, *JSONS])
def test_weights(folder, case):
    """A header of these, told by its length, and four bytes of data; or no safetensors at all."""
    content = JSONS.get(case)
    if case in HEADERS:
        header = json.dumps(HEADERS[case]).encode()
        content = len(header).to_bytes(8, "little") + header + bytes(4)
    put(folder / "model.safetensors", content)
    with pytest.raises(UserError, match="model.safetensors is (no whole safetensors file|not whole)"):
        safetensors_header(folder / "model.safetensors")
    one_line(folder)


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_a_folder_or_is_not_there(folder, name):
    (folder / name).unlink()
    one_line(folder)
    (folder / name).mkdir()
    one_line(folder)
