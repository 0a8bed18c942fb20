"""Rewards of reinforcement learning: models, functions and judges, their weights, and every wrong one in one line."""

import json
import math
import statistics

import pytest
import torch
from conftest import make_llama

from alignment.command_line import ArgumentParser, UserError
from alignment.engines.simulated import SimulatedEngine
from alignment.generation import Reply
from alignment.judging.criteria import Criterion, rubric_score, rubrics_of
from alignment.judging.judgments import conversation
from alignment.training.reward_judges import JudgeReward
from alignment.training.reward_model import load, score
from alignment.training.reward_specs import load_function, parse_reward, parse_rewards
from alignment.training.rewards import Rewards, Running, add_reward_arguments, judge_from, range_of, read_by

ROWS = [{"prompt": f"What is {number}?"} for number in range(4)]
RESPONSES = ["One.", "Two, or so.", "3", "It is the fourth of them, and the last."]


@pytest.fixture
def reward_folder(tmp_path, tokenizer):
    """A one-label Llama whose scores are some units apart."""
    return saved(tmp_path / "rm", tokenizer)


def saved(folder, tokenizer, **facts):
    from transformers import LlamaForSequenceClassification

    config = make_llama(len(tokenizer)).config
    config.num_labels = 1
    config.update({"prompt_template": "almost", "reward_max_length": 64, **facts})
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def function(tmp_path, body, name="f.py"):
    path = tmp_path / name
    path.write_text(body)
    return str(path)


def rewards(*specs, **settings):
    return Rewards(specs, device="cpu", **settings)


# The words of --reward


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("out/rm", ("model", "rm", "out/rm", "", 1.0)),
        ("org/name=0.5", ("model", "name", "org/name", "", 0.5)),
        ("a/f.py:short=-2", ("function", "short", "a/f.py", "short", -2.0)),
        ("judge:rubric=3", ("judge", "judge:rubric", "rubric", "", 3.0)),
        ("judge:ai_judge", ("judge", "judge:ai_judge", "ai_judge", "", 1.0)),
    ],
)
def test_a_word(text, found):
    assert tuple(parse_reward(text))[1:] == found


def test_a_path_with_an_equals_sign(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=2").mkdir()
    assert parse_reward("lr=2").place == "lr=2"
    assert parse_reward("lr=2=3")[4:] == ("", 3.0)


def test_names_are_told_apart():
    assert [spec.name for spec in parse_rewards(["a/rm", "b/rm", "f.py:g"])] == ["a/rm", "b/rm", "g"]


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], "--reward is missing"),
        (["rm=heavy"], "rm=heavy: its weight 'heavy' is no number"),
        (["rm=nan"], "its weight 'nan' is no number"),
        (["judge:rubrik"], "the form 'rubrik' is none of rubric, annotate, ai_judge; did you mean 'rubric'"),
        (["f.py"], "name the function too, as f.py:FUNCTION"),
        (["rm", "rm=2"], "names rm twice"),
    ],
)
def test_words_that_mean_nothing(texts, said):
    with pytest.raises(UserError, match=said):
        parse_rewards(texts)


# Reward models


def test_without_statistics_scores_are_normalised_by_all_that_came(reward_folder):
    """Two steps of 3 and 1: the second is normalised by the mean and deviation of all four."""
    ours = rewards(reward_folder)
    raw = score(*load(reward_folder, device="cpu"), ROWS, RESPONSES)
    first, second = ours.score(ROWS[:3], RESPONSES[:3]), ours.score(ROWS[3:], RESPONSES[3:])
    assert [each.parts["rm"] for each in first + second] == pytest.approx(raw, abs=1e-5)
    mean, std = statistics.mean(raw[:3]), statistics.stdev(raw[:3])
    assert [each.total for each in first] == pytest.approx([(value - mean) / std for value in raw[:3]], abs=1e-4)
    mean, std = statistics.mean(raw), statistics.stdev(raw)
    assert second[0].total == pytest.approx((raw[3] - mean) / std, abs=1e-4)
    assert ours.normalises == "running" and ours.ranges is None and ours.outside(first) is None


