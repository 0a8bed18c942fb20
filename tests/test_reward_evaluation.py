"""eval/reward_model.py on scores that are planted: the simulated reward counts full stops."""

import json

import pytest

from alignment.command_line import UserError
from eval import reward_model


def sentences(count, length):
    """A text of so many sentences and characters."""
    return "x" * (length - count) + "." * count


# (sentences, characters) of the better and the worse response
PLANTED = [
    ((3, 50), (1, 50), "a-vs-b"),  # right, as long
    ((2, 90), (1, 50), "a-vs-b"),  # right, longer
    ((1, 50), (2, 120), "a-vs-b"),  # wrong, less than half as long
    ((1, 51), (1, 50), "b-vs-c"),  # a tie, as long
]


def pairs(tmp_path, planted=PLANTED, **more):
    rows = [
        {"prompt": f"Q{n}", "chosen": sentences(*good), "rejected": sentences(*bad), "meta": meta} | more
        for n, (good, bad, meta) in enumerate(planted)
    ]
    return written(tmp_path, rows)


def written(tmp_path, rows):
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    return tmp_path / "pairs.json"


def measured(tmp_path, data, *models, more=()):
    out = tmp_path / "out" / "found.json"
    words = ["--data_path", data, "--output_file", out, *(["--reward_model", *models] if models else []), *more]
    reward_model.main(reward_model.parse_args([str(word) for word in words]))
    return json.loads(out.read_text())


def test_planted_answers(tmp_path, capsys):
    """Right 2, wrong 1, tied 1: 62.5%; of the three a-vs-b 2/3, of the two as long 3/4. The longest gets 1 (longer), 1
    (51 characters over 50), 1/2 (as long) and 0: 62.5% too. The differences are 2, 1, -1 and 0."""
    found = measured(tmp_path, pairs(tmp_path), "simulated")
    own = found["models"]["simulated"]
    assert own["all"]["accuracy"] == 0.625 and own["all"]["n"] == 4 and own["ties"] == 1
    assert {name: each["accuracy"] for name, each in own["meta"].items()} == pytest.approx(
        {"a-vs-b": 2 / 3, "b-vs-c": 0.5}
    )
    assert {name: (each["accuracy"], each["n"]) for name, each in own["length"].items()} == {
        "less than half as long": (0, 1),
        "as long, to 10%": (0.75, 2),
        "longer": (1, 1),
    }
    assert (
        found["models"]["longest"]["all"]["accuracy"] == 0.625 and found["models"]["random"]["all"]["accuracy"] == 0.5
    )
    assert [item["scores"]["simulated"] for item in found["items"]] == [[[3], [1]], [[2], [1]], [[1], [2]], [[1], [1]]]
    assert (tmp_path / "out" / "found.png").stat().st_size > 5000 and (
        tmp_path / "out" / "found.json.run.json"
    ).exists()
    shown = capsys.readouterr().out
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert any(line.startswith("the better is as long, to 10% 2 75.0 [") for line in lines)
    assert "correlation, reward and length none" in lines  # four pairs are too few: some samples have no length in them
    again = measured(tmp_path, pairs(tmp_path), "simulated")
    said = capsys.readouterr().out
    assert again == found and said.splitlines()[0].endswith("nothing to do") and said.split("\n", 1)[1] == shown


def test_two_models_are_compared_on_the_same_pairs(tmp_path, capsys):
    """The noise of one is drawn from the texts: where exactly one of both is right is counted from the items."""
    found = measured(tmp_path, pairs(tmp_path), "simulated", "simulated?noise=2")
    [difference] = found["differences"]
    credits = [
        [1.0 if good > bad else 0.5 if good == bad else 0.0 for [good], [bad] in item["scores"].values()]
        for item in found["items"]
    ]
    assert difference["only_first"] == sum(one > other for one, other in credits)
    assert difference["only_second"] == sum(one < other for one, other in credits)
    assert difference["value"] == pytest.approx(sum(one - other for one, other in credits) / 4)
    assert "simulated above simulated?noise=2: " in capsys.readouterr().out


