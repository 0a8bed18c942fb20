"""eval/lm_harness.py and the tasks of assets/lm_eval: prompts by Jinja, runs on a stand-in for the harness."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import jinja2
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from alignment.command_line import REPOSITORY, UserError
from alignment.training import benchmarks
from alignment.training.likelihoods import sample_logps
from eval import lm_harness as script

spec = importlib.util.spec_from_file_location("local", script.DEFINITIONS / "local.py")
local = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local)

RANKED = [{"id": n, "query": f"Question: {n}?\nAnswer:", "choices": ["no", "yes"], "gold": n % 2} for n in range(103)]
SHOTS = [
    {"question": f" Shot {n} of {subject}?", "subject": subject, "choices": list("abcd"), "answer": n % 4}
    for subject in ("high_school_physics", "anatomy")
    for n in range(6)
]
QUESTIONS = [
    {"question": f"{name}? ", "subject": subject, "choices": list("wxyz"), "answer": 2}
    for name, subject in (("P1", "high_school_physics"), ("P2", "high_school_physics"), ("A1", "anatomy"))
]
TRUTH = {
    "question": "Is it so?",
    "mc1_targets": {"Yes.": 1, "No.": 0},
    "mc2_targets": {"No.": 0, "Yes.": 1, "Maybe.": 1},
}


@pytest.fixture
def files(tmp_path):
    """A folder of benchmarks, TruthfulQA in a folder of it."""
    folder = tmp_path / "data"
    (folder / "truthfulqa").mkdir(parents=True)
    for name, rows in (
        ("arc_challenge.test.jsonl", RANKED),
        ("hellaswag_1k.validation.jsonl", RANKED),
        ("mmlu.validation.jsonl", QUESTIONS),
        ("mmlu.dev.jsonl", SHOTS),
    ):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "truthfulqa" / "mc_task.json").write_text(json.dumps([TRUTH]))
    return folder


# Definitions


class Loader(yaml.SafeLoader):
    pass


Loader.add_constructor("!function", lambda loader, node: getattr(local, node.value.removeprefix("local.")))


def definition(name):
    """A task as the harness reads it: what it includes, and over that its own."""
    own = yaml.load((script.DEFINITIONS / f"local_{name}.yaml").read_text(), Loader)
    included = own.pop("include", "").removeprefix("local_").removesuffix(".yaml")
    return (definition(included) if included else {}) | own


def splits(name, folder):
    return local.READERS[name](*script.files_of(folder, script.TASKS[name]))


def rendered(text, doc):
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True).from_string(text).render(doc)
    )


@pytest.mark.parametrize("name", script.TASKS)
def test_every_benchmark_has_a_definition_that_reads_it(name):
    found = definition(name)
    if "group" in found:
        (found,) = found["task"]
        assert found["task"] == name
    else:
        assert found["task"] == f"local_{name}"
        assert [each["metric"] for each in found["metric_list"]] == [script.TASKS[name].metric]
    assert found["custom_dataset"] is local.load and found["dataset_kwargs"] == {"name": name}
    assert found.get("num_fewshot", script.TASKS[name].shots) in (0, script.TASKS[name].shots)


@pytest.mark.parametrize("name", ["arc_challenge", "hellaswag"])
def test_questions_and_shots_are_different_rows(name, files):
    """103 rows: 3 are measured, the last 100 are there to draw shots from."""
    found, rows = definition(name), splits(name, files)
    test, train = rows[found["test_split"]], rows[found["fewshot_split"]]
    assert [len(test), len(train)] == [3, 100] and not [row for row in test if row in train]
    doc = test[1]
    assert rendered(found["doc_to_text"], doc) == "Question: 1?\nAnswer:"
    assert rendered(found["doc_to_choice"], doc) == "['no', 'yes']" and rendered(found["doc_to_target"], doc) == "1"


def test_mmlu_shows_five_shots_of_the_same_subject(files):
    """By hand: the first of each subject before the second of any; shot 0 to 4, whose answers are A B C D A."""
    found = definition("mmlu")
    first, second, third = splits("mmlu", files)[found["test_split"]]
    assert [row["question"] for row in (first, second, third)] == ["P1? ", "A1? ", "P2? "]
    shown = rendered(found["description"], first) + rendered(found["doc_to_text"], first)
    blocks = shown.split("\n\n")
    assert blocks[0] == "The following are multiple choice questions (with answers) about high school physics."
    assert blocks[1:6] == [
        f"Shot {n} of high_school_physics?\nA. a\nB. b\nC. c\nD. d\nAnswer: {'ABCDA'[n]}" for n in range(5)
    ]
    assert blocks[6:] == ["P1?\nA. w\nB. x\nC. y\nD. z\nAnswer:"]
    assert found["doc_to_choice"][first[found["doc_to_target"]]] == "C"
    assert "anatomy" in rendered(found["description"], second) and "physics" not in rendered(
        found["description"], second
    )


def test_truthfulqa_is_in_the_hubs_form(files):
    assert splits("truthfulqa_mc2", files) == {
        "validation": [
            {
                "question": "Is it so?",
                "mc1_targets": {"choices": ["Yes.", "No."], "labels": [1, 0]},
                "mc2_targets": {"choices": ["Yes.", "Maybe.", "No."], "labels": [1, 1, 0]},
            }
        ]
    }


def test_the_harness_gets_data_sets(files):
    """custom_dataset is called with the task's dataset_kwargs and all metadata."""
    paths = {"mmlu": [str(files / name) for name in script.TASKS["mmlu"].files]}
    found = local.load(name="mmlu", files=paths, version=1)
    assert found["test"].column_names == ["question", "choices", "answer", "subject", "shots"]
    assert found["test"][0]["shots"][1]["answer"] == 1


