"""The interval of a share: by its number of examples, or by its seeds too where there are enough of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from bench.tables.contrasts import CONFIDENCE, LEAST_SEEDS, Contrast, estimates
from bench.tables.evidence import Compared, Evidence

Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def half_widths(shares: pd.Series[float], counts: pd.Series[float]) -> pd.Series[float]:
    """Return half the 95 % interval of Wilson (1927) of each share, from 0 to 1, of so many examples; NaN for none."""
    n = counts.where(counts > 0)
    width: pd.Series[float] = Z / (1 + Z**2 / n) * np.sqrt(shares * (1 - shares) / n + Z**2 / (4 * n**2))
    return width


def of_cells(
    evidence: Evidence, measure: Compared, shares: pd.Series[float], counts: pd.Series[float]
) -> tuple[pd.Series[float], pd.Series[bool]]:
    """Return half the 95 % interval of a share of each cell, and whether it is over seeds and test examples.

    With fewer than `LEAST_SEEDS`, without files of examples, or where all runs agree, it is Wilson's over the examples
    alone. `shares`, from 0 to 1, and `counts` are of the cells by number.
    """
    found = estimates(evidence.samples[measure.name], [Contrast((number,), (1.0,)) for number in shares.index])
    over_both = (found["high"] - found["low"]) / 2
    over_seeds = (
        (found["seeds_count"] >= LEAST_SEEDS) & found["examples_variance"].notna() & (found["standard_error"] > 0)
    ).set_axis(shares.index)
    return over_both.set_axis(shares.index).where(over_seeds, half_widths(shares, counts)), over_seeds
