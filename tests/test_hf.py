"""The hf engine on toys: text, messages and ids; what ends a reply; a schema, which it cannot decode under."""

import json

import pytest
from conftest import make_llama, make_tokenizer

from alignment.command_line import UserError
from alignment.engines.hf import HfEngine
from alignment.engines.prompts import cut_reply
from alignment.generation import Request, Sampling, generate
from alignment.journal import Journal

SYSTEM, USER = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say tea."}
TURN = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
GREEDY = Sampling(max_tokens=40, temperature=0)
REFUSING = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture
def make_engine(tmp_path):
    """An engine on a toy whose EOS is </s> while its chat template closes a turn with <|im_end|>: it counts up from
    the last token, so that what it writes is known: every letter's successor, and after "z" what `after` names."""

    def make(after="<|im_end|>", chat_template=None, eos=None, name="tiny", **settings):
        import torch

        tokenizer = make_tokenizer()
        if chat_template is not None:
            tokenizer.chat_template = chat_template or None
        model = make_llama(len(tokenizer), hidden_size=512, num_attention_heads=4, num_key_value_heads=4)
        following = torch.arange(len(tokenizer)) + 1
        following[tokenizer.convert_tokens_to_ids("z")] = tokenizer.convert_tokens_to_ids(after)
        following[tokenizer.convert_tokens_to_ids("Ċ")] = tokenizer.convert_tokens_to_ids("t")  # after a line end
        with torch.no_grad():  # no layer adds anything; the head tells a token by its embedding
            for layer in model.model.layers:
                layer.self_attn.o_proj.weight.zero_()
                layer.mlp.down_proj.weight.zero_()
            table = torch.nn.functional.normalize(torch.randn(len(tokenizer), 512))
            model.model.embed_tokens.weight.copy_(table)
            model.lm_head.weight.zero_()
            for token, next_token in enumerate(following.tolist()):
                if next_token < len(tokenizer):
                    model.lm_head.weight[next_token] += 4 * table[token]
        if eos is not None:
            model.generation_config.eos_token_id = eos
        model.save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
        return HfEngine(str(tmp_path / name), 1, None, max_rows=64, **settings)

    return make


def ask(engine, prompts, sampling=GREEDY):
    requests = [Request(prompt, seed) for seed, prompt in enumerate(prompts)]
    return [reply for _, reply in sorted(engine.complete(requests, sampling))]


def test_messages_end_where_the_template_closes_a_turn(make_engine):
    """Text and ids that spell the same go on: nothing tells them that a turn is over."""
    engine = make_engine()
    ids = make_tokenizer()(TURN.format("Say tea."))["input_ids"]
    told, text, untold = ask(engine, [[USER], TURN.format("Say tea."), ids])
    spelled = engine.tokenizer.convert_tokens_to_ids(list("tuvwxyz"))
    assert told == ("tuvwxyz", "stop", tuple(spelled))
    closing = engine.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert text == untold and untold.finish == "length" and untold.ids[:8] == (*spelled, closing)
    assert ask(engine, [ids], Sampling(40, temperature=0, stop_ids=(closing,))) == [told]


@pytest.mark.parametrize("eos", [None, 2, [2], [261]])
def test_the_models_own_end_ends_any_reply(make_engine, eos):
    """</s> is id 2. The tokenizer's EOS does whatever generation_config.json says."""
    [reply] = ask(make_engine("</s>", eos=eos), ["s"])
    assert (reply.text, reply.finish) == ("tuvwxyz", "stop")


def test_an_end_in_a_list_of_generation_config(make_engine):
    engine = make_engine(eos=[2, make_tokenizer().convert_tokens_to_ids("w")])
    assert [reply[:2] for reply in ask(engine, ["s", [USER]])] == [("tuv", "stop")] * 2


def test_a_system_role_is_folded_where_the_template_refuses_it(make_engine):
    engine = make_engine(chat_template=REFUSING)
    seen = []
    decode = engine_decode(engine, seen)
    [folded] = ask(engine, [[SYSTEM, USER]])
    assert seen == [make_tokenizer()(TURN.format("Be brief.\nSay tea."))["input_ids"]]
    assert folded.text == "tuvwxyz" and decode
    kept = make_engine(name="kept")
    engine_decode(kept, seen)
    ask(kept, [[SYSTEM, USER]])
    system = "<|im_start|>system\nBe brief.<|im_end|>\n"
    assert seen[1:] == [make_tokenizer()(system + TURN.format("Say tea."))["input_ids"]]


