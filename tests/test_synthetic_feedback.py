"""pg, rg and cs as a user runs them: the files, the resumption, and every wrong input with exit code 2 and one line."""

import argparse
import hashlib
import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest

import synthetic_feedback
from alignment.command_line import REPOSITORY, UserError
from alignment.filters import QUERY_RULES, why_drop
from alignment.run_cards import claim

SCRIPT = REPOSITORY / "synthetic_feedback.py"
SEEDS, HHH, FAITHFUL = (
    str(REPOSITORY / "assets" / f"{name}.txt") for name in ("seed_prompts", "HHH_prompt", "Faithful_prompt")
)
SIMULATED = ["--backend", "simulated", "--model_name_or_path", "Org/Writer-7B?quality=0.6"]


def call(*words):
    synthetic_feedback.main(synthetic_feedback.parse_args([str(word) for word in words]))


def pg(folder, *more, engine=SIMULATED):
    call("--mode", "pg", "--prompt_file_path", SEEDS, "--output_dir", folder, *engine, *more)
    return (folder / "prompts.txt").read_text().splitlines()


def snapshot(folder):
    """Every file below a folder and its content's hash."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture
def prompts_folder(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "prompts.txt").write_text("".join(f"What about number {i}?\n" for i in range(6)))
    return folder


# pg


def test_pg_accepts_as_many_as_asked_and_none_that_the_rules_drop(tmp_path):
    from alignment.rouge import rouge_l

    prompts = pg(tmp_path, "--num_generation", 40)
    assert len(prompts) == 40
    assert all(why_drop(prompt, QUERY_RULES) is None for prompt in prompts)
    assert max(rouge_l(b, a) for i, a in enumerate(prompts) for b in prompts[i + 1 :]) < 0.5
    counts = json.loads((tmp_path / "prompts.txt.run.json").read_text())["counts"]
    assert counts["accepted"] == 40 and counts["candidates"] == 40 + sum(counts["dropped"].values())


def test_pg_depends_on_the_seed_alone(tmp_path):
    first = pg(tmp_path / "a", "--num_generation", 20)
    assert pg(tmp_path / "b", "--num_generation", 20) == first
    assert pg(tmp_path / "c", "--num_generation", 20, "--seed", 1) != first


def test_pg_draws_its_shots_from_seeds_and_accepted_prompts(tmp_path, monkeypatch):
    seen = []

    def spy(engine, requests, sampling, **names):
        seen.extend(request.prompt for request in requests)
        return real(engine, requests, sampling, **names)

    real = synthetic_feedback.generate
    monkeypatch.setattr(synthetic_feedback, "generate", spy)
    prompts = pg(tmp_path, "--num_generation", 60, "--batch_size", 16, "--n_shot", 4)
    assert all(prompt.count("Query:") == 5 and prompt.endswith("\nQuery:") for prompt in seen)
    assert not any(prompt in seen[0] for prompt in prompts)
    assert any(f"Query: {prompt}\n" in text for prompt in prompts for text in seen[-16:])


def test_pg_ends_when_nothing_new_comes(tmp_path, capsys):
    """A model that only ever writes broken-off queries: dropped, and the run stops by itself."""
    with pytest.raises(UserError, match=r"none of \d+ candidates was accepted"):
        pg(tmp_path, engine=["--backend", "simulated", "--model_name_or_path", "w?malformed=1"])
    assert not (tmp_path / "prompts.txt").exists()
    assert "stopped early" in capsys.readouterr().out


def test_pg_keeps_what_it_has_when_acceptance_falls(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(synthetic_feedback, "STALLED", 100)
    monkeypatch.setattr(synthetic_feedback, "STALLED_ACCEPTS", 40)
    prompts = pg(tmp_path, "--num_generation", 5000)
    assert 0 < len(prompts) < 5000 and "stopped early" in capsys.readouterr().out


def test_pg_says_what_twice_as_many_would_take(tmp_path, capsys, monkeypatch):
    """At 110 prompts, seeds among them, and again once there are twice as many as then."""
    monkeypatch.setattr(synthetic_feedback, "MANY", 110)
    pg(tmp_path, "--num_generation", 150, "--batch_size", 16)
    lines = [line for line in capsys.readouterr().out.splitlines() if "near duplicates among" in line]
    counts = [
        int(re.search(r"among (\d+) took 0.0 minutes; among twice as many it takes 0.0", line)[1]) for line in lines
    ]
    assert len(counts) == 2 and 110 <= counts[0] < 126 and 2 * counts[0] <= counts[1] < 2 * counts[0] + 16


def test_pg_legacy_reads_the_second_query(tmp_path):
    """A1: the simulated writer's second query is another than its first, and only --legacy sees it."""
    assert not set(pg(tmp_path / "a")) & set(pg(tmp_path / "b", "--legacy", "True"))


