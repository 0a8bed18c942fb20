"""Token ids -> samples -> batches. What is learned, what is padding, and who may attend to whom is decided here.

A `Sample` is a prompt and the response to it; an *item* is what a loss looks at as one: `(sample,)` for supervised
training, `(chosen, rejected)` for pairs. Collators turn items into tensors; `plan_step` cuts the items of one optimiser
step into micro-batches of like length. Padding is told by the attention mask and never by token id (A12).
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100  # a label that is not learned
AT_ONCE = 4096  # rows that are tokenised together, whose ids are Python's numbers meanwhile


class Ids:
    """A field of a dataclass that is given a list of ids, or their bytes, gives a list, and keeps four bytes of each,
    not forty."""

    def __get__(self, instance: Any, owner: type) -> list[int]:
        if instance is None:
            raise AttributeError  # the field has no default
        return vars(instance)["packed"].tolist()

    def __set__(self, instance: Any, ids: Sequence[int] | bytes) -> None:
        vars(instance)["packed"] = array("i", ids)


@dataclass(frozen=True)
class Sample:
    """Ids of a prompt and its response, the response closed by EOS. `row` is the row's number in its file, from 0."""

    row: int
    ids: list[int] = Ids()
    prompt_length: int

    def __len__(self) -> int:
        return len(vars(self)["packed"])

    @property
    def labels(self) -> list[int]:
        """The response's ids, IGNORED elsewhere. The first token of all has nothing before it to be told from."""
        start = max(self.prompt_length, 1)
        return [IGNORED] * start + self.ids[start:]


Item = tuple[Sample, ...]


class TooLong(ValueError):
    """A response that does not fit in the model's length, so that its end could only be learned by cutting it."""


def encode(
    row: int,
    prompt: Sequence[int],
    responses: Sequence[Sequence[int]],
    max_length: int,
    bos: int | None,
    *,
    cut: bool = False,
) -> Item:
    """One sample per response to one prompt, all on the *same* prompt: the one way from ids to samples.

    The prompt loses tokens from the left, after its BOS, until the longest response fits with it. A response that does
    not fit even with BOS and one token of prompt is TooLong; with `cut` its end is kept, for where nothing is learned
    to be said in full (a reward is read at the end, and CUT looks token by token).
    """
    opening = list(prompt[:1]) if prompt and prompt[0] == bos else []
    body = prompt[len(opening) :]
    most = max_length - len(opening) - 1
    longest = max(map(len, responses))
    if longest > most and (not cut or most < 1):
        raise TooLong(f"a response of {longest} tokens does not fit in {max_length}")
    room = max_length - len(opening) - min(longest, most)
    kept = opening + list(body[-room:])
    return tuple(Sample(row, kept + list(response[-most:]), len(kept)) for response in responses)


def collate(items: Sequence[Item], pad_id: int) -> dict[str, Tensor]:
    """Items of k samples -> right-padded tensors: the first sample of every item, then the second of every item, ...

    Two pairs, prompt [5], chosen [6, 2] and [7, 8, 2], rejected [9, 2] and [2], pad 0, EOS 2:

        input_ids        attention_mask   labels                rows   weights
        [[5, 6, 2, 0],   [[1, 1, 1, 0],   [[-100, 6, 2, -100],  [0,    [1., 1.]
         [5, 7, 8, 2],    [1, 1, 1, 1],    [-100, 7, 8,    2],   1,
         [5, 9, 2, 0],    [1, 1, 1, 0],    [-100, 9, 2, -100],   0,
         [5, 2, 0, 0]]    [1, 1, 0, 0]]    [-100, 2, -100, -100]]  1]

    `weights` has one entry an item: 1, or 0 for an item that only keeps a rank in step (`plan_step`).
    """
    samples = [sample for view in zip(*items, strict=True) for sample in view]
    width = max(map(len, samples))
    return {
        "input_ids": torch.tensor([s.ids + [pad_id] * (width - len(s)) for s in samples]),  # (k·B, T)
        "attention_mask": torch.tensor([[1] * len(s) + [0] * (width - len(s)) for s in samples]),  # (k·B, T)
        "labels": torch.tensor([s.labels + [IGNORED] * (width - len(s)) for s in samples]),  # (k·B, T)
        "rows": torch.tensor([s.row for s in samples]),  # (k·B,)
        "weights": torch.ones(len(items)),  # (B,)
    }


def collate_packed(packs: Sequence[Item], pad_id: int) -> dict[str, Tensor]:
    """Packs of samples -> one line each, in which no sample sees another.

    There is no attention mask: borders are read from `position_ids`, which restart with each sample (unpadding.py, or
    transformers' own masks). Padding is a segment of its own that nothing attends to.
    One pack of [5, 6, 2] and [7, 2], beside a longer one:

        input_ids     [5, 6, 2, 7, 2, 0]        labels     [-100, 6, 2, -100, 2, -100]
        position_ids  [0, 1, 2, 0, 1, 0]        segments   [   0, 0, 0,    1, 1,   -1]

    `segments` numbers the samples through the batch.
    """
    width = max(sum(map(len, pack)) for pack in packs)
    lines: dict[str, list[list[int]]] = {"input_ids": [], "position_ids": [], "labels": [], "segments": []}
    number = 0
    for pack in packs:
        line: dict[str, list[int]] = {name: [] for name in lines}
        for sample in pack:
            line["input_ids"] += sample.ids
            line["position_ids"] += range(len(sample))
            line["labels"] += sample.labels
            line["segments"] += [number] * len(sample)
            number += 1
        short = width - len(line["input_ids"])
        for name, filler in zip(lines, ([pad_id] * short, range(short), [IGNORED] * short, [-1] * short), strict=True):
            lines[name].append([*line[name], *filler])
    batch = {name: torch.tensor(values) for name, values in lines.items()}  # (P, T) each
    batch["rows"] = torch.tensor([sample.row for pack in packs for sample in pack])
    batch["weights"] = torch.ones(number)
    return batch


