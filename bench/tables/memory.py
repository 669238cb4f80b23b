"""The table of memory: where the bytes are when training needs the most of them, as predicted and as measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import pandas as pd

from bench.matrix.cards import CONTEXT_BYTES
from bench.protocol import PEAK_PARTS, PLACES
from bench.tables.caption import conditions, warnings_of
from bench.tables.cells import id_text
from bench.tables.comparable import left_out_notes
from bench.tables.figures import Unit, listed, number, number_column, signed, sized, unit_for
from bench.tables.limits import OF_ALLOCATION, OF_NEED, limit_rules, short_of_need
from bench.tables.parts import LIVE_AT_PEAK, place
from bench.tables.pool import CELL, on_cpu, pool_seeds
from bench.tables.table import MISSING, Column, Row, Table, entries, field, informative


class Figure(NamedTuple):
    name: str
    heading: str
    priority: int
    about: str = ""


SUM = "Predicted: {} = most bytes in live tensors, found without running the cell."
MEASURED = "Measured: torch's peak of allocated bytes, in eager steps."
CUT_SHORT = " ≥: of a run that ended early."
AT_LEAST = " ≥: a lower bound."
RESIDUAL = "Residual: predicted / measured − 1."  # noqa: RUF001
NEEDS = "Needs: the least memory of a card for loading and training, predicted, CUDA's context included."
ASSUMED = f" Where that was not measured, it is taken to be {sized(CONTEXT_BYTES)}."
MANAGED = "Managed: paged optimizer state, which torch does not count."
UPCAST = "Upcast: what casting to float32 (kbit_upcast) added, part of the base."
PEAKS = "Load, score: peaks of allocated bytes in those phases."
RESERVED = "Reserved, requested: what the allocator held, and what was asked for without its rounding, at their peaks."
PROCESS = "Process: all of the process's GPU memory by NVML; outside torch: what of it torch's allocator does not hold."
CONTEXT = "Context: what CUDA took before the model."
RSS = "RSS: host memory of the process, highest in a phase."
CAP = "Cap: what vram_limit left to torch's allocator."

# What is predicted of the peak, or measured where nothing is.
PREDICTED = (
    Figure("predicted_peak_base_bytes", "base", 2),
    Figure("predicted_peak_adapter_bytes", "adapters", 4),
    Figure("predicted_peak_gradient_bytes", "gradients", 4),
    Figure("predicted_peak_optimizer_bytes", "optimizer", 4),
    Figure("predicted_peak_activation_bytes", "activations", 2),
    Figure("predicted_peak_head_bytes", "head &\nlogits", 3),
    Figure("predicted_peak_dequantized_bytes", "dequantized", 4),
    Figure("predicted_peak_slack_bytes", "workspace\n& rounding", 4),
)
COUNTED = (
    Figure("stored_bytes", "stored", 2),
    Figure("upcast_bytes", "upcast", 3, UPCAST),
    Figure("adapter_bytes", "adapters", 2),
    Figure("gradient_bytes", "gradients", 3),
    Figure("optimizer_bytes", "optimizer", 3),
)
# What a run may hold and what it needs, in the files; `short_bytes` is measured.
LIMITS = ("short_bytes", "predicted_short_bytes", "cap_bytes", "predicted_needed_bytes", "need_bytes")
MORE = (
    Figure("train_peak_reserved_bytes", "reserved", 6, RESERVED),
    Figure("train_peak_requested_bytes", "requested", 8, RESERVED),
    Figure("optimizer_managed_bytes", "managed", 6, MANAGED),
    Figure("upcast_bytes", "upcast", 6, UPCAST),
    Figure("load_peak_allocated_bytes", "load\npeak", 7, PEAKS),
    Figure("score_peak_allocated_bytes", "score\npeak", 7, PEAKS),
    Figure("train_process_bytes", "process", 8, PROCESS),
    Figure("train_outside_torch_bytes", "outside\ntorch", 8, PROCESS),
    Figure("context_bytes", "context", 9, CONTEXT),
)
HOST = (
    Figure("load_peak_rss_bytes", "load\nRSS", 10, RSS),
    Figure("score_peak_rss_bytes", "score\nRSS", 10, RSS),
    Figure("train_peak_rss_bytes", "train\nRSS", 10, RSS),
)
PEAK = "predicted_train_peak_allocated_bytes"
MEASURED_PEAK = "train_peak_allocated_bytes"
AFTER_CAST = [name for where in PLACES for name in place(where, "train_")]


def memory_table(frame: pd.DataFrame) -> Table:
    """Tabulate one result, a frame of `load_results` with at least one row: a row a cell, its seeds pooled."""
    cells = pool_seeds(frame).reset_index()
    rows = _rows(cells)
    unit = unit_for(rows[[MEASURED_PEAK, PEAK, "stored_bytes", "train_peak_rss_bytes"]].max().max())
    return Table(
        name="memory",
        title=f"{frame['matrix'].iloc[0]}: training memory in {unit.name}",
        columns=informative(_columns(rows, unit, on_host=bool(on_cpu(frame).all())), rows),
        rows=rows,
        caption=(
            *conditions(frame),
            *limit_rules(frame),
            *([LIVE_AT_PEAK] if rows[PEAK].notna().any() else []),
            *_agreement(cells),
        ),
        notes=(*_bounds(cells), *_disagreement(cells), *left_out_notes(frame), *warnings_of(frame)),
    )


def _rows(cells: pd.DataFrame) -> pd.DataFrame:
    bound = cells["prediction_note"].notna()
    sound = (cells["ok_count"] > 0) & ~bound
    slack = cells["predicted_peak_workspace_bytes"] + cells["predicted_peak_rounding_bytes"]
    rows = cells.assign(
        predicted_peak_slack_bytes=slack,
        predicted_is_lower_bound=bound,
        train_peak_residual_percent=(100 * (cells[PEAK] / cells[MEASURED_PEAK] - 1)).where(sound),
        need_bytes=cells["predicted_needed_bytes"] + cells["context_bytes"].fillna(CONTEXT_BYTES),
        predicted_short_bytes=short_of_need(cells).where(_ran_out_of_memory(cells)),
    )
    figures = dict.fromkeys([*_names(COUNTED), *LIMITS, *_names((*MORE, *HOST))])
    parts = [f"predicted_peak_{part}_bytes" for part in PEAK_PARTS]
    predicted = [*parts, "predicted_peak_slack_bytes", PEAK]
    others = ["predicted_train_peak_requested_bytes", "predicted_train_peak_reserved_bytes"]
    return rows[
        ["matrix", *CELL, "is_baseline", "status", "seeds_count", "ok_count",
         *predicted, "predicted_is_lower_bound", MEASURED_PEAK, "train_peak_residual_percent", *others, *figures,
         *(name for name in AFTER_CAST if rows[name].notna().any())]
    ]  # fmt: skip


def _ran_out_of_memory(cells: pd.DataFrame) -> pd.Series[bool]:
    return (cells["ok_count"] == 0) & cells["status"].str.contains("oom")


def _columns(rows: pd.DataFrame, unit: Unit, *, on_host: bool) -> Iterator[Column]:
    yield Column("id", id_text, "left", about=unit.about)
    predicted = bool(rows[PEAK].notna().any())
    parts = PREDICTED if predicted else COUNTED
    yield from _figures(rows, parts, unit)
    heads = " + ".join(figure.heading.replace("\n", " ") for figure in PREDICTED)
    least = AT_LEAST if rows["predicted_is_lower_bound"].any() else ""
    yield _marked(rows, PEAK, "predicted", unit, _is_bound, SUM.format(heads) + least)
    cut = CUT_SHORT if any(map(_is_cut_short, entries(rows))) else ""
    yield _marked(rows, MEASURED_PEAK, "measured", unit, _is_cut_short, MEASURED + cut)
    decimals = 2 if rows["train_peak_residual_percent"].abs().max() < 1 else 1
    yield Column(
        "residual\n%", lambda row: signed(row["train_peak_residual_percent"], decimals), priority=0, about=RESIDUAL
    )
    yield _short_column(rows, unit)
    yield number_column(rows, "cap_bytes", "cap", scale=unit.bytes, priority=5, decimals=unit.decimals, about=CAP)
    assumed = ASSUMED if (rows["need_bytes"].notna() & rows["context_bytes"].isna()).any() else ""
    yield _marked(rows, "need_bytes", "needs", unit, _is_bound, NEEDS + assumed, priority=5)
    told = _names(parts)
    yield from _figures(rows, (figure for figure in MORE if figure.name not in told), unit)
    yield from _figures(rows, (figure._replace(priority=1) for figure in HOST) if on_host else HOST, unit)
    yield Column("status", field("status"), "left", priority=1)


def _names(figures: Iterable[Figure]) -> list[str]:
    return [figure.name for figure in figures]


def _figures(rows: pd.DataFrame, figures: Iterable[Figure], unit: Unit) -> Iterator[Column]:
    for name, heading, priority, about in figures:
        yield number_column(
            rows, name, heading, scale=unit.bytes, priority=priority, decimals=unit.decimals, about=about
        )


def _marked(
    rows: pd.DataFrame,
    name: str,
    heading: str,
    unit: Unit,
    is_least: Callable[[Row], bool],
    about: str,
    priority: int = 0,
) -> Column:
    shown = number_column(rows, name, heading, scale=unit.bytes, decimals=unit.decimals, about=about)

    def text(row: Row) -> str:
        size = shown.text(row)
        return f"≥ {size}" if is_least(row) and size != MISSING else size

    return Column(heading, text, priority=priority, about=about)


def _short_column(rows: pd.DataFrame, unit: Unit) -> Column:
    of_need = rows["predicted_short_bytes"].notna()
    of_allocation = rows[~of_need & rows["short_bytes"].notna()]
    where = f" (of {listed(list(of_allocation['id']))})" if of_need.any() else ""
    said = [OF_NEED] * bool(of_need.any()) + [f"{OF_ALLOCATION}{where}"] * (len(of_allocation) > 0)

    def text(row: Row) -> str:
        is_of_need = row["predicted_short_bytes"] > 0
        size = number(row["predicted_short_bytes" if is_of_need else "short_bytes"] / unit.bytes, unit.decimals)
        return f"≥ {size}" if is_of_need and _is_bound(row) else size

    return Column("short", text, priority=1, about=f"Short: {'; '.join(said)}.")


def _is_bound(row: Row) -> bool:
    return bool(row["predicted_is_lower_bound"])


def _is_cut_short(row: Row) -> bool:
    return row["ok_count"] == 0 and not pd.isna(row[MEASURED_PEAK])


def _repeated(cells: pd.DataFrame) -> pd.DataFrame:
    return cells[(cells["ok_count"] > 1) & cells[MEASURED_PEAK].notna()]


def _agree(cells: pd.DataFrame) -> pd.Series[bool]:
    return cells[f"{MEASURED_PEAK}_min"] == cells[f"{MEASURED_PEAK}_max"]


def _agreement(cells: pd.DataFrame) -> Iterator[str]:
    repeated = _repeated(cells)
    if len(repeated) and _agree(repeated).all():
        yield "Measured peaks are the same to the byte in all seeds of a cell."


def _disagreement(cells: pd.DataFrame) -> Iterator[str]:
    repeated = _repeated(cells)
    differing = repeated[~_agree(repeated)]
    if len(differing):
        yield f"Peak allocated differs between seeds of: {listed(list(differing['id']))}."


def _bounds(cells: pd.DataFrame) -> Iterator[str]:
    for note, bound in cells[cells[PEAK].notna()].groupby("prediction_note", sort=False):
        yield f"Predicted peak is a lower bound: {listed(list(bound['id']))} ({str(note).rstrip('.')})."
