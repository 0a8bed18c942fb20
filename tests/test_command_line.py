"""The command line: dashes, types, one-line errors, who speaks."""

import subprocess
import sys
from pathlib import Path

import pytest

from alignment.command_line import ArgumentParser, boolean, number, say, table


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
        (["--output_file", ""], "argument --output_file: '.' is no file's name"),
        (["--output_file", "/"], "argument --output_file: '/' is no file's name"),
        (["--output_file", "a/.."], None),
        (["--output_file", "a/" + "b" * 181], "argument --output_file: a name in it has more than 180 bytes"),
        (["--output_dir", "ä" * 91 + "/a"], "argument --output_dir: a name in it has more than 180 bytes"),
        (["--output_dir", "/", "--seed", "4294967295", "--rate", "1e300"], None),
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
