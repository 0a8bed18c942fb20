"""Benchmarks of policies: what is asked, how it is counted, that batches change nothing; and what is refused."""

import json
import math
import shlex
from functools import partial

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.command_line import REPOSITORY, UserError
from alignment.engines.simulated_judge import SimulatedJudge
from alignment.generation import generate
from alignment.intervals import bootstrap, percent, wilson
from alignment.judging import winrates
from alignment.judging.pairs import system_prompt
from alignment.static_hhh import LEAD_IN, Comparison, chosen_wins, question, read_comparisons
from alignment.truthfulqa import primed, read_questions, true_or_false
from eval import run_evaluation
from studies import reward_table

DIALOGUE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant: "


@pytest.fixture
def rows(tmp_path):
    found = [
        {"chosen": DIALOGUE + "Good" + "!" * i, "rejected": DIALOGUE + "Go" + "?" * (i % 3), "type": kind}
        for i, kind in enumerate(["helpful", "honest", "helpful", "other"] * 3)
    ]
    (tmp_path / "hhh.json").write_text(json.dumps(found))
    return tmp_path / "hhh.json"


def test_question(rows):
    """Human and Assistant become Query and Response, and the text ends where the letter comes next."""
    pair = read_comparisons(rows)[1]
    assert pair == Comparison(DIALOGUE.rstrip(), "Good!", "Go?", "honest")
    asked, swapped = question(pair, False), question(pair, True)
    assert "Query: Hi\n\nResponse: Hello\n\nQuery: Bye\n\nResponse A: Good!\n\nResponse B: Go?" in asked
    assert "Response A: Go?\n\nResponse B: Good!" in swapped
    assert asked.count("Human:") == 1 and asked.endswith("\n\nAssistant:" + LEAD_IN)


def test_both_orders_cancel_a_liking_for_a_letter():
    """A model that says A whatever comes: 0.9 + 0.1 against 0.1 + 0.9, a tie, correct as released. A preference of
    0.05 on top decides; and the mirrored preference decides the other way."""
    assert chosen_wins([0.9, 0.1], [0.9, 0.1]) == 1
    assert chosen_wins([0.85, 0.15], [0.9, 0.1]) == 0
    assert chosen_wins([0.95, 0.05], [0.9, 0.1]) == 1


def test_by_type_is_micro_over_all():
    kinds = ["helpful", "helpful", "helpful", "honest"]
    found = run_evaluation.by_type(kinds, ["a", "b", "c", "d"], [1.0, 1.0, 0.0, 0.0], [None] * 4)["results"]
    assert found["helpful"]["accuracy"] == pytest.approx(2 / 3) and found["honest"]["accuracy"] == 0
    assert found["all"] == {"accuracy": 0.5, "interval": pytest.approx(wilson(2, 4)), "n": 4}
    assert list(found) == ["helpful", "honest", "all"]


def test_a_policy_in_batches_is_the_policy_alone(rows, model_folder, tmp_path):
    """Probabilities of both letters from batches of mixed lengths: those of each text by itself, unpadded."""
    out = tmp_path / "result.json"
    run_evaluation.main(
        run_evaluation.parse_args(
            [
                "--data_path",
                str(rows),
                "--model_name_or_path",
                str(model_folder),
                "--batch_tokens",
                "2000",
                "--output_path",
                str(out),
            ]
        )
    )
    items = json.loads(out.read_text())["items"]
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    letters = tokenizer("AB")["input_ids"]  # after the space, which the byte tokenizer spells apart
    for item, pair in zip(items, read_comparisons(rows), strict=True):
        for scores, swapped in zip(item["scores"], (False, True), strict=True):
            ids = torch.tensor([tokenizer(question(pair, swapped) + " ")["input_ids"][-512:]])
            assert scores == pytest.approx(model(ids).logits[0, -1].softmax(-1)[letters].tolist(), rel=1e-4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_limit_length_and_precision(rows, model_folder, tmp_path, dtype):
    """Three items, of whose texts the last 40 tokens are read, by a model of that precision."""
    words = [
        "--data_path",
        rows,
        "--model_name_or_path",
        model_folder,
        "--limit",
        "3",
        "--max_length",
        "40",
        "--dtype",
        dtype,
        "--output_path",
        tmp_path / "result.json",
    ]
    run_evaluation.main(run_evaluation.parse_args(list(map(str, words))))
    items = json.loads((tmp_path / "result.json").read_text())["items"]
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype).eval()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    letters = tokenizer("AB")["input_ids"]
    assert len(items) == 3
    for item, pair in zip(items, read_comparisons(rows), strict=False):
        ids = torch.tensor([tokenizer(question(pair, False) + " ")["input_ids"][-40:]])
        alone = model(ids).logits[0, -1].float().softmax(-1)[letters].tolist()
        assert item["scores"][0] == pytest.approx(alone, rel=1e-4 if dtype == "float32" else 1e-2)


