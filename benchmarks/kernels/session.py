"""What the benchmarks of one session share: the cases, the device, its clock, and the cases that were refused."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import pytest
import torch

from bench.cell import failures, peaks, precision, weights
from bench.cell.failures import Invalid
from bench.cell.kernels import Operation
from bench.cell.launches import Clock, Recorder
from bench.cli import CRASHED
from bench.matrix.kernel_parameters import WEIGHT_OPERATIONS, KernelParameters, silent
from bench.matrix.kernels import Case, KernelMatrix
from bench.matrix.parameters import Dtype, Parameters

# What kernels and libraries raise where they cannot compute with such operands.
REFUSALS = (RuntimeError, ValueError, NotImplementedError, AssertionError)
# After such an error of CUDA nothing more can be launched in this process.
FATAL = ("illegal memory access", "misaligned address", "launch failure", "device-side assert", "illegal instruction")


@dataclass(frozen=True)
class Peak:
    """What the cases are compared with: `make` gives the operation, and `info` says which one it is."""

    id: str
    info: dict[str, Any]
    make: Callable[[torch.device], Operation]


@dataclass
class Session:
    matrix: KernelMatrix
    cases: Sequence[Case]
    device: torch.device
    refused: list[dict[str, Any]] = field(default_factory=list)

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.device)

    @cached_property
    def recorder(self) -> Recorder:
        return Recorder(self.device)

    @property
    def peaks(self) -> list[Peak]:
        """A copy, and products in each dtype of the cases that the device has."""
        asked = dict.fromkeys(case.parameters.compute_dtype for case in self.cases)
        dtypes = [dtype for dtype in asked if has_dtype(dtype, self.device)]
        return [
            Peak("copy", {"peak": "copy", "compute_dtype": "uint8", "size": None}, peaks.copy),
            *(
                Peak(
                    f"matmul-{dtype}-{'x'.join(map(str, size))}",
                    {"peak": "matmul", "compute_dtype": dtype, "size": size},
                    partial(peaks.product, dtype, size),
                )
                for dtype in dtypes
                for size in peaks.PRODUCTS[self.device.type]
            ),
        ]

    @contextmanager
    def refusing(self, case: Case) -> Iterator[None]:
        """Keep what refuses a case as a row, and go on with the next one."""
        try:
            yield
        except Exception as error:
            status, message, hint = outcome(error, case.parameters)
            self.refused.append(
                {"id": case.id, "parameters": stated(case.parameters), "status": status, "message": message,
                 "hint": hint}
            )  # fmt: skip
            if any(words in message for words in FATAL):
                pytest.exit(f"{case.id}: {message}; nothing more can be launched", returncode=CRASHED)
            if status == "crashed":
                raise
            traceback.clear_frames(error.__traceback__)  # which hold the operands
            pytest.skip(f"{status}: {message}" + (f"; {hint}" if hint else ""))

    def free_memory(self) -> None:
        """Give back what earlier cases left: garbage, and the memory that graphs share."""
        vars(self).pop("recorder", None)
        gc.collect()
        torch.cuda.empty_cache()

    def packaged_error(self, parameters: KernelParameters) -> float | None:
        """Return the error of the packaged model's layers of that name; None where it has none or is not installed."""
        return weights.packaged_error(parameters, None, self.device) if self._has_packaged_model else None

    @cached_property
    def _has_packaged_model(self) -> bool:
        try:
            weights.packaged_weights(None)
        except Invalid:
            return False
        return True


def has_dtype(dtype: Dtype, device: torch.device) -> bool:
    """Tell whether a device computes in a dtype itself."""
    try:
        precision.check_supported(Parameters(quant_type="none", compute_dtype=dtype, load_dtype=dtype), device)
    except Invalid:
        return False
    return True


def outcome(error: Exception, parameters: KernelParameters) -> tuple[str, str, str | None]:
    """Return status, message and hint of a case that ended in an error."""
    message = failures.first_line(error) or type(error).__name__
    if isinstance(error, Invalid):
        return "invalid", message, error.fix
    if failures.is_out_of_memory(error):
        fewer = "" if parameters.operation in WEIGHT_OPERATIONS else "fewer rows, or "
        return "oom", f"out of memory: {message.partition('. ')[2] or message}", f"take {fewer}a smaller layer"
    if isinstance(error, REFUSALS) and not any(words in message for words in FATAL):
        return "invalid", f"the kernels refuse it: {message}", None
    return "crashed", f"{type(error).__name__}: {message}", None


def stated(parameters: KernelParameters) -> dict[str, Any]:
    """Return parameters as JSON has them; what says nothing to an operation is None."""
    values = parameters.model_dump(mode="json")
    return {**values, **dict.fromkeys(silent(values))}
