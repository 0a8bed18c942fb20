"""Templates: exact text, exact ids, and no difference between training, inference and what a saved model tells."""

import json
from argparse import Namespace

import pytest
from conftest import CHATML, make_tokenizer

from alignment.command_line import UserError
from alignment.templates import (
    TEMPLATES,
    chat_template,
    instruction_of,
    load_template,
    messages,
    rendering_from,
    split_dialogue,
)

ROW = {"prompt": "Why?", "judgment": "Too short."}
ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
TEXTS = {
    "almost": ("\n\nHuman: Why?\n\nAssistant:", " Because."),
    "alpaca": (f"{ALPACA}\n\n### Instruction:\nWhy?\n\n### Response:\n", "Because."),
    "alpaca_judgment": (
        f"{ALPACA[:-1]} and matches the corresponding judgment.\n\n### Instruction:\nWhy?\n\n"
        "### Judgment:\nToo short.\n\n### Response:\n",
        "Because.",
    ),
    "mistral": ("[INST] Why? [/INST]", "Because."),
    "chatml": ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "Because."),
    "chat": ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "Because."),
}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
TALK = [user("A"), assistant("B"), user("C")]
DIALOGUE = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"


def tokenizer_of(kind: str, bos: bool):
    """conftest's kinds, and two that open a text with a space: `first`, SentencePiece's way in newer Llama tokenizers,
    not after a special token; `spaced`, byte-level, after one too."""
    from tokenizers import normalizers, pre_tokenizers

    tokenizer = make_tokenizer({"first": "pieces", "spaced": "bytes"}.get(kind, kind), bos=bos)
    if kind == "first":
        tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([])
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    if kind == "spaced":
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_of_each_template(name, tokenizer):
    """Prompt and lead, character by character."""
    template = load_template(name, tokenizer)
    assert (template.render(ROW), template.lead + "Because.") == TEXTS[name]


