"""Which cells of a result can be chosen at all: those that ended ok, have their figures, and fit a card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from bench.matrix.cards import CONTEXT_BYTES, Card
from bench.matrix.fit import Fit, fit, need_bytes
from bench.matrix.parameters import Parameters
from bench.matrix.wording import listing
from bench.protocol import WORTH_ANOTHER_TRY
from bench.tables.comparable import Cell
from bench.tables.evidence import ACCURACY, Evidence, twins_of
from bench.tables.pool import CELL
from bench.tables.table import entries

Source = Literal["predicted", "measured"]
Out = Literal["failed", "not comparable", "no figure", "same settings"]

# What a choice is made by.
FIGURES = {"accuracy": "accuracy_after", "tokens/s": "tokens_per_s"}


@dataclass(frozen=True)
class OutOfQuestion:
    """Why a cell cannot be chosen, whatever the card and the margin."""

    outcome: Out
    reason: str


@dataclass(frozen=True)
class Need:
    """The memory that training a cell takes, for torch's allocator alone; None where unknown.

    predicted_bytes: `predicted_needed_bytes`, a lower bound where `lower_bound` says so. live_bytes: the measured peak
    of live tensors, without which no run can do. reserved_bytes: the most that the allocator held, with which a run
    did. context_bytes: what CUDA took before the model.
    """

    predicted_bytes: int | None = None
    lower_bound: bool = False
    live_bytes: int | None = None
    reserved_bytes: int | None = None
    context_bytes: int = CONTEXT_BYTES

    @property
    def source(self) -> Source | None:
        if self.predicted_bytes is not None and not (self.lower_bound and self.reserved_bytes is not None):
            return "predicted"
        return None if self.live_bytes is None else "measured"

    @property
    def bytes(self) -> int | None:
        """The least memory of a card, CUDA's context included: predicted, or else from the measured peak."""
        if self.source == "predicted" and self.predicted_bytes is not None:
            return need_bytes({"predicted_needed_bytes": self.predicted_bytes})
        return None if self.live_bytes is None else self.live_bytes + self.context_bytes


def fit_of(need: Need, parameters: Parameters, card: Card) -> Fit:
    """Tell whether a cell fits a card, from its predicted need or, where there is none, from what was measured.

    Of the measured figures, one that live tensors exceed is too small, and one that holds all that the allocator had is
    large enough; between the two it is not known, since the allocator takes what it finds. Where only the live tensors
    are known, they stand for both.
    """
    if need.source == "predicted" and need.predicted_bytes is not None:
        measures = {"predicted_needed_bytes": need.predicted_bytes}
        return fit(measures, parameters, card, lower_bound=need.lower_bound)
    more = need.context_bytes - CONTEXT_BYTES  # `fit` adds the usual context
    live = fit({"predicted_needed_bytes": (need.live_bytes or 0) + more}, parameters, card, lower_bound=True)
    if live.fits is not None or need.live_bytes is None:
        return live
    held_bytes = need.live_bytes if need.reserved_bytes is None else need.reserved_bytes
    held = fit({"predicted_needed_bytes": held_bytes + more}, parameters, card)
    return held if held.fits else live


def needs(evidence: Evidence) -> list[Need]:
    """Return what each cell needs: the most over its runs that ended ok."""
    runs = evidence.counted[evidence.counted["status"] == "ok"].groupby(CELL, sort=False)
    largest = pd.DataFrame(
        {
            "predicted": runs["predicted_needed_bytes"].max(),
            "bound": runs["prediction_note"].count() > 0,
            "context": runs["context_bytes"].max(),
            **{
                kind: runs[[f"{phase}_peak_{kind}_bytes" for phase in ("load", "train")]].max().max(axis=1)
                for kind in ("allocated", "reserved")
            },
            "trained": runs["train_peak_allocated_bytes"].count() > 0,
        }
    ).reindex(pd.MultiIndex.from_tuples(_cells(evidence), names=CELL))
    return [
        Need(
            predicted_bytes=_whole(row["predicted"]),
            lower_bound=row["bound"] is True,
            live_bytes=_whole(row["allocated"]) if row["trained"] is True else None,
            reserved_bytes=_whole(row["reserved"]) if row["trained"] is True else None,
            context_bytes=_whole(row["context"]) or CONTEXT_BYTES,
        )
        for row in entries(largest)
    ]


def parameters_of(evidence: Evidence) -> list[Parameters]:
    """Return of each cell what decides, beside memory, whether a card runs it; they were checked before it ran."""
    names = ["compute_dtype", "load_dtype", "attn_implementation"]
    values = list(evidence.cells[names].itertuples(index=False, name=None))
    distinct = {value: Parameters.model_construct(**dict(zip(names, value, strict=True))) for value in set(values)}
    return [distinct[value] for value in values]


def out_of_question(evidence: Evidence) -> list[OutOfQuestion | None]:
    """Say of each cell why it cannot be chosen at all; None where it can.

    A cell failed where one of its runs ended in a way that its settings are to blame for, even if others ended ok; a
    run that crashed or was interrupted only leaves its cell with fewer seeds. Of cells with different test sets, those
    with the set that most have can be compared. A cell that has another's settings and other seeds (an A/A row) is no
    choice of its own.
    """
    failures = _failures(evidence)
    groups = evidence.groups[ACCURACY.name]
    known = [group for group in groups if group is not None]
    usual = max(dict.fromkeys(known), key=known.count, default=None)
    figures = entries(evidence.cells[["weights", *FIGURES.values()]])
    twins = twins_of(evidence)
    found: list[OutOfQuestion | None] = []
    for row, cell, group, twin in zip(figures, _cells(evidence), groups, twins, strict=True):
        lacking = [figure for figure, name in FIGURES.items() if not np.isfinite(row[name])]
        if cell in failures:
            found.append(OutOfQuestion("failed", failures[cell]))
        elif cell in evidence.apart:
            found.append(OutOfQuestion("not comparable", evidence.apart[cell]))
        elif row["weights"] == "random":
            found.append(OutOfQuestion("no figure", "random weights have no accuracy"))
        elif twin:
            found.append(OutOfQuestion("same settings", f"has the settings of {twin}, and other seeds"))
        elif lacking:
            found.append(OutOfQuestion("no figure", f"no {listing(lacking)} in its records"))
        else:
            found.append(None if group == usual else OutOfQuestion("not comparable", "another test set"))
    return found


def _failures(evidence: Evidence) -> dict[Cell, str]:
    runs = evidence.counted
    ended_ok = (runs["status"] == "ok").groupby([runs[name] for name in CELL]).transform("any")
    blamed = runs[(runs["status"] != "ok") & (~ended_ok | ~runs["status"].isin(WORTH_ANOTHER_TRY))]
    found: dict[Cell, dict[str, None]] = {}
    for id_, key, status, phase in blamed[[*CELL, "status", "phase"]].itertuples(index=False, name=None):
        found.setdefault((id_, key), {})[f"{status} in {phase}"] = None
    return {cell: ", ".join(endings) for cell, endings in found.items()}


def _cells(evidence: Evidence) -> list[Cell]:
    return list(evidence.cells[CELL].itertuples(index=False, name=None))


def _whole(value: float) -> int | None:
    return None if pd.isna(value) else int(value)