# rg


def rg(folder, *more, engine=SIMULATED):
    call("--mode", "rg", "--output_dir", folder, *engine, *more)


def test_rg_writes_a_file_per_configuration_aligned_with_the_prompts(prompts_folder):
    rg(prompts_folder, "--prompt_file_path", HHH, FAITHFUL, "--n_shot", 1, 3)
    names = [f"writer-7b-{demo}-{k}shot.json" for demo in ("HHH", "Faithful") for k in (1, 3)]
    for name in names:
        replies = json.loads((prompts_folder / name).read_text())
        assert len(replies) == 6 and all("Human:" not in reply and reply == reply.strip() for reply in replies)
    assert len({(prompts_folder / name).read_text() for name in names}) == 4


def test_rg_samples_as_the_paper_does(prompts_folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        synthetic_feedback, "stream", lambda engine, requests, sampling, **_: seen.append(sampling) or iter(())
    )
    rg(prompts_folder, "--prompt_file_path", HHH, FAITHFUL, "--n_shot", 1)
    assert [(s.max_tokens, s.temperature, s.top_p) for s in seen] == [(384, 1.0, 0.9), (768, 1.0, 0.9)]
    rg(prompts_folder, "--prompt_file_path", HHH, "--temperature", 0, "--top_p", 0.5, "--max_new_tokens", 9)
    assert (seen[2].max_tokens, seen[2].temperature, seen[2].top_p) == (9, 0, 0.5)


def test_rg_writes_null_where_no_reply_came_and_the_next_run_tries_again(prompts_folder):
    faulty = ["--backend", "simulated", "--model_name_or_path", "w?faults=0.5"]
    words = ["--prompt_file_path", HHH, "--n_shot", 1]
    with pytest.raises(UserError, match=r"requests failed \(\d simulated fault\); the same command tries these again"):
        rg(prompts_folder, *words, engine=faulty)
    output = prompts_folder / "w-HHH-1shot.json"
    replies = json.loads(output.read_text())
    assert len(replies) == 6 and 0 < replies.count(None) < 6
    assert not (prompts_folder / "w-HHH-1shot.json.run.json").exists()
    rg(prompts_folder, *words, engine=faulty)
    healed = json.loads(output.read_text())
    assert [a for a, b in zip(healed, replies, strict=True) if b is not None] == [b for b in replies if b is not None]
    assert None not in healed and (prompts_folder / "w-HHH-1shot.json.run.json").exists()


def test_nothing_but_failures_ends_at_once(prompts_folder, tmp_path):
    """A dead writer: pg asks one round and no more; neither mode ends well, nor leaves a card."""
    dead = ["--backend", "simulated", "--model_name_or_path", "w?faults=1"]
    with pytest.raises(UserError, match="6 requests failed"):
        rg(prompts_folder, "--prompt_file_path", HHH, "--n_shot", 1, engine=dead)
    command = ["--mode", "pg", "--prompt_file_path", SEEDS, "--output_dir", tmp_path / "new", *dead]
    with pytest.raises(UserError, match="200 requests failed|requests failed"):
        synthetic_feedback.main(synthetic_feedback.parse_args(list(map(str, command))))
    assert not (tmp_path / "new").exists() or not list((tmp_path / "new").iterdir())


def test_two_models_do_not_write_the_same_file(prompts_folder, tmp_path):
    words = ["--prompt_file_path", HHH, "--n_shot", 1]
    one, other = (["--backend", "simulated", "--model_name_or_path", f"w?quality={q}"] for q in (0.9, 0.1))
    rg(prompts_folder, *words, engine=one)
    before = (prompts_folder / "w-HHH-1shot.json").read_bytes()
    with pytest.raises(UserError, match=r"w-HHH-1shot.json was made by another model \(w.quality=0.9\)"):
        rg(prompts_folder, *words, engine=other)
    assert (prompts_folder / "w-HHH-1shot.json").read_bytes() == before
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "HHH_prompt.txt").write_text("Header.\n\n-----\n\nHuman: Hi?\n\nAssistant: Yes.\n")
    with pytest.raises(UserError, match="two of the configurations are called w-HHH-1shot"):
        rg(prompts_folder, "--prompt_file_path", HHH, tmp_path / "b" / "HHH_prompt.txt", "--n_shot", 1, engine=one)


