"""The table of labels: precision, recall and F1 of each, before and after training."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd

from bench.tables.caption import conditions
from bench.tables.confusions import Task, change, count, doubts, tasks_of, together
from bench.tables.evidence import Evidence
from bench.tables.figures import listed, number
from bench.tables.pool import CELL
from bench.tables.table import MISSING, Column, Row, Table, entries, field, informative

SHOWN = 5  # in a terminal
MOST_APART = 3
FIGURES = tuple(f"{score}_{when}" for score in ("precision", "recall", "f1") for when in ("before", "after"))
NAN = float("nan")
MEANS = "Figures are means over the seeds of a cell that ended ok, then over cells; equal ones stand by name."
SCORES = (
    "Precision: of the examples that a run gives the label, the share that has it; recall: of the n test examples that "
    "have it, the share that is given it; F1: their harmonic mean."
)
EXTREMES = (
    "Lowest, highest: F1 after training of the cells that are furthest apart; apart: their difference, of which "
    "noise is a part."
)


def labels_table(evidence: Evidence) -> Table:
    """Tabulate the labels of a result, means over its cells; the CSV file has a row for each label and cell.

    A terminal shows the labels with the lowest F1. A label without a test example has no recall and no F1, and one that
    a run never predicts has no precision in it: means are over the runs that have one.
    """
    tasks = tasks_of(evidence)
    details = [_by_cell(evidence, task) for task in tasks]
    compared = [kept for detail in details if len(kept := detail[together(evidence, detail)])]
    rows = pd.concat(map(_pooled, compared), ignore_index=True) if compared else pd.DataFrame()
    if len(rows):
        order = rows.assign(rank=rows["f1_after"].round(9)).sort_values(["rank", "label", "task"], na_position="last")
        rows = rows.loc[order.index].reset_index(drop=True)
    return Table(
        name="labels",
        title=f"{evidence.runs['matrix'].iloc[0]}: quality by label, over all cells",
        columns=informative(_columns(rows), rows) if len(rows) else (),
        rows=rows,
        caption=(*conditions(evidence.runs), *_most_apart(rows)),
        notes=(*doubts(evidence), *_without_examples(rows)),
        shown=SHOWN,
        detail=pd.concat(details, ignore_index=True) if details else None,
    )


def scores(truth: np.ndarray, predicted: np.ndarray, labels_count: int) -> dict[str, np.ndarray]:
    """Return precision, recall and F1 of each label and run, each [runs, labels]; NaN where there is none.

    Args:
        truth: [examples], numbers of labels.
        predicted: [runs, examples], the same.
        labels_count: how many labels there are.
    """
    found = np.stack([np.bincount(row, minlength=labels_count) for row in predicted])
    right = np.stack([np.bincount(truth[row == truth], minlength=labels_count) for row in predicted])
    own = np.bincount(truth, minlength=labels_count)
    with np.errstate(invalid="ignore", divide="ignore"):
        f1 = np.where(own > 0, 2 * right / (found + own), NAN)
        return {"precision": right / found, "recall": right / own, "f1": f1}


def _by_cell(evidence: Evidence, task: Task) -> pd.DataFrame:
    """Return a row a label and cell, labels in their order and cells in theirs."""
    examples, labels = task.examples, task.examples.labels
    predicted = {"before": examples.predicted_before, "after": examples.predicted_after}
    of_runs = {
        f"{name}_{when}": values.ravel()
        for when, answers in predicted.items()
        for name, values in scores(examples.truth, answers, len(labels)).items()
    }
    runs = len(examples.rows)
    numbers = {"label": np.tile(np.arange(len(labels)), runs), "cell": np.repeat(task.cells, len(labels))}
    by_cell = pd.DataFrame(numbers | of_runs).groupby(["label", "cell"])
    found = by_cell[list(FIGURES)].mean().assign(seeds_count=by_cell.size()).reset_index()
    cells = evidence.cells[["matrix", *CELL]].iloc[found["cell"]].reset_index(drop=True)
    return cells.assign(
        task=task.name,
        label=np.array(labels, dtype=object)[found["label"]],
        examples_count=np.bincount(examples.truth, minlength=len(labels))[found["label"]],
        **{name: found[name] for name in ("seeds_count", *FIGURES)},
    )


def _pooled(detail: pd.DataFrame) -> pd.DataFrame:
    by_label = detail.groupby("label", sort=False)
    named = detail.assign(f1=detail["f1_after"].round(9)).dropna(subset="f1").sort_values(["f1", "id"])
    lowest = named.drop_duplicates("label").set_index("label")
    highest = named.sort_values(["f1", "id"], ascending=[False, True]).drop_duplicates("label").set_index("label")
    rows = (
        by_label[["matrix", "task", "examples_count"]]
        .first()
        .assign(
            cells_count=by_label.size(),
            **by_label[list(FIGURES)].mean(),
            lowest_f1_id=lowest["id"],
            lowest_f1=lowest["f1_after"],
            highest_f1_id=highest["id"],
            highest_f1=highest["f1_after"],
        )
    )
    rows["f1_apart"] = rows["highest_f1"] - rows["lowest_f1"]
    return rows.reset_index()[["matrix", "task", "label", *rows.columns.drop(["matrix", "task"])]]


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    yield Column("label", field("label"), "left", about=MEANS)
    if len(rows["task"].unique()) > 1:
        yield Column("task", field("task"), "left", priority=1)
    yield Column("n", count("examples_count"), priority=2)
    for name, heading, priority in (("precision", "precision %", 2), ("recall", "recall %", 2), ("f1", "F1 %", 0)):
        yield Column(f"{heading}\nbefore → after", change(name), priority=priority, about=SCORES)
    if rows["cells_count"].max() > 1:
        yield Column("apart\npoints", lambda row: number(100 * row["f1_apart"], 1), priority=1, about=EXTREMES)
        for name in ("lowest", "highest"):
            yield Column(f"{name}\nF1 %", _cell_of(name), "left", priority=3, about=EXTREMES)


def _cell_of(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        share = number(100 * row[f"{name}_f1"], 1)
        return share if share == MISSING else f"{share} in {row[f'{name}_f1_id']}"

    return text


def _most_apart(rows: pd.DataFrame) -> Iterable[str]:
    """Name the labels whose F1 differs most between cells."""
    if rows.empty or not rows["f1_apart"].max() > 0:
        return ()
    order = rows.assign(rank=-rows["f1_apart"].round(9)).sort_values(["rank", "label", "task"])
    told = [
        f"{row['label']} ({_cell_of('lowest')(row)}, {_cell_of('highest')(row)})"
        for row in entries(order[order["f1_apart"] > 0][:MOST_APART])
    ]
    return (f"F1 % after training is furthest apart between cells for {', '.join(told)}.",)


def _without_examples(rows: pd.DataFrame) -> Iterator[str]:
    absent = rows[rows["examples_count"] == 0] if len(rows) else rows
    for task, labels in absent.groupby("task") if len(absent) else ():
        yield f"No test example of {listed(list(labels['label']))} in {task}: no recall and no F1."
