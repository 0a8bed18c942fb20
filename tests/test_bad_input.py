"""Flags that no script can do with: a table over all scripts, made from their own parsers. Each ends with exit code 2
and one line that names the flag or the value, and leaves every file as it was."""

import importlib.util
import inspect
import json
import os
import sys
from pathlib import Path

import pytest
from conftest import make_llama, make_tokenizer

from alignment.command_line import REPOSITORY, ArgumentParser, boolean, run
from alignment.janus.preferences import DIMENSIONS

FOLDERS = (".", "eval", "scripts", "studies", "benchmarks")
SCRIPTS = sorted(
    str(path.relative_to(REPOSITORY))
    for folder in FOLDERS
    for path in (REPOSITORY / folder).glob("*.py")
    if "run(parse_args, main)" in path.read_text(encoding="utf-8")
)
ENGINE = "--backend simulated --model_name_or_path w"
# A command that would run, of files that `place` makes
COMMANDS = {
    "scripts/generate.py": f"--data_path rows.json --output_file out.json {ENGINE}",
    "benchmarks/attention.py": "",
    "benchmarks/cut_step.py": "--base_model tiny --data_path rows.json --way ours",
    "benchmarks/hhh.py": "--model_name_or_path tiny --data_path pairs.json",
    "benchmarks/journal.py": "",
    "benchmarks/multifaceted.py": "",
    "benchmarks/responses.py": ENGINE,
    "benchmarks/reward_model.py": "--model_name_or_path tiny --data_path pairs.json",
    "benchmarks/rl.py": "--model_name_or_path tiny --way ours",
    "benchmarks/self_play.py": "--model_name_or_path tiny",
    "benchmarks/sft_memory.py": "--model_name_or_path tiny --way ours",
    "benchmarks/sizes.py": "",
    "benchmarks/truthful.py": "--model_name_or_path tiny --data_path pairs.json",
    "eval/correctness_under_preference.py": "--model_name_or_path tiny --data_path arc.jsonl --output_path out.json",
    "eval/multifaceted_bench.py": f"--bench bench.json --responses answers.json --output_file out.json {ENGINE}",
    "eval/reward_model.py": "--data_path pairs.json --output_file out.json",
    "eval/summarisation.py": "--data_path answers.json --reference_path answers.json --output_file out.json",
    "eval/run_evaluation.py": "--model_name_or_path tiny --data_path pairs.json --output_path out.json",
    "eval/toxicity.py": f"--data_path toxic.jsonl --scorer perspective --output_file out.json {ENGINE}",
    "finetune_unlikelihood.py": "--base_model tiny --data_path rows.json --output_dir out",
    "generate.py": f"--data_path rows.json --output_file out.json {ENGINE}",
    "merge.py": "--base_model_name_or_path tiny --peft_model_path adapter --output_dir out",
    "scripts/audit_comparisons.py": "pairs.json --output_file out.html",
    "scripts/annotate_judgments.py": f"--data_path rows.json --output_file out.json {ENGINE}",
    "scripts/collect_answers.py": "--answers_dir answers --models one two --output_dir out",
    "scripts/convert2alpaca.py": "shepherd.jsonl out.json",
    "scripts/embedded_model.py": "out",
    "scripts/explain.py": "answers.json 0",
    "scripts/fit_toxicity.py": "--data_path toxic.jsonl --output_dir out",
    "scripts/made_up_rows.py": "out",
    "scripts/policy_table.py": "answers one",
    "scripts/report_blame.py": "--base_model tiny --data_path rows.json --output_file out.html",
    "scripts/show.py": "answers",
    "scripts/tree_collection.py": "--answers_dir answers --models one two three --output_dir out",
    "scripts/verify.py": "answers",
    "self_play.py": f"--output_dir stage --template almost --reward_model simulated {ENGINE}",
    "studies/benchmark_table.py": "answers",
    "studies/biggen_agreement.py": f"--data_path rows.json --output_file out.json {ENGINE}",
    "studies/blame_table.py": "--base_model tiny --data_path rows.json",
    "studies/preference_table.py": "pairs.json --models tiny --template almost",
    "studies/reward_table.py": "answers",
    "studies/ultrafeedback_rows.py": "scored.json --output_dir out",
    "synthetic_feedback.py": f"--mode pg --prompt_file_path seeds.txt --output_dir out {ENGINE}",
    "system_messages.py": f"--mode pa --data_path rows.json --output_dir out {ENGINE}",
    "train.py": "--model_name_or_path tiny --data_path rows.json --output_dir out",
    "train_rl.py": "--model_name_or_path tiny --data_path prompts.txt --reward tiny --output_dir out",
}
OUTPUTS = ("output_file", "output_path", "output_dir", "work_dir")
FILES = "data_path eval_data_path bench_data_path prompt_file_path user_prompt_file_path preference_tree".split()
FILES += "bench responses input_file messages self_play compare".split()
MODELS = "base_model base_model_name_or_path model_name_or_path peft_model_path reward_model".split()
HUGE = "1" + "0" * 400
BAD_NUMBERS = ("inf", "nan", HUGE, "9" * 5000, "1e", "", "1e300")
BAD_TEXTS = ("", "n" * 300, "~nosuchuser/x", "\udcff")
BAD_OUTPUTS = ("/proc/x", "/proc/self/x/y", "/sys/x", "dangling", "dangling/x", "rows.json/x", "m" * 181)
BAD_FILES = (".", "..", "/", "/dev/null", "folder", "pipe")  # where a file is to be written
BAD_INPUTS = ("/proc/self/mem", "dangling", "loop", "rows.json/x", "absent", "absent/x.json", ".", "/", "empty.json")


