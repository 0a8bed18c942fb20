"""Rollouts by an engine beside the trainer: what it is handed, what is made of its word, and vLLM itself (slow)."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_llama, with_gpus
from test_train_rl import argv, data, go, history, make_models, one_thread, rolled, settings_of  # noqa: F401

import train_rl
from alignment.adapters import add_lora
from alignment.command_line import UserError
from alignment.templates import load_template
from alignment.training import rl_build, rl_state
from alignment.training.logps import speak_logps
from alignment.training.rl_models import logps_and_states, plain_weights, tempered, without_dropout
from alignment.training.rl_update import advantages, backward, compared, measure
from alignment.training.rollouts import Task, sample, tensors

REPOSITORY = Path(train_rl.__file__).parent
VLLM = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1}


def test_plain_weights_have_lora_added_in_and_leave_the_policy(tokenizer):
    """Under the names of a plain model, which with them gives the same logits; the policy is as it was."""
    core = make_llama(len(tokenizer), tie_word_embeddings=True)
    policy = add_lora(core, r=2, alpha=4, dropout=0.0, targets=["all-linear"], task_type="CAUSAL_LM")
    with torch.no_grad():
        for name, weight in policy.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.1)
    before, ids = copy.deepcopy(policy.state_dict()), torch.arange(5, 25)[None]
    plain = make_llama(len(tokenizer), tie_word_embeddings=True)
    at_first = plain(input_ids=ids).logits
    handed = dict(plain_weights(core))
    assert handed.keys() == dict(plain.named_parameters()).keys()
    assert not any(weight.requires_grad for weight in handed.values())
    plain.load_state_dict(handed, strict=False)
    assert torch.allclose(plain(input_ids=ids).logits, policy(input_ids=ids).logits, atol=1e-5)
    assert not torch.allclose(plain(input_ids=ids).logits, at_first, atol=1e-2)
    assert all(torch.equal(weight, before[name]) for name, weight in policy.state_dict().items())


def two_tokens(tokenizer, theirs):
    rollouts = rolled(make_models(tokenizer), tokenizer, lambda rollout: 0.0, number=4)[:2]
    for rollout, ours, other in zip(rollouts, (-1.0, -2.0), theirs, strict=True):
        rollout.logps, rollout.engine_logps = torch.tensor([ours]), torch.tensor([other])
    return rollouts


def test_what_is_said_of_a_handover(tokenizer):
    """Off by .0004 and -.001: .0007 in the mean, and weights e^.0004 and e^-.001, .9997 in the mean."""
    told = compared(two_tokens(tokenizer, (-1.0004, -1.999)), bf16=False)
    assert told == {
        "handover_error": pytest.approx(7e-4, abs=1e-6),
        "importance_weight": pytest.approx(0.9997, abs=1e-6),
    }


@pytest.mark.parametrize(
    ("theirs", "bf16", "fits"),
    [
        ((-1.0, -2.003), False, False),  # .0015 in the mean
        ((-1.0, -2.003), True, True),
        ((-1.06, -1.94), True, False),  # .06, though they cancel out
        ((-1.0, float("nan")), True, False),
    ],
)
def test_a_handover_that_is_too_far_off_stops_the_run(tokenizer, theirs, bf16, fits):
    if fits:
        compared(two_tokens(tokenizer, theirs), bf16)
    else:
        with pytest.raises(UserError, match="does not run the policy's weights"):
            compared(two_tokens(tokenizer, theirs), bf16)


def test_importance_weights_are_on_the_policy_loss_alone(tokenizer):
    """An engine gave each token a third of the policy's probability: the ratio 3 is cut to 2, the policy's gradient is
    twice what it was, the values' is what it was."""
    models, found = make_models(tokenizer), []
    rollouts = rolled(models, tokenizer, lambda rollout: float(rollout.reply.count(70)) - rollout.reply[-1] % 3)
    measure(models, rollouts, settings_of())
    advantages(models, rollouts, settings_of(), 0.1, first=False)
    for engine in (False, True):
        for rollout in rollouts:
            rollout.engine_logps = rollout.logps - torch.tensor(3.0).log() if engine else None
        backward(models, rollouts, settings_of(), 0.1)
        learners = (models.policy, models.value)
        found.append([torch.cat([weight.grad.flatten() for weight in each.weights.values()]) for each in learners])
        for each in learners:
            each.module.zero_grad()
    (policy, value), (weighted, same) = found
    assert policy.norm() > 1e-3 and torch.allclose(weighted, 2 * policy, rtol=1e-4, atol=1e-7)
    assert torch.equal(same, value)


