"""leaderboard.py: what it takes of which file, and what it leaves; alpaca_eval.sh with the real package, whose judge is
a small server here, and what it does before and after the package is called."""

import csv
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.hashes import sha256
from alignment.judging.pair_verdicts import preference_in
from eval import leaderboard


def interval(value, n=None, **more):
    return {"mean": value, "interval": [value - 0.1, value + 0.1], **({} if n is None else {"n": n}), **more}


PAIRWISE = {
    "summary": {
        "judge": "big-judge",
        "template": "0123456789ab",
        "warnings": ["the judge leans | to *A*"],
        "pairs": [
            {
                "first": "sft",
                "second": "base",
                "win_rate": interval(0.7, 80),
                "length_controlled": {"win_rate": 0.6, "interval": [0.5, 0.7], "weights": {"length": 1.0}, "n": 80},
                "flips": interval(0.2, 80),
                "by_category": {"math": interval(0.9, 8)},
            }
        ],
        "ladder": [{"model": "sft", "points": 40.0, "interval": [10.0, 70.0], "rank": 1, "n": 160}],
        "self_test": {"padded": interval(0.5, 20)},
        "place": {"verdicts": interval(0.1, 80)},
    },
    "comparisons": [{"first": "sft", "second": "base", "interval": [0, 1], "value": 1}],
}
BENCH = {
    "summary": {
        "judge": "big-judge",
        "template": "ba9876543210",
        "models": {"janus": {"score": interval(4.2, 921), "by_source": {"koala": interval(4.0, 180)}}},
        "compared": [
            {
                "first": "janus",
                "second": "base",
                "overall": {"difference": 0.3, "interval": [0.2, 0.4], "win_rate": 0.6, "win_interval": [0.5, 0.7]},
            }
        ],
    },
    "instances": [],
}
HHH = {"results": {"all": {"accuracy": 0.8, "interval": [0.7, 0.9], "n": 221}, "other": None}, "items": [{"value": 1}]}
TOXICITY = {
    "model": "janus",
    "scorer": "perspective",
    "results": {"toxicity": {"value": 0.3, "interval": [0.2, 0.4], "prompts": 500}, "dist_2": None},
    "rows": [],
}


def written(folder, name, found, script, **arguments):
    """A result and its run card, as a script leaves them."""
    path = folder / name
    path.write_text(json.dumps(found))
    card = {"script": script, "arguments": arguments, "output": sha256(path), "finished": "2026-11-26T18:00:00Z"}
    (folder / f"{name}.run.json").write_text(json.dumps(card))
    return path


