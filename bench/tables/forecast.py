"""What is predicted of a plan's memory: a table of cells, the cards that they fit, and the same as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import groupby
from typing import Any

import pandas as pd
from rich.console import Console

from bench.matrix.cards import (
    CARDS,
    CONTEXT_BYTES,
    WORKSPACES,
    Card,
    card_of,
    memory_bytes,
    one_workspace_bytes,
    workspace_bytes,
)
from bench.matrix.expand import Cell
from bench.matrix.fit import NO_BFLOAT16, NO_FLASH_ATTENTION_2, Fit, fit, need_bytes
from bench.matrix.plan import Plan, describe
from bench.run.forecast import Answer, Prediction, Refusal
from bench.tables.bars import Bar, Bars
from bench.tables.figures import GB, MINUS, listed, number_column
from bench.tables.parts import AT_PEAK, size
from bench.tables.table import MISSING, Column, Row, Table, field, informative
from bench.tables.terminal import GAP, fitting, fold, folded, id_characters, pieces, print_table
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
UNSURE = " ?: only a lower bound of the need is known."
AT_THE_PEAK = (
    "The parts, from base to workspace & rounding, add up to the train peak: they are what is live at its moment, and "
    "gradients or optimizer state may be missing from it and exist at others."
)
UPCAST = "With kbit_upcast, base includes its cast to float32."
CAP = "cap: the vram_limit less CUDA's context; torch also reserves some memory that no tensor fills."
BOUNDS = {"≥ ": " ≥: a lower bound.", "≤ ": " ≤: an upper bound."}
RULE = (
    f"Headroom: the card's memory less the need, which has {CONTEXT} for CUDA's context in it (measured on an H200; "
    "cards differ).",
    f"+ is what is left, {MINUS} what is missing.",
)
UNKNOWN = f"?: only a lower bound of the need is known, and it would fit; {MINUS} alone: it would not."
LACKING = {NO_BFLOAT16: "no bf16", NO_FLASH_ATTENTION_2: "no FA2"}
EXPLAINED = {
    "no bf16": "no bf16: cards before Ampere have no bfloat16 arithmetic, and the cell asks for it; set "
    "compute_dtype: float16 to run there.",
    "no FA2": "no FA2: flash_attention_2 does not run on cards before Ampere; set attn_implementation: sdpa to run "
    "there.",
    "?": UNKNOWN,
    MINUS: UNKNOWN,
}
OTHER_KERNELS = (
    "Predicted with FlashAttention, which cards before Ampere (T4 and older) do not have: other kernels run there, "
    "and their attention takes another amount."
)
HEADINGS = {
    "base": "base", "adapters": "adapters", "gradients": "gra-\ndients", "optimizer": "opti-\nmizer",
    "activations": "acti-\nvations", "head & logits": "head &\nlogits", "dequantized": "dequan-\ntized",
    "workspace & rounding": "workspace\n& rounding",
}  # fmt: skip

Answers = Mapping[str, Answer]


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
    known = _known(cells, answers)
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
    known = _known(chosen.cells, answers)
    bars = tuple(_bar(cell, answer) for cell, answer in known)
    if not any(bar.total_bytes for bar in bars):
        return None
    parts = tuple(part.name for part in AT_PEAK if any(part.name in bar.sizes_bytes for bar in bars))
    return Bars(f"{chosen.matrix.name}: predicted peak of training", parts, bars, ())


def fit_tables(cells: Sequence[Cell], answers: Answers, cards: Sequence[Card], width: int) -> list[Table]:
    """Tabulate the headroom of the cells on the cards, by memory, in tables that are no wider than `width` characters.

    Cards that are alike in memory and in what they can do stand together. There is a row a cell, and as many tables as
    the width asks for; or one with a row a card, where that is enough for all the cells.
    """
    known = _known(cells, answers)
    if not known:
        return []
    groups = _groups(cards)
    texts = {cell.id: [headroom(_fit(cell, answer, alike[0])) for alike in groups] for cell, answer in known}
    tables = _by_cell(texts, groups, width)
    by_card = _by_card(texts, groups, width) if len(tables) > 1 else None
    tables = [by_card] if by_card else tables
    title = "Headroom in GB"
    tables = [
        replace(table, title=title if number == 0 else f"{title}, continued") for number, table in enumerate(tables)
    ]
    seen = {text for row in texts.values() for text in row}
    lines = [*dict.fromkeys(line for text, line in EXPLAINED.items() if text in seen)]
    if not all(card.has_flash_attention_2 for card in cards) and any(_uses_flash_attention(cell) for cell, _ in known):
        lines.append(OTHER_KERNELS)
    if more := max(map(workspace_bytes, cards)) - WORKSPACES * one_workspace_bytes():
        lines.append(
            f"On Hopper and newer cards torch's cuBLAS workspaces take {more / GB:.2f} GB more: the headroom counts "
            "them, the train peak and the need above do not."
        )
    return [*tables[:-1], replace(tables[-1], caption=(*RULE, *lines))]


def headroom(found: Fit) -> str:
    """Write a fit with its sign, `+2.1`, as what the card lacks, or, of a lower bound, as `?` or a bare minus."""
    if found.reason:
        return LACKING[found.reason]
    if found.headroom_bytes is None:
        return "?" if found.fits is None else MINUS
    return f"{'+' if found.headroom_bytes >= 0 else MINUS}{abs(found.headroom_bytes) / GB:,.1f}"


def forecast_json(plan: Plan, answers: Answers, cards: Sequence[Card]) -> dict[str, Any]:
    """Describe a plan with what is predicted of its cells, as JSON can hold it.

    A cell's `memory` has the measures without `predicted_`; `need_bytes`, the least memory of a card, CUDA's context
    included; `note` and `at_most`, why the peak and the need are a lower or an upper bound, or null; `fits` by card,
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
        "at_most": answer.at_most,
        "fits": {card.name: asdict(_fit(cell, answer, card)) for card in cards},
        "limit": asdict(limit) if limit else None,
    }


