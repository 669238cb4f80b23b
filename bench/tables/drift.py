"""Drift: how the baseline's two runs in a block, the first and the last, differ."""

from __future__ import annotations

import numpy as np

from bench.matrix.wording import counted
from bench.tables.evidence import Evidence
from bench.tables.figures import listed, signed
from bench.tables.pool import CELL

NOTABLE_PERCENT = 2.0
NAMES = ["tokens_per_s", "accuracy_after"]


def drift(evidence: Evidence) -> list[str]:
    """Say how much the baseline's tokens/s and accuracy changed from a block's first to its last run.

    Of blocks in which both ended ok and ran alike (`execution_used`). With several GPUs the two may have run on
    different ones, whose own difference is no drift: those say nothing of speed. A block is a seed.
    """
    first, last = (
        frame[(frame["status"] == "ok") & frame["is_baseline"]].set_index([*CELL, "seed"])
        for frame in (evidence.runs, evidence.repeats)
    )
    both = first.join(last.add_suffix("_again"), how="inner")
    used, used_again = both["execution_used"], both["execution_used_again"]
    both = both[(used == used_again) | (used.isna() & used_again.isna())]
    changes = 100 * (both["tokens_per_s_again"] / both["tokens_per_s"] - 1)
    moved = both["slot"] != both["slot_again"]
    points = (100 * (both["accuracy_after_again"] - both["accuracy_after"])).where(both["weights"] != "random")
    seeds = both.index.get_level_values("seed")
    speeds = _speeds(changes.mask(moved).to_numpy(float), [*seeds], int(moved.sum()))
    return [*speeds, *_accuracies(points.to_numpy(float))]


def _speeds(percent: np.ndarray, seeds: list[int], moved_count: int) -> list[str]:
    known = np.isfinite(percent)
    if not known.any():
        return []
    notable = [
        f"{signed(change, 1)} % (seed {seed})"
        for change, seed in zip(percent, seeds, strict=True)
        if abs(change) > NOTABLE_PERCENT
    ]
    if notable:
        return [
            f"Drift: the baseline's tokens/s changed by {listed(notable)} from the first to the last run of a block: "
            "differences in tokens/s of that size may be drift."
        ]
    moved = f"; in {moved_count} more the two ran on different GPUs" if moved_count else ""
    return [
        f"Drift: the baseline's tokens/s changed by {_range(percent[known])} % from the first to the last run of a "
        f"block (n = {counted(int(known.sum()), 'block')}{moved})."
    ]


def _accuracies(points: np.ndarray) -> list[str]:
    known = points[np.isfinite(points)]
    if not len(known):
        return []
    how = f"changed by {_range(known)} points" if known.any() else "was the same"
    return [f"Drift: the baseline's accuracy {how} in the last run of a block (n = {counted(len(known), 'block')})."]


def _range(changes: np.ndarray) -> str:
    return " to ".join(dict.fromkeys(signed(end, 1) for end in (changes.min(), changes.max())))
