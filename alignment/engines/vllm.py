"""vLLM in this process, on GPUs or a CPU."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from alignment.command_line import UserError
from alignment.engines.prompts import cut_reply, identity, prompt_ids
from alignment.engines.vllm_failures import guard, overheard, text_of, watched, why
from alignment.generation import Reply, Request, Sampling
from alignment.pretrained import first_line, local_folder, warn_of_unseen_gpu

AT_ONCE = 256  # requests encoded together, and handed over between two steps


class VllmEngine:
    """vLLM in this process. It always has thousands of requests to choose from; each is yielded as it finishes."""

    IN_FLIGHT = 4_096  # more than any scheduler runs at once
    # Of the files of Mistral's own repositories vLLM would take others, and a tokenizer that spells special tokens of a
    # text, as [INST], in letters.
    AS_TRANSFORMERS = {
        "tokenizer_mode": "hf",
        "config_format": "hf",
        "load_format": "hf",
        "ignore_patterns": ["original/**/*", "consolidated*"],  # not downloaded
    }
    # Between the parts of JSON a small model writes blanks without end. This way of vLLM's to decode under a schema can
    # do without them, and takes all that a schema may hold.
    COMPACT = {"backend": "guidance", "disable_any_whitespace": True}
    # Prefilled in pieces, a request would use up numbers for tokens that vLLM discards. Compiling takes a minute and
    # brings a seventh in speed.
    ON_CPU = {
        "enable_chunked_prefill": False,
        "enforce_eager": True,
        "logits_processors": ["alignment.engines.vllm_sampling:Choose"],
    }

    def __init__(
        self,
        model: str,
        n_gpu: int,
        cache_dir: Path | None,
        *,
        gpu_memory_utilization: float = 0.9,
        max_model_len: int | None = None,
        dtype: str | None = None,
    ):
        self.identity = identity("vllm", model, max_model_len, dtype)
        self._name, self._memory = model, gpu_memory_utilization
        self._settings: dict[str, Any] = {
            "model": str(local_folder(model, cache_dir) or model) if cache_dir else model,
            "tensor_parallel_size": n_gpu,
            "max_model_len": max_model_len or -1,  # -1: the model's, or as much of it as the memory holds
            "dtype": dtype or "auto",
            **self.AS_TRANSFORMERS,
        }
        if cache_dir:  # vLLM looks there for weights alone
            self._settings["download_dir"] = str(cache_dir)
        check_weights(local_folder(model, cache_dir))
        self._llm: Any = None

    def _load(self) -> Any:
        llm, platform = import_vllm("--backend hf")
        from vllm.exceptions import VLLMError

        self._on_cpu = platform.is_cpu()
        if self._on_cpu:
            warn_of_unseen_gpu()  # on a GPU torch must not touch it before vLLM does
        else:
            tqdm.write("vllm: loading and compiling, which takes minutes the first time")
        guard()
        try:
            with overheard() as self._said:
                # The requests' own seeds decide. Prefix caching computes the few-shot header once.
                found = llm(
                    **self._settings,
                    **(self.ON_CPU if self._on_cpu else {"gpu_memory_utilization": self._memory}),
                    trust_remote_code=False,
                    seed=0,
                    enable_prefix_caching=True,
                    structured_outputs_config=self.COMPACT,
                    use_tqdm_on_load=False,
                )
        except (OSError, ValueError, RuntimeError, VLLMError) as error:
            reason = why(error, text_of(self._said))
            raise UserError(f"vllm cannot run {self._name}: {reason}") from error
        self._cores, self._tokenizer = watched(found), found.get_tokenizer()
        tqdm.write(f"vllm: {found.model_config.max_model_len:,} tokens at most of a prompt and its reply")
        return found

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        self._llm = self._llm or self._load()
        from vllm.exceptions import VLLMClientError
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield from self._complete(requests, sampling)
        except VLLMClientError as error:  # no grammar can be made of the schema, or the model has no such id
            raise UserError(f"vllm refuses the request: {first_line(error)}") from error
        except EngineDeadError as error:
            reason = why(error, text_of(self._said), self._cores)
            raise UserError(f"vllm died: {reason}; the same command goes on from what is finished") from error

    def _complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        """Some requests are handed over between two steps, so that the first of them run while others are encoded."""
        from vllm.inputs import tokens_input

        engine, context = self._llm.llm_engine, self._llm.model_config.max_model_len
        waiting = encoded(self._tokenizer, requests)
        while True:
            fresh = list(islice(waiting, min(AT_ONCE, self.IN_FLIGHT - engine.get_num_unfinished_requests())))
            for index, ids, ends in fresh:
                room = context - len(ids)
                if room < 1 or not ids:
                    yield index, Reply(None, "too long" if ids else "refused: a prompt without a token")
                    continue
                params = self._params(requests[index].seed, sampling, room, ends)
                engine.add_request(str(index), tokens_input(ids), params)
            if engine.has_unfinished_requests():
                for output in engine.step():
                    if output.finished:
                        yield int(output.request_id), reply_of(output.outputs[0], self._tokenizer)
            elif not fresh:
                return

    def _params(self, seed: int, sampling: Sampling, room: int, ends: Collection[int]) -> Any:
        """vLLM's own settings for a request. What it finds in generation_config.json it adds to the ids that end."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

        structured = None if sampling.schema is None else StructuredOutputsParams(json=json.dumps(sampling.schema))
        return SamplingParams(
            max_tokens=min(sampling.max_tokens, room),
            temperature=sampling.temperature,
            stop=list(sampling.stop),
            stop_token_ids=[*sampling.stop_ids, *ends],
            repetition_penalty=sampling.repetition_penalty,
            structured_outputs=structured,
            output_kind=RequestOutputKind.FINAL_ONLY,
            skip_clone=True,  # nobody else has it
            **self._draw(seed, sampling),
        )

    def _draw(self, seed: int, sampling: Sampling) -> dict:
        if self._on_cpu and sampling.temperature > 0:
            return {"extra_args": {"seed": seed, "top_p": sampling.top_p}}  # alignment/engines/vllm_sampling.py
        return {"seed": seed, "top_p": sampling.top_p}


