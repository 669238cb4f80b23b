"""The table of overheads: how much more time than in 16 bits the layers of a model take, quantizations side by side."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from bench.matrix.wording import listing
from bench.tables.figures import listed, number
from bench.tables.kernel_caption import conditions, doubts, largest_drift
from bench.tables.kernel_figures import (
    UNQUANTIZED,
    US,
    change_text,
    figure_column,
    group_column,
    in_order,
    labelled,
    names_where_several,
    quantizations,
)
from bench.tables.table import Column, Row, Table

SHOWN = 40  # in a terminal
GROUP = ["model", "compute_dtype", "operation", "lora_r", "rows"]
ERRORS = {
    "weight_error": "RMSE/σ, Gaussian",  # noqa: RUF001
    "smollm2_weight_error": "RMSE/σ, SmolLM2-135M",  # noqa: RUF001
}
SUM = "16-bit: time of the unquantized layers. The others: how much more, or less, the same layers take quantized."
LOSS = (
    "RMSE/σ: error of the weights after quantizing over their standard deviation, mean over layers; of Gaussian ones, "  # noqa: RUF001
    "and of SmolLM2-135M's."
)
RANK = "r: rank of a LoRA adapter, 0 without one."


def overheads_table(frame: pd.DataFrame) -> Table:
    """Tabulate, by model, operation, rows and rank, the summed time of layers over that of the same ones in 16 bits.

    The first rows are the errors of the weights. In the CSV file each quantization has a row of its own.
    """
    sums = _sums(frame)
    timed = frame[(frame["status"] == "ok") & (frame["quant_type"] != UNQUANTIZED)]
    names = in_order(quantizations(timed))
    times = _side_by_side(frame, sums) if len(sums) else sums
    rows = pd.concat([_errors(frame, names), times], ignore_index=True) if len(times) else times
    return Table(
        name="overheads",
        title=f"{frame.attrs['matrix']}: time against 16-bit",
        columns=tuple(_columns(rows, names)) if len(rows) else (),
        rows=rows,
        caption=(*conditions(frame), *_summed(frame, sums)),
        notes=(*_fewer(sums), *doubts(frame)),
        shown=SHOWN,
        detail=sums,
    )


def _sums(frame: pd.DataFrame) -> pd.DataFrame:
    """Add up the times of the layers that have both, by `GROUP` and quantization."""
    both = frame[frame["time_ratio_16bit"].notna() & (frame["quant_type"] != UNQUANTIZED)]
    both = both.assign(
        quantization=quantizations(both), time_s=both["p50_s"], time_16bit_s=both["p50_s"] / both["time_ratio_16bit"]
    )
    grouped = both.groupby([*GROUP, "quantization"], sort=False)
    sums = grouped.agg(
        time_s=("time_s", "sum"), time_16bit_s=("time_16bit_s", "sum"), layers_count=("layer", "size"),
        layers=("layer", ",".join), weight_error=("weight_error", "mean"),
        smollm2_weight_error=("smollm2_weight_error", "mean"),
    ).reset_index()  # fmt: skip
    return sums.assign(time_ratio_16bit=sums["time_s"] / sums["time_16bit_s"])


def _side_by_side(frame: pd.DataFrame, sums: pd.DataFrame) -> pd.DataFrame:
    ratios = sums.pivot_table("time_ratio_16bit", GROUP, "quantization", sort=False)
    unquantized = frame[(frame["quant_type"] == UNQUANTIZED) & (frame["status"] == "ok")]
    times = unquantized.groupby(GROUP)["p50_s"].agg(["sum", "size"])
    ratios = ratios.assign(time_16bit_s=times["sum"], layers_count=times["size"]).reset_index()
    ratios.columns.name = None
    order = {name: {value: at for at, value in enumerate(frame[name].unique())} for name in GROUP[:3]}
    places = ratios.assign(**{name: ratios[name].map(of_name) for name, of_name in order.items()})
    sorted_rows = ratios.loc[places.sort_values(GROUP).index].reset_index(drop=True)
    names = names_where_several(sorted_rows, ["model", "operation", "compute_dtype"], ["model", "operation"])
    return labelled(sorted_rows, names)


def _errors(frame: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Return a row for each kind of weights: the mean error over layers, by quantization."""
    layers = frame[frame["status"] == "ok"].assign(quantization=quantizations(frame))
    layers = layers[layers["quantization"].isin(names)]
    place = ["model", "layer", "compute_dtype"]
    layers = layers.drop_duplicates([*place, "quantization"])
    # Of the same layers, where there are any that have every quantization.
    of_all = layers.groupby(place)["quantization"].transform("nunique") == len(names)
    layers = layers[of_all] if of_all.any() else layers
    means = layers.groupby("quantization")[[*ERRORS]].mean()
    rows = pd.DataFrame([{**means[name].reindex(names).to_dict(), "is_error": True} for name in ERRORS])
    return labelled(rows, [[text] for text in ERRORS.values()])


def _columns(rows: pd.DataFrame, names: list[str]) -> Iterator[Column]:
    yield group_column("layers of", about=LOSS)
    yield Column("rows", lambda row: _count(row["rows"]))
    if (rows["lora_r"] > 0).any():
        yield Column("r", lambda row: _count(row["lora_r"]), about=RANK)
    for name in names:
        yield Column(name, lambda row, name=name: _text(row, name), about=SUM)  # type: ignore[misc]
    yield figure_column("time_16bit_s", "16-bit\nµs", US, priority=1, about=SUM)


def _text(row: Row, name: str) -> str:
    return number(row[name], 4) if row["is_error"] is True else change_text(row[name])


def _count(value: float) -> str:
    return "" if pd.isna(value) else f"{int(value):,}"


def _summed(frame: pd.DataFrame, sums: pd.DataFrame) -> Iterator[str]:
    if len(sums):
        layers = list(dict.fromkeys(frame.loc[frame["time_ratio_16bit"].notna(), "layer"]))
        yield f"Times are sums over the layers, each once: {listing(layers, 'and')}."
        if drift := largest_drift(frame):
            yield f"Differences of no more than the peaks drifted ({100 * drift:.1f} %) are within the noise."


def _fewer(sums: pd.DataFrame) -> Iterator[str]:
    """Name where a quantization has times of fewer layers than another one of the same group."""
    most = sums.groupby(GROUP)["layers_count"].transform("max")
    few = sums[sums["layers_count"] < most]
    if len(few):
        texts = [
            f"{row['quantization']}, {row['model']} {row['operation']} of {row['rows']} rows"
            for row in few.to_dict("records")
        ]
        yield f"Sums over fewer layers, since others have no time: {listed(texts, 3)}."
