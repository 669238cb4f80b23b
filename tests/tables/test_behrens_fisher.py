from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from bench.tables.behrens_fisher import half_widths, p_values

SHARES = np.array([0.001, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99])
PARTS = st.floats(1e-6, 1e6)


def one(value):
    return np.array([float(value)])


def error_rate(half_width, share, freedom, alpha):
    """How often an estimate is further off than its half width, computed over all spreads that the seeds may show."""
    spread = stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, freedom) / freedom
    half = half_width(share * spread, np.full(2000, 1 - share), np.full(2000, freedom), alpha)
    return 2 * stats.norm.sf(half).mean()


def ours(seeds, examples, freedom, alpha):
    return half_widths(seeds, examples, freedom, 1 - alpha)


def satterthwaites(seeds, examples, freedom, alpha):
    total = seeds + examples
    return stats.t.ppf(1 - alpha / 2, total**2 / (seeds**2 / freedom)) * np.sqrt(total)


@pytest.mark.parametrize("freedom", [1, 2, 4, 19])
@pytest.mark.parametrize("nothing", [0.0, np.nan])
def test_with_one_part_alone_it_is_students_t_or_the_normal_distribution(freedom, nothing):
    distance, critical = one(2.5), stats.t.ppf(0.975, freedom)
    assert p_values(distance, one(1), one(nothing), one(freedom)) == pytest.approx(2 * stats.t.sf(2.5, freedom))
    assert p_values(distance, one(nothing), one(1), one(freedom)) == pytest.approx(2 * stats.norm.sf(2.5))
    assert half_widths(one(4), one(nothing), one(freedom), 0.95) == pytest.approx(2 * critical)
    assert half_widths(one(nothing), one(4), one(freedom), 0.95) == pytest.approx(2 * stats.norm.ppf(0.975))


@pytest.mark.parametrize("freedom", [1, 2, 4, 19])
def test_a_part_that_hardly_counts_changes_hardly_anything(freedom):
    assert p_values(one(3), one(1), one(1e-7), one(freedom)) == pytest.approx(2 * stats.t.sf(3, freedom), rel=1e-5)
    assert p_values(one(3), one(1e-8), one(1), one(freedom)) == pytest.approx(2 * stats.norm.sf(3), rel=1e-2)


@pytest.mark.parametrize("freedom", [2, 7])
def test_it_is_the_tail_of_a_t_and_a_normal_variable_added(freedom):
    generator = np.random.default_rng(0)
    total = np.sqrt(2) * generator.standard_t(freedom, 400_000) + generator.standard_normal(400_000)
    assert p_values(one(4), one(2), one(1), one(freedom)) == pytest.approx((np.abs(total) > 4).mean(), abs=0.002)


def test_neither_part_known_is_no_answer():
    nothing = one(np.nan)
    assert np.isnan(p_values(one(1), nothing, nothing, one(2))).all()
    assert np.isnan(half_widths(nothing, nothing, one(2), 0.95)).all()


@settings(max_examples=60, deadline=None)
@given(PARTS, PARTS, st.integers(1, 30), st.sampled_from([0.5, 0.9, 0.95, 0.997, 0.99999]), st.floats(1e-3, 1e3))
def test_the_half_width_is_where_the_p_value_is_that_of_its_confidence(seeds, examples, freedom, confidence, factor):
    given = one(seeds), one(examples), one(freedom)
    half = half_widths(*given, confidence)
    assert p_values(half, *given) == pytest.approx(1 - confidence, rel=1e-6)
    scaled = half_widths(factor**2 * given[0], factor**2 * given[1], given[2], confidence)
    assert scaled == pytest.approx(factor * half, rel=1e-6)
    assert half_widths(2 * given[0], given[1], given[2], confidence) >= half


def test_rows_do_not_disturb_each_other():
    seeds, examples, freedom = np.array([1, 0, np.nan, 3.0]), np.array([1, 2, 1, 1e-3]), np.array([2.0, 2, 1, 4])
    together = half_widths(seeds, examples, freedom, 0.95)
    assert together == pytest.approx(
        [half_widths(*(one(part[row]) for part in (seeds, examples, freedom)), 0.95)[0] for row in range(4)]
    )


@pytest.mark.parametrize(("seeds", "most"), [(3, 0.977), (5, 0.965), (8, 0.959)])
def test_intervals_cover_what_they_promise_and_no_more_than_the_docstring_says(seeds, most):
    covered = [1 - error_rate(ours, share, seeds - 1, 0.05) for share in SHARES]
    assert min(covered) > 0.9495
    assert max(covered) == pytest.approx(most, abs=0.001)


@pytest.mark.parametrize("seeds", [3, 5, 8])
@pytest.mark.parametrize("alpha", [0.05 / 8, 0.05 / 18])
def test_small_p_values_are_never_too_small(seeds, alpha):
    assert max(error_rate(ours, share, seeds - 1, alpha) for share in SHARES) < 1.01 * alpha


def test_satterthwaites_degrees_of_freedom_would_not_do_with_three_seeds():
    assert min(1 - error_rate(satterthwaites, share, 2, 0.05) for share in SHARES) == pytest.approx(0.921, abs=0.001)
    alpha = 0.05 / 18
    assert max(error_rate(satterthwaites, share, 2, alpha) for share in SHARES) == pytest.approx(8 * alpha, rel=0.05)
