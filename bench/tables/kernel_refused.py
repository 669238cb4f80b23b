"""The table of refused cases: what could not be timed, why, and what may help."""

from __future__ import annotations

import pandas as pd

from bench.tables.kernel_caption import conditions
from bench.tables.kernels import PARAMETERS
from bench.tables.table import Column, Table, field


def refused_table(frame: pd.DataFrame) -> Table:
    """Tabulate the cases that have no times; there may be none."""
    rows = frame.loc[frame["status"] != "ok", ["id", "status", "message", "hint", *PARAMETERS]].reset_index(drop=True)
    return Table(
        name="refused",
        title=f"{frame.attrs['matrix']}: refused",
        columns=(
            Column("id", field("id"), "left"),
            Column("status", field("status"), "left"),
            Column("message", field("message"), "left", prose=True),
            Column("hint", field("hint"), "left", prose=True),
        ),
        rows=rows,
        caption=conditions(frame),
    )
