"""The table of problems: every run that did not end ok, where it ended, and what may help."""

from __future__ import annotations

import pandas as pd

from bench.tables.caption import conditions, warnings_of
from bench.tables.table import Column, Table, field

NAMES = ["matrix", "id", "key", "seed", "attempt", "status", "phase", "message", "hint", "last_peak_allocated_bytes"]


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
            Column("phase", field("phase"), "left", priority=1),
            Column("message", field("message"), "left", prose=True),
            Column("hint", field("hint"), "left", prose=True),
        ),
        rows=rows,
        caption=conditions(frame),
        notes=warnings_of(frame),
    )
