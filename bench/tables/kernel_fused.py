"""The table of fused kernels: up to how many rows a 4-bit weight is read as it is, and from where on it is copied."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from bench.tables.figures import listed
from bench.tables.kernel_caption import conditions, doubts
from bench.tables.kernel_figures import (
    change_column,
    group_column,
    labelled,
    names_where_several,
    quantizations,
    text_column,
)
from bench.tables.table import MISSING, Column, Row, Table, entries, informative

SHOWN = 24  # in a terminal
GROUP = ["model", "layer", "compute_dtype", "quantization"]
ENDS = (
    "out_features", "in_features", "fused_rows", "fused_time_ratio_16bit", "dequantized_rows",
    "dequantized_time_ratio_16bit", "is_mixed",
)  # fmt: skip
TYPES = {
    "fused_rows": "Int64", "fused_time_ratio_16bit": "float64", "dequantized_rows": "Int64",
    "dequantized_time_ratio_16bit": "float64",
}  # fmt: skip
FUSED = "Fused up to: the most rows measured whose forward read the 4-bit weight as it multiplied."
DEQUANTIZED = (
    "Dequantized from: the fewest rows measured, above those of the fused kernel, whose forward made a 16-bit copy."
)
RATIO = "Against 16-bit: the time at that many rows over that of the unquantized layer, less one."


def fused_table(frame: pd.DataFrame) -> Table:
    """Tabulate, for each layer, dtype and 4-bit type, where the fused kernel ends; none where that is not known."""
    known = frame[frame["fused"].notna()]
    known = known[known["lora_r"] == known["lora_r"].min()].assign(quantization=quantizations(known))
    cases: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for case in entries(known):
        cases[tuple(case[name] for name in GROUP)].append(case)
    found = [dict(zip(GROUP, names, strict=True)) | _ends(of_group) for names, of_group in cases.items()]
    rows = pd.DataFrame(found, columns=[*GROUP, *ENDS]).astype(TYPES)
    shown = labelled(rows, names_where_several(rows, GROUP[:3], ["layer"]))
    return Table(
        name="fused",
        title=f"{frame.attrs['matrix']}: where the fused 4-bit kernel ends",
        columns=informative(_columns(), shown) if len(rows) else (),
        rows=shown,
        caption=conditions(frame),
        notes=(*_mixed(rows), *doubts(frame)),
        shown=SHOWN,
        detail=rows,
    )


def _ends(cases: Sequence[Row]) -> dict[str, Any]:
    """Find the most rows that are fused and the fewest above them that are not, with the times there.

    `is_mixed` tells that fewer rows than those of the fused ones were dequantized.
    """
    ordered = sorted(cases, key=lambda case: int(case["rows"]))
    fused = [case for case in ordered if case["fused"]]
    most = fused[-1]["rows"] if fused else 0
    above = [case for case in ordered if not case["fused"] and case["rows"] > most]
    return {
        **{name: ordered[0][name] for name in ("out_features", "in_features")},
        **_at(fused[-1:], "fused"),
        **_at(above[:1], "dequantized"),
        "is_mixed": any(not case["fused"] and case["rows"] < most for case in ordered),
    }


def _at(cases: Sequence[Row], path: str) -> dict[str, Any]:
    names = {"rows": f"{path}_rows", "time_ratio_16bit": f"{path}_time_ratio_16bit"}
    return {to: cases[0][name] if cases else None for name, to in names.items()}


def _columns() -> Iterator[Column]:
    yield group_column("layer")
    yield Column("out × in", _shape, priority=2)  # noqa: RUF001
    yield text_column("quantization", "4-bit type")
    yield Column("fused\nup to", lambda row: _count(row, "fused_rows"), about=FUSED)
    yield change_column("fused_time_ratio_16bit", "against\n16-bit", about=RATIO)
    yield Column("dequantized\nfrom", lambda row: _count(row, "dequantized_rows"), about=DEQUANTIZED)
    yield change_column("dequantized_time_ratio_16bit", "against\n16-bit", about=RATIO)


def _shape(row: Row) -> str:
    return f"{row['out_features']} × {row['in_features']}"  # noqa: RUF001


def _count(row: Row, name: str) -> str:
    return MISSING if pd.isna(row[name]) else f"{int(row[name]):,}"


def _mixed(rows: pd.DataFrame) -> Iterator[str]:
    mixed = rows[rows["is_mixed"].astype(bool)] if len(rows) else rows
    if len(mixed):
        names = [f"{row['model']} {row['layer']} {row['quantization']}" for row in mixed.to_dict("records")]
        yield f"Also dequantized at fewer rows than the fused kernel reaches: {listed(names)}."