@pytest.mark.parametrize(
    ("name", "file", "rows", "said"),
    [
        ("hellaswag", "hellaswag_1k.validation.jsonl", RANKED[:100], "has 100 rows, of which the last 100 are kept"),
        ("arc_challenge", "arc_challenge.test.jsonl", [RANKED[0] | {"gold": 2}], "row 0: 'gold' is none of .* 0 to 1"),
        ("arc_challenge", "arc_challenge.test.jsonl", [RANKED[0] | {"gold": True}], "row 0: 'gold' is none of"),
        ("arc_challenge", "arc_challenge.test.jsonl", [RANKED[0] | {"choices": ["a"]}], "no list of two texts"),
        ("arc_challenge", "arc_challenge.test.jsonl", [{"question": "?"}], "row 0 has no text under 'query'"),
        ("mmlu", "mmlu.dev.jsonl", SHOTS[:6], "has 0 of 5 shots of 'anatomy'"),
        ("mmlu", "mmlu.validation.jsonl", [QUESTIONS[0] | {"choices": list("abc")}], "row 0 has 3 choices, not 4"),
        ("mmlu", "mmlu.validation.jsonl", [QUESTIONS[0] | {"subject": None}], "row 0 has no text under 'subject'"),
    ],
)
def test_wrong_rows_are_named(name, file, rows, said, files):
    (files / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match=said):
        splits(name, files)


# Runs


@pytest.fixture
def harness(monkeypatch):
    """A stand-in for lm_eval: of each task 3 of 10 items are right, MC2 is 0.4 with a standard error of 0.05. It loads
    the tasks' data as the real one does, and keeps what it was asked."""
    asked = []

    class TaskManager:
        def __init__(self, include_path=None, metadata=None):
            self.include_path, self.metadata = include_path, metadata

        def load(self, names):
            for name in names if self.metadata else ():
                local.load(name.removeprefix("local_"), **self.metadata)

    def simple_evaluate(**words):
        asked.append(words)
        (name,) = words["tasks"]
        inner = name.removeprefix("local_")
        metric = f"{script.TASKS[inner].metric},none"
        error = f"{script.TASKS[inner].metric}_stderr,none"
        if inner == "truthfulqa_mc2":
            return {"results": {inner: {metric: 0.4, error: 0.05}}, "n-samples": {inner: {"effective": 10}}}
        parts = {"a": {"effective": 4}, "b": {"effective": 6}} if name == "mmlu" else {name: {"effective": 10}}
        return {"results": {name: {metric: 0.3, error: 0.1}}, "n-samples": parts}

    class HFLM:
        def __init__(self, **words):
            vars(self).update(words)

    names = ("", ".api", ".api.model", ".api.task", ".tasks", ".models", ".models.huggingface")
    modules = {name: ModuleType(f"lm_eval{name}") for name in names}
    modules[""].simple_evaluate, modules[""].__version__ = simple_evaluate, "0"
    modules[".api"].model, modules[".api"].task = modules[".api.model"], modules[".api.task"]
    modules[".tasks"].TaskManager, modules[".models.huggingface"].HFLM = TaskManager, HFLM
    for module in modules.values():
        monkeypatch.setitem(sys.modules, module.__name__, module)
    script.loaded.cache_clear()
    return asked


