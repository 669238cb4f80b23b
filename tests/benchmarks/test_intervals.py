from __future__ import annotations

import pytest

from benchmarks.intervals import difference, share_of


def test_the_interval_of_a_difference_is_newcombes() -> None:
    low, high = difference(share_of(56 / 70, 70), share_of(48 / 80, 80))

    assert (round(low, 4), round(high, 4)) == (0.0524, 0.3339)  # Newcombe 1998, table II, method 10, contrast (a)


@pytest.mark.parametrize(("right", "n"), [(0, 30), (30, 30), (17, 30)])
def test_shares_that_are_equal_differ_by_an_interval_about_zero(right: int, n: int) -> None:
    share = share_of(right / n, n)

    low, high = difference(share, share)

    assert share.right == right
    assert share.low <= share.value <= share.high
    assert low == -high < 0
