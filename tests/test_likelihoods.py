"""Log-probabilities of given responses: the plain formula's, of whole texts in the template that the model names."""

import math

import pytest
import torch
from conftest import make_llama
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.command_line import UserError
from alignment.pretrained import load_tokenizer
from alignment.templates import load_template
from alignment.training.likelihoods import Likelihoods

ROWS = [{"system": "Be kind.", "prompt": "Hi"}, {"system": "", "prompt": "Why is that?"}, {"prompt": "Hi"}]
REPLIES = ["Hello there", "So", "Hello"]


def name_template(folder, name):
    """The tiny model, whose folder says what it was trained with."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.prompt_template = name
    model.save_pretrained(folder)


def plain(folder, template, row, reply, ends):
    """Σ log softmax(logits)[token] of the reply, alone, unpadded."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    template = load_template(template, load_tokenizer(str(folder)))
    prompt, said = template.prompt_ids([row])[0], template.response_ids([reply])[0]
    said = said if ends else said[:-1]
    logps = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return logps[range(len(said)), said].sum().item(), len(said)


@pytest.mark.parametrize("ends", [True, False])
@pytest.mark.parametrize("named, asked, used", [("mistral", None, "mistral"), ("mistral", "almost", "almost")])
def test_sums_are_the_plain_formulas(model_folder, named, asked, used, ends):
    """In one batch of three lengths; with and without the token that ends a reply; in the folder's template or ours."""
    name_template(model_folder, named)
    policy = Likelihoods(str(model_folder), asked, ends=ends)
    expected = [plain(model_folder, used, row, reply, ends) for row, reply in zip(ROWS, REPLIES, strict=True)]
    assert policy.score(ROWS, REPLIES) == pytest.approx([total for total, _ in expected], abs=1e-4)
    assert policy.lengths(ROWS, REPLIES) == [length for _, length in expected]


def test_without_a_name_it_is_the_tokenizers_own(model_folder):
    policy = Likelihoods(str(model_folder))
    assert policy.template.name == "chat"
    assert policy.score(ROWS[:1], REPLIES[:1])[0] == pytest.approx(
        plain(model_folder, "chat", ROWS[0], REPLIES[0], True)[0], abs=1e-4
    )


def test_choices_of_a_question_share_it(model_folder):
    """Four replies to one prompt: the decoder sees the prompt's tokens once, and each reply's."""
    policy = Likelihoods(str(model_folder), "almost", ends=False)
    rows, replies = [{"prompt": "Which is it? " * 5}] * 4, ["one", "two", "three", "four"]
    lengths, prompt = policy.lengths(rows, replies), len(policy.template.prompt_ids(rows[:1])[0])
    policy.score(rows[:1], replies[:1])
    seen = []
    layer = policy._model.get_decoder().layers[0]
    layer.register_forward_hook(lambda module, args, output: seen.append(args[0].shape[1]))
    policy.score(rows, replies)
    shared = 3 + 1  # all four open with a space, and two with a t after it
    assert sum(seen) == prompt + sum(lengths) - shared


def test_nothing_is_cut(tmp_path, tokenizer):
    """32 positions: a text that needs all of them is scored, one that needs more has no length."""
    make_llama(len(tokenizer), max_position_embeddings=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    policy = Likelihoods(str(tmp_path), "almost")
    room = 32 - len(policy.template.prompt_ids([{"prompt": "a"}])[0]) - 2  # a space before the reply, EOS after it
    assert policy.lengths([{"prompt": "a"}] * 2, ["b" * room, "b" * (room + 1)]) == [room + 2, None]


def test_what_is_no_policy_is_refused(model_folder, tmp_path, llama, tokenizer):
    config = llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    with pytest.raises(UserError, match="rm is a reward model, which gives no probabilities of texts; name a policy"):
        Likelihoods(str(tmp_path / "rm"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    llama.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="bare has no chat template; name a template, as almost or mistral"):
        Likelihoods(str(tmp_path / "bare"))
    with pytest.raises(UserError, match="does not exist"):
        Likelihoods(str(tmp_path / "none"))
    with torch.no_grad():
        llama.lm_head.weight.fill_(math.nan)
    llama.save_pretrained(model_folder)
    with pytest.raises(UserError, match="log p nan of 'Hello'; are its weights sound"):
        Likelihoods(str(model_folder), "almost").score(ROWS[2:], REPLIES[2:])
