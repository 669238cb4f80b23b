from __future__ import annotations

from dataclasses import replace
from math import inf, nan

import pytest

from bench.tables.differences import about_watched, bytes_text, decimals_of, difference_text, labels, size_text
from bench.tables.evidence import ACCURACY, LOSS, PEAK, SPEED, STORED, Watched

from .evidences import alike, evidence


@pytest.mark.parametrize(
    ("measure", "estimate", "low", "high", "text"),
    [
        (ACCURACY, -1.4712, -2.3412, -0.6012, "−1.5 ± 0.9 points"),  # noqa: RUF001
        (ACCURACY, 0.46, 0.34, 0.58, "+0.46 ± 0.12 points"),
        (ACCURACY, 0.01, -0.3, 0.32, "0.0 ± 0.3 points"),
        (ACCURACY, 1.2, -14, 16.4, "+1 ± 15 points"),
        (ACCURACY, 0.52, nan, nan, "+0.5 points"),
        (ACCURACY, nan, nan, nan, "–"),  # noqa: RUF001
        (SPEED, -5.81, -6.2, -5.4, "−5.8 ± 0.4 %"),  # noqa: RUF001
        (LOSS, 0.0371, 0.0271, 0.0471, "+0.037 ± 0.010 nats"),
        (LOSS, 0.0371, 0.0371, 0.0371, "+0.037 ± 0.000 nats"),
        (STORED, -4.9, -4.9, -4.9, "−4.9 MB"),  # noqa: RUF001
        (PEAK, 138.7, -627.4, 937.5, "−627.4 to +937.5 MB"),  # noqa: RUF001
        (PEAK, 0.0, 0.0, 0.0, "0 B"),
    ],
)
def test_a_difference_is_written_no_finer_than_it_is_known(measure, estimate, low, high, text):
    assert difference_text(measure, estimate, low, high) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (1_560_000_000, 1_560_000_000, "+1.56 GB"),
        (-304_100_000, -304_100_000, "−304.1 MB"),  # noqa: RUF001
        (-1536, -1536, "−1.5 kB"),  # noqa: RUF001
        (0, 512, "0 to +512 B"),
        (-1_000_000, 2_000_000_000, "0.00 to +2.00 GB"),
    ],
)
def test_bytes_have_the_unit_that_fits_the_larger_end(low, high, text):
    assert bytes_text(low, high) == text


@pytest.mark.parametrize(("size", "text"), [(0.84, "0.8 points"), (0.0, "0.0 points"), (20.4, "20 points"), (nan, "–")])  # noqa: RUF001
def test_a_size_has_no_sign(size, text):
    assert size_text(ACCURACY, size) == text


@pytest.mark.parametrize(
    ("half_width", "decimals"), [(0.9, 1), (0.14, 2), (1.4, 1), (3.2, 1), (15, 0), (0.0021, 3), (0.0003, 3), (inf, 0)]
)
def test_an_uncertainty_shows_one_figure_or_two(half_width, decimals):
    assert decimals_of(half_width) == decimals


def test_confusions_are_numbered_only_where_there_are_several():
    found = evidence(alike(1), seeds=(0,), examples=40)
    assert about_watched(found) == ""
    assert labels(found)["accuracy_after"] == "accuracy"
    one, other = (Watched(names) for names in (("a", "b"), ("a", "c")))
    found = replace(found, watched=(one,))
    assert labels(found)[one.compared.name] == "confused"
    assert about_watched(found) == "Confused: of the test examples of a and b, the share taken for the other one."
    found = replace(found, watched=(one, other))
    assert [labels(found)[pair.compared.name] for pair in (one, other)] == ["confused 1", "confused 2"]
