"""Which cells no other one beats: the Pareto front of train peak, tokens/s and accuracy."""

from __future__ import annotations

import numpy as np

from bench.tables.evidence import ACCURACY, Evidence, executions, twins_of
from bench.tables.pool import CELL

PARETO = (
    "Pareto: cells that no other one beats, which would have at most their train peak, at least their tokens/s and at "
    "least their accuracy, and be better in one; by means, noise not counted."
)
AT_ONCE = 512  # cells that are compared with all others together


def front(evidence: Evidence) -> np.ndarray:
    """Return a bool for each cell, in the order of `evidence.cells`: whether it is on the Pareto front.

    Cells that cannot be compared do not beat one another: those with other test sets, or whose steps ran in another
    way. A cell without a run that ended ok, without one of the three figures, or that ran under other conditions than
    the baseline is not on it, nor does it keep another off; nor does one that has another's settings and other seeds.
    Of cells that are equal in all three all are on it.
    """
    cells = evidence.cells
    costs = np.column_stack([cells["train_peak_bytes"], -cells["tokens_per_s"], -cells["accuracy_after"]]).astype(float)
    apart = np.array([cell in evidence.apart for cell in cells[CELL].itertuples(index=False, name=None)])
    twin = np.array([other is not None for other in twins_of(evidence)])
    counts = np.isfinite(costs).all(axis=1) & (cells["ok_count"] > 0).to_numpy() & ~apart & ~twin
    found = np.zeros(len(cells), dtype=bool)
    kinds = list(zip(evidence.groups[ACCURACY.name], executions(evidence), strict=True))
    for kind in dict.fromkeys(kinds):
        of_kind = np.flatnonzero(counts & np.array([other == kind for other in kinds]))
        found[of_kind] = ~_beaten(costs[of_kind])
    return found


def _beaten(costs: np.ndarray) -> np.ndarray:
    """Tell of each row whether another one is as low in every column and lower in one."""
    beaten = np.zeros(len(costs), dtype=bool)
    for start in range(0, len(costs), AT_ONCE):
        block = costs[start : start + AT_ONCE]
        as_low = np.ones((len(block), len(costs)), dtype=bool)
        lower = np.zeros_like(as_low)
        for column in range(costs.shape[1]):
            as_low &= costs[:, column] <= block[:, column, None]
            lower |= costs[:, column] < block[:, column, None]
        beaten[start : start + AT_ONCE] = (as_low & lower).any(axis=1)
    return beaten
