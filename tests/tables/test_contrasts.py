from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from bench.tables.contrasts import (
    MOST_FLIPPED,
    Contrast,
    Sample,
    decided,
    difference,
    estimates,
    holm,
    minimum_detectable,
)
from bench.tables.evidence import resampling

VALUES = arrays.arrays(float, (2, 5), elements=st.floats(-1e3, 1e3, allow_subnormal=False).map(lambda x: round(x, 6)))
ONE = Contrast((0,), (1.0,))


def sample(*rows):
    return Sample(np.array(rows, float))


def only(found):
    (row,) = found.to_dict("records")
    return row


def estimated(values):
    """Estimate one cell whose seeds have these values."""
    return only(estimates(sample(values), [ONE]))


def crossed(generator, seeds, examples, *, of_seed=0.0, of_example=0.0, of_both=1.0):
    """Values [seeds, examples] with effects of these deviations, and the sample of their means."""
    values = of_seed * generator.standard_normal((seeds, 1)) + of_example * generator.standard_normal(examples)
    values = values + of_both * generator.standard_normal((seeds, examples))
    weights = resampling(examples, 20_000).astype(float) / examples
    means = weights @ values.T
    return values, Sample(means[:1], means[1:, None, :])


# Known answers.


def test_without_examples_it_is_the_paired_t_test():
    generator = np.random.default_rng(0)
    cell, baseline = generator.normal(1, 2, 6), generator.normal(0, 2, 6)
    found = only(estimates(sample(baseline, cell), [difference(1, 0)]))
    expected = stats.ttest_rel(cell, baseline)
    interval = expected.confidence_interval(0.95)
    assert found["estimate"] == pytest.approx((cell - baseline).mean())
    assert (found["p"], found["degrees_of_freedom"]) == (pytest.approx(expected.pvalue), pytest.approx(5))
    assert (found["low"], found["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found["standard_error"] == pytest.approx((cell - baseline).std(ddof=1) / math.sqrt(6))
    assert (found["lowest"], found["highest"]) == ((cell - baseline).min(), (cell - baseline).max())


@pytest.mark.parametrize(
    "deviations",
    [{"of_seed": 0.1, "of_example": 1.0}, {"of_example": 2.0, "of_both": 0.5}, {"of_seed": 1.0, "of_example": 0.5}],
)
def test_the_parts_of_the_variance_are_those_of_a_two_way_anova(deviations):
    seeds, examples = 4, 60
    values, means = crossed(np.random.default_rng(1), seeds, examples, **deviations)
    long = pd.DataFrame(
        {
            "value": values.ravel(),
            "seed": np.repeat(range(seeds), examples),
            "example": np.tile(range(examples), seeds),
        }
    )
    squares = anova_lm(ols("value ~ C(seed) + C(example)", long).fit())["mean_sq"]
    found = only(estimates(means, [ONE]))
    assert found["seeds_variance"] == pytest.approx(squares["C(seed)"] / examples)
    shared = (squares["C(example)"] - squares["Residual"]) / (seeds * examples) * (examples - 1) / examples
    assert found["examples_variance"] == pytest.approx(shared, rel=0.04)  # of 20,000 resamples
    assert found["standard_error"] ** 2 == pytest.approx(squares["C(seed)"] / (seeds * examples) + shared, rel=0.04)


def test_examples_that_differ_in_each_seed_alone_add_nothing_twice():
    _, means = crossed(np.random.default_rng(3), 5, 200)
    found = only(estimates(means, [ONE]))
    assert found["examples_variance"] < 0.3 * found["seeds_variance"] / 5


def test_with_one_seed_the_interval_is_of_its_examples():
    values, means = crossed(np.random.default_rng(2), 1, 100)
    found = only(estimates(means, [ONE]))
    assert found["standard_error"] == pytest.approx(values.std() / 10, rel=0.02)
    assert found["high"] - found["low"] == pytest.approx(2 * stats.norm.ppf(0.975) * found["standard_error"])
    assert (found["seeds_count"], found["degrees_of_freedom"]) == (1, math.inf)
    assert math.isnan(found["seeds_variance"])


@pytest.mark.parametrize("n", [6, 9, 12])
def test_the_sign_flip_is_the_exact_permutation_test(n):
    values = np.random.default_rng(n).normal(0.7, 1, n)
    expected = stats.permutation_test((values,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert estimated(values)["p_exact"] == pytest.approx(expected.pvalue)


@pytest.mark.parametrize("n", [2, 5, MOST_FLIPPED + 1])
def test_no_sign_flip_with_seeds_that_cannot_reach_5_percent_or_are_too_many(n):
    assert math.isnan(estimated(np.arange(1.0, n + 1))["p_exact"])


@pytest.mark.parametrize("n", [3, 5, 8, 30])
def test_the_minimum_detectable_difference_is_that_of_statsmodels(n):
    size = TTestPower().solve_power(nobs=n, alpha=0.05, power=0.8)
    values = np.random.default_rng(n).normal(0, 3, n)
    assert estimated(values)["minimum_detectable"] == pytest.approx(size * values.std(ddof=1), rel=1e-4)


def test_the_minimum_detectable_difference_over_examples_alone_is_that_of_the_normal_distribution():
    found = minimum_detectable(np.array([np.nan, 0.0]), np.array([4.0, 4.0]), np.array([1, 3]))
    assert found == pytest.approx(2 * (stats.norm.ppf(0.975) + stats.norm.ppf(0.8)), rel=1e-6)


def test_holm_is_as_published():
    # R's p.adjust(c(0.01, 0.02, 0.03, 0.04), "holm"), and the example in Wikipedia's "Holm-Bonferroni method".
    assert holm(np.array([0.01, 0.02, 0.03, 0.04])) == pytest.approx([0.04, 0.06, 0.06, 0.06])
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_is_that_of_statsmodels(p):
    assert holm(np.array(p)) == pytest.approx(multipletests(p, method="holm")[1])


# Properties.


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_the_other_way_round_everything_is_mirrored(values):
    found, mirrored = estimates(Sample(values), [difference(0, 1), difference(1, 0)]).to_dict("records")
    assert (found["estimate"], found["low"], found["high"]) == (
        -mirrored["estimate"], -mirrored["high"], -mirrored["low"]
    )  # fmt: skip
    assert (found["p"], found["standard_error"]) == (mirrored["p"], mirrored["standard_error"])


@settings(max_examples=100, deadline=None)
@given(VALUES, st.permutations(range(5)))
def test_the_order_of_seeds_means_nothing(values, order):
    found, shuffled = (
        estimates(Sample(given), [difference(0, 1)]).iloc[0].to_dict() for given in (values, values[:, order])
    )
    assert shuffled == pytest.approx(found, rel=1e-6, abs=1e-6, nan_ok=True)


@settings(max_examples=100, deadline=None)
@given(VALUES, st.sampled_from([0.25, 8.0, -2.0]), st.integers(-100, 100))
def test_another_unit_or_zero_changes_no_p_value(values, factor, shift):
    found = only(estimates(Sample(values), [difference(0, 1)]))
    scaled = only(estimates(Sample(factor * values + shift), [difference(0, 1)]))
    assert scaled["estimate"] == pytest.approx(factor * found["estimate"], rel=1e-6, abs=1e-6)
    assert scaled["standard_error"] == pytest.approx(abs(factor) * found["standard_error"], rel=1e-6, abs=1e-6)
    if found["standard_error"] > 1e-3:
        assert scaled["p"] == pytest.approx(found["p"], rel=1e-3, abs=1e-6)


def test_a_contrast_is_the_weighted_sum_of_its_cells():
    found = estimates(sample([1, 2, 3], [2, 4, 9], [0, 1, 5]), [Contrast((1, 0, 2), (0.5, -1.0, 0.5))])
    assert only(found)["estimate"] == pytest.approx((2 + 4 + 9 + 0 + 1 + 5) / 6 - 2)


# What is missing.


def test_only_seeds_that_all_cells_of_a_contrast_have_are_used():
    found = estimates(sample([1, 2, 3, 4], [2, 4, np.nan, 5], [np.nan] * 4), [difference(1, 0), difference(2, 0)])
    assert found["seeds_count"].tolist() == [3, 0]
    assert found["estimate"][0] == pytest.approx(4 / 3)
    assert found.drop(columns=["seeds_count", "degrees_of_freedom"]).loc[1].isna().all()


def test_cells_with_different_seeds_are_estimated_as_if_alone():
    values, means = zip(*(crossed(np.random.default_rng(n), 4, 50, of_example=1.0) for n in range(3)), strict=True)
    observed = np.concatenate([one.observed for one in means])
    resampled = np.concatenate([one.resampled for one in means], axis=1)
    observed[1, 2] = np.nan
    together = estimates(Sample(observed, resampled), [difference(1, 0), difference(2, 0)])
    kept = [0, 1, 3]
    alone = estimates(Sample(observed[:2, kept], resampled[:, :2, kept]), [difference(1, 0)])
    assert together.iloc[0].to_dict() == pytest.approx(alone.iloc[0].to_dict(), nan_ok=True)
    assert len(values) == 3


def test_without_examples_of_a_run_what_examples_add_is_taken_from_the_other_seeds():
    _, means = crossed(np.random.default_rng(0), 4, 50, of_example=1.0)
    resampled = np.concatenate([means.resampled, means.resampled], axis=1)
    resampled[:, 1, 2] = np.nan
    found = estimates(Sample(np.repeat(means.observed, 2, axis=0), resampled), [ONE, Contrast((1,), (1.0,))])
    others = estimates(Sample(means.observed[:, [0, 1, 3]], means.resampled[:, :, [0, 1, 3]]), [ONE])
    assert found["examples_variance"][1] == pytest.approx(others["examples_variance"][0])
    assert found["seeds_count"].tolist() == [4, 4]


def test_where_nothing_varies_and_something_differs_there_is_neither_interval_nor_verdict():
    found = decided(estimates(Sample(np.full((1, 3), 1 / 72)), [ONE]), "higher")
    assert found[["low", "high", "p", "minimum_detectable"]].isna().all(axis=None)
    assert found["verdict"].tolist() == ["too few runs"]


def test_no_contrasts_give_no_rows():
    found = decided(estimates(sample([1, 2, 3]), []), "higher")
    assert len(found) == 0
    assert {"p_holm", "verdict", "test"} <= set(found)


# Verdicts.


def decide(*rows, better="higher", **options):
    found = estimates(sample([0.0] * len(rows[0]), *rows), [difference(n, 0) for n in range(1, len(rows) + 1)])
    return decided(found, better, **options)


def test_a_difference_is_better_or_worse_by_the_measure_and_else_not_shown():
    rows = ([5.0, 5.1, 5.2], [-5.0, -5.1, -5.2], [1.0, -1.0, 0.3])
    assert decide(*rows)["verdict"].tolist() == ["better", "worse", "no difference shown"]
    assert decide(*rows, better="lower")["verdict"].tolist() == ["worse", "better", "no difference shown"]


def test_what_is_the_same_in_every_seed_is_no_difference():
    (row,) = decide([0.0, 0.0, 0.0]).to_dict("records")
    assert (row["p"], row["verdict"], row["minimum_detectable"]) == (1.0, "no difference shown", 0.0)


def test_fewer_than_three_seeds_are_too_few_whatever_they_show_and_do_not_count_in_the_family():
    found = decide([5.0, 5.1, 5.2], [9.0, 9.1, np.nan], [np.nan] * 3)
    assert found["verdict"].tolist() == ["better", "too few runs", "too few runs"]
    assert found["p_holm"].isna().tolist() == [False, True, True]
    assert found["p_holm"][0] == found["p"][0]
    assert found["test"].tolist() == ["t", "t", "none"]


def test_the_correction_is_over_the_whole_family():
    row = [5.0, 6.5, 5.0]
    alone, among = decide(row), decide(row, *np.random.default_rng(0).normal(size=(9, 3)))
    assert (alone["verdict"][0], among["verdict"][0]) == ("better", "no difference shown")
    assert among["p_holm"][0] == pytest.approx(10 * alone["p"][0])


def test_with_seeds_enough_the_sign_flip_has_to_agree():
    # One seed far off: t is large, but its sign was as likely the other one.
    values = [0.1, 0.1, 0.1, 0.1, 0.1, -0.02]
    found = decide(values)
    assert found["test"].tolist() == ["t and sign flip"]
    assert found["p_holm"][0] == max(found["p"][0], found["p_exact"][0]) == found["p_exact"][0] == 2 / 32
    assert found["p"][0] < 0.05
    assert found["verdict"].tolist() == ["no difference shown"]


def test_an_exact_measure_is_decided_by_its_sign_whatever_the_number_of_seeds():
    found = decide([-3.0, np.nan], [-3.0, 1.0], [0.0, 0.0], [np.nan, np.nan], better="lower", exact=True)
    assert found["verdict"].tolist() == ["better", "no difference shown", "no difference shown", "too few runs"]
    assert found["test"].tolist() == ["none"] * 4
    assert found[["p", "p_holm", "minimum_detectable"]].isna().all(axis=None)
