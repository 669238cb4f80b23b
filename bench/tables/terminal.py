"""Tables in a terminal, with rich: where it is narrow, names are folded and columns left out.

Long text stands below its row.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box
from rich.cells import cell_len, chop_cells
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text

from bench.tables.table import MISSING, Column, Table, legend, printable

GAP = 2
LEAST_CHARACTERS = 12  # of a name, in a line of its own
LEAST_ID_CHARACTERS = 24  # to which a name is folded so that more columns fit
INDENT = 4
_PIECE = re.compile(r"[^\s-]*[\s-]+|[^\s-]+")  # of a name, up to where it may break
STATUS_STYLES = {
    "ok": "green",
    "oom": "yellow",
    "timeout": "yellow",
    "interrupted": "yellow",
    "diverged": "red",
    "crashed": "red",
    "invalid": "red",
}


def print_table(table: Table, console: Console, full: Path | str | None = None) -> None:
    """Print a table no wider than the console; `full` is what to name, where rows or columns are left out."""
    kept, texts = _arranged(table.columns, table.texts(table.shown), console.width)
    more = len(table.rows) - len(texts)
    hidden = [_name(column) for index, column in enumerate(table.columns) if index not in kept]
    where = f"; {full} has all" if full else ""
    parts = [
        Text(table.title, style="bold"),
        *_body(table, texts, kept),
        *([Text(f"… and {more:,} more{f' in {full}' if full else ''}", style="dim")] if more else []),
        Text(),
        *(Text(line, style="dim") for line in (*table.caption, legend(table.columns[index] for index in kept)) if line),
        *([Text(f"hidden at this width: {', '.join(dict.fromkeys(hidden))}{where}.", style="dim")] if hidden else []),
        *map(_note, table.notes),
    ]
    for part in parts:
        console.print(part)


def print_note(text: str, console: Console) -> None:
    console.print(_note(text))


def _note(text: str) -> Text:
    return Text.assemble(("note: ", "yellow"), printable(text))


def fitting(columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int) -> list[int]:
    """Choose the columns, by index, that fit side by side into `width` characters; prose stands below the others."""
    kept = list(range(len(columns)))
    while _width(columns, texts, kept) > width and (least := max(columns[index].priority for index in kept)) > 0:
        kept = [index for index in kept if columns[index].priority < least]
    return kept


def id_characters(width: int) -> int:
    """Return how many characters a name is folded to in `width`, where its table does not fit with it whole."""
    return max(LEAST_ID_CHARACTERS, width // 3)


def folded(texts: Sequence[Sequence[str]], characters: int) -> list[list[str]]:
    """Fold the first column, of names, into lines of at most `characters`."""
    return [["\n".join(fold(pieces(line), characters) for line in row[0].split("\n")), *row[1:]] for row in texts]


def pieces(name: str) -> list[str]:
    """Part a name after its hyphens and spaces, where it may break."""
    return _PIECE.findall(name)


def fold(parts: Iterable[str], characters: int) -> str:
    """Join parts into lines of at most `characters`; a part is broken only where it is longer than a line."""
    lines = [""]
    for part in parts:
        if lines[-1] and cell_len(f"{lines[-1]}{part}".rstrip()) > characters:
            lines.append("")
        lines[-1] += part
    return "\n".join(chopped for line in lines for chopped in chop_cells(line.rstrip(), characters))


def _arranged(
    columns: Sequence[Column], texts: Sequence[Sequence[str]], width: int
) -> tuple[list[int], list[list[str]]]:
    """Choose the columns, by index, and fold the first one, of names, to the room that the others leave it.

    Names are folded to bring in columns that would be hidden, and not further than that takes.
    """
    kept = fitting(columns, texts, width)
    if len(kept) < len(columns):
        tried = [
            fitting(columns, folded(texts, characters), width)
            for characters in (id_characters(width), LEAST_ID_CHARACTERS)
        ]
        kept = next((trial for trial in tried if len(trial) == len(columns)), tried[0])
    room = width - _width(columns, texts, kept) + _column_width(columns, texts, kept[0])
    return kept, folded(texts, max(LEAST_CHARACTERS, room))


def _name(column: Column) -> str:
    return column.heading.replace("-\n", "").replace("\n", " ")


def _width(columns: Sequence[Column], texts: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    widths = [_column_width(columns, texts, index) for index in kept if not columns[index].prose]
    return sum(widths) + GAP * (len(widths) - 1)


def _column_width(columns: Sequence[Column], texts: Sequence[Sequence[str]], index: int) -> int:
    shown = [columns[index].heading, *(row[index] for row in texts)]
    return max(cell_len(line) for text in shown for line in text.split("\n"))


def _body(table: Table, texts: Sequence[Sequence[str]], kept: Sequence[int]) -> Iterator[RenderableType]:
    prose = [index for index in kept if table.columns[index].prose]
    widths = {index: _column_width(table.columns, texts, index) for index in kept if index not in prose}
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
