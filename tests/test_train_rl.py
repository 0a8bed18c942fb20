"""train_rl.py from end to end on a tiny Llama: what it reaches, what a step is, what a run leaves, what it refuses."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_llama, make_tokenizer
from safetensors.torch import load_file
from torch.nn.functional import log_softmax
from transformers import AutoTokenizer

import train_rl
from alignment.command_line import UserError
from alignment.templates import load_template
from alignment.training import ppo, rl_monitor, rl_state
from alignment.training.logps import speak_logps
from alignment.training.rl_models import ValueHead, logps_and_states, speak_values, tempered, values_of, without_dropout
from alignment.training.rl_update import Learner, Models, Settings, advantages, backward, measure, update, usable
from alignment.training.rollouts import Sampler, plan, sample, tasks_of_step, tensors

REPOSITORY = Path(train_rl.__file__).parent
REWARDS = """
def share(rows, responses):
    return [text.count("a") / 4 for text in responses]

def varied(rows, responses):
    return [sum(map(ord, text)) % 7 / 7 for text in responses]

def same(rows, responses):
    return [0.3] * len(responses)

def some(rows, responses):
    return [None if number % 3 == 0 else float(len(text)) for number, text in enumerate(responses)]

def raises(rows, responses):
    return [row["answer"] for row in rows]

def words(rows, responses):
    return ["good"] * len(responses)