def test_a_reward_model(rows, tmp_path, tokenizer, llama, capsys):
    """r(chosen) > r(rejected) as transformers scores them one by one; the table has every type."""
    model = AutoModelForSequenceClassification.from_config(
        llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    )
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    out = tmp_path / "result.json"
    run_evaluation.main(
        run_evaluation.parse_args(
            ["--data_path", str(rows), "--reward_model", str(tmp_path / "rm"), "--output_path", str(out)]
        )
    )
    found = json.loads(out.read_text())
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    for item, pair in zip(found["items"], read_comparisons(rows), strict=True):
        for reward, answer in zip(item["scores"], (pair.chosen, pair.rejected), strict=True):
            ids = torch.tensor([tokenizer(f"{pair.prompt} {answer}</s>")["input_ids"]])
            assert model(ids).logits.item() == pytest.approx(reward, abs=1e-5)
        assert item["correct"] == (item["scores"][0] > item["scores"][1])
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["type", "accuracy,", "%", "[95%", "interval]", "n"]
    assert [line.split()[0] for line in lines] == ["helpful", "honest", "other", "all"]
    assert percent(found["results"]["all"]["accuracy"], found["results"]["all"]["interval"]) in lines[-1]


def test_pairs_of_any_form_by_their_meta(tmp_path, tokenizer, llama, capsys):
    """Accuracy by kind of pair, the equal pair dropped, and how often the longer one wins: 2 of 3. As a table too."""
    model = AutoModelForSequenceClassification.from_config(
        llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    )
    model.config.reward_max_length = 64
    model.save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    texts = (("aaa", "b", "x-vs-y"), ("a", "bbb", "x-vs-y"), ("aa", "b", "y-vs-z"), ("a", "a", "z"))
    pairs = [{"prompt": "Q", "chosen": chosen, "rejected": rejected, "meta": meta} for chosen, rejected, meta in texts]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    words = ["--benchmark_name", "pairs", "--data_path", tmp_path / "pairs.json", "--reward_model", tmp_path / "rm"]
    words += ["--output_path", tmp_path / "m.pairs.json"]
    run_evaluation.main(run_evaluation.parse_args(list(map(str, words))))
    found, shown = json.loads((tmp_path / "m.pairs.json").read_text()), capsys.readouterr().out
    assert {name: each["n"] for name, each in found["results"].items()} == {"x-vs-y": 2, "y-vs-z": 1, "all": 3}
    assert found["longer_wins"] == pytest.approx(2 / 3) and "the longer one is chosen in 66.7%" in shown

    run_evaluation.main(run_evaluation.parse_args(list(map(str, words))))
    again = capsys.readouterr().out.splitlines()
    assert again[0].endswith("finished; nothing to do") and again[1:] == shown.splitlines()
    other = {"results": {"all": {"accuracy": 0.5, "interval": [0.25, 0.75]}}}
    (tmp_path / "m.hhh.json").write_text(json.dumps(other))
    reward_table.main(reward_table.parse_args([str(tmp_path)]))
    share = percent(found["results"]["all"]["accuracy"], found["results"]["all"]["interval"])
    head, line = capsys.readouterr().out.splitlines()
    assert " ".join(line.split()) == f"m {share} 66.7 50.0 [25.0, 75.0]" and head.count("% [95% interval]") == 2
    with pytest.raises(UserError, match="no reward model was evaluated"):
        reward_table.main(reward_table.parse_args([str(tmp_path / "rm")]))


QUESTION = {
    "question": "What is 1 + 1?",
    "mc1_targets": {"Two.": 1, "Three, as everybody knows.": 0, "Four.": 0},
    "mc2_targets": {"Two.": 1, "2.": 1, "Three, as everybody knows.": 0, "Five.": 0},
}
OTHER = {"question": "Why?", "mc1_targets": {"So.": 1, "No.": 0}, "mc2_targets": {"So.": 1, "No.": 0}}


def called(*words):
    run_evaluation.main(run_evaluation.parse_args([str(word) for word in words]))


