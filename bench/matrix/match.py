"""Finds the rows of exclude, or the conditions of overrides, that a cell matches."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench.matrix.rows import Row


@dataclass
class Matcher:
    """Finds the rows that match a cell; rows of the same parameters share a table, so that many rows cost little."""

    used: set[int] = field(default_factory=set)  # indices of the rows that have matched a cell so far
    tables: dict[tuple[str, ...], dict[tuple[Any, ...], list[int]]] = field(default_factory=lambda: defaultdict(dict))

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Matcher:
        matcher = cls()
        for index, row in enumerate(rows):
            names = tuple(sorted(row.readable))
            if row.settings or not row.complete:
                table = matcher.tables[names]
                table.setdefault(tuple(row.readable[name] for name in names), []).append(index)
        return matcher

    def __call__(self, values: Mapping[str, Any]) -> list[int]:
        """Return the indices of the rows whose every readable value is the cell's, ascending."""
        found: list[int] = []
        for names, table in self.tables.items():
            found += table.get(tuple([values[name] for name in names]), ())
        self.used.update(found)
        return sorted(found)
