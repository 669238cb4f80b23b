"""The table of problems: every run that did not end ok, where it ended, and what may help."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd

from bench.tables.caption import conditions, warnings_of
from bench.tables.figures import GB, number_column
from bench.tables.limits import OF_ALLOCATION, OF_NEED, short_of_need
from bench.tables.table import MISSING, Column, Row, Table, field, informative

NAMES = [
    "matrix", "id", "key", "seed", "repeat", "attempt", "status", "phase", "message", "hint",
    "last_peak_allocated_bytes", "short_bytes", "cap_bytes", "predicted_needed_bytes",
    "predicted_train_peak_allocated_bytes", "prediction_note",
]  # fmt: skip
SHORT = f"GB = 1e9 bytes. Short: {OF_NEED}; where there is no cap, or by prediction it suffices, {OF_ALLOCATION}."
PREDICTED = "Predicted peak: of training, most bytes in live tensors; ≥: a lower bound."


def problems_table(frame: pd.DataFrame) -> Table:
    """Tabulate the runs of one result (a frame of `load_results`) that did not end ok; there may be none.

    `again` marks the run of a baseline at the end of a seed's block.
    """
    rows = frame.loc[frame["status"] != "ok", NAMES].reset_index(drop=True)
    rows["lacked_bytes"] = short_of_need(rows).fillna(rows["short_bytes"]).where(rows["status"] == "oom")
    return Table(
        name="problems",
        title=f"{frame['matrix'].iloc[0]}: problems",
        columns=(
            Column("id", field("id"), "left"),
            Column("seed", _seed, priority=2),
            Column("status", field("status"), "left"),
            *informative(_memory(rows), rows),
            Column("phase", field("phase"), "left", priority=1),
            Column("message", field("message"), "left", prose=True),
            Column("hint", field("hint"), "left", prose=True),
        ),
        rows=rows,
        caption=conditions(frame),
        notes=warnings_of(frame),
    )


def _seed(row: Row) -> str:
    return f"{row['seed']} again" if row["repeat"] else str(row["seed"])


def _memory(rows: pd.DataFrame) -> tuple[Column, ...]:
    """Show what was missing and what was predicted, of the runs that ran out of memory."""
    out_of_memory = rows[rows["status"] == "oom"]
    name = "predicted_train_peak_allocated_bytes"
    short = number_column(out_of_memory, "lacked_bytes", "short\nGB", scale=GB, priority=1, about=SHORT)
    predicted = number_column(out_of_memory, name, "predicted\npeak GB", scale=GB, priority=1, about=PREDICTED)

    def text_of(column: Column, row: Row, is_predicted: bool) -> str:
        text = column.text(row) if row["status"] == "oom" else MISSING
        is_bound = is_predicted and not pd.isna(row["prediction_note"])
        return f"≥ {text}" if is_bound and text != MISSING else text

    return (
        replace(short, text=lambda row: text_of(short, row, row["lacked_bytes"] != row["short_bytes"])),
        replace(predicted, text=lambda row: text_of(predicted, row, True)),
    )
