"""What is predicted of a plan's memory: a table of cells, their peaks as bars, and the same as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

import pandas as pd
from rich.console import Console

from bench.matrix.cards import CARDS, CONTEXT_BYTES, Card, card_of
from bench.matrix.expand import Cell
from bench.matrix.fit import Fit, need_bytes
from bench.matrix.plan import Plan, describe
from bench.run.forecast import Answer, Prediction, Refusal
from bench.tables.bars import Bar, Bars
from bench.tables.figures import GB, listed, number_column
from bench.tables.headroom import Answers, fit_of, fit_tables, headroom, predicted, size_text
from bench.tables.parts import AT_PEAK, size
from bench.tables.table import MISSING, Column, Row, Table, field, informative
from bench.tables.terminal import print_table
from bench.tables.terminal_bars import print_bars

PREFIX = "predicted_"
# The least limit of torch's allocator, which leaves CUDA's context out: `need_bytes` is what a card needs.
WITHOUT_CONTEXT = "predicted_needed_bytes"
CONTEXT = f"{CONTEXT_BYTES / GB:.2f} GB"
UNIT = "GB = 1e9 bytes. Predicted; nothing was run."
STORED = "Stored: every tensor of the loaded base, quantization state included."
FOOTPRINT = "HF footprint: get_memory_footprint(), which does not see that state."
PEAK = "Train peak: most bytes in live tensors in a training step."
NEEDS = f"Needs: the least memory of a card for loading and training, CUDA's context ({CONTEXT}) included."
LIMIT = (
    "Limit: the cell's vram_limit, and what it has over the need, by memory only: a run under it may be on any card."
)
SMALLEST = "Smallest that fits: of all known cards, whatever --card names."
UNSURE = " ?: not known."
AT_THE_PEAK = (
    "The parts, from base to workspace & rounding, add up to the train peak: they are what is live at its moment, and "
    "gradients or optimizer state may be missing from it and exist at others."
)
UPCAST = "With kbit_upcast, base includes its cast to float32."
CAP = "cap: the vram_limit less CUDA's context; torch also reserves some memory that no tensor fills."
SIGNS = {"≥ ": " ≥: a lower bound.", "≈ ": " ≈: as if every sequence had max_length tokens; texts are mostly shorter."}
HEADINGS = {
    "base": "base", "adapters": "adapters", "gradients": "gra-\ndients", "optimizer": "opti-\nmizer",
    "activations": "acti-\nvations", "head & logits": "head &\nlogits", "dequantized": "dequan-\ntized",
    "workspace & rounding": "workspace\n& rounding",
}  # fmt: skip


def show_forecast(chosen: Plan, answers: Answers, cards: Sequence[Card], console: Console) -> None:
    """Print what is predicted of a plan's cells: a table, the peaks as bars, and the headroom on each of the cards.

    Cells of which nothing could be predicted are rows with the reason, and in the first table only.
    """
    print_table(forecast_table(chosen.cells, answers), console, "--json")
    console.print()
    if bars := forecast_bars(chosen, answers):
        print_bars(bars, console)
        console.print()
    for table in fit_tables(chosen.cells, answers, cards, console.width):
        print_table(table, console)


def forecast_table(cells: Sequence[Cell], answers: Answers) -> Table:
    """Tabulate what each cell stores and needs, and the smallest of all known cards that it fits."""
    rows = pd.DataFrame([_entry(cell, answers[cell.id]) for cell in cells])
    known = predicted(cells, answers)
    if known:
        rows = rows.assign(**{part.name: size(rows, part) for part in AT_PEAK})
    lines = {
        AT_THE_PEAK: bool(known),
        UPCAST: any(cell.parameters.kbit_upcast and cell.parameters.quantized for cell, _ in known),
        CAP: any(cell.parameters.vram_limit is not None for cell, _ in known),
    }
    return Table(
        name="forecast",
        title="Predicted memory",
        columns=informative(_columns(rows), rows),
        rows=rows,
        caption=tuple(line for line, applies in lines.items() if applies),
        notes=tuple(_notes(answers)),
    )


def forecast_bars(chosen: Plan, answers: Answers) -> Bars | None:
    """Draw up the predicted peaks of a plan's cells, by part; None where nothing could be predicted."""
    known = predicted(chosen.cells, answers)
    bars = tuple(_bar(cell, answer) for cell, answer in known)
    if not any(bar.total_bytes for bar in bars):
        return None
    parts = tuple(part.name for part in AT_PEAK if any(part.name in bar.sizes_bytes for bar in bars))
    return Bars(f"{chosen.matrix.name}: predicted peak of training", parts, bars, ())


