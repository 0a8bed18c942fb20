"""vLLM in this process as the sampler of a policy in training: token ids in; ids and their log-probabilities out.

    engine = VllmPolicy("outputs/sft", dtype="float32", temperature=1.0, max_rows=64)
    found = engine.replies(prompts, seeds, max_tokens=256, end_id=2, weights=plain_weights(policy))

Between calls it sleeps where the platform can, its memory the trainer's. Weights go from process memory to process
memory, which is why there is one process only. Whether they arrived is for who asked to find out, from the
log-probabilities: on vLLM's CPU build `reload_weights` leaves a tied head's old copy in place, and raises nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from torch import Tensor

from alignment.command_line import UserError
from alignment.engines.vllm import VllmEngine, import_vllm
from alignment.pretrained import first_line, local_folder

MEMORY = 0.3  # of a GPU while awake, for weights and cache: the trainer's own models stay where they are. Our choice


class VllmPolicy:
    """The model of a folder or hub name, awake only while it replies, at most `max_rows` replies together."""

    def __init__(self, model: str, *, dtype: str, temperature: float, max_rows: int, cache_dir: str | None = None):
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # another process would be sent a copy of all weights
        os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # the trainer's threads are these
        llm, platform = import_vllm("--rollouts decoding")
        self._temperature, self._sleeps = temperature, platform.is_sleep_mode_available()
        on_cpu = {"enforce_eager": True}  # compiling takes a minute
        try:
            self._llm = llm(
                model=str(local_folder(model, cache_dir) or model),
                **({"download_dir": str(cache_dir)} if cache_dir else {}),
                **(on_cpu if platform.is_cpu() else {"gpu_memory_utilization": MEMORY}),
                dtype=dtype,
                **VllmEngine.AS_TRANSFORMERS,
                logprobs_mode="processed_logprobs",  # of what was sampled from, at the temperature
                max_num_seqs=max_rows,
                max_model_len=-1,
                enable_sleep_mode=self._sleeps,
                enable_prefix_caching=True,  # replies to one prompt share it
                trust_remote_code=False,
                seed=0,
                use_tqdm_on_load=False,
            )
        except (OSError, ValueError) as error:
            raise UserError(f"vllm cannot load {model}: {first_line(error)}; give --rollouts decoding") from error
        self._sleep()

    def close(self) -> None:
        """Give back its memory and process groups, before the trainer ends its own."""
        self._llm.llm_engine.engine_core.shutdown()

    def _sleep(self) -> None:
        if self._sleeps:
            self._llm.sleep(level=1)

    def replies(
        self,
        prompts: Sequence[list[int]],
        seeds: Sequence[int],
        *,
        max_tokens: int,
        end_id: int,
        weights: Iterable[tuple[str, Tensor]] | None,
    ) -> list[tuple[list[int], bool, list[float]]]:
        """(ids, ended, log-probability of each id) of a reply to each prompt, in order; `end_id` alone ends one, and is
        its last id then. `weights` replace the model's first, named as its checkpoint names them; None keeps them."""
        from vllm import SamplingParams, TokensPrompt

        if self._sleeps:
            self._llm.wake_up()
        if weights is not None:
            self._take(weights)
        params = [
            SamplingParams(
                max_tokens=max_tokens,
                temperature=self._temperature,
                seed=seed,
                logprobs=0,  # the sampled token's alone
                stop_token_ids=[end_id],
                ignore_eos=True,  # generation_config.json knows others
                detokenize=False,
            )
            for seed in seeds
        ]
        outputs = self._llm.generate([TokensPrompt(prompt_token_ids=ids) for ids in prompts], params, use_tqdm=False)
        self._sleep()
        found = []
        for output in outputs:
            completion = output.outputs[0]
            assert completion.finish_reason in ("stop", "length"), completion.finish_reason
            ids = list(completion.token_ids)
            logps = [of_place[token].logprob for of_place, token in zip(completion.logprobs, ids, strict=True)]
            found.append((ids, completion.finish_reason == "stop", logps))
        return found

    def _take(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Replace the model's weights, and forget the keys and values that the old ones made of prompts."""
        try:
            self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": iter(weights)})
        except (KeyError, ValueError) as error:
            raise UserError(
                f"vllm does not take the policy's weights ({first_line(error)}); give --rollouts decoding"
            ) from error
        self._llm.reset_prefix_cache()
