"""Optimizers by Transformers' names, each with the arguments that Transformers' `Trainer` gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import bitsandbytes as bnb
import torch
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from bench.matrix.parameters import Parameters

# TrainingArguments' defaults.
BETAS = {"betas": (0.9, 0.999)}
ADAM = {**BETAS, "eps": 1e-8}

OPTIMIZERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    "adamw_torch": (torch.optim.AdamW, ADAM),
    "adamw_torch_fused": (torch.optim.AdamW, {**ADAM, "fused": True}),
    "adamw_8bit": (bnb.optim.AdamW, {**ADAM, "optim_bits": 8}),
    "paged_adamw_8bit": (bnb.optim.AdamW, {**ADAM, "optim_bits": 8, "is_paged": True}),
    "paged_adamw_32bit": (bnb.optim.AdamW, {**ADAM, "optim_bits": 32, "is_paged": True}),
    "lion_8bit": (bnb.optim.Lion, {**BETAS, "optim_bits": 8}),
    "lion_32bit": (bnb.optim.Lion, {**BETAS, "optim_bits": 32}),
    "paged_lion_8bit": (bnb.optim.Lion, {**BETAS, "optim_bits": 8, "is_paged": True}),
    "paged_lion_32bit": (bnb.optim.Lion, {**BETAS, "optim_bits": 32, "is_paged": True}),
    "sgd": (torch.optim.SGD, {}),
}

# Optimizers that keep step count and learning rate on the GPU; bitsandbytes' take theirs from the host.
CAPTURABLE = frozenset({"adamw_torch_fused"})


def build(parameters: Parameters, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Return the cell's optimizer over `weights`; where it can be part of a CUDA graph, it is made ready for that."""
    optimizer, arguments = OPTIMIZERS[parameters.optim]
    rate: float | torch.Tensor = parameters.learning_rate
    if parameters.optim in CAPTURABLE and weights[0].is_cuda:
        rate, arguments = torch.tensor(rate, device=weights[0].device), {**arguments, "capturable": True}
    return optimizer(weights, lr=rate, weight_decay=parameters.weight_decay, **arguments)


def schedule(parameters: Parameters, optimizer: torch.optim.Optimizer, steps: int) -> LRScheduler:
    """Return the cell's learning rate schedule over `steps` optimizer steps, of which the first are warm-up."""
    warmup_steps = math.ceil(steps * parameters.warmup_ratio)
    result: LRScheduler = get_scheduler(parameters.lr_scheduler_type, optimizer, warmup_steps, steps)
    return result