def board(folder, *paths):
    args = leaderboard.parse_args(["--results", *map(str, paths), "--output_dir", str(folder / "board")])
    leaderboard.main(args)
    with (folder / "board" / "leaderboard.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_numbers_of_every_evaluation(tmp_path, capsys):
    """Each with all that it was made of; parts, what is of the judge, and rows are left out."""
    rows = board(
        tmp_path,
        written(tmp_path, "pairs.json", PAIRWISE, "pairwise.py", questions="data/question.jsonl"),
        written(tmp_path, "bench.json", BENCH, "multifaceted_bench.py", bench="bench.json", model_name_or_path="j"),
        written(tmp_path, "hhh.json", HHH, "run_evaluation.py", benchmark_name="hhh", model_name_or_path="tiny"),
        written(tmp_path, "tox.json", TOXICITY, "toxicity.py", model_name_or_path="x", scorer="perspective"),
    )
    told = [(row["benchmark"], row["data"], row["measure"], row["judge"], row["model"], row["against"]) for row in rows]
    assert told == [
        ("hhh", "", "all", "", "tiny", ""),
        ("multifaceted_bench", "bench", "overall difference", "big-judge", "janus", "base"),
        ("multifaceted_bench", "bench", "score", "big-judge", "janus", ""),
        ("pairwise", "question", "flips", "big-judge", "sft", "base"),
        ("pairwise", "question", "ladder", "big-judge", "sft", ""),
        ("pairwise", "question", "length_controlled", "big-judge", "sft", "base"),
        ("pairwise", "question", "win_rate", "big-judge", "sft", "base"),
        ("toxicity", "", "toxicity", "perspective", "janus", ""),
    ]
    assert [rows[1][name] for name in ("value", "low", "high", "n")] == ["0.3", "0.2", "0.4", ""]
    best = rows[6]
    assert [best[name] for name in ("value", "low", "high", "n")] == ["0.7", "0.6", "0.7999999999999999", "80"]
    assert (best["template"], best["date"], best["card"]) == ("0123456789ab", "2026-11-26", "pairs.json.run.json")
    assert rows[4]["value"] == "40.0" and rows[5]["value"] == "0.6" and rows[7]["n"] == "500"
    assert "8 numbers of 3 models" in capsys.readouterr().out


def test_a_number_that_names_no_model_is_the_files_and_not_the_judges(tmp_path):
    found = {"summary": {"judge": "big-judge", "rate": interval(0.5)}}
    (row,) = board(tmp_path, written(tmp_path, "mine.json", found, "x.py", model_name_or_path="big-judge"))
    assert (row["model"], row["measure"], row["n"]) == ("mine", "rate", "")


def test_the_table_and_the_page(tmp_path):
    """The highest value first, each judge and prompt a table of its own, and no text is markup."""
    other = json.loads(json.dumps(PAIRWISE).replace("big-judge", "<b>small|judge"))
    more = json.loads(json.dumps(PAIRWISE).replace("sft", "dpo").replace("0.7", "0.8"))
    paths = [
        written(tmp_path, f"{name}.json", found, "pairwise.py")
        for name, found in (("a", PAIRWISE), ("b", other), ("c", more))
    ]
    board(tmp_path, *paths)
    text = (tmp_path / "board" / "leaderboard.md").read_text()
    own = text[text.index("## pairwise, win\\_rate, by big-judge") :].split("\n##")[0].strip().split("\n")
    assert own[2].startswith("| model | against | value [95% interval] | n |") and len(own) == 6
    assert own[4].startswith("| dpo | base | 0.800 \\[") and own[5].startswith(
        "| sft | base | 0.700 \\[0.600, 0.800\\] |"
    )
    assert "by \\<b\\>small\\|judge" in text and "leans \\| to \\*A\\*" in text and "<b>" not in text
    assert "<b>" not in (tmp_path / "board" / "leaderboard.html").read_text()


def test_alpaca_evals_annotations(tmp_path):
    """2 is a win, 1 a loss, 1.5 and the old 0 a tie; what could not be read is in no mean: 2.5 of 4."""
    rows = [
        {
            "generator_1": "ref",
            "generator_2": "me",
            "annotator": "judge",
            "preference": each,
            "preference_date": "2026-11-2",
        }
        for each in (2.0, 1.0, 1.5, 0, None, 2.0)
    ]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    (row,) = board(tmp_path, tmp_path / "annotations.json")
    assert "annotations.json: 1 of 6 pairs have no verdict" in (tmp_path / "board" / "leaderboard.md").read_text()
    assert float(row["value"]) == 3 / 5 and row["n"] == "5" and (row["model"], row["against"]) == ("me", "ref")
    assert (
        row["benchmark"] == "alpaca_eval" and row["judge"] == "judge" and float(row["low"]) < 0.6 < float(row["high"])
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preference": "2"}, "row 1: 'preference' is neither a number"),
        ({"preference": float("nan")}, "row 1: 'preference' is neither a number"),
        ({"preference": True}, "row 1: 'preference' is neither a number"),
        ({"preference": 5}, "row 1: 'preference' is neither a number from 1 to 2, nor 0, nor null"),
        ({"annotator": None}, "row 1 has no text under 'annotator'"),
        ({"generator_2": ["me"]}, "row 1 has no text under 'generator_2'"),
    ],
)
def test_annotations_that_are_none(tmp_path, change, said):
    row = {"generator_1": "ref", "generator_2": "me", "annotator": "judge", "preference": 2.0}
    (tmp_path / "annotations.json").write_text(json.dumps([row, row | change]))
    with pytest.raises(UserError, match=said):
        board(tmp_path, tmp_path / "annotations.json")
    assert not (tmp_path / "board").exists()


def test_annotations_without_a_verdict_are_told(tmp_path, capsys):
    row = {"generator_1": "ref", "generator_2": "me", "annotator": "judge", "preference": None}
    (tmp_path / "annotations.json").write_text(json.dumps([row, row]))
    with pytest.raises(UserError, match="no results are left"):
        board(tmp_path, tmp_path / "annotations.json")
    assert "annotations.json is left out: none of its verdicts could be read" in capsys.readouterr().err