class Engine:
    """A model of its own, told what vLLM is told. One that is `stuck` takes no weights, and says nothing."""

    def __init__(self, args, core, stuck):
        self.model = without_dropout(speak_logps(make_llama(core.config.vocab_size))).requires_grad_(False)
        self.template = load_template(args.template, train_rl.training_tokenizer(args.model_name_or_path))
        self.temperature, self.stuck, self.handed = args.temperature, stuck, []

    def close(self):
        self.model = None

    def replies(self, prompts, seeds, *, max_tokens, end_id, weights):
        self.handed.append(weights is not None)
        if weights is not None and not self.stuck:
            self.model.load_state_dict(dict(weights))
        tasks = [Task(0, 0, *each) for each in zip(prompts, seeds, strict=True)]
        with tempered(self.model, self.temperature):
            found = sample(self.model, tasks, template=self.template, max_new_tokens=max_tokens, max_rows=4)
            logps = [logps_and_states(self.model, tensors([each], 3, "cpu"))[0].tolist() for each in found]
        return [(each.reply, each.ended, own) for each, own in zip(found, logps, strict=True)]


@pytest.fixture
def engines(monkeypatch):
    """Engines that a run makes where it would make vLLM."""
    made = []

    def use(stuck):
        monkeypatch.setattr(
            rl_build, "rollout_engine", lambda args, core: made.append(Engine(args, core, stuck)) or made[-1]
        )
        return made

    return use


@pytest.mark.parametrize("changes", [{}, {"lora_r": 2, "temperature": 0.7}])
def test_an_engine_is_handed_the_policy_after_each_step(quick, data, model_folder, engines, changes):  # noqa: F811
    """Not before the first, whose weights it loaded; the run is then the same as by decoding, as the model is."""
    made = engines(stuck=False)
    lines = history(go(data, model_folder, "varied", name="by", rollouts="vllm", learning_rate=1e-2, **changes))
    assert made[0].handed == [False, True, True]
    assert all(line["handover_error"] < 1e-5 and abs(line["importance_weight"] - 1) < 1e-5 for line in lines)
    own = history(go(data, model_folder, "varied", name="own", learning_rate=1e-2, **changes))
    for ours, theirs in zip(own, lines, strict=True):
        assert theirs["reward"] == ours["reward"] and theirs["entropy"] == pytest.approx(ours["entropy"], abs=1e-4)


def test_an_engine_that_kept_old_weights_stops_the_run(quick, data, model_folder, tokenizer, engines):  # noqa: F811
    """Step 2 is refused, its rollouts and their rewards are forgotten, and a checkpoint has step 1, from which decoding
    goes on to what it would have come to by itself."""
    engines(stuck=True)
    settings = dict(learning_rate=1e-2, save_steps=0)
    with pytest.raises(
        UserError, match="^step 2: .*nothing was learned from these; give --rollouts decoding"
    ) as raised:
        go(data, model_folder, "varied", rollouts="vllm", **settings)
    out, checkpoint = data / "out", data / "out" / "checkpoint-1"
    assert "\n" not in str(raised.value) and str(raised.value).endswith(f"--resume_from_checkpoint {checkpoint}")
    assert not (out / rl_state.ROLLOUTS).exists() and not (out / "model.safetensors").exists()
    went_on = go(data, model_folder, "varied", resume_from_checkpoint=checkpoint, **settings)
    whole = go(data, model_folder, "varied", name="whole", **settings)
    for ours, theirs in zip(history(went_on), history(whole), strict=True):
        assert ours["reward"] == theirs["reward"] and ours["kl"] == pytest.approx(theirs["kl"], abs=1e-3)


