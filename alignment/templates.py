r"""One object per template, so that data, reward model, policy and evaluation spell a prompt in one way.

    almost            \n\nHuman: {}\n\nAssistant:            + " " + response     ALMoST, section 2; no system slot
    alpaca            ### Instruction:\n{}\n\n### Response:\n + response          CUT, section 2.2
    alpaca_judgment   the same with ### Judgment: before the response             CUT, condition [x, j]
    mistral           [INST] {system}\n{instruction} [/INST]  + response          Janus, training recipe
    chatml            <|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n + response   Janus, ORPO; a system role
    chat              the tokenizer's own chat template       + response

A row is any of these, and each template takes all of them that it can express:

    {"prompt": "..."}                                   an instruction, or a dialogue "\n\nHuman: ...\n\nAssistant:"
    {"prompt": [{"role", "content"}, ...]}              conversational
    {"instruction": "...", "input": "..."}              Alpaca's; "judgment" beside it for alpaca_judgment
    {"input": "..."}                                    self-play's, usually a dialogue
    {"system": "...", ...}                              a system message beside any of them

    template = load_template("almost", tokenizer)           # prompt_ids(rows), response_ids(texts): what is trained on
    rendering = rendering_from(args, "alpaca")              # asked(rows), stop: what an engine is asked to continue
    tokenizer.chat_template = chat_template(template)       # what a saved model tells other tools

Training ids equal inference ids because prompt and response are tokenised apart here, and nowhere else: a generator
that starts from `prompt_ids(row)` stands where training stood. The only control tokens of a row are those that its
template writes: what its texts spell is text (token_ids.py). Imports no torch.
"""

from __future__ import annotations

import re
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from operator import itemgetter
from typing import Any, NoReturn

from alignment.command_line import REPOSITORY, UserError, nearest, warn
from alignment.pretrained import first_line, load_pretrained, load_tokenizer, local_folder, read_settings
from alignment.template_trial import check_ends, without_marks
from alignment.token_ids import ANCHOR, MARK, adds_bos, continuation_ids, marked, marker, plain_ids, text_ids

