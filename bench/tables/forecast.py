"""What is predicted of a plan's memory: a table of cells, the cards that they fit, and the same as JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import pandas as pd
from rich.console import Console

from bench.matrix.cards import CONTEXT_BYTES, Card, card_of, workspace_bytes
from bench.matrix.expand import Cell
from bench.matrix.fit import Fit, fit, need_bytes
from bench.matrix.plan import Plan, describe
from bench.protocol import PEAK_PARTS
from bench.run.forecast import Answer, Prediction, Refusal
from bench.tables.figures import GB, MINUS, listed, number_column
from bench.tables.table import MISSING, Column, Row, Table, field, informative
from bench.tables.terminal import fitting, print_table

PREFIX = "predicted_"
LEAST_ID_CHARACTERS = 24  # where an id is longer than a third of the console, it breaks at its hyphens
CONTEXT = f"{CONTEXT_BYTES / GB:.2f} GB"
UNIT = "GB = 1e9 bytes. Predicted; nothing was run."
STORED = "Stored: every tensor of the loaded base, quantization state included."
FOOTPRINT = "HF footprint: get_memory_footprint(), which does not see that state."
PEAK = "Train peak: most bytes in live tensors in a training step."
NEEDS = f"Needs: the least memory of a card for loading and training, {CONTEXT} for CUDA's context included."
LIMIT = "Limit: the cell's vram_limit, and what it has over the need."
PARTS = "Base to rounding: the parts of the train peak; they add up to it."
BOUND = " ≥: a lower bound."
RULE = (
    f"Fits: predicted need ≤ the card's memory less {CONTEXT} for CUDA's context (measured on an H200; cards differ).",
    f"+ is what is left, {MINUS} what is missing.",
)
NO_BFLOAT16 = "no bf16: the card has no bfloat16 arithmetic, and the cell asks for it."
OTHER_KERNELS = (
    "Predicted with FlashAttention, which cards before Ampere (T4 and older) do not have: other kernels run there, "
    "and their attention takes another amount."
)
UNKNOWN = f"?: only a lower bound of the need is known, and it would fit; {MINUS} alone: it would not."
HEADINGS = {
    "base": "base", "adapter": "adapters", "gradient": "gra-\ndients", "optimizer": "opti-\nmizer",
    "activation": "acti-\nvations", "head": "logits\nand loss", "dequantized": "dequan-\ntized",
    "workspace": "cuBLAS", "rounding": "roun-\nding",
}  # fmt: skip

Answers = Mapping[str, Answer]


def show_forecast(cells: Sequence[Cell], answers: Answers, cards: Sequence[Card], console: Console) -> None:
    """Print what is predicted of the cells, and which of the cards they fit, in as many blocks as the width asks for.

    Cells of which nothing could be predicted are rows with the reason, and in the first table only.
    """
    id_characters = max(LEAST_ID_CHARACTERS, console.width // 3)
    print_table(forecast_table(cells, answers, cards, id_characters), console)
    console.print()
    for table in fit_tables(cells, answers, cards, console.width, id_characters):
        print_table(table, console)


def forecast_table(cells: Sequence[Cell], answers: Answers, cards: Sequence[Card], id_characters: int) -> Table:
    """Tabulate what each cell stores and needs, and the smallest of the cards that it fits."""
    rows = pd.DataFrame([_entry(cell, answers[cell.id], cards, id_characters) for cell in cells])
    return Table(
        name="forecast",
        title="Predicted memory",
        columns=informative(_columns(rows), rows),
        rows=rows,
        notes=tuple(_notes(answers)),
    )


def fit_tables(
    cells: Sequence[Cell], answers: Answers, cards: Sequence[Card], width: int, id_characters: int
) -> list[Table]:
    """Tabulate the headroom of the cells on the cards, by memory, in blocks that are no wider than `width` characters.

    Cards that are alike in memory and in what they can do share a column.
    """
    known = [(cell, answer) for cell in cells if isinstance(answer := answers[cell.id], Prediction)]
    rows = pd.DataFrame({"id": [cell.id for cell, _ in known], "label": [_fold(c.id, id_characters) for c, _ in known]})
    columns = []
    for alike in _groups(cards):
        fits = {cell.id: _fit(cell, answer, alike[0]) for cell, answer in known}
        columns.append(Column(_heading(alike), lambda row, fits=fits: headroom(fits[row["id"]]), priority=1))  # type: ignore[misc]
    tables = []
    while columns and known:
        block = _block(Table("fits", "", (Column("id", field("label"), "left"), *columns), rows), width)
        tables.append(block)
        columns = columns[len(block.columns) - 1 :]
    texts = {text for table in tables for row in table.texts() for text in row}
    title = "Headroom in GB"
    tables = [
        replace(table, title=title if number == 0 else f"{title}, continued") for number, table in enumerate(tables)
    ]
    explained = {"no bf16": NO_BFLOAT16, "?": UNKNOWN, MINUS: UNKNOWN}
    lines = [*dict.fromkeys(line for text, line in explained.items() if text in texts)]
    if not all(card.has_bfloat16 for card in cards) and any(_uses_flash_attention(cell) for cell, _ in known):
        lines.append(OTHER_KERNELS)
    return [*tables[:-1], *(replace(table, caption=(*RULE, *lines)) for table in tables[-1:])]


def headroom(found: Fit) -> str:
    """Write a fit with its sign, `+2.1`, as `no bf16`, or, of a lower bound, as `?` or a bare minus."""
    if found.reason:
        return "no bf16"
    if found.headroom_bytes is None:
        return "?" if found.fits is None else MINUS
    return f"{'+' if found.headroom_bytes >= 0 else MINUS}{abs(found.headroom_bytes) / GB:,.1f}"


def forecast_json(plan: Plan, answers: Answers, cards: Sequence[Card]) -> dict[str, Any]:
    """Describe a plan with what is predicted of its cells, as JSON can hold it.

    A cell's `memory` has the measures without `predicted_`, `note`, `fits` by card, and `limit`, the fit under its
    `vram_limit` or null; or, where nothing could be predicted, `message` and `hint`.
    """
    described = describe(plan)
    for cell, stated in zip(plan.cells, described["cells"], strict=True):
        stated["memory"] = _memory(cell, answers[cell.id], cards)
    return {**described, "context_bytes": CONTEXT_BYTES}


def _memory(cell: Cell, answer: Answer, cards: Sequence[Card]) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return asdict(answer)
    limit = _limit_fit(cell, answer)
    return {
        **{name.removeprefix(PREFIX): value for name, value in answer.measures.items()},
        "note": answer.note,
        "fits": {card.name: asdict(_fit(cell, answer, card)) for card in cards},
        "limit": asdict(limit) if limit else None,
    }


def _fit(cell: Cell, answer: Prediction, card: Card) -> Fit:
    return fit(answer.measures, cell.parameters, card, lower_bound=answer.note is not None)


def _limit_fit(cell: Cell, answer: Prediction) -> Fit | None:
    """Judge a cell under its own limit, which is one of memory alone: a run under it may be on any card."""
    limit = cell.parameters.vram_limit
    if limit is None:
        return None
    return _fit(cell, answer, replace(card_of(limit), compute_capability=None))


def _uses_flash_attention(cell: Cell) -> bool:
    """Tell whether a cell that a card without bfloat16 takes would use FlashAttention on a newer one."""
    return cell.parameters.compute_dtype == "float16" and cell.parameters.attn_implementation != "eager"


def _entry(cell: Cell, answer: Answer, cards: Sequence[Card], id_characters: int) -> dict[str, Any]:
    label = {"id": cell.id, "label": _fold(cell.id, id_characters)}
    if isinstance(answer, Refusal):
        return {**label, "refusal": "; ".join(filter(None, (answer.message, answer.hint)))}
    limit = _limit_fit(cell, answer)
    return {
        **label,
        **answer.measures,
        "need_bytes": need_bytes(answer.measures),
        "is_bound": answer.note is not None,
        "smallest_card": _smallest(cell, answer, cards),
        "limit": f"{cell.parameters.vram_limit} {headroom(limit)}" if limit else None,
    }


def _smallest(cell: Cell, answer: Prediction, cards: Sequence[Card]) -> str:
    by_memory = sorted(cards, key=lambda card: card.memory_bytes)
    fits = {card.name: _fit(cell, answer, card).fits for card in by_memory}
    if sure := [name for name, found in fits.items() if found]:
        return sure[0]
    return "none" if all(found is False for found in fits.values()) else "?"


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    bound = BOUND if "is_bound" in rows and rows["is_bound"].eq(True).any() else ""
    yield Column("id", field("label"), "left", about=UNIT)
    if "need_bytes" in rows:
        yield number_column(rows, "predicted_stored_bytes", "stored\nGB", scale=GB, priority=2, about=STORED)
        footprint = "HF foot-\nprint GB"
        yield number_column(rows, "predicted_footprint_bytes", footprint, scale=GB, priority=3, about=FOOTPRINT)
        name = "predicted_train_peak_allocated_bytes"
        peak = number_column(rows, name, "train\npeak GB", scale=GB, decimals=2, about=PEAK + bound)
        needs = number_column(rows, "need_bytes", "needs\nGB", scale=GB, decimals=2, about=NEEDS)
        yield from (replace(column, text=_bounded(column)) for column in (peak, needs))
        yield Column("limit", field("limit"), "left", priority=1, about=LIMIT)
        yield Column("smallest\nthat fits", field("smallest_card"), "left")
        for part in PEAK_PARTS:
            name = f"predicted_peak_{part}_bytes"
            yield number_column(rows, name, HEADINGS[part], scale=GB, decimals=3, priority=5, about=PARTS)
    if "refusal" in rows:
        yield Column("not predicted", field("refusal"), prose=True)


def _bounded(column: Column) -> Any:
    def text(row: Row) -> str:
        shown = column.text(row)
        return f"≥ {shown}" if row["is_bound"] is True and shown != MISSING else shown

    return text


def _notes(answers: Answers) -> Iterator[str]:
    ids: dict[str, list[str]] = {}
    for cell_id, answer in answers.items():
        if isinstance(answer, Prediction) and answer.note:
            ids.setdefault(answer.note, []).append(cell_id)
    for note, found in ids.items():
        yield f"{listed(found)}: a lower bound only; {note}."


def _groups(cards: Sequence[Card]) -> list[list[Card]]:
    def kind(card: Card) -> tuple[int, bool, int]:
        return card.memory_bytes, card.has_bfloat16, workspace_bytes(card)

    return [list(alike) for _, alike in groupby(sorted(cards, key=kind), key=kind)]


def _heading(cards: Sequence[Card]) -> str:
    size = "" if cards[0].compute_capability is None else f"{cards[0].memory_bytes / GB:.1f} GB"
    return "\n".join([*([size] if size else []), *(card.name for card in cards)])


def _block(table: Table, width: int) -> Table:
    """Keep the id and the first columns that fit beside it, one at least."""
    in_order = [replace(column, priority=number) for number, column in enumerate(table.columns)]
    kept = fitting(in_order, table.texts(), width)
    return replace(table, columns=tuple(replace(column, priority=0) for column in in_order[: max(2, len(kept))]))


def _fold(text: str, characters: int) -> str:
    return "\n".join(textwrap.wrap(text, characters, break_on_hyphens=True)) or text
