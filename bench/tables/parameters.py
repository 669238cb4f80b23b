"""The table of parameters that `qlora-bench params` prints: what a matrix may set."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.matrix.explain import ParameterRow

WIDE = 100  # characters of a terminal in which defaults have a column of their own
GAP = 2


def show_parameters(rows: Sequence[ParameterRow], console: Console) -> None:
    """Print parameters no wider than the console.

    Values are there to be typed: their words stay whole. Where that leaves little room, defaults stand below them.
    """
    columns = {
        "parameter": [row.name for row in rows],
        "values": [row.type for row in rows],
        "default": [row.default for row in rows],
        "meaning": [row.about for row in rows],
    }
    if console.width < WIDE:
        defaults = columns.pop("default")
        columns["values"] = [f"{one}\ndefault: {other}" for one, other in zip(columns["values"], defaults, strict=True)]
    widths = {name: max(len(word) for text in texts for word in text.split()) for name, texts in columns.items()}
    del widths["meaning"]
    left = console.width - sum(widths.values()) - GAP * len(widths)
    widths["values"] += max(0, (left - widths["values"]) // 2)
    table = Table.grid(padding=(0, GAP, 0, 0))
    table.show_header, table.header_style = True, "bold"
    for name in columns:
        table.add_column(name, overflow="fold", width=widths.get(name))
    for texts in zip(*columns.values(), strict=True):
        table.add_row(*map(Text, texts))  # Text, since [module names] is no markup
    console.print(table)
