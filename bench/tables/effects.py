"""What each setting does: the effect of changing it alone, averaged over all pairs of cells that show it.

Where two settings change together, by default, it is the effect of both, and named by both.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from bench.matrix.wording import counted, listing, written
from bench.tables.caption import conditions, warnings_of
from bench.tables.contrasts import LEAST_SEEDS
from bench.tables.differences import about_watched, difference_text, labels, size_text
from bench.tables.evidence import PEAK, SLIGHT, SPEED, Compared, Evidence
from bench.tables.figures import listed, number
from bench.tables.interactions import SHOWN, interactions, summary
from bench.tables.pairs import (
    EXCEPTIONS,
    SEED_AXIS,
    Change,
    Settings,
    axis_name,
    change_text,
    changes,
    choose,
    comparable,
    groups_of,
    mean_difference,
    settings_of,
    with_range,
    with_results,
)
from bench.tables.pool import CELL
from bench.tables.table import Column, Row, Table, entries, field

COLUMNS = (
    "axis", "since", "to", "measure", "unit", "estimate", "low", "high", "p", "p_holm", "verdict",
    "minimum_detectable", "pairs_count", "seeds_count",
)  # fmt: skip
CHANGE = "Change: of one setting; all others are equal"
TOGETHER = "Change: of one setting, or of two where both are named; all others are equal"
SAME_TWICE = "A/A: the same settings with other seeds, which should show no difference."
EFFECT = "Effect: of the value changed to, less that changed from"
BYTES = f"Bytes have no ±: one figure is that of every pair, two are the lowest and the highest. {SLIGHT}"
VERDICT = f"Verdict: on the value changed to; fewer than {LEAST_SEEDS} seeds are too few runs."
ON_AVERAGE = "On average: not so in every pair."
DETECTABLE = "Detectable: the true effect that a test of it alone, at 5 %, finds with a probability of 80 %."
PAIRS = "Pairs: of cells that differ as the change says."


class Used(NamedTuple):
    """A change and a measure with the pairs, [pairs, 2], that are averaged; none where none can be compared.

    shared: [seeds] those that they all have. short: the pairs that are left out, since they lack some of these.
    incomparable: the pairs that cannot be compared in the measure, or have no result.
    """

    change: Change
    measure: Compared
    pairs: np.ndarray
    shared: np.ndarray
    short: np.ndarray
    incomparable: np.ndarray


def effects(evidence: Evidence) -> pd.DataFrame:
    """Estimate the effect of each change of a setting on each measure; a row a change and measure.

    Columns: `axis`, `since` and `to` (its values; joined texts where two settings change together), `measure` (the name
    of its column) and `unit`; the mean `estimate` of what `to` has more than `since`, over `pairs_count` pairs of cells
    alike in all else and `seeds_count` seeds that all of them have; the interval from `low` to `high`, of exact
    measures the range over the pairs; `p`, `p_holm` over all changes, `verdict` on `to`, and `minimum_detectable`.
    Which changes and pairs: `pairs.changes`. A change none of whose pairs can be compared in a measure is
    `not comparable`, without numbers; where that holds for every measure it has no row.
    """
    return _frame(evidence, _used(evidence, changes(evidence, settings_of(evidence))))


def effects_table(evidence: Evidence) -> Table:
    """Tabulate the effects, the measures of a change below each other; there may be none."""
    settings = settings_of(evidence)
    found = changes(evidence, settings)
    used = _used(evidence, found)
    rows = _frame(evidence, used)
    matrix = evidence.runs["matrix"].iloc[0]
    notes = (
        *_without_pair(settings, found),
        *_without_results(evidence, found, used),
        *_not_alike(evidence, used),
        *_without_seeds(evidence, used),
        *summary(settings, interactions(evidence)),
    )
    return Table(
        name="effects",
        title=f"{matrix}: what each setting does",
        columns=tuple(_columns(evidence, rows, _about_changes(evidence, used))),
        rows=rows,
        caption=(*conditions(evidence.runs), *_averaged(evidence, rows)),
        notes=(*notes, *evidence.notes, *warnings_of(evidence.runs)),
    )


def _used(evidence: Evidence, found: Iterable[Change]) -> list[Used]:
    """Choose the pairs of each change and measure; a change without comparable pairs in any measure is left out."""
    measures = [one for one in evidence.measures if not np.isnan(evidence.samples[one.name].observed).all()]
    groups = groups_of(evidence)
    used: list[Used] = []
    for change in found:
        of_change = [_chosen(evidence, change, measure, groups[measure.name]) for measure in measures]
        used += of_change if any(len(one.pairs) for one in of_change) else []
    return used


def _chosen(evidence: Evidence, change: Change, measure: Compared, groups: np.ndarray) -> Used:
    fits = comparable(groups, change.pairs)
    pairs = change.pairs[fits]
    chosen = choose(evidence, measure, pairs)
    return Used(change, measure, pairs[chosen.kept], chosen.shared, pairs[~chosen.kept], change.pairs[~fits])


def _frame(evidence: Evidence, used: Sequence[Used]) -> pd.DataFrame:
    parts = [pd.DataFrame(columns=list(COLUMNS))]
    for measure in evidence.measures:
        places = [place for place, one in enumerate(used) if one.measure == measure and len(one.pairs)]
        if places:
            pairs = [used[place].pairs for place in places]
            found = evidence.found(measure, [mean_difference(of_one) for of_one in pairs])
            found = with_range(found, evidence, measure, pairs)
            parts.append(found.set_axis(places).assign(pairs_count=[*map(len, pairs)]))
    if len(parts) > 1:
        del parts[0]
    described = pd.DataFrame(
        {
            "axis": [one.change.joined.axis for one in used],
            "since": pd.Series([one.change.joined.since for one in used], dtype=object),
            "to": pd.Series([one.change.joined.to for one in used], dtype=object),
            "measure": [one.measure.name for one in used],
            "unit": [one.measure.unit for one in used],
        }
    )
    frame = described.join(pd.concat(parts)[[name for name in COLUMNS if name not in described]])
    counts = frame[["pairs_count", "seeds_count"]].fillna(0).astype(int)
    return frame.assign(verdict=frame["verdict"].fillna("not comparable"), **counts)


def _columns(evidence: Evidence, rows: pd.DataFrame, about_changes: str) -> Iterator[Column]:
    measures = {measure.name: measure for measure in evidence.measures}
    label = labels(evidence)
    changed = _change_texts(rows)

    def effect(row: Row) -> str:
        return difference_text(measures[row["measure"]], row["estimate"], row["low"], row["high"])

    def verdict(row: Row) -> str:
        mixed = measures[row["measure"]].kind == "exact" and row["low"] < 0 < row["high"]
        return f"{row['verdict']} on average" if mixed and row["verdict"] in SHOWN else str(row["verdict"])

    def detectable(row: Row) -> str:
        return size_text(measures[row["measure"]], row["minimum_detectable"])

    kinds = {measures[name].kind for name in rows["measure"]}
    mixed = any(verdict(row).endswith("average") for row in entries(rows))
    yield Column("change", lambda row: changed[_place(row)], "left", about=about_changes)
    yield Column("measure", lambda row: label[row["measure"]], "left", about=about_watched(evidence))
    yield Column(
        "effect", effect, "left", about=_about_effects(evidence, rows) + (f" {BYTES}" if "exact" in kinds else "")
    )
    yield Column("verdict", verdict, "left", about=VERDICT + (f" {ON_AVERAGE}" if mixed else ""))
    yield Column("pairs", field("pairs_count"), priority=1, about=PAIRS)
    yield Column("seeds", field("seeds_count"), priority=1)
    if rows["p_holm"].notna().any():
        yield Column("p\n(Holm)", lambda row: number(row["p_holm"], 3), priority=2)
    if rows["minimum_detectable"].notna().any():
        yield Column("detectable", detectable, "left", priority=2, about=DETECTABLE)


def _place(row: Row) -> tuple[Hashable, ...]:
    return row["axis"], written(row["since"]), written(row["to"]), row["measure"]


def _change_texts(rows: pd.DataFrame) -> dict[tuple[Hashable, ...], str]:
    """Name each change once, over its first two rows: the setting, and below it the values."""
    texts: dict[tuple[Hashable, ...], str] = {}
    by_change: dict[tuple[Hashable, ...], list[Row]] = defaultdict(list)
    for row in entries(rows):
        by_change[_place(row)[:-1]].append(row)
    for of_change in by_change.values():
        lines = [axis_name(of_change[0]["axis"]), change_text(of_change[0]["since"], of_change[0]["to"])]
        lines = ["\n".join(lines)] if len(of_change) == 1 else lines + [""] * (len(of_change) - len(lines))
        texts.update(zip(map(_place, of_change), lines, strict=True))
    return texts


def _about_changes(evidence: Evidence, used: Sequence[Used]) -> str:
    told = {id(one.change): one.change for one in used}.values()
    exceptions = [text for axis, (name, text) in EXCEPTIONS.items() if _differs(evidence, told, axis, name)]
    about = TOGETHER if any(change.along for change in told) else CHANGE
    about += f", but for {listing(exceptions, 'and')}." if exceptions else "."
    return f"{about} {SAME_TWICE}" if any(change.axis == SEED_AXIS for change in told) else about


def _differs(evidence: Evidence, told: Iterable[Change], axis: str, name: str) -> bool:
    """Tell whether a parameter differs in a pair of a change of `axis`."""
    values = evidence.cells[name].to_numpy()
    return any(
        (values[change.pairs[:, 0]] != values[change.pairs[:, 1]]).any() for change in told if change.axis == axis
    )


def _about_effects(evidence: Evidence, rows: pd.DataFrame) -> str:
    if rows["seeds_count"].max() > 1:
        over = "seeds and test examples" if evidence.examples else "seeds"
        return f"{EFFECT}; ±: half its 95 % interval over {over}."
    if evidence.examples:
        return (
            f"{EFFECT}; ±: half its 95 % interval over the test examples of one seed: of these runs, not of settings."
        )
    return f"{EFFECT}; with one seed, without an interval."


def _averaged(evidence: Evidence, rows: pd.DataFrame) -> Iterator[str]:
    known = rows[rows["pairs_count"] > 0]
    if len(known):
        examples = sorted({len(part.truth) for part in evidence.examples})
        by_example = f" and test example (n = {listing([f'{count:,}' for count in examples])})" if examples else ""
        yield (
            f"Effects: means over n = {_span(known['pairs_count'])} pairs of cells that differ as the change says, "
            f"paired by seed (n = {_span(known['seeds_count'])}){by_example}."
        )
    if len(tested := known[known["p_holm"].notna()]):
        family = _span(tested.groupby("measure").size())
        yield f"p-values are corrected by Holm over all effects of a measure (n = {family})."


def _span(counts: pd.Series[int]) -> str:
    low, high = counts.min(), counts.max()
    return f"{high:,}" if low == high else f"{low:,} to {high:,}"


def _without_pair(settings: Settings, found: Sequence[Change]) -> Iterator[str]:
    """Name the values that no change tells of."""
    told = {
        axis: {value for change in found if change.axis == axis for value in (change.since, change.to)}
        for axis in settings.axes
    }
    if alone := [axis for axis, values in told.items() if not values]:
        yield f"No effect of {listed(alone)}: no two cells differ in that alone."
    for axis, values in told.items():
        missing = [written(value) for value in settings.levels[axis] if value not in values]
        if values and missing:
            yield f"No effect of {axis} {listed(missing)}: no other cell differs from it in {axis} alone."


def _without_results(evidence: Evidence, found: Sequence[Change], used: Sequence[Used]) -> Iterator[str]:
    """Name the cells that would be in a pair but have no result, or were run under other conditions."""
    paired = np.unique(np.concatenate([change.pairs.ravel() for change in found])) if found else np.empty(0, int)
    by_reason: dict[str, list[str]] = defaultdict(list)
    for cell in entries(evidence.cells.loc[paired[~with_results(evidence)[paired]], [*CELL, "status"]]):
        by_reason[evidence.apart.get((cell["id"], cell["key"]), f"ended {cell['status']}")].append(cell["id"])
    for reason, ids in by_reason.items():
        yield f"In no effect: {listed(ids)} ({reason})."
    told = {id(one.change) for one in used}
    if lost := [change.name for change in found if id(change) not in told]:
        yield f"No effect of {listed(lost)}: no pair of cells has two comparable results."


def _not_alike(evidence: Evidence, used: Iterable[Used]) -> Iterator[str]:
    """Say of the pairs of cells with results which measures they are not compared in, and why."""
    known = with_results(evidence)
    lost: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for one in used:
        for pair in one.incomparable[known[one.incomparable].all(axis=1)]:
            lost[one.measure.label, _difference(evidence, one.measure, pair)][one.change.name] += 1
    for (label, reason), by_change in lost.items():
        pairs = counted(by_change.total(), "pair")
        yield f"No {label} of {pairs} of cells ({listed([*by_change])}): {reason}."


def _difference(evidence: Evidence, measure: Compared, pair: np.ndarray) -> str:
    one, other = (evidence.groups[measure.name][cell] for cell in pair)
    if np.isnan(evidence.samples[measure.name].observed[pair]).all(axis=1).any():
        return "one of the two has none"
    if measure.name == PEAK.name:
        return "their batches differ"
    if measure.name != SPEED.name:
        return "they were not scored alike"
    if one is None or other is None:
        return "how they ran is not known"
    return f"one ran as {one}, the other as {other}"


def _without_seeds(evidence: Evidence, used: Sequence[Used]) -> Iterator[str]:
    """Name the seeds that some cells of an average lack, and the cells whose pairs are left out for lack of seeds."""
    lost: dict[tuple[Hashable, ...], list[Used]] = defaultdict(list)
    short: dict[tuple[Hashable, ...], list[Used]] = defaultdict(list)
    for one in used:
        known = ~np.isnan(evidence.samples[one.measure.name].observed)
        cells = np.unique(one.pairs)
        seeds = known[cells].any(axis=0) & ~one.shared
        if seeds.any():
            lost[_without(evidence, known, cells, seeds)].append(one)
        if len(one.short):
            short[_without(evidence, known, np.unique(one.short), one.shared)].append(one)
    measured = Counter(id(one.change) for one in used if len(one.pairs))
    for (cells_text, seeds_text), of in lost.items():
        for measures, names in _by_measures(evidence, of, measured):
            yield f"Seed {seeds_text} left out of {measures}{names}: no figure with it of {cells_text}."
    for (cells_text, seeds_text), of in short.items():
        for measures, names in _by_measures(evidence, of, measured):
            yield f"Left out of {measures}{names}: pairs with {cells_text}, without a figure with seed {seeds_text}."


def _by_measures(evidence: Evidence, of: Iterable[Used], measured: Mapping[int, int]) -> Iterator[tuple[str, str]]:
    """Name the changes by the measures that they are in `of` with, which are not named where they are all it has."""
    by_change: dict[int, list[Used]] = defaultdict(list)
    for one in of:
        by_change[id(one.change)].append(one)
    names: dict[str, list[str]] = defaultdict(list)
    label = labels(evidence)
    for change, its in by_change.items():
        measures = listing([label[one.measure.name] for one in its], "and")
        names["" if len(its) == measured[change] else f"{measures} of "].append(its[0].change.name)
    for measures, of_measures in names.items():
        yield measures, listed(of_measures)


def _without(evidence: Evidence, known: np.ndarray, cells: np.ndarray, seeds: np.ndarray) -> tuple[str, str]:
    """Name those of some cells that lack any of some seeds, [seeds], and the seeds that any of them lacks."""
    lacking = ~known[cells] & seeds
    ids = evidence.cells["id"].to_numpy()[cells[lacking.any(axis=1)]].tolist()
    return listed(ids), listed([seed for seed, lacks in zip(evidence.seeds, lacking.any(axis=0), strict=True) if lacks])