def test_rg_runs_a_released_prompt_file_with_one_space_turns(prompts_folder, tmp_path):
    demos = tmp_path / "Other_prompt.txt"
    demos.write_text("Header.\n\n-----\n\nHuman: Hi?\n\nAssistant: Yes.\n")
    rg(prompts_folder, "--prompt_file_path", demos, "--n_shot", 1, "--limit", 2)
    assert len(json.loads((prompts_folder / "writer-7b-Other-1shot.json").read_text())) == 2


def test_hf_engine_from_the_command_line(prompts_folder, model_folder):
    """The real thing, small: a tiny model writes, the journal remembers, the second run needs no model."""
    words = ["--prompt_file_path", HHH, "--n_shot", "1", "--max_new_tokens", "4", "--limit", "2"]
    tiny = str(model_folder)
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny)
    config.max_position_embeddings = 8192
    config.save_pretrained(tiny)
    rg(prompts_folder, *words, engine=["--use_hf", "True", "--model_name_or_path", tiny])
    output = prompts_folder / "tiny-HHH-1shot.json"
    assert len(json.loads(output.read_text())) == 2
    before = output.read_bytes()
    (model_folder / "model.safetensors").rename(model_folder / "model.safetensors.away")
    (model_folder / "model.safetensors.away").rename(model_folder / "model.safetensors")
    rg(prompts_folder, *words, engine=["--backend", "hf", "--model_name_or_path", tiny])
    assert output.read_bytes() == before


# cs

LONG = "This is a reply that is long enough to pass, for one. "


def write_responses(folder, **files):
    for name, replies in files.items():
        (folder / f"{name}.json").write_text(json.dumps(replies))


def cs(folder, *rubric, more=()):
    call("--mode", "cs", "--output_dir", folder, "--rubric", *rubric, *more)
    return json.loads((folder / "comparison.json").read_text())


def reply(sentences, tail="The end."):
    return LONG * sentences + tail


@pytest.fixture
def responses(prompts_folder):
    """Six prompts, three configurations; A, B, C of falling length but where a rule drops one."""
    write_responses(
        prompts_folder,
        A=[reply(4), reply(4), "BAD", None, reply(1), reply(4) + " Right?"],
        B=[reply(3), "short.", reply(3), reply(3), reply(3), reply(3)],
        C=[reply(2), reply(2), reply(2), reply(2), reply(2), "Well, " + reply(2)],
    )
    return prompts_folder


def test_cs_pairs_and_waterfall(responses, capsys):
    pairs = cs(responses, "A", "B", "C")
    assert [(row["prompt"][-2], row["meta"]) for row in pairs] == [
        ("0", "A-vs-B"),
        ("0", "B-vs-C"),
        ("1", "A-vs-C"),
        ("2", "B-vs-C"),
        ("3", "B-vs-C"),
        ("4", "B-vs-C"),
    ]
    assert pairs[0] == {"prompt": "What about number 0?", "chosen": reply(4), "rejected": reply(3), "meta": "A-vs-B"}
    counts = json.loads((responses / "comparison.json.run.json").read_text())["counts"]
    assert counts["dropped"] == {
        "A": {"marked BAD": 1, "no reply": 1, "ends with ? or :": 1},
        "B": {"under 50 characters": 1},
        "C": {"starts with well": 1},
    }
    assert counts["pairs"] == {"A-vs-B": 1, "A-vs-C": 1, "B-vs-C": 4} == counts["chosen_is_longer"]
    assert counts["prompts_by_kept_responses"] == {"1": 1, "2": 3, "3": 2}
    assert "B-vs-C 4 100%" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("rubric", [["A,B", "C"], ["[[A, B], C]"], ["[[A,", "B],", "C]"], ["A.json,B.json", "C.json"]])
def test_cs_ties(responses, rubric):
    assert {row["meta"] for row in cs(responses, *rubric)} == {"A-vs-C", "B-vs-C"}
    assert [row["meta"] for row in cs(responses, *rubric)].count("B-vs-C") == 3  # where A was dropped or too short


def test_cs_reads_a_plain_list_and_a_limit(responses):
    assert cs(responses, "[A, B, C]") == cs(responses, "A", "B", "C")
    assert len(cs(responses, "A", "B", more=["--limit", "1"])) == 1