def engine_decode(engine, seen):
    """Note the prompts that the engine's decoder is given."""
    engine._load()
    decode = engine._decoder.decode

    def noting(prompts, *rest):
        seen.extend(prompts)
        return decode(prompts, *rest)

    engine._decoder.decode = noting
    return decode


def test_messages_need_a_chat_template(make_engine):
    with pytest.raises(UserError, match="messages need a chat template"):
        ask(make_engine(chat_template=""), [[USER]])


def test_a_prompt_without_a_token_is_refused_and_the_others_are_not(make_engine):
    empty, nothing, whole = ask(make_engine(), ["", [], [USER]])
    assert empty.text is None and empty.finish.startswith("refused") and nothing == empty
    assert whole.text == "tuvwxyz"


def test_a_stop_string_is_in_neither_text_nor_ids(make_engine):
    engine = make_engine()
    [reply] = ask(engine, [[USER]], Sampling(40, temperature=0, stop=("wx",)))
    assert reply == ("tuv", "stop", tuple(engine.tokenizer.convert_tokens_to_ids(list("tuv"))))


def test_a_token_that_lies_half_in_a_stop_string_is_not_in_the_ids():
    """é is two tokens of which none is a character, € three; a stop string in the midst of a reply ends it there."""
    tokenizer = make_tokenizer()

    def cut(text, *stop):
        kept, ids = cut_reply(tokenizer, tokenizer(text)["input_ids"], stop)
        return kept, len(ids)

    assert cut("aé€b", "€") == ("aé", 3)
    assert cut("aé€b", "é", "€") == ("a", 1)
    assert cut("aé€b") == ("aé€b", 7)


def test_max_model_len_is_of_prompt_and_reply(make_engine):
    """As in vLLM: a prompt that leaves no room is too long, a reply ends where the room does."""
    long, short = ask(make_engine(max_model_len=5), ["stuvw", "st"])
    assert long == (None, "too long", None) and (short.text, short.finish) == ("uvw", "length")
    with pytest.raises(UserError, match="--max_model_len 513 is more than the model's 512 tokens"):
        ask(make_engine(max_model_len=513), ["s"])


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_dtype_is_what_it_computes_in(make_engine, dtype):
    engine = make_engine(dtype=dtype)
    assert ask(engine, ["s"])[0].text.startswith("tuvwxyz")
    assert str(engine._model.dtype) == f"torch.{dtype or 'float32'}"


def test_a_full_gpu_is_one_line(make_engine, monkeypatch):
    """What has come is kept; vLLM's own memory is in test_vllm.py."""
    import torch

    engine, found = make_engine(), []
    engine._load()

    def decode(prompts, *rest):
        yield 0, [5], "stop"
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...\nOf which")

    monkeypatch.setattr(engine._decoder, "decode", decode)
    with pytest.raises(UserError, match=r"^CUDA out of memory; give a smaller --batch_size, .* is finished$"):
        for outcome in engine.complete([Request("s", 0), Request("t", 1)], GREEDY):
            found.append(outcome)
    assert [index for index, _ in found] == [0]


def test_a_schema_is_checked_and_asked_for_again(tmp_path, model_folder):
    """One sampled byte at a time, of some 260: about one in 25 is a digit. What follows the schema is kept, the rest
    is invalid, and more of it comes in four tries than in one."""
    engine = HfEngine(str(model_folder), 1, None, 256)
    requests = [Request(f"prompt {i}", i) for i in range(150)]
    sampling = Sampling(max_tokens=1, schema={"type": "integer"})
    once, tries = (
        generate(engine, requests, sampling, journal=Journal(tmp_path / f"{n}.json"), label="", schema_retries=n)
        for n in (0, 3)
    )
    for replies in (once, tries):
        assert all(reply.finish.startswith("invalid") or isinstance(json.loads(reply.text), int) for reply in replies)
    assert 0 < sum(reply.text is not None for reply in once) < sum(reply.text is not None for reply in tries) < 150