def evaluate(*words):
    script.main(script.parse_args([str(word) for word in words]))


def test_table_by_hand(files, harness, model_folder, tmp_path, capsys):
    """3 of 10 is 30.0 with Wilson's [10.8, 60.3]; MC2 is 40.0 +- 9.8. The average is 32.5, and reaches down by
    sqrt(3 * 19.2^2 + 9.8^2) / 4 = 8.7 and up by sqrt(3 * 30.3^2 + 9.8^2) / 4 = 13.4."""
    out = tmp_path / "out"
    evaluate("--model_name_or_path", model_folder, "--data_dir", files, "--output_dir", out, "--limit", 10)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert lines == [
        ["ARC", "25", "10", "30.0", "[10.8,", "60.3]"],
        ["HellaSwag", "10", "10", "30.0", "[10.8,", "60.3]"],
        ["MMLU", "5", "10", "30.0", "[10.8,", "60.3]"],
        ["TruthfulQA", "0", "10", "40.0", "[30.2,", "49.8]"],
        ["average", "32.5", "[23.8,", "45.9]"],
    ]
    assert [(words["tasks"], words["num_fewshot"], words["limit"]) for words in harness] == [
        ([f"local_{name}"], task.shots, 10) for name, task in script.TASKS.items()
    ]
    assert len({id(words["model"]) for words in harness}) == 1 and harness[0]["model"].tokenizer == str(model_folder)
    card = json.loads((out / "mmlu.json.run.json").read_text())
    assert card["arguments"]["tasks"] == "mmlu" and len(card["inputs"]) == 2 and card["counts"] == {"items": 10}


@torch.no_grad()
def test_choices_share_what_comes_before_them(harness, model_folder, monkeypatch):
    """log p of each choice by the plain model, one by one; two questions of two choices and one of another go through
    the model as three groups. The last context is 2 tokens too long for 512 positions with its choice."""
    asked = [([5, 6, 7], [8, 9]), ([5, 6, 7], [8]), ([5, 6], [7, 8]), ([5, 6], [9]), ([4, 6, *[5] * 510], [7, 8])]
    plain = AutoModelForCausalLM.from_pretrained(model_folder)
    expected = []
    for context, choice in asked:
        ids = (context + choice)[-plain.config.max_position_embeddings :]
        logps = plain(torch.tensor([ids])).logits[0].log_softmax(-1)
        expected.append(sum(logps[n - len(choice) - 1, token].item() for n, token in enumerate(choice, len(ids))))
    groups = []
    monkeypatch.setattr(
        benchmarks, "sample_logps", lambda *words: groups.append([len(s) for s in words[1]]) or sample_logps(*words)
    )
    model = script.loaded(str(model_folder), 12)
    found = model._loglikelihood_tokens([(("", ""), *each) for each in asked], disable_tqdm=True)
    assert [logp for logp, _ in found] == pytest.approx(expected, abs=1e-4)
    assert groups == [[5, 4], [4, 3], [512]]


def test_what_is_done_is_not_done_again(files, harness, model_folder, tmp_path, capsys):
    words = ["--model_name_or_path", model_folder, "--data_dir", files, "--output_dir", tmp_path / "out"]
    evaluate(*words, "--tasks", "mmlu", "arc_challenge")
    first = capsys.readouterr().out
    evaluate(*words, "--tasks", "arc_challenge", "mmlu")
    assert len(harness) == 2 and "nothing to do" in (again := capsys.readouterr().out)
    assert again.splitlines()[-1] == first.splitlines()[-1]
    evaluate(*words, "--tasks", "mmlu", "--limit", 10)
    assert len(harness) == 3


def test_without_files_the_hubs_tasks_are_asked(harness, model_folder, tmp_path):
    """MMLU is a group there, whose subjects' items are summed."""
    evaluate("--model_name_or_path", model_folder, "--output_dir", tmp_path / "out")
    assert [words["tasks"] for words in harness] == [[name] for name in script.TASKS]
    assert json.loads((tmp_path / "out" / "mmlu.json").read_text())["items"] == 10
    assert all(words["task_manager"].include_path is None for words in harness)


