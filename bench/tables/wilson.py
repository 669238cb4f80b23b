"""The interval of a share by its number of examples."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from bench.tables.contrasts import CONFIDENCE

Z = float(stats.norm.ppf((1 + CONFIDENCE) / 2))


def half_widths(shares: pd.Series[float], counts: pd.Series[float]) -> pd.Series[float]:
    """Return half the 95 % interval of Wilson (1927) of each share, from 0 to 1, of so many examples; NaN for none."""
    n = counts.where(counts > 0)
    width: pd.Series[float] = Z / (1 + Z**2 / n) * np.sqrt(shares * (1 - shares) / n + Z**2 / (4 * n**2))
    return width
