"""The table of memory: where the bytes of the loaded model are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from bench.tables.caption import conditions, warnings_of
from bench.tables.cells import id_text
from bench.tables.figures import GB, MB, number_column
from bench.tables.pool import CELL, pool_seeds
from bench.tables.table import Column, Table, field, informative


class Unit(NamedTuple):
    name: str
    bytes: float
    decimals: int
    about: str


UNITS = (Unit("GB", GB, 3, "GB = 1e9 bytes."), Unit("MB", MB, 1, "MB = 1e6 bytes."))

# Parts that add up to what is stored, and what stands beside it: name of the measure, heading, priority, what it is.
SUM = "packed + quant. state + unquantized + buffers = stored."
PARTS = (
    ("packed_bytes", "packed", 0, ""),
    ("quant_state_bytes", "quant.\nstate", 0, ""),
    ("unquantized_bytes", "unquantized", 0, ""),
    ("buffer_bytes", "buffers", 3, ""),
    ("stored_bytes", "stored", 0, SUM),
    ("footprint_bytes", "HF\nfootprint", 0, "HF footprint: get_memory_footprint(), blind to the quantization state."),
    ("adapter_bytes", "adapters", 2, "Adapters come on top."),
)
SHARE = "4/8-bit: share of the parameters held in 4 or 8 bits."


def memory_table(frame: pd.DataFrame) -> Table:
    """Tabulate one result, a frame of `load_results` with at least one row: a row a cell, its seeds pooled."""
    cells = pool_seeds(frame)
    cells["quantized_percent"] = 100 * cells["quantized_parameters_count"] / cells["parameters_count"]
    names = [name for name, *_ in PARTS]
    rows = cells.reset_index()[
        ["matrix", *CELL, "is_baseline", "status", "parameters_count", "quantized_percent", *names]
    ]
    unit = UNITS[0] if rows["stored_bytes"].max() >= GB else UNITS[1]
    return Table(
        name="memory",
        title=f"Memory of {frame['matrix'].iloc[0]}, in {unit.name}",
        columns=informative(_columns(rows, unit), rows),
        rows=rows,
        caption=conditions(frame),
        notes=warnings_of(frame),
    )


def _columns(rows: pd.DataFrame, unit: Unit) -> Iterator[Column]:
    yield Column("id", id_text, "left", about=unit.about)
    yield number_column(rows, "quantized_percent", "4/8-bit\n%", priority=1, decimals=1, about=SHARE)
    for name, heading, priority, about in PARTS:
        yield number_column(
            rows, name, heading, scale=unit.bytes, priority=priority, decimals=unit.decimals, about=about
        )
    yield Column("status", field("status"), "left", priority=4)