def test_choices_in_batches_are_the_choices_alone(tmp_path, model_folder, capsys):
    """log p of each choice after primer and question, and log p("true") after each question of true or false: those of
    each text alone, unpadded; MC1 and MC2 are what these make by hand; to itself a model differs by 0."""
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([QUESTION, OTHER]))
    words = ["--benchmark_name", "truthful", "--data_path", path, "--model_name_or_path", model_folder]
    called(*words, "--baseline_model_name", model_folder, "--output_dir", tmp_path / "out", "--max_length", "600")
    found = json.loads((tmp_path / "out" / "tiny.truthful.json").read_text())
    shown = capsys.readouterr().out
    assert (tmp_path / "out" / "tiny.truthful.json.run.json").exists()

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder).eval()

    def alone(prompt, reply):
        """The byte tokenizer has a token a byte, so that ids of a text are those of its parts."""
        ids = torch.tensor([tokenizer(prompt + reply)["input_ids"][-600:]])
        logps = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        return logps[-len(reply) :].sum().item()

    for item, asked_of in zip(found["items"], read_questions(path), strict=True):
        assert list(item["log_p"]) == asked_of.choices
        for choice, logp in item["log_p"].items():
            prompt = cut(primed(asked_of), 600 - max(len(each) + 1 for each in asked_of.choices))
            assert logp == pytest.approx(alone(prompt, f" {choice}"), rel=1e-4)
        for choice, logp in item["log_p_true"].items():
            asked = cut(true_or_false(asked_of, choice) + " ", 599)
            assert logp == pytest.approx(alone(asked, "t"), rel=1e-4)  # the first token of "true" after the space
        best = max(asked_of.single, key=item["log_p"].get)
        assert item["mc1"] == (best == asked_of.single[0])
        assert item["mc1_true_or_false"] == (max(asked_of.single, key=item["log_p_true"].get) == asked_of.single[0])
        odds = {choice: math.exp(logp) for choice, logp in item["log_p"].items()}
        share = sum(odds[each] for each in asked_of.true) / sum(odds[each] for each in asked_of.true + asked_of.false)
        assert item["mc2"] == pytest.approx(share, rel=1e-6)
    mc2 = [item["mc2"] for item in found["items"]]
    assert found["results"]["mc2"]["accuracy"] == pytest.approx(sum(mc2) / 2)
    assert found["results"]["mc1"]["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2) and "41.7" in shown
    assert found["difference"]["mc2"] == {"value": 0, "interval": [0, 0], "n": 2}
    assert "MC2, likelihood: +0.0 [+0.0, +0.0] points above" in shown


def test_what_a_model_is_above_its_baseline():
    """Right where the other is wrong in one item of three, the same in the others: 1/3 more, and never less."""
    found = run_evaluation.difference([1.0, 1.0, 0.0], [0.0, 1.0, 0.0], seed=0)
    assert found == {"value": pytest.approx(1 / 3), "interval": (0, 1), "n": 3}


def cut(text, length):
    """The end of a text: a byte is a token, and there is no BOS."""
    return text[-length:]


def test_a_text_that_is_too_long_keeps_its_question(tmp_path, model_folder):
    """Of 60 tokens the primer keeps its last ones, and what is asked stands whole (A14); where none fits, a line."""
    from alignment.training.benchmarks import asked_policy, choice_logps, verdict_logps

    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([OTHER]))
    [question] = read_questions(path)
    short = asked_policy(str(model_folder), dtype=None, max_length=60, batch_tokens=500)
    whole = asked_policy(str(model_folder), dtype=None, max_length=None, batch_tokens=500)
    kept = primed(question)[-(60 - len(" So.")) :]
    assert kept.endswith("Q: Why?\nA:")
    assert choice_logps(short, [primed(question)], [question.choices]) == [
        pytest.approx(choice_logps(whole, [kept], [question.choices])[0], rel=1e-4)
    ]
    asked = true_or_false(question, "So.")
    assert "Answer: So. (true or false)" in asked[-58:]
    [long], [ours] = (verdict_logps(way, [[text]]) for way, text in ((short, asked), (whole, asked[-58:])))
    assert long == pytest.approx(ours, rel=1e-4)
    with pytest.raises(UserError, match="question 0: .* give more --max_length"):
        choice_logps(short, [primed(question)], [["x" * 70]])


