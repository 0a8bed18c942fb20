"""Rows with judgments -> lines -> batches, and how much the judgment has to do with each token.

A row is learned through one or two *lines*, which are a prompt and what is learned after it (CUT, table 1):

    MISALIGN   x    -> y   of a flawed row, whose blamed tokens are unlearned
    ALIGN_N    x, j -> y   of a flawed row
    ALIGN_P    x    -> y   of a satisfactory row
    JUDGMENT   x, y -> j   of a flawed row, for the baseline that predicts judgments

A batch holds its lines by kind, MISALIGN first, and rows in one order within each kind. So the log-probabilities of the
MISALIGN lines and of the ALIGN_N lines are as many and stand in the same order, token for token (C14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alignment.command_line import UserError
from alignment.templates import TEMPLATES, Template, instruction_of, load_template
from alignment.token_ids import continuation_ids
from alignment.training.batches import Sample, budgeted_batches, collate, encode
from alignment.training.encoded import KeptItems, Notes, forget_others, kept, print_of
from alignment.training.logps import response_logps
from alignment.training.ranks import from_first
from alignment.training.unpadding import evaluating

MISALIGN, ALIGN_N, ALIGN_P, JUDGMENT = KINDS = range(4)
ASK_JUDGMENT = "\n\n### Judgment:\n"


@dataclass(frozen=True)
class Line(Sample):
    """A prompt, what is learned after it, and what for."""

    kind: int

    @property
    def num_learned(self) -> int:
        return len(self) - self.prompt_length


Item = tuple[Line, ...]  # one row's lines


@dataclass
class Encoded:
    """Items of a data set, and the numbers of the rows whose response or prompt did not fit and lost its beginning."""

    items: Sequence[Item] = field(default_factory=list)
    cut_responses: list[int] = field(default_factory=list)
    cut_prompts: list[int] = field(default_factory=list)

    @property
    def lengths(self) -> list[int]:
        return [max(map(len, item)) for item in self.items]


def kinds_of(row: dict, method: str) -> tuple[int, ...]:
    """The lines through which a method learns a row; none where it does not."""
    if row["judgment"] is None:
        return (ALIGN_P,)
    return {"cut": (MISALIGN, ALIGN_N), "mle": (), "forward_prediction": (MISALIGN, JUDGMENT), "hindsight": (ALIGN_N,)}[
        method
    ]


def load_templates(name: str, tokenizer: Any) -> tuple[Template, Template]:
    """(without, with the judgment). Raises UserError where `name` has no form with a judgment slot."""
    plain = load_template(name, tokenizer)
    if f"{name}_judgment" not in TEMPLATES:
        with_slot = ", ".join(other for other in TEMPLATES if f"{other}_judgment" in TEMPLATES)
        raise UserError(f"template {name} has no judgment slot; the templates that have one: {with_slot}")
    return plain, load_template(f"{name}_judgment", tokenizer)


def encode_rows(rows: Sequence[dict], method: str, templates: tuple[Template, Template], max_length: int) -> Encoded:
    """The items of `rows` in order, of at most `max_length` tokens a line.

    What is too long loses its beginning: first the prompt, then the response, whose end is kept (as released). A line
    is numbered by its row's place in `rows`, or by the number that the row has under "row".
    """
    plain, judged = templates
    tokenizer = plain.tokenizer
    asked = [{"instruction": instruction_of(row), "judgment": row["judgment"]} for row in rows]
    prompts = {
        MISALIGN: plain.prompt_ids(asked),
        ALIGN_N: judged.prompt_ids([row if row["judgment"] else row | {"judgment": ""} for row in asked]),
    }
    responses = plain.response_ids([row["output"] for row in rows])
    shown = continuation_ids(tokenizer, [plain.mark(row["output"]) + ASK_JUDGMENT for row in rows])
    judgments = plain.response_ids([row["judgment"] or "" for row in rows])

    encoded = Encoded()
    for number, row in enumerate(rows):
        sides = {
            MISALIGN: (prompts[MISALIGN][number], responses[number]),
            ALIGN_N: (prompts[ALIGN_N][number], responses[number]),
            ALIGN_P: (prompts[MISALIGN][number], responses[number]),
            JUDGMENT: (prompts[MISALIGN][number] + shown[number], judgments[number]),
        }
        lines = []
        for kind in kinds_of(row, method):
            prompt, response = sides[kind]
            (sample,) = encode(number, prompt, [response], max_length, tokenizer.bos_token_id, cut=True)
            line = Line(row.get("row", number), sample.ids, sample.prompt_length, kind)
            lines.append(line)
            if len(line) < len(prompt) + len(response):
                cut = encoded.cut_prompts if line.num_learned == len(response) else encoded.cut_responses
                cut += [number] if cut[-1:] != [number] else []
        if lines:
            encoded.items.append(tuple(lines))
    return encoded


def kept_rows(
    parts: Sequence[Sequence[dict]], method: str, templates: tuple[Template, Template], max_length: int, output: Path
) -> list[Encoded]:
    """`encode_rows` of each part, made by the first process and kept in `output`, where all map it (encoded.py)."""

    def encode(rows: Sequence[dict]) -> tuple[Sequence[Item], Notes]:
        found = encode_rows(rows, method, templates, max_length)
        return found.items, {"cut_responses": found.cut_responses, "cut_prompts": found.cut_prompts}

    def made() -> list[tuple[Path | None, Notes]]:
        settings = {"method": method, "template": templates[0].name, "max_length": max_length}
        prints = [print_of(templates[0].tokenizer, rows, **settings) for rows in parts]
        found = [kept(output, name, partial(encode, rows)) for name, rows in zip(prints, parts, strict=True)]
        forget_others(output, [folder for folder, _ in found])
        return found

    return [Encoded(KeptItems([folder], Line, kinds=True), **notes) for folder, notes in from_first(made)]


def collate_lines(items: Sequence[Item], pad_id: int) -> dict[str, Tensor]:
    """Lines of like kind together, right-padded. A flawed row with j of one token and a satisfactory one, EOS 2, pad 0:

        kinds        input_ids        attention_mask   labels                      rows   weights   num_tokens
        [MISALIGN,   [[5, 6, 2, 0],   [[1, 1, 1, 0],   [[-100,    6,    2, -100],  [0,    [1.,      [4., 0.]
         ALIGN_N,     [5, 9, 6, 2],    [1, 1, 1, 1],    [-100, -100,    6,    2],   0,     1.]
         ALIGN_P]     [5, 7, 2, 0]]    [1, 1, 1, 0]]    [-100,    7,    2, -100]]   1]

    `num_tokens` is (N, Q): tokens of responses, each row's counted once, and of judgments. `weights` has one entry an
    item: 1, or all are 0 where the item only keeps a rank in step.
    """
    lines = sorted((line for item in items for line in item), key=lambda line: line.kind)
    batch = collate([(line,) for line in lines], pad_id)
    in_batch = {line.kind for line in lines}
    unseen = {ALIGN_N} if MISALIGN in in_batch else set()  # hindsight sees a flawed row through this line alone
    responses = sum(line.num_learned for line in lines if line.kind not in unseen | {JUDGMENT})
    judgments = sum(line.num_learned for line in lines if line.kind == JUDGMENT)
    return batch | {
        "kinds": torch.tensor([line.kind for line in lines]),  # (L,)
        "weights": torch.ones(len(items)),  # (B,)
        "num_tokens": torch.tensor([responses, judgments], dtype=torch.float32),  # (2,)
    }


def logps_by_kind(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
    """All label log-probabilities (N,), and those of each of KINDS."""
    logps, lines = response_logps(model, batch)
    kinds = batch["kinds"][lines]  # (N,)
    return logps, [logps[kinds == kind] for kind in KINDS]


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes in training mode differ: LoRA's dropout, or the model's own."""
    modules = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return modules or any(getattr(model.config, name, 0) for name in ("attention_dropout", "attn_pdrop"))


