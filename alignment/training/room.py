"""What fits where: the weights of a model on this card, over all cards, or only on the CPU."""

from __future__ import annotations

import torch
from torch import nn

SPARE = 1.2  # times the weights: what a batch of eight short rows takes beside them


def free_memory(card: torch.device | int) -> int:
    """Bytes of a card that this process could have: those that are free, and those that it holds."""
    return torch.cuda.mem_get_info(card)[0] + torch.cuda.memory_reserved(card)


def fits(weights: int, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether so many weights fit on the device, with what computing takes. A CPU is given what it is asked for."""
    return device.type != "cuda" or SPARE * weights * dtype.itemsize <= free_memory(device)


def place(weights: int, dtype: torch.dtype) -> str:
    """Where so many weights fit: on "cuda", over all cards ("auto", as transformers says it), or on the "cpu"."""
    needed = SPARE * weights * dtype.itemsize
    free = [free_memory(card) for card in range(torch.cuda.device_count())]
    if free and needed <= free[0]:
        return "cuda"
    return "auto" if needed <= sum(free) else "cpu"


def size(model: nn.Module) -> int:
    """How many weights a model has, sharded and quantised ones counted whole, tied ones once."""
    packed = (2 if type(weight).__name__ == "Params4bit" else 1 for weight in model.parameters())  # two in a byte
    return sum(each * weight.numel() for each, weight in zip(packed, model.parameters(), strict=True))
