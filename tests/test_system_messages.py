"""system_messages.py as a user runs it: the files of each mode, resumption, the report, wrong inputs."""

import json
import subprocess
import sys

import multifaceted
import pytest

import system_messages
from alignment.command_line import REPOSITORY, UserError
from alignment.generation import Reply
from alignment.janus.leaks import LeakRule
from alignment.janus.preferences import DIMENSIONS
from alignment.janus.rows import FILES, STAGES
from alignment.janus.splits import prove_unseen
from alignment.training_data import read_examples

WRITER = ["--backend", "simulated", "--model_name_or_path", "writer-7b?quality=0.8"]
THINGS = "walnuts lighthouses cacti trombones igloos marathons fjords tadpoles origami volcanoes".split()


def call(folder, mode, *words, writer=WRITER):
    words = ["--mode", mode, "--output_dir", folder, *(writer if mode in STAGES else []), *words]
    system_messages.main(system_messages.parse_args([str(word) for word in words]))
    return json.loads((folder / STAGES[mode]).read_text()) if mode in STAGES else None


def counts(folder, name):
    return json.loads((folder / f"{name}.run.json").read_text())["counts"]


@pytest.fixture(scope="module")
def instructions(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "asked.jsonl"
    rows = [
        {"id": number, "instruction": f"Tell {thing} apart.", "source": "made"} for number, thing in enumerate(THINGS)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def collection(tmp_path_factory, instructions):
    """All modes in order, on ten instructions of which two are the bench's."""
    folder = tmp_path_factory.mktemp("collection")
    call(folder, "pa", "--data_path", instructions, "--bench_share", "0.2")
    for mode in ("sm", "gr", "rb", "ds", "report"):
        call(folder, mode)
    return folder


def read(folder, name):
    return json.loads((folder / name).read_text())


def test_each_instruction_has_its_sets(collection):
    sets = read(collection, "preference_sets.json")
    assert len(sets) >= 25 and len({(row["id"], row["set"]) for row in sets}) == len(sets)
    assert all([each["dimension"] for each in row["preference_set"]] == list(DIMENSIONS) for row in sets)
    assert len({row["id"] for row in sets if row["split"] == "bench"}) == 2
    card = counts(collection, "preference_sets.json")
    assert card["asked"] == 30 and card["rows"] == card["usable"] == len(sets)
    assert sum(card["given up"].values()) == 30 - len(sets)


def test_system_messages_speak_to_somebody_and_leak_nothing(collection):
    rows, rule = read(collection, "system_messages.json"), LeakRule()
    assert rows and all("you" in row["system"].lower() for row in rows)
    assert not any(rule.leaks(row["system"], row["prompt"]) for row in rows)


def test_rubrics_are_those_of_the_bench(collection):
    rows = read(collection, "rubrics.json")
    assert rows and {row["split"] for row in rows} == {"bench"} and {len(row["rubrics"]) for row in rows} == {4}


def test_files_have_the_published_keys_and_are_learned(collection):
    common = ["main_source", "original_source", "preference_set", "system", "prompt"]
    keys = {
        "sft": [*common, "output"],
        "small": [*common, "output"],
        "dpo": [*common, "chosen", "rejected"],
        "orpo": [*common, "chosen", "rejected"],
        "rm": ["input", "chosen", "rejected"],
        "rm_test": ["input", "chosen", "rejected"],
        "bench": ["source", "preference_set", "system", "prompt", "reference_answer", "rubrics"],
    }
    objectives = {"sft": "sft", "small": "sft", "dpo": "dpo", "orpo": "orpo", "rm": "reward", "rm_test": "reward"}
    responses = read(collection, "responses.json")
    for kind, name in FILES.items():
        rows = read(collection, name)
        assert all(list(row) == keys[kind] for row in rows), kind
        if kind in objectives:
            assert len(read_examples(str(collection / name), objectives[kind])) == len(rows)
    train = [row for row in responses if row["split"] == "train"]
    assert len(read(collection, FILES["sft"])) == len(train)
    assert len(read(collection, FILES["small"])) == len({row["id"] for row in train})
    assert 0 < len(read(collection, FILES["rm_test"])) <= 2
    written = {row["output"]: row for row in train}
    for row in read(collection, FILES["dpo"]):
        chosen, rejected = (written[row[side][-1]["content"]] for side in ("chosen", "rejected"))
        assert chosen["id"] == rejected["id"] and chosen["set"] != rejected["set"] and row["system"] == chosen["system"]


def test_the_bench_is_unseen(collection):
    rows = read(collection, "responses.json")
    bench = [row for row in rows if row["split"] == "bench"]
    assert prove_unseen(rows, bench) == 8
    assert counts(collection, FILES["sft"])["instructions compared with the bench"] == 8


def test_a_bench_that_was_seen_ends_ds(collection, tmp_path):
    rows = read(collection, "responses.json")
    copied = next(row for row in rows if row["split"] == "bench")["prompt"]
    last = rows[-1]["id"]
    changed = [row | {"prompt": copied} if row["id"] == last else row for row in rows]
    (tmp_path / "responses.json").write_text(json.dumps(changed))
    (tmp_path / "rubrics.json").write_text((collection / "rubrics.json").read_text())
    with pytest.raises(UserError, match=f"1 training instructions are not unseen by the bench: id {last}: its instruc"):
        call(tmp_path, "ds")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["responses.json", "rubrics.json"]


def test_rubrics_of_other_responses_end_ds(collection, tmp_path):
    rows = read(collection, "responses.json")
    bench = next(row for row in rows if row["split"] == "bench")
    bench["output"] += " And more."
    (tmp_path / "responses.json").write_text(json.dumps(rows))
    (tmp_path / "rubrics.json").write_text((collection / "rubrics.json").read_text())
    with pytest.raises(
        UserError, match=r"rubrics.json: set \d of id \d is not that of .*responses.json; run --mode rb"
    ):
        call(tmp_path, "ds")


def test_without_bench_and_with_one_set_there_are_no_pairs(instructions, tmp_path, capsys):
    call(tmp_path, "pa", "--data_path", instructions, "--bench_share", "0", "--num_sets", "1", "--limit", "4")
    for mode in ("sm", "gr"):
        call(tmp_path, mode)
    with pytest.raises(UserError, match="responses.json has no row of the bench; .* --rubrics_for all"):
        call(tmp_path, "rb")
    call(tmp_path, "rb", "--rubrics_for", "all")
    call(tmp_path, "ds")
    assert {kind for kind, name in FILES.items() if (tmp_path / name).exists()} == {"sft", "small"}
    assert "no pairs: no instruction has two different responses" in capsys.readouterr().out


def test_a_bench_of_its_own(instructions, tmp_path, capsys):
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"prompt": "Tell walnuts apart!"}, {"prompt": "Name a bridge."}]))
    rows = call(tmp_path, "pa", "--data_path", instructions, "--bench_data_path", own, "--num_sets", "1")
    assert {row["id"] for row in rows if row["split"] == "bench"} <= {"own-0", "own-1"}
    assert "9 instructions for training, 2 for the bench, 1 left out: near one of the bench" in capsys.readouterr().out
    assert 0 not in {row["id"] for row in rows}


