"""What only a CUDA GPU shows of single layers. Run with `nox -s gpu`; skipped where there is none."""

from __future__ import annotations

import itertools
import statistics
from typing import Any

import pytest
import torch

from bench.cell import kernels, launches, peaks
from bench.cell.kernels import Operation, prepare
from bench.cell.launches import Clock, Recorder, Round
from bench.matrix.kernel_parameters import KernelParameters
from tests.cell.test_kernels import NONE, QUANTIZED, base_weight, case, distance, operands_of, words

pytestmark = pytest.mark.gpu

GPU = torch.device("cuda", 0)
NF4 = QUANTIZED[0]


@pytest.fixture(scope="module")
def recorder() -> Recorder:
    return Recorder(GPU)


def time_s(operation: Operation, recorder: Recorder, rounds: int = 15) -> tuple[float, Round]:
    clock = Clock(GPU)
    with recorder.round_of(operation) as round_:
        clock.launches_count = round_.launches_count
        round_.play()
        seconds = []
        for _ in range(rounds):
            round_.hold()
            started = clock()
            round_.play()
            seconds.append(clock() - started)
    return statistics.median(seconds), round_


@pytest.fixture(scope="module")
def copied_bytes_per_s(recorder: Recorder) -> float:
    operation = peaks.copy(GPU)
    return operation.moved_bytes / time_s(operation, recorder)[0]


@pytest.mark.parametrize(
    ("operation", "quantization"),
    [
        *itertools.product(["quantize", "dequantize"], QUANTIZED),
        *itertools.product(["forward", "forward_backward"], [*QUANTIZED, NONE]),
    ],
    ids=str,
)
def test_every_operation_is_timed_and_none_is_faster_than_memory(
    operation: str, quantization: dict[str, Any], recorder: Recorder, copied_bytes_per_s: float
) -> None:
    # A launch that a graph did not record would take no time at all.
    p = case(**quantization, operation=operation, layer="8192x8192", rows=512, lora_r=16, compute_dtype="bfloat16")
    prepared = prepare(p, GPU)

    seconds, round_ = time_s(prepared, recorder)

    assert prepared.moved_bytes / seconds < 1.2 * copied_bytes_per_s  # reading alone is faster than copying
    assert round_.launch == prepared.launched
    assert round_.warnings == ()
    needed = launches.rotated_bytes(prepared, launches.cache_bytes(GPU) or 0)
    assert round_.rotated_bytes >= needed


def test_a_graph_takes_the_time_of_the_launches_that_it_holds(recorder: Recorder) -> None:
    # Long kernels hide what Python takes, so that events around launches from Python see the same.
    operation = prepare(case(**NONE, layer="8192x8192", rows=8192, compute_dtype="bfloat16"), GPU)
    seconds, _ = time_s(operation, recorder)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    operation.launch(0)
    torch.cuda._sleep(1_000_000)
    start.record()
    for _ in range(20):
        operation.launch(0)
    end.record()
    end.synchronize()

    # Long products draw so much power that clocks fall.
    assert seconds == pytest.approx(start.elapsed_time(end) / 20 / 1e3, rel=0.2)


def test_twice_the_work_takes_twice_the_time(recorder: Recorder) -> None:
    small, large = (time_s(prepare(case(**NF4, operation="dequantize", layer=layer, compute_dtype="bfloat16"), GPU),
                           recorder)[0] for layer in ("8192x8192", "16384x8192"))  # fmt: skip

    assert large / small == pytest.approx(2, rel=0.25)


@pytest.mark.parametrize("quantization", QUANTIZED[:3], ids=words)
@pytest.mark.parametrize(("rows", "fused"), [(1, True), (4, True), (4096, False), (16384, False)])
def test_few_rows_take_the_fused_kernel_and_many_a_dequantized_copy(
    rows: int, fused: bool, quantization: dict[str, Any]
) -> None:
    p = case(**quantization, layer="4096x4096", rows=rows, compute_dtype="bfloat16")
    operation = prepare(p, GPU)

    assert kernels.is_fused(operation, p, GPU) is fused
    scratch = kernels.scratch_bytes(operation, GPU)
    assert scratch is not None
    assert (scratch < 4096 * 4096) if fused else (2 * 4096**2 <= scratch < 3 * 4096**2)


def test_an_unquantized_layer_needs_nothing_besides() -> None:
    p = case(**NONE, layer="4096x4096", rows=512, compute_dtype="bfloat16")
    operation = prepare(p, GPU)

    assert kernels.is_fused(operation, p, GPU) is None
    assert kernels.scratch_bytes(operation, GPU) == 0


@pytest.mark.parametrize("quantization", [*QUANTIZED, NONE], ids=words)
@pytest.mark.parametrize("layer", ["128x192", "64x128", "100x60", "33x17"])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_a_gpu_multiplies_by_the_dequantized_weight(layer: str, rows: int, quantization: dict[str, Any]) -> None:
    p = case(**quantization, layer=layer, rows=rows)
    operation = prepare(p, GPU)

    y = operation.launch(0)

    # In float64, since products of float32 would be another matter of rounding.
    expected = operands_of(operation)["x"].double() @ base_weight(p, GPU).double().T
    assert distance(y.double(), expected) < (3e-2 if p.quant_type == "int8" else 1e-3)


def test_memory_of_a_round_is_free_afterwards(recorder: Recorder) -> None:
    def once() -> int:
        p = KernelParameters(layer="4096x4096", rows=4096, lora_r=16, operation="forward_backward")
        operation = prepare(p, GPU)
        time_s(operation, recorder, rounds=1)
        return torch.cuda.memory_reserved(GPU)

    once()
    first = once()
    assert [once() for _ in range(5)] == [first] * 5


@pytest.mark.parametrize("operation", ["forward", "dequantize"])
def test_rotating_through_more_memory_changes_nothing(
    operation: str, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(case(**NF4, operation=operation, layer="3584x3584", rows=1, compute_dtype="bfloat16"), GPU)
    seconds, _ = time_s(prepared, recorder)
    monkeypatch.setitem(launches.CACHES_ROTATED, "memory", 2 * launches.CACHES_ROTATED["memory"])

    assert time_s(prepared, recorder)[0] == pytest.approx(seconds, rel=0.05)
