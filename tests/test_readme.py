"""What the documentation says is so: every command parses, every shell line is bash, every file it names is there.

Each call of a script of ours, in a ```bash or ```sh block, in `code` that starts with it, or in a recipe, is
expanded as bash would expand it (continued lines, comments, variables, arrays, loops) and given to the script's own
parse_args. Nothing is run.
"""

import functools
import importlib.util
import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).resolve().parent.parent
PAGES = [REPO / "README.md", REPO / "CONTRIBUTING.md", *sorted(REPO.glob("docs/*.md"))]
PAGES += sorted(page for page in REPO.glob("*/README.md") if not page.parent.name.startswith("."))
SHELL = sorted(path for path in REPO.glob("*/*.sh") if not path.parent.name.startswith("."))
UNKNOWN = "1"  # for a variable that is set elsewhere, and for what a $(command) prints: passes as a number and a word

# Shell


class Command(NamedTuple):
    where: str  # file:line
    script: str
    argv: list[str]


def blocks(path: Path) -> list[tuple[int, str]]:
    """(line of its first line, text) of each piece of bash on a page, or the whole of a shell script."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".sh":
        return [(1, text)]
    fences = re.finditer(r"^ *```(?:bash|sh)\n(.*?)^ *```", text, re.M | re.S)
    inline = re.finditer(r"`((?:bash|python|torchrun) [^`]+)`", without_fences(text))
    return [(text[: match.start(1)].count("\n") + 1, match[1]) for match in [*fences, *inline]]


def without_fences(text: str) -> str:
    """A page without its blocks of code, line for line."""
    return re.sub(r"^ *```.*?^ *```", lambda fence: re.sub(r"[^\n]", " ", fence[0]), text, flags=re.M | re.S)


PRINTED = {"pwd": ".", "python_here": "python"}
GAP = "\0"  # a line break inside a command: white space that still counts as a line
STRING = r"'[^']*'|\"(?:\\[\s\S]|[^\"\\])*\""
ARRAY = r"\w+\+?=\([^()]*\)"
HEREDOC = r"<<-?\s*(['\"]?)(\w+)\1[^\n]*\n.*?\n\2(?=\n)"


def simple_commands(text: str) -> list[tuple[int, str]]:
    """(line, text) of the commands between ; | & ( ) and line ends, without comments, here-documents and redirections.

    What is inside $( ) comes before the command around it, and an array's assignment as the one line `NAME=(words)`.
    A function's definition begins with `function NAME` and ends with `function`. `$(... pwd)` is the repository,
    `$(... python_here)` python, and `$(... echo WORD)` the word.
    """

    def one_line(match: re.Match) -> str:
        return match[0].replace("\n", GAP)

    text = re.sub(HEREDOC, lambda match: "\n" * match[0].count("\n"), text, flags=re.S)
    text = re.sub(r"\$\(\([^()]*\)\)", UNKNOWN, text)
    inner = []
    while substitution := re.search(r"\$\(([^()]*)\)", text):
        inner.append((line_ends(text[: substitution.start()]) + 1, substitution[1]))
        last = re.search(r"\b(pwd|python_here|echo ([^\s'\"$]+))\s*$", substitution[1])
        printed = PRINTED.get(last[1], last[2]) if last else UNKNOWN
        text = text[: substitution.start()] + printed + GAP * line_ends(substitution[0]) + text[substitution.end() :]
    text = re.sub(rf"({STRING})|(?<!\S)#[^\n]*", lambda match: match[1] or "", text)
    text = text.replace("\\\n", GAP)
    text = re.sub(r"^(\w+) *\(\) *\{ *$", r"function \1", text, flags=re.M)
    text = re.sub(r"^\}", "function", text, flags=re.M)
    text = re.sub(STRING, one_line, text)
    text = re.sub(ARRAY, one_line, text)
    text = re.sub(rf"({STRING})|\d*(?:&>|>&|>>?|<)\s*&?[^\s;|&()]+", lambda match: match[1] or "", text)
    lines, found = 1, []
    for piece in re.findall(rf"(?:[ \t]|then |do )*{ARRAY}|(?:{STRING}|[^\n;|&()'\"])+|[\n;|&()]", text):
        if piece not in "\n;|&()" and piece.strip(" \t" + GAP):
            found.append((lines, piece.replace(GAP, " ").strip()))
        lines += line_ends(piece)
    within = [command for line, body in inner for command in shifted(simple_commands(body), line - 1)]
    return sorted(within + found, key=lambda command: command[0])


def line_ends(text: str) -> int:
    return text.count("\n") + text.count(GAP)


def shifted(commands: list[tuple[int, str]], by: int) -> list[tuple[int, str]]:
    return [(line + by, text) for line, text in commands]


VARIABLE = r"\$(?:(\w+|[@*#?])|\{(\w+|[@*])(?:\[[@*0-9]+\])?(?:(:?[-=+?])([^{}]*)|[^{}\w][^{}]*)?\})"


def expand(text: str, values: dict[str, str]) -> str:
    """`text` with its variables' values put in as bash does: what was in quotes stays in them."""

    def value(match: re.Match) -> str:
        name = match[1] or match[2]
        if name in ("@", "*"):
            return values.get("@", "")
        return values.get(name, match[4] if match[3] in ("-", ":-", "=", ":=") else UNKNOWN)

    text = re.sub(r'"\$\{(\w+)\[@\]\}"|"\$@"', lambda match: values.get(match[1] or "@", ""), text)
    parts = re.split(r"('[^']*')", text)  # single quotes keep their dollars, but not inside double ones
    kept = [part.startswith("'") and "".join(parts[:i]).count('"') % 2 == 0 for i, part in enumerate(parts)]
    return "".join(part if keep else re.sub(VARIABLE, value, part) for part, keep in zip(parts, kept, strict=True))


