"""Numbers as text: rounded alike down a column, signs and dashes the same everywhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pandas as pd

from bench.tables.table import MISSING, Column, Row

GB = 1e9
MB = 1e6
MINUS = "\N{MINUS SIGN}"
TO = "\N{EN DASH}"

_MOST_DIGITS = 5


class Unit(NamedTuple):
    """A unit of memory, with the decimals that a column of parts and their sum is shown with."""

    name: str
    bytes: float
    decimals: int
    about: str


UNITS = (Unit("GB", GB, 3, "GB = 1e9 bytes."), Unit("MB", MB, 1, "MB = 1e6 bytes."))


def unit_for(largest_bytes: float) -> Unit:
    """Choose the unit of a table whose largest figure, which may be NaN, is this one."""
    return UNITS[0] if largest_bytes >= GB else UNITS[1]


def number_column(
    rows: pd.DataFrame,
    name: str,
    heading: str,
    *,
    scale: float = 1,
    priority: int = 0,
    decimals: int | None = None,
    about: str = "",
) -> Column:
    """Show `name` in units of `scale`, all rows with the decimals that give the smallest three figures."""
    places = decimals_for(rows[name] / scale) if decimals is None else decimals
    return Column(heading, lambda row: number(row[name] / scale, places), priority=priority, about=about)


def range_column(
    rows: pd.DataFrame, low: str, high: str, heading: str, *, scale: float = 1, priority: int, about: str
) -> Column:
    """Show the lowest and the highest, as in `1.2 to 3.4` with a dash."""
    places = decimals_for([*rows[low] / scale, *rows[high] / scale])

    def text(row: Row) -> str:
        ends = [number(row[name] / scale, places) for name in (low, high)]
        return MISSING if MISSING in ends else TO.join(ends)

    return Column(heading, text, priority=priority, about=about)


def change_column(name: str, heading: str, *, priority: int, about: str) -> Column:
    """Show a change in percent with its sign."""
    return Column(heading, lambda row: signed(row[name], 1), priority=priority, about=about)


def decimals_for(values: Iterable[float], digits: int = 3) -> int:
    """Return the decimals that show the smallest value with `digits` figures and the largest with five at most."""
    sizes = [abs(value) for value in values if math.isfinite(value) and value != 0]
    if not sizes:
        return 0
    wanted = digits - 1 - math.floor(math.log10(min(sizes)))
    room = _MOST_DIGITS - 1 - math.floor(math.log10(max(sizes)))
    return max(0, min(wanted, room, digits))


def number(value: float, decimals: int) -> str:
    """Write `1,234.5`; a value too small to show is `<0.001`, so that only what is zero reads as zero."""
    if not math.isfinite(value):
        return MISSING
    least = 10.0**-decimals
    if 0 < value < least / 2:
        return f"<{least:.{decimals}f}"
    return f"{value:,.{decimals}f}".replace("-", MINUS)


def sized(value: float, unit: Unit = UNITS[0]) -> str:
    """Write `15.40 GB` for a sentence; NaN as a dash."""
    return f"{number(value / unit.bytes, min(unit.decimals, 2))} {unit.name}"


def signed(value: float, decimals: int) -> str:
    """Write a change with its sign; one that rounds to zero has none."""
    if not math.isfinite(value):
        return MISSING
    text = f"{abs(value):,.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        return text
    return f"{'+' if value > 0 else MINUS}{text}"


def accuracy(before: float, after: float, half_width: float) -> str:
    """Write `11.2 → 86.5 ± 1.2`, in percent, from shares; no more decimals than the uncertainty bears."""
    if not math.isfinite(before) and not math.isfinite(after):
        return MISSING
    decimals = 0 if half_width >= 0.1 else 1
    change = f"{number(before * 100, decimals)} → {number(after * 100, decimals)}"
    return change if not math.isfinite(half_width) else f"{change} ± {number(half_width * 100, decimals)}"


def listed(names: Sequence[Any], most: int = 6) -> str:
    """Write `a, b, c`, and how many more there are than `most`."""
    shown = ", ".join(map(str, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"
