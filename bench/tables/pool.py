"""One row a cell: the runs of its seeds pooled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pandas as pd

from bench.matrix.parameters import DERIVED
from bench.tables.comparable import devices, left_out
from bench.tables.load import MEASURE_NAMES, PARAMETER_NAMES
from bench.tables.table import entries

CELL = ["id", "key"]
QUALITY = [name for name in MEASURE_NAMES if name.startswith(("accuracy_", "macro_f1_", "heldout_loss_"))]
SPREAD = ("tokens_per_s", "accuracy_after", "train_peak_allocated_bytes")


def pool_seeds(frame: pd.DataFrame) -> pd.DataFrame:
    """Pool the runs of a result's cells: a row a cell, indexed by id and key, the baseline first.

    Every measure is the mean over the runs that ended ok; over all its runs where none of a cell did, so that what was
    measured before a failure is not lost. Runs under other conditions than the rest of their cell are left out
    (`comparable.left_out`). Beside the means stand `train_peak_bytes`, `{name}_min` and `{name}_max` of the
    measures in `SPREAD`, `scored_count` (the test examples of one seed: each scores the same ones), `seeds_count`,
    `ok_count`, `status` (`ok`, or `2 ok, 1 oom`), `execution_used` and `prediction_note`. Random weights have no
    quality; `train_peak_allocated_bytes` of a run that was killed in training is the last that it told.
    """
    frame = frame[~left_out(frame)]
    frame = frame.assign(
        ok=frame["status"] == "ok",
        train_peak_allocated_bytes=allocated_peaks(frame),
        train_peak_bytes=train_peaks(frame),
    )
    frame.loc[frame["weights"] == "random", QUALITY] = float("nan")
    frame["scored_count"] = frame["eval_examples_count"].where(frame["accuracy_after"].notna())
    by_cell = frame.groupby(CELL, sort=False)
    sound = frame[frame["ok"] | ~by_cell["ok"].transform("any")]
    counted = sound.groupby(CELL, sort=False)
    cells: pd.DataFrame = pd.concat(
        [
            frame.drop_duplicates(CELL).set_index(CELL)[["matrix", "is_baseline", *PARAMETER_NAMES]],
            counted[[*MEASURE_NAMES, "train_peak_bytes"]].mean(),
            *(getattr(counted[list(SPREAD)], end)().add_suffix(f"_{end}") for end in ("min", "max")),
            counted["scored_count"].max(),
            by_cell.size().rename("seeds_count"),
            by_cell["ok"].sum().rename("ok_count"),
            _by_cell(frame, "status", _status),
            *(_by_cell(sound, name, _all_of) for name in ("execution_used", "prediction_note")),
        ],
        axis=1,
    )
    return cells.sort_values("is_baseline", ascending=False, kind="stable")


def varying(cells: pd.DataFrame) -> list[str]:
    """Name the parameters that are not the same in all cells."""
    return [name for name in PARAMETER_NAMES if len(cells[name].unique()) > 1]


def chosen(cells: pd.DataFrame, names: list[str]) -> list[str]:
    """Keep those of the parameters `names` that tell more than the others: not those that follow from another one."""
    rows = entries(cells)
    return [name for name in names if name not in DERIVED or any(row[name] != DERIVED[name][1](row) for row in rows)]


def on_cpu(frame: pd.DataFrame) -> pd.Series[bool]:
    """Tell which runs had no GPU."""
    return devices(frame) == "CPU"


def allocated_peaks(frame: pd.DataFrame) -> pd.Series[float]:
    """Return the peak of torch's allocations in training, in bytes; NaN on a CPU.

    A run that was killed in training could not report its own; the last peak that it told stands for it.
    """
    last = frame["last_peak_allocated_bytes"].where(frame["phase"] == "train")
    return frame["train_peak_allocated_bytes"].fillna(last)


def train_peaks(frame: pd.DataFrame) -> pd.Series[float]:
    """Return the peak of training in bytes: torch's allocations on a GPU, the process's host memory on a CPU."""
    return allocated_peaks(frame).where(~on_cpu(frame), frame["train_peak_rss_bytes"])


def _by_cell(runs: pd.DataFrame, name: str, say: Callable[[Counter[str]], str | None]) -> pd.Series[str]:
    """Say of each cell what a text column holds in its runs, and how often; in Python, since pandas is slower at it."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for id_, key, value in zip(*(runs[column].tolist() for column in (*CELL, name)), strict=True):
        of_cell = counts.setdefault((id_, key), Counter())
        if isinstance(value, str):
            of_cell[value] += 1
    index = pd.MultiIndex.from_tuples(counts, names=CELL)
    return pd.Series([say(of_cell) for of_cell in counts.values()], index, dtype=object, name=name)


def _all_of(counts: Counter[str]) -> str | None:
    return ", ".join(counts) or None


def _status(counts: Counter[str]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items(), key=lambda item: item[0] != "ok"))
