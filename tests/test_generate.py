"""generate.py with the simulated writer and, through transformers, a tiny Llama."""

import dataclasses
import json

import pytest

import generate
from alignment.command_line import UserError

ROWS = [{"instruction": "Say one.", "id": 5}, {"instruction": "Say two.", "input": "Now.", "dataset": "koala"}]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "asks.json"
    path.write_text(json.dumps(ROWS))
    return path


def respond(*words):
    generate.main(generate.parse_args([str(word) for word in words]))


def simulated(data, output, *more, model="writer?quality=1"):
    flags = ["--base_model_name_or_path", model, "--backend", "simulated", "--data_path", data, "--output_file", output]
    respond(*flags, *more)
    return json.loads(output.read_text())


def test_rows_are_what_alpaca_eval_reads(tmp_path, data):
    """Instruction, output and generator as text; the data set is the row's own or the file's name."""
    rows = simulated(data, tmp_path / "out.json")
    assert [row["instruction"] for row in rows] == ["Say one.", "Say two."]
    assert [row["dataset"] for row in rows] == ["asks", "koala"] and {row["generator"] for row in rows} == {"writer"}
    assert rows[0]["id"] == 5 and rows[1]["input"] == "Now." and "input" not in rows[0]
    assert all(row["output"] and row["output"] == row["output"].strip() for row in rows)


