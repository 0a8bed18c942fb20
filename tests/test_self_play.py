"""self_play.py as a user runs it: the files, the choice, the ends of dialogues, resumption, wrong inputs."""

import json
import math
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import self_play
from alignment.command_line import REPOSITORY, UserError
from alignment.filters import RESPONSE_RULES, why_drop
from alignment.generation import Reply
from alignment.ranking import choose
from alignment.training_data import read_examples

FAITHFUL = str(REPOSITORY / "assets" / "Faithful_prompt.txt")
SIMULATED = ["--backend", "simulated", "--model_name_or_path", "writer-7b?quality=0.6", "--prompt_file_path", FAITHFUL]
REWARD = ["--reward_model", "simulated?noise=0.5"]


def call(folder, *words, engine=SIMULATED, reward=REWARD):
    words = ["--output_dir", folder, *engine, *reward, *words]
    self_play.main(self_play.parse_args([str(word) for word in words]))
    path = folder / "self_play.jsonl"
    dialogues = [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads((folder / "almost_train.json").read_text()), dialogues


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "prompts.txt").write_text("".join(f"What about number {i}?\n" for i in range(8)))
    return tmp_path


def test_every_answer_is_the_best_of_those_that_pass(folder):
    rows, dialogues = call(folder)
    turns = [turn for dialogue in dialogues for turn in dialogue["turns"]]
    assert len(dialogues) == 8 and len(turns) == 16
    taken = []
    for turn in turns:
        assert len(turn["candidates"]) == 4
        for each in turn["candidates"]:
            assert each["dropped"] == why_drop(each["output"], RESPONSE_RULES)
            assert (each["reward"] is None) == (each["dropped"] is not None)
        kept = [each for each in turn["candidates"] if each["dropped"] is None]
        best = turn["candidates"][turn["chosen"]]
        assert best["reward"] == max(each["reward"] for each in kept)
        taken.append({"input": turn["input"], "output": best["output"]})
    assert rows == taken
    assert any(turn["chosen"] != 0 for turn in turns)


def test_a_dialogue_goes_on_from_the_answer_that_was_chosen(folder):
    rows, dialogues = call(folder)
    first, second = dialogues[0]["turns"]
    answer, question = first["candidates"][first["chosen"]]["output"], second["user"]
    assert first["input"] == "\n\nHuman: What about number 0?\n\nAssistant:"
    assert second["input"] == f"{first['input']} {answer}\n\nHuman: {question}\n\nAssistant:"
    examples = read_examples(folder / "almost_train.json", "sft")
    assert [each.responses for each in examples] == [(row["output"],) for row in rows]


def test_the_speakers_see_their_own_demonstrations_and_the_dialogue(folder, monkeypatch):
    seen = []
    real = self_play.generate

    def spy(engine, requests, sampling, **names):
        seen.append((names["label"], requests, sampling))
        return real(engine, requests, sampling, **names)

    monkeypatch.setattr(self_play, "generate", spy)
    _, dialogues = call(folder)
    (_, answers, how), (_, questions, asked), (_, again, _) = seen
    assert how.max_tokens == 768 and asked.max_tokens == 64 and how.temperature == asked.temperature == 1.0
    user = (REPOSITORY / "assets" / "User_prompt.txt").read_text()
    assert answers[0].prompt.startswith((REPOSITORY / "assets" / "Faithful_prompt.txt").read_text()[:200])
    assert answers[0].prompt.endswith("\n\nHuman:  What about number 0?\n\nAssistant: ")
    first = dialogues[0]["turns"][0]
    said = first["candidates"][first["chosen"]]["output"]
    assert questions[0].prompt.startswith(user[:200])
    assert questions[0].prompt.endswith(f"\n\nHuman:  What about number 0?\n\nAssistant:  {said}\n\nHuman: ")
    assert user.count("\n\n-----") == 5 and questions[0].prompt.count("\n\n-----") == 4  # three, and the last one opens
    assert again[0].prompt.endswith(f"Human:  {dialogues[0]['turns'][1]['user']}\n\nAssistant: ")
    assert len({request.seed for request in [*answers, *questions, *again]}) == 8 * (4 + 1 + 4)


