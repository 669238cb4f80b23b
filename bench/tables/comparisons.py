"""The table of comparisons: each cell against the baseline, paired by seed and test example."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd

from bench.matrix.wording import counted, listing
from bench.tables.caption import conditions, warnings_of
from bench.tables.contrasts import LEAST_SEEDS, difference, holm
from bench.tables.differences import about_watched, decimals_of, labels
from bench.tables.evidence import ACCURACY, LOSS, SLIGHT, SPEED, STORED, Compared, Evidence
from bench.tables.figures import MINUS, listed, number, signed
from bench.tables.mcnemar import mcnemar_p
from bench.tables.pool import CELL
from bench.tables.table import MISSING, Column, Row, Table, field, informative

COLUMNS = (
    "id", "key", "measure", "unit", "baseline", "value", "estimate", "low", "high", "p", "p_holm", "test", "verdict",
    "minimum_detectable", "seeds_count", "examples_count",
)  # fmt: skip
# What a reader sees first; measures that are not here come last.
PRIORITIES = {ACCURACY.name: 0, SPEED.name: 1, LOSS.name: 2, "train_peak_bytes": 3, STORED.name: 4}
MARKS = {"better": "▲", "worse": "▼", "no difference shown": "=", "too few runs": "?"}
LEGEND = {
    "▲": "▲ better",
    "▼": "▼ worse",
    "=": "= no difference shown",
    "?": f"? too few runs: fewer than {LEAST_SEEDS} seeds",
}
ESTIMATE = "Differences: of the cell less the baseline, means over the seeds that both have."
DETECTABLE = "Detectable: the true difference in accuracy that a test of it alone finds with a probability of 80 %."
P_HOLM = "p: of no difference in accuracy, corrected by Holm over all cells."
P_MCNEMAR = "Of cells with one seed it is McNemar's, which tells two trained adapters apart and not two settings."


def comparisons(evidence: Evidence) -> pd.DataFrame:
    """Compare each cell but the baseline with it, in every measure that has a figure; a row a cell and measure.

    Columns: `id`, `key`, `measure` (the name of its column) and `unit`; the means `baseline` and `value` over the seeds
    that both have, as in that column (of tokens/s, the geometric mean); the `estimate` of the difference, in `unit`,
    its 95 % interval from `low` to `high`, `p`, `p_holm` (over all cells of the measure), `test` (which test `p` is
    of), `verdict`, and `minimum_detectable`, as `contrasts.estimates` and `decided` have them; `seeds_count`, and the
    `examples_count` that the interval is over, 0 where it is of the seeds alone. Of accuracy with one seed, `p` is that
    of McNemar's exact test. Cells that are not comparable have no numbers. Empty where there is no baseline.
    """
    baseline = _baseline(evidence)
    frames = [
        _compared(evidence, measure, baseline)
        for measure in evidence.measures
        if baseline is not None and not np.isnan(evidence.samples[measure.name].observed).all()
    ]
    if not frames:
        return pd.DataFrame(columns=list(COLUMNS))
    order = {name: place for place, name in enumerate(evidence.cells["key"])}
    found = pd.concat(frames, ignore_index=True)
    return found.sort_values("key", key=lambda keys: keys.map(order), kind="stable", ignore_index=True)


def verdict_of(evidence: Evidence) -> pd.Series[str]:
    """Return the verdict on each cell's accuracy, by its number in `cells`; missing where there is none."""
    none = pd.Series(None, evidence.cells.index, dtype=object)
    baseline = _baseline(evidence)
    if baseline is None or np.isnan(evidence.samples[ACCURACY.name].observed).all():
        return none
    verdicts = _compared(evidence, ACCURACY, baseline).set_index("key")["verdict"]
    return evidence.cells["key"].map(verdicts).astype(object)


