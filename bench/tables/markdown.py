"""Tables as Markdown, as GitHub shows it."""

from __future__ import annotations

import re
from collections.abc import Iterable

from bench.tables.table import Table, legend, printable

RULES = {"left": "---", "right": "---:"}
# What Markdown, or the HTML in it, would take for markup; an underscore within a word is none.
_MARKUP = re.compile(r"[\\`*<>\[\]|~$&#]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def to_markdown(table: Table) -> str:
    """Render every column and row, with title, caption and notes."""
    lines = [
        _line(escape(column.heading.replace("\n", " ")) for column in table.columns),
        _line(RULES[column.align] for column in table.columns),
        *(_line(map(escape, row)) for row in table.texts(whole=True)),
    ]
    blocks = [
        f"# {escape(table.title)}",
        "\n".join(lines),
        *map(escape, filter(None, (*table.caption, legend(table.columns)))),
        *(f"**Note:** {escape(printable(note))}" for note in table.notes),
    ]
    return "\n\n".join(blocks) + "\n"


def escape(text: str) -> str:
    """Make Markdown show `text` as it is, the ends of its lines included."""
    return _MARKUP.sub(r"\\\g<0>", text).replace("\n", "<br>")


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
