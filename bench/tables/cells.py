"""The table of cells: what each combination of settings cost, and what it reached."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import pandas as pd

from bench.matrix.wording import listing
from bench.tables import wilson
from bench.tables.caption import conditions, warnings_of
from bench.tables.comparable import Cell
from bench.tables.comparisons import verdict_of
from bench.tables.drift import drift
from bench.tables.evidence import ACCURACY, Evidence, Watched
from bench.tables.figures import GB, accuracy, change_column, listed, number_column, range_column
from bench.tables.pareto import PARETO, front
from bench.tables.pool import CELL, chosen, on_cpu, varying
from bench.tables.table import MISSING, Column, Row, Table, entries, field, informative

LAUNCH_BOUND_BELOW = 0.8  # a GPU that works less of a step's time waits for Python
COARSE = 0.02  # an uncertainty that bears no third decimal of a macro-F1
CHANGES = {"train_peak_bytes": "train_peak_change_percent", "tokens_per_s": "tokens_per_s_change_percent"}
STORED = "Stored: every tensor of the loaded base, quantization state included."
FOOTPRINT = "HF footprint: get_memory_footprint(), which does not see that state."
CHANGE = "Δ: change against the baseline."
RANGE = "Range: lowest to highest over seeds."
STEP = "Step p50, p95: median and 95th percentile of the wall time of an optimizer step."
VERDICT = "Verdict: the accuracy against the baseline's (table of comparisons)."
CALIBRATION = "ECE: expected calibration error after training, in 15 bins."
CONFUSED = "Confused: of the test examples of two watched labels, the share taken for the other one."
ON_FRONT = "◆"
EXECUTION = "Execution: how the steps behind tokens/s and step p50 ran."
EAGER = "Eager: the first steps, launched one kernel at a time from Python."
BUSY = "GPU busy: kernel time over wall time of an eager step."
AFTER = "Macro-F1 and held-out loss (nats per label token): after training."
ONE_RUN = "One run a cell: its spread is not known."
SEEDS = "Figures are means over the seeds that ended ok; all seeds score the same test examples."
LONGEST = "on the eager steps' longest batch, logits for label tokens only"
PEAKS = {
    frozenset({False}): f"Train peak: most bytes in live tensors {LONGEST}.",
    frozenset({True}): "Train peak: host memory (RSS) of the whole process in training, as there was no GPU.",
    frozenset({False, True}): f"Train peak: most bytes in live tensors {LONGEST}; on a CPU, host memory (RSS).",
}
NAN = float("nan")


def cells_table(evidence: Evidence) -> Table:
    """Tabulate one result: a row a cell, its seeds pooled."""
    frame = evidence.runs
    cells = with_changes(evidence.cells.set_index(CELL), evidence.apart).reset_index()
    cells["accuracy_after_half_width"], cells["interval_over_seeds"] = wilson.of_cells(
        evidence, ACCURACY, cells["accuracy_after"], cells["scored_count"]
    )
    cells["verdict"] = verdict_of(evidence).where(cells["ok_count"] > 0)
    cells["on_pareto_front"] = front(evidence)
    watched = {pair: f"confused_{'_'.join(pair.names)}" for pair in evidence.watched}
    for pair, name in watched.items():
        cells[name] = pd.DataFrame(evidence.samples[pair.compared.name].observed).mean(axis=1)
    settings = varying(cells)
    rows = cells[
        [
            "matrix", *CELL, "is_baseline", *settings, "seeds_count", "ok_count", "status",
            "stored_bytes", "footprint_bytes",
            "train_peak_bytes", "train_peak_change_percent",
            "tokens_per_s", "tokens_per_s_min", "tokens_per_s_max", "tokens_per_s_change_percent", "examples_per_s",
            "step_p50_s", "step_p95_s", "execution_used", "tokens_per_s_eager", "gpu_busy_share",
            "scored_count", "accuracy_before", "accuracy_after", "accuracy_after_half_width", "interval_over_seeds",
            "accuracy_after_min", "accuracy_after_max", "verdict", "macro_f1_after", "heldout_loss_after",
            "expected_calibration_error_after", *watched.values(), "on_pareto_front",
        ]
    ]  # fmt: skip
    return Table(
        name="cells",
        title=f"{frame['matrix'].iloc[0]}: results by cell",
        columns=informative(_columns(frame, rows, chosen(cells, settings), watched), rows),
        rows=rows,
        caption=conditions(frame),
        notes=(*_doubts(cells, evidence.apart, _told(frame)), *evidence.notes, *drift(evidence), *warnings_of(frame)),
    )


def with_changes(cells: pd.DataFrame, apart: Collection[Cell]) -> pd.DataFrame:
    """Add the changes in percent against the baseline, where both ended ok and neither is in `apart`.

    `ran_otherwise` tells the cells that would be compared but for their execution: a CUDA graph against eager steps
    measures Python, so they have no change of tokens/s.
    """
    sound = (cells["ok_count"] > 0) & ~cells.index.isin(list(apart))
    baseline = cells[sound & cells["is_baseline"]]
    others = sound & ~cells["is_baseline"]
    for name, change in CHANGES.items():
        against = baseline[name].item() if len(baseline) else NAN
        cells[change] = (100 * (cells[name] / against - 1)).where(others)
    known = [*baseline["execution_used"].dropna()]
    differs = cells["execution_used"].notna() & ~cells["execution_used"].isin(known) & bool(known)
    cells["ran_otherwise"] = differs & cells["tokens_per_s_change_percent"].notna()
    cells["tokens_per_s_change_percent"] = cells["tokens_per_s_change_percent"].mask(cells["ran_otherwise"])
    return cells


def id_text(row: Row) -> str:
    return f"{row['id']} (baseline)" if row["is_baseline"] else str(row["id"])


def _marked_id(row: Row) -> str:
    return id_text(row) + (f" {ON_FRONT}" if row["on_pareto_front"] else "")


def _columns(
    frame: pd.DataFrame, rows: pd.DataFrame, settings: list[str], watched: Mapping[Watched, str]
) -> Iterator[Column]:
    several = rows["seeds_count"].max() > 1
    front_about = f" {ON_FRONT}: {PARETO}" if rows["on_pareto_front"].any() else ""
    yield Column("id", _marked_id, "left", about=_remarks(frame, rows) + front_about)
    for name in settings:
        yield Column(name, field(name), "left", priority=9)
    if rows["seeds_count"].min() < rows["seeds_count"].max():
        yield Column("seeds", field("seeds_count"), priority=3)
    yield number_column(rows, "stored_bytes", "stored\nGB", scale=GB, priority=3, about=STORED)
    yield number_column(rows, "footprint_bytes", "HF footprint\nGB", scale=GB, priority=6, about=FOOTPRINT)
    yield _peak_column(rows, PEAKS[frozenset(on_cpu(frame))])
    yield change_column("train_peak_change_percent", "peak\nΔ %", priority=5, about=CHANGE)
    yield number_column(rows, "tokens_per_s", "tokens/s", priority=1)
    if several:
        low, high = "tokens_per_s_min", "tokens_per_s_max"
        yield range_column(rows, low, high, "tokens/s\nrange", priority=8, about=RANGE)
    yield change_column("tokens_per_s_change_percent", "tokens/s\nΔ %", priority=5, about=CHANGE)
    yield number_column(rows, "examples_per_s", "examples/s", priority=10)
    yield number_column(rows, "step_p50_s", "step p50\nms", scale=1e-3, priority=7, about=STEP)
    yield number_column(rows, "step_p95_s", "step p95\nms", scale=1e-3, priority=10, about=STEP)
    if (rows["execution_used"] != "eager").any():
        yield Column("execution", field("execution_used"), "left", priority=8, about=EXECUTION)
        yield number_column(rows, "tokens_per_s_eager", "eager\ntokens/s", priority=7, about=EAGER)
    yield number_column(rows, "gpu_busy_share", "GPU\nbusy %", scale=0.01, decimals=0, priority=8, about=BUSY)
    yield _accuracy_column(rows)
    if several:
        low, high = "accuracy_after_min", "accuracy_after_max"
        yield range_column(rows, low, high, "after %\nrange", scale=0.01, priority=8, about=RANGE)
    yield Column("verdict", _verdict, "left", priority=4, about=VERDICT)
    digits = 2 if rows["accuracy_after_half_width"].max() >= COARSE else 3
    yield number_column(rows, "macro_f1_after", "macro-F1", decimals=digits, priority=6, about=AFTER)
    yield number_column(rows, "heldout_loss_after", "held-out\nloss", priority=6, about=AFTER)
    name = "expected_calibration_error_after"
    yield number_column(rows, name, "ECE\n%", scale=0.01, decimals=1, priority=7, about=CALIBRATION)
    for pair, name in watched.items():
        heading = f"{pair.names[0]} or\n{pair.names[1]}\nconfused %"
        yield number_column(rows, name, heading, scale=0.01, decimals=1, priority=6, about=CONFUSED)
    yield Column("status", field("status"), "left")


def _verdict(row: Row) -> str:
    return MISSING if pd.isna(row["verdict"]) else str(row["verdict"])


def _peak_column(rows: pd.DataFrame, about: str) -> Column:
    shown = number_column(rows, "train_peak_bytes", "train\npeak GB", scale=GB, priority=2)

    def text(row: Row) -> str:
        return f"≥ {shown.text(row)}" if _is_cut_short(row) else shown.text(row)

    cut = " ≥: of a run that ended early." if any(map(_is_cut_short, entries(rows))) else ""
    return replace(shown, text=text, about=about + cut)


def _is_cut_short(row: Row) -> bool:
    return row["ok_count"] == 0 and not pd.isna(row["train_peak_bytes"])


def _accuracy_column(rows: pd.DataFrame) -> Column:
    counts = [f"{int(count):,}" for count in sorted(rows["scored_count"].dropna().unique())]
    over = (
        f"interval of the accuracy after training, over its seeds and n = {listing(counts)} test examples."
        if rows["interval_over_seeds"].any()
        else f"Wilson interval of the accuracy after training, n = {listing(counts)} test examples; "
        "with several seeds, of their mean."
    )
    about = f"±: half the 95 % {over}"
    return Column(
        "accuracy %\nbefore → after",
        lambda row: accuracy(row["accuracy_before"], row["accuracy_after"], row["accuracy_after_half_width"]),
        about=about if counts else "",
    )


def _remarks(frame: pd.DataFrame, rows: pd.DataFrame) -> str:
    random = " Random weights: memory and speed, no quality." if (frame["weights"] == "random").any() else ""
    return "GB = 1e9 bytes. " + (ONE_RUN if rows["seeds_count"].max() == 1 else SEEDS) + random


def _told(frame: pd.DataFrame) -> dict[str, list[str]]:
    """Map what the cells' own warnings say to the ids that say it."""
    told: dict[str, dict[str, None]] = {}
    for cell, warnings in frame[["id", "warnings"]].dropna().itertuples(index=False):
        for warning in warnings.splitlines():
            told.setdefault(warning, {})[cell] = None
    return {warning: list(ids) for warning, ids in told.items()}


