"""Prompts, replies and comparisons as .json, .jsonl and .parquet, read and written row by row: the same, whichever."""

import json
import resource
import shutil
import tracemalloc

import pytest

import self_play
import synthetic_feedback
from alignment import few_shot, json_texts, parquet, records
from alignment.command_line import REPOSITORY, UserError
from alignment.records import prompts_of, read_prompts, read_rows, replies_of, write_prompts, write_responses

SEEDS, HHH = (REPOSITORY / "assets" / f"{name}.txt" for name in ("seed_prompts", "HHH_prompt"))
SIMULATED = "--backend simulated --model_name_or_path"
TYPES = {"json": (".txt", ".json"), "jsonl": (".jsonl",) * 2, "parquet": (".parquet",) * 2}


def call(mode, folder, words):
    given = ["--mode", mode, "--output_dir", str(folder), *words.split()]
    synthetic_feedback.main(synthetic_feedback.parse_args(given))


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """pg, rg of two writers and cs, in a folder of each type."""
    folder = tmp_path_factory.mktemp("chain")
    for kind in TYPES:
        out, more = folder / kind, f"--file_type {kind}"
        call("pg", out, f"--prompt_file_path {SEEDS} --num_generation 12 {SIMULATED} good {more}")
        for writer in ("good?quality=0.9&refusals=0.2", "bad?quality=0.2"):
            call("rg", out, f"--prompt_file_path {HHH} --n_shot 1 {SIMULATED} {writer} {more}")
        call("cs", out, f"--rubric good-HHH-1shot bad-HHH-1shot {more}")
    return folder


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_holds_the_same(chain, kind):
    def held(kind):
        prompts, rows = TYPES[kind]
        names = [chain / kind / f"{name}{rows}" for name in ("good-HHH-1shot", "bad-HHH-1shot")]
        comparisons = read_rows(chain / kind / f"comparison{rows}")
        return read_prompts(chain / kind / f"prompts{prompts}"), [list(replies_of(name)) for name in names], comparisons

    prompts, replies, comparisons = held(kind)
    assert (prompts, replies, comparisons) == held("json")
    assert len(prompts) == len(replies[0]) == 12 and comparisons[0].keys() == {"prompt", "chosen", "rejected", "meta"}
    cards = [next((chain / each).glob("comparison.*.run.json")) for each in (kind, "json")]
    assert len({json.dumps(json.loads(card.read_text())["counts"]) for card in cards}) == 1


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_types_may_be_mixed(chain, kind, tmp_path):
    """Prompts and one writer's replies of one type, another's of another; written is what is asked for."""
    out = tmp_path / "mixed"
    out.mkdir()
    prompts, rows = TYPES[kind]
    for path in (chain / kind / f"prompts{prompts}", chain / kind / f"bad-HHH-1shot{rows}"):
        shutil.copy(path, out)
    shutil.copy(chain / "json" / "good-HHH-1shot.json", out)
    call("cs", out, "--rubric good-HHH-1shot.json bad-HHH-1shot")
    assert (out / "comparison.json").read_bytes() == (chain / "json" / "comparison.json").read_bytes()
    (out / "comparison.json").unlink()
    call("cs", out, f"--rubric good-HHH-1shot bad-HHH-1shot{rows} --limit 3 --format messages --file_type parquet")
    found = read_rows(out / "comparison.parquet")
    assert found[0]["chosen"][0]["role"] == "assistant" and {row["meta"] for row in found} == {
        "good-HHH-1shot-vs-bad-HHH-1shot"
    }


def test_other_scripts_take_them(chain, tmp_path, capsys):
    from alignment.training_data import read_examples
    from scripts import explain, show, verify

    folder = chain / "parquet"
    examples = [read_examples(str(chain / kind / f"comparison{rows}"), "dpo") for kind, (_, rows) in TYPES.items()]
    assert examples[0] == examples[1] == examples[2]
    explain.main(explain.parse_args([str(folder / "comparison.parquet"), "0"]))
    verify.main(verify.parse_args([str(folder)]))
    show.main(show.parse_args([str(folder)]))
    said = capsys.readouterr().out
    assert "cannot tell" not in said and "4 run cards: 4 equal" in said and "chosen" in said
    shutil.copy(folder / "prompts.parquet", tmp_path)
    words = f"--output_dir {tmp_path} --template almost --reward_model simulated --limit 2 {SIMULATED} w"
    self_play.main(self_play.parse_args(words.split()))
    assert len(read_rows(tmp_path / "self_play.jsonl")) == 2


# Bad input: a line, and nothing is lost