def comparisons_table(evidence: Evidence) -> Table:
    """Tabulate the comparisons, a row a cell; the CSV file has a row a cell and measure. There may be none."""
    found = comparisons(evidence)
    measures = sorted(
        (measure for measure in evidence.measures if measure.name in set(found["measure"])),
        key=lambda measure: PRIORITIES.get(measure.name, len(PRIORITIES)),
    )
    rows = _wide(found, measures)
    return Table(
        name="comparisons",
        title=f"{evidence.runs['matrix'].iloc[0]}: each cell against the baseline",
        columns=(
            Column("id", field("id"), "left", about=ESTIMATE),
            *informative(_columns(evidence, rows, measures), rows),
        ),
        rows=rows,
        caption=(*conditions(evidence.runs), *_compared_how(evidence, found)),
        notes=(*_doubts(evidence, found), *evidence.notes, *warnings_of(evidence.runs)),
        detail=found,
    )


def _baseline(evidence: Evidence) -> int | None:
    places = np.flatnonzero(evidence.cells["is_baseline"])
    return int(places[0]) if len(places) else None


def _compared(evidence: Evidence, measure: Compared, baseline: int) -> pd.DataFrame:
    cells = evidence.cells
    others = np.flatnonzero(np.arange(len(cells)) != baseline)
    observed = evidence.samples[measure.name].observed
    has_value = ~np.isnan(observed).all(axis=1)
    apart = _apart(evidence)
    # What has no result may be compared once it has one: too few runs.
    compared = [
        other
        for other in others.tolist()
        if has_value[baseline]
        and not apart[other]
        and (evidence.comparable(other, baseline, measure) or not has_value[other])
    ]
    found = evidence.found(measure, [difference(other, baseline) for other in compared])
    found = found.set_axis(compared).reindex(others)
    both = ~np.isnan(observed[others]) & ~np.isnan(observed[baseline])
    compared_at_all = np.isin(others, compared)
    frame = pd.DataFrame(
        {
            **{name: cells[name].to_numpy()[others] for name in CELL},
            "measure": measure.name,
            "unit": measure.unit,
            "baseline": _mean(measure, np.where(both & compared_at_all[:, None], observed[baseline], np.nan)),
            "value": _mean(measure, np.where(both & compared_at_all[:, None], observed[others], np.nan)),
            **{name: found[name].to_numpy(float) for name in ("estimate", "low", "high", "p", "p_holm")},
            "test": found["test"].fillna("none").to_numpy(),
            "verdict": found["verdict"].fillna("not comparable").to_numpy(),
            "minimum_detectable": found["minimum_detectable"].to_numpy(float),
            "seeds_count": found["seeds_count"].fillna(0).to_numpy(int),
            "examples_count": np.where(found["examples_variance"].notna(), _examples_counts(evidence)[others], 0),
        }
    )
    if measure == ACCURACY:
        of_one_seed = np.flatnonzero((frame["seeds_count"] == 1) & (frame["examples_count"] > 0))
        for row, p in _of_one_seed(evidence, others[of_one_seed], baseline, both[of_one_seed]):
            frame.loc[of_one_seed[row], ["p", "test"]] = p, "McNemar"
        of_mcnemar = frame["test"] == "McNemar"
        frame.loc[of_mcnemar, "p_holm"] = holm(frame.loc[of_mcnemar, "p"].to_numpy(float))
    return frame


def _apart(evidence: Evidence) -> list[bool]:
    cells = evidence.cells[CELL].itertuples(index=False, name=None)
    return [cell in evidence.apart for cell in cells] if evidence.apart else [False] * len(evidence.cells)


def _mean(measure: Compared, observed: np.ndarray) -> np.ndarray:
    known = ~np.isnan(observed)
    with np.errstate(invalid="ignore"):
        mean = np.where(known, observed, 0).sum(axis=1) / known.sum(axis=1)
    return np.asarray(np.exp(mean) if measure.kind == "ratio" else mean)


def _examples_counts(evidence: Evidence) -> np.ndarray:
    """Return on how many examples each cell's files are."""
    counts = np.zeros(len(evidence.cells), int)
    place = {key: number for number, key in enumerate(evidence.cells["key"])}
    for part in evidence.examples:
        for key in evidence.runs["key"].iloc[part.rows].unique():
            counts[place[key]] = len(part.truth)
    return counts


