"""Which cells differ in one setting alone, or in those that change together: the pairs that tell what these do.

All other parameters of the two are equal, with two exceptions. `load_dtype` may change with `compute_dtype`, which it
follows: to a user that is one choice. And `double_quant` means nothing unless both are 4-bit. `kbit_upcast` follows
`quant_type` too, but costs memory and time of its own: where both change, the change is named by both.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from bench.matrix.parameters import DERIVED, FOUR_BIT
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
SAME_CHOICE = "load_dtype"  # as compute_dtype
OF_4_BIT = "double_quant"
# By the parameter that changes: what may differ along with it and is not counted as a change, and how to say so.
EXCEPTIONS = {
    "compute_dtype": (SAME_CHOICE, "load_dtype where it follows compute_dtype"),
    "quant_type": (OF_4_BIT, "double_quant where not both are 4-bit"),
}
# By the parameter that each follows.
ALONG = {"quant_type": "kbit_upcast"}


class Value(NamedTuple):
    """What one parameter changes from and to."""

    axis: str
    since: Any
    to: Any

    @property
    def text(self) -> str:
        return change_text(self.since, self.to)


@dataclass(frozen=True, eq=False)
class Change:
    """A change of one parameter, `axis`, from a value to another.

    pairs: [pairs, 2] the numbers of the cells that differ in it alone; the second has the value changed to. along: the
    parameter that follows it and changes in all pairs too; None where the change is of `axis` alone.
    """

    axis: str
    since: Any
    to: Any
    pairs: np.ndarray
    along: Value | None = None

    @property
    def name(self) -> str:
        """`quant_type + kbit_upcast: none → nf4, false → true`."""
        values = self.values
        return f"{' + '.join(axis_name(one.axis) for one in values)}: {', '.join(one.text for one in values)}"

    @property
    def values(self) -> tuple[Value, ...]:
        own = Value(self.axis, self.since, self.to)
        return (own,) if self.along is None else (own, self.along)

    @property
    def joined(self) -> Value:
        """The values as they are; as texts, such as `none, false`, where several parameters change."""
        if self.along is None:
            return self.values[0]
        axes, since, to = zip(*self.values, strict=True)
        return Value(", ".join(axes), ", ".join(map(written, since)), ", ".join(map(written, to)))


@dataclass(frozen=True, eq=False)
class Settings:
    """The parameters that vary between cells, but for those without effect.

    levels: of each, the values that occur, in the order of `ordered`. codes: [cells] which of them a cell has. axes:
    the parameters that do not just follow another. follows: of each derived parameter, [cells] which have it as
    `DERIVED` says. four_bit: [cells] which have a 4-bit base.
    """

    levels: Mapping[str, Sequence[Any]]
    codes: Mapping[str, np.ndarray]
    axes: tuple[str, ...]
    follows: Mapping[str, np.ndarray]
    four_bit: np.ndarray

    def keys(self, groups: np.ndarray, without: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return keys of groups of cells, [groups, cells], that those share whose settings are alike.

        All settings count but for `without`: alike is what is equal, or one of the two exceptions above. So a group has
        a key for each way in which it may be like others. The first array returned is the group that each key in the
        second belongs to.
        """
        names = [name for name in self.levels if name not in without]
        ways = {
            SAME_CHOICE: [*self._as_compute_dtype(groups)],
            OF_4_BIT: [*self._double_quant(groups)],
        }
        numbers, columns = [], []
        for way in product(*(ways[name] if name in ways else [self._equal(name, groups)] for name in names)):
            fits = np.logical_and.reduce([fits for fits, _ in way] or [np.ones(len(groups), bool)])
            numbers.append(np.flatnonzero(fits))
            columns.append(np.hstack([np.empty((len(groups), 0), int), *(codes for _, codes in way)])[fits])
        return np.concatenate(numbers), _numbered(np.vstack(columns))

    def with_equal_double_quant(self, groups: np.ndarray) -> np.ndarray:
        """Tell which cells or groups to compare, [comparisons, 2] or [comparisons, 2, cells], have it equal."""
        if OF_4_BIT not in self.codes:
            return np.ones(len(groups), bool)
        codes = self.codes[OF_4_BIT][groups].reshape(len(groups), 2, -1)
        return np.asarray((codes[:, 0] == codes[:, 1]).all(axis=1))

    def _equal(self, name: str, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which groups this way applies to, [groups], and a column for each cell of a group."""
        return np.ones(len(groups), bool), self.codes[name][groups] + 1

    def _as_compute_dtype(self, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if SAME_CHOICE in self.codes:
            yield self._equal(SAME_CHOICE, groups)
            yield self.follows[SAME_CHOICE][groups].all(axis=1), np.zeros_like(groups)

    def _double_quant(self, groups: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Let the cells of a group that are not 4-bit have each of the values that occur."""
        if OF_4_BIT in self.codes:
            four_bit, codes = self.four_bit[groups], self.codes[OF_4_BIT][groups]
            for level in range(len(self.levels[OF_4_BIT])):
                yield (level == 0) | ~four_bit.all(axis=1), np.where(four_bit, codes, level)


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
        follows=follows,
        four_bit=np.array([row["quant_type"] in FOUR_BIT for row in rows], bool),
    )


