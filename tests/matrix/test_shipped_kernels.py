"""The matrices of kernels that come with the project."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.expand import load_matrix
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.kernels import KernelMatrix, load_kernels

FOLDER = Path(__file__).parents[2] / "matrices"
SHIPPED = pytest.mark.parametrize("name", ["kernels", "kernels-cpu"])
KINDS = [("nf4", False), ("nf4", True), ("fp4", False), ("fp4", True), ("int8", False), ("none", False)]
LADDER = {8, 32, 64, 128, 256}


def shipped(name: str) -> KernelMatrix:
    return load_kernels(FOLDER / f"{name}.yaml")


@SHIPPED
def test_a_matrix_opens_with_the_command_that_runs_it_and_no_other_one_takes_it(name: str) -> None:
    matrix = shipped(name)
    assert matrix.name == name
    assert matrix.text.splitlines()[0] == f"# nox -s kernels -- matrices/{name}.yaml"
    with pytest.raises(BenchError, match=f"this matrix is of kernels; nox -s kernels -- .*/{name}.yaml runs it"):
        load_matrix(matrix.path)


@SHIPPED
def test_cases_to_be_compared_follow_one_another(name: str) -> None:
    """Each kind of quantization stands beside the others, its 16-bit one included, with nothing else between them."""

    def layer(parameters: KernelParameters) -> tuple[object, ...]:
        return tuple(parameters.model_dump(exclude={"quant_type", "double_quant"}).values())

    of = [layer(case.parameters) for case in shipped(name).cases]
    blocks = 1 + sum(one != other for one, other in pairwise(of))
    assert blocks == len(set(of))


@SHIPPED
def test_every_quantized_layer_is_there_in_16_bits(name: str) -> None:
    parameters = [case.parameters for case in shipped(name).cases if case.parameters.compute_dtype != "float32"]
    whole = {p.model_copy(update={"quant_type": "nf4"}) for p in parameters if p.quant_type == "none"}
    for p in parameters:
        if p.operation in ("forward", "forward_backward"):
            assert p.model_copy(update={"quant_type": "nf4", "double_quant": False}) in whole


def test_the_matrix_for_a_gpu_times_what_it_says() -> None:
    parameters = [case.parameters for case in shipped("kernels").cases]
    assert len(parameters) == 1950
    plain = [p for p in parameters if p.rows not in LADDER and p.compute_dtype != "float32"]
    of_layers = Counter((p.model, p.layer, p.compute_dtype) for p in plain)
    dtypes = {"qwen2.5-7b": ("bfloat16", "float16"), "llama-3.1-8b": ("bfloat16",), "smollm2-135m": ("bfloat16",)}
    layers = ("q_proj", "k_proj", "gate_proj", "down_proj")
    # Six rows with and without adapters forward, three with backward, in six kinds; quantize and dequantize in five.
    assert of_layers == {
        (model, layer, dtype): (6 + 3) * 2 * 6 + 2 * 5
        for model in dtypes
        for layer in layers
        for dtype in dtypes[model]
    }
    assert {p.rows for p in plain if p.operation == "forward"} == {1, 4, 16, 512, 4096, 16384}
    assert {p.rows for p in plain if p.operation == "forward_backward"} == {512, 4096, 16384}
    assert {(p.quant_type, p.double_quant) for p in parameters} == set(KINDS)
    assert [(p.layer, p.rows, p.quant_type) for p in parameters if p.compute_dtype == "float32"] == [
        ("q_proj", 512, "nf4"),
        ("q_proj", 512, "none"),
    ]


def test_the_finer_ladder_of_rows_is_of_one_model_and_what_nf4_is_compared_with() -> None:
    fine = [case.parameters for case in shipped("kernels").cases if case.parameters.rows in LADDER]
    assert {(p.operation, p.model, p.compute_dtype, p.lora_r) for p in fine} == {
        ("forward", "qwen2.5-7b", "bfloat16", 0)
    }
    assert Counter((p.layer, p.rows, p.quant_type, p.double_quant) for p in fine) == {
        (layer, rows, *kind): 1
        for layer in ("q_proj", "k_proj", "gate_proj", "down_proj")
        for rows in LADDER
        for kind in (("nf4", False), ("nf4", True), ("none", False))
    }


def test_the_matrix_for_a_cpu_is_a_small_part_of_it() -> None:
    parameters = [case.parameters for case in shipped("kernels-cpu").cases]
    assert len(parameters) == 67
    assert {(p.model, p.layer) for p in parameters} == {("smollm2-135m", "k_proj"), ("smollm2-135m", "gate_proj")}
    assert Counter(p.operation for p in parameters) == {
        "forward": 31, "forward_backward": 20, "quantize": 8, "dequantize": 8,
    }  # fmt: skip
    assert {(p.quant_type, p.double_quant) for p in parameters} == {*KINDS} - {("fp4", True)}
    assert {(p.rows, p.lora_r) for p in parameters} == {(16, 0), (128, 0), (128, 16)}
    assert [p.layer for p in parameters if p.compute_dtype == "float32"] == ["k_proj"]