Message = dict[str, str]
ASSETS = REPOSITORY / "assets" / "templates"
TURN = re.compile(r"\n\n(Human|Assistant):")
LAST_TURN = "\n\nAssistant:"
PROBE = "text between marks"  # stands for what is said while a chat template shows what it makes of it
SAMPLE = {"prompt": "a", "judgment": "a"}  # a row that every template takes, to see how its prompts begin and end
READ = ("system", "prompt", "instruction", "input", "judgment")  # what of a row a template reads
CHATML = ("<|im_start|>", "<|im_end|>")  # open and end a turn


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
    end: str = ""  # the token that closes a response, where it is another than the tokenizer's EOS
    folds: bool = True  # a system message opens the first turn; else it has a role of its own
    trims: bool = False  # a response loses the blanks around it, as in many chat templates

    @property
    def end_id(self) -> int:
        """The id that is appended to a response and learned, and that ends generation."""
        return self.tokenizer.convert_tokens_to_ids(self.end or self.tokenizer.eos_token)

    def prompt_ids(self, rows: Sequence[dict], place: Callable[[int], str] | None = None) -> list[list[int]]:
        """Token ids of prompts, with BOS where the tokenizer adds one, and never twice; `place` as of `asked`."""
        return text_ids(self.tokenizer, self._marked(rows, place))

    def asked(self, rows: Sequence[dict], place: Callable[[int], str] | None = None) -> list[str | list[int]]:
        """What an engine is asked to continue: the prompts' texts, or the ids of one whose row spells a control token.
        Raw, and where the tokenizer is elsewhere, all is text, and a line says how many spell one.

        Raises UserError for a row that the template refuses, as one whose roles it does not have; it opens with `place`
        of the row's number, from 0.
        """
        found = self._marked(rows, place)
        if self.name == RAW or self.tokenizer is None:
            return as_they_are(found)
        return [text_ids(self.tokenizer, [text])[0] if MARK in text else text for text in found]

    def _marked(self, rows: Sequence[dict], place: Callable[[int], str] | None) -> list[str]:
        """The prompts' texts, in which a MARK is inside what the rows' own texts spell of control tokens."""
        found = []
        for number, row in enumerate(rows):
            try:
                found.append(self.render(marked({key: row[key] for key in READ if key in row}, self.mark)))
            except RecursionError:
                raise UserError(f"{place(number) if place else f'row {number}'} is nested too deeply") from None
            except UserError as error:
                raise UserError(f"{place(number)}: {error}" if place else str(error)) from None
        return found

    def response_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of responses as they follow a prompt, each closed by `end_id`, which is in the loss."""
        spelled = [self.lead + self.mark(text.strip() if self.trims else text) for text in texts]
        return [ids + [self.end_id] for ids in continuation_ids(self.tokenizer, spelled, self.anchor)]

    @cached_property
    def mark(self) -> Callable[[str], str]:
        """What marks a text of the data: `token_ids.marker` of the tokenizer, and of what the template writes."""
        written = plain_ids(self.tokenizer, [self.render(SAMPLE) + self.end])[0] if self.tokenizer else ()
        return marker(self.tokenizer, written)

    def say_spelled(self, source: object, rows: Sequence[Any]) -> None:
        """A line that says how many rows of a source spell control tokens, as those do that are rendered already."""
        if spelled := sum(marked(row, self.mark) != row for row in rows):
            warn(f"data {source}: {spelled:,} of {len(rows):,} rows spell control tokens, which are learned as text")

    @cached_property
    def anchor(self) -> str:
        """The special token that prompts end in, else ANCHOR."""
        token = self.tokenizer.added_tokens_decoder.get(self.prompt_ids([SAMPLE])[0][-1])
        return ANCHOR if token is None else token.content

    @property
    def takes_own_turns(self) -> bool:
        """Whether a prompt may end in the assistant's turn."""
        try:
            self.render(SAMPLE | {"prompt": talk("a", "b")})
        except UserError:
            return False
        return True


def load_template(name: str, tokenizer: Any) -> Template:
    """The template called `name`. Raises UserError for an unknown one, and for `chat` where the tokenizer has none.

    For `chatml` a tokenizer without its two tokens gets them; `fit_embeddings` then makes room in the model.
    """
    if name not in TEMPLATES:
        raise UserError(f"template {name!r} is none of {', '.join(TEMPLATES)}{nearest(name, TEMPLATES)}")
    if tokenizer.eos_token is None:
        raise UserError("the tokenizer has no EOS token, so no response could be learned to end; set eos_token")
    return TEMPLATES[name](tokenizer)


# Rows


def is_dialogue(text: Any) -> bool:
    """Whether a text is already in the shape of the `almost` template: Human and Assistant turns."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and LAST_TURN in text


def split_dialogue(text: str) -> tuple[str, str]:
    r"""A dialogue up to and with its last "\n\nAssistant:", and the reply after it, stripped."""
    prompt, _, reply = text.rpartition(LAST_TURN)
    return prompt + LAST_TURN, reply.strip()


def dialogue_messages(text: str) -> list[Message]:
    r"""The turns of "\n\nHuman: ...\n\nAssistant: ...", stripped, an empty last assistant turn left out."""
    parts = TURN.split("\n\n" + text.strip())[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    turns = [{"role": roles[who], "content": said.strip()} for who, said in zip(parts[::2], parts[1::2], strict=True)]
    return turns[:-1] if turns and turns[-1] == {"role": "assistant", "content": ""} else turns


def instruction_of(row: dict) -> str:
    """Instruction and input in one slot, a line apart (CUT section 2.2)."""
    return f"{row['instruction']}\n{row['input']}" if row.get("input") else row["instruction"]


def messages(row: dict) -> list[Message]:
    """Any form of a row as a list of messages that ends where the response begins. Raises KeyError for no form."""
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    if isinstance(row.get("prompt"), list):
        return system + row["prompt"]
    text = row["instruction"] if "instruction" in row else row["prompt"] if "prompt" in row else row["input"]
    if is_dialogue(text):
        return system + dialogue_messages(text)
    return system + [{"role": "user", "content": instruction_of(row) if "instruction" in row else text}]


def fold_system(found: list[Message]) -> list[Message]:
    """Messages without a system role: its text goes before the first user's, on a line of its own, as in Janus."""
    if not found or found[0]["role"] != "system":
        return found
    system, first, *rest = found if len(found) > 1 else [*found, {"role": "user", "content": ""}]
    told = f"{system['content']}\n" if system["content"] else ""
    return [{"role": "user", "content": told + first["content"]}, *rest]


