r"""One object per template, so that data, reward model, policy and evaluation spell a prompt in one way.

    almost            \n\nHuman: {}\n\nAssistant:            + " " + response     ALMoST, section 2; no system slot
    alpaca            ### Instruction:\n{}\n\n### Response:\n + response          CUT, section 2.2
    alpaca_judgment   the same with ### Judgment: before the response             CUT, condition [x, j]
    mistral           [INST] {system}\n{instruction} [/INST]  + response          Janus, training recipe
    chat              the tokenizer's own chat template       + response

A row is any of these, and each template takes all of them that it can express:

    {"prompt": "..."}                                   an instruction, or a dialogue "\n\nHuman: ...\n\nAssistant:"
    {"prompt": [{"role", "content"}, ...]}              conversational
    {"instruction": "...", "input": "..."}              Alpaca's; "judgment" beside it for alpaca_judgment
    {"input": "..."}                                    self-play's, usually a dialogue
    {"system": "...", ...}                              a system message beside any of them

Training ids equal inference ids because prompt and response are tokenised apart here, and nowhere else: a generator
that starts from `prompt_ids(row)` stands where training stood. Imports no torch.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from alignment.command_line import UserError, nearest
from alignment.pretrained import load_tokenizer

Message = dict[str, str]
TURN = re.compile(r"\n\n(Human|Assistant):")
PROBE = "text between marks"  # stands for a reply while a chat template shows what it puts after one


@dataclass(frozen=True)
class Template:
    """A template and the tokenizer it speaks through.

    `render(row)` is the prompt's text; `lead` stands between prompt and response; generation stops at `stop` or `end`.
    """

    name: str
    tokenizer: Any
    render: Callable[[dict], str]
    lead: str = ""
    stop: tuple[str, ...] = ()
    end: str = ""  # the token that closes a response; the tokenizer's EOS but for chat templates with another

    @property
    def end_id(self) -> int:
        """The id that is appended to a response and learned, and that ends generation."""
        return self.tokenizer.convert_tokens_to_ids(self.end)

    def prompt_ids(self, rows: Sequence[dict]) -> list[list[int]]:
        """Token ids of prompts, with BOS where the tokenizer adds one, and never twice."""
        return self.text_ids([self.render(row) for row in rows])

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The same of prompts that are already text."""
        bos = [self.tokenizer.bos_token_id] if adds_bos(self.tokenizer) else []
        return [ids if ids[:1] == bos else bos + ids for ids in plain_ids(self.tokenizer, texts)]

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of responses as they follow a prompt, each closed by `end_id`, which is in the loss."""
        return [ids + [self.end_id] for ids in continuation_ids(self.tokenizer, [self.lead + text for text in texts])]


def load_template(name: str, tokenizer: Any) -> Template:
    """The template called `name`. Raises UserError for an unknown one, and for `chat` where the tokenizer has none."""
    if name not in TEMPLATES:
        raise UserError(f"template {name!r} is none of {', '.join(TEMPLATES)}{nearest(name, TEMPLATES)}")
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no EOS token, so no response could be learned to end; set eos_token")
    return TEMPLATES[name](tokenizer)


# Rows


def is_dialogue(text: Any) -> bool:
    """Whether a text is already in the shape of the `almost` template: Human and Assistant turns."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and "\n\nAssistant:" in text