def test_a_policy_is_asked_in_its_template(folder, monkeypatch):
    seen = []
    real = self_play.generate
    monkeypatch.setattr(
        self_play,
        "generate",
        lambda engine, requests, sampling, **n: (
            seen.append((requests, sampling)),
            real(engine, requests, sampling, **n),
        )[1],
    )
    call(folder, "--template", "almost", engine=SIMULATED[:4])
    assert seen[0][0][0].prompt == "\n\nHuman: What about number 0?\n\nAssistant:"
    assert seen[0][1].stop == ("\n\nHuman:",) and seen[0][1].max_tokens == 384


@pytest.mark.parametrize("way", ["longest", "random"])
def test_the_controls(folder, way):
    _, dialogues = call(folder, "--choose", way)
    turns = [turn for dialogue in dialogues for turn in dialogue["turns"]]
    taken = [turn["candidates"][turn["chosen"]] for turn in turns]
    kept = [[each for each in turn["candidates"] if each["dropped"] is None] for turn in turns]
    if way == "longest":
        assert all(
            len(one["output"]) == max(len(each["output"]) for each in some)
            for one, some in zip(taken, kept, strict=True)
        )
    else:
        best = [one["reward"] == max(each["reward"] for each in some) for one, some in zip(taken, kept, strict=True)]
        assert 0 < sum(best) < len(best)


def test_plain_self_play_needs_no_reward_model(folder):
    rows, dialogues = call(folder, "--num_candidates", 1, reward=[])
    turns = [turn for dialogue in dialogues for turn in dialogue["turns"]]
    assert all(len(turn["candidates"]) == 1 and turn["candidates"][0]["reward"] is None for turn in turns)
    card = json.loads((folder / "almost_train.json.run.json").read_text())
    assert len(rows) == card["counts"]["rows"] and "reward, chosen" not in card["counts"]["summary"]


def test_a_dialogue_ends_before_the_turn_that_brings_nothing(folder):
    """Refusals do not pass the filter: with every candidate one, no row comes of it."""
    with pytest.raises(UserError, match="no answer came out of 8 dialogues .8 assistant: no candidate passes"):
        call(folder, engine=["--backend", "simulated", "--model_name_or_path", "w?refusals=1", *SIMULATED[4:]])
    assert not (folder / "almost_train.json").exists()
    rows, dialogues = call(
        folder, engine=["--backend", "simulated", "--model_name_or_path", "w?refusals=0.6", *SIMULATED[4:]]
    )
    card = json.loads((folder / "almost_train.json.run.json").read_text())["counts"]
    ended = [dialogue["ended"] for dialogue in dialogues]
    assert card["ended"] == {reason: ended.count(reason) for reason in ended}
    early = [each for each in dialogues if each["ended"] == "assistant: no candidate passes the filter"]
    assert early and all(each["turns"][-1]["chosen"] is None for each in early)
    assert len(rows) == sum(turn["chosen"] is not None for each in dialogues for turn in each["turns"])


@pytest.mark.parametrize(
    ("message", "finish", "reason"),
    [
        ("And how long does the whole repair take?", "stop", None),
        ("And how long does the whole repair ta", "length", "cut off"),
        ("", "stop", "empty"),
        ("and then", "stop", "short and cut off"),
        ("WHAT should I pay for a used bicycle?", "stop", "repeated"),
        ("What should I now pay for a bicycle?", "stop", "near duplicate"),
        ("You should pay a third of the new price.", "stop", "near duplicate"),
        (None, "too long", "too long"),
    ],
)
def test_what_is_no_question(message, finish, reason):
    said = ["What should I pay for a used bicycle?", "You should pay a third of the new price for it."]
    assert self_play.why_no_question(message or "", Reply(message, finish), said) == reason