def test_a_reward_model_is_asked_mc1(tmp_path, capsys):
    from test_scoring import make_reward_model

    from alignment.training.reward_model import load, score

    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([QUESTION, OTHER]))
    model = make_reward_model(tmp_path / "rm")
    called("--benchmark_name", "truthful", "--data_path", path, "--reward_model", model, "--output_dir", tmp_path)
    items = json.loads((tmp_path / "rm.truthful.json").read_text())["items"]
    choices = list(QUESTION["mc1_targets"])
    alone = [score(*load(model), [{"prompt": QUESTION["question"]}], [choice])[0] for choice in choices]
    assert items[0]["scores"] == pytest.approx(alone, abs=1e-4)
    assert items[0]["mc1_reward"] == (max(alone) == alone[0]) and "MC1, reward" in capsys.readouterr().out


def test_answers_to_vicunas_questions(tmp_path, capsys, monkeypatch):
    """Sampled as the paper does, each question by its own seed; the model and its baseline in a file each, which is not
    made again; and the line that judges them."""
    asked_for = []

    def noted(engine, requests, sampling, **more):
        asked_for.append((requests, sampling))
        return generate(engine, requests, sampling, **more)

    monkeypatch.setattr(run_evaluation, "generate", noted)
    path = tmp_path / "question.jsonl"
    asked = [{"question_id": n, "text": f"What is {n}?", "category": "math"} for n in (7, 5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in asked))
    words = ["--benchmark_name", "vicuna", "--data_path", path, "--output_dir", tmp_path, "--backend", "simulated"]
    called(*words, "--model_name_or_path", "writer?quality=3", "--baseline_model_name", "other")
    (requests, sampling), (others, _) = asked_for
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (1024, 0.7, 1.0)
    assert requests == others and len({request.seed for request in requests}) == 2
    assert requests[0].prompt == "\n\nHuman: What is 7?\n\nAssistant:"
    rows = json.loads((tmp_path / "writer.vicuna.json").read_text())
    assert [(row["question_id"], row["instruction"], row["generator"]) for row in rows] == [
        ("7", "What is 7?", "writer"),
        ("5", "What is 5?", "writer"),
    ]
    assert all(row["output"] and row["category"] == "math" for row in rows)
    files = f"{tmp_path}/writer.vicuna.json {tmp_path}/other.vicuna.json"
    assert f"eval/pairwise.py --answers {files} --questions {path} --scores" in capsys.readouterr().out
    path.write_text(json.dumps(asked[1]) + "\n")
    called(*words, "--model_name_or_path", "writer?quality=3")
    assert json.loads((tmp_path / "writer.vicuna.json").read_text()) == rows[1:]
    called(*words, "--model_name_or_path", "writer?quality=3")
    assert "nothing to do" in capsys.readouterr().out


@pytest.fixture
def vicuna(tmp_path, monkeypatch):
    """(words, folder): twelve questions of Vicuna's form, and in good.json answers of their own first words."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "eval"))  # as it is for the script
    monkeypatch.setattr(winrates, "bootstrap", partial(bootstrap, resamples=50))
    questions = [f"Say of thing{n} and thing{n + 1} why they are so unlike each other." for n in range(12)]
    rows = [
        {"question_id": n, "text": text, "category": "coding" if n == 81 else "generic"}
        for n, text in enumerate(questions, 81)
    ]
    (tmp_path / "question.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = [{"question_id": n, "instruction": text, "output": text[:40]} for n, text in enumerate(questions, 81)]
    (tmp_path / "good.json").write_text(json.dumps(told))
    words = ["--benchmark_name", "vicuna", "--data_path", tmp_path / "question.jsonl", "--output_dir", tmp_path / "out"]
    return [*words, "--backend", "simulated", "--model_name_or_path", "writer"], tmp_path


JUDGE = ("--judge_model", "judge?length=0", "--judge_backend", "simulated")


def test_vicunas_answers_are_judged_as_released(vicuna, capsys, monkeypatch):
    """A file of answers that keep to the question beats a writer that does not: 24 verdicts of 12 questions, each with
    two scores, sampled as the paper's, that of code in words of its own; the answers are made once, whoever judges."""
    asked_for, systems = [], set()

    def complete(self, requests, sampling, real=SimulatedJudge.complete):
        asked_for.append(sampling)
        systems.update(request.prompt[0]["content"] for request in requests)
        return real(self, requests, sampling)

    monkeypatch.setattr(SimulatedJudge, "complete", complete)
    words, folder = vicuna
    called(*words, "--baseline_model_name", folder / "good.json", *JUDGE)
    told = capsys.readouterr()
    found = json.loads((folder / "out" / "writer-vs-good.vicuna.json").read_text())
    (pair,) = found["summary"]["pairs"]
    assert (pair["first"], pair["second"], pair["losses"]) == ("writer", "good", 12)
    verdicts = [verdict for each in found["comparisons"] for verdict in each["verdicts"]]
    firsts = [verdict["scores"][place % 2] for place, verdict in enumerate(verdicts)]
    seconds = [verdict["scores"][1 - place % 2] for place, verdict in enumerate(verdicts)]
    sums = [sum(firsts), sum(seconds)]
    assert pair["one_by_one"] == {"wins": 0, "ties": 0, "losses": 24, "scores": sums} and len(verdicts) == 24
    shown = f"0 wins, 0 ties, 24 losses; scores {sums[0]:g} to {sums[1]:g} in sum"
    assert shown in told.out and sums[0] < sums[1] and "the judge finds the better answer in" in told.err
    assert {(each.max_tokens, each.temperature, each.top_p) for each in asked_for} == {(1024, 0.2, 1.0)}
    assert systems == {system_prompt(True, False, name) for name in ("coding", None)}
    assert found["summary"]["form"] == "scores" and (folder / "out" / "writer-vs-good.vicuna.json.run.json").exists()

    called(*words, "--baseline_model_name", folder / "good.json", *JUDGE)
    assert capsys.readouterr().out.count("nothing to do") == 2
    other = ["--judge_model", "judge", "--judge_backend", "simulated"]
    called(*words, "--baseline_model_name", folder / "good.json", *other)
    assert capsys.readouterr().out.count("nothing to do") == 1  # the answers, and not the verdicts