def check_weights(folder: Path | None) -> None:
    """Raise UserError for weights in Mistral's spelling beside the others where no index tells them apart, since vLLM
    would load both."""
    if folder is None or (folder / "model.safetensors.index.json").is_file():
        return
    twice = sorted(folder.glob("consolidated*.safetensors"))
    if twice and (folder / "model.safetensors").is_file():
        told = f"{folder} holds its weights twice, of which vLLM would load both"
        raise UserError(f"{told}; move {twice[0].name} out of it")


def import_vllm(instead: str) -> tuple[Any, Any]:
    """vLLM's LLM and the platform that it is built for, its environment set where the user's has nothing. Raises
    UserError where it cannot be imported; `instead` is the flag that does without."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("VLLM_USE_FLASHINFER_SAMPLER", "0")  # it needs nvcc, and is never used with seeds
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "4")  # GiB; this and the next are read by the CPU build only
    if (os.cpu_count() or 1) < 4:
        os.environ.setdefault("VLLM_CPU_NUM_OF_RESERVED_CPU", "0")  # it would leave one of two cores idle
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTHONWARNINGS", "ignore")  # of vLLM's own processes
    try:
        from vllm import LLM
        from vllm.platforms import current_platform
    except ImportError as error:
        raise UserError(f"vllm cannot be imported ({error}); install it, or give {instead}") from None
    return LLM, current_platform


def encoded(tokenizer: Any, requests: Sequence[Request]) -> Iterator[tuple[int, list[int], Collection[int]]]:
    """(index, prompt's ids, ids that end its reply) of each request, tokenised some at a time."""
    for start in range(0, len(requests), AT_ONCE):
        some = requests[start : start + AT_ONCE]
        prompts, ends = prompt_ids(tokenizer, some)
        for index, (request, ids) in enumerate(zip(some, prompts, strict=True), start):
            yield index, ids, ends if request.is_chat else ()


def reply_of(completion: Any, tokenizer: Any) -> Reply:
    """What vLLM's CompletionOutput says: its ids end with the one that ended it, or with a stop string's."""
    if completion.finish_reason not in ("stop", "length"):
        return Reply(None, f"failed: vllm ended it with {completion.finish_reason!r}")
    ids, ended_by = list(completion.token_ids), completion.stop_reason  # a stop string, one of stop_token_ids, or EOS
    if isinstance(ended_by, str):
        ids = cut_reply(tokenizer, ids, [ended_by])[1]
    elif completion.finish_reason == "stop":
        ids.pop()
    return Reply(completion.text, completion.finish_reason, tuple(ids))
