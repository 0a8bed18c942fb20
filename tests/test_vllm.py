"""The vllm engine around a vLLM that is made here: what it is given and told, and what is left when it fails.

The real one is asked in test_engines_real.py and test_vllm_sampling.py.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from argparse import Namespace
from queue import Queue
from types import ModuleType, SimpleNamespace

import pytest

from alignment.command_line import REPOSITORY, UserError
from alignment.engines import add_engine_arguments, engine_from
from alignment.engines.vllm import AT_ONCE, VllmEngine, import_vllm
from alignment.engines.vllm_failures import overheard, text_of, watched, why
from alignment.generation import Request, Sampling, generate, refuse_failures
from alignment.journal import Journal
from alignment.pretrained import load_tokenizer

REQUESTS = [Request(f"Say {index}.", index) for index in range(20)]
SAMPLING = Sampling(max_tokens=8, temperature=0.7, top_p=0.9, stop=("Human:",))


class EngineDeadError(Exception):
    pass


class ClientError(Exception):
    pass


class Core:
    """Answers one request a step, with "yes". The requests after `aborts_after` are aborted with half an answer, the
    step after `dies_after` answers finds the engine dead."""

    def __init__(self, llm):
        self.llm, self.engine_core, self.waiting, self.answered = llm, SimpleNamespace(), [], 0
        self.added, self.at_first_step, self.most = [], None, 0

    def get_num_unfinished_requests(self):
        return len(self.waiting)

    def has_unfinished_requests(self):
        return bool(self.waiting)

    def add_request(self, name, prompt, params):
        if self.llm.refuses:
            raise ClientError("no grammar\nof this")
        self.waiting.append(name)
        self.added.append((prompt, params))

    def step(self):
        self.at_first_step = self.at_first_step or len(self.added)
        self.most = max(self.most, len(self.waiting))
        if self.answered == self.llm.dies_after:
            raise EngineDeadError("EngineCore encountered an issue. See stack trace (above) for the root cause.")
        self.answered += 1
        ended = self.answered > self.llm.aborts_after
        text, finish = ("ye", "abort") if ended else ("yes", "length")
        reply = SimpleNamespace(text=text, token_ids=[1], finish_reason=finish, stop_reason=None)
        return [SimpleNamespace(request_id=self.waiting.pop(0), finished=True, outputs=[reply])]


class LLM:
    made, fails, on_cpu = [], None, False
    aborts_after = dies_after = 1 << 20
    refuses = False

    def __init__(self, **settings):
        if self.fails:
            raise self.fails
        self.settings, self.llm_engine = settings, Core(self)
        self.model_config = SimpleNamespace(max_model_len=512)
        LLM.made.append(self)

    def get_tokenizer(self):
        return load_tokenizer(self.settings["model"])


@pytest.fixture
def fake(monkeypatch):
    """The class LLM, in the place of vLLM's, its settings and the environment restored afterwards."""
    kept = {"made": [], "fails": None, "on_cpu": False, "aborts_after": 1 << 20, "dies_after": 1 << 20}
    for name, value in {**kept, "refuses": False}.items():
        monkeypatch.setattr(LLM, name, value)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("alignment.engines.vllm.guard", lambda: None)
    members = {
        "vllm": {"LLM": LLM, "SamplingParams": SimpleNamespace},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: LLM.on_cpu)},
        "vllm.exceptions": {"VLLMError": ClientError, "VLLMClientError": ClientError},
        "vllm.inputs": {"tokens_input": lambda ids: {"type": "token", "prompt_token_ids": ids}},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(FINAL_ONLY="final only"),
            "StructuredOutputsParams": SimpleNamespace,
        },
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
    }
    for name, values in members.items():
        module = ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return LLM


def ask(model, requests=REQUESTS, **settings):
    engine = VllmEngine(str(model), 1, None, **settings)
    return [reply for _, reply in sorted(engine.complete(requests, SAMPLING))]


def run(model, tmp_path):
    with Journal(tmp_path / "out.json") as journal:
        engine = VllmEngine(str(model), 1, None)
        return generate(engine, REQUESTS, SAMPLING, journal=journal, label="test")


def journalled(tmp_path):
    return (tmp_path / "out.json.journal.jsonl").read_text().splitlines()


# What it is given


def flags(*words, model):
    from alignment.command_line import ArgumentParser

    parser = ArgumentParser("test")
    add_engine_arguments(parser)
    args = parser.parse_args([str(word) for word in words])
    return Namespace(**vars(args), model_name_or_path=str(model), batch_size=4)