def test_the_baselines_answers_are_made_too(vicuna, capsys):
    """Both have their files; without a judge the command that is told does what the judge's flags do."""
    words, folder = vicuna
    words += ["--baseline_model_name", "other", "--limit", 5]
    called(*words)
    told = capsys.readouterr().out.splitlines()[-1].removeprefix("to be judged by: python eval/pairwise.py ")
    told = told.replace("JUDGE", "'judge?length=0'") + " --backend simulated"
    import pairwise

    pairwise.main(pairwise.parse_args(shlex.split(told)))
    verdicts = folder / "out" / "writer-vs-other.vicuna.json"
    alone = verdicts.read_text()
    called(*words, *JUDGE)
    assert "nothing to do" in capsys.readouterr().out and verdicts.read_text() == alone
    assert len(json.loads((folder / "out" / "other.vicuna.json").read_text())) == 5
    assert json.loads(alone)["summary"]["questions"] == 5


@pytest.mark.parametrize(
    ("rows", "judge", "said"),
    [
        ([{"question_id": 81, "output": "So."}], JUDGE, "11 of the 12 questions have no answer (82, 83"),
        (None, ("--judge_model", "./none", "--judge_backend", "hf"), "./none does not exist"),
        (None, ("--judge_model", "judge?kind=5", "--judge_backend", "simulated"), "judge?kind=5"),
        (None, ("--baseline_model_name", "else/writer"), "both have their answers in "),
    ],
)
def test_what_cannot_be_judged_is_told_before_anything_is_generated(vicuna, monkeypatch, rows, judge, said):
    words, folder = vicuna
    if rows:
        (folder / "good.json").write_text(json.dumps(rows))
    monkeypatch.setattr(run_evaluation, "generate", None)
    with pytest.raises(UserError) as raised:
        called(*words, "--baseline_model_name", folder / "good.json", *judge)
    assert said in str(raised.value) and "\n" not in str(raised.value) and not (folder / "out").exists()