# Again


def test_the_same_command_again_does_nothing(collection, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in collection.iterdir()}
    for mode in ("sm", "gr", "rb", "ds", "report"):
        call(collection, mode)
    assert capsys.readouterr().out.count("nothing to do") == 5
    assert before == {path.name: path.stat().st_mtime_ns for path in collection.iterdir()}


def test_what_failed_is_tried_again_and_gives_what_an_even_run_gives(instructions, tmp_path):
    even, uneven = tmp_path / "even", tmp_path / "uneven"
    call(even, "pa", "--data_path", instructions)
    call(even, "sm")
    faulty = [*WRITER[:3], WRITER[3] + "&faults=0.4"]
    uneven.mkdir()
    (uneven / STAGES["pa"]).write_text((even / STAGES["pa"]).read_text())
    with pytest.raises(UserError, match="requests failed .* the same command tries these again"):
        call(uneven, "sm", writer=faulty)
    partial = read(uneven, STAGES["sm"])
    assert 0 < len(partial) < len(read(even, STAGES["sm"])) and not (uneven / "system_messages.json.run.json").exists()
    for _ in range(9):
        try:
            rows = call(uneven, "sm", writer=faulty)
            break
        except UserError:
            continue
    assert rows == read(even, STAGES["sm"])


def test_a_journal_saves_all_requests(collection, tmp_path, monkeypatch):
    for name in (STAGES["pa"], STAGES["sm"], STAGES["sm"] + ".journal.jsonl"):
        (tmp_path / name).write_text((collection / name).read_text())
    (tmp_path / STAGES["sm"]).unlink()

    def refuse(self, requests, sampling):
        raise AssertionError(f"{len(requests)} requests made again")

    monkeypatch.setattr("alignment.engines.simulated.SimulatedEngine.complete", refuse)
    assert call(tmp_path, "sm") == read(collection, STAGES["sm"])


