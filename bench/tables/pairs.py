"""Which cells differ in one setting and in nothing else: the pairs that tell what that setting does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from bench.matrix.parameters import DERIVED
from bench.matrix.wording import written
from bench.tables.contrasts import LEAST_SEEDS, Contrast
from bench.tables.evidence import Compared, Evidence
from bench.tables.load import PARAMETER_NAMES
from bench.tables.pool import varying
from bench.tables.table import entries

# How long a cell may take says nothing of what it does.
WITHOUT_EFFECT = ("timeout",)
MOST_VALUES = 12  # of an axis whose values are compared with others than the first
ROUNDING = 1e-9  # of the largest difference, what the sum of exact ones may be off
SEED_AXIS = "seed_offset"
NAMES = {SEED_AXIS: "A/A (seed_offset)"}


@dataclass(frozen=True, eq=False)
class Change:
    """A change of one parameter, `axis`, from a value to another.

    pairs: [pairs, 2] the numbers of the cells that differ in it alone; the second has the value changed to.
    """

    axis: str
    since: Any
    to: Any
    pairs: np.ndarray

    @property
    def name(self) -> str:
        return f"{axis_name(self.axis)}: {change_text(self.since, self.to)}"


@dataclass(frozen=True, eq=False)
class Settings:
    """The parameters that vary between cells, but for those without effect.

    levels: of each, the values that occur, in the order of `ordered`. codes: [cells] which of them a cell has. axes:
    the parameters that do not just follow another. follows: of each derived parameter that some cell sets otherwise,
    [cells] which have it as `DERIVED` says; one that follows in every cell tells nothing, and is in `levels` alone.
    """

    levels: Mapping[str, Sequence[Any]]
    codes: Mapping[str, np.ndarray]
    axes: tuple[str, ...]
    follows: Mapping[str, np.ndarray]

    def keys(self, groups: np.ndarray, without: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return keys of groups of cells, [groups, cells], that those share whose settings are alike.

        All settings count but for `without`. A derived parameter is alike where its values are the same, or where it
        follows its rule in all cells; so a group has a key for each way in which it may be like others. The first
        array returned is the group that each key in the second belongs to.
        """
        plain = [self.codes[name][groups] for name in self.axes if name not in without and name not in self.follows]
        derived = [name for name in self.follows if name not in without]
        numbers, columns = [], []
        for ruled in product((False, True), repeat=len(derived)):
            of_way = zip(derived, ruled, strict=True)
            fits = np.ones(len(groups), bool)
            parts = [*plain]
            for name, by_rule in of_way:
                fits &= self.follows[name][groups].all(axis=1) | (not by_rule)
                parts.append(np.zeros_like(groups) if by_rule else self.codes[name][groups] + 1)
            numbers.append(np.flatnonzero(fits))
            columns.append(np.hstack([np.empty((len(groups), 0), int), *parts])[fits])
        return np.concatenate(numbers), _numbered(np.vstack(columns))


@dataclass(frozen=True, eq=False)
class Chosen:
    """What of some groups of cells (pairs, or couples of pairs) a measure is averaged over.

    kept: [groups] which of them. shared: [seeds] the seeds that all of their cells have.
    """

    kept: np.ndarray
    shared: np.ndarray


def settings_of(evidence: Evidence) -> Settings:
    """Return the settings that vary between the cells of a result."""
    cells = evidence.cells[list(PARAMETER_NAMES)]
    names = [name for name in varying(cells) if name not in WITHOUT_EFFECT]
    known = cells[names].astype(object).where(cells[names].notna(), None)
    same = entries(cells.iloc[:1])[0]
    rows = [{**same, **row} for row in entries(known)]
    follows = {
        name: np.array([row[name] == DERIVED[name][1](row) for row in rows]) for name in names if name in DERIVED
    }
    levels = {name: ordered(known[name]) for name in names}
    places = {name: {value: place for place, value in enumerate(of_name)} for name, of_name in levels.items()}
    return Settings(
        levels=levels,
        codes={name: np.array([place[row[name]] for row in rows], int) for name, place in places.items()},
        axes=tuple(name for name in names if name not in follows or not follows[name].all()),
        follows={name: of_cells for name, of_cells in follows.items() if not of_cells.all()},
    )