def test_cs_keeps_the_pairs_on_which_a_reward_model_agrees(responses, tmp_path, capsys, tokenizer, monkeypatch):
    """A reward model of untrained weights agrees by chance; kept is what score() prefers, and all is counted."""
    import torch
    from transformers import AutoModelForSequenceClassification, LlamaConfig

    from alignment.training import reward_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        max_position_embeddings=2048,
    )
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    monkeypatch.setattr(synthetic_feedback, "SCORED_TOGETHER", 4)
    everything = cs(responses, "A", "B", "C")
    kept = cs(responses, "A", "B", "C", more=["--filter_reward_model", tmp_path / "rm"])
    model, template = reward_model.load(str(tmp_path / "rm"))
    agrees = [
        reward_model.score(model, template, [row], [row["chosen"]])
        > reward_model.score(model, template, [row], [row["rejected"]])
        for row in everything
    ]
    assert kept == [row for row, yes in zip(everything, agrees, strict=True) if yes]
    assert 0 < len(kept) < len(everything)
    counts = json.loads((responses / "comparison.json.run.json").read_text())["counts"]
    assert sum(counts["refused_by_reward_model"].values()) == len(everything) - len(kept)
    assert "reward model agrees" in capsys.readouterr().out


@pytest.mark.parametrize("template", ["almost", "alpaca", "mistral", "chat"])
def test_pairs_as_messages_are_the_same_pairs(responses, tokenizer, template):
    """TRL's conversational form with an explicit prompt; train.py makes the same ids of both."""
    from alignment.templates import load_template
    from alignment.training.batches import encode_examples
    from alignment.training_data import read_examples

    def items(folder):
        return encode_examples(read_examples(str(folder / "comparison.json"), "dpo"), loaded, 4096)

    loaded = load_template(template, tokenizer)
    texts, expected = cs(responses, "A", "B"), items(responses)
    pairs = cs(responses, "A", "B", more=["--format", "messages"])
    assert pairs[0] == {
        "prompt": [{"role": "user", "content": texts[0]["prompt"]}],
        "chosen": [{"role": "assistant", "content": texts[0]["chosen"]}],
        "rejected": [{"role": "assistant", "content": texts[0]["rejected"]}],
        "meta": "A-vs-B",
    }
    assert len(pairs) == len(texts) and items(responses) == expected


def test_comparisons_load_in_datasets(responses, tmp_path):
    from datasets import load_dataset

    pairs = cs(responses, "A", "B", "C")
    path = str(responses / "comparison.json")
    rows = load_dataset("json", data_files=path, split="train", cache_dir=str(tmp_path / "cache"))
    assert rows.column_names == ["prompt", "chosen", "rejected", "meta"] and rows[0] == pairs[0]


def test_algorithm_with_a_known_answer(prompts_folder):
    """A better writer beats a worse one by the rule alone, and is the longer one as larger models are."""
    for name in ("good?quality=0.9", "bad?quality=0.2"):
        rg(prompts_folder, "--prompt_file_path", HHH, "--n_shot", 1, engine=[*SIMULATED[:3], name])
    pairs = cs(prompts_folder, "good-HHH-1shot", "bad-HHH-1shot")
    assert pairs and all(row["meta"] == "good-HHH-1shot-vs-bad-HHH-1shot" for row in pairs)


# killed and run again


def kill_until_done(command, folder, kills, seed):
    """Run a command, killing it -9 after random times, until it has been killed so often; then let it end."""
    draw, killed = random.Random(seed), 0
    while True:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, error = process.communicate(timeout=0.12 + draw.random() * 0.15 if killed < kills else None)
            assert process.returncode == 0, error
            return killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1


