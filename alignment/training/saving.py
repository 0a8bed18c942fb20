"""Is what was saved what was trained? Run in a fresh process on the saved folder, before train.py may exit with 0.

    python -m alignment.training.saving outputs/rm      # prints one line of JSON; exit code 0 where the values agree

Reads `check.json` in the folder, which the trained model left: ids of up to 8 rows and the value it gave each, the
reward, or the mean log-probability of the response's tokens. The saved model must give the same in fp32, alone and in
one padded batch, and in bf16 within tolerance. "exact" is false where the trained model could only be asked in half
precision (FSDP, quantised weights); then that tolerance holds for all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from alignment.pretrained import fit_embeddings, load_pretrained, training_tokenizer
from alignment.training.batches import Sample, collate
from alignment.training.logps import response_logps, row_means, speak_logps
from alignment.training.reward_model import batch_rewards
from alignment.training.reward_model import load as load_reward_model

# Allowed difference, times max(1, |value|). Computing in bf16 moves a reward of SmolLM2-135M by up to 0.13
FP32, BF16 = 2e-4, 0.25


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


def load_policy(folder: str, dtype: torch.dtype):
    if not (Path(folder) / "adapter_config.json").exists():
        return speak_logps(load_pretrained("AutoModelForCausalLM", folder, dtype=dtype))
    from peft import PeftConfig, PeftModel

    base = PeftConfig.from_pretrained(folder).base_model_name_or_path
    model = load_pretrained("AutoModelForCausalLM", base, dtype=dtype)
    fit_embeddings(model, training_tokenizer(folder))
    return PeftModel.from_pretrained(speak_logps(model), folder)


def differences(expected: list[float], found: list[float]) -> float:
    """The largest difference, in units of max(1, |expected|); infinite where a value is no number."""
    gaps = [abs(a - b) / max(1.0, abs(a)) for a, b in zip(expected, found, strict=True)]
    return max(gap if gap == gap else float("inf") for gap in gaps)


def verify(folder: str) -> dict:
    """Differences of the saved model to the trained one: single, padded and bf16; `agrees` says whether all pass."""
    check = json.loads((Path(folder) / "check.json").read_text())
    samples = [Sample(**sample) for sample in check["samples"]]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result, tolerance = {}, FP32 if check["exact"] else BF16
    for name, dtype, batch_size in (("single", "float32", 1), ("padded", "float32", 8), ("bf16", "bfloat16", 8)):
        if check["kind"] == "reward":
            model = load_reward_model(folder, device=device, dtype=getattr(torch, dtype))[0]
        else:
            model = load_policy(folder, getattr(torch, dtype)).to(device).eval()
        found = values(model, samples, check["pad_id"], check["kind"], batch_size)
        result[name] = differences(check["values"], found)
        del model
    agrees = result["single"] <= tolerance and result["padded"] <= tolerance and result["bf16"] <= BF16
    return {"rows": len(samples), "tolerance": tolerance, "tolerance_bf16": BF16, **result, "agrees": agrees}


if __name__ == "__main__":
    report = verify(sys.argv[1])
    print(json.dumps(report))
    sys.exit(0 if report["agrees"] else 1)