def forecast_json(plan: Plan, answers: Answers, cards: Sequence[Card]) -> dict[str, Any]:
    """Describe a plan with what is predicted of its cells, as JSON can hold it.

    A cell's `memory` has the measures without `predicted_`; `need_bytes`, the least memory of a card, CUDA's context
    included; `note`, why the peak and the need are a lower bound, and `assumed` of its texts, or null; `fits` by card,
    and `limit`, the fit under its `vram_limit` or null. Where nothing could be predicted, it has `message` and `hint`.
    """
    described = describe(plan)
    for cell, stated in zip(plan.cells, described["cells"], strict=True):
        stated["memory"] = _memory(cell, answers[cell.id], cards)
    return {**described, "context_bytes": CONTEXT_BYTES}


def _memory(cell: Cell, answer: Answer, cards: Sequence[Card]) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return asdict(answer)
    limit = _limit_fit(cell, answer)
    measures = {name: value for name, value in answer.measures.items() if name != WITHOUT_CONTEXT}
    return {
        **{name.removeprefix(PREFIX): value for name, value in measures.items()},
        "need_bytes": need_bytes(answer.measures),
        "note": answer.note,
        "assumed": answer.assumed,
        "fits": {card.name: asdict(fit_of(cell, answer, card)) for card in cards},
        "limit": asdict(limit) if limit else None,
    }


def _limit_fit(cell: Cell, answer: Prediction) -> Fit | None:
    """Judge a cell under its own limit, which is one of memory alone: a run under it may be on any card."""
    limit = cell.parameters.vram_limit
    if limit is None:
        return None
    return fit_of(cell, answer, replace(card_of(limit), compute_capability=None))


def _entry(cell: Cell, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"id": cell.id, "refusal": "; ".join(filter(None, (answer.message, answer.hint)))}
    limit = _limit_fit(cell, answer)
    return {
        "id": cell.id,
        **answer.measures,
        "need_bytes": need_bytes(answer.measures),
        "sign": _sign(answer),
        "smallest_card": _smallest(cell, answer),
        "limit": f"{size_text(str(cell.parameters.vram_limit))} {headroom(limit)}" if limit else None,
    }


def _sign(answer: Prediction) -> str:
    """Return the sign that stands before a peak and a need that are a lower bound, or rest on an assumption."""
    return "≥ " if answer.note else "≈ " if answer.assumed else ""


def _smallest(cell: Cell, answer: Prediction) -> str:
    by_memory = sorted(CARDS.values(), key=lambda card: card.memory_bytes)
    fits = {card.name: fit_of(cell, answer, card).fits for card in by_memory}
    if sure := [name for name, found in fits.items() if found]:
        return f"{_sign(answer)}{sure[0]}"
    return "none known" if all(found is False for found in fits.values()) else "?"


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    yield Column("id", field("id"), "left", about=UNIT)
    if "need_bytes" in rows:
        signs = "".join(about for sign, about in SIGNS.items() if rows["sign"].eq(sign).any())
        yield number_column(rows, "predicted_stored_bytes", "stored\nGB", scale=GB, priority=2, about=STORED)
        footprint = "HF foot-\nprint GB"
        yield number_column(rows, "predicted_footprint_bytes", footprint, scale=GB, priority=3, about=FOOTPRINT)
        name = "predicted_train_peak_allocated_bytes"
        peak = number_column(rows, name, "train\npeak GB", scale=GB, decimals=2, about=PEAK + signs)
        needs = number_column(rows, "need_bytes", "needs\nGB", scale=GB, decimals=2, about=NEEDS)
        yield from (replace(column, text=_signed(column)) for column in (peak, needs))
        yield Column("limit", field("limit"), "left", priority=1, about=LIMIT)
        about = SMALLEST + (UNSURE if rows["smallest_card"].eq("?").any() else "")
        yield Column("smallest\nthat fits", field("smallest_card"), "left", about=about)
        for part in AT_PEAK:
            yield number_column(rows, part.name, HEADINGS[part.name], scale=GB, decimals=3, priority=5)
    if "refusal" in rows:
        yield Column("not predicted", field("refusal"), prose=True)


def _signed(column: Column) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        shown = column.text(row)
        return shown if shown == MISSING else f"{row['sign']}{shown}"

    return text


def _notes(answers: Answers) -> Iterator[str]:
    ids: dict[str, list[str]] = {}
    for cell_id, answer in answers.items():
        if isinstance(answer, Prediction) and answer.note:
            ids.setdefault(f"a lower bound only; {answer.note}", []).append(cell_id)
        elif isinstance(answer, Prediction) and answer.assumed:
            ids.setdefault(answer.assumed, []).append(cell_id)
    for note, found in ids.items():
        yield f"{listed(found)}: {note}."


def _bar(cell: Cell, answer: Prediction) -> Bar:
    sizes = {part.name: sum(answer.measures[name] for name in part.measures) for part in AT_PEAK}
    limit = cell.parameters.vram_limit
    return Bar(
        id=cell.id,
        sizes_bytes={name: value for name, value in sizes.items() if value > 0},
        sign=_sign(answer),
        cap_bytes=None if limit is None else card_of(limit).memory_bytes - CONTEXT_BYTES,
        model=cell.parameters.model,
    )