def test_the_best_of_four_and_ties(tmp_path):
    """Of three Math rows one is right, one wrong, one shares its place with one other: 1/2. Ties: margins 1 and 2,
    spread 1: 0.6, as in test_reward_measures. A random one of four is right in 1/4."""

    def row(name, subset, right, wrong):
        texts = {
            key: [sentences(n, 30 + place) for place, n in enumerate(counts)]
            for key, counts in (("chosen", right), ("rejected", wrong))
        }
        return {"id": name, "prompt": f"Q{name}", "subset": subset} | texts

    rows = [
        row("1", "Math", [4], [1, 2, 3]),
        row("2", "Math", [2], [1, 2, 3]),
        row("3", "Math", [3], [1, 2, 3]),
        row("tied:9", "Ties", [3, 2], [1]),
        row("ref:9", "Ties", [5], [3, 2]),
    ]
    found = measured(tmp_path, written(tmp_path, rows), "simulated")
    own = found["models"]["simulated"]
    assert own["all"] == own["subset"]["Math"] and own["all"]["accuracy"] == 0.5 and own["all"]["n"] == 3
    assert own["subset"]["Ties"]["accuracy"] == pytest.approx(0.6) and own["section"] == {}
    assert found["models"]["random"]["all"]["accuracy"] == 0.25 and not (tmp_path / "out" / "found.png").exists()


def test_controls_alone_and_what_was_dropped(tmp_path, capsys):
    data = pairs(tmp_path, [*PLANTED, ((1, 9), (1, 9), "a-vs-b")])
    found = measured(tmp_path, data, more=("--limit", "5"))
    assert list(found["models"]) == ["longest", "random"] and found["dropped"] == {"equal responses": 1}
    assert "4 choices; dropped 1 equal responses" in capsys.readouterr().out


def test_a_reward_model_scores_as_it_would_alone(tmp_path):
    """Rewards of pairs as `score` gives them of the trained length; a bench's texts are scored whole."""
    from test_scoring import make_reward_model

    from alignment.training.reward_model import load, score

    model = make_reward_model(tmp_path / "rm", reward_max_length=40)
    loaded, data = load(model), pairs(tmp_path)
    for more, limit in (({}, 40), ({"type": "honest"}, 512)):
        found = measured(tmp_path, pairs(tmp_path, **more), model)
        for row, item in zip(json.loads(data.read_text()), found["items"], strict=True):
            texts = [row["chosen"], row["rejected"]]
            alone = score(*loaded, [{"prompt": row["prompt"]}] * 2, texts, max_length=limit)
            assert sum(item["scores"]["rm"], []) == pytest.approx(alone, abs=1e-4)


def test_what_is_refused(tmp_path, model_folder, capsys):
    """A policy, a name given twice, a folder that is none: nothing is written."""
    data = pairs(tmp_path)
    for models, told in (
        ([model_folder], "is no reward model"),
        (["simulated", "simulated"], "names simulated twice"),
        ([tmp_path / "nothing"], "does not exist"),
        (["simulated?noise=x"], "noise is no number"),
    ):
        with pytest.raises(UserError, match=told):
            measured(tmp_path, data, *models)
    with pytest.raises(UserError, match="does not exist"):
        measured(tmp_path, tmp_path / "no.json", "simulated")
    tied = {"id": "tied:1", "prompt": "Q", "chosen": ["a", "b"], "rejected": ["c"], "subset": "Ties"}
    (tmp_path / "ties.json").write_text(json.dumps([tied]))
    with pytest.raises(UserError, match="rows of Ties alone"):
        measured(tmp_path, tmp_path / "ties.json", "simulated")
    with pytest.raises(UserError, match="is an input of this run"):
        words = ["--data_path", str(data), "--output_file", str(data), "--reward_model", "simulated"]
        reward_model.main(reward_model.parse_args(words))
    assert not (tmp_path / "out").exists() and "Q0" in data.read_text()