def calls(text: str, name: str = "", first_line: int = 1) -> list[Command]:
    """The calls of scripts in a piece of bash. A loop's body comes once for each value of its variable, a function's
    once for each call, or once without arguments where nothing here calls it.

    A recipe's variables have the values that its opening comment calls it with: `# NAME=value bash scripts/it.sh`.
    """
    comment = re.match(r"(?:#[^\n]*\n)*", text)[0].replace("\\\n#", "")
    usage = re.search(rf"^# *((?:\w+=(?:{STRING}|\S+)\s+)+)bash ", comment, re.M)
    given = dict(word.split("=", 1) for word in shlex.split(usage[1])) if usage else {}
    functions: dict[str, list[tuple[int, str]]] = {}
    called = set()
    found = []

    def follow(commands: list[tuple[int, str]], values: dict[str, str], called_at: int | None = None) -> None:
        choices: dict[str, list[str]] = {}
        commands = iter(commands)
        for line, command in commands:
            if definition := re.fullmatch(r"function (\w+)", command):
                functions[definition[1]] = list(itertools.takewhile(lambda item: item[1] != "function", commands))
                continue
            if loop := re.match(r"(?:do |then |else )*for (\w+) in (.*)", command):
                choices[loop[1]] = words_of(expand_choices(loop[2], values, choices)[0]) or [UNKNOWN]
                continue
            if array := re.fullmatch(r"(?:then |do )*(\w+)(\+?)=\((.*)\)", command):
                before = values.get(array[1], "") + " " if array[2] else ""
                values[array[1]] = before + expand(array[3], values)
                continue
            if shift := re.fullmatch(r"shift(?: (\d+))?", command):
                values["@"] = shlex.join(words_of(values.get("@", ""))[int(shift[1] or 1) :])
                continue
            for expanded in expand_choices(re.sub(r"^(?:export |local |readonly )+", "", command), values, choices):
                words = words_of(re.sub(r"^(?:do |then |else |! )+", "", expanded))
                if words and all(re.match(r"\w+=", word) for word in words):
                    values |= dict(word.split("=", 1) for word in words)
                elif words and words[0] in functions:
                    called.add(words[0])
                    positions = {str(number): word for number, word in enumerate(words[1:], 1)}
                    follow(functions[words[0]], values | positions | {"@": shlex.join(words[1:])}, called_at or line)
                elif call := script_call(words):
                    found.append(Command(f"{name}:{called_at or line}", *call))

    follow(shifted(simple_commands(text), first_line - 1), given)
    for uncalled in [body for function, body in functions.items() if function not in called]:
        follow(uncalled, dict(given))
    return [command for number, command in enumerate(found) if command not in found[:number]]


