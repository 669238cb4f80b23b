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
from bench.matrix.parameters import derive
from bench.matrix.rows import Row
from bench.matrix.schema import Declaration, Override
from bench.matrix.values import Unreadable
from bench.matrix.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Draft:
    """A cell to be: the value of every parameter, in the order of the vocabulary.

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
    """Return every draft of a matrix: crossed ones first, the last axis varying fastest, then the rows of include.

    Of crossed drafts that differ in silent parameters only, the first stands for all.
    """
    vocabulary = declaration.vocabulary
    exclude = Matcher.of(declaration.exclude)
    when = Matcher.of(override.when for override in declaration.overrides)
    drafts, excluded = [], []
    seen: set[tuple[Any, ...]] = set()
    for given, row in _given(declaration):
        values = resolve(given, vocabulary)
        excluding = [declaration.exclude[index] for index in exclude(values)] if row is None else []
        if any(match.sound for match in excluding):
            excluded.append(Draft(values, row))
            continue
        overrides = tuple(declaration.overrides[index] for index in when(values))
        sure = not excluding and all(override.when.sound for override in overrides)
        draft = Draft(_overridden(given, overrides, vocabulary) if overrides else values, row, overrides, sure)
        if row is not None or _is_new(values, draft, seen, vocabulary):
            drafts.append(draft)
    return Crossing(tuple(drafts), tuple(excluded), _idle(declaration, exclude.used, when.used))


def resolve(given: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """Complete the values that were set with the defaults, and with what follows from them."""
    return {**vocabulary.built_in, **derive(given, vocabulary.derived)}


def _given(declaration: Declaration) -> Iterable[tuple[dict[str, Any], Row | None]]:
    defaults = declaration.defaults.values
    if declaration.axes:
        names = tuple(declaration.axes)
        lists = ([setting.value for setting in settings] for settings in declaration.axes.values())
        for values in itertools.product(*lists):
            yield {**defaults, **dict(zip(names, values, strict=True))}, None
    for row in declaration.include:
        yield {**defaults, **row.values}, row


def _overridden(given: Mapping[str, Any], overrides: Iterable[Override], vocabulary: Vocabulary) -> dict[str, Any]:
    """Apply overrides, each chosen by the cell as it was before them; the later wins where two set one parameter."""
    changed = dict(given)
    for override in overrides:
        changed.update(override.change.values)
    return resolve(changed, vocabulary)


def _is_new(before: Mapping[str, Any], draft: Draft, seen: set[tuple[Any, ...]], vocabulary: Vocabulary) -> bool:
    """Tell whether no crossed draft so far differs in silent parameters only, both before overrides and after them.

    Drafts that only overrides make alike are a mistake, and stay.
    """
    if not vocabulary.silent(draft.values):
        return True
    alike = tuple(tuple(vocabulary.significant(values).items()) for values in (before, draft.values))
    is_new = alike not in seen
    seen.add(alike)
    return is_new


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
    return names | declaration.vocabulary.derived.keys() if names else names
