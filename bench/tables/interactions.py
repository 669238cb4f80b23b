"""Whether what one setting does depends on another one."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bench.matrix.wording import counted, listing, written
from bench.tables.caption import conditions, warnings_of
from bench.tables.contrasts import Contrast, estimates
from bench.tables.differences import about_watched, difference_text, labels
from bench.tables.evidence import Compared, Evidence, in_unit
from bench.tables.figures import listed, number
from bench.tables.pairs import (
    EXCEPTIONS,
    Change,
    Settings,
    axis_name,
    change_text,
    changes,
    choose,
    comparable,
    groups_of,
    matches,
    mean_difference,
    settings_of,
    weighted,
    with_range,
)
from bench.tables.table import Column, Row, Table, field

MOST_LEVELS = 6  # of an axis that takes part in interactions
# Of an exact measure, how far two effects have to differ: in units of the larger effect, and of the measure itself.
LEAST_OF_EFFECT = 0.1
LEAST_OF_MEASURE = 0.005
SHOWN = ("better", "worse")
EFFECTS = ("effect", "effect_low", "effect_high")
COLUMNS = (
    "axis", "since", "to", "by", "level", "other_level", "measure", "unit",
    "effect", "effect_low", "effect_high", "other_effect", "other_effect_low", "other_effect_high",
    "estimate", "low", "high", "p", "p_holm", "verdict", "changes", "minimum_detectable",
    "couples_count", "seeds_count",
)  # fmt: skip
CHANGE = "Change: the setting whose effect depends on another one (by)."
EFFECT = (
    "Effect: at each value of the other setting, over the same values of all others{but}; ±: half its 95 % interval."
)
CHANGES = "Changes: the effect's sign, where both intervals exclude zero, or its size."
COUPLES = "Couples: combinations of the other settings that occur at both values."
HOLM = "p-values are corrected by Holm over all interactions tested in a measure."
EXACT = (
    f"Bytes: shown where the effects differ by more than {100 * LEAST_OF_EFFECT:.0f} % of the larger one and "
    f"{100 * LEAST_OF_MEASURE} % of the measure."
)
DIFFERENCE = "Difference: the second effect less the first; tokens/s: in percent of the first."


@dataclass(frozen=True, eq=False)
class Interaction:
    """A change at one level of another axis, `by`, and at another.

    couples: [couples, 2, 2] a pair of cells at each of the two levels, which are alike in all else.
    """

    change: Change
    by: str
    level: Any
    other_level: Any
    couples: np.ndarray


def interactions(evidence: Evidence) -> pd.DataFrame:
    """Compare the effect of each change of a setting between the values of each other setting.

    A row is a change (`axis`, `since`, `to`), another axis `by` with the first of its values that occur, `level`, and
    a further one, `other_level`, and a measure. `effect` and `other_effect` are the change's effects at the two, each
    averaged over the same combinations of all other settings, `couples_count` of them. `estimate` is the second less
    the first, with interval, p-values, verdict and minimum detectable difference in `unit`; Holm is over all
    interactions of a measure. `changes` is None where no difference is shown; `sign` where it is, and the effects, each
    with an interval without zero, differ in sign; otherwise `size`.

    The interaction of two axes is the same contrast whichever of them is called the change: it is there once, with the
    axis that stands first among the parameters as the change. Changes of several settings together have none. Of exact
    measures a difference counts as shown where it is more than `LEAST_OF_MEASURE` of the measure and more than
    `LEAST_OF_EFFECT` of the larger effect, as it is where they differ in sign. Axes with more than `MOST_LEVELS` values
    take no part.
    """
    settings = settings_of(evidence)
    found = list(_interactions(settings, [change for change in changes(evidence, settings) if change.along is None]))
    groups = groups_of(evidence)
    parts = [_of_measure(evidence, measure, found, groups[measure.name]) for measure in evidence.measures]
    known = [part for part in parts if len(part)] or parts[:1]
    # By interaction, the measures of each in their order.
    return pd.concat(known).sort_index(kind="stable").reset_index(drop=True)


def interactions_table(evidence: Evidence) -> Table:
    """Tabulate the interactions that are shown; there may be none."""
    settings = settings_of(evidence)
    found = interactions(evidence)
    rows = found[found["changes"].notna()].reset_index(drop=True)
    matrix = evidence.runs["matrix"].iloc[0]
    return Table(
        name="interactions",
        title=f"{matrix}: effects that depend on another setting",
        columns=tuple(_columns(evidence, settings, rows)),
        rows=rows,
        caption=(*conditions(evidence.runs), *summary(settings, found), f"{HOLM} {EXACT}"),
        notes=(*evidence.notes, *warnings_of(evidence.runs)),
    )


def summary(settings: Settings, found: pd.DataFrame) -> tuple[str, ...]:
    """Say how many interactions, a frame of `interactions`, were tested and shown; nothing where there are none."""
    lines = []
    untested = int((found["verdict"] == "too few runs").sum())
    tested, shown = len(found) - untested, int(found["changes"].notna().sum())
    more = f"; {untested:,} more had too few runs" if untested else ""
    if shown:
        lines.append(f"Effects that depend on another setting: {shown:,} of {tested:,} interactions tested{more}.")
    elif tested:
        lines.append(f"No interaction shown ({tested:,} tested{more}).")
    elif untested:
        lines.append(f"No interaction could be tested: {counted(untested, 'interaction')} had too few runs.")
    if many := _with_many_values(settings):
        lines.append(
            f"Interactions with {listed(many)} are not tested: there are more than {MOST_LEVELS} values of each."
        )
    return tuple(lines)


def _interactions(settings: Settings, found: Sequence[Change]) -> Iterator[Interaction]:
    many = set(_with_many_values(settings))
    known: set[Hashable] = set()
    for change in found:
        for by in settings.axes:
            if many.isdisjoint((change.axis, by)) and by != change.axis:
                for interaction in _between_levels(settings, change, by):
                    contrast = _either_way(_contrast(interaction.couples))
                    if contrast not in known:
                        known.add(contrast)
                        yield interaction


def _with_many_values(settings: Settings) -> list[str]:
    return [axis for axis in settings.axes if len(settings.levels[axis]) > MOST_LEVELS]


def _between_levels(settings: Settings, change: Change, by: str) -> Iterator[Interaction]:
    codes = settings.codes[by][change.pairs]
    pairs = change.pairs[codes[:, 0] == codes[:, 1]]  # a setting that follows from the changed one has no level
    levels = settings.codes[by][pairs[:, 0]]
    numbers, keys = settings.keys(pairs, (change.axis, by))
    one, other = (numbers[place] for place in matches(keys, keys))
    rises = levels[one] < levels[other]
    if not rises.any():
        return
    couples = np.unique(np.stack([one[rises], other[rises]], axis=1), axis=0)  # alike in several ways, but once
    first = levels[couples].min()
    for level in np.unique(levels[couples[:, 1]]):
        between = couples[(levels[couples] == [first, level]).all(axis=1)]
        if len(between):
            values, cells = settings.levels[by], pairs[between]
            equal = settings.with_equal_double_quant(cells)
            yield Interaction(change, by, values[first], values[level], cells[equal] if equal.any() else cells)


def _contrast(couples: np.ndarray) -> Contrast:
    signs = np.array([[1, -1], [-1, 1]]) / len(couples)
    return weighted(couples.ravel(), np.tile(signs.ravel(), len(couples)))


def _either_way(contrast: Contrast) -> Hashable:
    """Return the same for a contrast and its negative."""
    sign = 1 if contrast.weights[0] > 0 else -1
    return contrast.cells, tuple(round(sign * weight, 9) for weight in contrast.weights)


def _of_measure(
    evidence: Evidence, measure: Compared, found: Sequence[Interaction], groups: np.ndarray
) -> pd.DataFrame:
    """Return a row for each interaction that has comparable pairs, under its number in `found`."""
    usable = {
        number: _usable(evidence, measure, interaction.couples, groups) for number, interaction in enumerate(found)
    }
    used = {number: couples for number, couples in usable.items() if len(couples)}
    if not used:
        return pd.DataFrame(columns=list(COLUMNS))
    of = [found[number] for number in used]
    contrasts = [_contrast(couples) for couples in used.values()]
    frame = with_range(evidence.found(measure, contrasts), evidence, measure, [*used.values()])
    for level, prefix in enumerate(("", "other_")):
        pairs = [couples[:, level] for couples in used.values()]
        effects = in_unit(estimates(evidence.samples[measure.name], [*map(mean_difference, pairs)]), measure)
        effects = with_range(effects, evidence, measure, pairs)
        for name, column in {"effect": "estimate", "effect_low": "low", "effect_high": "high"}.items():
            frame[f"{prefix}{name}"] = effects[column]
    values = evidence.cells[measure.name].to_numpy(float) if measure.kind == "exact" else None
    sizes = np.array([0.0 if values is None else np.abs(values[list(contrast.cells)]).mean() for contrast in contrasts])
    frame["changes"] = _changes(frame, measure, measure.scale * sizes)
    described = {
        "axis": [interaction.change.axis for interaction in of],
        "since": [interaction.change.since for interaction in of],
        "to": [interaction.change.to for interaction in of],
        "by": [interaction.by for interaction in of],
        "level": [interaction.level for interaction in of],
        "other_level": [interaction.other_level for interaction in of],
    }
    frame = frame.assign(**{name: pd.Series(values, dtype=object) for name, values in described.items()})
    frame = frame.assign(measure=measure.name, unit=measure.unit, couples_count=[*map(len, used.values())])
    return frame.set_axis([*used])[list(COLUMNS)]


def _usable(evidence: Evidence, measure: Compared, couples: np.ndarray, groups: np.ndarray) -> np.ndarray:
    fits = comparable(groups, couples[:, 0]) & comparable(groups, couples[:, 1])
    kept = couples[fits]
    return np.asarray(kept[choose(evidence, measure, kept.reshape(len(kept), 4)).kept])


def _changes(frame: pd.DataFrame, measure: Compared, sizes: np.ndarray) -> list[str | None]:
    """Say of each interaction what it changes in the effect; None where nothing is shown."""
    effects = frame[["effect", "other_effect"]].to_numpy(float)
    shown = frame["verdict"].isin(SHOWN).to_numpy()
    if measure.kind == "exact":
        change = np.abs(effects[:, 1] - effects[:, 0])
        shown = (change > LEAST_OF_EFFECT * np.abs(effects).max(axis=1)) & (change > LEAST_OF_MEASURE * sizes)
    ends = frame[["effect_low", "effect_high", "other_effect_low", "other_effect_high"]].to_numpy(float)
    turns = (effects.prod(axis=1) < 0) & (ends[:, :2].prod(axis=1) > 0) & (ends[:, 2:].prod(axis=1) > 0)
    return [
        None if not is_shown else "sign" if turned else "size" for is_shown, turned in zip(shown, turns, strict=True)
    ]


def _columns(evidence: Evidence, settings: Settings, rows: pd.DataFrame) -> Iterator[Column]:
    measures = {measure.name: measure for measure in evidence.measures}

    def effects(row: Row) -> str:
        return "\n".join(
            difference_text(measures[row["measure"]], *(row[f"{prefix}{name}"] for name in EFFECTS))
            for prefix in ("", "other_")
        )

    def apart(row: Row) -> str:
        return difference_text(measures[row["measure"]], row["estimate"], row["low"], row["high"])

    yield Column("change, by", _change_text, "left", about=CHANGE)
    label = labels(evidence)
    yield Column("measure", lambda row: label[row["measure"]], "left", about=about_watched(evidence))
    yield Column("at", lambda row: f"{written(row['level'])}\n{written(row['other_level'])}", "left")
    yield Column("effect", effects, "left", about=EFFECT.format(but=_but(settings, rows)))
    yield Column("changes", field("changes"), "left", about=CHANGES)
    yield Column("difference", apart, "left", priority=1, about=DIFFERENCE)
    yield Column("couples", field("couples_count"), priority=2, about=COUPLES)
    yield Column("seeds", field("seeds_count"), priority=2)
    yield Column("p\n(Holm)", lambda row: number(row["p_holm"], 3), priority=3)


def _but(settings: Settings, rows: pd.DataFrame) -> str:
    """Say which settings may differ along with those shown."""
    shown = {*rows["axis"], *rows["by"]}
    exceptions = [text for axis, (name, text) in EXCEPTIONS.items() if axis in shown and name in settings.levels]
    return f", but for {listing(exceptions, 'and')}" if exceptions else ""


def _change_text(row: Row) -> str:
    return f"{axis_name(row['axis'])}: {change_text(row['since'], row['to'])}\nby {axis_name(row['by'])}"
