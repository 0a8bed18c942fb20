"""Samples, collators, packing, and the cut of a step into micro-batches."""

import pickle
import random
import tracemalloc

import pytest
import torch
from conftest import make_llama, make_tokenizer

from alignment.command_line import UserError
from alignment.templates import load_template
from alignment.training import batches
from alignment.training.batches import (
    IGNORED,
    Sample,
    TooLong,
    collate,
    collate_packed,
    encode,
    encode_examples,
    epoch_batches,
    pack,
    plan_step,
)
from alignment.training.logps import response_logps, row_sums, speak_logps
from alignment.training_data import Example, Part


def test_encode_cuts_the_prompt_from_the_left_and_never_the_response():
    """8 tokens: BOS, the longer response's 3, so 4 of the prompt, the same for both."""
    chosen, rejected = encode(7, [1, 10, 11, 12, 13, 14], [[20, 21, 2], [22, 2]], max_length=8, bos=1)
    assert chosen == Sample(7, [1, 11, 12, 13, 14, 20, 21, 2], 5)
    assert rejected == Sample(7, [1, 11, 12, 13, 14, 22, 2], 5)
    assert chosen.labels == [IGNORED] * 5 + [20, 21, 2]
    (short,) = encode(0, [10, 11], [[2]], max_length=8, bos=1)
    assert short.ids == [10, 11, 2]
    with pytest.raises(TooLong, match="7 tokens does not fit in 8"):
        encode(0, [1, 10], [[20] * 6 + [2]], max_length=8, bos=1)