def _known(cells: Sequence[Cell], answers: Answers) -> list[tuple[Cell, Prediction]]:
    return [(cell, answer) for cell in cells if isinstance(answer := answers[cell.id], Prediction)]


def _fit(cell: Cell, answer: Prediction, card: Card) -> Fit:
    return fit(answer.measures, cell.parameters, card, lower_bound=answer.note is not None)


def _limit_fit(cell: Cell, answer: Prediction) -> Fit | None:
    """Judge a cell under its own limit, which is one of memory alone: a run under it may be on any card."""
    limit = cell.parameters.vram_limit
    if limit is None:
        return None
    return _fit(cell, answer, replace(card_of(limit), compute_capability=None))


def _uses_flash_attention(cell: Cell) -> bool:
    """Tell whether a cell that a card before Ampere takes would use FlashAttention on a newer one."""
    return cell.parameters.compute_dtype == "float16" and cell.parameters.attn_implementation == "sdpa"


def _entry(cell: Cell, answer: Answer) -> dict[str, Any]:
    if isinstance(answer, Refusal):
        return {"id": cell.id, "refusal": "; ".join(filter(None, (answer.message, answer.hint)))}
    limit = _limit_fit(cell, answer)
    return {
        "id": cell.id,
        **answer.measures,
        "need_bytes": need_bytes(answer.measures),
        "bound": _bound(answer),
        "smallest_card": _smallest(cell, answer),
        "limit": f"{_size_text(str(cell.parameters.vram_limit))} {headroom(limit)}" if limit else None,
    }


def _bound(answer: Prediction) -> str:
    """Return the sign that stands before a peak and a need that are only bounds."""
    return "≥ " if answer.note else "≤ " if answer.at_most else ""


def _smallest(cell: Cell, answer: Prediction) -> str:
    by_memory = sorted(CARDS.values(), key=lambda card: card.memory_bytes)
    fits = {card.name: _fit(cell, answer, card).fits for card in by_memory}
    if sure := [name for name, found in fits.items() if found]:
        return sure[0]
    return "none known" if all(found is False for found in fits.values()) else "?"


def _columns(rows: pd.DataFrame) -> Iterator[Column]:
    yield Column("id", field("id"), "left", about=UNIT)
    if "need_bytes" in rows:
        bounds = "".join(about for sign, about in BOUNDS.items() if rows["bound"].eq(sign).any())
        yield number_column(rows, "predicted_stored_bytes", "stored\nGB", scale=GB, priority=2, about=STORED)
        footprint = "HF foot-\nprint GB"
        yield number_column(rows, "predicted_footprint_bytes", footprint, scale=GB, priority=3, about=FOOTPRINT)
        name = "predicted_train_peak_allocated_bytes"
        peak = number_column(rows, name, "train\npeak GB", scale=GB, decimals=2, about=PEAK + bounds)
        needs = number_column(rows, "need_bytes", "needs\nGB", scale=GB, decimals=2, about=NEEDS)
        yield from (replace(column, text=_bounded(column)) for column in (peak, needs))
        yield Column("limit", field("limit"), "left", priority=1, about=LIMIT)
        about = SMALLEST + (UNSURE if rows["smallest_card"].eq("?").any() else "")
        yield Column("smallest\nthat fits", field("smallest_card"), "left", about=about)
        for part in AT_PEAK:
            yield number_column(rows, part.name, HEADINGS[part.name], scale=GB, decimals=3, priority=5)
    if "refusal" in rows:
        yield Column("not predicted", field("refusal"), prose=True)


