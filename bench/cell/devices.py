"""Move data to a device, and wait for a device."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch

from bench.matrix.cards import AMPERE_CAPABILITY

Tensors = TypeVar("Tensors")


def move(tensors: Tensors, device: torch.device) -> Tensors:
    """Return a frozen dataclass with its tensors on `device` and its other fields as they are."""
    moved: dict[str, Any] = {
        name: to_device(value, device) for name, value in vars(tensors).items() if isinstance(value, torch.Tensor)
    }
    return replace(tensors, **moved)  # type: ignore[type-var]


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return a tensor on `device`; on its way to a GPU through pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda" and not tensor.is_cuda:
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait for the GPU, so that a clock is read when the work is done, not when it is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def has_flash_attention(device: torch.device) -> bool:
    """Tell whether torch has FlashAttention for a GPU: from Ampere (compute capability 8.0) on."""
    return torch.cuda.get_device_capability(device) >= AMPERE_CAPABILITY
