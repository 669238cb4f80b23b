from __future__ import annotations

import json

import pytest

from bench.tables.drift import drift
from bench.tables.evidence import gather
from bench.tables.load import load_results

from .evidences import BASELINE, QUIET, Noise, SimulatedCell, simulated

CELLS = (BASELINE, SimulatedCell("nf4"))


def found(folder, speeds=None, accuracies=None, **changed):
    """What is said of baselines whose last runs had these speeds and accuracies, by seed, of 1,000 and 80 % before."""
    path = folder / "records.jsonl"
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    for entry in entries:
        if speeds:
            entry["measures"]["tokens_per_s"] = speeds[entry["seed"]] if entry["repeat"] else 1000
        if accuracies:
            entry["measures"]["accuracy_after"] = accuracies[entry["seed"]] if entry["repeat"] else 0.8
        entry.update(changed if entry["repeat"] else {})
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return drift(gather(load_results(folder)))


@pytest.fixture
def folder(tmp_path):
    return simulated(tmp_path / "r", CELLS, examples=20, sentinels=True)


def test_a_small_drift_is_one_sentence_with_its_range(folder):
    assert found(folder, [997, 1002, 1001], [0.8, 0.805, 0.795]) == [
        "Drift: the baseline's tokens/s changed by −0.3 to +0.2 % from the first to the last run of a block "  # noqa: RUF001
        "(n = 3 blocks).",
        "Drift: the baseline's accuracy changed by −0.5 to +0.5 points in the last run of a block "  # noqa: RUF001
        "(n = 3 blocks).",
    ]


def test_a_large_drift_names_its_seeds(folder):
    assert found(folder, [970, 1001, 1030], [0.8, 0.8, 0.8]) == [
        "Drift: the baseline's tokens/s changed by −3.0 % (seed 0), +3.0 % (seed 2) from the first to the last run of "  # noqa: RUF001
        "a block: differences in tokens/s of that size may be drift.",
        "Drift: the baseline's accuracy was the same in the last run of a block (n = 3 blocks).",
    ]


def test_a_simulated_drift_is_found(tmp_path):
    noise = Noise(**{**vars(QUIET), "log_drift": 0.05})
    speed, _ = drift(gather(load_results(simulated(tmp_path / "r", CELLS, examples=20, noise=noise, sentinels=True))))
    assert all(f"+5.1 % (seed {seed})" in speed for seed in range(3))


@pytest.mark.parametrize("changed", [{"status": "crashed"}, {"environment": {"execution_used": "eager"}}])
def test_runs_that_failed_or_ran_otherwise_say_nothing(folder, changed):
    assert found(folder, **changed) == []


def test_without_second_runs_there_is_nothing_to_say(tmp_path):
    assert drift(gather(load_results(simulated(tmp_path / "r", CELLS, examples=20)))) == []


def test_a_run_without_figures_is_left_out(folder):
    assert found(folder, [None, 1001, 1002], [None, None, None]) == [
        "Drift: the baseline's tokens/s changed by +0.1 to +0.2 % from the first to the last run of a block "
        "(n = 2 blocks)."
    ]