def pack(items: Sequence[Item], max_length: int) -> list[Item]:
    """Single-sample items -> packs of at most `max_length` tokens: each into the fullest pack that has room.

    The order of items decides, so a shuffled epoch gives shuffled packs. Only the last 64 open packs are looked at,
    which keeps it linear and wastes little: lengths of 100 to 1,000 fill 2,048 to 97% or more.
    """
    done: list[list[Sample]] = []
    still_open: list[tuple[int, list[Sample]]] = []  # tokens used, samples
    for (sample,) in items:
        fitting = [place for place, (used, _) in enumerate(still_open) if used + len(sample) <= max_length]
        if fitting:
            place = max(fitting, key=lambda at: still_open[at][0])
            used, samples = still_open.pop(place)
            still_open.append((used + len(sample), [*samples, sample]))
        else:
            still_open.append((len(sample), [sample]))
        if len(still_open) > 64:
            done.append(still_open.pop(max(range(len(still_open)), key=lambda at: still_open[at][0]))[1])
    return [tuple(samples) for samples in done + [samples for _, samples in still_open]]


def plan_step(lengths: Sequence[int], num_batches: int) -> list[list[int]]:
    """Cut one optimiser step into `num_batches` micro-batches of like length and like cost.

    `lengths[i]` is item i's longest sample, in tokens; a micro-batch costs longest x items, padding included. The token
    budget is the smallest under which the step fits into the batches: long items come few to a batch and short ones
    many. With fewer items than batches some come back empty. Longest first.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    low, high = 1, lengths[order[0]] * len(order)
    while low < high:  # least feasible budget
        middle = (low + high) // 2
        fits = lengths[order[0]] <= middle and len(_fill(order, lengths, middle)) <= num_batches
        low, high = (low, middle) if fits else (middle + 1, high)
    batches = _fill(order, lengths, low)
    while len(batches) < num_batches and max(map(len, batches)) > 1:
        widest = max(range(len(batches)), key=lambda b: len(batches[b]))
        half = (len(batches[widest]) + 1) // 2
        batches[widest : widest + 1] = [batches[widest][:half], batches[widest][half:]]
    return batches + [[] for _ in range(num_batches - len(batches))]


def _fill(order: Sequence[int], lengths: Sequence[int], budget: int) -> list[list[int]]:
    batches: list[list[int]] = []
    for i in order:
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def epoch_batches(lengths: Sequence[int], per_step: int, accumulation: int, rank: int, world: int, seed: int):
    """Yield rank's micro-batches of an epoch as lists of item numbers; every step has `accumulation` of them.

    The epoch is shuffled by `seed` and cut into steps of `per_step` items, the same for any world and accumulation.
    A micro-batch without items of its own repeats one as `~i`, to be given weight 0, so that ranks stay in step.
    """
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    for start in range(0, len(order), per_step):
        step = order[start : start + per_step]
        batches = plan_step([lengths[i] for i in step], accumulation * world)
        shortest = min(step, key=lambda i: lengths[i])
        for batch in batches[rank::world]:  # neighbours cost alike, so ranks do
            yield [step[i] for i in batch] or [~shortest]


def budgeted_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Item numbers in batches of like length of at most `max_tokens` with padding, or one item, longest first."""
    yield from _fill(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)), lengths, max_tokens)


def encode_examples(
    examples, template, max_length: int, place: Callable[[int], str] = "row {}".format, *, cut: bool = False
) -> tuple[list[Item], list[int]]:
    """Examples (training_data.py) -> items, and the numbers of rows whose response is too long for `max_length`.

    Raises UserError, which opens with `place` of the row, for one that the template refuses.
    """
    items, too_long = [], []
    for start in range(0, len(examples), AT_ONCE):
        part = examples[start : start + AT_ONCE]
        rows = [example.row for example in part]
        prompts = template.prompt_ids([example.prompt for example in part], lambda at, rows=rows: place(rows[at]))
        replies = iter(template.response_ids([reply for example in part for reply in example.responses]))
        for example, prompt in zip(part, prompts, strict=True):
            responses = [next(replies) for _ in example.responses]
            bos = template.tokenizer.bos_token_id
            try:
                items.append(encode(example.row, prompt, responses, max_length, bos, cut=cut))
            except TooLong:
                too_long.append(example.row)
    return items, too_long


def shuffled(items: Sequence[Item], seed: int) -> list[Item]:
    return random.Random(seed).sample(list(items), len(items))
