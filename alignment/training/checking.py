"""Whether what was saved is what was in memory: a fresh process, which knows nothing but its folder, is asked.

    verdict = ask_fresh_process(folder)                 # {"single", "padded", "bf16": differences, "agrees"}
    python -m alignment.training.checking outputs/rm    # the same, by hand: a line of JSON; 0 where equal

`check.json` in the folder holds ids of up to 8 rows and what the model in memory gave each, the reward, or the mean
log-probability of the response's tokens. The saved model must give the same: in fp32, alone and in one padded batch,
and in bf16 within tolerance. "exact" is false where the trained model could only be asked in half precision (FSDP,
quantised weights, no room for fp32); then that tolerance holds for all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from alignment.adapters import load_base, with_adapter
from alignment.command_line import REPOSITORY, UserError
from alignment.pretrained import ADAPTER_CONFIG, load_pretrained, training_tokenizer
from alignment.training.batches import Sample, collate
from alignment.training.logps import response_logps, row_means, speak_logps
from alignment.training.reward_model import batch_rewards
from alignment.training.reward_model import load as load_reward_model
from alignment.training.room import place

# Allowed difference, times max(1, |value|). Computing in bf16 moves a reward of SmolLM2-135M by up to 0.13
FP32, BF16 = 2e-4, 0.25
ROWS = 8
# What a fresh process asks: (name, dtype, rows a batch)
PASSES = (("single", "float32", 1), ("padded", "float32", ROWS), ("bf16", "bfloat16", ROWS))
HALF_PASSES = (("single", "bfloat16", 1), ("padded", "bfloat16", ROWS))  # where fp32 does not fit


def ask_fresh_process(folder: Path) -> dict:
    """`verify` in a process of its own. Raises UserError where that cannot load the folder."""
    alone = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    alone["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), alone.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "alignment.training.checking", str(folder)]
    done = subprocess.run(command, env=alone, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    if not lines or done.returncode not in (0, 1):
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"{folder.parent}: what was saved cannot be loaded again: {said}")
    return json.loads(lines[-1])


def verify(folder: str) -> dict:
    """Differences of the saved model to the one in memory, by pass; `agrees` says whether all are within tolerance."""
    check = json.loads((Path(folder) / "check.json").read_text())
    samples = [Sample(**sample) for sample in check["samples"]]
    tolerance, found, agrees = FP32 if check["exact"] else BF16, {}, True
    model = loaded = None
    for name, dtype, batch_size in check.get("passes", PASSES):
        if dtype != loaded:
            model, loaded = None, dtype  # one model at a time
            kind = dtype if dtype == "auto" else getattr(torch, dtype)
            device = check.get("device") or place(check["weights"], kind)
            if check["kind"] == "reward":
                model = load_reward_model(folder, device=device.replace("auto", "cpu"), dtype=kind)[0]
            else:
                model = load_policy(folder, kind, device)
        found[name] = differences(check["values"], values(model, samples, check["pad_id"], check["kind"], batch_size))
        agrees = agrees and found[name] <= (BF16 if name == "bf16" else tolerance)
    return {"rows": len(samples), "tolerance": tolerance, "tolerance_bf16": BF16, **found, "agrees": agrees}


@contextmanager
def full_precision() -> Iterator[None]:
    """Matrix products of fp32 numbers in fp32, as a fresh process computes them: not in TF32, as --tf32 has it."""
    kept = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = kept


@full_precision()
def values(model, samples: list[Sample], pad_id: int, kind: str, batch_size: int) -> list[float]:
    """The model's value of each sample: "reward", or "logps" for the mean token log-probability of the response."""
    found: list[float] = []
    with torch.no_grad():
        for start in range(0, len(samples), batch_size):
            batch = collate([(sample,) for sample in samples[start : start + batch_size]], pad_id)
            if kind == "reward":
                found += batch_rewards(model, batch).tolist()
            else:
                device = next(model.parameters()).device
                logps, rows = response_logps(model, {name: value.to(device) for name, value in batch.items()})
                found += row_means(logps, rows, len(batch["labels"])).tolist()
    return found


def load_policy(folder: str, dtype: torch.dtype | str, device: str) -> Any:
    placed = {"device_map": device} if device == "auto" else {}
    if (Path(folder) / ADAPTER_CONFIG).exists():
        base = speak_logps(load_base("AutoModelForCausalLM", folder, dtype, training_tokenizer(folder), **placed))
        model = with_adapter(base, Path(folder))
    else:
        model = speak_logps(load_pretrained("AutoModelForCausalLM", folder, dtype=dtype, **placed))
    return (model if placed else model.to(device)).eval()


def differences(expected: list[float], found: list[float]) -> float:
    """The largest difference, in units of max(1, |expected|); infinite where a value is no number."""
    gaps = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(expected, found, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


if __name__ == "__main__":
    report = verify(sys.argv[1])
    print(json.dumps(report))
    sys.exit(0 if report["agrees"] else 1)
