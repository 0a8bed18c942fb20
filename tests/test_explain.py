"""scripts/explain.py on tiny runs of every stage: what it says is what was asked, and what it cannot find it names."""

import contextlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

import self_play
import synthetic_feedback
import system_messages
from alignment import few_shot
from alignment.command_line import REPOSITORY, UserError, run
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply, record_seed
from alignment.janus.preferences import DIMENSIONS
from alignment.janus.rows import FILES
from scripts import annotate_judgments, explain

ASSETS = REPOSITORY / "assets"
THINGS = "walnuts lighthouses cacti trombones igloos marathons".split()
RESPONSES = ["Zero.", "", "One is what comes after zero.", "One is what comes after zero."]


def call(script, *words):
    script.main(script.parse_args([str(word) for word in words]))


def almost_run(folder):
    """pg, rg of two models, shot counts and demonstrations, cs, and self-play of two turns, into `folder`/out."""
    out, seeds = folder / "out", folder / "seeds.txt"
    shutil.copy(ASSETS / "seed_prompts.txt", seeds)
    writer = ["--output_dir", out, "--backend", "simulated", "--model_name_or_path"]
    call(synthetic_feedback, "--mode", "pg", *writer, "w", "--prompt_file_path", seeds, "--num_generation", 6)
    for model, names in {"big?quality=1": ["HHH"], "small?quality=0.8": ["HHH", "Faithful"]}.items():
        shown = ["--prompt_file_path", *(ASSETS / f"{name}_prompt.txt" for name in names), "--n_shot", 1, 3]
        call(synthetic_feedback, "--mode", "rg", *writer, model, *shown)
    rubric = ["--rubric", "big-HHH-3shot", "small-HHH-3shot,small-HHH-1shot"]
    call(synthetic_feedback, "--mode", "cs", "--output_dir", out, *rubric)
    shown = ["--prompt_file_path", ASSETS / "HHH_prompt.txt", "--reward_model", "simulated?noise=0.5"]
    call(self_play, *writer, "w", *shown, "--num_candidates", 2, "--limit", 4)
    return out


def janus_run(folder):
    """pa to ds of six instructions, of which two are the bench's, with a writer whose replies are often malformed."""
    asked = folder / "asked.jsonl"
    asked.write_text(
        "".join(json.dumps({"id": f"i{n}", "text": f"Tell {t} apart."}) + "\n" for n, t in enumerate(THINGS))
    )
    out = folder / "janus"
    writer = ["--output_dir", out, "--backend", "simulated", "--model_name_or_path", "w?malformed=0.3"]
    call(system_messages, "--mode", "pa", *writer, "--data_path", asked, "--bench_share", 0.34, "--num_sets", 2)
    for mode in ("sm", "gr", "rb"):
        call(system_messages, "--mode", mode, *writer)
    call(system_messages, "--mode", "ds", "--output_dir", out)
    return out