"""
PROMPTS = ["alpha", "beta gamma", "delta delta", "one two three"]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n")
    return tmp_path


@pytest.fixture
def uniform(tmp_path):
    """A policy that gives every token the same probability, 1/V: its head is 0."""
    tokenizer = make_tokenizer()
    model = make_llama(len(tokenizer))
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "uniform")
    tokenizer.save_pretrained(tmp_path / "uniform")
    return tmp_path / "uniform"


def argv(data, folder, reward="share", name="out", **changes):
    flags = {
        "model_name_or_path": folder,
        "data_path": data / "prompts.txt",
        "reward": reward if "/" in str(reward) else f"{data / 'rewards.py'}:{reward}",
        "output_dir": data / name,
        "max_new_tokens": 4,
        "max_steps": 3,
        "rollout_batch_size": 16,
        "mini_batch_size": 8,
        "num_ppo_epochs": 2,
        "learning_rate": 1e-3,
        "missing_eos_penalty": 0,
        **changes,
    }
    return [word for flag, value in flags.items() for word in (f"--{flag}", *str(value).split())]


def go(*args, **changes):
    arguments = train_rl.parse_args(argv(*args, **changes))
    train_rl.main(arguments)
    return arguments.output_dir


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").open()]


def weights(folder, name="model.safetensors"):
    return load_file(folder / name)


def card(folder):
    return json.loads(folder.with_name(folder.name + ".run.json").read_text())


# What it reaches


def test_ppo_reaches_the_optimum_under_a_leash(quick, data, uniform):
    """J = E[r - β Σ KL] of 4 tokens at most, 1/4 for each "a", from a uniform policy of V tokens. With W_5 = 0,
    W_t = β log 1/V (e^((1/4 + W_{t+1})/β) + 1 + (V - 2) e^(W_{t+1}/β)), the 1 for EOS; J* = W_1. 90% is reached."""
    beta, size, best = 0.03, len(make_tokenizer()), 0.0
    for _ in range(4):
        gains = [math.exp((0.25 + best) / beta), 1.0, (size - 2) * math.exp(best / beta)]
        best = beta * math.log(sum(gains) / size)
    settings = dict(max_steps=24, rollout_batch_size=128, mini_batch_size=64, kl_coef=beta, lr_scheduler_type="linear")
    lines = history(go(data, uniform, learning_rate=2e-2, value_learning_rate=1e-2, **settings))
    reached = sum(line["reward"] - beta * line["kl"] for line in lines[-4:]) / 4
    assert 0.9 * best < reached < 1.02 * best


def test_grpo_reaches_the_optimum_under_a_leash(quick, data, uniform):
    """One token, 1/4 for "a". k3 as a loss leashes by KL(π_ref‖π): with p = π(a) and the rest alike, J(p) = p/4 + β
    (log(p V)/V + (V-1)/V log((1-p) V/(V-1))), best near 1 - p = 4β (V-1)/V. p and 90% of J are reached."""
    beta, size = 0.05, len(make_tokenizer())

    def objective(p):
        rest = (size - 1) / size
        return p / 4 + beta * (math.log(p * size) / size + rest * math.log((1 - p) / rest))

    best = max((step / 1000 for step in range(1, 1000)), key=objective)
    settings = dict(algorithm="grpo", max_new_tokens=1, max_steps=32, rollout_batch_size=128, mini_batch_size=128)
    settings |= dict(num_ppo_epochs=1, scale_rewards=False, kl_coef=beta)
    lines = history(go(data, uniform, learning_rate=2e-2, **settings))
    p = sum(line["reward"] * 4 for line in lines[-8:]) / 8
    assert p == pytest.approx(best, abs=0.1) and objective(p) > 0.9 * objective(best)


@pytest.mark.parametrize("changes", [{}, {"lora_r": 4}, {"algorithm": "grpo"}])
def test_equal_rewards_move_nothing(quick, data, model_folder, changes):
    """Every reply gets 0.3 and the policy is the reference: no advantage, no KL, and so no gradient at all."""
    folder = go(data, model_folder, "same", **changes)
    if "lora_r" in changes:
        moved = [tensor for name, tensor in weights(folder, "adapter_model.safetensors").items() if "lora_B" in name]
        assert moved and not any(tensor.any() for tensor in moved)
    else:
        before = weights(model_folder)
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(folder).items())


# A step, by its parts


def settings_of(algorithm="ppo", **changes):
    flags = dict(algorithm=algorithm, gamma=1.0, gae_lambda=0.95, cliprange=0.2, cliprange_value=0.2, seed=0)
    flags |= dict(missing_eos_penalty=0.0, scale_rewards=True, num_ppo_epochs=1, mini_batch_size=32)
    flags |= dict(micro_batch_tokens=16_384, max_grad_norm=1.0, pad_id=3, device="cpu", rank=0, world=1)
    return Settings(**flags | changes)


def learner(module, rate):
    return Learner(
        module,
        lambda weights: torch.optim.AdamW(weights, lr=rate, weight_decay=0.0),
        lambda optimizer: torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0),
    )


def make_models(tokenizer, noise=0.0, rate=1e-2, value=True):
    """A policy that is `noise` off its reference, and a value head that knows something."""
    policy, reference = (without_dropout(speak_logps(make_llama(len(tokenizer)))) for _ in range(2))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            weight.add_(noise * torch.randn_like(weight))
    head = ValueHead(32)
    torch.nn.init.normal_(head.linear.weight)
    return Models(learner(policy, rate), learner(head, rate) if value else None, reference.requires_grad_(False), None)


def rolled(models, tokenizer, score, number=16, step=0, new_tokens=6):
    template = load_template("almost", tokenizer)
    prompts = template.prompt_ids([{"prompt": prompt} for prompt in PROMPTS])
    tasks = tasks_of_step(prompts, step, prompts_per_step=number // 4, replies=4, seed=0)
    found = sample(models.policy.module, tasks, template=template, max_new_tokens=new_tokens, max_rows=8)
    for rollout in found:
        rollout.score = score(rollout)
    return found


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_the_kl_alone_brings_a_disturbed_policy_back(tokenizer, algorithm):
    """No reward, and a policy off its reference: with nothing but the KL term it comes back."""
    models = make_models(tokenizer, noise=0.3, value=algorithm == "ppo")
    settings, kls = settings_of(algorithm, num_ppo_epochs=2), []
    if models.value:
        torch.nn.init.zeros_(models.value.module.linear.weight)
    for step in range(20):
        rollouts = rolled(models, tokenizer, lambda rollout: 0.0, number=64, step=step, new_tokens=2)
        measure(models, rollouts, settings)
        advantages(models, rollouts, settings, 1.0, first=step == 0)
        update(models, rollouts, settings, 1.0, step)
        kls.append(sum(ppo.kl_k3(each.logps, each.reference).sum().item() for each in rollouts) / len(rollouts))
    assert kls[0] > 2 and max(kls[-3:]) < 0.1 * kls[0], kls


@pytest.mark.parametrize("algorithm", ["ppo", "grpo"])
def test_a_gradient_does_not_depend_on_how_it_is_cut(tokenizer, algorithm):
    """All 16 rollouts in one pass, or in micro-batches of 40 tokens, or shared by two ranks whose gradients are summed:
    equal to rounding. A mean of micro-batches' means would differ in the second digit, as lengths do."""
    models = make_models(tokenizer, noise=0.02, value=algorithm == "ppo")
    rollouts = rolled(models, tokenizer, lambda rollout: rollout.reply.count(70) - rollout.reply[-1] % 3)
    measure(models, rollouts, settings_of(algorithm))
    advantages(models, rollouts, settings_of(algorithm), 0.1, first=False)
    with torch.no_grad():  # no longer the policy that sampled
        models.policy.module.lm_head.weight.mul_(1.5)
    found = {}
    cuts = {"one": [{}], "many": [dict(micro_batch_tokens=40)], "ranks": [dict(micro_batch_tokens=80)] * 2}
    for name, ranks in cuts.items():
        for rank, changes in enumerate(ranks):
            settings = settings_of(algorithm, rank=rank, world=len(ranks), **changes)
            backward(models, rollouts, settings, 0.1)
        learners = filter(None, (models.policy, models.value))
        found[name] = torch.cat([weight.grad.flatten() for each in learners for weight in each.weights.values()])
        models.policy.module.zero_grad()
        models.value and models.value.module.zero_grad()
    assert found["one"].norm() > 1e-3
    for name in ("many", "ranks"):
        assert torch.allclose(found[name], found["one"], rtol=1e-4, atol=1e-6), name