def test_statistics_of_the_config_come_first(tmp_path, tokenizer):
    """Mean 1 and deviation 2: half of what is above 1. The range is 1 ± 6, or what the config says."""
    folder = saved(tmp_path / "rm", tokenizer, reward_mean=1.0, reward_std=2.0)
    ours = rewards(f"{folder}=10")
    found = ours.score(ROWS, RESPONSES)
    assert [each.total for each in found] == pytest.approx([5 * (each.parts["rm"] - 1) for each in found])
    assert ours.normalises == "config" and ours.state_dict() == {}
    assert ours.ranges == (-5, 7) and ours.model.config.num_labels == 1 and ours.template.name == "almost"
    values = sorted(each.parts["rm"] for each in found)
    ours.ranges = (values[1], values[2])
    assert ours.outside(found) == 0.5
    ours.model.config.update({"reward_min": -3, "reward_max": 4.5})
    assert range_of(ours.model.config) == (-3, 4.5)


def test_a_state_goes_on_where_it_was(reward_folder):
    whole, cut = rewards(reward_folder), rewards(reward_folder)
    for ours in (whole, cut):
        ours.score(ROWS[:3], RESPONSES[:3])
    resumed = rewards(reward_folder)
    resumed.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    assert resumed.score(ROWS, RESPONSES) == whole.score(ROWS, RESPONSES)


def test_running_moments():
    """1, 2 and then 6: mean 3, deviation sqrt((4 + 1 + 9) / 2) = sqrt 7; the order within a batch changes no bit."""
    running = Running()
    running.add([1.0, 2.0])
    running.add([])
    running.add([6.0])
    assert running.moments == pytest.approx((3, math.sqrt(7)), abs=1e-7)
    values = [0.1 * number**2 for number in range(50)]
    one, other = Running(), Running()
    one.add(values)
    other.add(values[::-1])
    assert one == other


def test_equal_scores_are_nothing():
    """0.1 three times has a mean that is not 0.1, and a deviation of rounding: no reward comes from it."""
    running = Running()
    running.add([0.1] * 3)
    mean, std = running.moments
    assert abs((0.1 - mean) / std) < 1e-6


def test_ranks_share_what_is_running(tmp_path, reward_folder):
    """Two ranks, one of which has no rows in the second step, have the moments of one process with all rows."""
    import torch.multiprocessing as processes

    processes.spawn(rank_of_two, (str(tmp_path), reward_folder), nprocs=2)
    alone = rewards(reward_folder)
    alone.score(ROWS[:3], RESPONSES[:3])
    alone.score(ROWS[3:], RESPONSES[3:])
    states = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert states[0] == states[1] and states[0]["rm"] == pytest.approx(alone.state_dict()["rm"], rel=1e-5)


def rank_of_two(rank, folder, reward_folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    ours = rewards(reward_folder)
    mine = slice(rank, 3, 2)
    ours.score(ROWS[mine], RESPONSES[mine])
    mine = slice(3, 4) if rank == 0 else slice(0)
    ours.score(ROWS[mine], RESPONSES[mine])
    with open(f"{folder}/{rank}.json", "w") as file:
        json.dump(ours.state_dict(), file)
    torch.distributed.destroy_process_group()


def test_a_causal_model_is_refused(model_folder, tmp_path, tokenizer):
    """By its labels, and with one label by what its config says that it is: a head would be made up for it."""
    from transformers import AutoModelForCausalLM

    with pytest.raises(UserError, match="is no reward model") as error:
        rewards(str(model_folder))
    assert "\n" not in str(error.value)
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.num_labels = 1
    model.save_pretrained(tmp_path / "one")
    tokenizer.save_pretrained(tmp_path / "one")
    with pytest.raises(UserError, match="is no reward model"):
        rewards(str(tmp_path / "one"))
    with pytest.raises(UserError, match="does not exist"):
        rewards(str(tmp_path / "none"))


def test_a_model_that_gives_no_number(reward_folder):
    ours = rewards(reward_folder)
    with torch.no_grad():
        ours.model.score.weight.fill_(math.inf)
    with pytest.raises(UserError, match=r"reward model .*rm gives \S+ for response 0 of a step"):
        ours.score(ROWS, RESPONSES)


def test_a_response_longer_than_the_positions_is_cut(tmp_path, tokenizer):
    """Without a length that it was trained on, a model is given the last 512 tokens, as many as it has positions."""
    folder = saved(tmp_path / "rm", tokenizer, reward_max_length=None, reward_mean=0.0, reward_std=1.0)
    (found,) = rewards(folder).score(ROWS[:1], ["long " * 500])
    assert [found.total] == score(*load(folder, device="cpu"), ROWS[:1], ["long " * 500], max_length=512)


# Functions


def test_weights_and_what_cannot_be_scored(tmp_path):
    """2 x length - n: None of either leaves no total, and the other's part."""
    body = (
        "def length(rows, responses):\n    return [len(text) if text != '3' else None for text in responses]\n"
        "def marks(rows, responses):\n    return [float(row['n']) for row in rows]\n"
    )
    path = function(tmp_path, body)
    ours = rewards(f"{path}:length=2", f"{path}:marks=-1")
    found = ours.score([{"prompt": "x", "n": number} for number in range(4)], RESPONSES)
    assert [each.total for each in found] == [8, 21, None, 2 * len(RESPONSES[3]) - 3]
    assert found[2].parts == {"length": None, "marks": 2.0}
    assert ours.names == ["length", "marks"] and ours.normalises == "none" and ours.model is None
    assert ours.unscored == {"length: None": 1}


@pytest.mark.parametrize(
    "given", ["numpy.arange(4)", "torch.arange(4.0)", "[numpy.float32(0), True, 2, 3.0]", "range(4)"]
)
def test_numbers_of_many_makes(tmp_path, given):
    path = function(tmp_path, f"import numpy, torch\ndef f(rows, responses):\n    return {given}\n")
    found = [each.total for each in rewards(f"{path}:f").score(ROWS, RESPONSES)]
    assert found == [0, 1, 2, 3] and all(type(value) is float for value in found)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("    return [1]", r"f\.py:f gave 1 rewards for 4 responses"),
        ("    return 3", "gave a int, not a list"),
        ("    pass", "gave a NoneType, not a list"),
        ("    return [0, 1, float('nan'), 2]", "row 2: nan is no number"),
        ("    return [0, '1', 2, 3]", "row 1: a str is no number"),
        ("    x = 1\n    return [row['answer'] for row in rows]", r"raised KeyError: 'answer' \(line 3\)"),
        ("    return (1 / 0 for row in rows)", r"raised ZeroDivisionError: division by zero \(line 2\)"),
    ],
)
def test_functions_that_fail(tmp_path, body, said):
    path = function(tmp_path, f"def f(rows, responses):\n{body}\n")
    with pytest.raises(UserError, match=said) as error:
        rewards(f"{path}:f").score(ROWS, RESPONSES)
    assert "reward function" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def g(rows, responses): ...", "has no function f"),
        ("def f(rows): ...", r"f does not take \(rows, responses\)"),
        ("f = 3", "has no function f"),
        ("import nothing_of_this_name", "importing .* raised ModuleNotFoundError: No module named .*line 1"),
        ("def f(rows, responses:", "importing .* raised SyntaxError"),
    ],
)
def test_functions_that_cannot_be_called(tmp_path, body, said):
    with pytest.raises(UserError, match=said) as error:
        load_function(parse_reward(f"{function(tmp_path, body)}:f"))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="none.py does not exist"):
        rewards(f"{tmp_path}/none.py:f")


# Judges


class Scripted:
    """An engine that answers by a rule, and counts what it was asked."""

    identity = "scripted"

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def complete(self, requests, sampling):
        assert sampling.temperature == 0
        for index, request in enumerate(requests):
            (message,) = request.prompt
            self.asked.append(message["content"])
            yield index, self.rule(message["content"])


def graded(prompt):
    """2 for what is written well, 1 for what is long, nothing for what is true of the third response."""
    if "Criterion:\nTrue" in prompt and "Response:\n3\n" in prompt:
        return Reply(None, "failed: time-out")
    return Reply(json.dumps({"grade": 2 if "Criterion:\nTrue" in prompt else 1}), "stop")


RUBRICS = [{"description": "True", "weight": 3}, {"description": "Long"}]


def test_a_rubric_is_the_weighted_mean_of_half_the_grades(tmp_path):
    """(3 x 2 + 1 x 1) / 2 / 4 = 0.875; the failed call leaves the third without a value, not with 0."""
    engine = Scripted(graded)
    ours = rewards("judge:rubric=2", judge=engine, folder=tmp_path)
    found = ours.score([row | {"rubrics": RUBRICS} for row in ROWS], RESPONSES)
    assert [each.total for each in found] == [1.75, 1.75, None, 1.75]
    assert ours.unscored == {"judge:rubric: failed: time-out": 1}
    assert "### Instruction:\nWhat is 1?\n\n### Response:\nTwo, or so.\n\n### Criterion:\nTrue\n" in engine.asked[2]