def test_a_hub_out_of_reach_is_one_line(harness, model_folder, tmp_path, monkeypatch):
    def load(self, names):
        raise ConnectionError("Couldn't reach it\nfor many reasons")

    monkeypatch.setattr(sys.modules["lm_eval.tasks"].TaskManager, "load", load)
    with pytest.raises(UserError, match=r"ARC cannot be had from the hub \(Couldn't reach it\); give --data_dir"):
        evaluate("--model_name_or_path", model_folder, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_of_one_item_there_is_no_standard_error():
    """The harness says N/A, and the interval is all that a mean of probabilities can be."""
    found = {"truthfulqa_mc2": {"acc,none": 0.4, "acc_stderr,none": "N/A"}}
    report = {"results": found, "n-samples": {"truthfulqa_mc2": {"effective": 1}}}
    assert script.result_of(report, "truthfulqa_mc2", "truthfulqa_mc2")["interval"] == (0, 1)


def adapter_of(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "big/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda data: (data / "mmlu.dev.jsonl").unlink(), "has no mmlu.dev.jsonl, which MMLU is read from"),
        (lambda data: (data / "mc_task.json").write_text("[]"), "has 2 files mc_task.json"),
        (lambda data: [path.unlink() for path in data.rglob("*") if path.is_file()], "has no arc_challenge.test.jsonl"),
    ],
)
def test_missing_files_are_one_line_and_nothing_is_written(spoil, said, files, harness, model_folder, tmp_path):
    spoil(files)
    with pytest.raises(UserError, match=said):
        evaluate("--model_name_or_path", model_folder, "--data_dir", files, "--output_dir", tmp_path / "out")
    assert not harness and not (tmp_path / "out").exists()


def test_wrong_rows_are_refused_before_the_model_is_loaded(files, harness, model_folder, tmp_path, monkeypatch):
    """And what another run left stays."""
    words = [
        "--model_name_or_path",
        model_folder,
        "--data_dir",
        files,
        "--tasks",
        "mmlu",
        "--output_dir",
        tmp_path / "o",
    ]
    evaluate(*words)
    before = {path: path.read_bytes() for path in (tmp_path / "o").iterdir()}
    monkeypatch.setattr(script, "loaded", lambda *_: pytest.fail("the model was loaded"))
    (files / "mmlu.dev.jsonl").write_text(json.dumps(SHOTS[0]) + "\n")
    with pytest.raises(UserError, match="has 1 of 5 shots"):
        evaluate(*words)
    assert before == {path: path.read_bytes() for path in (tmp_path / "o").iterdir()} and len(before) == 2


def test_an_adapter_is_to_be_merged_first(files, harness, model_folder, tmp_path):
    adapter_of(model_folder)
    with pytest.raises(UserError, match="is an adapter of big/base; merge it first"):
        evaluate("--model_name_or_path", model_folder, "--data_dir", files, "--output_dir", tmp_path / "out")


def test_a_reward_model_is_no_policy(files, harness, model_folder, tmp_path):
    config = json.loads((model_folder / "config.json").read_text())
    (model_folder / "config.json").write_text(
        json.dumps(config | {"architectures": ["LlamaForSequenceClassification"]})
    )
    with pytest.raises(UserError, match="is a reward model; name a policy"):
        evaluate("--model_name_or_path", model_folder, "--data_dir", files, "--output_dir", tmp_path / "out")


def test_absent_harness_is_said_with_the_command_that_brings_it(files, model_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match="is not installed; pip install lm_eval=="):
        evaluate("--model_name_or_path", model_folder, "--data_dir", files, "--output_dir", tmp_path / "out")


# scripts/lm_eval.sh


@pytest.mark.parametrize("data", [None, "DATA"])
def test_recipe_passes_checkpoint_data_and_flags_on(data, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/bash\nprintf "%s\\n" "$PYTHONPATH" "$@"\n')
    python.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "PYTHON": str(python)} | ({"DATA": data} if data else {})
    command = ["bash", str(REPOSITORY / "scripts" / "lm_eval.sh")]
    done = subprocess.run([*command, "a model", "--limit", "9"], env=env, capture_output=True, text=True)
    path, called, *words = done.stdout.splitlines()
    assert (REPOSITORY / path / called) == Path(script.__file__)
    args = script.parse_args(words)
    assert (args.model_name_or_path, args.limit, args.data_dir) == ("a model", 9, data and Path(data))
    assert args.output_dir == Path("outputs/lm_eval/a model")
    missing = subprocess.run(command, env=env, capture_output=True, text=True)
    assert missing.returncode != 0 and "usage: bash scripts/lm_eval.sh CHECKPOINT" in missing.stderr
