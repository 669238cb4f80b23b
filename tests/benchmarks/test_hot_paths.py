from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest

from benchmarks.hot_paths.__main__ import HERE
from benchmarks.hot_paths.clock import ReferenceClock
from benchmarks.hot_paths.loops import records_loop
from tests.benchmarks.scripts import script

FEW = ("-k", "load_matrix", "--benchmark-min-rounds=5")
TWICE = """\
from bench.matrix import expand

once = expand.load_matrix
expand.load_matrix = lambda path: (once(path), once(path))[1]
"""


def test_the_clock_counts_reference_loops() -> None:
    clock, counted = ReferenceClock(records_loop), []

    for _ in range(9):
        start = clock()
        records_loop()
        records_loop()
        counted.append(clock() - start)

    assert median(counted) == pytest.approx(2, rel=0.4)


def test_the_baseline_has_every_hot_path_and_nothing_of_a_machine() -> None:
    collected = script("hot_paths", "--collect-only", "--quiet")
    baseline = json.loads((HERE / "baseline.json").read_text())

    assert collected.returncode == 0, collected.stdout
    names = [line for line in collected.stdout.splitlines() if "::" in line]
    assert [entry["fullname"] for entry in baseline["benchmarks"]] == names
    assert (baseline["machine_info"], baseline["commit_info"]) == ({"unit": "reference loop"}, {})
    assert all("data" not in entry["stats"] for entry in baseline["benchmarks"])


@pytest.mark.slow
def test_a_hot_path_that_takes_twice_as_long_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "twice.py").write_text(TWICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    baseline = f"--baseline={tmp_path / 'baseline.json'}"

    made = script("hot_paths", baseline, "--new-baseline", *FEW)
    unchanged = script("hot_paths", baseline, *FEW)
    slower = script("hot_paths", baseline, *FEW, "-p", "twice")

    assert made.returncode == unchanged.returncode == 0, made.stdout + unchanged.stdout
    assert "Name (time in reference loops)" in unchanged.stdout
    assert "machine_info is different" not in unchanged.stdout + unchanged.stderr
    assert slower.returncode != 0
    assert "load_matrix (base) - Field 'median' has failed PercentageRegressionCheck" in slower.stdout + slower.stderr


def test_a_baseline_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = script("hot_paths", "--baseline", tmp_path / "none.json")

    assert done.returncode == 2
    assert f"there is no baseline {tmp_path / 'none.json'}: name another, or make it with --new-baseline" in done.stderr
