"""generate.py with the simulated writer and, through transformers, a tiny Llama."""

import dataclasses
import json
import random
import signal
import subprocess
import sys

import pytest

import generate
from alignment.command_line import REPOSITORY, UserError
from alignment.engines.scoring import SimulatedScorer
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply, record_seed
from alignment.intervals import with_interval
from alignment.ranking import best_of_n_curve

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


def test_a_response_goes_on_to_the_model_s_own_end_as_released(tmp_path, data, monkeypatch):
    """One of six AlpacaEval answers holds a further `### Instruction:`."""
    monkeypatch.setattr(SimulatedEngine, "_write", lambda *asked: "One.\n\n### Instruction:\nTwo.")
    assert {row["output"] for row in simulated(data, tmp_path / "a.json")} == {"One.\n\n### Instruction:\nTwo."}
    assert {row["output"] for row in simulated(data, tmp_path / "b.json", "--stop_at_instruction")} == {"One."}
    assert {row["output"] for row in simulated(data, tmp_path / "c.json", "--template", "almost")} == {
        "One.\n\n### Instruction:\nTwo."
    }


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
        return dataclasses.replace(rendering, render=lambda row: seen.append(row["prompt"]) or rendering.render(row))

    def typed(prompt):
        try:
            return next(lines)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", typed)
    monkeypatch.setattr(generate, "rendering_from", recording)
    respond("--base_model_name_or_path", model_folder, "--interactive", "--template", "chat", "--max_new_tokens", 3)
    assert [len(turns) for turns in seen if isinstance(turns, list)] == [1, 3, 1]


