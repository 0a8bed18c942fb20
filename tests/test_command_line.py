"""The command line: dashes, types, one-line errors, who speaks."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import train
from alignment.command_line import REPOSITORY, ArgumentParser, Progress, bar, boolean, hush, number, say, table


def parser():
    parser = ArgumentParser("a parser")
    parser.add_argument("--data_path")
    parser.add_argument("--mode", choices=("pg", "rg"))
    parser.add_argument("--flag", type=boolean, nargs="?", const=True, default=False)
    parser.add_argument("--top_p", type=number(float, 0, 1, above=True))
    parser.add_argument("--shots", type=number(int, 1))
    return parser


def test_dashes_and_underscores_are_alike():
    assert parser().parse_args(["--data-path", "x-y"]).data_path == "x-y"
    assert parser().parse_args(["--data-path=x-y"]).data_path == "x-y"
    assert parser().parse_args(["--data_path=--top-p"]).data_path == "--top-p"


@pytest.mark.parametrize(("words", "value"), [([], False), (["--flag"], True), (["--flag", "False"], False)])
def test_booleans_take_a_value_or_nothing(words, value):
    assert parser().parse_args(words).flag is value


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--data_pat", "x"], "unknown argument --data_pat; did you mean '--data_path'?"),
        (["--mode", "pq"], "'pq' is none of pg, rg; did you mean 'pg'?"),
        (["--flag", "maybe"], "'maybe' is neither True nor False"),
        (["--top_p", "0"], "0 is out of range: more than 0 and at most 1"),
        (["--top_p", "nan"], "nan is out of range"),
        (["--shots", "0"], "0 is out of range: at least 1"),
        (["--shots", "two"], "'two' is no int"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(words, said, capsys):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args(words)
    error = capsys.readouterr().err
    assert exit.value.code == 2
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rate", "inf"], "argument --rate: inf is no finite number"),
        (["--rate=-1e400"], "argument --rate: -inf is no finite number"),
        (["--steps", "99999999999999999999"], "argument --steps: 99999999999999999999 is out of range"),
        (["--seed", "-1"], "argument --seed: -1 is out of range: from 0 to 4294967295"),
        (["--seed", "4294967296"], "argument --seed: 4294967296 is out of range"),
        (["--output_file", ""], "argument --output_file: is empty; give it a value, or leave it out"),
        (["--output_file", "/"], "argument --output_file: '/' is no file's name"),
        (["--output_file", "a/.."], None),
        (["--output_file", "a/" + "b" * 181], "argument --output_file: a name in it has more than 180 bytes"),
        (["--output_dir", "ä" * 91 + "/a"], "argument --output_dir: a name in it has more than 180 bytes"),
        (["--output_dir", "/", "--seed", "4294967295", "--rate", "1e-300"], None),
    ],
)
def test_values_that_no_script_can_do_with(words, said, capsys):
    """Also where other flags are left over for somebody else, as for train.py's."""
    strict = ArgumentParser("d")
    for name, kind in (("rate", float), ("steps", int), ("seed", int), ("output_file", Path), ("output_dir", Path)):
        strict.add_argument(f"--{name}", type=kind)
    for parse in (strict.parse_args, strict.parse_known_args):
        if said is None:
            parse(words)
            continue
        with pytest.raises(SystemExit):
            parse(words)
        assert said in (error := capsys.readouterr().err) and error.count("\n") == 1


def test_a_users_mistake_an_interrupt_and_a_reader_that_left(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; from alignment.command_line import UserError, run\n"
        "def main(args):\n"
        "    print('x' * 100000)\n"
        "    raise {'user': UserError('row 3 is bad'), 'interrupt': KeyboardInterrupt()}[sys.argv[1]]\n"
        "run(lambda: None, main)\n"
    )

    def call(kind):
        return subprocess.run([sys.executable, script, kind], capture_output=True, text=True, env={"PYTHONPATH": "."})

    assert (call("user").returncode, call("user").stderr) == (2, "script.py: error: row 3 is bad\n")
    assert call("interrupt").returncode == 130 and "goes on from here" in call("interrupt").stderr
    of_torchrun = {"PYTHONPATH": ".", "RANK": "1"}
    second = subprocess.run([sys.executable, script, "user"], capture_output=True, text=True, env=of_torchrun)
    assert (second.returncode, second.stderr) == (2, "")  # the first rank says it
    left = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} {script} user | true"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": "."},
    )
    assert "Traceback" not in left.stderr