def words_of(text: str) -> list[str]:
    """The words of a command, or none where this is a part of one that stands open."""
    try:
        return shlex.split(text)
    except ValueError:
        return []


def expand_choices(text: str, values: dict[str, str], choices: dict[str, list[str]]) -> list[str]:
    """`text` for every combination of the values of those loop variables that it uses."""
    used = [name for name in choices if re.search(rf"\$\{{?{name}\b", text)]
    picks = itertools.product(*(choices[name] for name in used))
    return [expand(text, values | dict(zip(used, pick, strict=True))) for pick in picks]


def script_call(words: list[str]) -> tuple[str, list[str]] | None:
    """(script, its arguments) where the words start Python, torchrun or bash on a file of ours."""
    starters = ("python", "python3", "torchrun", "bash")
    start = next((i for i, word in enumerate(words) if Path(word).name in starters), None)
    script = next((i for i, word in enumerate(words) if word.endswith((".py", ".sh"))), None)
    if start is None or script is None or script < start:
        return None
    options = words[start:script]
    if "-c" in options or ("-m" in options and "torch.distributed.run" not in options):
        return None
    return words[script], words[script + 1 :]


@functools.cache
def parser_of(script: Path):
    """The parse_args of a script."""
    spec = importlib.util.spec_from_file_location(f"script_{script.stem}", script)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.parse_args


def fault(command: Command, capsys) -> str | None:
    """Why a command would be refused, or None."""
    script = REPO / command.script
    if not script.is_file():
        return f"{command.where}: {command.script} does not exist"
    if script.suffix == ".sh":
        return None
    try:
        parser_of(script)(command.argv)
    except SystemExit as exit:
        if exit.code:
            return f"{command.where}: {capsys.readouterr().err.strip()}"
    return None


def all_commands() -> list[Command]:
    return [
        command
        for path in [*PAGES, *SHELL]
        for line, text in blocks(path)
        for command in calls(text, str(path.relative_to(REPO)), line)
    ]


@pytest.mark.parametrize("command", all_commands(), ids=lambda command: f"{command.where} {command.script}")
def test_command_parses(command, capsys):
    assert (found := fault(command, capsys)) is None, found


@pytest.mark.parametrize("path", [*PAGES, *SHELL], ids=lambda path: str(path.relative_to(REPO)))
def test_shell_is_bash(path):
    for line, text in blocks(path):
        checked = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert checked.returncode == 0, f"{path.relative_to(REPO)}, block at line {line}: {checked.stderr}"


# Files

ANCHOR = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")
INSIDE = re.compile(r"(\w+)\.(\w+)")
MODULES = {path.stem for path in [*REPO.glob("*.py"), *REPO.glob("alignment/**/*.py")]}
ENDINGS = "html jinja json jsonl md pdf png pt py sh svg toml txt yaml".split()
OURS = re.compile(r"(?:[\w.-]+/)*[\w.-]+\.(?:py|sh|md|svg|toml)|(?:assets|requirements)[\w./-]*\.(?:txt|json)")