def test_a_rank_that_is_short_repeats_a_batch_at_weight_0(tokenizer):
    """3 micro-batches on 2 ranks: two each, and the repeated one adds no gradient (as above)."""
    rollouts = rolled(make_models(tokenizer), tokenizer, lambda rollout: 0.0, number=4)[:3]
    shares = [list(plan(rollouts, 1, rank, 2)) for rank in range(2)]
    assert [weight for share in shares for _, weight in share] == [1.0, 1.0, 1.0, 0.0]
    assert shares[1][1][0] == shares[0][1][0]


def test_what_is_measured_is_what_the_models_say(tokenizer):
    """Log-probabilities of the reply's own tokens, the one that ended it among them, by plain logits; under the policy
    and the reference; and the value head's word on the states before these tokens."""
    models = make_models(tokenizer, noise=0.02)
    rollouts = rolled(models, tokenizer, lambda rollout: 0.0, number=64, new_tokens=16)
    assert {rollout.ended for rollout in rollouts} == {True, False}
    measure(models, rollouts, settings_of(micro_batch_tokens=100))
    for rollout in rollouts:
        assert (rollout.reply[-1] == tokenizer.eos_token_id) == rollout.ended and rollout.reply
        start, ids = len(rollout.prompt), torch.tensor([rollout.prompt + rollout.reply])
        with torch.no_grad():
            for model, found in ((models.policy.module, rollout.logps), (models.reference, rollout.reference)):
                logps = log_softmax(model(input_ids=ids).logits[0, start - 1 : -1], -1)
                assert torch.allclose(found, logps.gather(1, ids[0, start:, None])[:, 0], atol=1e-5)
            states = models.policy.module.model(input_ids=ids)[0][0, start - 1 : -1]
            assert torch.allclose(rollout.values, models.value.module(states), atol=1e-5)


def test_a_reward_model_tells_values_before_each_token(tokenizer):
    """V before token t is the normalised score of what stands before it; without labels the model scores as ever."""
    from transformers import LlamaForSequenceClassification

    config = make_llama(len(tokenizer)).config
    config.num_labels = 1
    model = speak_values(LlamaForSequenceClassification(config), mean=2.0, std=0.5)
    rollouts = rolled(make_models(tokenizer), tokenizer, lambda rollout: 0.0, number=4)
    found = values_of(model, tensors(rollouts, 3, "cpu"), None).split([len(each.reply) for each in rollouts])
    for rollout, values in zip(rollouts, found, strict=True):
        for t, value in enumerate(values):
            ids = torch.tensor([rollout.prompt + rollout.reply[:t]])
            assert value.item() == pytest.approx((model(input_ids=ids).logits[0, 0].item() - 2.0) / 0.5, abs=1e-4)


