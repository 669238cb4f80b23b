"""How tables of kernels write settings, times and ratios."""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterable, Sequence

import pandas as pd

from bench.tables.figures import number, signed
from bench.tables.table import MISSING, Column, Row, field

US, MB = 1e-6, 1e6
G, T = 1e9, 1e12
UNQUANTIZED = "none"
# As tables have them beside each other; any other one comes after these.
QUANTIZATIONS = ("nf4", "nf4-dq", "fp4", "fp4-dq", "int8")

MANY_TIMES = 1000  # percent

_DIGITS = 3


def quantizations(frame: pd.DataFrame) -> pd.Series[str]:
    """Name the quantization of each case: `nf4`, `nf4-dq` with double quantization, `none`."""
    return frame["quant_type"].astype(object) + frame["double_quant"].map({True: "-dq", False: ""}).astype(object)


def in_order(names: Iterable[str]) -> list[str]:
    """Return each quantization once, the known ones first, in the order of `QUANTIZATIONS`."""
    given = dict.fromkeys(names)
    return [name for name in QUANTIZATIONS if name in given] + [name for name in given if name not in QUANTIZATIONS]


def figure(value: float) -> str:
    """Write a figure with three digits, or all of those before the point: `4.07`, `40.7`, `12,345`."""
    if not math.isfinite(value):
        return MISSING
    return number(value, max(0, _DIGITS - 1 - math.floor(math.log10(abs(value)))) if value else 0)


def flops_unit(most_per_s: float) -> tuple[float, str]:
    """Choose the unit of operations in a second, by the most of them: its size and its name."""
    return (T, "TFLOP/s") if most_per_s >= T else (G, "GFLOP/s")


def rate_text(per_s: float, what: str) -> str:
    """Write how many bytes or operations in a second: `2.61 TB/s`, `49.1 GFLOP/s`."""
    if not math.isfinite(per_s):
        return MISSING
    return f"{figure(per_s / T)} T{what}" if per_s >= T else f"{figure(per_s / G)} G{what}"


def figure_column(name: str, heading: str, scale: float, *, priority: int = 0, about: str = "") -> Column:
    """Show `name`, whose values may differ by orders of magnitude, each with three digits."""
    return Column(heading, lambda row: figure(row[name] / scale), priority=priority, about=about)


def change_text(ratio: float) -> str:
    """Write a ratio as a change in percent, `+12.3 %`; one of many times without decimals, `+1,234 %`."""
    change = 100 * (ratio - 1)
    text = signed(change, 1 if change < MANY_TIMES else 0)
    return text if text == MISSING else f"{text} %"


def change_column(name: str, heading: str, *, priority: int = 0, about: str = "") -> Column:
    """Show a ratio as a change in percent."""
    return Column(heading, lambda row: change_text(row[name]), priority=priority, about=about)


def text_column(name: str, heading: str = "", *, priority: int = 0, about: str = "") -> Column:
    """Show a text as it is."""

    def text(row: Row) -> str:
        return MISSING if pd.isna(row[name]) else str(row[name])

    return Column(heading or name, text, "left", priority=priority, about=about)


def labelled(rows: pd.DataFrame, groups: Sequence[Sequence[str]]) -> pd.DataFrame:
    """Add what `group_column` shows: the names of each row's group."""
    return rows.assign(label=once(groups), group=[" ".join(names) for names in groups])


def group_column(heading: str, *, about: str = "") -> Column:
    """Name each group of rows once in a terminal, and in each row of a file."""
    return Column(heading, field("label"), "left", about=about, whole=field("group"))


def once(groups: Iterable[Sequence[str]]) -> list[str]:
    """Name each group of rows that stand together once: a name a row, from its first on, or all in one if they are few.

    `groups` has the names of each row's group.
    """
    labels: list[str] = []
    for group, rows in itertools.groupby(map(tuple, groups)):
        count = len([*rows])
        lines = [*group] if len(group) <= count else [" ".join(group)]
        labels += lines + [""] * (count - len(lines))
    return labels


def names_where_several(rows: pd.DataFrame, names: Sequence[str], always: Collection[str] = ()) -> list[list[str]]:
    """Return of each row the values of those columns that differ among rows, or are `always` wanted."""
    told = [name for name in names if name in always or len(rows[name].unique()) > 1]
    return [[str(row[name]) for name in told if row[name]] for row in rows.to_dict("records")]
