"""The tables of confusions: the pairs of labels that a matrix watches, and those that are confused most."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from bench.matrix.wording import counted
from bench.tables.caption import conditions, warnings_of
from bench.tables.evidence import Evidence
from bench.tables.examples import Examples
from bench.tables.figures import accuracy, listed, number
from bench.tables.pool import CELL
from bench.tables.table import Column, Row, Table, field, informative

MOST_PAIRS = 50  # in Markdown
SHOWN_PAIRS = 10  # in a terminal
NAN = float("nan")
NO_FILES = "No run has its file of examples, so single labels are not known: records of an earlier version have none."
NOTHING = "No run confuses two labels after training."
PER_1000 = "Per 1,000: of 1,000 test examples of any label, those of either label that are taken for the other."
SHARE = "Confused: of the n test examples of either label, the share taken for the other."
DIRECTION = "→ in a heading: of the first label's examples, the share taken for the second."
EXTREMES = "Most, least: the largest and the smallest share after training, and its cell; + 2: two more have the same."
MEANS = "Figures are means over the seeds of a cell that ended ok, and in the rows of all cells means over cells."


@dataclass(frozen=True)
class Task:
    """The examples of one task, what a reader knows the task by, and of each run the number of its cell: [runs]."""

    name: str
    examples: Examples
    cells: np.ndarray


@dataclass(frozen=True)
class Confusions:
    """What the cells of one task took for what.

    cells: [cells] their numbers. seeds_count: [cells] runs behind their means. examples_count: [labels] test examples.
    before, after: [cells, true labels, predicted labels] test examples, mean over seeds.
    """

    task: Task
    cells: np.ndarray
    seeds_count: np.ndarray
    examples_count: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @property
    def labels(self) -> tuple[str, ...]:
        return self.task.examples.labels


def confusions_table(evidence: Evidence) -> Table:
    """Tabulate the pairs of labels that the cells, taken together, confuse most after training.

    Pairs stand by how often they are confused, then by name. The CSV file has a row for each cell, true label and
    predicted label: those of the pairs in the table for every cell, and whatever else a cell confuses after training.
    """
    confusions = confusions_of(evidence)
    compared = [of_task for of_task in confusions if together(evidence, evidence.cells.iloc[of_task.cells]).any()]
    pooled = [_pooled(evidence, of_task) for of_task in compared]
    every = rows = pd.concat(pooled, ignore_index=True) if pooled else pd.DataFrame()
    if len(every):
        order = every.assign(rank=-every["confused_after_per_1000"].round(9))
        confused = every.loc[order.sort_values(["rank", "label", "other", "task"]).index]
        rows = confused[:MOST_PAIRS].reset_index(drop=True)
    most = f"; the {MOST_PAIRS} most are here" if len(every) > MOST_PAIRS else ""
    told = (f"Confused after training: {counted(len(every), 'pair')} of labels{most}, equal ones by name.",)
    return Table(
        name="confusions",
        title=f"{evidence.runs['matrix'].iloc[0]}: labels confused most, over all cells",
        columns=informative(_pair_columns(rows), rows) if len(rows) else (),
        rows=rows,
        caption=(*conditions(evidence.runs), *(told if len(rows) else ())),
        notes=(*doubts(evidence), *([NOTHING] if compared and rows.empty else [])),
        shown=SHOWN_PAIRS,
        detail=_by_cell(evidence, confusions, rows) if len(rows) else None,
    )


def tasks_of(evidence: Evidence) -> tuple[Task, ...]:
    """Return the tasks that were scored; those that share a name, such as cuts of one, are told apart by a cell."""
    index = pd.MultiIndex.from_frame(evidence.cells[CELL])
    runs = [evidence.runs.iloc[examples.rows] for examples in evidence.examples]
    names = [str(of_task["task"].iloc[0]) for of_task in runs]
    return tuple(
        Task(
            name=name if names.count(name) == 1 else f"{name} of {of_task['id'].iloc[0]}",
            examples=examples,
            cells=index.get_indexer(pd.MultiIndex.from_frame(of_task[CELL])),
        )
        for name, of_task, examples in zip(names, runs, evidence.examples, strict=True)
    )


def together(evidence: Evidence, rows: pd.DataFrame) -> np.ndarray:
    """Tell which rows, of cells by `id` and `key`, count in what is of all cells: those of cells that are not apart."""
    if not evidence.apart:
        return np.ones(len(rows), dtype=bool)
    return np.array([cell not in evidence.apart for cell in rows[CELL].itertuples(index=False, name=None)], dtype=bool)


def confusions_of(evidence: Evidence) -> tuple[Confusions, ...]:
    """Count for each task what its cells took for what."""
    return tuple(map(_counted, tasks_of(evidence)))


def _counted(task: Task) -> Confusions:
    examples, labels_count = task.examples, len(task.examples.labels)
    cells, seeds_count = np.unique(task.cells, return_counts=True)

    def mean_counts(predicted: np.ndarray) -> np.ndarray:
        codes = examples.truth * labels_count + predicted
        counts = np.stack(
            [np.bincount(codes[task.cells == cell].ravel(), minlength=labels_count**2) for cell in cells]
        ).reshape(-1, labels_count, labels_count)
        return np.asarray(counts / seeds_count[:, None, None])

    return Confusions(
        task=task,
        cells=cells,
        seeds_count=seeds_count,
        examples_count=np.bincount(examples.truth, minlength=labels_count),
        before=mean_counts(examples.predicted_before),
        after=mean_counts(examples.predicted_after),
    )


def _pooled(evidence: Evidence, of_task: Confusions) -> pd.DataFrame:
    """Return the pairs that are confused after training, a row each, in no particular order; shares of cells' means."""
    labels, n = np.array(of_task.labels, dtype=object), of_task.examples_count.astype(float)
    counts = together(evidence, evidence.cells.iloc[of_task.cells])
    before, after = of_task.before[counts].mean(axis=0), of_task.after[counts].mean(axis=0)
    one, other = np.nonzero(np.triu(after + after.T, 1))
    by_cell = (of_task.after[:, one, other] + of_task.after[:, other, one])[counts]
    ids = evidence.cells["id"].to_numpy()[of_task.cells[counts]]
    of_pair = n[one] + n[other]
    extremes = {
        f"{name}_{what}": values
        for name, choose in (("most", np.max), ("least", np.min))
        for what, values in _extreme(by_cell, ids, choose).items()
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        return pd.DataFrame(
            {
                "matrix": evidence.cells["matrix"].iloc[0],
                "task": of_task.task.name,
                "label": labels[one],
                "other": labels[other],
                "cells_count": len(ids),
                "examples_count": of_pair,
                "confused_before_per_1000": 1000 * (before + before.T)[one, other] / n.sum(),
                "confused_after_per_1000": 1000 * (after + after.T)[one, other] / n.sum(),
                "confused_before": (before + before.T)[one, other] / of_pair,
                "confused_after": (after + after.T)[one, other] / of_pair,
                "label_as_other_before": before[one, other] / n[one],
                "label_as_other_after": after[one, other] / n[one],
                "other_as_label_before": before[other, one] / n[other],
                "other_as_label_after": after[other, one] / n[other],
                **{name: values / of_pair if name.endswith("_share") else values for name, values in extremes.items()},
            }
        )


def _extreme(by_cell: np.ndarray, ids: np.ndarray, choose: Callable[..., np.ndarray]) -> dict[str, np.ndarray]:
    """Return for each column of [cells, pairs] its extreme, the cell that has it, first by name, and how many do."""
    order = np.argsort(ids.astype(str), kind="stable")
    values = choose(by_cell, axis=0)
    has = np.isclose(by_cell[order], values, rtol=0, atol=1e-9)
    return {"id": ids[order][has.argmax(axis=0)], "cells_count": has.sum(axis=0), "share": values}


def _by_cell(evidence: Evidence, confusions: Sequence[Confusions], rows: pd.DataFrame) -> pd.DataFrame:
    """Return a row for each cell, true label and predicted label that stand in the CSV file."""
    pairs = {frozenset(pair.names) for pair in evidence.watched}
    pairs |= {frozenset(pair) for pair in rows[["label", "other"]].itertuples(index=False, name=None)}
    blocks = []
    for of_task in confusions:
        labels = np.array(of_task.labels, dtype=object)
        place = {label: number for number, label in enumerate(of_task.labels)}
        kept = of_task.after > 0
        for one, other in ([place[name] for name in pair] for pair in pairs if pair <= place.keys()):
            kept[:, [one, other], [other, one]] = True
        kept[:, range(len(labels)), range(len(labels))] = False
        cell, truth, predicted = np.nonzero(kept)
        ids = evidence.cells[["matrix", *CELL]].iloc[of_task.cells[cell]].reset_index(drop=True)
        blocks.append(
            ids.assign(
                task=of_task.task.name,
                label=labels[truth],
                predicted=labels[predicted],
                label_examples_count=of_task.examples_count[truth],
                predicted_before_per_run=of_task.before[cell, truth, predicted],
                predicted_after_per_run=of_task.after[cell, truth, predicted],
                seeds_count=of_task.seeds_count[cell],
            )
        )
    return pd.concat(blocks, ignore_index=True)


def _pair_columns(rows: pd.DataFrame) -> Iterator[Column]:
    yield Column("pair", lambda row: f"{row['label']}\n↔ {row['other']}", "left", about=MEANS)
    if len(rows["task"].unique()) > 1:
        yield Column("task", field("task"), "left", priority=1)
    yield Column("n", count("examples_count"), priority=1)
    yield Column(
        "per 1,000\nbefore → after",
        lambda row: " → ".join(number(row[f"confused_{when}_per_1000"], 1) for when in ("before", "after")),
        about=PER_1000,
    )
    yield Column("confused %\nbefore → after", change("confused"), priority=1, about=SHARE)
    for name, heading in (("label_as_other", "first → second %"), ("other_as_label", "second → first %")):
        yield Column(f"{heading}\nbefore → after", change(name), priority=2, about=DIRECTION)
    if rows["cells_count"].max() > 1:
        for name in ("most", "least"):
            yield Column(f"{name} %\nin cell", _cell_of(name), "left", priority=3, about=EXTREMES)


def _cell_of(name: str) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        others = int(row[f"{name}_cells_count"]) - 1
        return f"{number(100 * row[f'{name}_share'], 1)}\n{row[f'{name}_id']}{f' + {others}' if others else ''}"

    return text


def doubts(evidence: Evidence) -> Iterator[str]:
    """Say what is missing or in doubt where single labels are shown."""
    if missing_files(evidence):
        yield NO_FILES
    yield from _not_together(evidence)
    yield from evidence.notes
    yield from warnings_of(evidence.runs)


def _not_together(evidence: Evidence) -> Iterator[str]:
    """Name the scored cells that do not count in what is of all cells."""
    rows = [row for examples in evidence.examples for row in examples.rows] if evidence.apart else []
    scored = set(evidence.runs[CELL].iloc[rows].itertuples(index=False, name=None))
    by_difference: dict[str, list[str]] = {}
    for cell, what in evidence.apart.items():
        if cell in scored:
            by_difference.setdefault(what, []).append(cell[0])
    for what, ids in by_difference.items():
        yield f"Not in the figures of all cells: {listed(ids)} ({what})."


def missing_files(evidence: Evidence) -> bool:
    """Tell whether runs were scored and none of them has its file of examples."""
    scored = evidence.runs[evidence.runs["status"] == "ok"]["accuracy_after"].notna()
    return not evidence.examples and bool(scored.any())


def change(name: str) -> Callable[[Row], str]:
    """Show a share before and after training, in percent."""
    return lambda row: accuracy(row[f"{name}_before"], row[f"{name}_after"], NAN)


def count(name: str) -> Callable[[Row], str]:
    """Show a whole number."""
    return lambda row: number(row[name], 0)
