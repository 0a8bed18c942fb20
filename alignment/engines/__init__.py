"""The engines behind generation.py's contract, and the flags that choose one.

    vllm        vLLM in this process (the default), on GPUs or a CPU       vllm_failures.py tells why it ended,
                                                                           vllm_sampling.py draws its tokens on a CPU
    hf          transformers in this process                              decoding.py does its work
    openai      any OpenAI-compatible server
    ray         replicas of vllm, hf or simulated on a Ray cluster
    simulated   a seeded writer without a model, for dry runs and for algorithms with a known right answer; with the
                name `judge` it grades, biased as it is set

Importing this loads none of them.
"""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any

from alignment.command_line import UserError, boolean, number
from alignment.generation import Engine
from alignment.limits import Limited, add_limit_arguments
from alignment.pretrained import check_policy

BACKENDS = ("vllm", "hf", "openai", "simulated", "ray")
REPLICATED = ("vllm", "hf", "simulated")
DTYPES = ("float32", "float16", "bfloat16")


def add_engine_arguments(parser: ArgumentParser) -> None:
    """The flags that every generating script shares."""
    group = parser.add_argument_group("engine")
    group.add_argument("--backend", choices=BACKENDS, help="what runs the model (default: vllm)")
    group.add_argument("--use_hf", type=boolean, nargs="?", const=True, default=False, help="the same as --backend hf")
    group.add_argument("--n_gpu", type=number(int, 1), default=1, help="GPUs to spread the model over (default: 1)")
    shown = "vllm: share of each GPU's memory, less where a reward model is to fit beside it (default: 0.9, vLLM's own)"
    memory = number(float, 0, 1, above=True)
    group.add_argument("--gpu_memory_utilization", type=memory, default=0.9, help=shown)
    shown = "vllm, hf: tokens at most of a prompt and its reply (default: the model's own context; with vllm less where"
    group.add_argument("--max_model_len", type=number(int, 1), help=f"{shown} the memory does not hold it)")
    shown = "vllm, hf: what the model computes in (default: the checkpoint's own; hf without a GPU: float32)"
    group.add_argument("--dtype", choices=DTYPES, help=shown)
    group.add_argument("--cache_dir", type=Path, help="where models from the hub are kept (default: the hub's own)")
    group.add_argument("--api_base", help="openai: the server's address, http://host:port/v1; key from OPENAI_API_KEY")
    shown = "openai: requests in flight (default: 256, as many as vLLM runs at once on most GPUs)"
    group.add_argument("--concurrency", type=number(int, 1), default=256, help=shown)
    shown = "openai: seconds for a try of a request, to its last byte; tried 3 times (default: 600)"
    group.add_argument("--timeout", type=number(float, 0, above=True), default=600, help=shown)
    shown = "ray: the head node's host:port, or auto on a node of the cluster (default: auto)"
    group.add_argument("--ray_address", default="auto", metavar="ADDRESS", help=shown)
    shown = "ray: what runs the model in each replica (default: vllm)"
    group.add_argument("--ray_engine", choices=REPLICATED, help=shown)
    shown = (
        "ray: replicas, each of --n_gpu GPUs, or of a CPU where the cluster has no GPU (default: all it has room for)"
    )
    group.add_argument("--replicas", type=number(int, 1), metavar="N", help=shown)
    shown = "tries more, with other seeds, for a reply that does not follow a request's JSON schema (default: 3)"
    group.add_argument("--schema_retries", type=number(int, 0), default=3, help=shown)
    add_limit_arguments(parser)


def backend_of(args: Namespace) -> str:
    """The backend that the flags name. Raises UserError where they contradict each other."""
    if args.use_hf and args.backend not in (None, "hf"):
        raise UserError(f"--use_hf and --backend {args.backend} contradict each other; give one of them")
    return "hf" if args.use_hf else args.backend or "vllm"


def models_read(args: Namespace) -> list[str]:
    """The models whose files this machine reads: none with a server or a simulated writer."""
    backend = backend_of(args)
    runs = args.ray_engine or "vllm" if backend == "ray" else backend
    return [args.model_name_or_path] if runs in ("vllm", "hf") else []


def engine_from(args: Namespace) -> Engine:
    """The engine that the flags name, within its limits, or what stands in for it while a plan is made; a flag that
    `args` lacks has its default. Raises UserError for a model or server that cannot be used."""
    args = Namespace(**defaults() | vars(args))
    if not args.model_name_or_path:
        raise UserError("--model_name_or_path is missing")
    engine = unlimited(args)
    if args.plan:
        from alignment.engines.rehearsal import Rehearsed

        return Rehearsed(args.plan, engine, args, backend_of(args))
    if args.budget_tokens or args.max_hours:
        return Limited(engine, budget=args.budget_tokens, hours=args.max_hours)
    return engine


def unlimited(args: Namespace) -> Engine:
    """The engine itself."""
    backend = backend_of(args)
    if backend == "ray" and args.plan and args.plan.hardware:  # the cluster need not be there
        return unlimited(Namespace(**vars(args) | {"backend": args.ray_engine or "vllm"}))
    if backend == "ray":
        from alignment.engines.ray import RayEngine

        args.ray_engine = args.ray_engine or "vllm"
        without = {"backend": args.ray_engine, "plan": False, "budget_tokens": None, "max_hours": None}
        made = partial(engine_from, Namespace(**vars(args) | without))
        return RayEngine(args, made(), made)
    if backend == "openai":
        from alignment.engines.openai import OpenAIEngine

        return OpenAIEngine(args.model_name_or_path, args.api_base, args.concurrency, args.timeout)
    if backend == "simulated":
        from alignment.engines.simulated import SimulatedEngine
        from alignment.engines.simulated_judge import SimulatedJudge

        named = args.model_name_or_path.partition("?")[0]
        return (SimulatedJudge if named == "judge" else SimulatedEngine)(args.model_name_or_path)
    check_policy(args.model_name_or_path, args.cache_dir)
    settings = {"max_model_len": args.max_model_len, "dtype": args.dtype}
    if backend == "vllm":
        from alignment.engines.vllm import VllmEngine

        settings |= {"gpu_memory_utilization": args.gpu_memory_utilization}
        return VllmEngine(args.model_name_or_path, args.n_gpu, args.cache_dir, **settings)
    from alignment.engines.hf import HfEngine

    return HfEngine(args.model_name_or_path, args.n_gpu, args.cache_dir, args.batch_size, **settings)


def defaults() -> dict[str, Any]:
    """The engine's flags as they are where none is given."""
    parser = ArgumentParser()
    add_engine_arguments(parser)
    return vars(parser.parse_args([]))