def load(name):
    spec = importlib.util.spec_from_file_location(f"bad_{Path(name).stem}", REPOSITORY / name)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def actions_of(module, monkeypatch):
    """The arguments of the first parser that a script makes."""
    made = []
    first = ArgumentParser.__init__
    with monkeypatch.context() as patch:
        patch.setattr(ArgumentParser, "__init__", lambda self, *a, **k: (first(self, *a, **k), made.append(self))[0])
        with pytest.raises(SystemExit):
            module.parse_args(["--help"])
    return made[0]._actions


def bad_values(action):
    """Values of one flag that are refused."""
    low = inspect.getclosurevars(action.type).nonlocals if inspect.isfunction(action.type) else {}
    if "low" in low or action.type in (int, float):
        least, above = low.get("low", 0), low.get("above", False)
        bad = [*BAD_NUMBERS] + ["-1"] * (least > -1) + ["0"] * (least > 0 or bool(above))
        bad += [str(int(low["high"]) + 1)] if low.get("high", float("inf")) < float("inf") else []
        return bad if action.type is not int else [*bad, "-1", "4294967296"]
    if action.type is boolean:
        return ["maybe", "2"]
    if action.choices:
        return ["nonsense", "", "\udcff"]
    return list(BAD_TEXTS if action.default != "" else BAD_TEXTS[1:])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of everything that the commands read."""
    folder = tmp_path_factory.mktemp("bad")
    make_llama(len(make_tokenizer())).save_pretrained(folder / "tiny")
    make_tokenizer().save_pretrained(folder / "tiny")
    for name in ("folder", "answers/one", "answers/two", "answers/three", "adapter", "stage"):
        (folder / name).mkdir(parents=True)
    judged = {"instruction": "Say 1.", "input": "", "output": "Two.", "judgment": "It must be 1.", "id": 0}
    turn = "\n\nHuman: Hi\n\nAssistant: "
    levels = {str(score): f"Score {score}." for score in range(1, 6)}
    chosen = [{"dimension": d, "subdimension": "s", "preference": "p", "description": "x"} for d in DIMENSIONS]
    asked = {"prompt": "Say 1.", "system": "Be kind.", "preference_set": chosen}
    rubrics = [{"criteria": "Is it so?", "score_descriptions": levels}] * 4
    candidates = [{"output": text, "reward": reward, "finish": "stop"} for text, reward in (("a", 1.0), ("bc", 2.0))]
    scores = {"score_chosen": 8, "score_rejected": 3}
    rows = {
        "arc.jsonl": {"id": "M1", "query": "Which?", "choices": ["one", "two"], "gold": 1},
        "bench.json": [asked | {"reference_answer": "One.", "rubrics": rubrics}],
        "adapter/adapter_config.json": {"base_model_name_or_path": "tiny", "peft_type": "LORA", "r": 8},
        "answers.json": [{"instruction": "Say 1.", "system": "Be kind.", "output": "One."}],
        "answers/one.candidates.jsonl": {"instruction": "Say 1.", "candidates": candidates, "chosen": 0},
        "rows.json": [judged],
        "pairs.json": [{"chosen": turn + "Hello", "rejected": turn + "No", "type": "other"}],
        "scored.json": [{"prompt": "Why?", "chosen": "So.", "rejected": "No.", "metadata": scores}],
        "shepherd.jsonl": {"question": "Why?", "answer": "So.", "feedback": "Too short."},
        "toxic.jsonl": {"prompt": {"text": "You", "toxicity": 0.1}, "continuation": {"text": "are", "toxicity": 0.1}},
    }
    for name, content in rows.items():
        (folder / name).write_text(json.dumps(content) + "\n")
    for name in ("prompts.txt", "stage/prompts.txt"):
        (folder / name).write_text("What is 1?\n")
    (folder / "seeds.txt").write_text("### Instruction: Ask.\n" + "".join(f"What is {n}?\n" for n in range(12)))
    (folder / "empty.json").write_text("")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    return folder


def state(folder):
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in sorted(folder.rglob("*"))}


def outcome(module, words, capsys):
    """(exit code or the exception, what stderr says)."""
    capsys.readouterr()
    try:
        run(lambda: module.parse_args(words), module.main)
    except SystemExit as ended:
        return ended.code, capsys.readouterr().err
    except BaseException as error:
        return repr(error)[:200], capsys.readouterr().err


def cases(name, actions):
    """(argument, what a message may name, bad value, command line) of each argument with each value that it refuses."""
    required = {action: action.choices[0] if action.choices else "1" for action in actions if action.required}
    spelt = [f"{action.option_strings[0]}={x}" if action.option_strings else x for action, x in required.items()]
    base = COMMANDS[name].split() if name in COMMANDS else sorted(spelt, key=lambda word: word.startswith("--"))
    positional = [action.dest for action in actions if not action.option_strings]
    for action in actions:
        if action.nargs == 0 or action.dest in ("help", "version", "config"):
            continue
        values = bad_values(action)
        if action.dest in OUTPUTS:
            values += BAD_OUTPUTS + (BAD_FILES if action.dest in ("output_file", "output_path") else ("rows.json",))
        elif name in COMMANDS and (action.dest in FILES or action.dest in MODELS and ENGINE not in COMMANDS[name]):
            values += BAD_INPUTS
        for value in values:
            names = (action.dest, action.metavar, value[:20])
            if action.option_strings:
                yield action.dest, names, value, [*base, f"{action.option_strings[-1]}={value}"]
            else:
                at = positional.index(action.dest)
                yield action.dest, names, value, [*base[:at], value, *base[at + 1 :]]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_bad_value_is_one_line(name, place, monkeypatch, capsys):
    """Some 4,900 in all. A script that is not among COMMANDS is asked all but for its input files."""
    monkeypatch.chdir(place)
    module = load(name)
    actions = actions_of(module, monkeypatch)
    before, wrong = state(place), []
    for flag, names, value, words in cases(name, actions):
        code, said = outcome(module, words, capsys)
        if code != 2 or said.count("\n") != 1:
            wrong.append((flag, value[:40], code, said[:300]))
        elif not any(word in said for word in names if word):
            wrong.append((flag, value[:40], f"names none of {names}", said))
        if state(place) != before:
            wrong.append((flag, value[:40], "disk changed"))
            before = state(place)
    assert not wrong, "\n" + "\n".join(map(str, wrong))