def _of_one_seed(evidence: Evidence, cells: np.ndarray, baseline: int, both: np.ndarray) -> Iterator[tuple[int, float]]:
    """Yield the places in `cells` whose only common seed has both runs' examples, with McNemar's p-value."""
    places = {run: row for row, run in enumerate(evidence.runs[["key", "seed"]].itertuples(index=False, name=None))}
    seeds = np.array(evidence.seeds)[both.argmax(axis=1)] if len(cells) else []
    keys = evidence.cells["key"].to_numpy()
    for part in evidence.examples:
        number_of = {row: number for number, row in enumerate(part.rows)}
        pairs = [
            (place, number_of.get(places[keys[cell], seed]), number_of.get(places[keys[baseline], seed]))
            for place, (cell, seed) in enumerate(zip(cells, seeds, strict=True))
        ]
        known = [pair for pair in pairs if None not in pair]
        if known:
            right = part.predicted_after == part.truth
            where, ours, theirs = np.array(known, dtype=int).T
            yield from zip(where.tolist(), mcnemar_p(right[ours], right[theirs]).tolist(), strict=True)


def _wide(found: pd.DataFrame, measures: Iterable[Compared]) -> pd.DataFrame:
    """Put what the table shows of all measures of a cell into one row, under the measure's name and its own."""
    rows = found.drop_duplicates("key")[CELL].set_index("key", drop=False)
    shown = ["estimate", "low", "high", "p_holm", "test", "verdict", "minimum_detectable"]
    parts = [
        found[found["measure"] == measure.name].set_index("key")[shown].add_prefix(f"{measure.name}_")
        for measure in measures
    ]
    return pd.concat([rows, *parts], axis=1).reset_index(drop=True)


def _columns(evidence: Evidence, rows: pd.DataFrame, measures: list[Compared]) -> Iterator[Column]:
    names = labels(evidence)
    used = {verdict for measure in measures for verdict in rows[f"{measure.name}_verdict"]}
    marks = [LEGEND[mark] for verdict, mark in MARKS.items() if verdict in used]
    legend = f"{', '.join(marks)}." if marks else ""
    for measure in measures:
        about = about_watched(evidence) if measure.name.startswith("confused:") else legend
        yield _difference_column(rows, measure, names[measure.name], about)
    if ACCURACY in measures:
        detectable = "accuracy_after_minimum_detectable"
        places = _places(rows[detectable])
        yield Column("detectable\npoints", lambda row: number(row[detectable], places), priority=6, about=DETECTABLE)
        of_one_seed = (rows["accuracy_after_test"] == "McNemar").any()
        yield Column("accuracy\np", _p, priority=7, about=f"{P_HOLM} {P_MCNEMAR}" if of_one_seed else P_HOLM)
    for measure in measures:
        yield Column(f"{names[measure.name]}:\nverdict", field(f"{measure.name}_verdict"), "left", priority=9)


def _difference_column(rows: pd.DataFrame, measure: Compared, label: str, about: str) -> Column:
    low, high = f"{measure.name}_low", f"{measure.name}_high"
    is_exact = measure.kind == "exact"
    places = 1 if is_exact else _places((rows[high] - rows[low]) / 2)

    def text(row: Row) -> str:
        mark = MARKS.get(row[f"{measure.name}_verdict"])
        if mark is None:
            return MISSING
        estimate = (_exact if is_exact else signed)(row[f"{measure.name}_estimate"], places)
        half = number((row[high] - row[low]) / 2, places)
        shown = estimate if is_exact or half == MISSING else f"{estimate} ± {half}"
        return f"{shown} {mark}"

    priority = PRIORITIES.get(measure.name, len(PRIORITIES))
    return Column(f"{label}\nΔ {measure.unit}", text, priority=priority, about=about)


def _places(sizes: pd.Series[float]) -> int:
    known = sizes[sizes > 0]
    return decimals_of(known.median()) if len(known) else 1


def _exact(value: float, places: int) -> str:
    """Write a difference without noise, which is there even where it is too small to show, as `+<0.1`."""
    sign = "+" if value > 0 else MINUS if value < 0 else ""
    return sign + number(abs(value), places)


def _p(row: Row) -> str:
    return number(float(row["accuracy_after_p_holm"]), 3)


