from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.cell import launches
from bench.cell.kernels import Launched, Operation
from bench.cell.launches import Clock, Recorder, cache_bytes, plan, rotated_bytes
from tests.cell.examples import CPU


def operation(size_bytes: int = 64, moved_bytes: int = 0, flops_count: int = 0, launched: Launched = "cuda_graph",
              seen: list[int] | None = None) -> Operation:  # fmt: skip
    """Return an operation on one tensor, which notes the address that each launch reads."""
    operands = SimpleNamespace(
        x=torch.zeros(size_bytes, dtype=torch.uint8, device="meta" if size_bytes > 1024 else CPU)
    )

    def run() -> None:
        if seen is not None:
            seen.append(operands.x.data_ptr())

    return Operation(run, ((operands, "x"),), ((operands.x,),), 0, 0, moved_bytes, flops_count, launched)


@given(
    size=st.integers(1, 10**10), cache=st.integers(1, 10**9), moved=st.integers(0, 10**11), flops=st.integers(0, 10**14)
)
def test_a_round_is_long_enough_and_its_operands_outgrow_the_cache(
    size: int, cache: int, moved: int, flops: int
) -> None:
    of = operation(size + 1024, moved, flops)

    count, sets = plan(of, cache)

    assert 1 <= sets <= count <= launches.MOST_LAUNCHES
    needed = rotated_bytes(of, cache)
    assert needed == (2 if flops / launches.FLOPS_PER_S > moved / launches.BYTES_PER_S else 16) * cache
    assert sets * of.set_bytes >= needed or sets == launches.MOST_LAUNCHES
    least_s = max(launches.SHORTEST_S, moved / launches.BYTES_PER_S, flops / launches.FLOPS_PER_S)
    assert count * least_s >= launches.ROUND_S * 0.999 or count == launches.MOST_LAUNCHES
    # No more than needed for either.
    assert count == sets or (count - 1) * least_s < launches.ROUND_S
    assert sets == 1 or (sets - 1) * of.set_bytes < needed


@pytest.mark.parametrize("launched", ["queued", "eager"])
def test_rounds_that_python_launches_are_short_and_rotate_through_as_much(launched: Launched) -> None:
    count, sets = plan(operation(size_bytes=1000, launched=launched), cache_bytes=5000)

    assert (count, sets) == (launches.PYTHON_LAUNCHES[launched], 16 * 5)


def test_layers_with_adapters_have_fewer_launches() -> None:
    of = replace(operation(), adapted=True)

    assert plan(of, cache_bytes=10**9) == (launches.MOST_ADAPTED_LAUNCHES,) * 2


def test_on_a_cpu_a_round_is_one_launch_on_the_next_operands() -> None:
    seen: list[int] = []
    with Recorder(CPU).round_of(operation(seen=seen)) as round_:
        for _ in range(2 * launches.CPU_SETS):
            round_.hold()
            round_.play()

    assert (round_.launch, round_.launches_count, round_.warnings) == ("host", 1, ())
    assert round_.rotated_bytes == launches.CPU_SETS * 64
    assert len(set(seen)) == launches.CPU_SETS
    assert seen[: launches.CPU_SETS] == seen[launches.CPU_SETS :]
    assert cache_bytes(CPU) is None


def test_the_clock_of_a_cpu_counts_seconds_of_a_launch() -> None:
    clock = Clock(CPU)
    clock.launches_count = 4

    began = time.perf_counter()
    started = clock()
    time.sleep(0.02)
    seconds = clock() - started
    lasted = time.perf_counter() - began

    assert 0.02 <= seconds * 4 <= lasted
    assert clock.__name__ == "perf_counter"
