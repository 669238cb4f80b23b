"""The GPUs of this machine, as CUDA would show them to this process, found without CUDA."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError


@dataclass(frozen=True)
class Gpu:
    """A GPU. `index` counts those that are visible, as torch does; `device` is what shows a process this one only."""

    index: int
    device: str
    name: str
    memory_bytes: int
    driver: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.index} ({self.name})"


def visible_gpus(environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """List the GPUs that `CUDA_VISIBLE_DEVICES` lets through, in its order; none where there is no working driver.

    Its entries may be numbers (as nvidia-smi counts), UUIDs or beginnings of them. As with CUDA, the first entry that
    names no GPU ends the list.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, no permission: all the same here, there is no GPU to be used
        return ()
    try:
        return _list(pynvml, environment.get("CUDA_VISIBLE_DEVICES"))
    except pynvml.NVMLError:
        return ()
    finally:
        pynvml.nvmlShutdown()


def parse_gpus(text: str, visible: Sequence[Gpu]) -> tuple[Gpu, ...]:
    """Read a `--gpus`: `all`, `none` (run on the CPU), or numbers such as `0,1`.

    Raises:
        BenchError: an entry is no number, names no visible GPU, or comes twice.
    """
    if text.strip() in ("all", "none"):
        return tuple(visible) if text.strip() == "all" else ()
    entries = [entry.strip() for entry in text.split(",")]
    if wrong := [entry for entry in entries if not entry.isdecimal()]:
        raise BenchError(f"--gpus: {wrong[0]!r} is no number of a GPU", "write all, none, or numbers such as 0,1")
    numbers = [int(entry) for entry in entries]
    by_index = {gpu.index: gpu for gpu in visible}
    if missing := [number for number in numbers if number not in by_index]:
        shown = ", ".join(map(str, visible)) or "none; --gpus none runs on the CPU"
        raise BenchError(f"GPU {missing[0]} does not exist; visible: {shown}")
    if len(set(numbers)) < len(numbers):
        raise BenchError(f"--gpus {text} names a GPU twice", "name each once: a GPU runs one cell at a time")
    return tuple(by_index[number] for number in numbers)


def _list(nvml: Any, wanted: str | None) -> tuple[Gpu, ...]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if wanted is None:
        chosen = [(str(index), handle) for index, handle in enumerate(handles)]
    else:
        chosen = _choose(nvml, handles, [entry.strip() for entry in wanted.split(",")])
    driver = nvml.nvmlSystemGetDriverVersion()
    return tuple(
        Gpu(
            index,
            device,
            nvml.nvmlDeviceGetName(handle),
            int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
            driver,
            nvml.nvmlDeviceGetUUID(handle),
        )
        for index, (device, handle) in enumerate(chosen)
    )


def _choose(nvml: Any, handles: Sequence[Any], entries: Sequence[str]) -> list[tuple[str, Any]]:
    chosen = []
    for entry in entries:
        handle = _find(nvml, handles, entry)
        if handle is None:
            break
        chosen.append((entry, handle))
    return chosen


def _find(nvml: Any, handles: Sequence[Any], entry: str) -> Any:
    if entry.isdecimal():
        return handles[int(entry)] if int(entry) < len(handles) else None
    if entry.startswith("MIG-"):  # a part of a GPU is in no list
        return nvml.nvmlDeviceGetHandleByUUID(entry)
    named = [handle for handle in handles if entry and nvml.nvmlDeviceGetUUID(handle).startswith(entry)]
    return named[0] if len(named) == 1 else None