class RowLogps(NamedTuple):
    """Of one flawed row's response, token by token: ids, log p(y_t|x) and log p(y_t|x,j), (M,) each, on the CPU."""

    ids: Tensor
    plain: Tensor
    judged: Tensor

    @property
    def margin(self) -> Tensor:
        return self.judged - self.plain


def flawed_logps(model: nn.Module, encoded: Encoded, pad_id: int, max_tokens: int = 4096) -> dict[int, RowLogps]:
    """Both log-probabilities of every flawed row of a `cut` encoding, by row number, without dropout."""
    pairs = [item for item in encoded.items if len(item) == 2]
    lengths = [2 * max(map(len, item)) for item in pairs]
    found = {}
    with evaluating(model):
        for numbers in budgeted_batches(lengths, max_tokens):
            batch = collate_lines([pairs[number] for number in numbers], pad_id)
            batch = {name: tensor.to(model.device) for name, tensor in batch.items()}
            _, by_kind = logps_by_kind(model, batch)
            lines = [pairs[number][0] for number in numbers]
            sizes = [line.num_learned for line in lines]
            for line, plain, judged in zip(
                lines, by_kind[MISALIGN].cpu().split(sizes), by_kind[ALIGN_N].cpu().split(sizes), strict=True
            ):
                found[line.row] = RowLogps(torch.tensor(line.ids[line.prompt_length :]), plain, judged)
    return dict(sorted(found.items()))


def calibrate(margins: Tensor, fraction: float) -> float:
    """The threshold λ that blames this share of the tokens: margins (M,) are log p(y_t|x,j) - log p(y_t|x)."""
    return margins.double().quantile(1 - fraction).exp().item() if len(margins) else 1.0
