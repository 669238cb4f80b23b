from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from transformers import set_seed

from bench.cell import adapters, encoding, quantize, steps
from bench.matrix.parameters import Parameters
from benchmarks import step_prediction_trace as trace
from benchmarks.kernel_groups import by_group, collect
from benchmarks.step_prediction_cell import linear_share
from benchmarks.step_time_cell import STEP, kernel_runs, record_step, synchronizations_count
from tests.models import VOCABULARY, config

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LAYERS_COUNT = 14  # seven in each of two blocks


@pytest.fixture(params=[False, True], ids=["kept", "checkpointing"])
def step(request, tmp_path):
    """Events of a step of a small 4-bit model, and whether it computes once more what it does not keep."""
    config("qwen2").save_pretrained(tmp_path)
    parameters = Parameters(
        model=str(tmp_path), weights="random", max_length=16, batch_size=2, max_steps=2, kbit_upcast=False,
        optim="adamw_torch", gradient_checkpointing=request.param,
    )  # fmt: skip
    set_seed(0)
    model, _ = quantize.load(parameters, CPU)
    adapters.adapt(model, parameters)
    batches = list(encoding.steps(encoding.synthetic_examples(VOCABULARY, 16), parameters, 0))
    it = steps.trainee(model, parameters, 2)
    steps.take(it, batches[0])
    forwards = [layer.forward for layer in trace.linear_layers(model)]
    with trace.ranges(model):
        events = record_step(it, batches[1])
    assert [layer.forward for layer in trace.linear_layers(model)] == forwards
    assert len(forwards) == LAYERS_COUNT
    return events, request.param


def test_kernels_of_linear_layers_are_told_forward_and_backward(step):
    events, checkpointing = step
    runs = list(trace.told_runs(events, CPU))
    linear, rest = (Counter(name for is_linear, name, _ in runs if is_linear is kind) for kind in (True, False))

    assert None not in {is_linear for is_linear, *_ in runs}
    # Forward and backward, and forward once more. Without checkpointing the embeddings have no gradient, so that the
    # first block's q_proj, k_proj and v_proj do without one of their input.
    assert linear["bitsandbytes::dequantize_4bit"] == LAYERS_COUNT * (3 if checkpointing else 2) - 3 * (
        not checkpointing
    )
    assert rest["bitsandbytes::dequantize_4bit"] == 0
    # The output head's: forward, and the gradient of its input.
    assert rest["aten::mm"] == 2
    names = {group for group, figures in by_group(collect((name, 0.0) for name in linear.elements())).items()}
    assert not names & {"attention", "loss", "optimizer", "norm, reduction", "indexing"}
    assert rest["aten::silu"] == 2 * (1 + checkpointing)


def test_both_kinds_make_up_the_step(step):
    events, _ = step

    found = linear_share(events, CPU)

    assert found["traced_share"] == pytest.approx(1)
    whole = by_group(collect(kernel_runs(events, CPU)))
    assert set(found["linear_groups"]) < set(whole)
    assert all(figures["total_s"] <= whole[group]["total_s"] for group, figures in found["linear_groups"].items())


# As a GPU's profile looks ---------------------------------------------------------------------------------------------


def event(name, start, end, parent=None, *, kernels=(), thread=1, number=-1, scope=0, of_thread=0, device="cpu"):
    """A profiler's event from `start` to `end` µs."""
    made = FunctionEvent(
        0, name, thread, start, end, fwd_thread=of_thread, sequence_nr=number, scope=scope,
        is_user_annotation=scope == 7,
        device_type=DeviceType.CUDA if device == "cuda" else DeviceType.CPU,
    )  # fmt: skip
    for kernel, duration in kernels:
        made.append_kernel(kernel, 0, duration)
    if parent is not None:
        made.set_cpu_parent(parent)
    return made


def gpu_step(*, linked=True):
    """A linear layer's product forward and backward, between a norm's; the update waits for the GPU."""
    step = event(STEP, 0, 100, scope=7)
    layer = event(trace.LINEAR, 10, 20, step, scope=7)
    host = [
        step,
        event("aten::mul", 1, 5, step, number=6, kernels=[("norm_kernel", 3.0)]),
        layer,
        event("aten::view", 11, 12, layer, number=7),
        event("aten::mm", 12, 19, layer, number=7, kernels=[("gemm", 40.0)]),
        event("aten::sum", 21, 25, step, number=8, kernels=[("reduce_kernel", 2.0)]),
        event("cudaDeviceSynchronize", 90, 95, step),
        event("cudaDeviceSynchronize", 101, 105),
    ]
    for place, (name, number, kernel) in enumerate(
        [("SumBackward0", 8, "expand"), ("MmBackward0", 7, "gemm"), ("MulBackward0", 6, "norm_kernel")]
    ):
        at, of_thread = 30 + 10 * place, 1 if linked else 3
        around = event(f"{trace.EVALUATION}{name}", at, at + 9, thread=2, number=number, of_thread=of_thread)
        node = event(name, at + 1, at + 6, around, thread=2, number=number, scope=1, of_thread=of_thread)
        host += [
            around,
            node,
            event("aten::mm", at + 2, at + 5, node, thread=2, kernels=[(kernel, 10.0)]),
            event("aten::add_", at + 7, at + 8, around, thread=2, kernels=[("add", 1.0)]),
        ]
    launched = [(kernel.name, kernel.duration) for one in host for kernel in one.kernels]
    # The host's ranges appear on the GPU too.
    shown = [(STEP, 90.0), (trace.LINEAR, 45.0), *launched]
    return [*host, *(event(name, 0, duration, device="cuda") for name, duration in shown)]


def test_on_a_gpu_kernels_are_told_by_the_operator_that_launched_them():
    events = gpu_step()

    assert list(kernel_runs(events, CUDA)) == [
        ("norm_kernel", pytest.approx(3e-6)), ("gemm", pytest.approx(40e-6)), ("reduce_kernel", pytest.approx(2e-6)),
        *[(name, pytest.approx(seconds))
          for kernel in ("expand", "gemm", "norm_kernel") for name, seconds in ((kernel, 1e-5), ("add", 1e-6))],
    ]  # fmt: skip
    assert synchronizations_count(events, CUDA) == 1
    linear = [(name, seconds) for is_linear, name, seconds in trace.told_runs(events, CUDA) if is_linear]
    assert [name for name, _ in linear] == ["gemm", "gemm", "add"]
    assert sum(seconds for _, seconds in linear) == pytest.approx(51e-6)


def test_what_cannot_be_told_is_not_believed():
    found = linear_share(gpu_step(linked=False), CUDA)

    assert found["linear_groups"] is None
    assert found["traced_share"] == pytest.approx(45 / 78)


def test_no_kernels_are_no_share():
    assert linear_share([event("aten::mm", 0, 1)], CUDA) == {"traced_share": 0.0, "linear_groups": None}