def _doubts(cells: pd.DataFrame, apart: Mapping[Cell, str], told: Mapping[str, list[str]]) -> Iterator[str]:
    baseline = cells[cells["is_baseline"]]
    if len(cells) > 1 and (reason := _no_change(baseline)):
        yield f"No Δ: {reason}."
    for difference in dict.fromkeys(apart.values()):
        ids = [cell[0] for cell, found in apart.items() if found == difference]
        yield f"Not comparable: {listed(ids)} ({difference})."
    for execution, others in cells[cells["ran_otherwise"]].groupby("execution_used", sort=False):
        as_what = baseline["execution_used"].item()
        yield f"No tokens/s Δ for {listed(list(others['id']))}: they ran {execution}, the baseline as {as_what}."
    bound = cells[(cells["gpu_busy_share"] < LAUNCH_BOUND_BELOW) & (cells["execution_used"] == "eager")]
    if len(bound):
        yield f"Launch-bound: {listed(list(bound['id']))}: the GPU waits for Python, so tokens/s measures Python."
    for warning, ids in told.items():
        yield f"{listed(ids)}: {warning}."


def _no_change(baseline: pd.DataFrame) -> str | None:
    if baseline.empty:
        return "there is no record of a baseline"
    (row,) = entries(baseline)
    return None if row["ok_count"] else f"the baseline ended {row['status']}"