def test_best_of_four_picks_the_better_as_often_as_it_must():
    """One candidate is better by d = 1, three are alike; the reward has noise of deviation s = 1. The better one wins
    where its noise, z + d, is above the three others': P = E[F(z + d)^3], F the normal distribution's. Its value is
    integrated here on a grid; for d = 0 it is 1/4. 4,000 draws have a deviation of at most 0.008: four are allowed."""
    z = np.linspace(-8, 8, 4001)
    density, F = np.exp(-z * z / 2) / math.sqrt(2 * math.pi), np.vectorize(lambda x: (1 + math.erf(x / 2**0.5)) / 2)
    for d, expected in ((0.0, 0.25), (1.0, None)):
        must = float((density * F(z + d) ** 3).sum() * (z[1] - z[0]))
        assert expected is None or abs(must - expected) < 1e-6
        draw = random.Random(0)
        wins = 0
        for _ in range(4000):
            place = draw.randrange(4)
            rewards = [draw.gauss() + d * (each == place) for each in range(4)]
            wins += choose("reward", rewards, [1] * 4, 0) == place
        assert abs(wins / 4000 - must) < 0.032


def test_the_simulated_reward_has_the_noise_that_it_says(folder):
    """Whole sentences plus Gaussian noise: over 64 candidates the deviation of what is left is near 0.5, and without
    noise nothing is left."""
    for noise, low, high in (("0.5", 0.38, 0.65), ("0", 0.0, 0.0)):
        for path in folder.glob("almost_train*"):
            path.unlink()
        _, dialogues = call(folder, reward=["--reward_model", f"simulated?noise={noise}"])
        left = [
            each["reward"] - each["output"].count(".")
            for dialogue in dialogues
            for turn in dialogue["turns"]
            for each in turn["candidates"]
            if each["reward"] is not None
        ]
        assert low <= float(np.std(left)) <= high


def test_the_summary_by_hand():
    """Two dialogues. Rewards 1, 3 (chosen 3, of 4 characters, the other 2): best 3, mean 2, worst 1, gain 1, longest.
    Then rewards 0, 2 with the shorter chosen: gain 1, not the longest. A candidate that was dropped counts nowhere."""

    def turn(*candidates):
        found = [{"output": "x" * length, "reward": reward, "dropped": None} for reward, length in candidates]
        dropped = {"output": "x" * 99, "reward": None, "dropped": "marked BAD"}
        return {"candidates": [*found, dropped], "chosen": max(range(len(found)), key=lambda i: found[i]["reward"])}

    dialogues = [self_play.Dialogue([], [turn((1, 2), (3, 4))]), self_play.Dialogue([], [turn((0, 6), (2, 4))])]
    found = {name: value for name, (value, _) in self_play.summarise(dialogues, seed=0).items()}
    assert found == {
        "reward, best": 2.5,
        "reward, mean": 1.5,
        "reward, worst": 0.5,
        "reward, chosen": 2.5,
        "gain over one sample": 1.0,
        "characters, chosen": 4.0,
        "characters, mean": 4.0,
        "share where the longest is chosen": 0.5,
    }


def test_a_second_run_says_that_it_is_done_and_another_choice_asks_nothing_again(folder, capsys, monkeypatch):
    call(folder, "--num_candidates", 3, "--max_turns", 1)
    capsys.readouterr()
    call(folder, "--num_candidates", 3, "--max_turns", 1)
    assert "nothing to do" in capsys.readouterr().out
    from alignment.engines.simulated import SimulatedEngine

    def none(self, requests, sampling):
        raise AssertionError(f"{len(requests)} requests made again")

    monkeypatch.setattr(SimulatedEngine, "complete", none)
    call(folder, "--num_candidates", 3, "--max_turns", 1, "--choose", "longest")