def ordered(values: Iterable[Any]) -> list[Any]:
    """Put the values of an axis in order, each once: false before true, numbers ascending, others as they appear."""
    distinct = list(dict.fromkeys(values))
    numbers = all(isinstance(value, int | float) for value in distinct)  # a bool is an int
    return sorted(distinct) if numbers else distinct


def changes(evidence: Evidence, settings: Settings) -> list[Change]:
    """List all changes of one setting between cells of a result, axis by axis; then those of several together.

    Each value is compared with the axis's first one: false, the lowest number, or else the baseline's value. So that
    nothing is told twice, two other values are compared only where that tells more than a detour over the first: more
    pairs of cells with results differ by them than by either and the first one, or one of the two has no such pair (the
    baseline is often a single cell, while other values are crossed with every axis). Of an axis with more than
    `MOST_VALUES` values, each is compared with the first alone.

    Where some pairs of a change, with results, have `double_quant` equal, it is of those alone.
    """
    known = with_results(evidence)
    alone = [change for axis in settings.axes for change in _changes(settings, axis, known)]
    together = [
        change
        for axis, along in ALONG.items()
        if axis in settings.axes and along in settings.levels
        for change in _changes_together(settings, (axis, along), known, alone)
    ]
    return alone + together


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
    values = settings.levels[axis]
    found = _by_values(settings, axis, _pairs(settings, axis, (axis,)), known)
    count = {change: _count(pairs, known) for change, pairs in found.items()}
    for since, to in found:
        if _tells_more(since, to, count):
            yield Change(axis, values[since], values[to], found[since, to])


def _changes_together(
    settings: Settings, axes: tuple[str, str], known: np.ndarray, alone: Sequence[Change]
) -> Iterator[Change]:
    """Yield the changes of an axis in which another one follows it, `axes`, less those told by a detour already."""
    axis, along = axes
    values, codes, follows = settings.levels[axis], settings.codes[along], settings.follows[along]
    pairs = _pairs(settings, axis, axes)
    by_rule = follows[pairs].all(axis=1) & (codes[pairs[:, 0]] != codes[pairs[:, 1]])
    found = _by_values(settings, axis, pairs[by_rule], known)
    place = {value: number for number, value in enumerate(values)}
    count = Counter({change: _count(pairs, known) for change, pairs in found.items()})
    for change in alone:
        if change.axis == axis:
            count[place[change.since], place[change.to]] += _count(change.pairs, known)
    for (since, to), of_change in found.items():
        if _tells_more(since, to, count):
            ends = (settings.levels[along][codes[cell]] for cell in of_change[0])
            yield Change(axis, values[since], values[to], of_change, Value(along, *ends))


def _pairs(settings: Settings, axis: str, without: Sequence[str]) -> np.ndarray:
    """Return the pairs, [pairs, 2], of cells that differ in an axis and are alike in all settings but `without`."""
    codes = settings.codes[axis]
    cells, keys = settings.keys(np.arange(len(codes))[:, None], without)
    of_few = len(settings.levels[axis]) <= MOST_VALUES
    left = np.flatnonzero(of_few | (codes[cells] == 0))
    one, other = matches(keys[left], keys)
    pairs = np.stack([cells[left[one]], cells[other]], axis=1)
    return np.unique(pairs[codes[pairs[:, 0]] < codes[pairs[:, 1]]], axis=0)  # alike in several ways, but once


def _by_values(
    settings: Settings, axis: str, pairs: np.ndarray, known: np.ndarray
) -> dict[tuple[int, int], np.ndarray]:
    """Part pairs by the values that they change from and to."""
    count = len(settings.levels[axis])
    place, number = np.unique(settings.codes[axis][pairs] @ [count, 1], return_inverse=True)
    found = {}
    for of, where in enumerate(place.tolist()):
        of_change = pairs[number == of]
        equal = settings.with_equal_double_quant(of_change)
        found[divmod(where, count)] = of_change[equal] if known[of_change[equal]].all(axis=1).any() else of_change
    return found


def _count(pairs: np.ndarray, known: np.ndarray) -> int:
    return int(known[pairs].all(axis=1).sum())


def _tells_more(since: int, to: int, count: Mapping[tuple[int, int], int]) -> bool:
    """Tell whether a change is from the first value, or tells more than a detour over it."""
    over_first = [count.get((0, value), 0) for value in (since, to)]
    return since == 0 or count[since, to] > max(over_first) or bool(count[since, to] and not min(over_first))


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
