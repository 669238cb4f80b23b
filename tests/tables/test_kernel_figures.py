from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.tables.kernel_figures import change_text, figure, in_order, names_where_several, once, rate_text
from bench.tables.table import MISSING


@pytest.mark.parametrize(
    ("value", "text"),
    [(4.0712, "4.07"), (40.71, "40.7"), (407.1, "407"), (12_345.6, "12,346"), (0.04071, "0.0407"), (0, "0"),
     (float("nan"), "–")],  # noqa: RUF001
)  # fmt: skip
def test_a_figure_has_three_digits_or_all_before_the_point(value, text):
    assert figure(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [(1.1234, "+12.3 %"), (0.5, "−50.0 %"), (1.0004, "0.0 %"), (10.994, "+999.4 %"), (25.0, "+2,400 %")],  # noqa: RUF001
)
def test_a_ratio_is_a_change_in_percent(ratio, text):
    assert change_text(ratio) == text
    assert change_text(float("nan")) == MISSING


def test_a_rate_is_in_the_larger_unit_that_it_fills():
    rates = [2.61e12, 49.1e9, float("nan")]
    assert [rate_text(rate, "B/s") for rate in rates] == ["2.61 TB/s", "49.1 GB/s", "–"]  # noqa: RUF001


def test_quantizations_stand_in_one_order_with_unknown_ones_last():
    assert in_order(["int8", "new", "fp4", "nf4-dq", "fp4", "nf4"]) == ["nf4", "nf4-dq", "fp4", "int8", "new"]


def test_a_group_is_named_over_its_first_rows_or_in_one_where_they_are_few():
    groups = [("a", "x")] * 3 + [("a", "y")] + [("b", "y")] * 2
    assert once(groups) == ["a", "x", "", "a y", "b", "y"]


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=3), max_size=30))
def test_every_row_has_a_label_and_every_name_of_a_group_is_said(groups):
    labels = once(groups)
    assert len(labels) == len(groups)
    changes = [group for at, group in enumerate(groups) if at == 0 or groups[at - 1] != group]
    assert " ".join(labels).split() == [name for group in changes for name in group]


def test_names_that_all_rows_share_are_left_out_unless_they_are_always_wanted():
    rows = pd.DataFrame({"model": ["m", "m"], "layer": ["q", "q"], "rows": ["1 row", ""]})
    assert names_where_several(rows, ["model", "layer", "rows"], ["layer"]) == [["q", "1 row"], ["q"]]
