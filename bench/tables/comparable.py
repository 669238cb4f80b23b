"""Which runs may be compared: those on the same hardware, with the same versions and protocol."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bench.tables.figures import listed

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
# The values of CONDITIONS; None where they are not known.
Conditions = tuple[object, ...]


def differences(frame: pd.DataFrame) -> pd.Series[str]:
    """Say of each run what differs from the usual conditions; None where nothing does.

    The usual conditions are those of most of the baseline's runs that ended ok; of most of all such runs where the
    baseline has none, and of most of all runs where no run ended ok. Of conditions that are as frequent there, those
    of most runs of all cells, then the first ones. What is unknown, as where a worker died before it could tell, does
    not differ.
    """
    runs = _conditions(frame)
    told: dict[Conditions, str | None] = dict.fromkeys(runs)
    if len(told) > 1:
        usual = _usual(frame, runs)
        told = {run: _difference(run, usual) for run in told}
    return pd.Series([told[run] for run in runs], frame.index, dtype=object)


def left_out(frame: pd.DataFrame) -> pd.Series[bool]:
    """Tell which runs count in no mean and no comparison: those under other conditions than the rest of their cell.

    These are the usual conditions where the cell has runs under them, else those that most of its runs have; of runs
    that ended ok, where the cell has any.
    """
    return _left_out(frame, differences(frame))


def incomparable(frame: pd.DataFrame) -> dict[Cell, str]:
    """Map the cells (id and key) that have no run under the usual conditions to what differs in those that count."""
    told = differences(frame)
    return {} if told.isna().all() else {cell: own for cell, own in _of_cells(frame, told).items() if own is not None}


def left_out_notes(frame: pd.DataFrame) -> Iterator[str]:
    """Name the runs that are left out, by what differs."""
    told = differences(frame)
    for what, runs in frame.loc[_left_out(frame, told), ["id", "seed"]].groupby(told, sort=False):
        names = [f"{id_} s{seed}" for id_, seed in runs.itertuples(index=False, name=None)]
        yield f"Left out, since they ran under other conditions: {listed(names)} ({what})."


def devices(frame: pd.DataFrame) -> pd.Series[str]:
    """Return what each run was on, `GPU` or `CPU`; None where that is not known."""
    on_cpu = (frame["slot"] == "cpu").map({True: "CPU", False: None})
    return on_cpu.where(frame["gpu_name"].isna(), "GPU").astype(object)


def distinct(frame: pd.DataFrame, name: str) -> list[str]:
    """Return the known values of a column, each once, in order of appearance."""
    return [str(value) for value in frame[name].dropna().unique()]


def _conditions(frame: pd.DataFrame) -> list[Conditions]:
    columns = (devices(frame) if name == "device" else frame[name] for name in CONDITIONS)
    return list(zip(*(_known(column) for column in columns), strict=True))


def _known(column: pd.Series[Any]) -> list[object]:
    lacks = column.isna()
    return column.tolist() if not lacks.any() else column.astype(object).where(~lacks, None).tolist()


def _left_out(frame: pd.DataFrame, told: pd.Series[str]) -> pd.Series[bool]:
    if told.isna().all():
        return pd.Series(False, frame.index)
    own = _of_cells(frame, told)
    kept = [text is None or text == own[cell] for text, cell in zip(told, _cells(frame), strict=True)]
    return ~pd.Series(kept, frame.index)


def _usual(frame: pd.DataFrame, runs: Sequence[Conditions]) -> Conditions:
    ok = (frame["status"] == "ok").tolist()
    of_baseline = [run for run, ended, of in zip(runs, ok, frame["is_baseline"], strict=True) if ended and of]
    ended_ok = [run for run, ended in zip(runs, ok, strict=True) if ended]
    counts, of_all = Counter(of_baseline or ended_ok or runs), Counter(runs)
    return max(counts, key=lambda run: (counts[run], of_all[run]))


def _difference(run: Conditions, usual: Conditions) -> str | None:
    differing = [
        f"{label} {own} instead of {other}"
        for label, own, other in zip(CONDITIONS.values(), run, usual, strict=True)
        if own is not None and other is not None and own != other
    ]
    return ", ".join(differing) or None


def _of_cells(frame: pd.DataFrame, told: pd.Series[str]) -> dict[Cell, str | None]:
    """Map each cell to what differs in those of its runs that count; None where these ran under usual conditions."""
    by_cell: dict[Cell, Counter[str | None]] = {}
    ended_ok: dict[Cell, Counter[str | None]] = {}
    for cell, text, ok in zip(_cells(frame), told, frame["status"] == "ok", strict=True):
        by_cell.setdefault(cell, Counter())[text] += 1
        if ok:
            ended_ok.setdefault(cell, Counter())[text] += 1
    counted = by_cell | ended_ok
    return {cell: None if None in counts else counts.most_common(1)[0][0] for cell, counts in counted.items()}


def _cells(frame: pd.DataFrame) -> Iterator[Cell]:
    return zip(frame["id"], frame["key"], strict=True)
