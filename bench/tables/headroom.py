"""The headroom of predicted cells on graphics cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import pandas as pd

from bench.matrix.cards import CONTEXT_BYTES, WORKSPACES, Card, one_workspace_bytes, workspace_bytes
from bench.matrix.expand import Cell
from bench.matrix.fit import NO_BFLOAT16, NO_FLASH_ATTENTION_2, Fit, fit
from bench.run.forecast import Answer, Prediction
from bench.tables.figures import GB, MINUS
from bench.tables.table import Column, Table, field
from bench.tables.terminal import GAP, fitting, fold, folded, id_characters, pieces

Answers = Mapping[str, Answer]

RULE = (
    f"Headroom: the card's memory less the need, which has {CONTEXT_BYTES / GB:.2f} GB for CUDA's context in it "
    "(measured on an H200; cards differ).",
    f"+ is what is left, {MINUS} what is missing.",
)
UNKNOWN = (
    f"?: not known, since of the need only a lower bound is, and it would fit ({MINUS} alone: it would not), or only "
    "that of sequences of max_length, which would not."
)
LACKING = {NO_BFLOAT16: "no bf16", NO_FLASH_ATTENTION_2: "no FA2"}
EXPLAINED = {
    "no bf16": "no bf16: cards before Ampere have no bfloat16 arithmetic, and the cell asks for it; "
    "set compute_dtype (and load_dtype, if it is set) to float16 to run there.",
    "no FA2": "no FA2: flash_attention_2 does not run on cards before Ampere; set attn_implementation: sdpa to run "
    "there.",
    "?": UNKNOWN,
    MINUS: UNKNOWN,
}
OTHER_KERNELS = (
    "Predicted with FlashAttention, which cards before Ampere (T4 and older) do not have: other kernels run there, "
    "and their attention takes another amount."
)


def fit_tables(cells: Sequence[Cell], answers: Answers, cards: Sequence[Card], width: int) -> list[Table]:
    """Tabulate the headroom of the cells on the cards, by memory, in tables that are no wider than `width` characters.

    Cards that are alike in memory and in what they can do stand together. There is a row a cell, and as many tables as
    the width asks for; or one with a row a card, where that is enough for all the cells.
    """
    known = predicted(cells, answers)
    if not known:
        return []
    groups = _groups(cards)
    texts = {cell.id: [headroom(fit_of(cell, answer, alike[0])) for alike in groups] for cell, answer in known}
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


def fit_of(cell: Cell, answer: Prediction, card: Card) -> Fit:
    """Tell whether a cell fits a card, as far as its prediction tells."""
    return fit(
        answer.measures,
        cell.parameters,
        card,
        lower_bound=answer.note is not None,
        longest_texts=answer.assumed is not None,
    )


def predicted(cells: Sequence[Cell], answers: Answers) -> list[tuple[Cell, Prediction]]:
    """Return the cells of which something could be predicted, with that."""
    return [(cell, answer) for cell in cells if isinstance(answer := answers[cell.id], Prediction)]


def size_text(limit: str) -> str:
    """Write a limit that is a number of bytes as gigabytes, and every other as it is."""
    return f"{int(limit) / GB:,.1f}".removesuffix(".0") + " GB" if limit.isdecimal() else limit


def _uses_flash_attention(cell: Cell) -> bool:
    """Tell whether a cell that a card before Ampere takes would use FlashAttention on a newer one."""
    return cell.parameters.compute_dtype == "float16" and cell.parameters.attn_implementation == "sdpa"


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
    names = [fold((f"{size_text(card.name)}, " for card in alike), id_characters(width)) for alike in groups]
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
    return "\n".join([*([size] if size else []), *(size_text(card.name) for card in cards)])


def _block(table: Table, width: int) -> Table:
    """Keep the id and the first columns that fit beside it, one at least."""
    in_order = [replace(column, priority=number) for number, column in enumerate(table.columns)]
    kept = fitting(in_order, folded(table.texts(), id_characters(width)), width)
    return replace(table, columns=tuple(replace(column, priority=0) for column in in_order[: max(2, len(kept))]))