def test_checkpoint_folder_greedy_and_twice(tmp_path, model_folder, data, capsys):
    """The output goes into the checkpoint; the second run finds it, and greedy text is transformers' own."""
    command = ["--base_model_name_or_path", model_folder, "--backend", "hf", "--data_path", data, "--max_new_tokens", 8]
    respond(*command)
    output = model_folder / "alpaca_eval.json"
    rows = json.loads(output.read_text())
    written = output.stat().st_mtime_ns
    respond(*command)
    assert "nothing to do" in capsys.readouterr().out and output.stat().st_mtime_ns == written

    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = (kind.from_pretrained(model_folder) for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompt = (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSay two.\nNow.\n\n### Response:\n"
    )
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    reply = model.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert rows[1]["output"] == tokenizer.decode(reply, skip_special_tokens=True).strip()


def test_sampling_flags(tmp_path, model_folder, data):
    """Temperature draws and the seed decides; a top-p of next to nothing leaves the likeliest token, as greedy does.
    How many are in flight changes nothing."""

    def outputs(name, *more):
        fixed = ["--base_model_name_or_path", model_folder, "--backend", "hf", "--data_path", data]
        respond(*fixed, "--max_new_tokens", 8, "--output_file", tmp_path / f"{name}.json", *more)
        return [row["output"] for row in json.loads((tmp_path / f"{name}.json").read_text())]

    greedy, drawn = outputs("greedy"), outputs("drawn", "--temperature", 2)
    assert drawn != greedy and drawn != outputs("other", "--temperature", 2, "--seed", 7)
    assert outputs("narrow", "--temperature", 1, "--top_p", 1e-6) == greedy
    assert outputs("single", "--temperature", 2, "--batch_size", 1) == drawn


def test_interrupted_run_goes_on(tmp_path, data, monkeypatch):
    """What was finished before the interrupt is in the journal and is not asked for again."""
    from alignment.engines.simulated import SimulatedEngine

    asked, original = [], SimulatedEngine.complete

    def one_then_interrupt(self, requests, sampling):
        asked.append(len(requests))
        for finished, reply in enumerate(original(self, requests, sampling)):
            if len(asked) == 1 and finished == 1:
                raise KeyboardInterrupt
            yield reply

    monkeypatch.setattr(SimulatedEngine, "complete", one_then_interrupt)
    with pytest.raises(KeyboardInterrupt):
        simulated(data, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
    simulated(data, tmp_path / "out.json")
    assert asked == [2, 1]


def test_failed_requests_are_null_and_tried_again(tmp_path, data):
    with pytest.raises(UserError, match="2 requests failed .*; the same command"):
        simulated(data, tmp_path / "out.json", model="writer?faults=1")
    assert not (tmp_path / "out.json").exists()
    data.write_text(json.dumps([{"instruction": f"Say {number}."} for number in range(9)]))
    with pytest.raises(UserError, match="requests failed .*; the same command"):
        simulated(data, tmp_path / "out.json", model="writer?faults=0.4")
    outputs = [row["output"] for row in json.loads((tmp_path / "out.json").read_text())]
    assert len(outputs) == 9 and None in outputs and not (tmp_path / "out.json.run.json").exists()
    again = [row["output"] for row in simulated(data, tmp_path / "out.json", model="writer?faults=0.4")]
    assert None not in again and all(b in (a, None) for a, b in zip(again, outputs, strict=True))


def test_skip_leaves_out_the_first_rows(tmp_path, data):
    """The second row by itself: its own id, and the reply that it has among all."""
    whole = simulated(data, tmp_path / "whole.json")
    assert simulated(data, tmp_path / "second.json", "--skip", 1, "--limit", 1) == whole[1:]
    with pytest.raises(UserError, match="--skip 2 leaves no row"):
        simulated(data, tmp_path / "none.json", "--skip", 2)


def test_changed_flags_write_anew(tmp_path, data):
    first = simulated(data, tmp_path / "out.json")
    assert simulated(data, tmp_path / "out.json", "--seed", 1) != first
    assert len(simulated(data, tmp_path / "out.json", "--limit", 1)) == 1


def test_prompt_too_long_for_the_context_is_left_out(tmp_path, model_folder, data, capsys):
    data.write_text(json.dumps([*ROWS, {"instruction": "Say " + "three " * 200}]))
    respond("--base_model_name_or_path", model_folder, "--use_hf", "--data_path", data, "--max_new_tokens", 4)
    assert len(json.loads((model_folder / "alpaca_eval.json").read_text())) == 2
    assert "rows 2 (too long) left out" in capsys.readouterr().out


def test_interactive_streams_and_ends(model_folder, monkeypatch, capsys):
    """Two questions, a blank, a third, Ctrl-D: the second is asked after the first's two turns, the third alone."""
    lines, seen = iter(["Hello", "And?", "", "Anew"]), []
    original = generate.rendering_from

    def recording(args, default):
        rendering = original(args, default)
        return dataclasses.replace(
            rendering, render=lambda row: seen.append(len(row["prompt"])) or rendering.render(row)
        )

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(generate, "rendering_from", recording)
    respond("--base_model_name_or_path", model_folder, "--interactive", "--template", "chat", "--max_new_tokens", 3)
    assert seen == [1, 3, 1]


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([{"prompt": "x"}], [], "row 0 has no text under 'instruction'"),
        ([], [], "has no rows"),
        (ROWS, ["--base_model_name_or_path", "./nowhere", "--backend", "hf", "--output_file", "o"], "does not exist"),
        (ROWS, ["--base_model_name_or_path", "org/name"], "is no folder: give --output_file"),
        (ROWS, ["--template", "chat", "--output_file", "o"], "no tokenizer in"),
    ],
)
def test_wrong_input_writes_nothing(tmp_path, data, rows, flags, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data.write_text(json.dumps(rows))
    defaults = ["--base_model_name_or_path", "writer", "--backend", "simulated", "--data_path", data]
    if "--base_model_name_or_path" not in flags and "--output_file" not in flags:
        flags = [*flags, "--output_file", "o"]
    with pytest.raises(UserError, match=said):
        respond(*defaults, *flags)
    assert [path.name for path in tmp_path.iterdir()] == ["asks.json"]


def test_without_the_hub(tmp_path):
    with pytest.raises(UserError, match="give --data_path FILE"):
        respond("--base_model_name_or_path", "writer", "--backend", "simulated", "--output_file", tmp_path / "o")
