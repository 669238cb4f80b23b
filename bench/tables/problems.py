"""The table of problems: every run that did not end ok, where it ended, and what may help."""

from __future__ import annotations

import pandas as pd

from bench.tables.caption import conditions, warnings_of
from bench.tables.figures import GB, number_column
from bench.tables.table import MISSING, Column, Row, Table, field, informative

NAMES = [
    "matrix", "id", "key", "seed", "attempt", "status", "phase", "message", "hint", "last_peak_allocated_bytes",
    "short_bytes", "predicted_train_peak_allocated_bytes", "prediction_note",
]  # fmt: skip
SHORT = "GB = 1e9 bytes. Short: what was missing when memory ran out."
PREDICTED = "Predicted peak: of training, most bytes in live tensors; ≥: a lower bound."


def problems_table(frame: pd.DataFrame) -> Table:
    """Tabulate the runs of one result (a frame of `load_results`) that did not end ok; there may be none."""
    rows = frame.loc[frame["status"] != "ok", NAMES].reset_index(drop=True)
    return Table(
        name="problems",
        title=f"Problems of {frame['matrix'].iloc[0]}",
        columns=(
            Column("id", field("id"), "left"),
            Column("seed", field("seed"), priority=2),
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


def _memory(rows: pd.DataFrame) -> tuple[Column, ...]:
    """Show what was missing and what was predicted, of the runs that ran out of memory."""
    out_of_memory = rows[rows["status"] == "oom"]
    name = "predicted_train_peak_allocated_bytes"
    short = number_column(out_of_memory, "short_bytes", "short\nGB", scale=GB)
    predicted = number_column(out_of_memory, name, "predicted\npeak GB", scale=GB)

    def short_text(row: Row) -> str:
        return short.text(row) if row["status"] == "oom" else MISSING

    def predicted_text(row: Row) -> str:
        text = predicted.text(row) if row["status"] == "oom" else MISSING
        return text if text == MISSING or pd.isna(row["prediction_note"]) else f"≥ {text}"

    return (
        Column(short.heading, short_text, priority=1, about=SHORT),
        Column(predicted.heading, predicted_text, priority=1, about=PREDICTED),
    )
