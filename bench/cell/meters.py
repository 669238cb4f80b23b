"""Meters: the time of steps, and the highest memory of each phase, on the GPU and the host."""

from __future__ import annotations

import contextlib
import os
import resource
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.cell.devices import synchronize
from bench.cell.encoding import Batch
from bench.cell.failures import Shortage

WARMUP_STEPS = 5

time_s = time.perf_counter

# Time -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """One optimizer step: how long it took and what it worked on."""

    seconds: float
    examples: int
    real_tokens: int
    padded_tokens: int
    loss_tokens: int

    @classmethod
    def of(cls, batches: Sequence[Batch], seconds: float) -> Step:
        return cls(
            seconds,
            sum(batch.examples for batch in batches),
            sum(batch.real_tokens for batch in batches),
            sum(batch.input_ids.numel() for batch in batches),
            sum(batch.loss_tokens for batch in batches),
        )


@dataclass
class StepClock:
    """Reads the time between the ends of steps: on a GPU by events in its queue, so that nobody waits for them."""

    device: torch.device
    marks: list[tuple[Any, Sequence[Batch] | None]] = field(default_factory=list)

    def start(self) -> None:
        """Begin a stretch of steps; what lies between it and the last one is not measured."""
        synchronize(self.device)
        self._mark(None)

    def tick(self, step: Sequence[Batch]) -> None:
        """Note the end of a step."""
        self._mark(step)

    def readings(self) -> tuple[Step, ...]:
        synchronize(self.device)
        return tuple(
            Step.of(step, self._between_s(before, after))
            for (before, _), (after, step) in pairwise(self.marks)
            if step is not None
        )

    def _mark(self, step: Sequence[Batch] | None) -> None:
        mark: Any = time_s()
        if self.device.type == "cuda":
            mark = torch.cuda.Event(enable_timing=True)
            mark.record()
        self.marks.append((mark, step))

    def _between_s(self, before: Any, after: Any) -> float:
        return float(before.elapsed_time(after) / 1e3 if self.device.type == "cuda" else after - before)