def _bounded(column: Column) -> Callable[[Row], str]:
    def text(row: Row) -> str:
        shown = column.text(row)
        return shown if shown == MISSING else f"{row['bound']}{shown}"

    return text


def _notes(answers: Answers) -> Iterator[str]:
    ids: dict[str, list[str]] = {}
    for cell_id, answer in answers.items():
        if isinstance(answer, Prediction) and answer.note:
            ids.setdefault(f"a lower bound only; {answer.note}", []).append(cell_id)
        elif isinstance(answer, Prediction) and answer.at_most:
            ids.setdefault(f"at most this, and the headroom at least; {answer.at_most}", []).append(cell_id)
    for note, found in ids.items():
        yield f"{listed(found)}: {note}."


def _bar(cell: Cell, answer: Prediction) -> Bar:
    sizes = {part.name: sum(answer.measures[name] for name in part.measures) for part in AT_PEAK}
    limit = cell.parameters.vram_limit
    return Bar(
        id=cell.id,
        sizes_bytes={name: value for name, value in sizes.items() if value > 0},
        is_lower_bound=answer.note is not None,
        cap_bytes=None if limit is None else memory_bytes(limit) - CONTEXT_BYTES,
        model=cell.parameters.model,
    )


def _groups(cards: Sequence[Card]) -> list[list[Card]]:
    def kind(card: Card) -> tuple[int, bool, bool, int]:
        return card.memory_bytes, card.has_bfloat16, card.has_flash_attention_2, workspace_bytes(card)

    return [list(alike) for _, alike in groupby(sorted(cards, key=kind), key=kind)]


def _by_cell(texts: Mapping[str, Sequence[str]], groups: Sequence[Sequence[Card]], width: int) -> list[Table]:
    columns = [
        Column(_heading(alike), lambda row, number=number: texts[row["id"]][number], priority=1)  # type: ignore[misc]
        for number, alike in enumerate(groups)
    ]
    rows = pd.DataFrame({"id": list(texts)})
    tables = []
    while columns:
        block = _block(Table("fits", "", (Column("id", field("id"), "left"), *columns), rows), width)
        tables.append(block)
        columns = columns[len(block.columns) - 1 :]
    return tables


def _by_card(texts: Mapping[str, Sequence[str]], groups: Sequence[Sequence[Card]], width: int) -> Table | None:
    """Tabulate a row a group of cards; None where `width` has no room for a column a cell."""
    names = [fold((f"{_size_text(card.name)}, " for card in alike), id_characters(width)) for alike in groups]
    rows = pd.DataFrame({
        "number": range(len(groups)),
        "card": [name.removesuffix(",") for name in names],
        "memory_bytes": [alike[0].memory_bytes for alike in groups],
    })  # fmt: skip
    memory = Column("memory\nGB", lambda row: f"{row['memory_bytes'] / GB:.1f}")
    card = Column("card", field("card"), "left")
    taken = max(len(line) for name in names for line in name.split("\n")) + GAP + len("memory") + GAP
    room = (width - taken + GAP) // len(texts) - GAP
    # Ids, as headings, break at their hyphens only.
    longest = max(len(text) for id_, shown in texts.items() for text in (*pieces(id_), *shown))
    if room < longest:
        return None
    columns = [
        Column(fold(pieces(id_), room), lambda row, shown=shown: shown[row["number"]])  # type: ignore[misc]
        for id_, shown in texts.items()
    ]
    return Table("fits", "", (card, memory, *columns), rows)


def _heading(cards: Sequence[Card]) -> str:
    size = "" if cards[0].compute_capability is None else f"{cards[0].memory_bytes / GB:.1f} GB"
    return "\n".join([*([size] if size else []), *(_size_text(card.name) for card in cards)])


def _size_text(limit: str) -> str:
    """Write a limit that is a number of bytes as gigabytes, and every other as it is."""
    return f"{int(limit) / GB:,.1f}".removesuffix(".0") + " GB" if limit.isdecimal() else limit


def _block(table: Table, width: int) -> Table:
    """Keep the id and the first columns that fit beside it, one at least."""
    in_order = [replace(column, priority=number) for number, column in enumerate(table.columns)]
    kept = fitting(in_order, folded(table.texts(), id_characters(width)), width)
    return replace(table, columns=tuple(replace(column, priority=0) for column in in_order[: max(2, len(kept))]))