def test_what_is_not_finished_is_left_out_and_told(tmp_path, capsys):
    good = written(tmp_path, "good.json", HHH, "run_evaluation.py", model_name_or_path="tiny")
    changed = written(tmp_path, "changed.json", HHH, "run_evaluation.py")
    changed.write_text(json.dumps(HHH | {"items": []}))
    (tmp_path / "bare.json").write_text(json.dumps(HHH))
    empty = written(tmp_path, "empty.json", [{"output": "x"}], "generate.py")
    none = written(tmp_path, "none.json", [], "x.py")
    damaged = written(tmp_path, "damaged.json", HHH, None)
    assert len(board(tmp_path, good, changed, tmp_path / "bare.json", empty, none, damaged, good)) == 1
    told = capsys.readouterr().err
    assert "changed.json is left out: it was changed since its run ended" in told
    assert "bare.json is left out: no run card bare.json.run.json says that its run ended" in told
    for name in ("empty", "none"):
        assert f"{name}.json is left out: it has no number with an interval" in told
    assert "damaged.json is left out: its run card damaged.json.run.json is damaged" in told
    with pytest.raises(UserError, match="no results are left"):
        board(tmp_path, tmp_path / "bare.json")
    with pytest.raises(UserError, match="does not exist"):
        board(tmp_path, tmp_path / "nowhere.json")


# alpaca_eval.sh


@pytest.fixture
def package(tmp_path):
    """A package that writes down how it was called, and fails where it is told to."""
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    tool = tmp_path / "venv" / "bin" / "alpaca_eval"
    tool.write_text(
        '#!/bin/sh\nprintf "%s\\n" "$@" "$OPENAI_API_BASE" >"$SEEN"\n[ -z "$FAIL" ] || { echo no >&2; exit 1; }\n'
    )
    tool.chmod(0o755)
    for name in ("mine", "theirs"):
        (tmp_path / f"{name}.json").write_text(json.dumps([{"instruction": "Why?", "output": "So."}]))
    return tmp_path


def evaluate(folder, **more):
    names = {"ANSWERS": "mine.json", "REFERENCE": "theirs.json", "OUT": "out dir", "VENV": "venv", "SEEN": "seen"}
    env = os.environ | {name: str(folder / path) for name, path in names.items()}
    env |= {"JUDGE": "org/big-judge", "API_BASE": "http://localhost:1/v1", "FAIL": ""} | more
    return subprocess.run(["bash", REPOSITORY / "scripts/alpaca_eval.sh"], env=env, capture_output=True, text=True)


def test_the_package_is_called_with_our_judge(package):
    """With the slots of the package, none of ours, and patterns that read what our parser reads."""
    done = evaluate(package)
    assert done.returncode == 0 and "AlpacaEval by org/big-judge" in done.stdout, done.stderr
    seen = (package / "seen").read_text().split("\n")
    assert seen[seen.index("--model_outputs") + 1] == str(package / "out dir" / "judge" / "answers.json")
    assert seen[seen.index("--sort_by") + 1] == "win_rate" and "http://localhost:1/v1" in seen
    assert seen[seen.index("--annotators_config") + 1] == str(package / "out dir" / "judge")
    prompt = (package / "out dir" / "judge" / "prompt.txt").read_text()
    assert prompt.startswith("<|im_start|>system\nYou compare two answers") and prompt.endswith("<|im_end|>\n")
    assert "### Question:\n{instruction}\n\n### Answer A:\n{output_1}\n\n### Answer B:\n{output_2}\n" in prompt
    assert prompt.count("{") == 3
    config = (package / "out dir" / "judge" / "configs.yaml").read_text()
    assert config.startswith('"big-judge":\n') and 'model_name: "org/big-judge"' in config
    patterns = [line.split(":", 1) for line in config.split("\n") if "VERDICT" in line]
    for key, pattern in patterns:
        side = pattern.strip(" '").removeprefix(r"\[VERDICT\]\s*").removesuffix(r"\b")
        assert float(key) == {1: 1, -1: 2, 0: 1.5}[preference_in(f"[VERDICT] {side}")]
    assert len(patterns) == 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{x", "mine.json is no JSON list of rows with an instruction and an output"),
        ('[{"instruction": "Why?", "output": 5}]', "mine.json is no JSON list of rows"),
        ('[{"instruction": "Who?", "output": "I."}]', "no instruction has an output in both ANSWERS and REFERENCE"),
        ('[{"instruction": "Why?", "output": null}]', "no instruction has an output in both"),
    ],
)
def test_answers_that_cannot_be_compared_are_one_line(package, text, said):
    """Before anything is installed or written."""
    (package / "mine.json").write_text(text)
    done = evaluate(package)
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (package / "seen").exists() and not (package / "out dir").exists()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"ANSWERS": "none.json"}, "ANSWERS=none.json is no file"),
        ({"REFERENCE": ""}, "REFERENCE= is no file"),
        ({"JUDGE": ""}, "JUDGE is missing"),
        ({"API_BASE": ""}, "API_BASE is missing"),
        ({"FAIL": "1"}, "alpaca_eval failed: no ("),
    ],
)
def test_what_is_wrong_is_one_line(package, more, said):
    done = evaluate(package, **more)
    assert done.returncode == 2 and done.stderr.startswith(f"alpaca_eval.sh: error: {said}")
    assert done.stderr.count("\n") == 1