def _compared_how(evidence: Evidence, found: pd.DataFrame) -> Iterator[str]:
    """Say what ± is, over what, and which comparisons are one family."""
    tested = found[(found["seeds_count"] > 0) & (found["test"] != "none")]
    if tested.empty:
        return
    seeds = sorted(set(tested["seeds_count"]))
    over = counted(seeds[-1], "seed") if len(seeds) == 1 else f"{seeds[0]} to {counted(seeds[-1], 'seed')}"
    counts = sorted(set(tested["examples_count"]) - {0})
    examples = f" and {listing([f'{count:,}' for count in counts])} test examples" if counts else ""
    names = labels(evidence)
    alone = dict.fromkeys(names[name] for name in tested["measure"][tested["examples_count"] == 0])
    seeds_alone = f" ({listing(list(alone), 'and')}: seeds alone)" if counts and alone else ""
    cells = counted(found["key"].nunique(), "cell")
    yield f"±: half the 95 % interval of the difference, over n = {over}{examples}{seeds_alone}; bytes have none."
    yield (
        f"Verdicts: at 5 % over all {cells} together, for each measure (Holm's correction); an interval is of one "
        f"cell, and may leave out zero without a verdict. {SLIGHT}"
    )


def _doubts(evidence: Evidence, found: pd.DataFrame) -> Iterator[str]:
    baseline = _baseline(evidence)
    if baseline is None:
        yield "No comparisons: there is no record of a baseline."
        return
    if evidence.cells["ok_count"][baseline] == 0:
        yield f"No comparisons: the baseline ended {evidence.cells['status'][baseline]}."
        return
    for difference_ in dict.fromkeys(evidence.apart.values()):
        ids = [cell[0] for cell, what in evidence.apart.items() if what == difference_]
        yield f"Not comparable: {listed(ids)} ({difference_})."
    yield from _not_alike(evidence, found, baseline)
    yield from _without_seeds(evidence, baseline)


def _not_alike(evidence: Evidence, found: pd.DataFrame, baseline: int) -> Iterator[str]:
    """Say which cells cannot be compared in one measure, though their runs were alike otherwise."""
    apart, execution = _apart(evidence), evidence.cells["execution_used"]
    number_of = {key: number for number, key in enumerate(evidence.cells["key"])}
    names = labels(evidence)
    left_out = found[found["verdict"] == "not comparable"]
    reasons: dict[str, list[str]] = {}
    for id_, key, name in left_out[[*CELL, "measure"]].itertuples(index=False, name=None):
        number = number_of[key]
        if apart[number]:
            continue
        if np.isnan(evidence.samples[name].observed[baseline]).all():
            reason = "the baseline has no result in it"
        elif name == SPEED.name:
            reason = f"ran as {execution[number]}, the baseline as {execution[baseline]}"
        elif name == LOSS.name and evidence.comparable(number, baseline, ACCURACY):
            reason = "of another model, whose tokens are others"
        else:
            reason = "scored on other test examples than the baseline"
        reasons.setdefault(f"{names[name]}: {reason}", []).append(id_)
    for reason, ids in reasons.items():
        yield f"Not comparable in {reason}: {listed(ids)}."


def _without_seeds(evidence: Evidence, baseline: int) -> Iterator[str]:
    """Name the cells that lack a result with some seed, by the seeds they lack."""
    ok = evidence.runs[evidence.runs["status"] == "ok"]
    has = pd.crosstab(ok["key"], ok["seed"]).reindex(evidence.cells["key"], columns=evidence.seeds, fill_value=0) > 0
    lacking: dict[tuple[int, ...], list[str]] = {}
    for place in np.flatnonzero(~has.all(axis=1)).tolist():
        missing = tuple(seed for seed, there in zip(evidence.seeds, has.iloc[place], strict=True) if not there)
        if place == baseline:
            yield f"The baseline has no result with {_seeds(missing)}: left out of all comparisons."
        else:
            lacking.setdefault(missing, []).append(evidence.cells["id"][place])
    for missing, ids in lacking.items():
        yield f"No result with {_seeds(missing)}, and compared without: {listed(ids)}."


def _seeds(seeds: tuple[int, ...]) -> str:
    return f"seed{'' if len(seeds) == 1 else 's'} {listed(seeds)}"
