"""Templates: exact text, exact ids, and no difference between training and inference."""

import pytest
from conftest import CHATML, make_tokenizer

from alignment.command_line import UserError
from alignment.templates import TEMPLATES, load_template

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
    "chat": ("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n", "Because."),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_text_of_each_template(name, tokenizer):
    """Prompt and lead, character by character."""
    template = load_template(name, tokenizer)
    assert (template.render(ROW), template.lead + "Because.") == TEXTS[name]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("name", TEMPLATES)
def test_training_ids_are_inference_ids(name, bos, kind):
    """Training's ids are what the tokenizer, called as generators call it, gives for the prompt; then the response as
    it is cut out of the ids of the whole text; then the end. Decoded, the response is the response."""
    tokenizer = make_tokenizer(kind, bos=bos)
    template = load_template(name, tokenizer)
    prompt, response = template.prompt_ids([ROW])[0], template.response_ids(["Because."])[0]
    assert prompt == tokenizer(template.render(ROW))["input_ids"]
    assert prompt.count(1) == bos
    assert prompt + response[:-1] == tokenizer(template.render(ROW) + template.lead + "Because.")["input_ids"]
    assert response[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>" if name == "chat" else "</s>")
    assert response.count(template.end_id) == 1


def test_no_double_bos():
    """A chat template that writes BOS itself, under a tokenizer that adds one: one BOS."""
    tokenizer = make_tokenizer(bos=True)
    tokenizer.chat_template = "<s>" + CHATML
    ids = load_template("chat", tokenizer).prompt_ids([ROW])[0]
    assert ids[0] == 1 and ids.count(1) == 1


def test_forms_of_a_row(tokenizer):
    """A dialogue, a conversation, Alpaca's columns and self-play's say the same thing in each template."""
    dialogue = "\n\nHuman: A\n\nAssistant: B\n\nHuman: C\n\nAssistant:"
    talk = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, {"role": "user", "content": "C"}]
    almost, mistral = load_template("almost", tokenizer), load_template("mistral", tokenizer)
    for row in ({"prompt": dialogue}, {"input": dialogue}, {"prompt": talk}, {"prompt": dialogue[:-12]}):
        assert almost.render(row) == dialogue
        assert mistral.render(row) == "[INST] A [/INST]B</s>[INST] C [/INST]"
    assert almost.render({"instruction": "Sort.", "input": "3 1"}) == "\n\nHuman: Sort.\n3 1\n\nAssistant:"
    assert mistral.render({"system": "S", "prompt": "A"}) == "[INST] S\nA [/INST]"
    assert almost.render({"system": "S", "prompt": dialogue}).startswith("\n\nHuman: S\nA\n\nAssistant: B")
    with pytest.raises(UserError, match="one turn and the row has 3"):
        load_template("alpaca", tokenizer).render({"prompt": talk})


@pytest.mark.parametrize("refusal", ["{{ raise_exception('no system') }}", ""])
def test_a_system_role_that_is_refused_opens_the_first_turn(tokenizer, refusal):
    """Whether the chat template raises on a system message or drops it without a word."""
    drop = "{% if m['role'] == 'system' %}" + refusal + "{% else %}[{{ m['role'] }}]{{ m['content'] }}{% endif %}"
    tokenizer.chat_template = "{% for m in messages %}" + drop + "{% endfor %}"
    assert load_template("chat", tokenizer).render({"system": "S", "prompt": "A"}) == "[user]S\nA"


def test_bad_templates(tokenizer):
    with pytest.raises(UserError, match="did you mean 'alpaca'"):
        load_template("alpacca", tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        load_template("chat", tokenizer)