def timed(steps: Sequence[Step]) -> Sequence[Step]:
    """Leave the warm-up out: `WARMUP_STEPS`, but at most half of all steps."""
    return steps[min(WARMUP_STEPS, len(steps) // 2) :]


def p50_s(steps: Sequence[Step]) -> float | None:
    """Return the median time of the steps after warm-up, or None where there are none."""
    return float(np.median([step.seconds for step in timed(steps)])) if steps else None


def throughput(steps: Sequence[Step]) -> dict[str, float]:
    """Return times and rates of the steps after warm-up.

    A rate is a sum over steps divided by the sum of their times, so that steps of different sizes weigh as they should.
    """
    if not steps:
        return {}
    measured = timed(steps)
    seconds = np.array([step.seconds for step in measured])
    low, median, high, p95 = np.percentile(seconds, [25, 50, 75, 95])
    total = float(seconds.sum())
    return {
        "timed_steps_count": len(measured),
        "step_p50_s": float(median),
        "step_p95_s": float(p95),
        "step_iqr_s": float(high - low),
        "examples_per_s": sum(step.examples for step in measured) / total,
        "tokens_per_s": sum(step.real_tokens for step in measured) / total,
        "padded_tokens_per_s": sum(step.padded_tokens for step in measured) / total,
        "loss_tokens_per_s": sum(step.loss_tokens for step in measured) / total,
    }


def kernel_time_s(run: Callable[[], None]) -> float | None:
    """Run something under the profiler and return the time that the GPU's kernels took; None where it sees none."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return sum(event.self_device_time_total for event in profile.key_averages()) / 1e6 or None


# Memory ---------------------------------------------------------------------------------------------------------------


def reset_peaks(device: torch.device) -> None:
    """Start a phase: from now on the peaks are this phase's own."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # resets the kernel's high-water mark of this process


def peaks(device: torch.device) -> dict[str, int | None]:
    """Return the highest memory since `reset_peaks`, in bytes; torch's counters are None without CUDA."""
    stats = torch.cuda.memory_stats(device) if device.type == "cuda" else {}
    counters = {
        f"peak_{name}_bytes": stats.get(f"{name}_bytes.all.peak") for name in ("allocated", "requested", "reserved")
    }
    return {**counters, "peak_rss_bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """Return the process's highest resident memory, since the last reset where the kernel allows one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def capacity_bytes(device: torch.device) -> int:
    """Return the most that torch's allocator may hold: the card's memory, or the cap on it."""
    total = torch.cuda.get_device_properties(device).total_memory
    return int(torch.cuda.get_per_process_memory_fraction(device) * total)


def taken(device: torch.device) -> dict[str, int | None]:
    """Return the GPU memory of this process, and what of it torch's allocator does not hold now, in bytes.

    The latter is the CUDA context, kernels, libraries and managed memory. By NVML, which knows each process; None where
    it does not tell (some containers hide process ids), since other processes may use the card.
    """
    process = _process_bytes(device) if device.type == "cuda" else None
    outside = None if process is None else process - torch.cuda.memory_reserved(device)
    return {"process_bytes": process, "outside_torch_bytes": outside}


def context_bytes(device: torch.device) -> int | None:
    """Return what this process takes of a GPU outside of torch once a matrix product has run, in bytes; None on a CPU.

    That is the CUDA context and what cuBLAS loads; the workspace that cuBLAS has from torch is given back, so that
    peaks measured later are the model's own. Where NVML does not tell, all that is taken on the card counts.
    """
    if device.type != "cuda":
        return None
    torch.ones(64, 64, device=device) @ torch.ones(64, 64, device=device)
    synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    outside = taken(device)["outside_torch_bytes"]
    if outside is None:
        free, total = torch.cuda.mem_get_info(device)
        return total - free - torch.cuda.memory_reserved(device)
    return outside


def watch_out_of_memory(device: torch.device, note: Callable[[Shortage], None]) -> None:
    """Have `note` called whenever torch's allocator finds no memory, for as long as the process lives.

    It is called before the error is raised, also where that is caught and the work goes on. Memory that the host, CUDA
    or its libraries lack is not the allocator's to tell.
    """
    if device.type != "cuda":
        return

    def observe(_: int, asked: int, capacity: int, free: int) -> None:
        reserved = torch.cuda.memory_reserved(device)
        note(Shortage(asked, torch.cuda.memory_allocated(device), reserved, min(capacity, reserved + free)))

    torch._C._cuda_attach_out_of_memory_observer(observe)  # type: ignore[attr-defined]


def card_bytes(device: torch.device) -> int:
    """Return the memory of the card, by NVML as in the list of cards; torch counts what the driver keeps as missing."""
    memory = _ask_nvml(device, "nvmlDeviceGetMemoryInfo")
    return int(memory.total if memory else torch.cuda.get_device_properties(device).total_memory)


def cap_memory(limit_bytes: int, context_bytes: int, device: torch.device) -> int:
    """Limit torch's allocator so that the process needs no more than a card of `limit_bytes`; return the cap in bytes.

    Where the cap would not be above zero, nothing is limited.

    The cap is the card's memory less `context_bytes`, which the process takes outside of torch before the model is
    loaded. Kernels and libraries that CUDA loads later, and managed memory, lie outside of the cap: a record says how
    much that came to in training, `train_outside_torch_bytes` - `context_bytes`.
    """
    cap = limit_bytes - context_bytes
    if cap > 0:
        share = cap / torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(share, 1.0), device)
    return cap


def _process_bytes(device: torch.device) -> int | None:
    processes = _ask_nvml(device, "nvmlDeviceGetComputeRunningProcesses") or ()
    return next((process.usedGpuMemory for process in processes if process.pid == os.getpid()), None)


def _ask_nvml(device: torch.device, question: str) -> Any:
    """Return NVML's answer about a GPU, or None where there is none."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        return getattr(pynvml, question)(handle)
    except pynvml.NVMLError:
        return None
