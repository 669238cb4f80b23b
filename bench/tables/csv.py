"""Tables as CSV: raw values in full precision, units in the names of the columns, empty where missing."""

from __future__ import annotations

import pandas as pd

from bench.tables.table import Table


def to_csv(table: Table) -> str:
    return whole_numbers(table.rows if table.detail is None else table.detail).to_csv(index=False, lineterminator="\n")


def whole_numbers(frame: pd.DataFrame) -> pd.DataFrame:
    """Make bytes and counts whole numbers; a mean over seeds is rounded."""
    names = [name for name in map(str, frame) if name.endswith(("_bytes", "_count"))]
    return frame.assign(**{name: frame[name].astype("Float64").round().astype("Int64") for name in names})
