"""Rows with judgments as lines and batches."""

import pytest
import torch

from alignment.command_line import UserError
from alignment.training import cut_lines
from alignment.training.batches import collate
from alignment.training.cut_lines import ALIGN_N, ALIGN_P, JUDGMENT, MISALIGN, Line, encode_rows, load_templates
from alignment.training.logps import speak_logps

FLAWED = {"id": 7, "instruction": "Add 1 and 1.", "input": "Now.", "output": "It is 3.", "judgment": "It is 2."}
GOOD = {"id": 8, "instruction": "Say hi.", "input": "", "output": "Hi there.", "judgment": None}


def kinds(item):
    return [line.kind for line in item]


def learned(tokenizer, line):
    return tokenizer.decode(line.ids[line.prompt_length :])


def test_collate_lines_docstring():
    flawed = (Line(0, [5, 6, 2], 1, MISALIGN), Line(0, [5, 9, 6, 2], 2, ALIGN_N))
    batch = cut_lines.collate_lines([(Line(1, [5, 7, 2], 1, ALIGN_P),), flawed], 0)
    assert batch["kinds"].tolist() == [MISALIGN, ALIGN_N, ALIGN_P]
    assert batch["input_ids"].tolist() == [[5, 6, 2, 0], [5, 9, 6, 2], [5, 7, 2, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 2, -100], [-100, -100, 6, 2], [-100, 7, 2, -100]]
    assert batch["rows"].tolist() == [0, 0, 1] and batch["weights"].tolist() == [1, 1]
    assert batch["num_tokens"].tolist() == [4, 0]


def test_num_tokens_of_the_baselines():
    """Hindsight sees a flawed row through ALIGN_N alone: 2 of it and 2 of the other; forecasting counts j apart."""
    good = (Line(1, [5, 7, 2], 1, ALIGN_P),)
    hindsight = (Line(0, [5, 9, 6, 2], 2, ALIGN_N),)
    assert cut_lines.collate_lines([hindsight, good], 0)["num_tokens"].tolist() == [4, 0]
    forecast = (Line(0, [5, 6, 2], 1, MISALIGN), Line(0, [5, 6, 8, 8, 2], 2, JUDGMENT))
    assert cut_lines.collate_lines([forecast, good], 0)["num_tokens"].tolist() == [4, 3]


@pytest.mark.parametrize(
    ("method", "found"),
    [
        ("cut", [[MISALIGN, ALIGN_N], [ALIGN_P]]),
        ("hindsight", [[ALIGN_N], [ALIGN_P]]),
        ("forward_prediction", [[MISALIGN, JUDGMENT], [ALIGN_P]]),
        ("mle", [[ALIGN_P]]),
    ],
)
def test_lines_of_each_method(tokenizer, method, found):
    """A satisfactory row is one line, so one forward (C4)."""
    encoded = encode_rows([FLAWED, GOOD], method, load_templates("alpaca", tokenizer), 500)
    assert [kinds(item) for item in encoded.items] == found
    assert encoded.cut_prompts == encoded.cut_responses == []


def test_conditions_and_targets(tokenizer):
    """Only ALIGN_N shows the judgment, instruction and input share a slot, and EOS closes what is learned."""
    items = encode_rows([FLAWED], "cut", load_templates("alpaca", tokenizer), 500).items[0]
    texts = [tokenizer.decode(line.ids[: line.prompt_length]) for line in items]
    assert all("### Instruction:\nAdd 1 and 1.\nNow.\n\n" in text for text in texts)
    assert ["It is 2." in text for text in texts] == [False, True]
    assert [learned(tokenizer, line) for line in items] == ["It is 3.</s>"] * 2
    _, forecast = encode_rows([FLAWED], "forward_prediction", load_templates("alpaca", tokenizer), 500).items[0]
    assert tokenizer.decode(forecast.ids[: forecast.prompt_length]).endswith("It is 3.\n\n### Judgment:\n")
    assert learned(tokenizer, forecast) == "It is 2.</s>"


@pytest.mark.parametrize(("cutoff", "response"), [(40, "It is 3.</s>"), (8, " is 3.</s>"), (6, "s 3.</s>")])
def test_too_long_keeps_the_end_and_the_pair_in_step(tokenizer, cutoff, response):
    """At 40 tokens the prompts lose their beginning; at 8 and 6 the response does too, the same in both lines (C14)."""
    encoded = encode_rows([GOOD, FLAWED], "cut", load_templates("alpaca", tokenizer), cutoff)
    lines = encoded.items[1]
    assert [learned(tokenizer, line) for line in lines] == [response] * 2
    assert [len(line) for line in lines] == [cutoff] * 2
    assert encoded.cut_responses == ([] if cutoff == 40 else [0, 1])
    assert encoded.cut_prompts == ([0, 1] if cutoff == 40 else [])


def test_template_without_a_judgment_slot(tokenizer):
    with pytest.raises(UserError, match="template almost has no judgment slot; .* alpaca"):
        load_templates("almost", tokenizer)


def test_flawed_logps_are_those_of_each_row_alone(tokenizer, llama):
    """Batched and padded, or one line at a time from plain logits: the same numbers, in row order."""
    rows = [GOOD, FLAWED, FLAWED | {"output": "Three, I should think.", "judgment": "No, two."}]
    encoded = encode_rows(rows, "cut", load_templates("alpaca", tokenizer), 500)
    wanted = {}
    for item in encoded.items[1:]:
        lines = []
        for line in item:
            batch = collate([(line,)], 0)
            logits = llama(input_ids=batch["input_ids"]).logits[0, line.prompt_length - 1 : -1]
            targets = torch.tensor(line.ids[line.prompt_length :])
            lines.append(logits.log_softmax(-1).gather(1, targets[:, None])[:, 0])
        wanted[item[0].row] = lines
    found = cut_lines.flawed_logps(speak_logps(llama), encoded, 3)
    assert list(found) == [1, 2]
    for row, (plain, judgment) in wanted.items():
        torch.testing.assert_close(found[row].plain, plain, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found[row].judged, judgment, atol=1e-5, rtol=1e-5)
        assert tokenizer.decode(found[row].ids) == rows[row]["output"] + "</s>"


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_calibrate(fraction):
    """Of 200 margins 0.00 .. 1.99 the threshold blames the share asked for, to one token."""
    margins = torch.arange(200) / 100
    share = (margins > torch.tensor(cut_lines.calibrate(margins, fraction)).log()).float().mean().item()
    assert share == pytest.approx(fraction, abs=0.006)