def test_a_temperature_is_one_for_sampling_and_log_probabilities(tokenizer):
    """At temperature 2 log-probabilities are of logits / 2, and so is what the decoder draws from."""
    models = make_models(tokenizer)
    policy, (rollout, *_) = models.policy.module, rolled(models, tokenizer, lambda rollout: 0.0, number=4)
    ids = torch.tensor([rollout.prompt + rollout.reply])
    plain = policy(input_ids=ids).logits[0, len(rollout.prompt) - 1 : -1]
    with tempered(policy, 2.0):
        logps, _ = logps_and_states(policy, tensors([rollout], 3, "cpu"))
        drawn_from = policy(input_ids=ids[:, : len(rollout.prompt)], logits_to_keep=1).logits[0, -1]
    expected = log_softmax(plain / 2, -1).gather(1, ids[0, len(rollout.prompt) :, None])[:, 0]
    assert torch.allclose(logps, expected, atol=1e-5)
    assert torch.allclose(drawn_from, plain[0] / 2, atol=1e-5)
    assert torch.equal(policy(input_ids=ids).logits[0, len(rollout.prompt) - 1 : -1], plain)


def test_what_cannot_be_scored_teaches_nothing_and_neither_does_one_of_its_kind(tokenizer):
    """Places 0 and 1 with 4 replies each, scored: none but one of place 0, three of place 1."""
    rollouts = rolled(make_models(tokenizer), tokenizer, lambda rollout: None, number=8)
    for number in (2, 4, 5, 7):
        rollouts[number].score = 1.0
    assert [rollouts.index(each) for each in usable(rollouts, settings_of("ppo"))] == [2, 4, 5, 7]
    assert [rollouts.index(each) for each in usable(rollouts, settings_of("grpo"))] == [4, 5, 7]


def test_prompts_are_taken_in_turn():
    """4 prompts, 3 a step: every 4 places are all of them, in a new order, and each place has seeds of its own."""
    prompts = [[number] for number in range(4)]
    tasks = [t for s in range(4) for t in tasks_of_step(prompts, s, prompts_per_step=3, replies=2, seed=5)]
    rows = [task.row for task in tasks[::2]]
    assert all(sorted(rows[at : at + 4]) == [0, 1, 2, 3] for at in (0, 4, 8)) and rows[:4] != rows[4:8]
    assert len({task.seed for task in tasks}) == len(tasks) == 24
    assert all(task.prompt == [task.row] for task in tasks)


# A run on disk


def make_reward_model(folder, tokenizer, **config):
    """A reward model of the policy's own tokenizer, its scores some units apart, with no mean and deviation."""
    from transformers import LlamaForSequenceClassification

    made = make_llama(len(tokenizer)).config
    made.num_labels, made.prompt_template = 1, "almost"
    made.update(config)
    torch.manual_seed(2)
    model = LlamaForSequenceClassification(made)
    with torch.no_grad():
        model.score.weight.mul_(20)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


KILLED = """
import os, signal
calls = []

def kill_in_step_4(rows, responses):
    calls.append(1)
    if len(calls) == 7 and not os.path.exists({flag!r}):
        open({flag!r}, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    return [text.count("a") / 4 for text in responses]
"""


