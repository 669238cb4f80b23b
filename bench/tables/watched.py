"""The table of watched pairs: how often the labels that a matrix names are taken for each other, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd

from bench.matrix.wording import counted
from bench.tables.caption import conditions
from bench.tables.cells import id_text
from bench.tables.confusions import DIRECTION, MEANS, SHARE, Confusions, change, confusions_of, count, doubts, together
from bench.tables.contrasts import LEAST_SEEDS, difference
from bench.tables.evidence import Compared, Evidence
from bench.tables.figures import listed, number, signed
from bench.tables.pool import CELL
from bench.tables.table import MISSING, Column, Row, Table, field, informative
from bench.tables.wilson import of_cells

SHARES = tuple(
    f"{name}_{when}" for name in ("confused", "first_as_second", "second_as_first") for when in ("before", "after")
)
COARSE = 0.1  # an uncertainty that bears no decimal of a percentage
HALF_WIDTH = "±: half the 95 % interval after training, over seeds and the n test examples"
WILSON = "±: half the 95 % Wilson interval after training, over the n test examples"
AGAINST = "Against baseline: difference of the share after training, paired by seed, ± half its 95 % interval;"
FAMILY = "its verdict is corrected by Holm over the cells."


def watched_table(evidence: Evidence) -> Table:
    """Tabulate each watched pair of labels: all cells together, then a row a cell.

    Nothing is tabulated where no pair is watched, or no run has its file of examples.
    """
    confusions = confusions_of(evidence)
    together = [pair for pair in evidence.watched if any(map(_has(pair.names), confusions))]
    blocks = [_watched_rows(evidence, confusions, pair.names, pair.compared) for pair in together]
    rows = pd.concat(blocks, ignore_index=True) if blocks else pd.DataFrame()
    pairs = [" and ".join(pair.names) for pair in together]
    strangers = [
        f"The watched pair {' and '.join(pair.names)}: no task has both labels."
        for pair in evidence.watched
        if pair not in together
    ]
    what = f"{pairs[0]}, taken for each other" if len(pairs) == 1 else "watched pairs of labels, taken for each other"
    return Table(
        name="watched",
        title=f"{evidence.runs['matrix'].iloc[0]}: {what}",
        columns=informative(_watched_columns(rows, len(pairs) > 1), rows) if len(rows) else (),
        rows=rows,
        caption=conditions(evidence.runs),
        notes=(*doubts(evidence), *strangers, *_without_figures(evidence, rows), *_not_compared(evidence, rows)),
    )


def _watched_rows(
    evidence: Evidence, confusions: Sequence[Confusions], names: tuple[str, str], measure: Compared
) -> pd.DataFrame:
    cells = evidence.cells[["matrix", *CELL, "is_baseline", "task", "status"]]
    cells = cells.join(_against_baseline(evidence, measure))
    has = _has(names)
    scored = [_pair_of_cells(of_task, names) for of_task in confusions if has(of_task)]
    elsewhere = [cell for of_task in confusions if not has(of_task) for cell in of_task.cells]
    by_cell = cells.drop(columns="task").join(pd.concat(scored).drop(columns="task"))
    by_cell["task"] = pd.concat(scored)["task"].reindex(by_cell.index).fillna(cells["task"])
    by_cell["confused_after_half_width"], _ = of_cells(
        evidence, measure, by_cell["confused_after"], by_cell["examples_count"]
    )
    pooled = [
        {"matrix": cells["matrix"].iloc[0], "is_baseline": False, "cells_count": len(part), **part[[*SHARES]].mean(),
         **part[["task", "examples_count", "first_examples_count"]].iloc[0]}
        for part in (part[together(evidence, cells.loc[part.index])] for part in scored)
        if len(part)
    ]  # fmt: skip
    rows = pd.concat([pd.DataFrame(pooled), by_cell.drop(index=elsewhere).assign(cells_count=1)], ignore_index=True)
    return rows.assign(first=names[0], second=names[1])[
        ["matrix", "task", "first", "second", *CELL, "is_baseline", "cells_count", "seeds_count",
         "examples_count", *SHARES, "confused_after_half_width",
         "difference_points", "difference_low_points", "difference_high_points", "p_holm", "verdict", "status"]
    ]  # fmt: skip


def _has(names: tuple[str, str]) -> Callable[[Confusions], bool]:
    return lambda of_task: set(names) <= set(of_task.labels)


def _pair_of_cells(of_task: Confusions, names: tuple[str, str]) -> pd.DataFrame:
    """Return the shares of a pair, a row a cell by its number; NaN where a label has no test example."""
    one, other = (of_task.labels.index(name) for name in names)
    n_one, n_other = of_task.examples_count[[one, other]].astype(float)
    columns: dict[str, object] = {
        "task": of_task.task.name,
        "seeds_count": of_task.seeds_count,
        "examples_count": n_one + n_other,
        "first_examples_count": n_one,
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        for when, counts in (("before", of_task.before), ("after", of_task.after)):
            first, second = counts[:, one, other], counts[:, other, one]
            columns[f"confused_{when}"] = (first + second) / (n_one + n_other)
            columns[f"first_as_second_{when}"] = first / n_one
            columns[f"second_as_first_{when}"] = second / n_other
    return pd.DataFrame(columns, index=of_task.cells)


def _against_baseline(evidence: Evidence, measure: Compared) -> pd.DataFrame:
    """Compare each cell with the baseline, by number; cells that cannot be have no figures."""
    names = {"estimate": "difference_points", "low": "difference_low_points", "high": "difference_high_points"}
    baseline = [int(number) for number in np.flatnonzero(evidence.cells["is_baseline"])]
    others = [number for number in range(len(evidence.cells)) if baseline and number != baseline[0]]
    valued = ~np.isnan(evidence.samples[measure.name].observed).all(axis=1)
    compared = [number for number in others if evidence.comparable(number, baseline[0], measure)]
    found = evidence.found(measure, [difference(number, baseline[0]) for number in compared])
    found = found.set_axis(compared)[[*names, "p_holm", "verdict"]].rename(columns=names)
    apart = [number for number in others if valued[number] and valued[baseline[0]] and number not in found.index]
    return pd.concat([found, pd.DataFrame({"verdict": "not comparable"}, index=apart)])


def _watched_columns(rows: pd.DataFrame, several: bool) -> Iterator[Column]:
    yield Column("cell", _cell_text, "left", about=MEANS)
    if several:
        yield Column("pair", _pair_text, "left")
    if len(rows["task"].unique()) > 1:
        yield Column("task", field("task"), "left", priority=3)
    if rows["seeds_count"].min() < rows["seeds_count"].max():
        yield Column("seeds", count("seeds_count"), priority=4)
    enough = rows["seeds_count"].max() >= LEAST_SEEDS
    least = f"; Wilson's, over examples alone, with fewer than {LEAST_SEEDS} seeds or where all runs agree."
    yield Column("n", count("examples_count"), priority=3)
    yield Column(
        "confused %\nbefore → after",
        _confused(0 if rows["confused_after_half_width"].max() >= COARSE else 1),
        about=f"{SHARE} {HALF_WIDTH}{least}" if enough else f"{SHARE} {WILSON}.",
    )
    yield Column("against baseline\npoints", _difference, priority=2, about=f"{AGAINST} {FAMILY}")
    yield Column("verdict", field("verdict"), "left", priority=1)
    first, second = ("first", "second") if several else rows[["first", "second"]].iloc[0]
    for name, of, other in (("first_as_second", first, second), ("second_as_first", second, first)):
        yield Column(f"{of}\n→ {other} %", change(name), priority=6, about=DIRECTION)
    if (rows["status"].dropna() != "ok").any():
        yield Column("status", field("status"), "left", priority=1)


def _cell_text(row: Row) -> str:
    return f"all {counted(int(row['cells_count']), 'cell')}" if pd.isna(row["id"]) else id_text(row)


def _pair_text(row: Row) -> str:
    return f"{row['first']}\n{row['second']}" if pd.isna(row["id"]) else ""


def _confused(decimals: int) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        before, after, width = (
            number(100 * row[f"confused_{name}"], decimals) for name in ("before", "after", "after_half_width")
        )
        change = MISSING if before == after == MISSING else f"{before} → {after}"
        return change if width == MISSING else f"{change} ± {width}"

    return text


def _difference(row: Row) -> str:
    text = signed(row["difference_points"], 1)
    width = (row["difference_high_points"] - row["difference_low_points"]) / 2
    return text if text == MISSING or pd.isna(width) else f"{text} ± {number(width, 1)}"


def _without_figures(evidence: Evidence, rows: pd.DataFrame) -> Iterator[str]:
    """Name the cells that have a row without shares, and why."""
    if not len(rows):
        return
    lost = rows[rows["id"].notna() & rows["confused_after"].isna()]
    random = lost["key"].isin(evidence.cells.loc[evidence.cells["weights"] == "random", "key"])
    reasons = lost["status"].mask(lost["status"] == "ok", "no file of examples").mask(random, "random weights")
    reasons = reasons.mask(lost["examples_count"] == 0, "no test example")
    if told := dict.fromkeys(f"{id_} ({reason})" for id_, reason in zip(lost["id"], reasons, strict=True)):
        yield f"No figures of {listed(list(told))}."


def _not_compared(evidence: Evidence, rows: pd.DataFrame) -> Iterator[str]:
    """Name the cells that have no verdict, and why."""
    if not len(rows):
        return
    known = rows[rows["id"].notna() & rows["confused_after"].notna()]
    if len(known) and not known["is_baseline"].any():
        yield "Nothing is compared with the baseline: it has no figures."
    apart = rows.loc[rows["verdict"] == "not comparable", ["id", "key"]].itertuples(index=False, name=None)
    if told := dict.fromkeys(f"{cell[0]} ({evidence.apart.get(cell, 'another task')})" for cell in apart):
        yield f"Not comparable: {listed(list(told))}."
