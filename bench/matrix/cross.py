"""Crosses the axes of a matrix and applies exclude, overrides and include, in that order.

The result is drafts, not cells: every parameter has its value, but nothing has been checked and nothing has an id.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.matrix.match import Matcher
from bench.matrix.parameters import DERIVED, Parameters
from bench.matrix.rows import Row
from bench.matrix.schema import Declaration, Override
from bench.matrix.values import Unreadable

BUILT_IN: dict[str, Any] = {name: info.default for name, info in Parameters.model_fields.items()}


@dataclass(frozen=True, slots=True)
class Draft:
    """A cell to be: the value of every parameter, in the order of `Parameters`.

    `row` is the include row, or None for a crossed cell. A draft is `sure` unless a mistake elsewhere in the file may
    have changed or excluded it.
    """

    values: dict[str, Any]
    row: Row | None
    overrides: tuple[Override, ...] = ()
    sure: bool = True


@dataclass(frozen=True)
class Crossing:
    """What came of a declaration; `idle` are the rows of `exclude` and `when` that match nothing."""

    drafts: tuple[Draft, ...]
    excluded: tuple[Draft, ...]
    idle: tuple[tuple[str, Row], ...]


def size_of(axes: Mapping[str, Sequence[Any]]) -> int:
    """Count the cells that the axes cross to, before any is excluded."""
    return math.prod(map(len, axes.values())) if axes else 0


def cross(declaration: Declaration) -> Crossing:
    """Return every draft of a matrix: crossed ones first, the last axis varying fastest, then the rows of include."""
    exclude = Matcher.of(declaration.exclude)
    when = Matcher.of(override.when for override in declaration.overrides)
    drafts, excluded = [], []
    for given, row in _given(declaration):
        values = resolve(given)
        excluding = [declaration.exclude[index] for index in exclude(values)] if row is None else []
        if any(match.sound for match in excluding):
            excluded.append(Draft(values, row))
            continue
        overrides = tuple(declaration.overrides[index] for index in when(values))
        sure = not excluding and all(override.when.sound for override in overrides)
        drafts.append(Draft(_overridden(given, overrides) if overrides else values, row, overrides, sure))
    return Crossing(tuple(drafts), tuple(excluded), _idle(declaration, exclude.used, when.used))


def resolve(given: Mapping[str, Any]) -> dict[str, Any]:
    """Complete the values that were set with the defaults, and with what follows from them."""
    derived = {name: derive(given) for name, (_, derive) in DERIVED.items()}
    return {**BUILT_IN, **derived, **given}


def _given(declaration: Declaration) -> Iterable[tuple[dict[str, Any], Row | None]]:
    defaults = declaration.defaults.values
    if declaration.axes:
        names = tuple(declaration.axes)
        lists = ([setting.value for setting in settings] for settings in declaration.axes.values())
        for values in itertools.product(*lists):
            yield {**defaults, **dict(zip(names, values, strict=True))}, None
    for row in declaration.include:
        yield {**defaults, **row.values}, row


def _overridden(given: Mapping[str, Any], overrides: Iterable[Override]) -> dict[str, Any]:
    """Apply overrides, each chosen by the cell as it was before them; the later wins where two set one parameter."""
    changed = dict(given)
    for override in overrides:
        changed.update(override.change.values)
    return resolve(changed)


def _idle(declaration: Declaration, used_exclude: set[int], used_when: set[int]) -> tuple[tuple[str, Row], ...]:
    rows = [("exclude", row) for index, row in enumerate(declaration.exclude) if index not in used_exclude]
    rows += [("when", override.when) for index, override in enumerate(declaration.overrides) if index not in used_when]
    doubtful = _doubtful(declaration)
    return tuple((part, row) for part, row in rows if row.sound and row.settings and not doubtful & row.settings.keys())


def _doubtful(declaration: Declaration) -> set[str]:
    """Name the parameters that a mistake in the file leaves without a value, and those that may follow from them."""
    rows = [declaration.defaults, *declaration.include, *(override.change for override in declaration.overrides)]
    names = {name for row in rows for name in row.settings.keys() - row.readable.keys()}
    names |= {
        name
        for name, settings in declaration.axes.items()
        if any(isinstance(setting.value, Unreadable) for setting in settings)
    }
    return names | DERIVED.keys() if names else names