def dialogue_messages(text: str) -> list[Message]:
    r"""The turns of "\n\nHuman: ...\n\nAssistant: ...", an empty last assistant turn left out."""
    parts = TURN.split("\n\n" + text.strip())[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def messages(row: dict) -> list[Message]:
    """Any form of a row as a list of messages that ends where the response begins. Raises KeyError for no form."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    if isinstance(row.get("prompt"), list):
        return system + row["prompt"]
    text = row["instruction"] if "instruction" in row else row["prompt"] if "prompt" in row else row["input"]
    if is_dialogue(text):
        return system + dialogue_messages(text)
    if "instruction" in row and row.get("input"):
        text = f"{text}\n{row['input']}"  # CUT section 2.2: one slot for both
    return system + [{"role": "user", "content": text}]


def system_and_turns(row: dict) -> tuple[str, list[Message]]:
    found = messages(row)
    has_system = bool(found) and found[0]["role"] == "system"
    return (found[0]["content"], found[1:]) if has_system else ("", found)


# Text


def almost_text(row: dict) -> str:
    r"""A dialogue as it is; anything else in "\n\nHuman: {}\n\nAssistant:". A system message opens the first turn."""
    text = row.get("prompt", row.get("input"))
    if is_dialogue(text) and not row.get("system"):
        opened = "\n\n" + text.strip()
        return opened if opened.endswith("\n\nAssistant:") else opened + "\n\nAssistant:"
    names = {"user": "Human", "assistant": "Assistant"}
    turns = fold_system(messages(row))
    return "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in turns) + "\n\nAssistant:"


def fold_system(found: list[Message]) -> list[Message]:
    """Messages without a system role: its text goes before the first user's, on a line of its own, as in Janus."""
    if not found or found[0]["role"] != "system":
        return found
    system, first, *rest = found if len(found) > 1 else [*found, {"role": "user", "content": ""}]
    return [{"role": "user", "content": f"{system['content']}\n{first['content']}"}, *rest]


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:\n"
)
ALPACA_JUDGMENT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request and "
    "matches the corresponding judgment.\n\n"
    "### Instruction:\n{instruction}\n\n### Judgment:\n{judgment}\n\n### Response:\n"
)


def single_turn(row: dict, template: str) -> str:
    turns = fold_system(messages(row))
    if len(turns) != 1:
        raise UserError(f"template {template} holds one turn and the row has {len(turns)}; use almost, mistral or chat")
    return turns[0]["content"]


def alpaca_text(row: dict) -> str:
    return ALPACA.format(instruction=single_turn(row, "alpaca"))


def alpaca_judgment_text(row: dict) -> str:
    return ALPACA_JUDGMENT.format(instruction=single_turn(row, "alpaca_judgment"), judgment=row["judgment"])


def mistral_text(row: dict, eos: str) -> str:
    r"""[INST] {system}\n{instruction} [/INST], earlier turns before it, each closed by EOS. No space after (J12)."""
    system, turns = system_and_turns(row)
    if not turns or turns[-1]["role"] != "user":
        raise UserError("template mistral needs a row that ends in a user's turn")
    text = ""
    for position, turn in enumerate(turns):
        said = f"{system}\n{turn['content']}" if system and position == 0 else turn["content"]
        text += f"[INST] {said} [/INST]" if turn["role"] == "user" else said + eos
    return text