def ordered(values: Iterable[Any]) -> list[Any]:
    """Put the values of an axis in order, each once: false before true, numbers ascending, others as they appear."""
    distinct = list(dict.fromkeys(values))
    numbers = all(isinstance(value, int | float) for value in distinct)  # a bool is an int
    return sorted(distinct) if numbers else distinct


def changes(evidence: Evidence, settings: Settings) -> list[Change]:
    """List all changes of one setting between cells of a result, axis by axis.

    Two cells differ in an axis alone where all other parameters are equal, but for derived ones that follow their rule
    in both. Each value is compared with the axis's first one: false, the lowest number, or else the baseline's value.
    So that nothing is told twice, two other values are compared only where that tells more than a detour over the
    first: more pairs of cells with results differ by them than by either and the first one, or one of the two has no
    such pair (the baseline is often a single cell, while other values are crossed with every axis). Of an axis with
    more than `MOST_VALUES` values, each is compared with the first alone.
    """
    known = with_results(evidence)
    return [change for axis in settings.axes for change in _changes(settings, axis, known)]


def with_results(evidence: Evidence) -> np.ndarray:
    """Tell which cells, [cells], can be compared in any measure."""
    known = np.array([[group is not None for group in groups] for groups in evidence.groups.values()])
    return np.asarray(known.any(axis=0))


def groups_of(evidence: Evidence) -> dict[str, np.ndarray]:
    """Return for each measure, [cells], a number for each group of cells that may be compared; -1 in no group.

    What is not equal to itself, NaN, is no group.
    """
    numbers = {}
    for name, groups in evidence.groups.items():
        known = dict.fromkeys(group for group in groups if group is not None and group == group)
        places = {group: place for place, group in enumerate(known)}
        numbers[name] = np.array([places.get(group, -1) for group in groups])
    return numbers


