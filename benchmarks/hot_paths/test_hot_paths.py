"""What a user waits for while nothing trains: a matrix is expanded, records are loaded, cells are compared."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence, Sized
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench.matrix.expand import load_matrix
from bench.tables.comparisons import comparisons_table
from bench.tables.effects import effects_table
from bench.tables.evidence import Evidence, gather
from bench.tables.load import load_results
from benchmarks.hot_paths.clock import ReferenceClock
from benchmarks.hot_paths.loops import frames_loop, records_loop
from benchmarks.simulated import BASELINE, SimulatedCell, simulated

in_records_loops = pytest.mark.benchmark(timer=ReferenceClock(records_loop), disable_gc=True)
in_frames_loops = pytest.mark.benchmark(timer=ReferenceClock(frames_loop), disable_gc=True)

MATRIX = """\
schema: 1
name: large
about: Every choice with every other.
defaults: {model: smollm2-135m, task: banking77}
axes:
  quant_type: [nf4, fp4]
  double_quant: [false, true]
  compute_dtype: [bfloat16, float16, float32]
  target_modules: [all-linear, attention]
  lora_r: [4, 8, 16, 32, 64, 128, 256]
  learning_rate: [1e-4, 2e-4, 5e-4]
  batch_size: [8, 16, 32, 64]
include:
  - {id: lora-bf16, quant_type: none}
baseline: lora-bf16
"""
CELLS_COUNT = 2 * 2 * 3 * 2 * 7 * 3 * 4 + 1
RANKS_COUNT = 83

Timed = Callable[[Callable[[], Sized], int], None]


@pytest.fixture
def timed(benchmark: BenchmarkFixture, pytestconfig: pytest.Config) -> Iterator[Timed]:
    """Give what times a function in --benchmark-min-rounds rounds, and checks how much it returns."""

    def collect() -> None:
        gc.collect()  # what the round before has left: in a round, nothing is collected

    def time(function: Callable[[], Sized], expected_count: int) -> None:
        rounds = pytestconfig.getoption("benchmark_min_rounds")
        found = benchmark.pedantic(function, setup=collect, warmup_rounds=1, rounds=rounds)
        if len(found) != expected_count:
            pytest.fail(f"{len(found)} of {expected_count}")

    # What is there by now stays, and need not be looked through before each round.
    gc.freeze()
    yield time
    gc.unfreeze()


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a result without files of examples."""
    cells = crossed(quant_type=("nf4", "fp4"), double_quant=(False, True), lora_r=range(1, 1 + RANKS_COUNT))
    return simulated(tmp_path_factory.mktemp("records"), cells, examples=20, files=False)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Return the runs of a result with files of examples."""
    cells = crossed(quant_type=("nf4", "fp4"), double_quant=(False, True))
    watched = [("card_arrival", "card_delivery_estimate")]
    return load_results(simulated(tmp_path_factory.mktemp("compared"), cells, watch_pairs=watched))


@pytest.fixture(scope="module")
def evidence(compared: pd.DataFrame) -> Evidence:
    return gather(compared)


def crossed(**axes: Sequence[Any]) -> tuple[SimulatedCell, ...]:
    """Return the baseline and the cells of a cross."""
    values = product(*axes.values())
    cells = (SimulatedCell(f"c{number}", dict(zip(axes, row, strict=True))) for number, row in enumerate(values))
    return BASELINE, *cells


@in_records_loops
def test_load_matrix(timed: Timed, tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(MATRIX)
    timed(lambda: load_matrix(path).cells, CELLS_COUNT)


@in_records_loops
def test_load_results(timed: Timed, records: Path) -> None:
    timed(lambda: load_results(records), 3 * (1 + 4 * RANKS_COUNT))


@in_frames_loops
def test_gather(timed: Timed, compared: pd.DataFrame) -> None:
    timed(lambda: gather(compared).cells, 1 + 4)


@in_frames_loops
def test_comparisons_table(timed: Timed, evidence: Evidence) -> None:
    timed(lambda: comparisons_table(evidence).rows, 4)


@in_frames_loops
def test_effects_table(timed: Timed, evidence: Evidence) -> None:
    effects_count = 4  # 16-bit to nf4 and to fp4, nf4 to fp4, double quantization
    timed(lambda: effects_table(evidence).rows, effects_count * len(evidence.measures))
