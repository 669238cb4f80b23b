"""The table of storage: where the bytes of the loaded model are, before adapters and training."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from bench.protocol import PLACES
from bench.tables.caption import conditions, warnings_of
from bench.tables.cells import id_text
from bench.tables.comparable import left_out_notes
from bench.tables.figures import Unit, listed, number_column, signed, unit_for
from bench.tables.parts import PLACED, Part, place, size
from bench.tables.pool import CELL, pool_seeds
from bench.tables.table import MISSING, Column, Row, Table, entries, field, informative

# Parts that add up to what is stored, and what stands beside it: name of the measure, heading, priority, what it is.
STATE = "absmax (scales) + nested absmax + codes = quant. state."
UNQUANTIZED = "Unquantized: parameters kept in 16 or 32 bits."
SUM = "packed + quant. state + unquantized + buffers = stored."
FOOTPRINT = "HF footprint: get_memory_footprint(), blind to the quantization state."
PARTS = (
    ("packed_bytes", "packed", 0, ""),
    ("absmax_bytes", "absmax", 4, STATE),
    ("nested_absmax_bytes", "nested\nabsmax", 4, STATE),
    ("code_bytes", "codes", 4, STATE),
    ("quant_state_bytes", "quant.\nstate", 0, ""),
    *((f"{name}_bytes", name, 5, "") for name in PLACES),
    ("unquantized_bytes", "unquantized", 0, UNQUANTIZED),
    ("buffer_bytes", "buffers", 3, ""),
    ("stored_bytes", "stored", 0, SUM),
    ("footprint_bytes", "HF\nfootprint", 0, FOOTPRINT),
)
PREDICTED = ["predicted_stored_bytes", "predicted_footprint_bytes"]
SHARE = "4/8-bit: share of the parameters held in 4 or 8 bits."
RESIDUAL = "Off by: predicted less measured stored bytes."


def storage_table(frame: pd.DataFrame) -> Table:
    """Tabulate one result, a frame of `load_results` with at least one row: a row a cell, its seeds pooled."""
    cells = pool_seeds(frame).reset_index()
    rows = cells.assign(
        quantized_percent=100 * cells["quantized_parameters_count"] / cells["parameters_count"],
        stored_residual_bytes=cells["predicted_stored_bytes"] - cells["stored_bytes"],
        **{f"{name}_bytes": size(cells, Part(name, place(name))) for name in PLACES},
    )
    names = [name for name, *_ in PARTS]
    known = [name for name in PLACED if rows[name].notna().any()]
    rows = rows[
        ["matrix", *CELL, "is_baseline", "status", "parameters_count", "quantized_percent",
         *names, *known, *PREDICTED, "stored_residual_bytes"]
    ]  # fmt: skip
    unit = unit_for(rows["stored_bytes"].max())
    return Table(
        name="storage",
        title=f"{frame['matrix'].iloc[0]}: storage of the loaded base in {unit.name}",
        columns=informative(_columns(rows, unit), rows),
        rows=rows,
        caption=conditions(frame),
        notes=(*_off(rows), *left_out_notes(frame), *warnings_of(frame)),
    )


def _columns(rows: pd.DataFrame, unit: Unit) -> Iterator[Column]:
    yield Column("id", id_text, "left", about=unit.about)
    yield number_column(rows, "quantized_percent", "4/8-bit\n%", priority=2, decimals=1, about=SHARE)
    for name, heading, priority, about in PARTS:
        yield number_column(
            rows, name, heading, scale=unit.bytes, priority=priority, decimals=unit.decimals, about=about
        )
    yield Column("off by", _residual, priority=1, about=RESIDUAL)
    yield Column("status", field("status"), "left", priority=4)


def _residual(row: Row) -> str:
    text = signed(row["stored_residual_bytes"], 0)
    return text if text == MISSING else f"{text} B"


def _off(rows: pd.DataFrame) -> Iterator[str]:
    off = rows[rows["stored_residual_bytes"].fillna(0) != 0]
    if len(off):
        ids = listed([f"{row['id']} ({_residual(row)})" for row in entries(off)])
        yield f"Stored bytes are not what was predicted: {ids}."
