"""What a table is: rows of raw values, and columns that say how a reader sees them."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import pandas as pd

from bench.matrix.wording import written

MISSING = "\N{EN DASH}"

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Column:
    """How one column is shown.

    `heading` may break into lines; `text` makes a cell's text from its row. A display too narrow for all columns leaves
    out those of the highest `priority` first, together, and never those of priority 0. `prose` may be long and wraps.
    `about` is a sentence on what is shown, for the legend. `whole` makes the text for a file, where that of a terminal
    goes on from row to row.
    """

    heading: str
    text: Callable[[Row], str]
    align: Literal["left", "right"] = "right"
    priority: int = 0
    prose: bool = False
    about: str = ""
    whole: Callable[[Row], str] | None = None


@dataclass(frozen=True)
class Table:
    """`rows` holds full-precision values under names with units, as the CSV file does; `columns` show them rounded.

    `name` is that of its files. `caption` are the conditions of all rows, a line each; `notes` are doubts. `shown` is
    how many rows a terminal shows, from the first on; `detail` is what the CSV file holds where that is finer.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: pd.DataFrame
    caption: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    shown: int | None = None
    detail: pd.DataFrame | None = None

    def texts(self, most: int | None = None, *, whole: bool = False) -> list[list[str]]:
        """Return the text of every cell, row by row, without control characters but for the end of a line.

        `most` is how many rows, from the first on; None for all. `whole` is for files, whose rows stand for themselves.
        """
        shown = [(whole and column.whole) or column.text for column in self.columns]
        return [[printable(text(row)) for text in shown] for row in entries(self.rows[:most])]


def entries(rows: pd.DataFrame) -> list[Row]:
    """Return the rows of a frame, each by the names of its columns."""
    return cast("list[Row]", rows.to_dict("records"))


def legend(columns: Iterable[Column]) -> str:
    """Say in one paragraph what the columns show, each thing once."""
    return " ".join(dict.fromkeys(column.about for column in columns if column.about))


def field(name: str) -> Callable[[Row], str]:
    """Show the value of `name` as a matrix would write it."""

    def text(row: Row) -> str:
        return MISSING if pd.isna(row[name]) else written(row[name])

    return text


def informative(columns: Iterable[Column], rows: pd.DataFrame) -> tuple[Column, ...]:
    """Keep the columns that have something to show in at least one row."""
    in_rows = entries(rows)
    return tuple(column for column in columns if any(column.text(row) != MISSING for row in in_rows))


def printable(text: str) -> str:
    """Replace what could steer a terminal by spaces."""
    lines = "\n".join(text.splitlines())
    return "".join(
        " " if unicodedata.category(char) in ("Cc", "Cs") and char != "\n" else char for char in lines
    ).strip("\n")