REFUSED = {
    "neither": ([], "give one of"),
    "both": (["--model_name_or_path", "m", "--reward_model", "r"], "give one of"),
    "typo": (["--benchmark_name", "truthfull", "--model_name_or_path", "m"], "did you mean 'truthful'"),
    "pairs of a policy": (["--benchmark_name", "pairs", "--model_name_or_path", "m"], "is for a --reward_model"),
    "answers of a reward model": (["--benchmark_name", "vicuna", "--reward_model", "r"], "does not give"),
    "no data": (["--benchmark_name", "hhh", "--model_name_or_path", "m"], "hhh_eval.json"),
    "no questions": (
        ["--benchmark_name", "vicuna", "--model_name_or_path", "m", "--output_dir", "o"],
        "question.jsonl, its 80 questions, is in FastChat",
    ),
    "a judge of nothing": (
        ["--benchmark_name", "vicuna", "--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"]
        + ["--judge_model", "j", "--judge_backend", "hf"],
        "with a --baseline_model_name",
    ),
    "a judge of letters": (["--data_path", "d", "--model_name_or_path", "m", "--judge_model", "j"], "it is for"),
    "a judge nowhere": (
        ["--benchmark_name", "vicuna", "--model_name_or_path", "m", "--data_path", "d", "--output_dir", "o"]
        + ["--baseline_model_name", "b", "--judge_model", "j"],
        "needs --judge_api_base",
    ),
    "a limit of what asks nobody": (
        ["--model_name_or_path", "m", "--data_path", "d", "--max_hours", "1"],
        "vicuna, which",
    ),
    "nowhere": (["--benchmark_name", "vicuna", "--model_name_or_path", "m", "--data_path", "d"], "give --output_dir"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_flags_that_cannot_be_meant(case, capsys):
    words, told = REFUSED[case]
    with pytest.raises(SystemExit) as exit:
        run_evaluation.parse_args(words)
    said = capsys.readouterr().err
    assert exit.value.code == 2 and told in said and said.count("\n") == 1


def test_a_policy_where_a_reward_model_is_due_and_the_reverse(tmp_path, rows, model_folder, monkeypatch):
    from test_scoring import make_reward_model

    model = make_reward_model(tmp_path / "rm")
    with pytest.raises(UserError, match="is no reward model"):
        called("--data_path", rows, "--reward_model", model_folder, "--output_dir", tmp_path / "out")
    with pytest.raises(UserError, match="is a reward model, which gives no probabilities"):
        called("--data_path", rows, "--model_name_or_path", model, "--output_dir", tmp_path / "out")
    monkeypatch.setattr(run_evaluation, "evaluated", None)  # also the second is refused before the first is asked
    with pytest.raises(UserError, match="rm is a reward model"):
        called("--data_path", rows, "--model_name_or_path", model_folder, "--baseline_model_name", model)
    assert not (tmp_path / "out").exists()


def test_a_model_of_nan_is_no_model(rows, tmp_path, llama, tokenizer):
    """Letters, likelihoods and rewards that are no numbers are no verdicts."""
    path = tmp_path / "mc_task.json"
    path.write_text(json.dumps([OTHER]))
    config = llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    for kind, model in (("policy", llama), ("reward", AutoModelForSequenceClassification.from_config(config))):
        with torch.no_grad():
            model.model.norm.weight.fill_(float("nan"))
        model.save_pretrained(tmp_path / kind)
        tokenizer.save_pretrained(tmp_path / kind)
    for words in (
        ["--data_path", rows, "--model_name_or_path", tmp_path / "policy"],
        ["--benchmark_name", "truthful", "--data_path", path, "--model_name_or_path", tmp_path / "policy"],
        ["--data_path", rows, "--reward_model", tmp_path / "reward"],
    ):
        with pytest.raises(UserError, match="no numbers; are its weights sound"):
            called(*words, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_rows_that_are_none(rows, tmp_path):
    def refused(reader, row, told, name="rows.json"):
        (tmp_path / name).write_text(
            json.dumps([{"chosen": DIALOGUE + "x", "rejected": DIALOGUE + "y", "type": "z"}, row])
        )
        with pytest.raises(UserError, match=told):
            reader(tmp_path / name)

    refused(read_comparisons, {"chosen": DIALOGUE + "x", "type": "other"}, "row 1: rejected is missing")
    refused(
        read_comparisons, {"chosen": DIALOGUE, "rejected": DIALOGUE + "x", "type": "other"}, "chosen ends in no answer"
    )
    other = DIALOGUE.replace("Bye", "Ciao")
    refused(read_comparisons, {"chosen": DIALOGUE + "x", "rejected": other + "y", "type": "other"}, "part before")
    asked = [{"question_id": 3, "text": "a"}, {"question_id": 3, "text": "b"}]
    for content, told in (([{"text": " "}], "row 0 has no question"), (asked, "rows 0 and 1 have the same id")):
        (tmp_path / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        with pytest.raises(UserError, match=told):
            run_evaluation.read_asked(tmp_path / "asked.jsonl")
    (tmp_path / "asked.jsonl").write_text('{"question_id": 1, "turns": ["a", "b"]}\n')
    with pytest.raises(UserError, match="have several turns"):
        run_evaluation.read_asked(tmp_path / "asked.jsonl")