def test_the_flags_reach_vllm(fake, model_folder, capsys):
    """And it reads a folder as transformers does, whatever else is in it."""
    list(engine_from(flags(model=model_folder)).complete(REQUESTS[:1], SAMPLING))
    words = "--max_model_len 64 --dtype bfloat16 --n_gpu 2 --gpu_memory_utilization 0.5".split()
    list(engine_from(flags(*words, model=model_folder)).complete(REQUESTS[:1], SAMPLING))
    names = "max_model_len dtype tensor_parallel_size gpu_memory_utilization".split()
    names += ["tokenizer_mode", "config_format", "load_format"]
    found = [[llm.settings[name] for name in names] for llm in fake.made]
    assert found == [[-1, "auto", 1, 0.9, *["hf"] * 3], [64, "bfloat16", 2, 0.5, *["hf"] * 3]]
    said = capsys.readouterr().out.splitlines()
    assert said[:2] == [
        "vllm: loading and compiling, which takes minutes the first time",
        "vllm: 512 tokens at most of a prompt and its reply",
    ]
    assert len(said) == 4


def test_on_a_cpu_nothing_is_compiled(fake, model_folder, capsys):
    fake.on_cpu = True
    ask(model_folder)
    assert fake.made[0].settings["enforce_eager"] and "gpu_memory_utilization" not in fake.made[0].settings
    assert capsys.readouterr().out == "vllm: 512 tokens at most of a prompt and its reply\n"


def test_a_flag_that_changes_replies_is_part_of_the_identity(model_folder):
    plain, short, half = (
        engine_from(flags(*words, model=model_folder)).identity
        for words in ([], ["--max_model_len", "64"], ["--dtype", "float16"])
    )
    assert (short, half) == (f"{plain} max_model_len=64", f"{plain} dtype=float16")


def test_an_engine_takes_the_defaults_of_flags_that_a_script_lacks(model_folder):
    args = Namespace(model_name_or_path=str(model_folder), backend="vllm")
    assert engine_from(args).identity == engine_from(flags(model=model_folder)).identity


def test_flashinfers_sampler_is_off_before_vllm_is_imported(fake):
    for given, found in ((None, "0"), ("1", "1")):
        os.environ.pop("VLLM_USE_FLASHINFER_SAMPLER", None)
        os.environ.update({"VLLM_USE_FLASHINFER_SAMPLER": given} if given else {})
        import_vllm("--backend hf")
        assert os.environ["VLLM_USE_FLASHINFER_SAMPLER"] == found


def test_the_first_step_waits_for_some_requests_only(fake, model_folder, monkeypatch):
    """Which are handed over as ids, and of which vLLM sends the end alone. Never more are in flight than it may be."""
    monkeypatch.setattr(VllmEngine, "IN_FLIGHT", 2 * AT_ONCE)
    requests = [Request(f"Say {index}.", index) for index in range(4 * AT_ONCE)]
    assert [reply.text for reply in ask(model_folder, requests)] == ["yes"] * len(requests)
    core = fake.made[0].llm_engine
    assert core.at_first_step == AT_ONCE and core.most == 2 * AT_ONCE
    tokenizer = load_tokenizer(str(model_folder))
    assert [prompt["prompt_token_ids"] for prompt, _ in core.added] == tokenizer([r.prompt for r in requests])[
        "input_ids"
    ]
    assert {params.output_kind for _, params in core.added} == {"final only"}
    assert [params.seed for _, params in core.added] == list(range(len(requests)))


# What is left when it fails


def test_what_vllm_aborts_is_no_answer(fake, model_folder, tmp_path):
    """Its partial text is in neither replies nor journal; the command fails, and the next one asks for these alone."""
    fake.aborts_after = 5
    replies = run(model_folder, tmp_path)
    assert [reply.text for reply in replies] == ["yes"] * 5 + [None] * 15
    assert len(journalled(tmp_path)) == 5
    with pytest.raises(UserError, match="15 requests failed .*abort.*; the same command tries these again"):
        refuse_failures(replies)
    fake.aborts_after = 1 << 20
    assert [reply.text for reply in run(model_folder, tmp_path)] == ["yes"] * 20
    assert len(fake.made[-1].llm_engine.added) == 15


def test_a_dead_engine_is_one_line_and_nothing_is_lost(fake, model_folder, tmp_path):
    fake.dies_after = 7
    with pytest.raises(UserError) as caught:
        run(model_folder, tmp_path)
    assert str(caught.value).startswith("vllm died: EngineCore encountered an issue.")
    assert str(caught.value).endswith("; the same command goes on from what is finished")
    assert "\n" not in str(caught.value) and len(journalled(tmp_path)) == 7


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError, ClientError])
def test_what_cannot_be_loaded_is_one_line(fake, model_folder, kind):
    fake.fails = kind(
        "1 validation error\n  Total number of attention heads (9) must be divisible by tensor parallel size (2)."
    )
    with pytest.raises(UserError) as caught:
        ask(model_folder)
    heads = "Total number of attention heads (9) must be divisible by tensor parallel size (2)"
    assert str(caught.value) == f"vllm cannot run {model_folder}: {heads}; change --n_gpu"


def test_a_request_that_vllm_refuses_ends_the_run(fake, model_folder):
    fake.refuses = True
    with pytest.raises(UserError, match="^vllm refuses the request: no grammar$"):
        ask(model_folder)


LOG = """(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1511] EngineCore failed to start.
(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1511] Traceback (most recent call last):
(EngineCore pid=7) ERROR 01-01 00:00:00 [core.py:1511] {}
Process EngineCore:
RuntimeError: cancelled
"""
FAILED = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}")