# Text


@cache
def asset(name: str) -> Any:
    """The compiled assets/templates/<name>.jinja, read as transformers reads a chat template."""
    from jinja2 import Environment

    def refuse(reason: str) -> NoReturn:
        raise UserError(reason)

    environment = Environment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = refuse
    return environment.from_string((ASSETS / f"{name}.jinja").read_text("utf-8"))


def asset_text(name: str, row: dict, **slots: str) -> str:
    """A row's prompt in a template of assets/, of which only `chatml` has a role for a system message."""
    found = messages(row) if name == "chatml" else fold_system(messages(row))
    return asset(name).render(messages=found, add_generation_prompt=True, **slots)


def almost_text(row: dict) -> str:
    r"""A dialogue as it is; anything else in "\n\nHuman: {}\n\nAssistant:". A system message opens the first turn."""
    text = row.get("prompt", row.get("input"))
    if not is_dialogue(text) or row.get("system"):
        return asset_text("almost", row)
    opened = "\n\n" + text.strip()
    return opened if opened.endswith(LAST_TURN) else opened + LAST_TURN


def chat_text(tokenizer: Any, found: list[Message], opened: bool, **settings: Any) -> str:
    """What the tokenizer's chat template makes of messages, `opened` for a reply. UserError where it refuses them."""
    try:
        check_ends(tokenizer.get_chat_template())
        return tokenizer.apply_chat_template(found, tokenize=False, add_generation_prompt=opened, **settings)
    except UserError:
        raise
    except Exception as error:  # a template is somebody else's program, and may raise anything
        raise UserError(f"the tokenizer's chat template refuses the row: {first_line(error)}") from error


# Templates


def almost(tokenizer: Any) -> Template:
    return Template("almost", tokenizer, almost_text, " ", ("\n\nHuman:",), trims=True)


def alpaca(tokenizer: Any) -> Template:
    return Template("alpaca", tokenizer, partial(asset_text, "alpaca"), "", ("\n\n### Instruction:",))


def alpaca_judgment(tokenizer: Any) -> Template:
    return replace(
        alpaca(tokenizer),
        name="alpaca_judgment",
        render=lambda row: asset_text("alpaca", row, judgment=row["judgment"]),
    )


def mistral(tokenizer: Any) -> Template:
    render = partial(asset_text, "mistral", eos_token=tokenizer.eos_token)
    return Template("mistral", tokenizer, render, "", ("[INST]",))


def chatml(tokenizer: Any) -> Template:
    if missing := not_in(tokenizer):
        tokenizer.add_tokens(missing, special_tokens=True)
    return Template("chatml", tokenizer, partial(asset_text, "chatml"), end=CHATML[1], folds=False)


def not_in(tokenizer: Any) -> list[str]:
    """The tokens of `chatml` that a tokenizer lacks."""
    return [token for token in CHATML if token not in tokenizer.get_vocab()]