@pytest.mark.parametrize("mode", ["pg", "rg"])
def test_killed_at_twenty_random_points_it_ends_the_same_and_makes_nothing_twice(tmp_path, mode):
    words = {
        "pg": ["--prompt_file_path", SEEDS, "--num_generation", "150"],
        "rg": ["--prompt_file_path", HHH, FAITHFUL, "--n_shot", "1", "3"],
    }[mode]
    # 6 ms a request: the whole takes several times as long as a process lives
    engine = ["--backend", "simulated", "--model_name_or_path", "w?latency=0.006&refusals=0.1"]
    outputs = {}
    for name, kills in (("whole", 0), ("killed", 20)):
        folder = tmp_path / name
        folder.mkdir()
        if mode == "rg":
            (folder / "prompts.txt").write_text("".join(f"What about number {i}?\n" for i in range(100)))
        command = [sys.executable, str(SCRIPT), "--mode", mode, "--output_dir", str(folder), *engine, *words]
        killed = kill_until_done(command, folder, kills, seed=mode)
        assert killed == kills
        journals = sorted(folder.glob("*.journal.jsonl"))
        rows = [json.loads(line) for path in journals for line in path.read_text().splitlines()]
        keys = [row["key"] for row in rows if "key" in row]
        assert len(keys) == len(set(keys))  # no finished request was made again
        final = [path for path in folder.iterdir() if path.suffix in (".txt", ".json") and ".run." not in path.name]
        outputs[name] = {path.name: path.read_bytes() for path in final}, sorted(keys)
        assert not list(folder.glob(".*"))
    assert outputs["whole"] == outputs["killed"]
    assert len(outputs["whole"][0]) == {"pg": 1, "rg": 5}[mode]


def test_a_second_run_finds_its_work_done(tmp_path):
    command = [sys.executable, str(SCRIPT), "--mode", "pg", "--prompt_file_path", SEEDS, "--output_dir", str(tmp_path)]
    command += ["--backend", "simulated", "--model_name_or_path", "w?latency=0.02", "--num_generation", "50"]
    subprocess.run(command, check=True, capture_output=True)
    made = (tmp_path / "prompts.txt.journal.jsonl").read_text().count('"key"')
    started = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "prompts.txt.journal.jsonl").read_text().count('"key"') == made
    assert time.monotonic() - started < 0.02 * made  # no request was waited for


# wrong input


