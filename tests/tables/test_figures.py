from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tables.figures import accuracy, decimals_for, listed, number, signed, sized, unit_for

NAN = float("nan")
FINITE = st.floats(-1e12, 1e12)


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([5.851, 5.547], 2),
        ([0.1164, 0.1115, 0.269], 3),
        ([27.45, 32.21], 1),
        ([151.3, 148.2], 0),
        ([24105, 9120], 0),
        ([1.41, NAN], 2),
        ([0.0, NAN], 0),
        ([], 0),
        ([0.0000051], 3),
        ([9.5, 12345.6], 0),
    ],
)
def test_a_column_has_the_decimals_that_give_its_smallest_value_three_figures(values, decimals):
    assert decimals_for(values) == decimals


@given(st.lists(st.floats(1e-9, 1e12), min_size=1))
def test_decimals_stay_between_none_and_three(values):
    assert 0 <= decimals_for(values) <= 3


@pytest.mark.parametrize(
    ("value", "decimals", "text"),
    [
        (5.851143936, 2, "5.85"),
        (25011.4, 0, "25,011"),
        (512e-9, 3, "<0.001"),
        (0.0, 3, "0.000"),
        (-1.25, 1, "−1.2"),  # noqa: RUF001
        (NAN, 2, "–"),  # noqa: RUF001
        (math.inf, 2, "–"),  # noqa: RUF001
    ],
)
def test_numbers_are_rounded_and_grouped(value, decimals, text):
    assert number(value, decimals) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.06, "+4.1"), (-12.34, "−12.3"), (0.04, "0.0"), (-0.04, "0.0"), (NAN, "–"), (1234.56, "+1,234.6")],  # noqa: RUF001
)
def test_changes_have_a_sign_unless_they_round_to_zero(value, text):
    assert signed(value, 1) == text


@pytest.mark.parametrize(
    ("largest", "unit", "text"),
    [(5_851_143_936, "GB", "5.85 GB"), (999_999_999, "MB", "1,000.0 MB"), (NAN, "MB", "– MB")],  # noqa: RUF001
)
def test_the_unit_of_a_table_follows_its_largest_figure(largest, unit, text):
    assert unit_for(largest).name == unit
    assert sized(largest, unit_for(largest)) == text


@given(FINITE)
def test_a_change_and_its_opposite_differ_in_their_sign_only(value):
    assert signed(value, 1).lstrip("+−") == signed(-value, 1).lstrip("+−")  # noqa: RUF001


@pytest.mark.parametrize(
    ("before", "after", "half_width", "text"),
    [
        (0.1123, 0.8652, 0.0121, "11.2 → 86.5 ± 1.2"),
        (0.083, 0.617, 0.0704, "8.3 → 61.7 ± 7.0"),
        (0.25, 0.5, 0.21, "25 → 50 ± 21"),
        (0.112, NAN, NAN, "11.2 → –"),  # noqa: RUF001
        (NAN, NAN, NAN, "–"),  # noqa: RUF001
    ],
)
def test_accuracy_has_no_more_decimals_than_its_uncertainty_bears(before, after, half_width, text):
    assert accuracy(before, after, half_width) == text


def test_a_long_list_says_how_many_more_there_are():
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(n) for n in range(1006)], most=2) == "0, 1 and 1,004 more"