def chat(tokenizer: Any) -> Template:
    """The tokenizer's own. What it makes of a system message and of a reply is seen from what it writes."""
    if not tokenizer.chat_template:
        raise UserError("the tokenizer has no chat template; name another: --template almost, alpaca or mistral")
    try:  # some raise on a system message, some drop it silently
        folds = PROBE not in chat_text(tokenizer, [{"role": "system", "content": PROBE}, *talk("a")], False)
    except UserError:
        folds = True
    said, padded = (chat_text(tokenizer, talk("a", reply), False) for reply in (PROBE, f" {PROBE} "))
    before, _, after = said.rpartition(PROBE)
    lead = before.removeprefix(chat_text(tokenizer, talk("a"), True))
    return Template(
        "chat",
        tokenizer,
        lambda row: chat_text(tokenizer, fold_system(messages(row)) if folds else messages(row), True),
        lead=lead if lead.isspace() else "",  # other text, as an empty <think>, is no part of a reply
        end=closing_token(tokenizer, after.strip()),
        folds=folds,
        trims=f" {PROBE} " not in padded,
    )


def talk(*said: str) -> list[Message]:
    """A conversation: the user's turns and the assistant's by turns."""
    return [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]


def closing_token(tokenizer: Any, after: str) -> str:
    """The special token that opens what a chat template writes after a reply; "" where it is EOS or there is none."""
    first = plain_ids(tokenizer, [after])[0][:1]
    special = first and first[0] in {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    return tokenizer.convert_ids_to_tokens(first[0]) if special and first[0] != tokenizer.eos_token_id else ""


TEMPLATES = {each.__name__: each for each in (almost, alpaca, alpaca_judgment, mistral, chatml, chat)}


# For other tools: what a saved model carries as chat_template.jinja


def chat_template(template: Template) -> str:
    r"""The Jinja text of a template as it was trained, to be the `tokenizer.chat_template` of the model that is saved.

    `apply_chat_template(messages)` of a conversation that ends in a reply gives `prompt_ids` + `response_ids`, the end
    token last; with `add_generation_prompt=True` it gives `prompt_ids`. A chat template of the model's own that does
    so already is returned as it is; another, as those of assets/, becomes a macro in closing.jinja. Alpaca's holds
    both of CUT's prompts: `apply_chat_template(messages, judgment="...")` gives `alpaca_judgment`.

    Tools tokenise the text as one, where training tokenises prompt and response apart. So ids differ, though never the
    text, where a tokenizer makes one token of both: after alpaca, or chat of a prompt that ends in a line end, if the
    reply begins with a line end or blanks; after mistral if it has a token like "](".
    """
    tokenizer, is_chat = template.tokenizer, template.name == "chat"
    file = ASSETS / f"{template.name.removesuffix('_judgment')}.jinja"
    text = tokenizer.get_chat_template() if is_chat else file.read_text("utf-8")
    trained = {"opening": opening(template), "lead": template.lead, "end": template.end or tokenizer.eos_token}
    trained |= {"folds": template.folds, "trims": template.trims}
    kept = re.sub(r"(\r\n|\r|\n)\Z", "", text)  # which Jinja drops from the end of a template
    closing = (ASSETS / "closing.jinja").read_text("utf-8")
    closed = closing.replace("TRAINED", repr(trained)).replace("SPELLED", without_marks(kept))  # a macro has none
    return text if is_chat and probed(tokenizer, text) == probed(tokenizer, closed) else closed


def probed(tokenizer: Any, text: str) -> list[str | None]:
    """What chat template `text` makes of conversations of each kind, None where it refuses."""
    found: list[str | None] = []
    for system in ([], [{"role": "system", "content": "s"}]):
        for turns in (["a"], ["a", "b", "c"]):
            for reply in ([], [PROBE], [f"\n{PROBE} "]):
                try:
                    found.append(chat_text(tokenizer, system + talk(*turns, *reply), not reply, chat_template=text))
                except UserError:
                    found.append(None)
    return found


def opening(template: Template) -> str:
    """What text, before a prompt's, tokenises to the ids that `prompt_ids` gives: BOS where the tokenizer adds one.

    Some SentencePiece tokenizers open a text with ▁, but not after a special token: there a space stands for it.
    """
    bos, prompt = template.tokenizer.bos_token or "", template.render(SAMPLE)
    wanted = text_ids(template.tokenizer, [prompt])[0]
    found = (text for text in ("", bos, f"{bos} ") if plain_ids(template.tokenizer, [text + prompt])[0] == wanted)
    return next(found, bos)


# For engines: a row -> the text to continue, without a tokenizer where one can do without

RAW = "raw"  # the row's text as it is
CHOICES = (*(name for name in TEMPLATES if not name.endswith("_judgment")), RAW)


def rendering_from(args: Namespace, default: str | None) -> Template:
    """The template of `template_name`, whose `asked` and `stop` are for the engine that the flags name.

    A server or simulated writer has no tokenizer here: `raw`, `alpaca` and `almost` do without one. BOS is left to the
    engine.
    """
    name = template_name(args, default)
    if is_elsewhere(args) and name in ("alpaca", "almost"):
        return TEMPLATES[name](None)
    tokenizer = None if is_elsewhere(args) and name == RAW else load_tokenizer(args.model_name_or_path, args.cache_dir)
    if name == "chatml" and (missing := not_in(tokenizer)):
        raise UserError(f"the tokenizer of {args.model_name_or_path} has no {missing[0]}: no model of it knows chatml")
    if name == RAW or (name == "chat" and not args.template and not tokenizer.chat_template):
        return Template(RAW, tokenizer, lambda row: messages(row)[-1]["content"])
    template = load_template(name, tokenizer)
    bos = tokenizer.bos_token if adds_bos(tokenizer) else ""
    return replace(template, render=lambda row: template.render(row).removeprefix(bos))


def data_from(args: Namespace) -> Template:
    """Texts that are data throughout, as few-shot prompts, each under "prompt", for the engine that the flags name."""
    tokenizer = None if is_elsewhere(args) else load_tokenizer(args.model_name_or_path, args.cache_dir)
    return Template("data", tokenizer, itemgetter("prompt"))


def as_they_are(prompts: Sequence[str]) -> list[str]:
    """Prompts without their marks, and a line that says how many spell control tokens."""
    if spelled := sum(MARK in prompt for prompt in prompts):
        told = f"{spelled:,} of {len(prompts):,} prompts spell control tokens"
        warn(f"{told}, and are given as they are: a model may read them as such")
    return [prompt.replace(MARK, "") for prompt in prompts]


def is_elsewhere(args: Namespace) -> bool:
    """Whether model and tokenizer are behind a server, or there are none."""
    return (args.ray_engine if args.backend == "ray" else args.backend) in ("openai", "simulated")


def template_name(args: Namespace, default: str | None) -> str:
    """--template, else the one that the model says it was trained with (J11), else `default`, of which None is chat
    where the tokenizer has one. Warns where the first two differ."""
    if is_elsewhere(args):
        return args.template or default or RAW
    trained = trained_with(args.model_name_or_path, args.cache_dir)
    if trained and args.template not in (None, trained):
        model = args.model_name_or_path
        warn(f"--template {args.template}, but {model} was trained with {trained}, as its config says")
    return args.template or trained or default or "chat"


def trained_with(name: str, cache_dir: Any = None) -> str | None:
    """The template that training left in a model's config, where engines can be asked in it. None also where there is
    no config that can be read: who loads the model says what is wrong."""
    folder = local_folder(name, cache_dir)
    try:
        if folder:
            config = read_settings(folder / "config.json", "model config")
        else:
            config = load_pretrained("AutoConfig", name, cache_dir=cache_dir).to_dict()
    except UserError:
        return None
    return config.get("prompt_template") if config.get("prompt_template") in CHOICES else None
