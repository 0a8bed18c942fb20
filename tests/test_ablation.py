"""Messages under each condition, and statistics over instructions, by hand; and eval/multifaceted_bench.py --ablate."""

import json

import pytest
from transformers import AutoModelForSequenceClassification

from alignment.command_line import UserError
from alignment.janus.ablation import (
    CONDITIONS,
    against_true,
    by_prompt,
    compared,
    likeness,
    messages_under,
    over_instructions,
    read_gold,
)
from alignment.run_cards import run_card_path
from eval import multifaceted_bench


def rows_of(**messages):
    """prompt=[messages] -> rows, the first of every instruction first, so that an instruction's stand apart."""
    most = max(map(len, messages.values()))
    return [
        {"prompt": prompt, "system": own[place], "gold": f"{prompt} {place}"}
        for place in range(most)
        for prompt, own in messages.items()
        if place < len(own)
    ]


def test_true_and_empty():
    rows = rows_of(p=["a", "b"], q=["c"])
    assert messages_under("true", rows, 0) == ["a", "c", "b"] and messages_under("empty", rows, 0) == ["", "", ""]


def test_an_instructions_rows_are_found_wherever_they_stand():
    assert by_prompt(rows_of(p=["a", "b"], q=["c"])) == [[0, 2], [1]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sets", [1, 2, 3])
def test_shuffled_is_a_derangement_of_instructions(seed, sets):
    """With equally many messages each is given once, and an instruction's go together, none to itself."""
    rows = rows_of(**{prompt: [f"{prompt}{place}" for place in range(sets)] for prompt in "pqrstu"})
    given = messages_under("shuffled", rows, seed)
    assert sorted(given) == sorted(row["system"] for row in rows)
    assert all(text[0] != row["prompt"] and text[1] == row["system"][1] for text, row in zip(given, rows, strict=True))
    givers = {row["prompt"]: text[0] for row, text in zip(rows, given, strict=True)}
    assert all(givers[row["prompt"]] == text[0] for row, text in zip(rows, given, strict=True))
    assert given == messages_under("shuffled", rows, seed)


def test_shuffled_differs_by_seed():
    rows = rows_of(**{prompt: [prompt] for prompt in "pqrstu"})
    assert len({tuple(messages_under("shuffled", rows, seed)) for seed in range(5)}) > 1


def test_shuffled_between_instructions_of_one_and_three_messages():
    """Of two instructions each is the other's: p gets q's one message three times, q the first of p's."""
    rows = rows_of(p=["p0", "p1", "p2"], q=["q0"])
    assert messages_under("shuffled", rows, 0) == ["q0", "p0", "q0", "q0"]


def test_shuffled_leaves_out_what_would_change_nothing():
    """One instruction has no other, and a message of the same words is the row's own."""
    assert messages_under("shuffled", rows_of(p=["a", "b"]), 0) == [None, None]
    assert messages_under("shuffled", rows_of(p=["same"], q=["same"]), 0) == [None, None]


def test_opposite_is_the_least_alike_of_the_instruction():
    """ROUGE-L by hand, in order (candidate, reference): "be brief now" shares two words of three with "be brief then"
    and one with "be long, always, please"; a message said twice is no other; the first of equals."""
    own = ["be brief now", "be brief then", "be long, always, please", "be brief now"]
    given = messages_under("opposite", rows_of(p=own, q=["x"], r=["one", "two", "three"]), 0)
    # p0 q0 r0 | p1 r1 | p2 r2 | p3
    assert given[0] == given[3] == given[7] == own[2]
    assert given[5] == own[0] and given[1] is None
    assert [given[2], given[4], given[6]] == ["two", "one", "one"]


def test_a_mean_over_rows_with_its_interval_over_instructions():
    """Rows 1, 3 of one instruction and 8 of another, one row without a value: mean 4. Drawing two instructions of two
    gives (1+3)/2 = 2, 8, or all three rows, so the interval is [2, 8]; and where all agree, it is a point."""
    groups = [[0, 1], [2], [3]]
    found = over_instructions([1.0, 3.0, 8.0, None], groups, 0)
    assert found == {"mean": 4.0, "interval": (2.0, 8.0), "rows": 3, "instructions": 2}
    assert over_instructions([5.0, 5.0, 5.0, 5.0], groups, 0)["interval"] == (5.0, 5.0)


def test_rows_of_an_instruction_are_no_evidence_of_their_own():
    """Forty instructions, the rows of each alike: three rows each tell no more than one, so the interval is as wide."""
    one = [float(number % 2) for number in range(40)]
    three = [value for value in one for _ in range(3)]
    single = over_instructions(one, [[number] for number in range(40)], 0)
    tripled = over_instructions(three, [[3 * number + place for place in range(3)] for number in range(40)], 0)
    assert tripled["interval"] == pytest.approx(single["interval"]) and tripled["rows"] == 120


def test_nothing_has_no_mean():
    assert over_instructions([None], [[0]], 0) == {"mean": None, "interval": None, "rows": 0, "instructions": 0}


def test_conditions_are_compared_on_the_rows_that_both_have():
    """true -1, -2, -3 and other -3, None, -3: drops 2 and 0, mean 1; less in one row, equal in the other: 3/4."""
    found = against_true({"true": [-1.0, -2.0, -3.0], "other": [-3.0, None, -3.0]}, [[0], [1], [2]], 0)
    assert set(found["true"]) == {"mean", "interval", "rows", "instructions"} and found["true"]["mean"] == -2
    assert found["other"]["mean"] == -3 and found["other"]["rows"] == 2
    assert found["other"]["drop"] == {"mean": 1.0, "interval": (0.0, 2.0), "rows": 2, "instructions": 2}
    assert found["other"]["below"]["mean"] == 0.75
    assert json.loads(json.dumps(found))["other"]["drop"]["interval"] == [0, 2]


def test_likeness_of_an_instructions_answers():
    """Three answers of two words: two the same (ROUGE-L 1), each half like the third (1/2): mean 2/3, max 1. An answer
    alone has no pair, nor has one beside what never came."""
    texts = ["one two", "one two", "one six", "alone", "here", None, "red", "blue"]
    found = likeness(texts, [[0, 1, 2], [3], [4, 5], [6, 7]])
    assert found["mean"] == [pytest.approx(2 / 3), None, None, 0] and found["max"] == [pytest.approx(1), None, None, 0]


def test_gold_responses_of_a_bench_and_a_collection(tmp_path):
    row = {"system": "s", "prompt": "p"}
    rubric = {"criteria": "c", "score_descriptions": {score: score for score in "12345"}}
    bench = [row | {"reference_answer": "r", "rubrics": [rubric] * 4, "source": "x"}]
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    (tmp_path / "sft.json").write_text(json.dumps([row | {"output": "o"}]))
    (tmp_path / "dpo.json").write_text(json.dumps([row | {"chosen": "a", "rejected": "b"}]))
    assert read_gold(str(tmp_path / "bench.json")) == [row | {"gold": "r"}]
    assert read_gold(str(tmp_path / "sft.json")) == [row | {"gold": "o"}]
    with pytest.raises(UserError, match="row 0 is one of dpo, a pair"):
        read_gold(str(tmp_path / "dpo.json"))


def test_policies_compared_with_the_first():
    """Two instructions of a row each. A loses 1 and 3 without the message, B 2 and 8: B loses 1 and 5 more, mean 3. A's
    two answers to p are alike by half, the gold ones not at all; q has one answer."""
    rows = [{"prompt": prompt, "system": "s", "gold": gold} for prompt, gold in (("p", "x"), ("p", "y"), ("q", "z"))]
    a = {"logp": {"true": [-1.0, None, -2.0], "empty": [-2.0, None, -5.0]}}
    b = {"logp": {"true": [-1.0, None, -1.0], "empty": [-3.0, None, -9.0]}}
    output = {"true": ["one two", "one six", "alone"], "empty": ["no", None, "no"]}
    found = compared(rows, {"a": a | {"output": output}, "b": b}, 0)
    assert found["instructions"] == 2 and found["policies"]["a"]["logp"]["empty"]["drop"]["mean"] == 2
    (more,) = found["compared"]
    assert (more["first"], more["second"]) == ("a", "b")
    assert more["logp"]["empty"] == {"mean": 3.0, "interval": (1.0, 5.0), "rows": 2, "instructions": 2}
    rouge = found["policies"]["a"]["rouge_l_mean"]
    assert [rouge[each]["mean"] for each in ("true", "empty", "gold")] == [pytest.approx(0.5), None, 0]
    assert "rouge_l_mean" not in found["policies"]["b"]


# The script


@pytest.fixture
def bench(tmp_path):
    """Three instructions with two messages each, and one with one."""
    rubric = {"criteria": "c", "score_descriptions": {score: f"level {score}" for score in "12345"}}
    rows = rows_of(p=["Be brief.", "Be kind."], q=["Use verse.", "Be dry."], r=["Ask back.", "Be formal."], s=["Be."])
    made = [
        {"source": "x", "system": row["system"], "prompt": row["prompt"], "reference_answer": row["gold"]}
        | {"rubrics": [rubric | {"criteria": f"c{place}"} for place in range(4)]}
        for row in rows
    ]
    (tmp_path / "bench.json").write_text(json.dumps(made))
    return tmp_path / "bench.json"


def words(bench, output, *more):
    given = ["--bench", bench, "--output_file", output, "--policy_backend", "hf", *more]
    return multifaceted_bench.parse_args(list(map(str, given)))


def test_all_conditions_with_a_judge(bench, model_folder, tmp_path, capsys, monkeypatch):
    """What is printed is of the rows in the file, whose log-probabilities are the policy's own and whose scores are of
    their answers; the same command again asks nothing, also where only the journal is left."""
    from alignment.engines.hf import HfEngine
    from alignment.training.likelihoods import Likelihoods

    out = tmp_path / "out" / "ablation.json"
    judge = ["--backend", "simulated", "--model_name_or_path", "judge?noise=1"]
    policy = ["--ablate", *CONDITIONS[1:], "--policy", model_folder, "--policy_max_new_tokens", 6]
    args = words(bench, out, *policy, *judge)
    multifaceted_bench.main(args)
    told, found = capsys.readouterr().out, json.loads(out.read_text())
    rows, summary, name = found["rows"], found["summary"], str(model_folder)
    assert [list(row["system"]) for row in rows] == [list(CONDITIONS)] * 7
    assert summary["left_out"] == {"true": 0, "empty": 0, "shuffled": 0, "opposite": 1}
    assert {n for own in summary["missing"][name].values() for n in own.values()} == {0} and "without" not in told
    lone = next(row for row in rows if row["prompt"] == "s")
    assert lone["system"]["opposite"] is None and set(lone["policies"][name]["opposite"].values()) == {None}
    alone, golds = Likelihoods(name), read_gold(str(bench))
    for row, gold in list(zip(rows, golds, strict=True))[:2]:
        assert row["system"]["true"] == gold["system"]
        for condition, own in row["policies"][name].items():
            asked = [{"system": row["system"][condition], "prompt": row["prompt"]}], [gold["gold"]]
            assert own["logp"] == pytest.approx(alone.score(*asked)[0], abs=1e-3)
            assert own["logp_per_token"] == pytest.approx(own["logp"] / alone.lengths(*asked)[0])
            assert own["output"] and 1 <= own["score"] <= 5
    measured = {
        name: {
            what: {each: [row["policies"][name][each][what] for row in rows] for each in CONDITIONS}
            for what in ("logp", "logp_per_token", "output", "score")
        }
    }
    again = json.loads(json.dumps(compared(golds, measured, 42)))
    assert {key: summary[key] for key in again} == again
    assert len({row["policies"][name][each]["output"] for row in rows for each in ("true", "empty")}) > 7
    assert "opposite: 1 of 7 rows are left out, which have no such message" in told
    assert [line.split()[0] for line in told.splitlines()[1:6]] == [*CONDITIONS, "gold"]

    monkeypatch.setattr(Likelihoods, "score", lambda *args: pytest.fail("scored again"))
    monkeypatch.setattr(HfEngine, "complete", lambda *args: pytest.fail("written again"))
    multifaceted_bench.main(args)
    assert capsys.readouterr().out.partition("nothing to do\n")[2] == told
    run_card_path(out).unlink()
    before = out.read_text()
    multifaceted_bench.main(args)
    assert out.read_text() == before and capsys.readouterr().out == told


def test_log_probabilities_alone_of_a_collection_of_one_message_each(model_folder, tmp_path, capsys):
    """No judge, no answers: `opposite` has no row, and what has no number is a dash. --limit is after the shuffle."""
    rows = rows_of(**{prompt: [f"Be {prompt}."] for prompt in "pqrs"})
    data = tmp_path / "multifaceted_small.json"
    data.write_text(json.dumps([row | {"output": row.pop("gold")} for row in rows]))
    out, other = tmp_path / "a.json", tmp_path / "b.json"
    policy = ["--ablate", "shuffled", "opposite", "--policy", model_folder, "--policy_max_new_tokens", 0]
    multifaceted_bench.main(words(data, out, *policy))
    told, found = capsys.readouterr().out.splitlines(), json.loads(out.read_text())
    own = found["summary"]["policies"][str(model_folder)]
    assert list(own) == ["logp_per_token", "logp"] and list(own["logp"]) == ["true", "shuffled", "opposite"]
    assert own["logp"]["shuffled"]["drop"]["rows"] == 4 and own["logp"]["opposite"]["rows"] == 0
    assert told[3].split() == ["opposite", "0", *"–––"]
    multifaceted_bench.main(words(data, other, *policy, "--limit", 2))
    assert json.loads(other.read_text())["rows"] == found["rows"][:2]


def test_a_gold_response_that_does_not_fit_is_counted(bench, model_folder, tmp_path, capsys):
    rows = json.loads(bench.read_text())
    rows[2]["reference_answer"] = "long " * 120  # of 512 positions
    bench.write_text(json.dumps(rows))
    policy = ["--ablate", "empty", "--policy", model_folder, "--policy_max_new_tokens", 0]
    multifaceted_bench.main(words(bench, tmp_path / "a.json", *policy))
    summary = json.loads((tmp_path / "a.json").read_text())["summary"]
    assert summary["missing"] == {str(model_folder): {"logp": {"true": 1, "empty": 1}}}
    assert "rows without log p: prompt and gold response do not fit whole: 1 of true, 1 of empty" in (
        capsys.readouterr().out
    )


@pytest.mark.parametrize(
    "more, said",
    [
        (["--ablate", "true"], "--ablate and --policy MODEL are given together"),
        (["--ablate", "opposit", "--policy", "m"], "did you mean 'opposite'"),
        ([], "give one of --responses"),
        (["--ablate", "true", "--policy", "m", "--responses", "r.json"], "give one of --responses"),
        (["--responses", "r.json"], "needs --model_name_or_path JUDGE"),
        (
            ["--ablate", "true", "--policy", "m", "--policy_max_new_tokens", 0, "--model_name_or_path", "j"],
            "has none to grade",
        ),
    ],
)
def test_flags_that_contradict_each_other(more, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        words("b.json", tmp_path / "a.json", *more)
    assert ended.value.code == 2 and said in capsys.readouterr().err


def test_a_policy_is_no_reward_model(bench, tmp_path, llama, tokenizer):
    config = llama.config.__class__(**{**llama.config.to_dict(), "num_labels": 1})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "rm")
    tokenizer.save_pretrained(tmp_path / "rm")
    run_card_path(tmp_path / "a.json").write_text("of what was there before")
    with pytest.raises(UserError, match="is a reward model"):
        multifaceted_bench.main(words(bench, tmp_path / "a.json", "--ablate", "empty", "--policy", tmp_path / "rm"))
    assert run_card_path(tmp_path / "a.json").exists() and not (tmp_path / "a.json").exists()