def judged_run(folder):
    """Judgments of four rows, of which one has no response, and two have the same."""
    rows = [{"instruction": f"Say {min(n, 2)}.", "output": output} for n, output in enumerate(RESPONSES)]
    (folder / "answers.json").write_text(json.dumps(rows))
    words = ["--backend", "simulated", "--model_name_or_path", "judge-w", "--temperature", 1]
    out = folder / "judged.json"
    call(annotate_judgments, *words, "--data_path", folder / "answers.json", "--output_file", out)
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(folder, seed -> prompts that the simulated engine was sent)."""
    folder, sent, real = tmp_path_factory.mktemp("runs"), {}, SimulatedEngine.complete

    def spy(self, requests, sampling):
        for request in requests:
            text = request.prompt
            if not isinstance(text, str):
                text = "\n".join(f"[{each['role']}]\n{each['content']}" for each in text)
            sent.setdefault(request.seed, set()).add(text)
        return real(self, requests, sampling)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimulatedEngine, "complete", spy)
        for make in (almost_run, janus_run, judged_run):
            make(folder)
    return folder, sent


@pytest.fixture
def copy(runs, tmp_path):
    """A copy of the runs, to be broken. Cards name the files of the first place; those beside an output come first."""
    return shutil.copytree(runs[0], tmp_path / "copy")


def said(path, row, *words):
    """(exit code, what was printed)."""
    told = io.StringIO()
    with contextlib.redirect_stdout(told), pytest.raises(SystemExit) as ended:
        run(lambda: explain.parse_args([str(path), str(row), *words]), explain.main)
    return ended.value.code, told.getvalue()


def requests(text):
    """Each request of an explanation: its seed, derivation, key, journal line and texts by name."""
    found = []
    for part in re.split(r"(?m)^seed {2,}", text)[1:]:
        block = r"(?m)^%s, [\d,]+ characters:\n((?:  \| .*\n)+)"
        texts = {name: re.search(block % name, part) for name in ("prompt sent", "reply as it came", "in the file")}
        lines = {name: match and match[1].removesuffix("\n").split("\n") for name, match in texts.items()}
        seed, derivation = re.match(r"(\d+) = (.*)", part).groups()
        journal = re.search(r"(?m)^journal {2,}(.*), line (\d+), finish", part)
        found.append(
            {name: "\n".join(line[4:] for line in each) for name, each in lines.items() if each}
            | {"seed": int(seed), "derivation": derivation, "key": re.search(r"(?m)^key {2,}(\w+)", part)[1]}
            | ({"journal": (Path(journal[1]), int(journal[2]))} if journal else {})
        )
    return found


def proven(text, sent):
    """The requests of an explanation, each compared with what the engine was sent, and with the journal's line."""
    found = requests(text)
    for each in found:
        assert each["prompt sent"] in sent[each["seed"]]
        assert eval(each["derivation"], {"record_seed": record_seed}) == each["seed"]
        path, number = each["journal"]
        line = json.loads(path.read_text(encoding="utf-8").splitlines()[number - 1])
        assert (line["key"], line["text"]) == (each["key"], each["reply as it came"])
    return found


def test_comparisons(runs):
    folder, sent = runs
    rows = json.loads((folder / "out" / "comparison.json").read_text())
    assert len(rows) >= 6
    for number, row in enumerate(rows[:3]):
        code, text = said(folder / "out" / "comparison.json", number, "--whole")
        chosen, rejected, prompt = proven(text, sent)
        assert code == 0 and "cannot tell" not in text
        assert [few_shot.parse_reply(each["reply as it came"]) for each in (chosen, rejected)] == [
            row["chosen"],
            row["rejected"],
        ]
        assert prompt["in the file"] == row["prompt"] == few_shot.parse_query(prompt["reply as it came"])
        names = [each["journal"][0].name.partition(".json")[0] for each in (chosen, rejected)]
        assert "-vs-".join(names) == row["meta"]


