#!/usr/bin/env python
"""Attention over rows of mixed lengths: one kernel for all of them beside row by row, without padding and with it.

    python benchmarks/attention.py --dtype bfloat16                     # on a GPU; 7B heads, 16 rows
    python benchmarks/attention.py --dtype bfloat16 --kv_heads 8 --shared 256

One layer's attention, forward and backward. `row by row` is SDPA for each row, as torch chooses, with cuDNN's kernels
first, and without them; `at once` is what training does in 16 bits on CUDA; `padded` is SDPA on rows that are all as
long as the longest. Milliseconds: until all is done, and until Python may go on. The difference is the largest, of
outputs and of gradients, to row by row in fp32, over the largest value; where that of `at once` is over --tolerance,
this ends with 1.
"""

from __future__ import annotations

import argparse
import functools
import random
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from alignment.command_line import ArgumentParser, number, run, table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = ArgumentParser(__doc__)
    flag = parser.add_argument
    positive = number(int, 1)
    flag("--rows", type=positive, default=16, help="default 16")
    flag("--length", type=positive, default=1024, help="tokens of the longest row; default 1024")
    flag("--shared", type=number(int, 0), default=0, help="tokens that all rows begin with; default 0")
    flag("--heads", type=positive, default=32, help="default 32, Llama 7B's")
    flag("--kv_heads", type=positive, default=32, help="default 32; Llama 3 8B has 8")
    flag("--head_size", type=positive, default=128, help="default 128")
    flag("--window", type=positive, help="tokens each may see, itself included; default all before it")
    flag("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="default float32")
    flag("--repeats", type=positive, default=10, help="timed calls, of which the median counts; default 10")
    flag("--tolerance", type=number(float, 0), default=0.02, help="of the difference; default 0.02, for 16 bits")
    return parser.parse_args(argv)


def lengths_of(args: argparse.Namespace) -> list[int]:
    """The longest, and others from a quarter of it on."""
    draw = random.Random(0)
    least = max(args.length // 4, min(args.shared + 1, args.length))
    return [args.length, *(draw.randint(least, args.length) for _ in range(args.rows - 1))]


def main(args: argparse.Namespace) -> None:
    import torch
    import torch.nn.functional as F

    from alignment.training import unpadding

    device, dtype = "cuda" if torch.cuda.is_available() else "cpu", getattr(torch, args.dtype)
    lengths = lengths_of(args)
    draw = torch.Generator().manual_seed(0)
    ids = [torch.randint(10, 30_000, (length,), generator=draw) for length in lengths]
    for row in ids:
        row[: args.shared] = torch.arange(args.shared)
    rows = unpadding.shared_rows(torch.cat(ids).to(device), lengths)
    line = sum(lengths) if rows.kept is None else len(rows.kept)
    module = torch.nn.Module()
    module.num_key_value_groups, module.is_causal = args.heads // args.kv_heads, True

    def states(kind: torch.dtype) -> list:
        """Queries, keys and values (1, heads, M, d) of the line, the same numbers for any dtype, as leaves."""
        draw = torch.Generator().manual_seed(1)
        heads = (args.heads, args.kv_heads, args.kv_heads)
        made = [torch.randn(1, each, line, args.head_size, generator=draw).to(device, dtype) for each in heads]
        return [each.to(kind).requires_grad_() for each in made]

    slope = torch.randn(1, line, args.heads, args.head_size, generator=draw).to(device, dtype)

    def by_row(query, key, value, at_once: bool = False):
        kernel, unpadding.fits_kernel = unpadding.fits_kernel, lambda *_, **__: at_once
        try:
            return unpadding.attention_by_row(module, query, key, value, None, rows, args.window)[0]
        finally:
            unpadding.fits_kernel = kernel

    oracle = outputs_and_gradients(by_row, states(torch.float32), slope.float())
    shown, worst = [("way", "ms", "ms of Python", "difference")], 0.0
    for name, context in contexts(dtype):
        way = functools.partial(by_row, at_once=name == "at once")
        with context:
            off = difference(outputs_and_gradients(way, states(dtype), slope), oracle)
            times = milliseconds(way, states(dtype), slope, args.repeats)
        shown.append((name, *(f"{each:.3f}" for each in times), f"{off:.1e}"))
        worst = off if name == "at once" else worst
    if device == "cuda":
        heads = (args.heads, args.kv_heads, args.kv_heads)
        wide = [torch.randn(args.rows, each, args.length, args.head_size, device=device, dtype=dtype) for each in heads]
        way = functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=len(set(heads)) > 1)
        times = milliseconds(way, [each.requires_grad_() for each in wide], torch.ones_like(wide[0]), args.repeats)
        shown.append(("padded to the longest", *(f"{each:.3f}" for each in times), "-"))
    window = f", window {args.window}" if args.window else ""
    print(
        f"{args.rows} rows, {sum(lengths):,} tokens, {line:,} of them distinct; {args.heads}/{args.kv_heads} heads of "
        f"{args.head_size}{window}; {args.dtype} on {torch.cuda.get_device_name() if device == 'cuda' else 'a CPU'}"
    )
    print(table(shown))
    if not worst <= args.tolerance:
        print(f"at once differs by {worst:.2e}, more than {args.tolerance}")
        sys.exit(1)


def contexts(dtype: Any) -> list[tuple[str, Any]]:
    """Names of the ways that a line of rows can go here, and where each is to be run."""
    import torch
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if not torch.cuda.is_available():
        return [("row by row", nullcontext())]
    others = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
    at_once = [("at once", nullcontext())] if dtype != torch.float32 else []
    return [
        ("row by row", nullcontext()),
        ("row by row, cuDNN first", sdpa_kernel([SDPBackend.CUDNN_ATTENTION, *others], set_priority=True)),
        ("row by row, no cuDNN", sdpa_kernel(others)),
        *at_once,
    ]


def outputs_and_gradients(way: Callable, states: list, slope) -> list:
    import torch

    output = way(*states)
    return [output.detach(), *torch.autograd.grad(output, states, slope)]


def difference(found: list, wanted: list) -> float:
    """The largest over outputs and gradients, each over the largest value of its own; inf where one is no number."""
    gaps = [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(found, wanted, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def milliseconds(way: Callable, states: list, slope, repeats: int) -> tuple[float, float]:
    """Medians of forward and backward: until all is done, and until Python goes on."""
    import torch

    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    done, python = [], []
    for _ in range(repeats + 2):
        wait()
        started = time.perf_counter()
        outputs_and_gradients(way, states, slope)
        python.append(time.perf_counter() - started)
        wait()
        done.append(time.perf_counter() - started)
    return tuple(1e3 * sorted(each[2:])[repeats // 2] for each in (done, python))


if __name__ == "__main__":
    run(parse_args, main)