def missing(page: Path) -> list[str]:
    """What a page links to or names as a file of this repository, or as `file:name`, and is not there. A `module.name`
    of ours names no file, so that nobody can follow it."""
    faults = []
    for line, content in enumerate(without_fences(page.read_text(encoding="utf-8")).split("\n"), 1):
        for match in ANCHOR.finditer(content):
            target, _, heading = (match[1] or match[2]).partition("#")
            linked = page.parent / target if target else page
            if "://" in target:
                continue
            if not linked.exists() or (heading and linked.suffix == ".md" and heading not in headings(linked)):
                faults.append(f"{page.relative_to(REPO)}:{line}: link to {match[1] or match[2]}")
        for word in " ".join(re.findall(r"`([^`]+)`", content)).split():
            name, _, inside = word.partition(":")
            if (place := INSIDE.fullmatch(word)) and place[1] in MODULES and place[2] not in ENDINGS:
                faults.append(f"{page.relative_to(REPO)}:{line}: {word} is no file:name")
            if not OURS.fullmatch(name):
                continue
            found = [folder / name for folder in (REPO, page.parent) if (folder / name).is_file()]
            if not found:
                faults.append(f"{page.relative_to(REPO)}:{line}: {name}")
            elif inside and not defines(found[0], inside):
                faults.append(f"{page.relative_to(REPO)}:{line}: {inside} is not in {name}")
    return faults


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    found = re.findall(r"^#+ (.*)$", without_fences(page.read_text(encoding="utf-8")), re.M)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in found}


def defines(path: Path, name: str) -> bool:
    """Whether a Python file defines `name`: function, class, Class.method or constant."""
    last = re.escape(name.split(".")[-1])
    return re.search(rf"^\s*(?:def|class) {last}\b|^{last}\b.*=", path.read_text(encoding="utf-8"), re.M) is not None


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_files_named_are_there(page):
    assert missing(page) == []


def torn_tables(text: str) -> list[str]:
    """The first line of each run of table lines that renders as none: without a line of dashes under a head, or with
    a line of another number of cells."""
    torn = []
    for run in re.findall(r"(?:^\|.*\n?)+", without_fences(text), re.M):
        cells = [len(re.findall(r"(?<!\\)\|", line)) for line in run.splitlines()]
        dashes = run.splitlines()[1:2]
        if len(set(cells)) > 1 or not dashes or not re.fullmatch(r"[| :-]+", dashes[0]):
            torn.append(run.splitlines()[0])
    return torn


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_tables_are_whole(page):
    assert torn_tables(page.read_text(encoding="utf-8")) == []


def test_a_torn_table_is_found():
    whole = "| a | b |\n|---|---|\n| 1 | `x\\|y` |\n"
    assert torn_tables(whole) == []
    assert torn_tables(whole + "\n| 2 | 3 |\n") == ["| 2 | 3 |"]
    assert torn_tables(whole + "| 2 |\n") == ["| a | b |"]


def test_map_is_the_listing():
    """Every path that opens a line of README's map exists."""
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    block = re.search(r"^## The map\n.*?^```text\n(.*?)^```", readme, re.M | re.S)[1]
    folder, absent = "", []
    for indent, name in re.findall(r"^( *)([\w./-]+)  ", block, re.M):
        path = REPO / (folder if indent else "") / name
        folder = folder if indent else name
        absent += [] if path.exists() else [name]
    assert absent == []


# Defects of the released code: a letter of the paper and a number

DEFECT = re.compile(r"\b[ACJ]\d{1,2}\b")


def test_every_defect_that_is_cited_is_defined():
    """In a row of a table under docs/ that opens with it; each once, and none is missing in between."""
    defined = []
    for page in REPO.glob("docs/*.md"):
        for cell in re.findall(r"^\| ([ACJ]\d+(?:, [ACJ]\d+)*) \|", page.read_text(encoding="utf-8"), re.M):
            defined += cell.split(", ")
    assert len(set(defined)) == len(defined)
    for letter, last in (("A", 15), ("C", 22), ("J", 17)):
        assert {each for each in defined if each[0] == letter} == {f"{letter}{n}" for n in range(1, last + 1)}
    folders = [REPO, *(REPO / name for name in "alignment assets benchmarks docs eval scripts studies tests".split())]
    files = [path for folder in folders for path in folder.glob("*" if folder == REPO else "**/*")]
    written = [path for path in files if path.suffix in (".py", ".sh", ".md", ".html", ".jinja", ".txt")]
    cited = {(each, path) for path in written for each in DEFECT.findall(path.read_text(encoding="utf-8"))}
    assert {(each, path) for each, path in cited if each not in defined} == set() and len(cited) > 100


