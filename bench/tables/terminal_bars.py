"""Stacked bars in a terminal, a line a cell: they read without colour too."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import floor

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bench.tables.bars import Bar, Bars
from bench.tables.palette import PALETTE
from bench.tables.terminal import fold, pieces

GAP = 2
LEAST_BAR = 10  # characters; a terminal with less room has the tables only
LEAST_ID = 12
MEASURED, CAP = "┃", "┊"


def print_bars(bars: Bars, console: Console) -> None:
    """Print bars no wider than the console, a block a panel; nothing where it has no room for them."""
    panels = bars.panels
    ends = _ends(panels)
    end_width = max(cell_len(end) for texts in ends for end in texts)
    id_width = min(max(cell_len(bar.id) for bar in bars.bars), max(LEAST_ID, console.width // 2))
    # The column after the bar's last is for a marker at its very end.
    length = console.width - id_width - end_width - 2 * GAP - 1
    if length < LEAST_BAR:
        return
    console.print(Text(bars.title if len(panels) > 1 else f"{bars.title} in {bars.unit.name}", style="bold"))
    for panel, texts in zip(panels, ends, strict=True):
        if panel.heading:
            console.print()
            console.print(Text(f"{panel.heading}, in {panel.unit.name}", style="bold"))
        grid = Grid.grid(padding=(0, GAP, 0, 0), pad_edge=False)
        grid.add_column(width=id_width)
        grid.add_column(no_wrap=True, width=length + 1)
        grid.add_column(no_wrap=True, width=end_width)
        for bar, end in zip(panel.bars, texts, strict=True):
            grid.add_row(Text(fold(pieces(bar.id), id_width)), drawn(bar, panel, length), Text(end))
        console.print(grid)
    if len(panels) > 1:
        console.print()
    for line in _legend(bars, console.width):
        console.print(line)


def drawn(bar: Bar, bars: Bars, length: int) -> Text:
    """Draw one of the bars, `length` characters for all of the axis, with its markers over it."""
    per_byte = length / bars.end_bytes
    shares = [bar.sizes_bytes.get(part, 0) * per_byte for part in bars.parts]
    cells = [PALETTE[part] for part, count in zip(bars.parts, apportioned(shares), strict=True) for _ in range(count)]
    line = [*cells, *[(" ", "")] * (length + 1 - len(cells))]
    if bar.cap_bytes is not None and bars.shows_cap(bar):
        line[round(bar.cap_bytes * per_byte)] = (CAP, "bold")
    if bar.measured_bytes is not None:
        line[round(bar.measured_bytes * per_byte)] = (MEASURED, "bold")
    return Text.assemble(*line)


def apportioned(shares: Sequence[float]) -> list[int]:
    """Round shares of characters to whole ones that add up to their rounded sum.

    Each share is rounded down, and what is left over goes to the largest remainders (Hamilton's method): none is off by
    a whole character, and a larger share never has fewer characters than a smaller one.
    """
    counts = [floor(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda at: (counts[at] - shares[at], -shares[at]))
    for at in by_remainder[: round(sum(shares)) - sum(counts)]:
        counts[at] += 1
    return counts


def _ends(panels: Sequence[Bars]) -> list[list[str]]:
    """Write what stands behind each bar, the totals of all panels below one another."""
    totals = [panel.totals() for panel in panels]
    widest = max(cell_len(total) for texts in totals for total in texts)
    return [
        [_end(bar, total.rjust(widest)) for bar, total in zip(panel.bars, texts, strict=True)]
        for panel, texts in zip(panels, totals, strict=True)
    ]


def _end(bar: Bar, total: str) -> str:
    return total if bar.status == "ok" else f"{total} {bar.status}"


def _legend(bars: Bars, width: int) -> Iterator[Text]:
    """Break the legend between its entries, never within one."""
    marks = [(MEASURED, "bold", "measured peak")] * bars.has_measured + [(CAP, "bold", "cap")] * bars.has_cap
    line = Text()
    for mark, style, name in [*((*PALETTE[part], part) for part in bars.parts), *marks]:
        entry = Text.assemble((mark, style), f" {name}")
        if line and line.cell_len + GAP + entry.cell_len > width:
            yield line
            line = Text()
        line = Text(" " * GAP).join([line, entry]) if line else entry
    yield line