@pytest.mark.parametrize("kind", ["bytes", "pieces", "first", "spaced"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_training_ids_are_inference_ids(name, bos, kind):
    """Training's ids are what the tokenizer, called as generators call it, gives for the prompt; then the response as
    it is cut out of the ids of the whole text; then the end. Decoded, the response is the response."""
    tokenizer = tokenizer_of(kind, bos)
    template = load_template(name, tokenizer)
    prompt, response = template.prompt_ids([ROW])[0], template.response_ids(["Because."])[0]
    assert prompt == tokenizer(template.render(ROW))["input_ids"]
    assert prompt.count(1) == bos
    assert prompt + response[:-1] == tokenizer(template.render(ROW) + template.lead + "Because.")["input_ids"]
    assert response[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>" if name in ("chatml", "chat") else "</s>")
    assert response.count(template.end_id) == 1


def test_no_double_bos():
    """A chat template that writes BOS itself, under a tokenizer that adds one: one BOS."""
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = "<s>" + CHATML
    ids = load_template("chat", tokenizer).prompt_ids([ROW])[0]
    assert ids[0] == 1 and ids.count(1) == 1


def test_forms_of_a_row(tokenizer):
    """A dialogue, a conversation, Alpaca's columns and self-play's say the same thing in each template."""
    almost, mistral, chatml = (load_template(name, tokenizer) for name in ("almost", "mistral", "chatml"))
    for row in ({"prompt": DIALOGUE}, {"input": DIALOGUE}, {"prompt": TALK}, {"prompt": DIALOGUE[:-12]}):
        assert almost.render(row) == DIALOGUE
        assert mistral.render(row) == "[INST] A [/INST]B</s>[INST] C [/INST]"
    assert almost.render({"instruction": "Sort.", "input": "3 1"}) == "\n\nHuman: Sort.\n3 1\n\nAssistant:"
    assert mistral.render({"system": "S", "prompt": "A"}) == "[INST] S\nA [/INST]"
    system = "<|im_start|>system\nS<|im_end|>\n"
    assert chatml.render({"system": "S", "prompt": "A"}) == system + TEXTS["chatml"][0].replace("Why?", "A")
    turns = "<|im_start|>user\nA<|im_end|>\n<|im_start|>assistant\nB<|im_end|>\n"
    assert chatml.render({"system": "", "prompt": DIALOGUE}) == turns + TEXTS["chatml"][0].replace("Why?", "C")
    assert almost.render({"system": "S", "prompt": DIALOGUE}).startswith("\n\nHuman: S\nA\n\nAssistant: B")
    assert almost.render({"prompt": [{"role": "system", "content": ""}, user("A")]}) == "\n\nHuman: A\n\nAssistant:"


def test_what_a_template_cannot_express(tokenizer):
    for name, turns, reason in (
        ("alpaca", TALK, "one turn and the row has 3"),
        ("mistral", TALK[:2], "ends in a user's turn"),
        ("almost", [{"role": "tool", "content": "5"}], "no role tool"),
        ("mistral", [user("A"), {"role": "system", "content": "S"}, user("C")], "template mistral has no role system"),
    ):
        with pytest.raises(UserError, match=reason):
            load_template(name, tokenizer).render({"prompt": turns})


def test_which_templates_take_a_prompt_that_ends_in_the_assistants_turn(tokenizer):
    names = [name for name in TEMPLATES if load_template(name, tokenizer).takes_own_turns]
    assert names == ["almost", "chatml", "chat"]


def test_text_from_data_stays_as_it_is(tokenizer):
    """Neither Jinja's marks nor Python's, nor what HTML escapes."""
    text = "{{ messages }} {% if %} {instruction} <b> & \\n"
    for name in TEMPLATES:
        assert text in load_template(name, tokenizer).render({"prompt": text, "judgment": text})


def test_instruction_and_input_share_a_slot():
    """A line apart; no input and an empty one are the same; a dialogue has no input."""
    assert instruction_of({"instruction": "Sort.", "input": "3 1"}) == "Sort.\n3 1"
    assert instruction_of({"instruction": "Sort.", "input": ""}) == instruction_of({"instruction": "Sort."}) == "Sort."
    assert messages({"instruction": "Sort.", "input": "3 1"}) == [user("Sort.\n3 1")]
    assert messages({"instruction": DIALOGUE, "input": "3 1"}) == TALK


def test_a_dialogue_is_split_at_its_last_assistant_turn():
    """The prompt to the character, the reply stripped; a reply that is still to come is empty."""
    assert split_dialogue(DIALOGUE + "  D\n") == (DIALOGUE, "D")
    assert split_dialogue(DIALOGUE) == (DIALOGUE, "")
    assert split_dialogue("Human:  A \n\nAssistant: B\n\nHuman: C") == ("Human:  A \n\nAssistant:", "B\n\nHuman: C")


@pytest.mark.parametrize("refusal", ["{{ raise_exception('no system') }}", ""])
def test_a_system_role_that_is_refused_opens_the_first_turn(tokenizer, refusal):
    """Whether the chat template raises on a system message or drops it without a word."""
    drop = "{% if m['role'] == 'system' %}" + refusal + "{% else %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + drop + "{% endfor %}"
    assert load_template("chat", tokenizer).render({"system": "S", "prompt": "A"}) == "[user]S\nA"


def without_chatml():
    """The byte tokenizer, its two tokens of ChatML under other names."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(make_tokenizer().backend_tokenizer.to_str().replace("<|im_", "<|xx_"))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def test_a_tokenizer_without_chatml_gets_its_tokens(llama, tmp_path):
    """One id for each, none of them in a text; in the model rows that are the mean of all before, those of the input
    and, untied, of the output. Saved and read again they are there."""
    from alignment.pretrained import fit_embeddings

    tokenizer = without_chatml()
    before = len(tokenizer)
    template = load_template("chatml", tokenizer)
    start, end = before, before + 1
    assert tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"]) == [start, end]
    ids = template.prompt_ids([ROW])[0] + template.response_ids(["Because."])[0]
    assert [i for i in ids if i >= before] == [start, end, start, end] and template.end_id == ids[-1] == end
    assert tokenizer.decode(ids, skip_special_tokens=True) == "user\nWhy?\nassistant\nBecause."
    old = [layer.weight.detach().clone() for layer in (llama.get_input_embeddings(), llama.get_output_embeddings())]
    fit_embeddings(llama, tokenizer)
    for layer, was in zip((llama.get_input_embeddings(), llama.get_output_embeddings()), old, strict=True):
        assert layer.weight.shape[0] == before + 2 and layer.weight[:before].equal(was)
        for row in (start, end):
            assert layer.weight[row].allclose(was.mean(0))
    told = saved(template, tmp_path)
    assert apply(told, [user("Why?"), assistant("Because.")]) == ids
    assert len(load_template("chatml", told).tokenizer) == before + 2
    assert load_template("chatml", make_tokenizer()).end_id == 5  # which has them


def test_bad_templates(tokenizer):
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        load_template("alpacca", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        load_template("chat", tokenizer)


# What a saved model tells other tools

TURN = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>"
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
NO_SYSTEM = "{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% else %}" + TURN + "\n{% endif %}"
CHATS = {
    "closes exactly": "{% for m in messages %}" + TURN + "{% endfor %}" + OPEN,
    "closes exactly and trims": "{% for m in messages %}"
    + TURN.replace("'] }}", "'] | trim }}")
    + "{% endfor %}"
    + OPEN,
    "line end after the end token": CHATML,
    "writes BOS": "{{ bos_token }}" + CHATML,
    "refuses a system role": "{% for m in messages %}" + NO_SYSTEM + "{% endfor %}" + OPEN,
    "drops a system role": CHATML.replace("in messages", "in messages if m['role'] != 'system'"),
    "no end token": CHATML.replace("<|im_end|>", ""),
    "end token after blanks, a space before the reply": "{% for m in messages %}{% if m['role'] == 'assistant' %}"
    "{{ ' ' + m['content'] + ' ' + eos_token }}{% else %}[{{ m['content'] }}]{% endif %}{% endfor %}",
    "trims": CHATML.replace("m['content']", "m['content'] | trim"),
    "prompt ends in a special token": "{% for m in messages %}<|im_end|>{{ m['role'] }}<|im_start|>{{ m['content'] }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_end|>assistant<|im_start|>{% endif %}",
    "thinks of nothing before the last reply": CHATML.replace(
        "{{ m['content'] }}", "{% if m['role'] == 'assistant' and loop.last %}<think>{% endif %}{{ m['content'] }}"
    ),
    "opens with a thought": CHATML.replace("assistant\n", "assistant\n<think>\n"),
    "assigns its messages and has macros": "{% macro say(m) %}" + TURN + "{{ mark }}{% endmacro %}{% set mark = '.' %}"
    "{% set messages = messages[0:] %}{% for m in messages %}{{ say(m) }}{% endfor %}" + OPEN,
    "begins and ends in line ends": "\n" + CHATML + "\n\n",
    "begins and ends in blanks": "  {% if true %}\n  x{% endif %}" + CHATML + "\n  ",
    "ends in a tag of its own line": "  {% if true %}" + CHATML + "\n  {% endif %}\n",
}
CONVERSATIONS = [
    [user("Why?")],
    [SYSTEM, user("Why?")],
    [SYSTEM | {"content": ""}, user("Why?")],
    TALK,
    [SYSTEM, user("A "), assistant(" B"), user("C")],
]
REPLIES = ["Because.", "It is\nso.", " Blanks around. \n"]


def apply(tokenizer, turns, **settings) -> list[int]:
    return tokenizer.apply_chat_template(turns, return_dict=False, **settings)


def saved(template, folder):
    """The tokenizer as the model is saved with it, read again."""
    from transformers import AutoTokenizer

    own = template.tokenizer.chat_template
    template.tokenizer.chat_template = chat_template(template)
    template.tokenizer.save_pretrained(folder)
    template.tokenizer.chat_template = own
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["bytes", "pieces", "first", "spaced"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", ["almost", "alpaca", "mistral", "chatml", *CHATS])
def test_a_saved_model_tells_how_it_was_trained(name, bos, kind, tmp_path):
    """Its chat template gives the ids of prompts and of whole conversations. So it does once more where the saved
    model is trained with its chat template, which changes neither ids nor template."""
    tokenizer = tokenizer_of(kind, bos)
    tokenizer.chat_template = CHATS.get(name, CHATML)
    template = load_template("chat" if name in CHATS else name, tokenizer)
    told = saved(template, tmp_path)
    again = load_template("chat", told)
    conversations = [turns for turns in CONVERSATIONS if name != "alpaca" or len(turns) < 3]
    prompts = template.prompt_ids([{"prompt": turns} for turns in conversations])
    replies = template.response_ids(REPLIES)
    for turns, prompt in zip(conversations, prompts, strict=True):
        assert apply(told, turns, add_generation_prompt=True) == prompt
        assert prompt.count(1) == (bos or name == "writes BOS")
        for text, ids in zip(REPLIES, replies, strict=True):
            assert apply(told, [*turns, assistant(text)]) == prompt + ids
    assert [ids.count(template.end_id) for ids in replies] == [1] * len(replies)
    assert again.prompt_ids([{"prompt": turns} for turns in conversations]) == prompts
    assert again.response_ids(REPLIES) == replies
    assert chat_template(again) == told.chat_template
    assert (chat_template(template) == CHATS.get(name)) == (name.startswith("closes exactly") and not bos)


def test_alpaca_told_with_and_without_judgment(tokenizer, tmp_path):
    """CUT's two prompts from one saved template, whichever it was made from; neither holds several turns."""
    plain, judged = (load_template(name, tokenizer) for name in ("alpaca", "alpaca_judgment"))
    assert chat_template(plain) == chat_template(judged)
    told = saved(plain, tmp_path)
    whole = apply(told, [user("Why?"), assistant("Because.")], judgment="Too short.")
    assert whole == judged.prompt_ids([ROW])[0] + judged.response_ids(["Because."])[0]
    assert apply(told, [user("Why?")], add_generation_prompt=True) == plain.prompt_ids([ROW])[0]
    with pytest.raises(Exception, match="holds one turn and the row has 3"):
        apply(told, TALK, add_generation_prompt=True)


def test_saved_as_text_and_opened_at_once(tokenizer, tmp_path):
    """transformers' file beside the weights; a user's turn alone is not opened unless that is asked for."""
    told = saved(load_template("almost", tokenizer), tmp_path)
    assert "\\n\\nAssistant:" in (tmp_path / "chat_template.jinja").read_text()
    assert told.apply_chat_template([SYSTEM, user("A")], tokenize=False) == "\n\nHuman: Be kind.\nA"
    opened = told.apply_chat_template(TALK[:2], tokenize=False, add_generation_prompt=True)
    assert opened == "\n\nHuman: A\n\nAssistant: B\n\nAssistant:"


def test_a_model_keeps_what_its_own_template_can_do(tokenizer, tmp_path):
    """Its other variables, and an assistant's turn that is more than words. Where replies stand in the output, which
    {% generation %} tells transformers, cannot be told from a macro, and is told of nothing rather than wrongly."""
    tools = "{% if tools %}{{ tools | tojson }}{% endif %}"
    calls = "{% generation %}{{ m['content'] }}{{ m['tool_calls'] }}{%- endgeneration %}"
    tokenizer.chat_template = tools + CHATML.replace("{{ m['content'] }}", calls)
    told = saved(load_template("chat", tokenizer), tmp_path)
    called = [user("A"), assistant("") | {"tool_calls": ["f"]}]
    for turns, settings in ((TALK, {"tools": [{"name": "f"}], "add_generation_prompt": True}), (called, {})):
        text = tokenizer.apply_chat_template(turns, tokenize=False, **settings)
        assert told.apply_chat_template(turns, tokenize=False, **settings) == text and "f" in text
    masks = [
        each.apply_chat_template([user("A"), assistant("B")], return_assistant_tokens_mask=True, return_dict=True)
        for each in (tokenizer, told)
    ]
    assert [sum(mask["assistant_masks"]) > 0 for mask in masks] == [True, False]


def test_a_token_of_prompt_and_reply_together(tmp_path):
    """What chat_template says cannot be equal: with a token "](", Mistral's text is the same and the ids are not."""
    from tokenizers import models

    tokenizer = make_tokenizer()
    vocabulary = tokenizer.get_vocab()
    tokenizer.backend_tokenizer.model = models.BPE(vocabulary | {"](": len(vocabulary)}, [("]", "(")])
    template = load_template("mistral", tokenizer)
    told = saved(template, tmp_path)
    trained = template.prompt_ids([ROW])[0] + template.response_ids(["(So."])[0]
    found = apply(told, [user("Why?"), assistant("(So.")])
    assert len(found) == len(trained) - 1
    assert tokenizer.decode(found) == tokenizer.decode(trained) == "[INST] Why? [/INST](So.</s>"


# For engines


def engine(backend: str, model: object = "", template: str | None = None, cache_dir=None) -> Namespace:
    return Namespace(backend=backend, model_name_or_path=str(model), template=template, cache_dir=cache_dir)


@pytest.mark.parametrize("name", ["almost", "alpaca"])
def test_servers_need_no_tokenizer(name, tokenizer, model_folder):
    """The same text and stop strings where there is no tokenizer as where there is one."""
    remote = rendering_from(engine("openai", "no/model", name), None)
    local = rendering_from(engine("hf", model_folder, name), None)
    assert remote.render(ROW) == local.render(ROW) == TEXTS[name][0]
    assert remote.stop == local.stop != ()


def test_default_templates(tokenizer, model_folder):
    """chat where there is one, else the row's text; an engine adds BOS itself and stops at the chat's end token."""
    assert rendering_from(engine("openai"), None).render(ROW) == "Why?"
    assert rendering_from(engine("hf", model_folder), None).end == "<|im_end|>"
    (model_folder / "chat_template.jinja").unlink()
    assert rendering_from(engine("hf", model_folder), None).name == "raw"
    with_bos = make_tokenizer(bos=True)
    with_bos.chat_template = "{{ bos_token }}" + CHATML
    with_bos.save_pretrained(model_folder)
    assert rendering_from(engine("hf", model_folder), None).render(ROW) == TEXTS["chat"][0]


def test_tokenizer_from_the_cache_that_the_flags_name(tokenizer, tmp_path):
    """A model of the hub that is in --cache_dir and nowhere else."""
    cached = tmp_path / "models--no--model"
    tokenizer.save_pretrained(cached / "snapshots" / "1")
    (cached / "snapshots" / "1" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1")
    assert rendering_from(engine("hf", "no/model", "chat", tmp_path), None).render(ROW) == TEXTS["chat"][0]
    with pytest.raises(UserError, match="no tokenizer in no/model"):
        rendering_from(engine("hf", "no/model", "chat"), None)


@pytest.mark.parametrize("trained", ["mistral", "chatml", "chat"])
def test_a_folder_names_the_template_that_it_was_trained_with(trained, model_folder, capsys):
    """J11: without --template it is what is asked in, whatever the default; with another a line warns. Of a server or
    simulated writer nothing is read."""

    def named(backend: str, template: str | None, default: str | None = "almost") -> str:
        return rendering_from(engine(backend, model_folder, template), default).name

    assert named("hf", None) == "almost" and named("hf", None, None) == "chat"
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"prompt_template": trained}))
    assert named("hf", None) == named("vllm", None, None) == named("hf", trained) == trained
    assert named("openai", None) == named("simulated", None) == named("simulated", "almost") == "almost"
    assert capsys.readouterr().err == ""
    assert named("hf", "alpaca") == "alpaca"
    warned = f"warning: --template alpaca, but {model_folder} was trained with {trained}, as its config says\n"
    assert capsys.readouterr().err == warned
    (model_folder / "config.json").write_text(json.dumps(config | {"prompt_template": "of another tool"}))
    assert named("hf", None) == "almost"


def test_chatml_is_not_asked_of_a_tokenizer_without_it(model_folder):
    without_chatml().save_pretrained(model_folder)
    with pytest.raises(UserError, match=r"has no <\|im_start\|>: no model of it knows chatml"):
        rendering_from(engine("hf", model_folder, "chatml"), None)
