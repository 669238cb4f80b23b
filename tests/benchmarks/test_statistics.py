from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from benchmarks.intervals import share_of
from benchmarks.simulated import Noise, answers, true_loss
from benchmarks.statistics import SECTIONS, Check, show, timed

from .scripts import script


@pytest.mark.parametrize(
    ("right", "least", "most", "holds"),
    [(50, 0, 0.05, True), (80, 0, 0.05, False), (950, 0.93, 0.97, True), (850, 0.93, 0.97, False)],
)
def test_a_check_holds_where_its_binomial_interval_reaches_what_it_should_be(
    right: int, least: float, most: float, holds: bool
) -> None:
    check = Check("a", share_of(right / 1000, 1000), least, most)
    console = Console(width=120)

    with console.capture() as captured:
        show("title", [check], console)

    assert check.holds == holds
    assert ("✗" in captured.get()) != holds


def test_what_is_simulated_has_the_truth_that_it_was_given() -> None:
    noise = Noise(example=1, seed=0.3, run=0.3, cell_example=1, run_example=1)

    sums = answers([0.7, 0.9], 2, 300, noise, np.random.default_rng(0), 1000)

    assert sums.shape == (1000, 2, 2, 300)
    assert (sums > 0).mean(axis=(0, 2, 3)) == pytest.approx([0.7, 0.9], abs=0.01)
    assert np.exp(-0.6 * sums).mean(axis=(0, 2, 3)) == pytest.approx([true_loss(0.7), true_loss(0.9)], rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("title", list(SECTIONS))
def test_the_statistics_keep_what_they_promise(title: str) -> None:
    checks = list(SECTIONS[title](60, np.random.default_rng(5)))

    assert [check for check in checks if not check.holds] == []


@pytest.mark.slow
def test_the_time_of_each_analysis_is_told() -> None:
    seconds = timed(300)

    assert list(seconds) == ["load", "gather", "comparisons", "effects", "front", "drift", "all"]
    assert seconds["all"] == pytest.approx(sum(list(seconds.values())[:-1]))


@pytest.mark.slow
def test_the_script_prints_everything_and_writes_its_figures(tmp_path: Path) -> None:
    out = tmp_path / "statistics.json"

    done = script("statistics", "--matrices", "3", "--records", "300", "--out", out)

    assert (done.returncode, done.stderr) == (0, "")
    assert all(title in done.stdout for title in SECTIONS)
    assert "300 records" in done.stdout
    figures = json.loads(out.read_text())
    assert list(figures["checks"]) == list(SECTIONS)
    assert figures["seconds"]["load"] > 0