def test_help_answers_at_once_and_imports_nothing_heavy():
    program = (
        "import sys; sys.argv = ['synthetic_feedback.py', '--help']\n"
        "import synthetic_feedback\n"
        "try: synthetic_feedback.parse_args()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'vllm', 'numpy', 'openai', 'datasets', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=REPOSITORY, capture_output=True)


@pytest.fixture
def wrong(tmp_path, responses):
    """Files that are wrong in every way the cases below need."""
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("### Instruction: caf\xe9\n".encode("latin-1"))
    (tmp_path / "few.txt").write_text("### Instruction: x\nWhat?\n")
    (tmp_path / "bare.txt").write_text("Just a header.\n")
    for name, text in (("no_prompts", None), ("no_lines", ""), ("blank_line", "one\n\ntwo\n")):
        (tmp_path / name).mkdir()
        if text is not None:
            (tmp_path / name / "prompts.txt").write_text(text)
    write_responses(responses, short=["a"] * 2, table={"a": 1}, numbers=[1] * 6, long=["a"] * 9)
    (responses / "broken.json").write_text("[")
    (tmp_path / "file").write_text("")
    (tmp_path / "no_model").mkdir()
    return tmp_path


MISTAKES = {
    "missing seed file": ("pg --prompt_file_path none.txt", "seed file none.txt does not exist"),
    "no seed file": ("pg", "--mode pg needs --prompt_file_path once"),
    "two seed files": (f"pg --prompt_file_path {SEEDS} {HHH}", "--mode pg needs --prompt_file_path once"),
    "empty seed file": ("pg --prompt_file_path empty.txt", "seed file empty.txt is empty"),
    "wrong encoding": ("pg --prompt_file_path latin.txt", "not UTF-8 (byte 20)"),
    "fewer seeds than shots": ("pg --prompt_file_path few.txt", "has 1 prompts, fewer than the 10 shots of --n_shot"),
    "missing demonstrations": ("rg --prompt_file_path none.txt", "prompt file none.txt does not exist"),
    "no demonstrations": ("rg", "--prompt_file_path is missing"),
    "empty demonstrations": ("rg --prompt_file_path empty.txt", "prompt file empty.txt is empty"),
    "no dialogues": ("rg --prompt_file_path bare.txt", "has no dialogues"),
    "more shots than dialogues": (f"rg --prompt_file_path {FAITHFUL} --n_shot 1 9", "has 5 dialogues, fewer than"),
    "no prompts.txt": (f"rg --prompt_file_path {HHH} --output_dir no_prompts", "prompts.txt does not exist; make it"),
    "empty prompts.txt": (f"rg --prompt_file_path {HHH} --output_dir no_lines", "prompts.txt is empty"),
    "blank line": (f"rg --prompt_file_path {HHH} --output_dir blank_line", "prompts.txt, line 2 is blank"),
    "short responses": ("cs --rubric A short", "short.json has 2 replies, 4 fewer than the 6 prompts"),
    "long responses": ("cs --rubric A long", "long.json has 9 replies, 3 more than the 6 prompts"),
    "no list": ("cs --rubric A table", "table.json holds a dict, not a list"),
    "no strings": ("cs --rubric A numbers", "numbers.json, row 0 is a int"),
    "broken json": ("cs --rubric A broken", "broken.json is no JSON: line 1, column 2"),
    "unknown configuration": ("cs --rubric A-Faithful-3shots B", "A-Faithful-3shots.json does not exist"),
    "configuration twice": ("cs --rubric A B A", "--rubric names A twice"),
    "one configuration": ("cs --rubric A", "needs two ranks at least"),
    "one rank": ("cs --rubric A,B", "needs two ranks at least"),
    "no reward model": ("cs --rubric A B --filter_reward_model ./none", "model ./none does not exist"),
    "no rubric": ("cs", "needs two ranks at least"),
    "stray comma": ("cs --rubric A, B", "has an empty name"),
    "no model": (f"rg --prompt_file_path {HHH} --backend hf --model_name_or_path ./none", "./none does not exist"),
    "no model's folder": (f"rg --prompt_file_path {HHH} --backend vllm --model_name_or_path no_model", "no config"),
    "model not given": (
        f"rg --prompt_file_path {HHH} --backend hf --model_name_or_path ''",
        "model_name_or_path: is empty",
    ),
    "two engines": (f"rg --prompt_file_path {HHH} --use_hf True", "--use_hf and --backend simulated contradict"),
    "no server named": (f"rg --prompt_file_path {HHH} --backend openai", "needs --api_base"),
    "no server there": (f"rg --prompt_file_path {HHH} --backend openai --api_base http://127.0.0.1:9/v1", "no server"),
    "output below a file": (f"pg --prompt_file_path {SEEDS} --output_dir file/below", "file is a file, not a folder"),
    "output read-only": (f"pg --prompt_file_path {SEEDS} --output_dir /proc/none", "/proc is the system's own"),
    "typo in a flag": ("cs --rubrik A B", "unknown argument --rubrik; did you mean '--rubric'?"),
    "typo in the mode": ("gr", "'gr' is none of pg, rg, cs; did you mean 'rg'?"),
    "temperature": ("pg --temperature -1", "--temperature: -1 is out of range"),
    "top_p": ("pg --top_p 1.5", "--top_p: 1.5 is out of range"),
    "n_shot": ("pg --n_shot 0", "--n_shot: 0 is out of range"),
    "limit": ("cs --limit 0", "--limit: 0 is out of range"),
    "num_generation": ("pg --num_generation many", "'many' is no int"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_ends_in_one_line_and_leaves_the_disk_alone(case, wrong, monkeypatch, capsys):
    import shlex

    monkeypatch.chdir(wrong)
    words, said = MISTAKES[case]
    mode, *rest = shlex.split(words)
    argv = ["--mode", mode, *([] if "--output_dir" in rest else ["--output_dir", "out"])]
    if mode != "cs":
        argv += SIMULATED
    before = snapshot(wrong)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *argv, *rest])
    with pytest.raises(SystemExit) as exit:
        synthetic_feedback.run(synthetic_feedback.parse_args, synthetic_feedback.main)
    output = capsys.readouterr()
    assert exit.value.code == 2
    assert said in output.err and output.err.count("\n") == 1, output.err
    assert snapshot(wrong) == before


def test_a_mistyped_configuration_is_told_the_nearest(responses):
    write_responses(responses, **{"llama-7b-HHH-1shot": ["a"] * 6})
    with pytest.raises(UserError, match="did you mean 'llama-7b-HHH-1shot'"):
        cs(responses, "llama-7b-HHH-3shot", "A")


def test_a_second_writer_is_refused(tmp_path):
    with claim(tmp_path / "prompts.txt", argparse.Namespace(), script="other.py"):
        command = [sys.executable, str(SCRIPT), "--mode", "pg", "--prompt_file_path", SEEDS]
        process = subprocess.run([*command, "--output_dir", str(tmp_path), *SIMULATED], capture_output=True, text=True)
    assert process.returncode == 2 and "is being written by process" in process.stderr
    assert process.stderr.count("\n") == 1