def test_a_schema_that_the_engine_refuses_is_counted(instructions, tmp_path, monkeypatch):
    def refuse(self, requests, sampling):
        yield from ((index, Reply(None, "refused: schema")) for index in range(len(requests)))

    monkeypatch.setattr("alignment.engines.simulated.SimulatedEngine.complete", refuse)
    with pytest.raises(UserError, match=r"of 30 questions none got a usable reply \(30 refused: schema\)"):
        call(tmp_path, "pa", "--data_path", instructions)


# import, report


def test_import_gives_the_same_files(collection, tmp_path):
    parts = [collection / FILES[kind] for kind in ("sft", "dpo", "orpo", "rm", "rm_test", "bench")]
    call(tmp_path, "import", "--data_path", *parts)
    for path in parts:
        assert read(tmp_path, path.name) == json.loads(path.read_text())
    call(tmp_path, "report")
    assert (tmp_path / "report.html").exists()
    with pytest.raises(UserError, match="multifaceted_dpo.json is an input of this run"):
        call(collection, "import", "--data_path", collection / FILES["dpo"])


def test_a_report_of_rows_without_preferences(tmp_path):
    """As the collection was published at first."""
    rows = [{"system": f"You are {who}.", "prompt": "Why?", "output": f"So {who} says."} for who in ("kind", "calm")]
    (tmp_path / "part.json").write_text(json.dumps(rows))
    call(tmp_path, "import", "--data_path", tmp_path / "part.json")
    call(tmp_path, "report")
    told = counts(tmp_path, "report.html")
    assert told["instructions"] == 1 and told["system messages"] == 2 and told["subdimensions"] == 0
    assert counts(tmp_path, FILES["sft"]) == {"rows": {"sft": 2}}


def test_the_report_holds_the_collection(collection):
    page = (collection / "report.html").read_text()
    data = json.loads(page.split('<script type="application/json" id="data">')[1].split("</script>")[0])
    rows = read(collection, "responses.json")
    assert data["counts"]["preference sets"] == len(rows) and data["counts"]["of the bench"] == 2
    assert [each["name"] for each in data["tree"]] == list(DIMENSIONS)
    assert sum(each["count"] for each in data["tree"]) == 4 * len(rows)
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "") and "innerHTML =" not in page
    assert max(len(own) for own in data["worlds"]) == 3


# Wrong inputs


@pytest.mark.parametrize(
    "mode, missing", [("sm", "preference_sets"), ("gr", "system_messages"), ("rb", "responses"), ("ds", "responses")]
)
def test_modes_out_of_order(tmp_path, mode, missing):
    with pytest.raises(UserError, match=f"{missing}.json does not exist; make it with --mode .. first"):
        call(tmp_path / "new", mode)
    assert not (tmp_path / "new").exists()


def test_ds_wants_the_rubrics_of_a_bench(collection, tmp_path):
    (tmp_path / "responses.json").write_text((collection / "responses.json").read_text())
    with pytest.raises(UserError, match="rubrics.json does not exist; make it with --mode rb first"):
        call(tmp_path, "ds")


def test_a_report_of_nothing(tmp_path):
    with pytest.raises(UserError, match="has no preference_sets.json and no multifaceted_sft.json"):
        call(tmp_path, "report")


def test_mistakes_end_with_code_2_and_one_line(tmp_path):
    tree = tmp_path / "tree.json"
    tree.write_text('{"style": {"tone": ["dry"]}}')
    (tmp_path / "asked.json").write_text('[{"instruction": "Go."}]')
    command = [sys.executable, "system_messages.py", "--mode", "pa", "--output_dir", tmp_path / "out", *WRITER]
    command += ["--data_path", tmp_path / "asked.json", "--preference_tree", tree]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert done.stderr.startswith("system_messages.py: error: preference tree") and done.stderr.count("\n") == 1


def test_data_path_is_asked_for(capsys):
    with pytest.raises(SystemExit) as raised:
        system_messages.parse_args(["--mode", "import", "--output_dir", "x"])
    assert raised.value.code == 2 and "--data_path is missing: --mode import reads it" in capsys.readouterr().err


def test_the_benchmark_runs(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(multifaceted, "BENCH", 2)
    multifaceted.measure(tmp_path, 9)
    told = capfd.readouterr().out
    assert "15 rows, " in told and "bench unseen, 3 instructions: " in told and "leak rule, " in told
    assert len(read(tmp_path, FILES["sft"])) == 9 and len(read(tmp_path, FILES["bench"])) == 6