def test_a_run_that_was_killed_goes_on_bit_for_bit(quick, data, model_folder, tokenizer):
    """kill -9 in step 4 of 5, its rewards asked for; the same command again. Values from the reward model, running
    statistics, an adaptive KL: all of it goes on, and the weights are those of a run that nobody disturbed."""
    make_reward_model(data / "rm", tokenizer)
    flag = data / "flag"
    (data / "killed.py").write_text(KILLED.format(flag=str(flag)))
    settings = dict(max_steps=5, save_steps=1, target_kl=0.01, kl_horizon=100, rollout_batch_size=8, mini_batch_size=4)
    settings["reward"] = f"{data / 'killed.py'}:kill_in_step_4 {data / 'rm'}=0.5"
    command = argv(data, model_folder, **settings)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(REPOSITORY / "train_rl.py"), *command]
    done = subprocess.run(script, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    out = data / "out"
    assert sorted(path.name for path in out.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert not (out / "model.safetensors").exists() and not out.with_name("out.run.json").exists()
    train_rl.main(train_rl.parse_args(command))
    whole = go(data, model_folder, name="whole", **settings)
    one, other = weights(out), weights(whole)
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    timed = ("sampling_seconds", "update_seconds")
    lines = [[{k: v for k, v in line.items() if k not in timed} for line in history(each)] for each in (out, whole)]
    assert lines[0] == lines[1] and len(lines[0]) == 5
    assert len({line["kl_coef"] for line in lines[0]}) > 2
    columns = [json.loads(page(each).split('id="data">')[1].split("</script>")[0])["columns"] for each in (out, whole)]
    assert columns[0] == columns[1] and [column["step"] for column in columns[0]] == [0, 1, 2, 4, 5]


def page(folder):
    return (folder / rl_monitor.SAMPLES_PAGE).read_text()


def test_scored_rollouts_are_not_asked_for_twice(quick, data, model_folder, monkeypatch):
    """Stopped in the update of step 2: the next run takes that step's rollouts as they were left, rewards too."""
    from alignment.training import rl_update

    def interrupted(models, rollouts, settings, kl_coef, step):
        if step == 1:
            raise KeyboardInterrupt
        return update(models, rollouts, settings, kl_coef, step)

    arguments = train_rl.parse_args(argv(data, model_folder, save_steps=1))
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(rl_update, "update", interrupted)
        train_rl.main(arguments)
    left = rl_state.load_tensors(data / "out" / rl_state.ROLLOUTS)
    assert left["step"] == 1 and len(left["rollouts"]) == 16
    for rollout in left["rollouts"]:
        rollout["score"] = 7.0
    rl_state.save_tensors(data / "out" / rl_state.ROLLOUTS, left)
    train_rl.main(arguments)
    assert history(data / "out")[1]["reward"] == 7.0 and history(data / "out")[2]["reward"] < 1
    assert not (data / "out" / rl_state.ROLLOUTS).exists()


def test_what_a_run_leaves(data, model_folder, capsys):
    """Loaded again by a fresh process; a chat template, an end id, history as lines and a picture, checkpoints, a card.
    The same command again does nothing."""
    folder = go(data, model_folder, save_steps=1, save_total_limit=1)
    made = {path.name for path in folder.iterdir()}
    assert {"model.safetensors", "chat_template.jinja", "history.png", "samples.html", "checkpoint-3"} <= made
    assert not [name for name in made if name.startswith(".")] and "checkpoint-2" not in made
    assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [2]
    lines = history(folder)
    assert [line["step"] for line in lines] == [1, 2, 3] and lines[0]["kl"] == 0
    assert {"reward", "kl", "kl_k3", "entropy", "clip_fraction", "eos_rate", "length", "unscored"} <= set(lines[1])
    saved, template = AutoTokenizer.from_pretrained(folder), load_template("almost", make_tokenizer())
    asked = [[{"role": "user", "content": prompt}] for prompt in PROMPTS]
    told = saved.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert told == template.prompt_ids([{"prompt": prompt} for prompt in PROMPTS])
    assert "reinforced against a reward by PPO" in (folder / "README.md").read_text()
    told = card(folder)["counts"]
    assert told["steps"] == 3 and told["check"]["agrees"] and told["check"]["single"] < 2e-4 and told["stopped"] is None
    before = (folder / "model.safetensors").stat().st_mtime_ns
    assert go(data, model_folder, save_steps=1, save_total_limit=1) and "nothing to do" in capsys.readouterr().out
    assert (folder / "model.safetensors").stat().st_mtime_ns == before


def test_an_adapter_and_a_reward_model_under_one(quick, data, model_folder, tokenizer):
    """LoRA: the reference is the policy without its adapter, the values an adapter on the reward model, which scores
    without it: its scores are those of a fresh reward model."""
    from alignment.training.rewards import Rewards

    make_reward_model(data / "rm", tokenizer, reward_mean=0.5, reward_std=2.0)
    folder = go(
        data,
        model_folder,
        reward=data / "rm",
        lora_r=4,
        value_learning_rate=1e-2,
        bf16=True,
        gradient_checkpointing=True,
    )
    assert (folder / "adapter_model.safetensors").exists() and (folder / "base_model.json").exists()
    lines = history(folder)
    assert lines[0]["kl"] == 0 and lines[-1]["kl"] != 0 and "explained_variance" in lines[0]
    assert all("outside_range" in line for line in lines)
    column = json.loads(page(folder).split('id="data">')[1].split("</script>")[0])["columns"][-1]["answers"]
    scores = Rewards([str(data / "rm")], device="cpu").score(
        [{"prompt": prompt} for prompt in PROMPTS], [answer["text"] for answer in column]
    )
    assert [answer["reward"] for answer in column] == pytest.approx([score.total for score in scores], abs=0.05)


def test_beyond_max_kl_a_run_saves_and_ends(quick, data, model_folder, capsys):
    folder = go(data, model_folder, learning_rate=1e-2, max_kl=0.05, max_steps=20)
    told = card(folder)["counts"]
    assert 0 < told["steps"] < 20 and "beyond --max_kl 0.05" in told["stopped"]
    assert told["stopped"] in capsys.readouterr().out and (folder / "model.safetensors").exists()


def test_prompts_of_turns_in_one_text_are_asked_as_turns(model_folder, tmp_path):
    """As train.py reads them (oasst1); what else a row has stays beside, for rewards."""
    row = {"prompt": "prompter: Hi?assistant: Yes.prompter: Then?", "rubrics": [{"description": "short"}]}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    words = ["--data_path", str(tmp_path / "rows.json"), "--reward", "judge:rubric", "--output_dir", str(tmp_path)]
    _, rows, _ = train_rl.load_data(train_rl.parse_args(["--model_name_or_path", str(model_folder), *words]))
    turns = [("user", "Hi?"), ("assistant", "Yes."), ("user", "Then?")]
    assert rows == [row | {"prompt": [{"role": role, "content": text} for role, text in turns]}]


def test_what_has_no_reward_is_counted(quick, data, model_folder):
    """16 replies, every third of which cannot be scored: 6 left out, and the mean is of the other 10."""
    line = history(go(data, model_folder, "some", max_steps=1))[0]
    assert line["unscored"] == line["left_out"] == 6 and line["reward"] > 1
    assert card(data / "out")["counts"]["unscored"]["some: None"] >= 6


def test_the_page_leaves_the_running_statistics_alone(data, tokenizer):
    """Its answers are scored, greedily sampled, and are no part of what rewards are normalised by."""
    from alignment.training.rewards import Rewards

    rewards = Rewards([str(make_reward_model(data / "rm", tokenizer))], device="cpu")
    template = load_template("almost", tokenizer)
    rows = [{"prompt": prompt} for prompt in PROMPTS]
    tasks = tasks_of_step(template.prompt_ids(rows), 0, prompts_per_step=4, replies=2, seed=0)
    how = dict(template=template, max_new_tokens=4, max_rows=8)
    sampler = Sampler(make_models(tokenizer), rewards, rows, settings_of(), **how)
    before = rewards.state_dict()
    answers = sampler.answers(tasks)
    assert rewards.state_dict() == before and all(answer.score is not None for answer in answers)
    assert [a.reply == b.reply for a, b in zip(answers[::2], answers[1::2], strict=True)] == [True] * 4
    sampler(tasks)
    assert rewards.state_dict() != before


# Several processes


def torchrun(data, folder, reward, name, **changes):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=0"]
    command += ["--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    command += [str(REPOSITORY / "train_rl.py"), *argv(data, folder, reward, name, **changes)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return data / name


@pytest.mark.parametrize("fsdp", ["full_shard", pytest.param("", marks=pytest.mark.slow)])
def test_two_processes_do_what_one_does(quick, data, model_folder, fsdp):
    """Two gloo ranks, the policy's weights sharded by FSDP2, or its gradients summed as the value head's are: rollouts,
    history and weights are one process's, within what Adam makes of rounding."""
    settings = dict(max_steps=2, max_new_tokens=6, kl_coef=0.05, micro_batch_tokens=150, value_learning_rate=1e-2)
    one = go(data, model_folder, "varied", name="one", **settings)
    two = torchrun(data, model_folder, "varied", "two", **settings, **{"fsdp": fsdp} if fsdp else {})
    for ours, theirs in zip(history(one), history(two), strict=True):
        for name in ("reward", "kl", "length", "entropy", "grad_norm", "policy_loss", "value_loss"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3, abs=1e-5), name
    expected = weights(one)
    for name, tensor in weights(two).items():
        assert torch.allclose(tensor, expected[name], atol=2e-4), name


# What it refuses


def test_bad_input_is_one_line(data, model_folder, tokenizer):
    make_reward_model(data / "rm", tokenizer)
    (data / "long.txt").write_text("x" * 600 + "\n")
    (data / "empty.json").write_text(json.dumps([{"prompt": " "}]))
    refused = {
        "is no reward model": dict(reward=model_folder),
        "is a reward model": dict(model_name_or_path=data / "rm"),
        "raised KeyError": dict(reward=f"{data / 'rewards.py'}:raises"),
        "is no number": dict(reward=f"{data / 'rewards.py'}:words"),
        "do not fit in the model's context": dict(data_path=data / "long.txt"),
        "the prompt is empty": dict(data_path=data / "empty.json"),
        "no reward model whose tokenizer is the policy's": dict(value_model="reward"),
    }
    for said, changes in refused.items():
        with pytest.raises(UserError, match=said) as raised:
            go(data, model_folder, **changes)
        assert "\n" not in str(raised.value)
        assert not (data / "out" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        ("--num_generations 2 or more", dict(algorithm="grpo", num_generations=1)),
        ("is no multiple of", dict(algorithm="grpo", num_generations=3)),
        ("is for --algorithm ppo", dict(algorithm="grpo", target_kl=1)),
        ("cannot step weights that FSDP shards", dict(fsdp="full_shard", optim="adamw_bnb_8bit")),
        ("--fsdp 'half_shard' is unknown", dict(fsdp="half_shard")),
    ],
)
def test_flags_that_do_not_fit_exit_with_2(data, model_folder, capsys, said, changes):
    with pytest.raises(SystemExit, match="2"):
        train_rl.parse_args(argv(data, model_folder, **changes))
    assert said in capsys.readouterr().err


def test_other_settings_and_no_memory(quick, data, model_folder, monkeypatch):
    """A device that is full says which flags help; what was saved stays, and other settings on top of it are refused by
    name."""
    from alignment.training import rl_update

    def full(models, rollouts, settings, kl_coef, step):
        if step == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return update(models, rollouts, settings, kl_coef, step)

    monkeypatch.setattr(rl_update, "update", full)
    with pytest.raises(UserError, match="--micro_batch_tokens"):
        go(data, model_folder, save_steps=1)
    assert (data / "out" / "checkpoint-1").exists()
    with pytest.raises(UserError, match="--kl_coef is 0.5, was 0.05"):
        go(data, model_folder, save_steps=1, kl_coef=0.5)
    assert (data / "out" / "checkpoint-1").exists()


def test_a_tokenizer_without_padding_gets_one(quick, data, tmp_path):
    tokenizer = make_tokenizer(pad=None)
    make_llama(len(tokenizer)).save_pretrained(tmp_path / "bare")
    tokenizer.save_pretrained(tmp_path / "bare")
    assert (go(data, tmp_path / "bare", max_steps=1) / "model.safetensors").exists()


# Words


def lines(reward, length, kl, **more):
    return [{"reward": reward, "length": length, "kl": kl, "eos_rate": 0.5, **more}] * rl_monitor.WINDOW


def test_warnings_in_words():
    """A window as it was, one as it is: each rule fires by itself, and not where the reward does not climb."""
    calm = lines(0.0, 50, 1.0)
    assert rl_monitor.warnings(calm + lines(1.0, 60, 2.0)) == []
    (longer,) = rl_monitor.warnings(calm + lines(1.0, 100, 2.0, reward_length_correlation=0.9))
    assert "grow from 50 to 100 tokens" in longer and "0.90" in longer
    (away,) = rl_monitor.warnings(calm + lines(1.0, 50, 30.0))
    assert "KL runs away (1.0 -> 30.0" in away
    (cut,) = rl_monitor.warnings(calm + lines(1.0, 60, 2.0, eos_rate=0.02))
    assert "end by themselves fall from 50% to 2%" in cut
    assert rl_monitor.warnings(calm + lines(1.0, 60, 2.0, eos_rate=0.3)) == []
    assert rl_monitor.warnings(calm + lines(-1.0, 100, 30.0, eos_rate=0.0)) == []
    assert rl_monitor.warnings(calm + lines(1.0, 100, 30.0)[:-1]) == []
    (strange,) = rl_monitor.warnings(lines(0.0, 50, 1.0, outside_range=0.4))
    assert strange.startswith("40% of the rewards")
