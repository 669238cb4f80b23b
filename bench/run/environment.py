"""What a run runs on: versions, machine and GPU, found out without torch."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from bench import __version__
from bench.run.slots import Slot

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")


def machine_facts() -> dict[str, Any]:
    """Describe this machine, as far as results depend on it.

    `python`, `qlora_bench` and each package: the version, null if not installed; `os`; `cpu`; `cores_count`: those that
    this process may use; `ram_bytes`.
    """
    return {
        "python": platform.python_version(),
        "qlora_bench": __version__,
        **{name: _version(name) for name in PACKAGES},
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores_count": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "ram_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }


def slot_facts(slot: Slot) -> dict[str, Any]:
    """Describe a slot's GPU: `gpu_name`, `gpu_memory_bytes` and `driver_version`, all null on a CPU."""
    gpu = slot.gpu
    return {
        "gpu_name": gpu and gpu.name,
        "gpu_memory_bytes": gpu and gpu.memory_bytes,
        "driver_version": gpu and gpu.driver,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