def test_killed_and_run_again_the_files_are_the_same(folder, tmp_path):
    """kill -9 in the middle: what came is in the journal, and is neither asked for nor scored again."""
    whole = tmp_path / "whole"
    whole.mkdir()
    (whole / "prompts.txt").write_text((folder / "prompts.txt").read_text())
    slow = ["--backend", "simulated", "--model_name_or_path", "w?quality=0.6&latency=0.02", *SIMULATED[4:]]
    call(whole, engine=slow)
    command = [sys.executable, "self_play.py", "--output_dir", str(folder), *slow, *REWARD]
    journal = folder / "almost_train.json.journal.jsonl"
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not journal.exists() or journal.read_bytes().count(b"\n") < 40:  # past the first rewards
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = journal.read_bytes()
    before = before[: before.rindex(b"\n") + 1]
    assert not (folder / "almost_train.json").exists()
    call(folder, engine=slow)
    assert journal.read_bytes().startswith(before)
    keys = [json.loads(line)["key"] for line in journal.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 8 * (4 + 1 + 4) + 2
    for name in ("almost_train.json", "self_play.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()


def test_faults_are_tried_again_and_lose_nothing(folder):
    engine = ["--backend", "simulated", "--model_name_or_path", "w?quality=0.6&faults=0.2", *SIMULATED[4:]]
    with pytest.raises(UserError, match="the same command tries"):
        call(folder, engine=engine)
    for _ in range(3):  # a turn's faults are healed by the run after
        try:
            rows, _ = call(folder, engine=engine)
            break
        except UserError:
            pass
    assert len(rows) == 16


def test_with_a_real_reward_model(folder, model_folder, tokenizer):
    """The rewards in self_play.jsonl are score()'s, of the dialogue in the reward model's own template."""
    from conftest import make_llama
    from transformers import LlamaForSequenceClassification

    from alignment.training import reward_model

    path = folder / "rm"
    base = make_llama(len(tokenizer), num_labels=1).config
    model = LlamaForSequenceClassification(base)
    model.config.prompt_template = "almost"
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    _, dialogues = call(folder, "--limit", 2, reward=["--reward_model", path])
    loaded = reward_model.load(str(path))
    for turn in (turn for dialogue in dialogues for turn in dialogue["turns"]):
        kept = [each for each in turn["candidates"] if each["dropped"] is None]
        rows = [{"prompt": turn["input"]}] * len(kept)
        expected = reward_model.score(*loaded, rows, [each["output"] for each in kept])
        assert [each["reward"] for each in kept] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--num_candidates", "0", *REWARD], "num_candidates"),
        (["--temperature", "0", *REWARD], "all 4 candidates are the same"),
        ([], "--reward_model is missing"),
        (["--template", "almost", *REWARD], "give --prompt_file_path for a model"),
        (["--n_shot", "9", *REWARD], "fewer than the 9 of --n_shot"),
        (["--user_prompt_file_path", "nowhere.txt", *REWARD], "nowhere.txt does not exist"),
        (["--reward_model", "./nowhere"], "model ./nowhere does not exist"),
        (["--reward_model", "simulated?noise=x"], "noise is no number"),
        (["--reward_model", "CAUSAL"], "is no reward model"),
        (["--reward_api_base", "http://nowhere", "--reward_model", "CAUSAL"], "is no reward model"),
    ],
)
def test_what_is_refused(folder, model_folder, words, said, capsys):
    words = [str(model_folder) if word == "CAUSAL" else word for word in words]
    command = ["--output_dir", str(folder), *SIMULATED, *words]
    before = sorted(path.name for path in folder.iterdir())
    from alignment.command_line import run

    with pytest.raises(SystemExit) as ending:
        run(lambda: self_play.parse_args(command), self_play.main)
    error = capsys.readouterr().err.strip()
    assert ending.value.code == 2 and said in error and "\n" not in error
    assert sorted(path.name for path in folder.iterdir()) == before


def test_prompts_that_are_missing_or_blank(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        call(tmp_path)
    (tmp_path / "prompts.txt").write_text("One?\n\nThree?\n")
    with pytest.raises(UserError, match="line 2 is blank"):
        call(tmp_path)


def test_a_prompt_longer_than_the_context_ends_its_dialogue(folder, model_folder):
    """The tiny model's context is 512 tokens, and every byte is one: the demonstrations alone do not fit."""
    with pytest.raises(UserError, match="no answer came out of 2 dialogues .2 assistant: no candidate passes"):
        call(
            folder,
            "--limit",
            2,
            engine=["--backend", "hf", "--model_name_or_path", model_folder, "--prompt_file_path", FAITHFUL],
        )
