"""Results with the very answers that a test gives them, their examples written as a cell writes them."""

from __future__ import annotations

import numpy as np

from bench.cell.evidence import write_examples
from bench.cell.scoring import Scores
from bench.cell.tasks import Example, Task
from bench.run.store import PLAN, evidence_name
from bench.tables.evidence import gather
from bench.tables.load import load_results

from .examples import H100, record, write_result


def scores(answers, labels):
    """Scores whose likeliest label of each example is the one that is given."""
    return Scores(
        np.log(np.where(np.array(answers)[:, None] == np.array(labels), 0.9, 0.01)), np.ones(len(labels), int)
    )


def task_of(truth, labels, name="banking77"):
    return Task(
        name, tuple(labels), (), tuple(Example(number, f"{name} {number}", own) for number, own in enumerate(truth))
    )


def answered(folder, cell_id, truth, before, after, labels, *, seed=0, name="banking77", measures=None, **fields):
    """The record of a run that gave these answers, and its file of examples."""
    task = task_of(truth, labels, name)
    entry = record(cell_id, seed, **fields)
    parts = {"before": scores(before, labels), "after": scores(after, labels)}
    numbers = np.array([labels.index(own) for own in truth])
    entry["parameters"]["task"] = name
    entry["measures"] = {"eval_examples_count": len(truth), "labels_count": len(labels)} | (measures or {})
    for when, found in parts.items():
        entry["measures"] |= found.measures(numbers, when)
    hashed = write_examples(folder, evidence_name(entry["key"], seed, 0), task, parts["before"], parts["after"])
    entry["environment"] = {**H100, "task_sha256": task.sha256, **hashed}
    return entry


def evidence_of(folder, records, watch_pairs=(), baseline="base"):
    write_result(folder, records, baseline=baseline)
    plan = folder / PLAN
    pairs = ", ".join(f'["{one}", "{other}"]' for one, other in watch_pairs)
    plan.write_text(plan.read_text().replace('"baseline"', f'"watch_pairs": [{pairs}], "baseline"', 1))
    return gather(load_results(folder))


def shown(table):
    """Texts by the first column, then by heading."""
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return {row[0].replace("\n", " "): dict(zip(headings, row, strict=True)) for row in table.texts()}
