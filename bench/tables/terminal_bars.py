"""Stacked bars in a terminal, a line a cell: they read without colour too."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from bench.tables.bars import Bar, Bars
from bench.tables.palette import PALETTE

GAP = 2
LEAST_BAR = 10  # characters; a terminal with less room has the tables only
LEAST_ID = 12
MEASURED, CAP = "┃", "┊"


def print_bars(bars: Bars, console: Console) -> None:
    """Print bars no wider than the console; nothing where it has no room for them."""
    totals = bars.totals()
    widest = max(map(cell_len, totals))
    ends = [_end(bar, total.rjust(widest)) for bar, total in zip(bars.bars, totals, strict=True)]
    end_width = max(map(cell_len, ends))
    # Long ids are folded.
    id_width = min(max(cell_len(bar.id) for bar in bars.bars), max(LEAST_ID, console.width // 2))
    # The column after the bar's last is for a marker at its very end.
    length = console.width - id_width - end_width - 2 * GAP - 1
    if length < LEAST_BAR:
        return
    grid = Grid.grid(padding=(0, GAP, 0, 0), pad_edge=False)
    grid.add_column(overflow="fold", width=id_width)
    grid.add_column(no_wrap=True, width=length + 1)
    grid.add_column(no_wrap=True, width=end_width)
    for bar, end in zip(bars.bars, ends, strict=True):
        grid.add_row(Text(bar.id), drawn(bar, bars, length), Text(end))
    console.print(Text(f"{bars.title}, in {bars.unit.name}", style="bold"))
    console.print(grid)
    for line in _legend(bars, console.width):
        console.print(line)


def drawn(bar: Bar, bars: Bars, length: int) -> Text:
    """Draw one of the bars, `length` characters for all of the axis, with its markers over it."""
    per_byte = length / bars.end_bytes
    edges = [round(at * per_byte) for at in accumulate(bar.sizes_bytes.get(part, 0) for part in bars.parts)]
    cells = [(" ", "")] * (length + 1)
    for part, (start, stop) in zip(bars.parts, pairwise([0, *edges]), strict=True):
        cells[start:stop] = [PALETTE[part]] * (stop - start)
    if bar.cap_bytes is not None and bars.shows_cap(bar):
        cells[round(bar.cap_bytes * per_byte)] = (CAP, "bold")
    if bar.measured_bytes is not None:
        cells[round(bar.measured_bytes * per_byte)] = (MEASURED, "bold")
    return Text.assemble(*cells)


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
