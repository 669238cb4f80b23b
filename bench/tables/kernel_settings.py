"""The table of settings: what each does to a layer's time, in pairs of cases that differ in nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import binom

from bench.tables.kernel_caption import conditions, doubts, largest_drift
from bench.tables.kernel_figures import change_column, change_text, group_column, labelled
from bench.tables.kernels import PARAMETERS
from bench.tables.table import MISSING, Column, Row, Table, field

# Of a median of n rounds, in IQR/sqrt(n): medians whose notches do not overlap differ at about 95 % (McGill, Tukey and
# Larsen 1978, Variations of Box Plots).
NOTCH = 1.57
LEVEL = 0.05
LEAST_ROUNDS = 5  # fewer do not show their spread
COLUMNS = (
    "change", "operation", "rows", "time_ratio", "time_ratio_min", "time_ratio_max", "pairs_count", "slower_count",
    "faster_count",
)  # fmt: skip
CHANGE = "Change: of one setting; all others are equal. Cases whose operation waits for the host are left out."
TIME = "Time: of the case changed to, over that of the other, less one; median over pairs, and lowest to highest."
SHOWN = (
    "Shown: in how many pairs the times differ by more than noise; no difference where so many would by chance, at 5 % "
    "each."
)


@dataclass(frozen=True)
class Change:
    """A change of one setting: what is called so before and after it, and the values of parameters that this means."""

    before: str
    after: str
    since: Mapping[str, Any]
    to: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.before} → {self.after}"


def changes(frame: pd.DataFrame) -> Iterator[Change]:
    """Name the changes to look for; which ranks adapters have, the cases tell."""
    yield Change("nf4", "fp4", {"quant_type": "nf4"}, {"quant_type": "fp4"})
    plain, double = {"double_quant": False}, {"double_quant": True}
    yield Change("no double quant.", "double quant.", plain, double)
    yield Change("bfloat16", "float16", {"compute_dtype": "bfloat16"}, {"compute_dtype": "float16"})
    for rank in sorted(frame["lora_r"].dropna().unique()):
        if rank:
            yield Change("no adapter", f"adapter, r={rank}", {"lora_r": 0}, {"lora_r": rank})
    yield Change("forward", "with backward", {"operation": "forward"}, {"operation": "forward_backward"})


def settings_table(frame: pd.DataFrame) -> Table:
    """Tabulate what each change does, by operation and by rows; there may be no pair."""
    drift = largest_drift(frame)
    parts = [_by_operation(change, _pairs(frame, change), drift) for change in changes(frame)]
    rows = pd.concat([part for part in parts if len(part)] or parts[:1], ignore_index=True)
    names = [[before, f"→ {after}"] for before, _, after in rows["change"].str.partition(" → ").to_numpy()]
    return Table(
        name="settings",
        title=f"{frame.attrs['matrix']}: what each setting does to the time",
        columns=tuple(_columns()),
        rows=labelled(rows, names),
        caption=(*conditions(frame), _noise(drift)),
        notes=doubts(frame),
        detail=rows,
    )


def _pairs(frame: pd.DataFrame, change: Change) -> pd.DataFrame:
    """Pair the cases that differ as a change says: `time_ratio`, and whether they differ by more than their notches.

    Cases that wait for the host are left out, since its time would drown that of the kernels.
    """
    counting = (frame["status"] == "ok") & (frame["launch"] != "eager")
    timed = frame.loc[counting, [*PARAMETERS, "p50_s", "iqr_s", "rounds_count"]]
    known = timed["rounds_count"] >= LEAST_ROUNDS
    timed["notch_s"] = (NOTCH * timed["iqr_s"] / np.sqrt(timed["rounds_count"])).where(known, np.inf)
    sides = [timed[_has(timed, values)] for values in (change.since, change.to)]
    shared = [name for name in PARAMETERS if name not in change.since]
    pairs = sides[0].merge(sides[1].drop(columns=[*change.since]), on=shared, suffixes=("_since", "_to"))
    return pairs.assign(
        to_operation=change.to.get("operation", pairs["operation"]),
        time_ratio=pairs["p50_s_to"] / pairs["p50_s_since"],
        is_apart=(pairs["p50_s_to"] - pairs["p50_s_since"]).abs() > pairs["notch_s_to"] + pairs["notch_s_since"],
    )


def _has(timed: pd.DataFrame, values: Mapping[str, Any]) -> pd.Series[bool]:
    found = pd.Series(True, timed.index)
    for name, value in values.items():
        found &= (timed[name] == value).fillna(False).astype(bool)
    return found


def _by_operation(change: Change, pairs: pd.DataFrame, drift: float) -> pd.DataFrame:
    if pairs.empty:
        return pd.DataFrame(columns=list(COLUMNS))
    apart = pairs["is_apart"] & ((pairs["time_ratio"] - 1).abs() > drift)
    pairs = pairs.assign(slower=apart & (pairs["time_ratio"] > 1), faster=apart & (pairs["time_ratio"] < 1))
    rows = pairs.groupby(["to_operation", "rows"], sort=False, dropna=False).agg(
        time_ratio=("time_ratio", "median"), time_ratio_min=("time_ratio", "min"), time_ratio_max=("time_ratio", "max"),
        pairs_count=("time_ratio", "size"), slower_count=("slower", "sum"), faster_count=("faster", "sum"),
    ).reset_index(names=["operation", "rows"])  # fmt: skip
    order = {name: at for at, name in enumerate(dict.fromkeys(rows["operation"]))}
    place = rows.assign(place=rows["operation"].map(order)).sort_values(["place", "rows"]).index
    return rows.loc[place].assign(change=change.name)[[*COLUMNS]].reset_index(drop=True)


def _columns() -> Iterator[Column]:
    yield group_column("change", about=CHANGE)
    yield Column("operation", field("operation"), "left")
    yield Column("rows", lambda row: MISSING if pd.isna(row["rows"]) else f"{row['rows']:,}")
    yield change_column("time_ratio", "time", about=TIME)
    yield Column("lowest to highest", _range, priority=1, about=TIME)
    yield Column("pairs", lambda row: f"{row['pairs_count']:,}")
    yield Column("shown", _shown, "left", about=SHOWN)


def _range(row: Row) -> str:
    return f"{change_text(row['time_ratio_min'])} to {change_text(row['time_ratio_max'])}"


def _shown(row: Row) -> str:
    pairs, counts = row["pairs_count"], {word: row[f"{word}_count"] for word in ("slower", "faster")}
    if sum(counts.values()) <= by_chance(pairs):
        return "no difference shown"
    return ", ".join(f"{'all' if count == pairs else count} {word}" for word, count in counts.items() if count)


def by_chance(pairs_count: int) -> int:
    """Return how many of so many pairs alike may differ: no more do so with a probability of 95 %."""
    return int(binom.ppf(1 - LEVEL, pairs_count, LEVEL))


def _noise(drift: float) -> str:
    also = f", and by more than the peaks drifted ({100 * drift:.1f} %)" if drift else ""
    return (
        "Beyond what rounds vary, in this one session: medians that differ by more than their notches, "
        f"± {NOTCH} IQR/√rounds (McGill et al. 1978){also}. How a case varies when it is timed again was not measured: "
        "at many rows the GPU's clock moves single cases by more."
    )