def comparable(groups: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Tell which pairs, [pairs, 2], may be compared, as `Evidence.comparable` does of one; `groups` is [cells]."""
    one, other = groups[pairs].T
    return np.asarray((one == other) & (one >= 0))


def choose(evidence: Evidence, measure: Compared, groups: np.ndarray) -> Chosen:
    """Choose of groups of cells, [groups, cells], those to average over the seeds that all of their cells have.

    All of them where they share `LEAST_SEEDS` seeds. Otherwise one run that failed would cost every average that its
    cell is in the verdict: so groups are left out that lack the seeds which most have, as far as that brings up to
    `LEAST_SEEDS` and keeps half of the groups. Where not even one seed is shared, those stay that have the seed which
    most have (the lowest of several); where no group has any, all do, and their average has no seed.
    """
    known = ~np.isnan(evidence.samples[measure.name].observed)[groups].any(axis=1)
    by_count = np.argsort(-known.sum(axis=0), kind="stable")
    most = known.any(axis=1).sum()
    best, kept = (-1, -1, -1), np.ones(len(groups), bool)
    for seeds in range(len(by_count) + 1):
        trial = known[:, by_count[:seeds]].all(axis=1)
        shared = int(known[trial].all(axis=0).sum())
        score = (min(shared, LEAST_SEEDS), int(trial.sum()), shared)
        if score > best and trial.any() and (seeds <= 1 or 2 * trial.sum() >= most):
            best, kept = score, trial
    return Chosen(kept, known[kept].all(axis=0))


def mean_difference(pairs: np.ndarray) -> Contrast:
    """Return the contrast of the mean difference of pairs, [pairs, 2], second less first."""
    return weighted(pairs.ravel(), np.tile([-1 / len(pairs), 1 / len(pairs)], len(pairs)))


def weighted(cells: np.ndarray, weights: np.ndarray) -> Contrast:
    """Return the contrast with these weights, those of a cell that occurs several times added up."""
    distinct, place = np.unique(cells, return_inverse=True)
    sums = np.bincount(place, weights)
    kept = np.abs(sums) > 1e-12
    return Contrast(tuple(distinct[kept].tolist()), tuple(sums[kept].tolist()))


def with_range(
    found: pd.DataFrame, evidence: Evidence, measure: Compared, groups: Sequence[np.ndarray]
) -> pd.DataFrame:
    """Give estimates of an exact measure, which has no noise, the range over their pairs in place of an interval.

    `groups` are the pairs, [pairs, 2], that each estimate is the mean of, or couples of pairs, [couples, 2, 2]. What
    rounding leaves of a mean of zero is no difference, whatever its sign.
    """
    if measure.kind != "exact":
        return found
    observed = evidence.samples[measure.name].observed
    low, high = measure.scale * np.array([_range(_differences(observed, pairs)) for pairs in groups]).T
    zero = (found["estimate"].abs() <= ROUNDING * np.maximum(abs(low), abs(high))) | ((low == 0) & (high == 0))
    unknown = dict.fromkeys(("p", "p_exact", "p_holm", "minimum_detectable", "standard_error"), np.nan)
    found = found.assign(estimate=found["estimate"].mask(zero, 0.0), low=low, high=high, **unknown)
    return found.assign(verdict=found["verdict"].mask(zero, "no difference shown")) if "verdict" in found else found


def matches(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return all pairs of places, one of `left` and one of `right`, that hold the same key."""
    order = np.argsort(right, kind="stable")
    start, end = (np.searchsorted(right[order], left, side) for side in ("left", "right"))
    counts = end - start
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.repeat(np.arange(len(left)), counts), order[np.repeat(start, counts) + within]


def axis_name(axis: str) -> str:
    return NAMES.get(axis, axis)


def change_text(since: Any, to: Any) -> str:
    return f"{written(since)} → {written(to)}"


def _changes(settings: Settings, axis: str, known: np.ndarray) -> Iterator[Change]:
    values, codes = settings.levels[axis], settings.codes[axis]
    cells, keys = settings.keys(np.arange(len(codes))[:, None], (axis,))
    of_few = len(values) <= MOST_VALUES
    left = np.flatnonzero(of_few | (codes[cells] == 0))
    one, other = matches(keys[left], keys)
    pairs = np.stack([cells[left[one]], cells[other]], axis=1)
    pairs = np.unique(pairs[codes[pairs[:, 0]] < codes[pairs[:, 1]]], axis=0)  # alike in several ways, but once
    place, number = np.unique(codes[pairs] @ [len(values), 1], return_inverse=True)
    found = {divmod(int(where), len(values)): pairs[number == of] for of, where in enumerate(place)}
    count = {change: int(known[of_change].all(axis=1).sum()) for change, of_change in found.items()}
    for (since, to), of_change in found.items():
        over_first = [count.get((0, value), 0) for value in (since, to)]
        tells_more = count[since, to] > max(over_first) or (count[since, to] and not min(over_first))
        if since == 0 or tells_more:
            yield Change(axis, values[since], values[to], of_change)


def _numbered(columns: np.ndarray) -> np.ndarray:
    """Give the rows of a matrix of whole numbers one number each, from 0 on, equal ones the same."""
    numbers = np.zeros(len(columns), int)
    for column in columns.T:
        numbers = np.unique(numbers * (column.max(initial=0) + 1) + column, return_inverse=True)[1]
    return numbers


def _differences(observed: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the differences of pairs, [pairs, 2], or those between couples of them, [couples, 2, 2], by seed."""
    parts = [observed[part] if pairs.ndim == 2 else _differences(observed, part) for part in (pairs[:, 0], pairs[:, 1])]
    return np.asarray(parts[1] - parts[0])


def _range(differences: np.ndarray) -> tuple[float, float]:
    """Return the lowest and the highest mean over the seeds that all have, of differences [pairs, seeds]."""
    common = ~np.isnan(differences).any(axis=0)
    if not common.any():
        return float("nan"), float("nan")
    means = differences[:, common].mean(axis=1)
    return float(means.min()), float(means.max())
