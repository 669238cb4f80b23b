from __future__ import annotations

import os
import time

import numpy as np
import pytest

from bench.cell import meters
from bench.cell.encoding import TokenizedExample, collate
from bench.cell.meters import Step, StepClock
from tests.cell.examples import CPU

MB = 10**6


def steps(seconds: list[float], **given: int) -> list[Step]:
    counts = {"examples": 4, "real_tokens": 90, "padded_tokens": 120, "loss_tokens": 10, **given}
    return [Step(time, **counts) for time in seconds]


def test_a_step_counts_the_tokens_of_all_its_batches() -> None:
    batches = [collate([TokenizedExample((1, 2, 3), (4, 0))]), collate([TokenizedExample((1,) * 9, (5, 0))] * 2)]

    # 5 tokens padded to 8, and twice 11 padded to 16.
    assert Step.of(batches, 0.5) == Step(0.5, examples=3, real_tokens=27, padded_tokens=40, loss_tokens=6)


def test_rates_leave_the_warm_up_out() -> None:
    found = meters.throughput(steps([100.0] * meters.WARMUP_STEPS + [2.0, 4.0, 4.0, 6.0, 4.0]))

    assert found == {
        "timed_steps_count": 5,
        "step_p50_s": 4.0,
        "step_p95_s": pytest.approx(5.6),
        "step_iqr_s": 0.0,
        "examples_per_s": 20 / 20,
        "tokens_per_s": 450 / 20,
        "padded_tokens_per_s": 600 / 20,
        "loss_tokens_per_s": 50 / 20,
    }


@pytest.mark.parametrize(("taken", "timed"), [(1, 1), (2, 1), (3, 2), (8, 4), (10, 5), (11, 6), (313, 308)])
def test_the_warm_up_is_never_more_than_half_of_the_steps(taken: int, timed: int) -> None:
    assert meters.throughput(steps([1.0] * taken))["timed_steps_count"] == timed


def test_steps_of_different_sizes_weigh_as_they_should() -> None:
    # 100 tokens in 1 s and 100 in 4 s are 200 in 5 s, not the mean of 100 and 25 a second.
    uneven = [*steps([1.0], real_tokens=100), *steps([4.0], real_tokens=100)] * 2

    assert meters.throughput(uneven)["tokens_per_s"] == pytest.approx(200 / 5)


def test_without_steps_there_are_no_rates() -> None:
    assert meters.throughput([]) == {}
    assert meters.p50_s([]) is None


def test_a_clock_reads_the_time_between_ends_of_steps_and_not_between_stretches() -> None:
    batch = collate([TokenizedExample((1, 2, 3), (4, 0))])
    clock = StepClock(CPU)

    clock.start()
    for wait_s in (0.02, 0.04):
        time.sleep(wait_s)
        clock.tick([batch])
    time.sleep(0.3)
    clock.start()
    clock.tick([batch])

    seconds = [step.seconds for step in clock.readings()]
    assert len(seconds) == 3
    assert 0.02 <= seconds[0] < 0.3
    assert 0.04 <= seconds[1] < 0.3
    assert seconds[2] < 0.02


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="this kernel resets no peaks")
def test_peaks_are_those_since_the_reset() -> None:
    meters.reset_peaks(CPU)
    start = meters.peak_rss_bytes()
    block = np.ones(200 * MB, dtype=np.uint8)
    during = meters.peak_rss_bytes()
    del block
    assert during - start > 190 * MB
    assert meters.peak_rss_bytes() > during - MB  # a peak stays, within the kernel's own rounding

    meters.reset_peaks(CPU)

    assert meters.peak_rss_bytes() < during - 150 * MB


def test_a_cpu_has_no_counters_of_torchs_allocator() -> None:
    found = meters.peaks(CPU)

    assert found.pop("peak_rss_bytes") > 50 * MB
    assert found == {"peak_allocated_bytes": None, "peak_requested_bytes": None, "peak_reserved_bytes": None}


def test_a_cpu_has_no_memory_of_a_gpu() -> None:
    assert meters.taken(CPU) == {"process_bytes": None, "outside_torch_bytes": None}
    assert meters.context_bytes(CPU) is None