def test_comparisons_as_messages_and_twice_the_same_prompt(copy, runs):
    """The second of two rows that are the same is of the second of two prompts that are."""
    out = copy / "out"
    prompts = (out / "prompts.txt").read_text().splitlines()
    (out / "prompts.txt").write_text("".join(prompt + "\n" for prompt in [*prompts, *prompts]))
    for path in out.glob("*shot.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) * 2))
    call(
        synthetic_feedback,
        "--mode",
        "cs",
        "--output_dir",
        out,
        "--format",
        "messages",
        "--rubric",
        "big-HHH-3shot",
        "small-HHH-1shot",
    )
    rows = json.loads((out / "comparison.json").read_text())
    assert rows[: len(rows) // 2] == rows[len(rows) // 2 :]
    places = [prompts.index(row["prompt"][0]["content"]) for row in rows[: len(rows) // 2]]
    for number in (0, len(rows) // 2):
        _, text = said(out / "comparison.json", number)
        assert re.search(r"line (\d+) of", text)[1] == str(places[0] + len(prompts) * bool(number))


@pytest.mark.parametrize("name", ["prompts.txt", "small-HHH-3shot.json", "small-Faithful-1shot.json"])
def test_prompts_and_responses(runs, name):
    folder, sent = runs
    path = folder / "out" / name
    rows = path.read_text().splitlines() if path.suffix == ".txt" else json.loads(path.read_text())
    for number in (0, len(rows) - 1):
        code, text = said(path, number, "--whole")
        [found] = proven(text, sent)
        assert code == 0 and found["in the file"] == rows[number]


def test_answers_of_self_play(runs):
    folder, sent = runs
    rows = json.loads((folder / "out" / "almost_train.json").read_text())
    turns = set()
    for number, row in enumerate(rows[:3]):
        code, text = said(folder / "out" / "almost_train.json", number, "--whole")
        answer, *user, prompt = proven(text, sent)
        assert code == 0 and few_shot.parse_reply(answer["reply as it came"]) == row["output"]
        assert row["input"].startswith(f"\n\nHuman: {prompt['in the file']}\n\nAssistant:")
        assert row["input"].endswith(f"Human: {(user or [prompt])[0]['in the file']}\n\nAssistant:")
        turns.add(len(user))
    assert turns == {0, 1}


def test_judgments(runs):
    """Row 1 of four has no response: it was not asked about, and the others are one further on. Rows 2 and 3 are the
    same but for their ids."""
    folder, sent = runs
    rows = json.loads((folder / "judged.json").read_text())
    assert [row["id"] for row in rows] == [0, 2, 3]
    for number, row in enumerate(rows):
        code, text = said(folder / "judged.json", number, "--whole")
        [found] = proven(text, sent)
        assert code == 0 and found["derivation"] == f"record_seed(42, 'judge', {row['id']})"
        assert found["in the file"] == row["judgment"] == found["reply as it came"].strip()


@pytest.mark.parametrize("kind", FILES)
def test_multifaceted_sets(runs, kind):
    """What stands in a row is asked for: its responses, the messages and sets behind them, of the bench its rubrics."""
    folder, sent = runs
    path = folder / "janus" / FILES[kind]
    rows = json.loads(path.read_text())
    for number in {0, len(rows) - 1}:
        row, (code, text) = rows[number], said(path, number, "--whole")
        found = proven(text, sent)
        assert code == 0 and "cannot tell" not in text
        values = [each["in the file"] for each in found]
        rubrics, values = values[: 4 * (kind == "bench")], values[4 * (kind == "bench") :]
        responses, systems, sets = (values[place::3] for place in range(3))
        assert [json.loads(each) for each in rubrics] == row.get("rubrics", [])
        if kind in ("sft", "small", "bench"):
            wanted = [row.get("output") or row["reference_answer"]]
        else:
            wanted = [
                side if isinstance(side, str) else side[1]["content"] for side in (row["chosen"], row["rejected"])
            ]
        assert responses == wanted
        assert (row["input"].startswith(systems[0] + "\n")) if "input" in row else (row["system"] == systems[0])
        assert all(each.startswith("- style: ") and each.count("\n") == 3 for each in sets)
        assert all(each.partition(":")[0] == "- style" for each in sets)


@pytest.mark.parametrize(
    "mode, parts", [("preference_sets", 1), ("system_messages", 1), ("responses", 1), ("rubrics", 4)]
)
def test_what_lies_between_the_modes(runs, mode, parts):
    folder, sent = runs
    code, text = said(folder / "janus" / f"{mode}.json", 0, "--whole")
    assert code == 0 and len(proven(text, sent)) == parts
    assert all(dimension in text for dimension in DIMENSIONS) or mode in ("responses", "rubrics")


def test_a_reply_that_was_asked_for_again(runs):
    """The simulated writer breaks three of ten replies off: some sets come of a later try under the schema."""
    folder, sent = runs
    rows = json.loads((folder / "janus" / "preference_sets.json").read_text())
    derivations = []
    for number, row in enumerate(rows):
        _, text = said(folder / "janus" / "preference_sets.json", number, "--whole")
        [found] = proven(text, sent)
        derivations.append(found["derivation"])
        assert json.loads(found["reply as it came"])["style"]["preference"] == row["preference_set"][0]["preference"]
    assert any("'schema'" in each for each in derivations) and any("'schema'" not in each for each in derivations)


def test_long_texts_are_cut_and_said_to_be(runs):
    text = said(runs[0] / "out" / "small-HHH-3shot.json", 0)[1]
    whole = requests(said(runs[0] / "out" / "small-HHH-3shot.json", 0, "--whole")[1])[0]["prompt sent"]
    cut = requests(text)[0]["prompt sent"]
    assert cut == f"{whole[:240]}\n[... {len(whole) - 720:,} characters, shown by --whole ...]\n{whole[-480:]}"


def test_a_run_on_a_cluster_is_answered_by_its_replicas_engine(copy, monkeypatch):
    """No Ray is asked, nor needs to be there: the keys are those of the engine in each replica."""
    monkeypatch.setitem(sys.modules, "alignment.engines.ray", None)
    path = copy / "out" / "prompts.txt.run.json"
    card = json.loads(path.read_text())
    card["arguments"] |= {"backend": "ray", "ray_engine": "simulated"}
    path.write_text(json.dumps(card))
    assert said(copy / "out" / "prompts.txt", 0)[0] == 0


def too_long_run(folder, monkeypatch):
    """Responses to three prompts, the second of which is too long for the model, so that none comes."""
    (folder / "prompts.txt").write_text("".join(f"What about number {n}?\n" for n in range(3)))
    real = SimulatedEngine._reply

    def reply(self, request, *rest):
        return Reply(None, "too long") if "number 1?" in request.prompt else real(self, request, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(SimulatedEngine, "_reply", reply)
        words = ["--output_dir", folder, "--backend", "simulated", "--model_name_or_path", "w"]
        shown = ["--prompt_file_path", ASSETS / "HHH_prompt.txt", "--n_shot", 1]
        call(synthetic_feedback, "--mode", "rg", *words, *shown)
    return folder / "w-HHH-1shot.json"


def test_a_reply_that_never_came(tmp_path, monkeypatch):
    """It is null in the file, and has no line in the journal: so it was."""
    path = too_long_run(tmp_path, monkeypatch)
    lines, text = untold(path, 1)
    assert lines == [] and "no line has this key: no whole reply came" in text and "(null: no reply)" in text
    assert untold(path, 2)[0] == []


def test_what_a_terminal_would_obey_is_spelled(copy):
    """A title that a reply sets, and a bell; line ends and tabs stay."""
    path = copy / "judged.json"
    edited(path, '"judgment": "', '"judgment": "\\u001b]0;title\\u0007\\ta\\nb ')
    assert "  | \\x1b]0;title\\x07\ta\n  | b " in said(path, 0)[1]


# What it cannot find


def untold(path, row=0):
    code, text = said(path, row)
    lines = [line.removeprefix("cannot tell: ") for line in text.splitlines() if line.startswith("cannot tell: ")]
    assert code == (1 if lines else 0)
    return lines, text


def test_a_seed_that_is_derived_otherwise(runs, monkeypatch):
    """What is said of a seed is only said where the request has it."""
    monkeypatch.setattr(explain, "record_seed", lambda *parts: 1)
    for name in ("out/prompts.txt", "out/small-HHH-1shot.json", "judged.json", "janus/responses.json"):
        [line] = untold(runs[0] / name)[0]
        assert line.startswith("its request: run again, ") and " asks none of seed 1 = record_seed(42, " in line


@pytest.mark.parametrize("name", ["comparison.json", "small-HHH-1shot.json"])
def test_what_no_stage_writes(copy, name):
    (copy / "out" / name).write_text("[7]")
    with pytest.raises(UserError, match="is a int, not an object|is a int, not a string or null"):
        explain.main(explain.parse_args([str(copy / "out" / name), "0"]))


def edited(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_journal_that_is_gone(copy):
    """A request that needs no reply before it is shown all the same."""
    journal = copy / "out" / "small-HHH-1shot.json.journal.jsonl"
    journal.unlink()
    lines, text = untold(copy / "out" / "small-HHH-1shot.json", 2)
    assert lines == [f"the replies of synthetic_feedback.py --mode rg: the journal {journal} is gone"]
    assert "record_seed(42, 'HHH', 1, 2)" in text and "prompt sent" in text and "reply as it came" not in text


def journal_line(journal, key):
    return next(line for line in journal.read_text().splitlines() if json.loads(line)["key"] == key)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda line: line.replace('"key": "', '"key": "x'), "its reply: no line of {journal} has this key"),
        (lambda line: line.replace('"text": " ', '"text": " Never. '), "why small-HHH-1shot.json has this text"),
        (lambda line: line[1:], "line 1 of the journal {journal}: it is damaged"),
    ],
)
def test_a_journal_line_that_was_changed(copy, change, said):
    journal, path = copy / "out" / "small-HHH-1shot.json.journal.jsonl", copy / "out" / "small-HHH-1shot.json"
    first, *others = journal.read_text().splitlines(keepends=True)
    journal.write_text("".join([change(first), *others]))
    lines, _ = untold(path)
    assert any(line.startswith(said.format(journal=journal)) for line in lines)
    assert untold(path, 1)[0] == ([] if "damaged" not in said else lines[:1])


def test_an_input_and_an_output_that_were_changed(copy):
    out = copy / "out"
    edited(out / "small-HHH-1shot.json", "heat.", "cold.")
    lines, _ = untold(out / "small-HHH-1shot.json")
    assert lines[0] == f"{out / 'small-HHH-1shot.json'} has other contents than its card tells"
    lines, _ = untold(out / "comparison.json")
    assert f"input {out / 'small-HHH-1shot.json'} has other contents than the card of comparison.json tells" in lines


def test_a_row_that_was_changed(copy):
    for name, key, at in (
        ("out/comparison.json", "chosen", "its prompt: of no line of"),
        ("out/almost_train.json", "output", "its dialogue: answer 0 of"),
        ("judged.json", "output", "its source: no row of"),
        ("janus/multifaceted_dpo.json", "system", "its responses: of no instruction of"),
    ):
        rows = json.loads((copy / name).read_text())
        rows[0][key] += " More."
        (copy / name).write_text(json.dumps(rows))
        assert any(line.startswith(at) for line in untold(copy / name)[0]), name


def test_a_judgment_that_was_changed(copy):
    edited(copy / "judged.json", '"judgment": "', '"judgment": "More. ')
    lines, _ = untold(copy / "judged.json")
    assert lines[1].startswith(
        "why judged.json has this text: of the journal's replies annotate_judgments.py makes another"
    )


@pytest.mark.parametrize(
    "argument, value, said",
    [
        ("seed", 43, "its reply: no line of"),
        ("model_name_or_path", "other", "its reply: no line of"),
        ("shots", 3, "this version does not take its arguments: unknown argument --shots; did you mean '--n_shot'?"),
    ],
)
def test_a_card_that_was_changed_or_is_of_another_version(copy, argument, value, said):
    path = copy / "out" / "small-HHH-1shot.json.run.json"
    card = json.loads(path.read_text())
    card["arguments"][argument] = value
    path.write_text(json.dumps(card))
    lines, _ = untold(copy / "out" / "small-HHH-1shot.json")
    assert len(lines) == 1 and said in lines[0]


def test_files_on_the_way_without_a_card_or_gone(copy):
    out = copy / "out"
    (out / "prompts.txt.run.json").unlink()
    (out / "small-HHH-3shot.json.run.json").write_text("{")
    row = next(
        n for n, row in enumerate(json.loads((out / "comparison.json").read_text())) if "small-HHH-3" in row["meta"]
    )
    lines, text = untold(out / "comparison.json", row)
    assert lines == [
        f"run card {out / 'small-HHH-3shot.json.run.json'} is empty or damaged",
        f"run card {out / 'prompts.txt.run.json'} does not exist: no stage has finished this file",
    ]
    assert len(requests(text)) == 1
    (out / "big-HHH-3shot.json").unlink()
    assert untold(out / "comparison.json")[0][-1].startswith(
        f"response file {out / 'big-HHH-3shot.json'} does not exist"
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["asked.jsonl", "0"], "asked.jsonl.run.json does not exist"),
        (["out/comparison.json", "99"], "has no row 99: it has"),
        (["out/none.json", "0"], "none.json.run.json does not exist"),
        (["imported/multifaceted_sft.json", "0"], "system_messages.py --mode import, of which no row is explained"),
    ],
)
def test_bad_input(copy, words, said, capsys):
    words = [str(copy / words[0]), words[1]]
    call(
        system_messages,
        "--mode",
        "import",
        "--data_path",
        copy / "janus" / "multifaceted_sft.json",
        "--output_dir",
        copy / "imported",
    )
    with pytest.raises(UserError, match=re.escape(said)):
        explain.main(explain.parse_args(words))


def test_nothing_is_written(runs):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in runs[0].rglob("*")}

    before = state()
    said(runs[0] / "out" / "almost_train.json", 0)
    said(runs[0] / "janus" / "multifaceted_bench.json", 0)
    assert state() == before
