"""Which cells may be compared: those that ran on the same hardware, with the same versions and protocol."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pandas as pd

from bench.tables.pool import CELL, on_cpu
from bench.tables.table import Row, entries

# What must agree, and how a reader knows it.
CONDITIONS: dict[str, str] = {
    "device": "device",
    "gpu_name": "GPU",
    "cpu": "CPU",
    "driver_version": "driver",
    "cuda_version": "CUDA",
    "python": "Python",
    "torch": "torch",
    "transformers": "transformers",
    "peft": "peft",
    "bitsandbytes": "bitsandbytes",
    "protocol": "protocol",
}

# A cell by its id and key.
Cell = tuple[str, str]


def incomparable(frame: pd.DataFrame) -> dict[Cell, str]:
    """Map the cells (id and key) that ran under other conditions than the baseline to what differs.

    Where the baseline has no record, the conditions of most runs take its place. What is unknown, as where a worker
    died before it could tell, does not differ. A baseline that ran under several conditions is in the map itself.
    """
    runs = _conditions(frame)
    of_baseline = [run for run, is_baseline in zip(runs, frame["is_baseline"], strict=True) if is_baseline]
    usual = {name: _most_common([run[name] for run in of_baseline or runs]) for name in CONDITIONS}
    found: dict[Cell, dict[str, None]] = {}
    for cell, run in zip(frame[CELL].itertuples(index=False, name=None), runs, strict=True):
        for name, label in CONDITIONS.items():
            if run[name] is not None and usual[name] is not None and run[name] != usual[name]:
                found.setdefault(cell, {})[f"{label} {run[name]} instead of {usual[name]}"] = None
    return {cell: ", ".join(differences) for cell, differences in found.items()}


def distinct(frame: pd.DataFrame, name: str) -> list[str]:
    """Return the known values of a column, each once, in order of appearance."""
    return [str(value) for value in frame[name].dropna().unique()]


def _conditions(frame: pd.DataFrame) -> list[Row]:
    device = on_cpu(frame).map({True: "CPU", False: None}).where(frame["gpu_name"].isna(), "GPU")
    known = frame.assign(device=device)[list(CONDITIONS)].astype(object)
    return entries(known.where(known.notna(), None))


def _most_common(values: list[Any]) -> Any:
    known = Counter(value for value in values if value is not None)
    return known.most_common(1)[0][0] if known else None