SEE_ALL = "VLLM_LOGGING_LEVEL=INFO shows what vLLM says"
ROOM = "give a smaller --max_model_len, a larger --gpu_memory_utilization, or more GPUs by --n_gpu"


@pytest.mark.parametrize(
    "cause, remedy",
    [
        (
            "Free memory on device cuda:0 (3.2/79.1 GiB) on startup is less than desired GPU memory utilization "
            "(0.9, 71.2 GiB)",
            "give a smaller --gpu_memory_utilization, or end what else uses the GPU",
        ),
        ("No available memory for the cache blocks", ROOM),
        (
            "To serve at least one request with the model's max seq len (131072), (16.00 GiB KV cache is needed, which "
            "is larger than the available KV cache memory (4.50 GiB)",
            ROOM,
        ),
        (
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "give a smaller --max_model_len or --gpu_memory_utilization, or more GPUs by --n_gpu",
        ),
        ("14 is not divisible by 4", "change --n_gpu"),
        ("World size (8) is larger than the number of available GPUs (1)", "give a smaller --n_gpu"),
        (
            "User-specified max_model_len (9000) is greater than the derived max_model_len (max_position_embeddings="
            "8192 or model_max_length=None in model's config.json)",
            "give a smaller --max_model_len",
        ),
        ("Bfloat16 is only supported on GPUs with compute capability of at least 8.0", "give --dtype float16"),
        ("The model type 'gemma2' does not support float16", "give --dtype bfloat16"),
    ],
)
def test_why_says_what_to_change(cause, remedy):
    """vLLM says it in a process of its own, or where it is called."""
    assert why(FAILED, LOG.format(f"ValueError: {cause}. Try this, that and the other.")) == f"{cause}; {remedy}"
    assert why(ValueError(f"1 validation error\n  Value error, {cause}. Or that."), "") == f"{cause}; {remedy}"


def test_why_names_the_first_cause_where_nothing_is_known():
    assert why(FAILED, LOG.format("models.Strange.ShapeError: no such layer")) == f"no such layer; {SEE_ALL}"
    assert why(FAILED, LOG.format("and no more")) == f"{FAILED}; {SEE_ALL}"


def test_what_vllms_processes_write_stays_off_the_terminal(fake, capfd):
    """Also what one of them writes later. A user who asks vLLM to speak sees all."""
    writes = "import sys, time; print('early', flush=True); sys.stdin.read(1); print('late', file=sys.stderr)"
    os.environ.pop("VLLM_LOGGING_LEVEL", None)
    with overheard() as said:
        child = subprocess.Popen([sys.executable, "-c", writes], stdin=subprocess.PIPE)
        os.write(2, b"ours\n")
    print("shown")
    child.communicate(b"x")
    assert sorted(text_of(said).split()) == ["early", "late", "ours"]
    assert capfd.readouterr() == ("shown\n", "")
    os.environ["VLLM_LOGGING_LEVEL"] = "INFO"
    with overheard() as said:
        os.write(2, b"ours\n")
    assert capfd.readouterr() == ("", "ours\n") and text_of(said) == ""


def test_a_process_that_is_killed_ends_the_wait_for_its_output(fake):
    core = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    core.start()
    manager = SimpleNamespace(processes=[core])
    client = SimpleNamespace(outputs_queue=Queue(), resources=SimpleNamespace(engine_manager=manager))
    cores = watched(SimpleNamespace(llm_engine=SimpleNamespace(engine_core=client)))
    assert client.outputs_queue.empty()
    os.kill(core.pid, signal.SIGKILL)
    error = client.outputs_queue.get(timeout=30)
    assert isinstance(error, EngineDeadError)
    assert why(error, "", cores) == "its process was killed by signal 9; is there memory enough?"


def test_weights_that_stand_twice_in_a_folder_are_refused(tmp_path):
    """vLLM would load consolidated.safetensors too, and know none of its names."""
    (tmp_path / "consolidated.safetensors").touch()
    VllmEngine(str(tmp_path), 1, None)  # Mistral's spelling alone is vLLM's to refuse
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="twice, of which vLLM would load both; move consolidated.safetensors out of"):
        VllmEngine(str(tmp_path), 1, None)
    (tmp_path / "model.safetensors.index.json").touch()
    VllmEngine(str(tmp_path), 1, None)  # an index tells which are loaded


ORPHAN = """
import multiprocessing, os, time
from alignment.engines.vllm_failures import guard
guard()
time.sleep(1)
core = multiprocessing.get_context("fork").Process(target=time.sleep, args=(90,))
core.start()
print(core.pid, flush=True)
time.sleep(1)
os.kill(os.getpid(), 9)
"""


def test_no_process_outlives_a_run_that_is_killed():
    """Nor one that starts after the guard, as vLLM's do while a model loads."""
    import psutil

    with subprocess.Popen([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, cwd=REPOSITORY) as killed:
        pid, deadline = int(killed.stdout.readline()), time.monotonic() + 30
        assert killed.wait() == -signal.SIGKILL
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)