def test_the_first_process_speaks(monkeypatch, capsys):
    say("alone")
    monkeypatch.setenv("RANK", "0")
    say("first")
    monkeypatch.setenv("RANK", "1")
    say("second")
    assert capsys.readouterr().out == "alone\nfirst\n"


def test_table_aligns():
    assert table([["a", "n"], ["long", 1234]]) == "a         n\nlong  1,234"


def test_a_disk_that_is_full_and_a_reader_that_left(tmp_path):
    """Also of --help and --version, whose writes argparse passes over: 141 and nothing said, or 2 and a line."""
    script = tmp_path / "script.py"
    script.write_text(
        "from alignment.command_line import ArgumentParser, run\n"
        "run(lambda: ArgumentParser('long ' * 9999).parse_args(), lambda args: print('x' * 100000))\n"
    )
    for words in ("", "--help", "--version"):
        piped = f"set -o pipefail; {sys.executable} {script} {words} | head -0"
        left = subprocess.run(["bash", "-c", piped], capture_output=True, text=True, env={"PYTHONPATH": "."})
        assert (left.returncode, left.stderr) == (141, ""), words
    full = subprocess.run(["bash", "-c", f"{sys.executable} {script} >/dev/full"], capture_output=True, text=True)
    assert full.returncode == 2 and full.stderr.count("\n") == 1
    assert "script.py: error: No space left on device; make room" in full.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max_length", "9"], "unknown argument --max_length; here it is --model_max_length"),
        (["--max_seq_length=9"], "unknown argument --max_seq_length; here it is --model_max_length"),
        (["--dataset_name", "x"], "here it is --data_path"),
        (["--dataset", "x"], "here it is --data_path"),
        (["--use_peft"], "here it is --lora_r"),
        (["--lora_rank", "8"], "here it is --lora_r"),
        (["--model", "m"], "here it is --model_name_or_path"),
        (["--num_epochs", "1"], "here it is --num_train_epochs"),
        (["--device", "cuda:1"], "unknown argument --device; GPUs are those that CUDA_VISIBLE_DEVICES names"),
    ],
)
def test_other_tools_flags_are_told_in_ours(words, said, capsys):
    """train.py, which hands to transformers what it does not know, among the scripts."""
    with pytest.raises(SystemExit) as exit:
        train.parse_args(words + ["--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and said in error and error.count("\n") == 1


def test_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as exit:
        parser().parse_args(["--version"])
    said = capsys.readouterr().out.split()
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert exit.value.code == 0 and said[:2] == [project["name"], project["version"]]
    assert len(said) == 2 or re.fullmatch(r"[0-9a-f]{40}\+?", said[2])


# --config


def strict():
    made = ArgumentParser("d")
    made.add_argument("folder", nargs="?")
    made.add_argument("--model", "--base_model", dest="model", required=True)
    made.add_argument("--data_path", nargs="+")
    made.add_argument("--save", choices=("no", "steps"))
    made.add_argument("--rate", type=number(float, 0), default=1.0)
    made.add_argument("--bf16", type=boolean, nargs="?", const=True, default=False)
    made.add_argument("--plain", action="store_true")
    return made


def write_config(folder, text):
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_a_config_and_the_same_flags_are_the_same_run(tmp_path):
    """Words stay as they are written (YAML would make `no` false and 2e-5 a text); null leaves a flag out. The
    arguments are equal, so that the run cards are."""
    path = write_config(
        tmp_path, "base-model: m\ndata_path: [a b, c]\nsave: no\nrate: 2e-5\nbf16: true\nplain: true\nfolder: ~\n"
    )
    words = ["--model", "m", "--data_path", "a b", "c", "--save", "no", "--rate", "2e-5", "--bf16", "--plain"]
    assert strict().parse_args(["--config", path]) == strict().parse_args(words)
    assert strict().parse_args([f"--config={path}", "here"]).folder == "here"  # after a list, and no part of it
    flat = write_config(tmp_path, "model: m\ndata_path: a b\nrate: null\nplain: false\n")
    assert strict().parse_args(["--config", flat]) == strict().parse_args(["--model", "m", "--data_path", "a b"])


def test_flags_win_over_a_config_under_any_of_their_names(tmp_path):
    path = write_config(tmp_path, "base_model: theirs\nrate: 3\nbf16: true\ndata_path: [a, b]\n")
    found = strict().parse_args(["--model", "ours", "--config", path, "--bf16", "False", "--data-path", "c"])
    assert (found.model, found.rate, found.bf16, found.data_path) == ("ours", 3.0, False, ["c"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modle: m\n", "unknown argument --modle; did you mean '--model'? (config {}, line 1)"),
        ("model: m\nrate: fast\n", "argument --rate: 'fast' is no float (config {}, line 2)"),
        ("model: m\nrate: 1e400\n", "argument --rate: inf is no finite number (config {}, line 2)"),
        ("model: m\nrate: [1, 2]\n", "argument --config: --rate takes one value, not a list of 2"),
        ("model: ''\n", "argument --model/--base_model: is empty"),
        ("model: m\nsave: yes\n", "'yes' is none of no, steps (config {}, line 2)"),
        ("model: m\nmodel: n\n", "argument --config: {}, line 2: model comes twice"),
        ("model: [m\n", "argument --config: {}, line 2 is no YAML"),
        ("- model\n", "argument --config: {} holds no mapping"),
        ("", "argument --config: {} holds no mapping"),
        ("model: [[m]]\n", "argument --config: {}, line 1: model holds more than a list of words"),
        ("model: &a [*a]\n", "is no YAML"),
        ("[" * 400, "argument --config: {}"),
        ("? [a]\n: b\n", "is no flag's name"),
        ('model: "a\\0b"\n', "is no UTF-8 text"),
        ("config: x\nmodel: m\n", "argument --config: {}, line 1: config is no flag of a file"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(tmp_path, text, said, capsys):
    path = write_config(tmp_path, text)
    with pytest.raises(SystemExit) as exit:
        strict().parse_args(["--config", path])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and said.format(path) in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("absent.yaml", "absent.yaml cannot be read: No such file"),
        ("", " cannot be read: No such file"),
        ("/", "/ cannot be read: Is a directory"),
        ("/dev/zero", "/dev/zero has more than a megabyte"),
        ("/proc/self/mem", "/proc/self/mem cannot be read: Input/output error"),
    ],
)
def test_a_config_that_cannot_be_read_is_one_line(path, said, capsys):
    with pytest.raises(SystemExit) as exit:
        strict().parse_args(["--config", path])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and f"argument --config: {said}" in error and error.count("\n") == 1


def test_a_config_of_transformers_own_flags(tmp_path):
    """train.py's: a mapping for a flag that takes one, and a number."""
    text = "model_name_or_path: m\ndata_path: d\noutput_dir: o\nadam_beta1: 0.5\nlr_scheduler_kwargs: {num_cycles: 2}\n"
    found = train.parse_args(["--config", write_config(tmp_path, text)])
    assert found.trainer["adam_beta1"] == 0.5 and not hasattr(found, "config")
    assert found.data_path == ["d"] and str(found.output_dir) == "o"


def test_a_bar_off_a_terminal_is_lines(capsys, monkeypatch):
    """Nothing before half a minute has gone; then a line that ends, without a carriage return."""
    with Progress(3, "rows") as progress:
        progress.update()
    assert capsys.readouterr().err == ""
    made = bar(total=3, desc="rows", unit="row")
    made.start_t -= 60
    made.last_print_t -= 60
    made.update(2)
    made.close()
    said = capsys.readouterr().err
    assert said.startswith("rows: 2/3 [") and said.count("\n") == 1 and "\r" not in said


def test_libraries_are_hushed_where_the_user_says_nothing(monkeypatch):
    for name in ("HF_HUB_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "DATASETS_VERBOSITY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    hush()
    assert os.environ["HF_HUB_VERBOSITY"] == os.environ["DATASETS_VERBOSITY"] == "error"
    assert (os.environ["TRANSFORMERS_VERBOSITY"], os.environ["HF_HUB_DISABLE_PROGRESS_BARS"]) == ("info", "1")
