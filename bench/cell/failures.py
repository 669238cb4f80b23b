"""How a cell can fail as a result: each exception carries the status that its record gets."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench.protocol import Phase, Status


class Invalid(Exception):
    """The cell asks for something that cannot be had, or got something else than it asked for."""

    def __init__(self, what: str, fix: str | None = None) -> None:
        self.fix = fix
        super().__init__(what)


class Diverged(Exception):
    """The loss stopped being a finite number; `losses` are those of the steps up to then."""

    def __init__(self, what: str, losses: Sequence[float] = ()) -> None:
        self.losses = tuple(losses)
        super().__init__(what)


# How CUDA, torch on the host, and CUDA's libraries put it, where it is not an exception of its own.
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")

# What to try when memory ran out, by the phase in which it did.
OOM_HINTS: dict[Phase, str] = {
    "load": "the weights themselves do not fit: quantize them (quant_type), or take a smaller model",
    "score_before": "scoring does not fit: take a shorter max_length",
    "adapt": "the fp32 cast or the adapters do not fit: try kbit_upcast: false, or a smaller lora_r",
    "train": "try gradient_checkpointing: true, kbit_upcast: false, a smaller batch_size (with "
    "gradient_accumulation_steps to keep the product), or a shorter max_length",
    "score_after": "scoring does not fit: take a shorter max_length",
}


def describe(error: BaseException, phase: Phase) -> tuple[Status, str, str | None]:
    """Return status, message and hint of the record of a cell that ended in `error` during `phase`."""
    message = str(error).strip().split("\n\n")[0] or type(error).__name__
    if isinstance(error, Invalid):
        return "invalid", message, error.fix
    if isinstance(error, Diverged):
        return "diverged", message, "try a lower learning_rate, a lower max_grad_norm, or compute_dtype: bfloat16"
    if is_out_of_memory(error):
        return "oom", message, OOM_HINTS.get(phase)
    return "crashed", f"{type(error).__name__}: {message}", "the worker's log holds the traceback"


def first_line(error: BaseException) -> str:
    """Return what a library says is wrong, without the advice and the lists that follow."""
    return str(error).strip().partition("\n")[0]


def is_out_of_memory(error: BaseException) -> bool:
    """Tell memory that ran out, on the GPU or the host, by whoever noticed it: torch, CUDA or bitsandbytes."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )
