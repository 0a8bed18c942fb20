"""The engines behind generation.py's contract, and the flags that choose one.

    vllm        vLLM in this process (the default), on GPUs or a CPU       vllm_sampling.py draws its tokens on a CPU
    hf          transformers in this process                              decoding.py does its work
    openai      any OpenAI-compatible server
    simulated   a seeded writer without a model, for dry runs and for algorithms with a known right answer

Importing this loads none of them.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from alignment.command_line import UserError, boolean, number
from alignment.generation import Engine
from alignment.pretrained import check_model

BACKENDS = ("vllm", "hf", "openai", "simulated")


def add_engine_arguments(parser: ArgumentParser) -> None:
    """The flags that every generating script shares."""
    group = parser.add_argument_group("engine")
    group.add_argument("--backend", choices=BACKENDS, help="what runs the model (default: vllm)")
    group.add_argument("--use_hf", type=boolean, nargs="?", const=True, default=False, help="the same as --backend hf")
    group.add_argument("--n_gpu", type=number(int, 1), default=1, help="GPUs to spread the model over (default: 1)")
    shown = "vllm: share of each GPU's memory, less where a reward model is to fit beside it (default: 0.9, vLLM's own)"
    memory = number(float, 0, 1, above=True)
    group.add_argument("--gpu_memory_utilization", type=memory, default=0.9, help=shown)
    group.add_argument("--cache_dir", type=Path, help="where models from the hub are kept (default: the hub's own)")
    group.add_argument("--api_base", help="openai: the server's address, http://host:port/v1; key from OPENAI_API_KEY")
    group.add_argument(
        "--concurrency", type=number(int, 1), default=64, help="openai: requests in flight (default: 64)"
    )
    shown = "openai: seconds for a try of a request, to its last byte; tried 3 times (default: 600)"
    group.add_argument("--timeout", type=number(float, 0, above=True), default=600, help=shown)
    shown = "tries more, with other seeds, for a reply that does not follow a request's JSON schema (default: 3)"
    group.add_argument("--schema_retries", type=number(int, 0), default=3, help=shown)


def backend_of(args: Namespace) -> str:
    """The backend that the flags name. Raises UserError where they contradict each other."""
    if args.use_hf and args.backend not in (None, "hf"):
        raise UserError(f"--use_hf and --backend {args.backend} contradict each other; give one of them")
    return "hf" if args.use_hf else args.backend or "vllm"


def models_read(args: Namespace) -> list[str]:
    """The models whose files this machine reads: none with a server or a simulated writer."""
    return [args.model_name_or_path] if backend_of(args) in ("vllm", "hf") else []


def engine_from(args: Namespace) -> Engine:
    """The engine that the flags name. Raises UserError for a model or server that cannot be used."""
    backend = backend_of(args)
    if not args.model_name_or_path:
        raise UserError("--model_name_or_path is missing")
    if backend == "openai":
        from alignment.engines.openai import OpenAIEngine

        return OpenAIEngine(args.model_name_or_path, args.api_base, args.concurrency, args.timeout)
    if backend == "simulated":
        from alignment.engines.simulated import SimulatedEngine

        return SimulatedEngine(args.model_name_or_path)
    check_model(args.model_name_or_path)
    if backend == "vllm":
        from alignment.engines.vllm import VllmEngine

        return VllmEngine(args.model_name_or_path, args.n_gpu, args.cache_dir, args.gpu_memory_utilization)
    from alignment.engines.hf import HfEngine

    return HfEngine(args.model_name_or_path, args.n_gpu, args.cache_dir, args.batch_size)
