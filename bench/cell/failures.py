"""How a cell can fail as a result: each exception carries the status that its record gets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from bench.protocol import Phase, Status

UNITS = (("GB", 1e9), ("MB", 1e6), ("kB", 1e3), ("bytes", 1))


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


@dataclass(frozen=True)
class Shortage:
    """An allocation at which the memory of torch's CUDA allocator ran out.

    asked_bytes: what torch asked CUDA for: the tensor in whole 2 MiB, and of a tensor below 10 MiB the segment that it
        was to be a part of (20 MiB; 2 MiB below 1 MiB).
    allocated_bytes: in live tensors at that moment, as the allocator rounds them.
    reserved_bytes: what the allocator held then, having given back what it could: tensors, and pieces too small.
    limit_bytes: the most that torch could hold then: its cap, or what it held and what was free on the card, whichever
        is less.
    """

    asked_bytes: int
    allocated_bytes: int
    reserved_bytes: int
    limit_bytes: int

    @property
    def short_bytes(self) -> int:
        """Asked and reserved less the limit: with so much more, this allocation would have been served."""
        return max(1, self.asked_bytes + self.reserved_bytes - self.limit_bytes)

    def __str__(self) -> str:
        asked, reserved, allocated, limit, short = map(
            in_words,
            (self.asked_bytes, self.reserved_bytes, self.allocated_bytes, self.limit_bytes, self.short_bytes),
        )
        return f"{asked} more were asked for with {reserved} of {limit} taken ({allocated} by tensors), {short} short"


# How CUDA, torch on the host, and CUDA's libraries put it, where it is not an exception of its own.
HOST_OUT_OF_MEMORY = "can't allocate memory"
OUT_OF_MEMORY = ("out of memory", HOST_OUT_OF_MEMORY, "_STATUS_ALLOC_FAILED")

# A cell that has put nothing on its GPU yet finds it taken.
BEFORE_THE_GPU: tuple[Phase, ...] = ("start", "reference")

# What to try when memory ran out, by the phase in which it did, where nothing is known of the cell.
OOM_HINTS: dict[Phase, str] = {
    **dict.fromkeys(BEFORE_THE_GPU, "other processes hold this GPU's memory: nvidia-smi lists them"),
    "load": "the weights themselves do not fit: quantize them (quant_type), or take a smaller model",
    "score_before": "scoring does not fit: take a shorter max_length",
    "adapt": "the fp32 cast or the adapters do not fit: try kbit_upcast: false, or a smaller lora_r",
    "train": "try gradient_checkpointing: true, kbit_upcast: false, a smaller batch_size (with "
    "gradient_accumulation_steps to keep the product), or a shorter max_length",
    "score_after": "scoring does not fit: take a shorter max_length",
}

# What to try when a loss is not finite, in the phases that training comes before, and in the others.
TRAINED: tuple[Phase, ...] = ("train", "score_after")
TRAINED_HINT = "try a lower learning_rate, a lower max_grad_norm, or compute_dtype: bfloat16"
UNTRAINED_HINT = "nothing is trained yet: float16 overflows above 65504, so try compute_dtype and load_dtype: bfloat16"


def describe(error: BaseException, phase: Phase, shortage: Shortage | None = None) -> tuple[Status, str, str | None]:
    """Return status, message and hint of the record of a cell that ended in `error` during `phase`.

    Args:
        error: what ended the cell.
        phase: where it did.
        shortage: what torch's allocator lacked, where that is the error.
    """
    message = str(error).strip().split("\n\n")[0] or type(error).__name__
    if isinstance(error, Invalid):
        return "invalid", message, error.fix
    if isinstance(error, Diverged):
        return "diverged", message, TRAINED_HINT if phase in TRAINED else UNTRAINED_HINT
    if is_out_of_memory(error):
        of_the_host = _is_of_the_host(error)
        what = shortage or ("the host has no more" if of_the_host else "the GPU has no more")
        hint = None if of_the_host and phase in BEFORE_THE_GPU else OOM_HINTS.get(phase)
        return "oom", f"out of memory in phase {phase}: {what}", hint
    return "crashed", f"{type(error).__name__}: {message}", "the worker's log holds the traceback"


def first_line(error: BaseException) -> str:
    """Return what a library says is wrong, without the advice and the lists that follow.

    Where its first line only announces what is wrong, the second one follows.
    """
    first, _, others = str(error).strip().partition("\n")
    return f"{first} {others.strip().partition(chr(10))[0]}" if first.endswith(":") and others else first


def is_out_of_memory(error: BaseException) -> bool:
    """Tell memory that ran out, on the GPU or the host, by whoever noticed it: torch, CUDA or bitsandbytes."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )


def _is_of_the_host(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or HOST_OUT_OF_MEMORY in str(error)


def in_words(size_bytes: int) -> str:
    """Write a size in SI units with at most three digits, such as 14.9 GB."""
    unit, scale = next(((unit, scale) for unit, scale in UNITS if size_bytes >= 0.9995 * scale), UNITS[-1])
    return f"{size_bytes / scale:.3g} {unit}"