def test_a_judge_is_asked_once(tmp_path):
    """The same responses again, in another process: the journal has them, but not the one that failed."""
    rows = [row | {"rubrics": RUBRICS} for row in ROWS]
    first, again = Scripted(graded), Scripted(graded)
    one = rewards("judge:rubric", judge=first, folder=tmp_path).score(rows, RESPONSES)
    assert rewards("judge:rubric", judge=again, folder=tmp_path).score(rows, RESPONSES) == one
    assert len(first.asked) == 8 and len(again.asked) == 1


def test_rubric_score():
    """Grades 2, 0, 1 of weights 1, 2, 1: 3 of 8."""
    assert rubric_score([2, 0, 1], [1, 2, 1]) == 3 / 8
    assert rubric_score([2, None], [1, 1]) is None


def test_rows_without_rubrics_have_the_general_ones(tmp_path):
    general = rubrics_of({"prompt": "x"}, "")
    assert len(general) >= 3 and rubrics_of({"rubrics": RUBRICS}, "") == [Criterion("True", 3), Criterion("Long", 1)]
    engine = SimulatedEngine("judge?malformed=0.2")
    found = rewards("judge:rubric", judge=engine, folder=tmp_path).score(ROWS * 5, [f"{n} {n}" for n in range(20)])
    values = [each.total for each in found]
    assert None in values and all(value is None or 0 <= value <= 1 for value in values)


@pytest.mark.parametrize(
    ("rubrics", "said"),
    [
        ([], "'rubrics' is no list"),
        ("True", "'rubrics' is no list"),
        ([{"weight": 1}], r"rubrics\[0\] has no text under 'description'"),
        ([RUBRICS[0], {"description": "x", "weight": 0}], r"rubrics\[1\] has the weight 0"),
        ([{"description": "x", "weight": True}], r"rubrics\[0\] has the weight True"),
    ],
)
def test_rubrics_that_cannot_be_used(tmp_path, rubrics, said):
    ours = rewards("judge:rubric", judge=Scripted(graded), folder=tmp_path)
    with pytest.raises(UserError, match=f"data, row 1: {said}"):
        ours.check_rows([ROWS[0], ROWS[1] | {"rubrics": rubrics}])


def test_judgments_are_one_or_nought(tmp_path):
    """Satisfactory 1, a fault 0, and what follows no form nothing."""
    said = {"One.": "Satisfactory.", "Two, or so.": "It says or so, which is vague.", "3": "Bad."}
    engine = Scripted(lambda prompt: Reply(next((v for k, v in said.items() if f"\n{k}\n" in prompt), ""), "stop"))
    values, reasons = JudgeReward("judge:annotate", "annotate", engine, tmp_path).score(ROWS, RESPONSES)
    assert values == [1.0, 0.0, None, None] and reasons == [None, None, "under 3 words", "empty"]


def test_a_judge_that_is_gone_ends_the_run(tmp_path):
    """Nothing came that another run may bring: a step of no rewards would only look like one."""
    ours = rewards("judge:rubric", judge=SimulatedEngine("j?faults=1"), folder=tmp_path)
    with pytest.raises(UserError, match="failed .*the same command tries these again"):
        ours.score(ROWS, RESPONSES)


def test_conversation():
    turns = [{"role": role, "content": text} for role, text in (("system", "Be brief."), ("user", "Hi"))]
    assert conversation({"prompt": turns}) == "Be brief.\nHi"
    dialogue = "\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: So?\n\nAssistant:"
    assert conversation({"input": dialogue}) == "Human: Hi\n\nAssistant: Ho\n\nHuman: So?"


# The command line


def args_of(*words):
    parser = ArgumentParser("x")
    add_reward_arguments(parser)
    parser.add_argument("--cache_dir")
    return parser.parse_args(words)


def test_flags(tmp_path):
    path = function(tmp_path, "def f(rows, responses): ...")
    args = args_of(
        "--reward", "rm=2", f"{path}:f", "judge:rubric", "--judge_model", "j", "--judge_backend", "simulated"
    )
    assert judge_from(args).identity == "simulated j"
    assert read_by(args) == {"inputs": [path], "models": ["rm"]}
    args.judge_backend = "hf"
    assert read_by(args)["models"] == ["rm", "j"]
    assert judge_from(args_of("--reward", "rm")) is None
    with pytest.raises(UserError, match="--reward judge:rubric needs --judge_model"):
        judge_from(args_of("--reward", "judge:rubric"))
    with pytest.raises(UserError, match="--reward judge:rubric needs --judge_api_base"):
        judge_from(args_of("--reward", "judge:rubric", "--judge_model", "j"))
