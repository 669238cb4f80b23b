"""McNemar's test: whether two runs differ on the same test examples."""

from __future__ import annotations

import numpy as np
from scipy import stats


def mcnemar_p(right: np.ndarray, against: np.ndarray) -> np.ndarray:
    """Return the exact two-sided p-value of McNemar (1947) of each run, by what one of two alone has right.

    It is that of statsmodels' `mcnemar(table, exact=True)`, for many runs at once.

    Args:
        right: bool [runs, examples], which ones each run has right.
        against: bool [runs, examples], or [examples] for all of them, the same of the run it is compared with.
    """
    gained, lost = (right & ~against).sum(axis=1), (~right & against).sum(axis=1)
    p = 2 * stats.binom.cdf(np.minimum(gained, lost), gained + lost, 0.5)
    return np.asarray(np.minimum(p, 1.0))
