"""The table of layers: what each case takes and what it loses, the price and the loss side by side."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from bench.matrix.wording import counted
from bench.tables.figures import number_column
from bench.tables.kernel_caption import conditions, doubts
from bench.tables.kernel_figures import (
    MB,
    US,
    G,
    change_column,
    figure_column,
    flops_unit,
    group_column,
    labelled,
    names_where_several,
    quantizations,
    text_column,
)
from bench.tables.table import MISSING, Column, Row, Table, informative

SHOWN = 24  # in a terminal
MOST_CASES = 200  # more than these no reader takes in; the CSV file has them all
TIME = "µs: median of one launch; IQR: over rounds, in % of it."
RATIO = "Against 16-bit: the time of the layer that differs only in being unquantized."
COPY = (
    "GB/s: fewest bytes that a launch can move (1e9) over its time; % of copy: of the measured copy bandwidth (reading "
    "alone can be faster than copying)."
)
MATMUL = "{}: of the products, none counted twice, over the time; % of matmul: of the measured peak of the same dtype."
ERROR = (
    "RMSE/σ: error of the weights after quantizing over their standard deviation; of this layer's Gaussian ones, and "  # noqa: RUF001
    "of SmolLM2-135M's in layers of that name."
)
PATH = (
    "Path: the fused kernel reads the 4-bit weight as it multiplies; otherwise it is dequantized first, into scratch."
)
SCRATCH = "Scratch: most bytes (MB = 1e6) that a launch allocates beside operands and results."


def layers_table(frame: pd.DataFrame) -> Table:
    """Tabulate the cases that were timed; the CSV file has every one, and all that is known of it.

    Of more than `MOST_CASES` the rows are those of the first model and dtype, without adapters, at the fewest and the
    most rows.
    """
    timed = frame[frame["status"] == "ok"]
    rows, which = _that_matter(timed)
    some = (f"Here are {len(rows):,} of {len(timed):,} cases, {which}; layers.csv has all.",) if which else ()
    rows = labelled(
        rows.assign(iqr_share=rows["iqr_s"] / rows["p50_s"], quantization=quantizations(rows)), _groups(rows)
    )
    return Table(
        name="layers",
        title=f"{frame.attrs['matrix']}: what each layer costs, and what it loses",
        columns=informative(_columns(rows), rows) if len(rows) else (),
        rows=rows,
        caption=(*conditions(frame), *some),
        notes=doubts(frame),
        shown=SHOWN,
        detail=timed.drop(columns=["status", "message", "hint"]),
    )


def _that_matter(timed: pd.DataFrame) -> tuple[pd.DataFrame, str]:
    """Choose the rows of a table that would be too long, and say which they are."""
    if len(timed) <= MOST_CASES:
        return timed, ""
    first = timed.iloc[0]
    alike = timed[(timed["model"] == first["model"]) & (timed["compute_dtype"] == first["compute_dtype"])]
    rank = alike["lora_r"].min()
    alike = alike[alike["lora_r"].isna() | (alike["lora_r"] == rank)]
    of_operation = alike.groupby("operation")["rows"]
    at_ends = (alike["rows"] == of_operation.transform("min")) | (alike["rows"] == of_operation.transform("max"))
    chosen = alike[alike["rows"].isna() | at_ends]
    adapters = "without adapters" if rank == 0 else f"with adapters of rank {rank}"
    which = f"{first['model']} in {first['compute_dtype']} {adapters} at the fewest and the most rows"
    more = f", the first {MOST_CASES} of them" if len(chosen) > MOST_CASES else ""
    return chosen[:MOST_CASES].reset_index(drop=True), f"those of {which}{more}"


def _groups(rows: pd.DataFrame) -> list[list[str]]:
    """Say of each case what it shares with those beside it, which differ in quantization only."""
    texts = rows.assign(
        at_once=["" if pd.isna(count) else counted(count, "row") for count in rows["rows"]],
        rank=["" if pd.isna(rank) or rank == 0 else f"r={rank}" for rank in rows["lora_r"]],
    )
    return names_where_several(texts, ["model", "layer", "operation", "compute_dtype", "at_once", "rank"], ["layer"])


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    yield group_column("layer")
    yield text_column("quantization", "quant.")
    yield figure_column("p50_s", "time\nµs", US, about=TIME)
    yield number_column(rows, "iqr_share", "IQR\n%", scale=0.01, decimals=1, priority=6, about=TIME)
    yield change_column("time_ratio_16bit", "against\n16-bit", about=RATIO)
    yield figure_column("bytes_per_s", "GB/s", G, priority=5, about=COPY)
    yield number_column(rows, "copy_share", "% of\ncopy", scale=0.01, decimals=0, priority=1, about=COPY)
    unit, name = flops_unit(rows["flops_per_s"].max())
    matmul = MATMUL.format(name)
    yield figure_column("flops_per_s", name, unit, priority=5, about=matmul)
    yield number_column(rows, "matmul_share", "% of\nmatmul", scale=0.01, decimals=0, priority=1, about=matmul)
    yield number_column(rows, "weight_error", "RMSE/σ\nGaussian", decimals=4, priority=4, about=ERROR)  # noqa: RUF001
    yield number_column(rows, "smollm2_weight_error", "RMSE/σ\nSmolLM2", decimals=4, priority=2, about=ERROR)  # noqa: RUF001
    yield Column("path", _path, "left", priority=3, about=PATH)
    yield number_column(rows, "scratch_bytes", "scratch\nMB", scale=MB, decimals=1, priority=7, about=SCRATCH)


def _path(row: Row) -> str:
    return {True: "fused", False: "dequantized"}.get(row["fused"], MISSING)