# The extractor itself


def test_extractor_finds_the_commands():
    found = all_commands()
    assert len(found) >= 15
    assert {"README.md", "scripts/quickstart.sh"} <= {command.where.partition(":")[0] for command in found}


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.name)
def test_no_call_is_overlooked(path):
    """A recipe's commands name no script of ours but in what it prints and in what was found."""
    text = path.read_text(encoding="utf-8")
    commands = [command for _, command in simple_commands(text) if not re.match(r"(?:\{ )?(?:echo|stop) ", command)]
    named = {name for command in commands for name in re.findall(r"[\w-]+\.py\b", command)}
    ours = {script.name for script in [*REPO.glob("*.py"), *REPO.glob("*/*.py")]}
    assert named & ours <= {Path(command.script).name for command in calls(text)}


SAMPLE = r"""# What it is for.
#     JUDGE="--limit 2" \
#         bash scripts/x.sh
MODELS="big/13b small/7b"; OUT=out  # both, don't worry
almost=("$VENV/bin/python"
    synthetic_feedback.py --output_dir "$OUT")
for model in $MODELS; do
    for shots in 1 '3 5'; do
        "${almost[@]}" --mode rg --model_name_or_path "$model" \
            --n_shot $shots  --api_base 'http://$HOST#1' $JUDGE  >>log 2>&1 || exit
    done
done
NAME=$(python scripts/show.py "$OUT" | tr A-Z a-z)
echo "python none.py" && SEED=3 torchrun --nproc_per_node=2 train.py --x ${DEPTH:-7} "$NAME a" "$@"
# python none.py
python - <<'END'
python none.py
END
python -m pytest tests/test_readme.py
merge() { # number, flags
    local number=$1 all="--base b"; shift
    more=(--last)
    [ -e x ] || ${PY:-$(true && echo python)} -m torch.distributed.run merge.py $all --n "$number" "$@" "${more[@]}"
}
merge 5 --to 'a b'
if true; then merge 6; fi
"""


def test_extractor_expands_as_bash_does():
    """Usage in a comment, array, quotes, nested loops, redirections, substitution, default, here-document, function."""
    found = calls(SAMPLE, "x.sh")
    rg = [
        ["--output_dir", "out", "--mode", "rg", "--model_name_or_path", model, "--n_shot", *shots]
        + ["--api_base", "http://$HOST#1", "--limit", "2"]
        for model in ("big/13b", "small/7b")
        for shots in (["1"], ["3", "5"])
    ]
    by_script = {name: [call for call in found if call.script == name] for name in {call.script for call in found}}
    assert set(by_script) == {"synthetic_feedback.py", "scripts/show.py", "train.py", "merge.py"}
    assert [call.argv for call in by_script["synthetic_feedback.py"]] == rg
    assert {call.where for call in by_script["synthetic_feedback.py"]} == {"x.sh:9"}
    assert by_script["scripts/show.py"] == [Command("x.sh:13", "scripts/show.py", ["out"])]
    assert by_script["train.py"] == [Command("x.sh:14", "train.py", ["--x", "7", f"{UNKNOWN} a"])]
    assert by_script["merge.py"] == [
        Command("x.sh:25", "merge.py", ["--base", "b", "--n", "5", "--to", "a b", "--last"]),
        Command("x.sh:26", "merge.py", ["--base", "b", "--n", "6", "--last"]),
    ]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("python synthetic_feedback.py --mode pg --output_dir o --n_shots 3", "did you mean '--n_shot'"),
        ("for m in pg xx; do python synthetic_feedback.py --output_dir o --mode $m; done", "'xx' is none of"),
        ("python synthetic_feedbock.py --mode pg", "synthetic_feedbock.py does not exist"),
    ],
)
def test_a_wrong_command_is_caught(text, complaint, capsys):
    faults = [found for command in calls(text, "x.md", 9) if (found := fault(command, capsys))]
    assert len(faults) == 1 and faults[0].startswith("x.md:9: ") and complaint in faults[0]
