"""Memory as stacked bars, a bar a cell: what the picture in the terminal and those on disk both draw.

Models whose bars differ too much for one axis have a panel each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from bench.tables.caption import conditions
from bench.tables.cells import id_text
from bench.tables.figures import Unit, number, unit_for
from bench.tables.limits import limit_rules
from bench.tables.parts import AT_PEAK, IN_STORAGE, KNOWN_AT_PEAK, LIVE_AT_PEAK, Part, size, with_unplaced
from bench.tables.pool import pool_seeds
from bench.tables.table import MISSING, Row, entries, printable

AT_LEAST = "≥: a lower bound; without a prediction, what was counted part by part."
# A cap further out than this many times the largest bar would leave the bars no room.
FARTHEST_CAP = 2.0
# Models whose largest bars differ by more than this many times have an axis each.
WIDEST_RATIO = 4.0


@dataclass(frozen=True)
class Bar:
    """One cell: `sizes_bytes` has those of the parts that it has; `sign` stands before their total."""

    id: str
    sizes_bytes: Mapping[str, float]
    sign: str = ""
    measured_bytes: float | None = None
    cap_bytes: float | None = None
    status: str = "ok"
    model: str = ""

    @property
    def total_bytes(self) -> float:
        return sum(self.sizes_bytes.values())


@dataclass(frozen=True)
class Bars:
    """The bars of one result, or of one panel of it; `parts` are named in the order in which they are stacked.

    `heading` is that of a panel: its model.
    """

    title: str
    parts: tuple[str, ...]
    bars: tuple[Bar, ...]
    caption: tuple[str, ...]
    heading: str = ""

    @property
    def panels(self) -> tuple[Bars, ...]:
        """Split the bars by their models if the largest ones differ by more than `WIDEST_RATIO` times."""
        by_model: dict[str, list[Bar]] = {}
        for bar in self.bars:
            by_model.setdefault(bar.model, []).append(bar)
        largest = [size for bars in by_model.values() if (size := max(bar.total_bytes for bar in bars))]
        if not largest or max(largest) <= WIDEST_RATIO * min(largest):
            return (self,)
        return tuple(replace(self, bars=tuple(bars), heading=model) for model, bars in by_model.items())

    @property
    def end_bytes(self) -> float:
        """How far the axis has to reach: to the longest bar, what was measured, and a cap that is not too far out.

        It is never of no length, though a panel may have no known bar.
        """
        largest = max(max(bar.total_bytes, bar.measured_bytes or 0, 1) for bar in self.bars)
        caps = [bar.cap_bytes for bar in self.bars if bar.cap_bytes and bar.cap_bytes <= FARTHEST_CAP * largest]
        return max(largest, *caps) if caps else largest

    @property
    def has_measured(self) -> bool:
        return any(bar.measured_bytes is not None for bar in self.bars)

    @property
    def has_cap(self) -> bool:
        return any(panel.shows_cap(bar) for panel in self.panels for bar in panel.bars)

    def shows_cap(self, bar: Bar) -> bool:
        return bar.cap_bytes is not None and bar.cap_bytes <= self.end_bytes

    @property
    def unit(self) -> Unit:
        return unit_for(self.end_bytes)

    @property
    def decimals(self) -> int:
        return min(self.unit.decimals, 2)

    def totals(self) -> list[str]:
        """Write the total of every bar in `unit`, with the decimals of its parts; a dash where nothing is known."""
        sizes = [bar.total_bytes / self.unit.bytes for bar in self.bars]
        return [
            bar.sign + (number(value, self.decimals) if value else MISSING)
            for bar, value in zip(self.bars, sizes, strict=True)
        ]


def memory_bars(frame: pd.DataFrame) -> Bars | None:
    """Draw up the bars of one result, a frame of `load_results` with at least one row; None where nothing is known.

    They show the predicted peak of training, the measured one and the cap. Among predicted cells, one without shows of
    its peak what was counted part by part, as a lower bound. Where no cell of the result has a prediction, the bars
    show what is stored.
    """
    cells = with_unplaced(pool_seeds(frame).reset_index())
    is_predicted = cells["predicted_train_peak_allocated_bytes"].notna()
    of_peak = bool(is_predicted.any())
    parts: tuple[Part, ...] = AT_PEAK if of_peak else IN_STORAGE
    sizes, known = _sizes(cells, parts), _sizes(cells, KNOWN_AT_PEAK)
    if of_peak:
        sizes = [one if sure else other for one, other, sure in zip(sizes, known, is_predicted, strict=True)]
    bounds = (~is_predicted | cells["prediction_note"].notna()) & of_peak
    what = "predicted peak of training" if of_peak else "storage of the loaded base"
    bars = tuple(
        _bar(row, stacked, of_peak=of_peak, sign="≥ " if bound else "")
        for row, stacked, bound in zip(entries(cells), sizes, bounds, strict=True)
    )
    if not any(bar.total_bytes for bar in bars):
        return None
    return Bars(
        title=f"{frame['matrix'].iloc[0]}: {what}",
        parts=tuple(part.name for part in parts if any(bar.sizes_bytes.get(part.name) for bar in bars)),
        bars=bars,
        caption=(
            *conditions(frame),
            *((*limit_rules(frame), LIVE_AT_PEAK) if of_peak else ()),
            *([AT_LEAST] if any(bar.sign for bar in bars) else []),
        ),
    )


def _sizes(cells: pd.DataFrame, parts: Sequence[Part]) -> list[dict[str, float]]:
    rows = entries(pd.DataFrame({part.name: size(cells, part) for part in parts}))
    return [{name: value for name, value in row.items() if value > 0} for row in rows]


def _bar(row: Row, sizes_bytes: Mapping[str, float], *, of_peak: bool, sign: str) -> Bar:
    return Bar(
        id=printable(id_text(row)),
        sizes_bytes=sizes_bytes,
        sign=sign if sizes_bytes else "",
        measured_bytes=_known(row["train_peak_allocated_bytes"]) if of_peak and row["ok_count"] else None,
        cap_bytes=_known(row["cap_bytes"]) if of_peak else None,
        status=row["status"],
        model=printable(row["model"]),
    )


def _known(value: float) -> float | None:
    return None if pd.isna(value) else float(value)
