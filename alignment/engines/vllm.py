"""vLLM in this process, on GPUs or a CPU."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from alignment.command_line import UserError
from alignment.generation import Reply, Request, Sampling
from alignment.pretrained import local_folder, model_identity


class VllmEngine:
    """vLLM in this process. It always has thousands of requests to choose from; each is yielded as it finishes."""

    IN_FLIGHT = 4_096  # more than any scheduler runs at once
    # Prefilled in pieces, a request would use up numbers for tokens that vLLM discards. Compiling takes a minute and
    # brings a seventh in speed.
    ON_CPU = {
        "enable_chunked_prefill": False,
        "enforce_eager": True,
        "logits_processors": ["alignment.engines.vllm_sampling:Choose"],
    }

    def __init__(self, model: str, n_gpu: int, cache_dir: Path | None):
        self.identity = f"vllm {model_identity(model)}"
        self._settings = {"model": model, "tensor_parallel_size": n_gpu}
        if cache_dir:  # vLLM looks there for weights alone
            self._settings["model"] = str(local_folder(model, cache_dir) or model)
            self._settings["download_dir"] = str(cache_dir)
        self._llm = None

    def _load(self):
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
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
            raise UserError(f"vllm cannot be imported ({error}); install it, or give --backend hf") from None
        self._on_cpu = current_platform.is_cpu()
        try:
            # The requests' own seeds decide. Prefix caching computes the few-shot header once. -1: the model's whole
            # context, or as much of it as the memory allows.
            return LLM(
                **self._settings,
                **(self.ON_CPU if self._on_cpu else {}),
                seed=0,
                enable_prefix_caching=True,
                max_model_len=-1,
                use_tqdm_on_load=False,
            )
        except OSError as error:  # what transformers raises for a name that neither disk nor hub has
            raise UserError(f"model {self._settings['model']}: {str(error).splitlines()[0]}") from None

    def complete(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, Reply]]:
        self._llm = self._llm or self._load()
        from vllm import SamplingParams, TokensPrompt

        engine, tokenizer = self._llm.llm_engine, self._llm.get_tokenizer()
        context = self._llm.model_config.max_model_len
        waiting = iter(enumerate(requests))
        while True:
            fresh = list(islice(waiting, self.IN_FLIGHT - engine.get_num_unfinished_requests()))
            for index, request in fresh:
                ids = tokenizer(request.prompt)["input_ids"]
                room = context - len(ids)
                if room < 1:
                    yield index, Reply(None, "too long")
                    continue
                params = SamplingParams(
                    max_tokens=min(sampling.max_tokens, room),
                    temperature=sampling.temperature,
                    stop=list(sampling.stop),
                    **self._draw(request.seed, sampling),
                )
                engine.add_request(str(index), TokensPrompt(prompt_token_ids=ids), params)
            if not engine.has_unfinished_requests():
                if fresh:
                    continue  # all were too long
                return
            for output in engine.step():
                if output.finished:
                    completion = output.outputs[0]
                    yield int(output.request_id), Reply(completion.text, completion.finish_reason)

    def _draw(self, seed: int, sampling: Sampling) -> dict:
        if self._on_cpu and sampling.temperature > 0:
            return {"extra_args": {"seed": seed, "top_p": sampling.top_p}}  # alignment/engines/vllm_sampling.py
        return {"seed": seed, "top_p": sampling.top_p}
