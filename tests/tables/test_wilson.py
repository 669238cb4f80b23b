from __future__ import annotations

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st
from statsmodels.stats.proportion import proportion_confint

from bench.tables.wilson import half_widths


@given(st.lists(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), min_size=1))
def test_half_widths_are_those_of_statsmodels(counts):
    right, n = np.array(counts).T
    low, high = proportion_confint(right, n, method="wilson")
    np.testing.assert_allclose(half_widths(pd.Series(right / n), pd.Series(n)), (high - low) / 2, rtol=1e-9)


def test_without_examples_or_a_share_there_is_none():
    assert half_widths(pd.Series([0.5, np.nan, 0.5]), pd.Series([0, 10, np.nan])).isna().all()
