from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bench.cell.calibration import confidences, expected_calibration_error

# Whole numbers, so that adding another one to a row is exact and moves no confidence over the border of a bin.
log_likelihoods = st.tuples(st.integers(1, 40), st.integers(2, 6)).flatmap(
    lambda shape: st.tuples(
        arrays(np.float32, shape, elements=st.integers(-40, 0).map(float)),
        arrays(np.int64, shape[0], elements=st.integers(0, shape[1] - 1)),
    )
)
Given = tuple[np.ndarray, np.ndarray]


def rows(*probabilities: float) -> np.ndarray:
    """Return log-likelihoods of two labels, the first of which has the probability given."""
    return np.array([[np.log(first), np.log(1 - first)] for first in probabilities])


@pytest.mark.parametrize(
    ("probabilities", "truth", "error"),
    [
        ((0.9,), (0,), 0.1),
        ((0.9,), (1,), 0.9),
        # One bin: half are right at a confidence of 0.9.
        ((0.9, 0.9), (0, 1), 0.4),
        # One bin, (0.8, 0.8667]: gaps of both signs cancel within a bin.
        ((0.82, 0.86), (0, 1), 0.34),
        # Two bins: |1 - 0.95| / 4 and 3 / 4 * |1/3 - 0.6|.
        ((0.95, 0.6, 0.6, 0.6), (0, 0, 1, 1), 0.2125),
    ],
)
def test_known_answers(probabilities: tuple[float, ...], truth: tuple[int, ...], error: float) -> None:
    assert expected_calibration_error(rows(*probabilities), np.array(truth)) == pytest.approx(error)


def test_a_bin_holds_its_right_end_and_not_its_left() -> None:
    far = -1e4  # what leaves an exact fraction to the others
    fifth, quarter, third = [0, 0, 0, 0, 0], [0, 0, 0, 0, far], [0, 0, 0, far, far]

    # The first of four bins is (0, 0.25].
    together = expected_calibration_error(np.array([fifth, quarter]), np.array([1, 0]), bins=4)
    apart = expected_calibration_error(np.array([quarter, third]), np.array([0, 1]), bins=4)

    assert together == pytest.approx(abs(1 - 0.2 - 0.25) / 2)
    assert apart == pytest.approx((0.75 + 1 / 3) / 2)


@pytest.mark.parametrize("bins", [1, 2, 15, 100])
def test_perfect_and_confident_is_no_error_and_wrong_and_confident_is_the_largest(bins: int) -> None:
    certain = np.full((10, 4), -1e4, dtype=np.float32)
    certain[:, 2] = 0

    assert expected_calibration_error(certain, np.full(10, 2), bins) == 0
    assert expected_calibration_error(certain, np.full(10, 1), bins) == 1


def test_log_likelihoods_far_below_zero_have_a_confidence() -> None:
    np.testing.assert_allclose(confidences(np.array([[-5000.0, -5000.0], [-9000.0, -8000.0]])), [0.5, 1.0])


@given(log_likelihoods, st.integers(1, 30))
def test_it_is_between_0_and_1(both: Given, bins: int) -> None:
    assert 0 <= expected_calibration_error(*both, bins) <= 1


@given(log_likelihoods, st.integers(-1000, 1000))
def test_a_constant_added_to_a_row_changes_nothing(both: Given, constant: int) -> None:
    found, truth = both
    moved = found + constant * np.arange(len(found), dtype=np.float32)[:, None]

    assert expected_calibration_error(moved, truth) == expected_calibration_error(found, truth)


@given(log_likelihoods, st.randoms())
def test_the_order_of_examples_changes_nothing(both: Given, random: np.random.Generator) -> None:
    found, truth = both
    order = list(range(len(truth)))
    random.shuffle(order)

    shuffled = expected_calibration_error(found[order], truth[order])

    assert shuffled == pytest.approx(expected_calibration_error(found, truth), abs=1e-12)


@given(log_likelihoods)
def test_with_one_bin_it_is_the_gap_of_the_means(both: Given) -> None:
    found, truth = both
    gap = abs((found.argmax(axis=1) == truth).mean() - confidences(found).mean())

    assert expected_calibration_error(found, truth, bins=1) == pytest.approx(gap, abs=1e-12)
