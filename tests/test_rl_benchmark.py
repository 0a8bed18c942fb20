"""benchmarks/rl.py measures the same computation both ways, and prints the ratios beside their targets."""

import pytest

from benchmarks import rl


def found(model_folder, way, *more):
    flags = ["--model_name_or_path", str(model_folder), "--replies", "8", "--max_new_tokens", "8", "--way", way, *more]
    return rl.measure(rl.parse_args(flags))


@pytest.mark.parametrize(
    "more", [["--algorithm", "ppo"], ["--algorithm", "grpo", "--lora_r", "4"]], ids=["ppo", "lora"]
)
def test_both_ways_have_the_same_gradient(model_folder, more):
    """Prompts and replies of mixed lengths, padded and not: the norms of the first step are equal to 1e-4."""
    plain, ours = (found(model_folder, way, *more) for way in ("plain", "ours"))
    assert ours["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4) and ours["grad_norm"] > 0
    assert ours["tokens"] > 0 and plain["tokens"] > 0


def test_the_engine_gives_our_replies(model_folder):
    """The same prompts and seeds by a model that is not in training: as many tokens."""
    assert found(model_folder, "engine")["tokens"] == found(model_folder, "ours")["tokens"]


def test_ratios_are_shown(model_folder, monkeypatch, capsys):
    monkeypatch.setattr(rl, "measured_apart", lambda script, args, way: found(model_folder, way))
    rl.main(rl.parse_args(["--model_name_or_path", str(model_folder)]))
    out = capsys.readouterr().out
    for target in ("at least 0.90x", "at most 0.50x", "at least 1.40x"):
        assert f"(target {target})" in out
