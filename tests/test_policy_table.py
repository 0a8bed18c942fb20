"""scripts/policy_table.py: what is read, what is paired, and what is refused."""

import json

import pytest

from alignment.command_line import UserError
from scripts import policy_table


def write(folder, name, answers):
    """answers: {prompt: (reward, text, finish) or None}."""
    lines = []
    for prompt, given in answers.items():
        candidates = [dict(zip(("reward", "output", "finish"), given or (None, None, "too long"), strict=True))]
        lines.append({"instruction": prompt, "candidates": candidates, "chosen": 0 if given else None})
    (folder / f"{name}.candidates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def call(folder, *names):
    policy_table.main(policy_table.parse_args([str(folder), *names]))


def test_gains_are_of_the_prompts_that_both_answered(tmp_path, capsys):
    """base 1, 2, 9 of a, b, c; ppo 2, 3 of a, b and 30 of d: the gain is 1 twice, whatever c and d got; b is longer."""
    write(tmp_path, "base", {"a": (1.0, "xx", "stop"), "b": (2.0, "x", "length"), "c": (9.0, "x", "stop"), "d": None})
    write(tmp_path, "ppo", {"a": (2.0, "xx", "stop"), "b": (3.0, "xx", "stop"), "c": None, "d": (30.0, "x", "length")})
    results = {"results": {"all": {"accuracy": 0.5, "interval": [0.4, 0.6], "n": 9}}}
    (tmp_path / "ppo.hhh.json").write_text(json.dumps(results))
    call(tmp_path, "base", "ppo")
    head, base, ppo = (line.split() for line in capsys.readouterr().out.splitlines())
    assert head[0] == "policy" and base[:3] == ["base", "3", "4.000"] and base[-3:] == ["-", "67", "-"]
    assert "+1.000 [+1.000, +1.000]" in " ".join(ppo) and ppo[1:3] == ["3", "11.667"]
    assert ppo[-5:] == ["50", "67", "50.0", "[40.0,", "60.0]"]


def test_answers_without_rewards_are_refused(tmp_path):
    write(tmp_path, "base", {"a": (None, "x", "stop")})
    with pytest.raises(UserError, match="have no rewards; make them with generate.py --reward_model"):
        call(tmp_path, "base")
    write(tmp_path, "base", {"a": None})
    with pytest.raises(UserError, match="no prompt was answered"):
        call(tmp_path, "base")
    with pytest.raises(UserError, match="ppo.candidates.jsonl does not exist"):
        call(tmp_path, "ppo")


def test_what_length_explains_by_hand(tmp_path, capsys):
    """Candidates of 2 and 4 characters with rewards 1 and 2, of another prompt 6 and 10 with 0 and 3. Less their means:
    lengths -1, 1, -2, 2, rewards -.5, .5, -1.5, 1.5. Slope (0.5 + 0.5 + 3 + 3) / (1 + 1 + 4 + 4) = 0.7. An answer of
    two characters more is worth 1.4 by length alone."""

    def turn(*kept):
        candidates = [{"output": "x" * length, "reward": reward} for length, reward in kept]
        return {"candidates": [*candidates, {"output": "x" * 99, "reward": None}]}

    path = tmp_path / "self_play.jsonl"
    path.write_text(
        json.dumps({"turns": [turn((2, 1.0), (4, 2.0)), turn((6, 0.0), (10, 3.0)), turn((50, 7.0))]}) + "\n"
    )
    assert policy_table.slope_of_reward(path) == pytest.approx(0.7)
    write(tmp_path, "base", {"a": (1.0, "xx", "stop")})
    write(tmp_path, "ppo", {"a": (3.0, "xxxx", "stop")})
    policy_table.main(policy_table.parse_args([str(tmp_path), "base", "ppo", "--self_play", str(path)]))
    assert "+2.000 [+2.000, +2.000]        +1.400" in capsys.readouterr().out
    path.write_text(json.dumps({"turns": [turn((50, 7.0))]}) + "\n")
    with pytest.raises(UserError, match="no turn with two scored candidates"):
        policy_table.slope_of_reward(path)