def test_a_first_step_that_is_off_names_no_checkpoint(quick, data, model_folder, engines, monkeypatch):  # noqa: F811
    made = engines(stuck=True)
    use = rl_build.rollout_engine

    def other(args, core):
        engine = use(args, core)
        torch.nn.init.normal_(engine.model.lm_head.weight)
        return engine

    monkeypatch.setattr(rl_build, "rollout_engine", other)
    with pytest.raises(UserError, match="^step 1: .*give --rollouts decoding$"):
        go(data, model_folder, rollouts="vllm")
    assert made and not list((data / "out").glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("is for one process without --fsdp", dict(fsdp="full_shard")),
        ("do not share a process", dict(judge_backend="vllm")),
    ],
)
def test_flags_that_do_not_fit(data, model_folder, capsys, said, changes):  # noqa: F811
    with pytest.raises(SystemExit, match="2"):
        train_rl.parse_args(argv(data, model_folder, rollouts="vllm", **changes))
    assert said in capsys.readouterr().err


def test_several_processes_do_not_fit(data, model_folder, capsys, monkeypatch):  # noqa: F811
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit, match="2"):
        train_rl.parse_args(argv(data, model_folder, rollouts="vllm"))
    assert "is for one process" in capsys.readouterr().err


def test_a_model_that_got_room_for_padding_is_refused(data, tmp_path, tokenizer):  # noqa: F811
    """vLLM would load a head of fewer tokens than the policy has."""
    make_llama(len(tokenizer) - 1).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    with pytest.raises(UserError, match="has 261 tokens and its policy 262"):
        go(data, tmp_path / "bare", rollouts="vllm")
    assert not (data / "out" / "model.safetensors").exists()


# vLLM


def by_vllm(data, tokenizer, tied):  # noqa: F811
    folder = data / "policy"
    make_llama(len(tokenizer), tie_word_embeddings=tied, **VLLM).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    settings = dict(rollouts="vllm", max_steps=2, learning_rate=1e-2, rollout_batch_size=8, num_ppo_epochs=1)
    words = argv(data, folder, "varied", algorithm="grpo", num_generations=4, temperature=0.8, **settings)
    environment = with_gpus(OMP_NUM_THREADS="1", VLLM_CPU_KVCACHE_SPACE="1")
    command = [sys.executable, str(REPOSITORY / "train_rl.py"), *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_vllm_on_a_cpu_keeps_a_tied_head_and_is_found_out(data, tokenizer):  # noqa: F811
    """The first step, of weights as they were loaded, passes. `reload_weights` then leaves the packed copy of the head
    that is also the embeddings, and raises nothing: the second step is refused."""
    done = by_vllm(data, tokenizer, tied=True)
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stdout + done.stderr
    (line,) = history(data / "out")
    assert line["step"] == 1 and line["handover_error"] < 1e-5
    assert "step 2: vllm's log-probabilities of its own replies are" in done.stderr
    assert (data / "out" / "checkpoint-1").is_dir() and not (data / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_vllm_on_a_cpu_takes_the_weights_of_a_model_whose_head_is_its_own(data, tokenizer):  # noqa: F811
    """Two steps, and the policy moved between them by more than the guard lets pass."""
    done = by_vllm(data, tokenizer, tied=False)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    lines = history(data / "out")
    assert [line["step"] for line in lines] == [1, 2] and all(line["handover_error"] < 1e-5 for line in lines)
    assert json.loads((data / "out.run.json").read_text())["counts"]["check"]["agrees"]
