from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar

from bench.tables.mcnemar import mcnemar_p


def answers(both, ours, theirs, neither):
    counts = (both, ours, theirs, neither)
    return np.repeat([True, True, False, False], counts), np.repeat([True, False, True, False], counts)


@pytest.mark.parametrize("counts", [(50, 12, 3, 35), (0, 1, 0, 0), (10, 7, 7, 10), (90, 0, 9, 1), (794, 150, 86, 570)])
def test_it_is_the_exact_test_of_statsmodels(counts):
    right, against = answers(*counts)
    expected = mcnemar([counts[:2], counts[2:]], exact=True).pvalue
    assert mcnemar_p(right[None], against) == pytest.approx(min(1, expected))


def test_a_published_table_is_decided_as_published():
    # Agresti 2002, "Categorical Data Analysis", table 10.1, two ratings of 1,600 voters; z² = 64² / 236 = 17.36.
    right, against = answers(794, 150, 86, 570)
    (p,) = mcnemar_p(right[None], against)
    assert p == pytest.approx(stats.chi2.sf(17.36, 1), rel=0.25)
    assert p < 0.0001


def test_runs_are_tested_one_by_one_and_the_order_of_the_two_means_nothing():
    generator = np.random.default_rng(0)
    right, against = generator.random((2, 5, 300)) < 0.8
    together = mcnemar_p(right, against)
    assert together == pytest.approx(
        [mcnemar_p(one[None], other)[0] for one, other in zip(right, against, strict=True)]
    )
    assert together == pytest.approx(mcnemar_p(against, right))
    assert mcnemar_p(right, right) == pytest.approx(np.ones(5))