def chat_text(row: dict, tokenizer: Any, system_allowed: bool) -> str:
    """The tokenizer's own prompt, opened for the assistant. Where it refuses a system role, see `fold_system`."""
    found = messages(row) if system_allowed else fold_system(messages(row))
    try:
        return tokenizer.apply_chat_template(found, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # whatever the template's own raise_exception says: jinja2 gives no narrower promise
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        raise UserError(f"the tokenizer's chat template refuses the row: {error}") from error


# Templates


def almost(tokenizer: Any) -> Template:
    return Template("almost", tokenizer, almost_text, " ", ("\n\nHuman:",), tokenizer.eos_token)


def alpaca(tokenizer: Any) -> Template:
    return Template("alpaca", tokenizer, alpaca_text, "", ("\n\n### Instruction:",), tokenizer.eos_token)


def alpaca_judgment(tokenizer: Any) -> Template:
    stop = ("\n\n### Instruction:",)
    return Template("alpaca_judgment", tokenizer, alpaca_judgment_text, "", stop, tokenizer.eos_token)


def mistral(tokenizer: Any) -> Template:
    eos = tokenizer.eos_token
    return Template("mistral", tokenizer, lambda row: mistral_text(row, eos), "", ("[INST]",), eos)


def chat(tokenizer: Any) -> Template:
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; name another: --template almost, alpaca or mistral")
    allowed = accepts_system(tokenizer)
    end = chat_end(tokenizer)
    return Template("chat", tokenizer, lambda row: chat_text(row, tokenizer, allowed), "", (), end)


TEMPLATES = {each.__name__: each for each in (almost, alpaca, alpaca_judgment, mistral, chat)}


def accepts_system(tokenizer: Any) -> bool:
    """Whether the chat template renders a system message: some raise, and some drop it silently."""
    turns = [{"role": "system", "content": PROBE}, {"role": "user", "content": "a"}]
    try:
        return PROBE in tokenizer.apply_chat_template(turns, tokenize=False)
    except Exception as error:
        if type(error).__module__.split(".")[0] != "jinja2":
            raise
        return False


def chat_end(tokenizer: Any) -> str:
    """The special token that the chat template writes after a reply (<|im_end|>, ...), or EOS where it writes none."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": PROBE}]
    after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(PROBE)[2].strip()
    ids = plain_ids(tokenizer, [after])[0] if after else []
    special = ids[:1] and ids[0] in tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder)
    return tokenizer.convert_ids_to_tokens(ids[0]) if special else tokenizer.eos_token


# Ids


def plain_ids(tokenizer: Any, texts: Iterable[str]) -> list[list[int]]:
    """Token ids of texts with nothing added."""
    texts = list(texts)
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False)["input_ids"] if texts else []


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself would open a text with BOS. Asked of its output: `add_bos_token` is not reliable."""
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


ANCHOR = "\n"


def continuation_ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    r"""Token ids of texts that follow another text.

    SentencePiece tokenizers (Llama 2, Mistral) open any text with a space of their own. After an anchor they do not:
    " Hello" is [▁Hello] rather than [▁▁, Hello], and "Hello" is [Hello] rather than [▁Hello].
    """
    first = tokenizer.convert_ids_to_tokens(plain_ids(tokenizer, ["a"])[0])[0]
    if not first.startswith("▁"):
        return plain_ids(tokenizer, texts)
    anchor = plain_ids(tokenizer, [ANCHOR])[0]
    found = plain_ids(tokenizer, [ANCHOR + text for text in texts])
    apart = [ids[: len(anchor)] == anchor for ids in found]
    alone = plain_ids(tokenizer, texts) if not all(apart) else found
    return [ids[len(anchor) :] if cut else bare for ids, cut, bare in zip(found, apart, alone, strict=True)]


# Without a tokenizer where one can do without: a row -> the text that an engine is to continue

RAW = "raw"  # the row's text as it is
CHOICES = (*(name for name in TEMPLATES if not name.endswith("_judgment")), RAW)


class Rendering(NamedTuple):
    name: str
    render: Callable[[dict], str]
    stop: tuple[str, ...]


def rendering_from(args: Namespace, default: str | None) -> Rendering:
    """What --template names for the engine that the flags name; `default` None is chat where the tokenizer has one.

    A server or simulated writer has no tokenizer here: `raw`, `alpaca` and `almost` do without one.
    """
    no_tokenizer = args.backend in ("openai", "simulated")
    name = args.template or default or (RAW if no_tokenizer else "chat")
    if name == RAW:
        return Rendering(name, lambda row: messages(row)[-1]["content"], ())
    if no_tokenizer and name in ("alpaca", "almost"):
        plain = {"alpaca": (alpaca_text, "\n\n### Instruction:"), "almost": (almost_text, "\n\nHuman:")}
        render, stop = plain[name]
        return Rendering(name, render, (stop,))
    tokenizer = load_tokenizer(args.model_name_or_path)
    if name == "chat" and not args.template and not tokenizer.chat_template:
        return Rendering(RAW, lambda row: messages(row)[-1]["content"], ())
    template = load_template(name, tokenizer)
    bos = tokenizer.bos_token if adds_bos(tokenizer) else None
    stop = (*template.stop, template.end) if template.end != tokenizer.eos_token else template.stop
    return Rendering(name, lambda row: template.render(row).removeprefix(bos or ""), stop)