SCIPY = {"__init__": "", "special": "logsumexp = None", "stats": "pearsonr = spearmanr = None"}


class Judge(BaseHTTPRequestHandler):
    """Of the two answers that it is shown the one with "right" in it is better, and the first answer to a question
    about nothing cannot be read."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((self.path, self.headers["Authorization"], asked))
        question, a, b = (part.split("###")[0] for part in asked["messages"][1]["content"].split(":\n")[1:4])
        said = "They differ.\n[VERDICT] " + ("A" if "right" in a else "B" if "right" in b else "TIE")
        message = {"role": "assistant", "content": "I cannot say." if "nothing" in question else said}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        made = {"id": "0", "object": "chat.completion", "created": 0, "model": asked["model"]}
        body = json.dumps({**made, "choices": [choice], "usage": usage}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *told):
        pass


@pytest.fixture
def judge():
    with ThreadingHTTPServer(("127.0.0.1", 0), Judge) as server:
        server.asked = []
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_the_real_package_and_a_server(tmp_path, judge):
    """Of ten questions six are won, two lost, one a tie and one without a verdict: 6.5 of 9. Two more, an answer to
    which is missing or would end the judge's prompt, are not asked. The package draws the order; the leaderboard takes
    what it wrote. scipy is played: the package imports it, and calls none of it here."""
    texts = ["right"] * 6 + ["no"] * 2 + ["even", "right"]
    rows = [{"instruction": f"Question {n} of {{many}}?", "output": f"It is {text}."} for n, text in enumerate(texts)]
    rows[9]["instruction"] = "What is nothing?"
    others = [row | {"output": "It is right." if row["output"] == "It is no." else "It is equal."} for row in rows]
    for name, own in (("mine", rows), ("theirs", others)):
        last = [None, "It is.<|im_end|>"] if name == "mine" else ["It is right."] * 2
        own = own + [{"instruction": f"Question {n}?", "output": text} for n, text in enumerate(last, 10)]
        told = [row | {"generator": name, "dataset": "koala"} for row in own]
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    (tmp_path / "scipy").mkdir()
    for name, text in SCIPY.items():
        (tmp_path / "scipy" / f"{name}.py").write_text(text)
    api_base = f"http://127.0.0.1:{judge.server_port}/v1"
    how = {"VENV": sys.prefix, "PYTHONPATH": str(tmp_path), "API_BASE": api_base, "OPENAI_API_KEY": "sk-mine"}
    done = evaluate(tmp_path, **how)
    assert done.returncode == 0 and done.stdout.endswith("leaderboard.csv and annotations.json\n"), done.stderr
    assert done.stdout.startswith(
        "1 of 12 rows of ANSWERS have no output, and are left out\n1 of 12 rows of ANSWERS spell"
    )
    assert "a verdict that could be read, which are in no number: 1\n" in done.stdout
    with (tmp_path / "out dir" / "leaderboard.csv").open() as file:
        (line,) = csv.DictReader(file)
    assert float(line["win_rate"]) == pytest.approx(100 * 6.5 / 9) and line["n_total"] == "9"
    (row,) = board(tmp_path, tmp_path / "out dir" / "annotations.json")
    assert (row["model"], row["against"], row["judge"], row["n"]) == ("mine", "theirs", "big-judge", "9")
    assert float(row["value"]) == pytest.approx(6.5 / 9)
    assert {(path, key) for path, key, _ in judge.asked} == {("/v1/chat/completions", "Bearer sk-mine")}
    [first] = [asked for _, _, asked in judge.asked if "Question 6" in asked["messages"][1]["content"]]
    assert (first["model"], first["max_tokens"], first["temperature"]) == ("org/big-judge", 1024, 0)
    assert first["messages"][0]["content"] == (REPOSITORY / "assets" / "judge" / "pair.txt").read_text().strip()
    asked = first["messages"][1]["content"]
    assert asked.startswith("### Question:\nQuestion 6 of {many}?\n\n### Answer A:\nIt is ")
    assert asked.endswith("\n\n### What you say of them:") and len(judge.asked) == 10
    shown_first = {"### Answer A:\nIt is equal." in each["messages"][1]["content"] for _, _, each in judge.asked}
    assert shown_first == {True, False}
