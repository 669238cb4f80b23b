"""The benchmarks: the peaks of the device, every case of the matrix, and the peaks once more."""

from __future__ import annotations

from typing import Any

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from bench.cell import kernels
from bench.cell.kernels import Operation
from bench.cell.launches import Round, cache_bytes
from bench.matrix.kernels import Case
from benchmarks.kernels.session import Peak, Session, stated

# Rounds of a benchmark: as many as fit into the seconds.
LEAST_ROUNDS, MOST_ROUNDS = 5, 20
SECONDS = {"cuda": 0.02, "cpu": 0.2}


def test_peak(peak: Peak, session: Session, benchmark: BenchmarkFixture) -> None:
    time_peak(peak, 0, session, benchmark)


def test_kernel(case: Case, session: Session, benchmark: BenchmarkFixture) -> None:
    benchmark.group = case.id
    p = case.parameters
    with session.refusing(case):
        # Before the operation is there, since it takes memory too.
        benchmark.extra_info["weight_error"] = kernels.random_error(p, session.device)
        benchmark.extra_info["smollm2_weight_error"] = session.packaged_error(p)
        try:
            time_case(case, session, benchmark)
        except torch.OutOfMemoryError:
            if benchmark.stats is not None:
                raise
            session.free_memory()
            time_case(case, session, benchmark)


def time_case(case: Case, session: Session, benchmark: BenchmarkFixture) -> None:
    operation = kernels.prepare(case.parameters, session.device)
    benchmark.extra_info.update(describe(case, operation, session.device))
    round_ = time(operation, session, benchmark)
    benchmark.extra_info.update({
        "launch": round_.launch,
        "launches_count": round_.launches_count,
        "rotated_bytes": round_.rotated_bytes,
        "warnings": list(round_.warnings),
    })  # fmt: skip


def test_peak_again(peak: Peak, session: Session, benchmark: BenchmarkFixture) -> None:
    time_peak(peak, 1, session, benchmark)


def time_peak(peak: Peak, repeat: int, session: Session, benchmark: BenchmarkFixture) -> None:
    operation = peak.make(session.device)
    figures = {"moved_bytes": operation.moved_bytes, "flops_count": operation.flops_count}
    benchmark.extra_info.update({**peak.info, **figures, "repeat": repeat})
    time(operation, session, benchmark)


def time(operation: Operation, session: Session, benchmark: BenchmarkFixture) -> Round:
    """Hand rounds of launches to pytest-benchmark, whose figures are then seconds of one launch."""
    clock = session.clock
    with session.recorder.round_of(operation) as round_:
        clock.launches_count = round_.launches_count
        round_.play()
        started = clock()
        round_.play()
        seconds = (clock() - started) * round_.launches_count
        rounds = round(SECONDS[session.device.type] / seconds)
        rounds = min(MOST_ROUNDS, max(LEAST_ROUNDS, rounds))
        benchmark.pedantic(round_.play, setup=round_.hold, rounds=rounds, warmup_rounds=1)
        return round_


def describe(case: Case, operation: Operation, device: torch.device) -> dict[str, Any]:
    """Return what a case is, and what it has to compute and to move."""
    p = case.parameters
    shape = kernels.shape_of(p)
    return {
        "id": case.id,
        "parameters": stated(p),
        "out_features": shape.out_features,
        "in_features": shape.in_features,
        "flops_count": operation.flops_count,
        "moved_bytes": operation.moved_bytes,
        "stored_bytes": operation.stored_bytes,
        "scratch_bytes": kernels.scratch_bytes(operation, device),
        "fused": kernels.is_fused(operation, p, device),
        "cache_bytes": cache_bytes(device),
    }
