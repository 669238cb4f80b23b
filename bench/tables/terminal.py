"""Tables in a terminal, with rich: where it is narrow columns are left out; long text stands below its row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from bench.matrix.wording import counted
from bench.tables.table import MISSING, Column, Table, legend, printable

GAP = 2
LEAST_CHARACTERS = 12  # of a name, in a line of its own
INDENT = 4
STATUS_STYLES = {
    "ok": "green",
    "oom": "yellow",
    "timeout": "yellow",
    "interrupted": "yellow",
    "diverged": "red",
    "crashed": "red",
    "invalid": "red",
}


def print_table(table: Table, console: Console, full: Path | None = None) -> None:
    """Print a table no wider than the console; `full` is the file to name where columns had to be left out."""
    texts = table.texts()
    kept = fitting(table.columns, texts, console.width)
    hidden = len(table.columns) - len(kept)
    where = f"; {full} has all" if full else ""
    parts = [
        Text(table.title, style="bold"),
        *_body(table, texts, kept, console.width),
        Text(),
        *(Text(line, style="dim") for line in (*table.caption, legend(table.columns[index] for index in kept)) if line),
        *([Text(f"{counted(hidden, 'column')} hidden at this width{where}.", style="dim")] if hidden else []),
        *(Text.assemble(("note: ", "yellow"), printable(line)) for line in table.notes),
    ]
    for part in parts:
        console.print(part)


def fitting(columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int) -> list[int]:
    """Choose the columns, by index, that fit side by side into `width` characters; prose stands below the others."""
    kept = list(range(len(columns)))
    while _width(columns, texts, kept) > width and (least := max(columns[index].priority for index in kept)) > 0:
        kept = [index for index in kept if columns[index].priority < least]
    return kept


def _width(columns: Sequence[Column], texts: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    widths = [_column_width(columns, texts, index) for index in kept if not columns[index].prose]
    return sum(widths) + GAP * (len(widths) - 1)


def _column_width(columns: Sequence[Column], texts: Sequence[Sequence[str]], index: int) -> int:
    shown = [columns[index].heading, *(row[index] for row in texts)]
    return max(cell_len(line) for text in shown for line in text.split("\n"))


def _body(table: Table, texts: Sequence[Sequence[str]], kept: Sequence[int], width: int) -> Iterator[RenderableType]:
    prose = [index for index in kept if table.columns[index].prose]
    grid = [index for index in kept if not table.columns[index].prose]
    widths = {index: _column_width(table.columns, texts, index) for index in grid}
    # Where not even the columns that are always shown fit, the first one, of names, is folded.
    too_wide = _width(table.columns, texts, grid) - width
    widths[grid[0]] = min(widths[grid[0]], max(LEAST_CHARACTERS, widths[grid[0]] - too_wide))
    if not prose:
        yield _grid(table, texts, widths, range(len(texts)))
        return
    for number, row in enumerate(texts):
        yield _grid(table, texts, widths, [number], header=number == 0)
        for index in prose:
            if row[index] != MISSING:
                yield Padding(Text(f"{table.columns[index].heading}: {row[index]}"), (0, 0, 0, INDENT))


def _grid(
    table: Table,
    texts: Sequence[Sequence[str]],
    widths: Mapping[int, int],
    numbers: Iterable[int],
    header: bool = True,
) -> Grid:
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 0, 0, GAP - 1), show_header=header)
    for index, width in widths.items():
        column = table.columns[index]
        grid.add_column(Text(column.heading), justify=column.align, vertical="top", overflow="fold", min_width=width)
    for number in numbers:
        grid.add_row(*(_styled(table.columns[index], texts[number][index]) for index in widths))
    return grid


def _styled(column: Column, text: str) -> Text:
    styled = Text(text)
    if column.heading == "status":
        for status, style in STATUS_STYLES.items():
            styled.highlight_words([status], style)
    return styled
