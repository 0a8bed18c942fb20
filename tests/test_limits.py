"""--budget_tokens and --max_hours: what stops, what is kept, and that the same command ends as a run without them."""

import json
from argparse import Namespace
from pathlib import Path

import pytest

import synthetic_feedback
import train
from alignment import limits
from alignment.command_line import REPOSITORY, UserError, run
from alignment.engines.scoring import scorer_from
from alignment.generation import Reply, Request, Sampling

HHH = REPOSITORY / "assets" / "HHH_prompt.txt"
SAMPLING = Sampling(max_tokens=20)


class Ten:
    """Replies of 2 tokens to prompts of 10, at 4 characters each; `batches` are the numbers of requests it got."""

    identity = "ten"

    def __init__(self):
        self.batches = []

    def complete(self, requests, sampling):
        self.batches.append(len(requests))
        for index in reversed(range(len(requests))):
            yield index, Reply("12345678", "stop")


def requests(count):
    return [Request("x" * 40, seed) for seed in range(count)]


def test_a_request_is_made_where_the_longest_reply_would_fit():
    """A request takes 10 + 20 at most and 12 in the end. Of 100: three fit (90), 64 are left; two (60), 40; one, 28."""
    inner, budget, found = Ten(), limits.Budget(100), []
    engine = limits.Limited(inner, budget=budget)
    with pytest.raises(UserError, match=r"--budget_tokens 100: 6 replies, 72 tokens; the next may take 30; the same"):
        for index, _ in engine.complete(requests(9), SAMPLING):
            found.append(index)
    assert inner.batches == [3, 2, 1] and found == [2, 1, 0, 4, 3, 5] and budget.spent == 72


def test_engines_of_a_run_share_its_budget():
    """12 of the 45 are gone after the first engine's reply, so one request of 30 still fits, and then none."""
    budget = limits.Budget(45)
    first, second = (limits.Limited(Ten(), budget=budget) for _ in range(2))
    assert len(list(first.complete(requests(1), SAMPLING))) == 1
    assert len(list(second.complete(requests(1), SAMPLING))) == 1
    with pytest.raises(UserError, match="1 replies, 24 tokens"):
        list(first.complete(requests(1), SAMPLING))


@pytest.mark.parametrize(("count", "fits"), [(3, True), (4, False)])
def test_hours(monkeypatch, count, fits):
    """Half an hour a reply: after the third, at 1.5 hours of 1.2, no other is waited for; a last one ends well."""
    now, found = [0.0], []
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    engine = limits.Limited(Ten(), hours=1.2)

    def ask():
        for index, _ in engine.complete(requests(count), SAMPLING):
            found.append(index)
            now[0] += 1800

    if fits:
        ask()
    else:
        with pytest.raises(UserError, match=r"--max_hours 1.2: 3 replies; the same command goes on"):
            ask()
    assert len(found) == 3


def test_a_reward_model_scores_nothing_after_its_hours(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    args = Namespace(reward_model="simulated", reward_api_base=None, max_hours=0.5)
    scorer = scorer_from(args)
    assert scorer.identity == "simulated" and scorer.score([{}], ["One. Two."]) == [2.0]
    now[0] = 1801
    with pytest.raises(UserError, match="stopped at --max_hours 0.5, before rewards; the same command goes on"):
        scorer.score([{}], ["One. Two."])


def test_tokens_of_each_kind_of_prompt():
    assert limits.tokens_of([{"role": "system", "content": "x" * 5}, {"role": "user", "content": "x" * 7}]) == 3
    assert limits.tokens_of([7, 8, 9, 10, 11]) == 5 and limits.tokens_of([]) == 0
    assert limits.written(Reply("x" * 40, "stop", (1, 2, 3))) == 3 and limits.written(Reply(None, "too long")) == 0


def rg(folder, *more):
    folder.mkdir(exist_ok=True)
    (folder / "prompts.txt").write_text("".join(f"What about number {i}?\n" for i in range(6)))
    words = ["--mode", "rg", "--backend", "simulated", "--model_name_or_path", "writer", "--prompt_file_path", HHH]
    words += ["--n_shot", 1, "--output_dir", folder, *more]
    with pytest.raises(SystemExit) as ended:
        run(lambda: synthetic_feedback.parse_args([str(word) for word in words]), synthetic_feedback.main)
    return ended.value.code


def test_a_stage_goes_on_and_ends_as_if_never_stopped(tmp_path, capsys):
    """And the budget of the run that ends it is no part of what its output is made of."""
    assert rg(tmp_path / "stopped", "--budget_tokens", 2500) == 2
    said = capsys.readouterr().err
    assert "stopped at --budget_tokens 2500: " in said and said.count("\n") == 1
    name = "writer-HHH-1shot.json"
    kept = len((tmp_path / "stopped" / f"{name}.journal.jsonl").read_text().splitlines())
    assert 0 < kept < 6 and not (tmp_path / "stopped" / name).exists()
    assert rg(tmp_path / "stopped", "--budget_tokens", 90_000) == 0 and rg(tmp_path / "whole") == 0
    assert (tmp_path / "stopped" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    capsys.readouterr()
    assert rg(tmp_path / "stopped", "--max_hours", 3) == 0 and "nothing to do" in capsys.readouterr().out


def test_training_stops_after_a_step_and_goes_on(quick, tmp_path, model_folder):
    """6 rows in 3 steps. The first has read its rows' tokens, more than the budget of 1: its checkpoint, then the rest
    gives the weights of a run that was not stopped."""
    rows = [{"input": f"a{number}", "output": "b" * number} for number in range(1, 7)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))

    def go(name, *more):
        words = ["--model_name_or_path", model_folder, "--data_path", tmp_path / "rows.json", "--output_dir"]
        words += [tmp_path / name, "--per_device_train_batch_size", 2, "--num_train_epochs", 1, *more]
        train.main(train.parse_args([str(word) for word in words]))

    with pytest.raises(UserError, match=r"stopped at --budget_tokens 1 after step 1 of 3; a checkpoint is saved"):
        go("stopped", "--budget_tokens", 1)
    assert [path.name for path in (tmp_path / "stopped").glob("checkpoint-*")] == ["checkpoint-1"]
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    go("stopped", "--resume_from_checkpoint", True)
    go("whole")
    stopped, whole = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("stopped", "whole"))
    assert stopped == whole


@pytest.mark.parametrize("late", [(True, False), (False, True), (False, False)])
def test_ranks_stop_together(monkeypatch, late):
    """Of two ranks one clock that says so is enough for both, and its own is what each tells."""
    from alignment.training import limits as of_training

    told = []
    monkeypatch.setattr(of_training, "of_all", lambda own: told.append(own) or list(late))
    steps = of_training.StepLimits(Namespace(budget_tokens=None, max_hours=1e-12))
    assert steps.reached(5) == ("--max_hours 1e-12" if any(late) else None) and told == [True]


def test_flags_are_refused(capsys):
    for words in (["--budget_tokens", "-1"], ["--budget_tokens", "1e6"], ["--max_hours", "0"], ["--plan", "maybe"]):
        with pytest.raises(SystemExit) as ended:
            synthetic_feedback.parse_args(["--mode", "rg", "--output_dir", str(Path("x")), *words])
        assert ended.value.code == 2 and words[0] in capsys.readouterr().err