def wrong(tmp_path, name, rows):
    path = tmp_path / name
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif path.suffix == ".parquet":
        records.write_rows(path, rows, rows[0] if rows else {"prompt": ""})
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "rows", "said"),
    [
        ("prompts.parquet", [{"text": "a"}], "has no column 'prompt', but text"),
        ("prompts.parquet", [{"prompt": "a"}, {"prompt": " "}], "row 1 has no text under 'prompt'"),
        ("prompts.parquet", [{"prompt": 5}], "row 0 has no text under 'prompt'"),
        ("prompts.parquet", [], "is empty"),
        ("prompts.parquet", b"PAR1", "is no parquet file"),
        ("prompts.jsonl", [{"prompt": "a"}, {"text": "b"}], "row 1 has no 'prompt', but text"),
        ("prompts.jsonl", [{"prompt": "a"}, "b"], "line 2 holds a str, not an object"),
        ("prompts.jsonl", [{"prompt": "a"}, {"prompt": None}], "row 1 has no text under 'prompt'"),
        ("prompts.jsonl", b'{"prompt": "a"}\n{"prompt": "b', "line 2 is no JSON: column 12: Unterminated string"),
        ("prompts.jsonl", b"\n", "is empty"),
        ("responses.jsonl", [{"response": 5}], "row 0 is a int, not a string or null"),
        ("responses.jsonl", [{"reply": "a"}], "row 0 has no 'response', but reply"),
        ("responses.jsonl", [{"response": "\ud83d"}], "line 1: 'response' holds a lone surrogate"),
        ("responses.parquet", [{"reply": "a"}], "has no column 'response', but reply"),
        ("responses.parquet", [{"response": 1.5}], "row 0 is a float, not a string or null"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path, name, rows, said):
    read = prompts_of if name.startswith("prompts") else replies_of
    with pytest.raises(UserError, match=f"{name}.*{said}") as refused:
        list(read(wrong(tmp_path, name, rows)))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("texts", "said"),
    [
        (["a"] * 2, "has 2 replies, 1 fewer than the 3 prompts"),
        (["a"] * 4, "has 4 replies, 1 more than the 3 prompts"),
        (None, "is no JSON|is no parquet file"),
    ],
)
def test_replies_that_end_early_cost_nothing(tmp_path, kind, texts, said):
    """The comparisons that are there stay, and so does their card."""
    prompts, rows = TYPES[kind]
    long = ["This is a reply that is long enough to pass, for one."] * 3
    write_prompts(tmp_path / f"prompts{prompts}", "abc")
    for name in ("A", "B"):
        write_responses(tmp_path / f"{name}{rows}", long)
    call("cs", tmp_path, f"--rubric A B --file_type {kind}")
    path = tmp_path / f"B{rows}"
    if texts is None:
        path.write_bytes(path.read_bytes()[:-9])
    else:
        write_responses(path, texts)
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    with pytest.raises(UserError, match=said) as refused:
        call("cs", tmp_path, f"--rubric A B --file_type {kind}")
    assert "\n" not in str(refused.value) and path.name in str(refused.value)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before


def test_a_file_that_is_there_twice(tmp_path):
    write_prompts(tmp_path / "prompts.txt", "ab")
    with pytest.raises(UserError, match="prompts.txt is there already; remove it, or give the --file_type of its name"):
        call("pg", tmp_path, f"--prompt_file_path {SEEDS} {SIMULATED} w --file_type parquet")
    write_prompts(tmp_path / "prompts.jsonl", "ab")
    with pytest.raises(UserError, match="both .*prompts.txt and prompts.jsonl are there; remove the one"):
        call("rg", tmp_path, f"--prompt_file_path {HHH} {SIMULATED} w")


@pytest.mark.parametrize("kind", TYPES)
def test_prompts_that_change_while_they_are_read(tmp_path, kind, monkeypatch):
    """Replies would be of other prompts. What came is in the journal, and the same command goes on."""
    path = tmp_path / f"prompts{TYPES[kind][0]}"
    parse = few_shot.parse_reply
    write_prompts(path, "abc")
    monkeypatch.setattr(few_shot, "parse_reply", lambda text: write_prompts(path, "abd") or parse(text))
    words = f"--prompt_file_path {HHH} --n_shot 1 {SIMULATED} w --file_type {kind}"
    with pytest.raises(UserError, match=f"{path.name} was changed while it was read; the same command goes on"):
        call("rg", tmp_path, words)
    assert not list(tmp_path.glob("w-HHH*shot.json")) and len(list(tmp_path.iterdir())) == 2
    call("rg", tmp_path, words)
    assert len(list(tmp_path.glob("w-HHH-1shot.*"))) == 3


# Past memory


@pytest.mark.parametrize("kind", TYPES)
def test_cs_holds_no_more_of_more(tmp_path, kind, monkeypatch):
    """Of 8 MB of replies: no more than some of each file's."""
    monkeypatch.setattr(json_texts, "AT_ONCE", 1 << 14)
    monkeypatch.setattr(parquet, "ROWS", 8)
    prompts, rows = TYPES[kind]
    write_prompts(tmp_path / f"prompts{prompts}", map(str, range(200)))
    for name in ("A", "B"):
        write_responses(tmp_path / f"{name}{rows}", (f"{name} {number} {'x' * 20_000}." for number in range(200)))
    tracemalloc.start()
    try:
        call("cs", tmp_path, f"--rubric A B --file_type {kind}")
        assert tracemalloc.get_traced_memory()[1] < 4_000_000
    finally:
        tracemalloc.stop()
    assert len(read_rows(tmp_path / f"comparison{rows}")) == 200


@pytest.mark.parametrize("form", [".json", ".jsonl", ".parquet"])
def test_an_error_of_what_makes_the_rows_is_none_of_the_disk(tmp_path, form):
    """As of a model that cannot be loaded. A full disk is told as such; neither leaves anything."""

    def replies(count):
        yield from map(str, range(count))
        raise OSError("no such model")

    with pytest.raises(OSError, match="^no such model$"):
        write_responses(tmp_path / f"a{form}", replies(9))
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3, kept[1]))
    try:
        with pytest.raises(UserError, match=f"a{form} cannot be written: File too large; make room"):
            write_responses(tmp_path / f"a{form}", map(str, range(9)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
    assert not list(tmp_path.iterdir())