@pytest.mark.parametrize(
    ("rows", "flags", "said"),
    [
        ([{"text": "x"}], [], "has none of instruction, prompt, user_prompt, input, but text; name .* by --user_key"),
        ([ROWS[0], {"id": 3}], [], "row 1 has no text under 'instruction'"),
        ([{"prompt": " "}], [], "row 0 has no text under 'prompt'"),
        ([{"prompt": ["x"]}], [], "row 0 has no text under 'prompt'"),
        ([ROWS[0] | {"system": {"role": "x"}}], [], "row 0 has no text under 'system'"),
        ([{"prompt": "x"}], ["--user_key", "promt"], "no 'promt', but prompt: --user_key promt; did you mean 'prompt'"),
        ([{"prompt": "x", "system": "s"}], ["--system_key", "sistem"], "no 'sistem', .*; did you mean 'system'"),
        ([], [], "has no rows"),
        (ROWS, ["--base_model_name_or_path", "./nowhere", "--backend", "hf", "--output_file", "o"], "does not exist"),
        (ROWS, ["--base_model_name_or_path", "org/name"], "is no folder: give --output_file"),
        (ROWS, ["--template", "chat", "--output_file", "o"], "no tokenizer in"),
        (ROWS, ["--n", 4, "--reward_model", "simulated"], "--n 4 at --temperature 0 gives 4 times the same"),
        (ROWS, ["--n", 2, "--temperature", 1], "--n 2 needs --reward_model MODEL to choose by, or --choose longest"),
        (ROWS, ["--n", 4, "--temperature", 1, "--reward_model", "./nowhere"], "nowhere does not exist"),
        (ROWS, ["--reward_model", "simulated?noise=x"], "noise is no number"),
        (ROWS, ["--reward_api_base", "http://localhost:1"], "--reward_model is missing"),
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


# System messages, columns, recipes, the template of the checkpoint


@pytest.fixture
def asked(monkeypatch):
    """What the simulated engine is asked: prompts and samplings."""
    seen, original = [], SimulatedEngine.complete

    def recording(self, requests, sampling):
        seen.extend((request.prompt, sampling) for request in requests)
        return original(self, requests, sampling)

    monkeypatch.setattr(SimulatedEngine, "complete", recording)
    return seen


SAID = "\n\nHuman: {}\n\nAssistant:"


def test_collection_and_bench_rows_are_answered(tmp_path, data, asked):
    """All of them: prompt and system message as they are there, none where it is null or empty; ids as they came, and
    none where there is none."""
    rows = [
        {
            "id": "a",
            "system": "Be a poet.",
            "prompt": "Say one.",
            "preference_set": [],
            "rubrics": [],
            "source": "koala",
        },
        {"id": 7, "system": "", "prompt": "Say two."},
        {"system": None, "prompt": "Say three.", "input": "Now."},
        {"prompt": "Say four."},
    ]
    data.write_text(json.dumps(rows))
    found = simulated(data, tmp_path / "out.json", "--template", "almost")
    said = ["Be a poet.\nSay one.", "Say two.", "Say three.\nNow.", "Say four."]
    assert [prompt for prompt, _ in asked] == [SAID.format(text) for text in said]
    assert [row.get("id") for row in found] == ["a", 7, None, None]
    assert [row["instruction"] for row in found] == [row["prompt"] for row in rows]
    assert [row.get("system") for row in found] == ["Be a poet.", None, None, None]
    assert set(found[0]) == {"id", "instruction", "system", "output", "generator", "dataset"}


def test_columns_by_name(tmp_path, data, asked):
    """Of two columns that could be the user's the one named, and a system message of any name. The first there is the
    default: instruction before prompt before input, which is a text of its own then."""
    row = {"instruction": "I", "prompt": "P", "input": "X", "style": "S", "system": "T"}
    data.write_text(json.dumps([row]))
    simulated(data, tmp_path / "1.json", "--template", "almost")
    simulated(data, tmp_path / "2.json", "--template", "almost", "--user_key", "prompt", "--system_key", "style")
    data.write_text(json.dumps([{"instruction": None, "input": "X"}]))
    simulated(data, tmp_path / "3.json", "--template", "almost")
    assert [prompt for prompt, _ in asked] == [SAID.format(text) for text in ("T\nI\nX", "S\nP\nX", "X")]


def test_recipe_of_janus(tmp_path, data, asked):
    """The released inference code's sampling; a flag that is given wins; without it CUT's, and no penalty."""
    simulated(data, tmp_path / "1.json", "--recipe", "janus")
    simulated(data, tmp_path / "2.json", "--recipe", "janus", "--temperature", 0, "--repetition_penalty", 1.2)
    simulated(data, tmp_path / "3.json")
    found = [(one.temperature, one.top_p, one.repetition_penalty, one.max_tokens) for _, one in asked[::2]]
    assert found == [(1.0, 0.9, 1.03, 1024), (0.0, 0.9, 1.2, 1024), (0.0, 1.0, 1.0, 2048)]
    assert json.loads((tmp_path / "1.json.run.json").read_text())["arguments"]["repetition_penalty"] == 1.03


def test_the_reward_model_sees_the_system_message(tmp_path, data, monkeypatch):
    """Two rows of one prompt: each candidate is scored under its own row's message, and the pools tell them apart."""
    data.write_text(json.dumps([{"system": text, "prompt": "Say one."} for text in ("Be kind.", "Be rude.")]))
    seen, original = [], SimulatedScorer.score
    monkeypatch.setattr(
        SimulatedScorer, "score", lambda self, rows, texts: seen.extend(rows) or original(self, rows, texts)
    )
    output = tmp_path / "out.json"
    simulated(data, output, "--recipe", "janus", "--n", 2, "--reward_model", "simulated")
    assert [(row["system"], row["instruction"]) for row in seen] == [
        (text, "Say one.") for text in ("Be kind.", "Be kind.", "Be rude.", "Be rude.")
    ]
    assert [pool["system"] for pool in pools_of(output)] == ["Be kind.", "Be rude."]


def test_the_template_is_the_checkpoints_own(tmp_path, model_folder, data, asked, monkeypatch, capsys):
    """J11: what the folder says, else alpaca; told on the card. Another that is given is used, with a line that names
    both."""
    monkeypatch.setattr(generate, "engine_from", lambda args: SimulatedEngine("writer"))
    command = ["--base_model_name_or_path", model_folder, "--data_path", data, "--limit", 1]
    respond(*command, "--output_file", tmp_path / "1.json")
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(json.dumps(config | {"prompt_template": "mistral"}))
    respond(*command, "--output_file", tmp_path / "2.json")
    assert capsys.readouterr().err.count("warning") == 0
    respond(*command, "--output_file", tmp_path / "3.json", "--template", "chatml")
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert said == [f"warning: --template chatml, but {model_folder} was trained with mistral, as its config says"]
    assert [prompt[:8] for prompt, _ in asked] == ["Below is", "[INST] S", "<|im_sta"]
    assert [sampling.stop_ids for _, sampling in asked] == [(), (), (5,)]
    cards = [json.loads((tmp_path / f"{number}.json.run.json").read_text()) for number in (1, 2, 3)]
    assert [card["arguments"]["template"] for card in cards] == ["alpaca", "mistral", "chatml"]


def test_without_the_hub(tmp_path):
    with pytest.raises(UserError, match="give --data_path FILE"):
        respond("--base_model_name_or_path", "writer", "--backend", "simulated", "--output_file", tmp_path / "o")


# Best of n


SAMPLED = ["--temperature", 1, "--n", 4]
JUDGED = [*SAMPLED, "--reward_model", "simulated?noise=0.5"]
BESIDE = (".json", ".candidates.jsonl", ".best_of_n.json", ".best_of_n.png")


def pools_of(output):
    return [json.loads(line) for line in output.with_suffix(".candidates.jsonl").read_text().splitlines()]


def journaled(output):
    return [json.loads(line)["key"] for line in output.with_name(output.name + ".journal.jsonl").open()]


@pytest.fixture
def many(data):
    data.write_text(json.dumps([{"instruction": f"Say {number}."} for number in range(12)]))
    return data


def test_the_output_is_the_candidate_of_the_highest_reward(tmp_path, many, capsys):
    """12 rows of 4: which one, its text, and the curve from all of them, on disk, printed and on the card."""
    output = tmp_path / "out.json"
    rows, pools = simulated(many, output, *JUDGED), pools_of(output)
    assert [pool["instruction"] for pool in pools] == [f"Say {number}." for number in range(12)]
    for row, pool in zip(rows, pools, strict=True):
        rewards = [each["reward"] for each in pool["candidates"]]
        assert len(rewards) == 4 and rewards[pool["chosen"]] == max(rewards)
        assert row["output"] == pool["candidates"][pool["chosen"]]["output"]
        assert {each["finish"] for each in pool["candidates"]} == {"stop"}
    assert len({pool["chosen"] for pool in pools}) > 1
    rewards = [[each["reward"] for each in pool["candidates"]] for pool in pools]
    lengths = [[len(each["output"]) for each in pool["candidates"]] for pool in pools]
    found = json.loads((tmp_path / "out.best_of_n.json").read_text())
    curve = json.loads(json.dumps(best_of_n_curve(rewards, lengths, seed=42)))
    assert found == {"rows": 12, "of": 12, "curve": curve}
    card = json.loads((tmp_path / "out.json.run.json").read_text())
    assert card["counts"]["best_of_n"] == found | {"curve": [curve[0], curve[1], curve[3]]}
    assert (tmp_path / "out.best_of_n.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert (
        "from the 12 of 12 rows with all candidates" in said and "12 instructions, 4 candidates each -> 12 resp" in said
    )
    last = next(line for line in said.splitlines() if line.startswith("4 "))
    assert " 0.636 " in last and f" {with_interval(*curve[3]['reward'].values())} " in last


@pytest.mark.parametrize("more", [[], [*SAMPLED, "--choose", "longest"], JUDGED])
def test_in_parts_of_rows_it_is_the_same(tmp_path, many, monkeypatch, more):
    """Parts of 5 requests, and rewards of 7 responses together, cut rows of 4 candidates; some are empty."""
    monkeypatch.setattr(SimulatedEngine, "_write", lambda self, asked, *_: " ok." * (asked.seed % 5))
    whole = simulated(many, tmp_path / "whole.json", "--skip", 2, *more)
    monkeypatch.setattr("alignment.engines.scoring.SCORED_TOGETHER", 7)
    for module in ("alignment.generation", "generate"):
        monkeypatch.setattr(f"{module}.AT_ONCE", 5)
    assert simulated(many, tmp_path / "parts.json", "--skip", 2, *more) == whole and len(whole) == 10
    files = [sorted(tmp_path.glob(f"{name}.[cb]*[!g]")) for name in ("whole", "parts")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    counts = [json.loads((tmp_path / f"{name}.json.run.json").read_text())["counts"] for name in ("whole", "parts")]
    assert counts[0] == counts[1]


def test_one_candidate_is_the_output_as_it_is_without_best_of_n(tmp_path, many):
    """The same text, from the same request; --reward_model adds its reward. More candidates only add to the pool."""
    plain = simulated(many, tmp_path / "plain.json", "--temperature", 1)
    assert not list(tmp_path.glob("plain.[cb]*"))
    output = tmp_path / "out.json"
    assert simulated(many, output, "--temperature", 1, "--reward_model", "simulated") == plain
    assert journaled(output)[:12] == journaled(tmp_path / "plain.json")
    ones = [pool["candidates"] for pool in pools_of(output)]
    assert [each["output"] for [each] in ones] == [row["output"] for row in plain]
    assert [each["reward"] for [each] in ones] == [row["output"].count(".") for row in plain]
    [point] = json.loads((tmp_path / "out.best_of_n.json").read_text())["curve"]
    assert point["n"] == 1 and point["reward"]["mean"] == pytest.approx(sum(one["reward"] for [one] in ones) / 12)
    simulated(many, output, *SAMPLED, "--reward_model", "simulated")
    assert [pool["candidates"][:1] for pool in pools_of(output)] == ones
    assert len(set(journaled(output))) == len(journaled(output)) == 12 * 4 + 2  # and two lists of rewards


def test_seeds_of_candidates():
    """The first is what a run without --n has always had; the others are neither that of another row nor run."""
    seeds = [generate.candidate_seeds(42, row, 3) for row in range(2)]
    assert [own[0] for own in seeds] == [record_seed(42, "generate", row) for row in range(2)]
    assert seeds[1][2] == record_seed(42, "generate", 1, 2) and len({*seeds[0], *seeds[1]}) == 6
    assert generate.candidate_seeds(42, 1, 5)[:3] == seeds[1]


def test_choices_without_a_reward_model(tmp_path, many):
    """The longest; or any, by --seed. There is no reward, and no curve; one of a reward model's is gone."""
    output = tmp_path / "out.json"
    simulated(many, output, *JUDGED)
    simulated(many, output, *SAMPLED, "--choose", "longest")
    pools = pools_of(output)
    for pool in pools:
        lengths = [len(each["output"]) for each in pool["candidates"]]
        assert lengths[pool["chosen"]] == max(lengths) and {each["reward"] for each in pool["candidates"]} == {None}
    assert not list(tmp_path.glob("out.best_of_n.*"))
    simulated(many, output, *SAMPLED, "--choose", "random")
    drawn = [pool["chosen"] for pool in pools_of(output)]
    assert pools_of(output) == [pool | {"chosen": place} for pool, place in zip(pools, drawn, strict=True)]
    assert len(set(drawn)) > 2 and drawn != [pool["chosen"] for pool in pools]
    part = tmp_path / "part.json"
    simulated(many, part, *SAMPLED, "--choose", "random", "--skip", 5, "--limit", 3)
    assert [pool["chosen"] for pool in pools_of(part)] == drawn[5:8]
    simulated(many, output)
    assert not output.with_suffix(".candidates.jsonl").exists()


def test_a_reward_model_of_ours_scores_the_row_in_its_template(tmp_path, data):
    """Instruction and input of the row and the text of the output are what score() is given."""
    from test_scoring import make_reward_model

    from alignment.training.reward_model import load, score

    folder, output = make_reward_model(tmp_path / "rm"), tmp_path / "out.json"
    simulated(data, output, *SAMPLED, "--reward_model", folder)
    asked = [(row, each) for row, pool in zip(ROWS, pools_of(output), strict=True) for each in pool["candidates"]]
    prompts = [{name: row[name] for name in ("instruction", "input") if name in row} for row, _ in asked]
    rewards = score(*load(folder, device="cpu"), prompts, [each["output"] for _, each in asked])
    assert [each["reward"] for _, each in asked] == pytest.approx(rewards, abs=1e-5)
    assert list(json.loads((tmp_path / "out.json.run.json").read_text())["models"]) == [folder]


def test_it_is_done_only_with_what_stands_beside(tmp_path, many, capsys):
    output = tmp_path / "out.json"
    simulated(many, output, *JUDGED)
    first = {end: output.with_suffix(end).read_bytes() for end in BESIDE}
    simulated(many, output, *JUDGED)
    assert "nothing to do" in capsys.readouterr().out
    for end in (".candidates.jsonl", ".best_of_n.json"):
        output.with_suffix(end).unlink()
        simulated(many, output, *JUDGED)
        assert {end: output.with_suffix(end).read_bytes() for end in BESIDE} == first
        assert "nothing to do" not in capsys.readouterr().out


@pytest.mark.parametrize("flags", [[], SAMPLED])
@pytest.mark.parametrize("name", ["out.candidates.jsonl", "out.best_of_n.json"])
def test_what_would_be_written_beside_is_no_input(tmp_path, name, flags):
    rows = tmp_path / name
    rows.write_text(json.dumps(ROWS[0]) if name.endswith("l") else json.dumps(ROWS))
    before = rows.read_bytes()
    with pytest.raises(UserError, match=f"{name} is an input of this run; give another"):
        simulated(rows, tmp_path / "out.json", *flags, *(["--choose", "longest"] if flags else []))
    assert [path.name for path in tmp_path.iterdir()] == [name] and rows.read_bytes() == before


def test_a_candidate_that_fails_for_good_leaves_the_choice_to_the_others(tmp_path, many, monkeypatch, capsys):
    """Of row 0 the best is refused, of row 1 all are, of row 2 one is empty; the curve is of the other nine."""
    best = pools_of(tmp_path / "all.json")[0]["chosen"] if simulated(many, tmp_path / "all.json", *JUDGED) else None
    original = SimulatedEngine.complete

    def refusing(self, requests, sampling):
        for index, reply in original(self, requests, sampling):
            refused = index == best or 4 <= index < 8
            yield index, Reply(None, "refused: no") if refused else Reply("", "stop") if index == 8 else reply

    monkeypatch.setattr(SimulatedEngine, "complete", refusing)
    output = tmp_path / "out.json"
    rows, pools, whole = simulated(many, output, *JUDGED), pools_of(output), pools_of(tmp_path / "all.json")
    assert [row["instruction"] for row in rows] == [f"Say {number}." for number in range(12) if number != 1]
    assert pools[0]["candidates"][best] == {"output": None, "reward": None, "finish": "refused: no"}
    others = [each | {"place": place} for place, each in enumerate(whole[0]["candidates"]) if place != best]
    assert pools[0]["chosen"] == max(others, key=lambda each: each["reward"])["place"]
    assert pools[1]["chosen"] is None and pools[2]["candidates"][0]["output"] == "" and pools[3:] == whole[3:]
    assert json.loads((tmp_path / "out.best_of_n.json").read_text())["rows"] == 9
    assert "rows 1 (refused: no) left out" in capsys.readouterr().out


def test_a_model_that_says_nothing_has_an_empty_response(tmp_path, data, monkeypatch, capsys):
    """What does not come is left out; a blank reply is what the model said, and an evaluation is to see it."""
    original = SimulatedEngine.complete

    def quiet(self, requests, sampling):
        for index, reply in original(self, requests, sampling):
            yield index, Reply(" \n", "stop") if index < 4 else reply

    monkeypatch.setattr(SimulatedEngine, "complete", quiet)
    rows = simulated(data, tmp_path / "out.json", *JUDGED)
    assert [bool(row["output"]) for row in rows] == [False, True] and rows[0]["output"] == ""
    pool = pools_of(tmp_path / "out.json")[0]
    assert pool["chosen"] == 0 and {each["reward"] for each in pool["candidates"]} == {None}
    assert "2 responses ({'stop': 8}), 1 empty: " in capsys.readouterr().out


def test_no_row_with_all_candidates_has_no_curve(tmp_path, data, monkeypatch, capsys):
    original = SimulatedEngine.complete

    def refusing(self, requests, sampling):
        for index, reply in original(self, requests, sampling):
            yield index, Reply(None, "refused: no") if index % 4 == 1 else reply

    monkeypatch.setattr(SimulatedEngine, "complete", refusing)
    assert len(simulated(data, tmp_path / "out.json", *JUDGED)) == 2
    found = json.loads((tmp_path / "out.best_of_n.json").read_text())
    assert found == {"rows": 0, "of": 2, "curve": []} and not (tmp_path / "out.best_of_n.png").exists()
    said = capsys.readouterr().out
    assert "from the 0 of 2 rows with all candidates" in said and "KL bound" not in said


def test_what_may_heal_is_written_and_asked_for_again(tmp_path, many):
    """A share of 0.5 fails: rows have the best of what came, null where nothing did. Healed, all is as without."""
    whole = simulated(many, tmp_path / "whole.json", *JUDGED)
    model = {"model": "writer?quality=1&faults=0.5"}
    with pytest.raises(UserError, match="requests failed .*; the same command"):
        simulated(many, tmp_path / "out.json", *JUDGED, **model)
    partial, pools = json.loads((tmp_path / "out.json").read_text()), pools_of(tmp_path / "out.json")
    assert [row["output"] is None for row in partial] == [pool["chosen"] is None for pool in pools]
    assert not (tmp_path / "out.json.run.json").exists() and partial != whole
    assert simulated(many, tmp_path / "out.json", *JUDGED, **model) == whole
    for end in BESIDE[1:]:
        assert (tmp_path / f"out{end}").read_bytes() == (tmp_path / f"whole{end}").read_bytes()


def test_a_reward_that_is_not_finite_loses_nothing(tmp_path, many, monkeypatch):
    """One line; the output of another run stays, and once the scorer is sound nothing is sampled again."""
    output = tmp_path / "out.json"
    simulated(many, output)
    before, score = output.read_bytes(), SimulatedScorer.score
    monkeypatch.setattr(SimulatedScorer, "score", lambda self, rows, texts: [float("nan")] * len(texts))
    with pytest.raises(UserError, match="the reward model gives nan for"):
        simulated(many, output, *JUDGED)
    assert output.read_bytes() == before and not output.with_suffix(".candidates.jsonl").exists()
    monkeypatch.setattr(SimulatedScorer, "score", score)
    monkeypatch.setattr(SimulatedEngine, "complete", None)
    assert len(simulated(many, output, *JUDGED)) == 12


def test_a_causal_model_is_no_reward_model(tmp_path, model_folder, data):
    with pytest.raises(UserError, match="is no reward model: its config has 2 labels, not one"):
        simulated(data, tmp_path / "out.json", *SAMPLED, "--reward_model", model_folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["asks.json", "tiny"]


def test_no_candidates_is_no_number_of_them(data, capsys):
    with pytest.raises(SystemExit) as ended:
        respond("--base_model_name_or_path", "writer", "--n", 0)
    assert ended.value.code == 2 and "--n: 0 is out of range: at least 1" in capsys.readouterr().err


def test_without_matplotlib_the_numbers_are_written_and_it_is_said(tmp_path, many, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    simulated(many, tmp_path / "out.json", *JUDGED)
    assert "out.best_of_n.json is written, out.best_of_n.png is not" in capsys.readouterr().out
    assert not (tmp_path / "out.best_of_n.png").exists() and (tmp_path / "out.best_of_n.json").exists()


def test_killed_at_random_points_it_ends_the_same_and_makes_nothing_twice(tmp_path, many):
    """kill -9, four times; then all four files are those of a run that was not killed, byte for byte."""
    draw = random.Random(0)
    for name, kills in (("whole", 0), ("killed", 4)):
        (tmp_path / name).mkdir()
        output = tmp_path / name / "out.json"
        words = ["--base_model_name_or_path", "w?latency=0.04&refusals=0.1", "--backend", "simulated", *JUDGED]
        words = [str(word) for word in (*words, "--data_path", many, "--output_file", output)]
        command = [sys.executable, str(REPOSITORY / "generate.py"), *words]
        killed = 0
        while True:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            try:
                _, error = process.communicate(timeout=0.3 + draw.random() * 0.3 if killed < kills else None)
                assert process.returncode == 0, error
                break
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1
        assert killed == kills and len(set(journaled(output))) == len(journaled(output)) == 12 * 4 + 1
    for end in BESIDE:
        files = [(tmp_path / name / f"out{end}").read_bytes() for name in ("whole", "killed")]
        assert files[0] == files[1], end


def test_data_that_is_cut_while_it_is_read(tmp_path, many, monkeypatch):
    """Responses would be of other rows. Nothing is written. Lines of 32 bytes, so that what is read ends with one."""
    many = many.with_name("asks.jsonl")
    monkeypatch.setattr(SimulatedEngine, "_write", lambda *asked: many.write_text("") or " ok.")
    for module in ("alignment.generation", "generate"):
        monkeypatch.setattr(f"{module}.AT_ONCE", 5)
    rows = [json.dumps({"instruction": f"Say {number:08}"}) + "\n" for number in range(3_000)]
    assert {len(row) for row in rows} == {32}
    many.write_text("".join(rows))
    with pytest.raises(UserError, match="asks.jsonl was changed while it was read; the same command goes on"):
        simulated(many, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists() and not list(tmp_path.glob(".out*"))