def test_collate_gives_the_batch_of_its_docstring():
    pairs = [(Sample(0, [5, 6, 2], 1), Sample(0, [5, 9, 2], 1)), (Sample(1, [5, 7, 8, 2], 1), Sample(1, [5, 2], 1))]
    batch = collate(pairs, pad_id=0)
    assert batch["input_ids"].tolist() == [[5, 6, 2, 0], [5, 7, 8, 2], [5, 9, 2, 0], [5, 2, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]
    no = IGNORED
    assert batch["labels"].tolist() == [[no, 6, 2, no], [no, 7, 8, 2], [no, 9, 2, no], [no, 2, no, no]]
    assert batch["rows"].tolist() == [0, 1, 0, 1] and batch["weights"].tolist() == [1.0, 1.0]


def test_collate_tells_padding_by_the_mask():
    """pad == EOS: the real EOS is attended to and learned, the padding is not (A12)."""
    batch = collate([(Sample(0, [5, 6, 2], 1),), (Sample(1, [5, 6, 7, 2], 1),)], pad_id=2)
    assert batch["input_ids"][0].tolist() == [5, 6, 2, 2]
    assert batch["attention_mask"][0].tolist() == [1, 1, 1, 0]
    assert batch["labels"][0].tolist() == [IGNORED, 6, 2, IGNORED]


def test_collate_packed_gives_the_line_of_its_docstring():
    packs = [(Sample(0, [5, 6, 2], 1), Sample(1, [7, 2], 1)), (Sample(2, [5, 6, 7, 8, 9, 2], 1),)]
    batch = collate_packed(packs, pad_id=0)
    assert batch["input_ids"][0].tolist() == [5, 6, 2, 7, 2, 0]
    assert batch["position_ids"][0].tolist() == [0, 1, 2, 0, 1, 0]
    assert batch["labels"][0].tolist() == [IGNORED, 6, 2, IGNORED, 2, IGNORED]
    assert batch["segments"].tolist() == [[0, 0, 0, 1, 1, -1], [2] * 6]
    assert batch["rows"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_log_probabilities_are_the_unpacked_ones(attention):
    """Every sample's sum, alone in a padded line or among others in a packed one: attention does not cross."""
    model = speak_logps(make_llama(50, attn_implementation=attention).double())
    draw = random.Random(0)
    samples = [Sample(i, [draw.randrange(4, 50) for _ in range(draw.randint(3, 20))], 2) for i in range(9)]
    packs = pack([(sample,) for sample in samples], max_length=24)
    assert max(len(each) for each in packs) > 1 and sum(len(each) for each in packs) == 9
    padded, packed = collate([(s,) for s in samples], 0), collate_packed(packs, 0)
    alone = dict(zip(padded["rows"].tolist(), row_sums(*response_logps(model, padded), 9).tolist(), strict=True))
    among = dict(zip(packed["rows"].tolist(), row_sums(*response_logps(model, packed), 9).tolist(), strict=True))
    assert among == pytest.approx(alone, abs=1e-10 if attention == "sdpa" else 1e-6)  # eager: softmax in fp32


def test_a_token_is_kept_in_four_bytes():
    """200 samples of 500 tokens that are no small numbers, which Python shares: 4 bytes each, and not 36 or more."""
    ids = [[1000 + n for n in range(500)] for _ in range(200)]
    tracemalloc.start()
    try:
        samples = [Sample(row, line, 1) for row, line in enumerate(ids)]
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held / 100_000 < 6
    assert samples[7].ids == ids[7] and len(samples[7]) == 500 and samples[7] == Sample(7, ids[7], 1)
    assert pickle.loads(pickle.dumps(samples[7])) == samples[7]


def test_rows_are_tokenised_part_by_part(tokenizer, monkeypatch):
    """Two rows at a time or all at once: the same items. Of 12 tokens 11 are a response's, and the longer one has
    2n + 2, its blank and EOS among them: from row 5 on too many."""
    template = load_template("almost", tokenizer)
    rows = [Example(n, {"prompt": "a" * n}, ("b" * n, "c" * (2 * n))) for n in range(1, 8)]
    whole = encode_examples(rows, template, 40)
    monkeypatch.setattr(batches, "AT_ONCE", 2)
    assert encode_examples(rows, template, 40) == whole and len(whole[0]) == 7
    assert encode_examples(rows, template, 12)[1] == [5, 6, 7]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_one_blank_stands_before_a_response_however_data_spell_it(kind):
    """The blank belongs to the template, and released data have it in the prompt, in the response, or nowhere."""
    forms = [("\n\nHuman: q\n\nAssistant:", " out"), ("\n\nHuman: q\n\nAssistant:", "out")]
    forms += [("\n\nHuman: q\n\nAssistant: ", "out")]
    rows = [Example(n, {"input": prompt}, (response,)) for n, (prompt, response) in enumerate(forms)]
    items, _ = encode_examples(rows, load_template("almost", tokenizer := make_tokenizer(kind)), 80)
    assert len({(tuple(sample.ids), sample.prompt_length) for (sample,) in items}) == 1
    *_, colon, blank, o, u, t, end = tokenizer.convert_ids_to_tokens(items[0][0].ids)
    assert (colon, o + u + t, end) == (":", "out", "</s>") and blank in ("Ġ", "▁")


def test_a_row_that_the_template_refuses_is_named(tokenizer, monkeypatch):
    """By its own number, whatever part it is tokenised in, and through what names the file."""
    monkeypatch.setattr(batches, "AT_ONCE", 2)
    prompts = ["a", "b", "c", [{"role": "tool", "content": "5"}]]
    rows = [Example(10 + n, {"prompt": prompt}, ("yes",)) for n, prompt in enumerate(prompts)]
    template = load_template("almost", tokenizer)
    with pytest.raises(UserError, match="^row 13: template almost has no role tool"):
        encode_examples(rows, template, 40)
    with pytest.raises(UserError, match="^data x.json, row 3: template almost has no role tool"):
        encode_examples(rows, template, 40, Part("x.json", 10, 4, rows).place)


def test_packs_are_full_and_hold_everything_once():
    draw = random.Random(1)
    samples = [Sample(i, [5] * draw.randint(100, 1000), 1) for i in range(500)]
    packs = pack([(s,) for s in samples], 2048)
    assert sorted(s.row for each in packs for s in each) == list(range(500))
    assert max(sum(map(len, each)) for each in packs) <= 2048
    assert sum(map(len, samples)) / (2048 * len(packs)) > 0.95


def test_plan_step_lengths_by_hand():
    """Lengths 100, 10 x 10, 3 batches: 100 alone costs 100, and the ten of 10 fit one budget of 100; one is halved."""
    assert [len(batch) for batch in plan_step([10] * 5 + [100] + [10] * 5, 3)] == [1, 5, 5]
    assert plan_step([10] * 5 + [100] + [10] * 5, 3)[0] == [5]
    assert plan_step([7], 2) == [[0], []]


@pytest.mark.parametrize("world, accumulation", [(1, 1), (1, 8), (2, 4), (4, 2)])
def test_a_step_holds_the_same_items_however_it_is_cut(world, accumulation):
    """29 items, 8 a step: each rank gets as many batches, each step the same set, padding counted for little."""
    draw = random.Random(2)
    lengths = [draw.randint(5, 400) for _ in range(29)]
    ranks = [list(epoch_batches(lengths, 8, accumulation, rank, world, seed=3)) for rank in range(world)]
    assert {len(batches) for batches in ranks} == {4 * accumulation}
    steps = [
        sorted(
            i
            for batches in ranks
            for batch in batches[s * accumulation : (s + 1) * accumulation]
            for i in batch
            if i >= 0
        )
        for s in range(4)
    ]
    order = list(range(29))
    random.Random(3).shuffle(order)
    assert steps == [sorted(order[s : s + 8]) for s in range(0, 29, 8)]


def test_like_lengths_share_a_batch():
    """Padding wasted by the plan is under a tenth where batches as they come waste nearly half."""
    draw = random.Random(4)
    lengths = [draw.randint(10, 1000) for _ in range(128)]
    real = sum(lengths)
    planned = sum(max(lengths[i] for i in batch) * len(batch) for batch in plan_step(lengths, 32))
    as_they_come = sum(max(lengths[i : i + 4]) * 4 for i in range(0, 128, 4))
    assert real / planned > 0.9 and real / as_they_come < 0.7


def test_tensors_are_long(tokenizer):
    assert collate([(Sample(0, [5, 2], 1),)], 0)["input_ids"].dtype == torch.long
