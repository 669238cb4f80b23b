from __future__ import annotations

import pytest
import torch

from bench.cell import precision
from bench.cell.failures import Invalid
from tests.cell.examples import CPU, parameters


@pytest.mark.parametrize(
    ("asked", "dtype"),
    [("bfloat16", torch.bfloat16), ("float16", torch.float16), ("float32", torch.float32)],
)
def test_matrix_products_run_in_the_compute_dtype(asked: str, dtype: torch.dtype) -> None:
    ones = torch.ones(4, 4)

    with precision.autocast(parameters(compute_dtype=asked), CPU):
        product = ones @ ones

    assert product.dtype == dtype


@pytest.mark.parametrize(("asked", "enabled"), [("bfloat16", False), ("float16", True), ("float32", False)])
def test_losses_are_scaled_for_float16_gradients_only(asked: str, enabled: bool) -> None:
    assert precision.grad_scaler(parameters(compute_dtype=asked), CPU).is_enabled() == enabled


@pytest.mark.parametrize(("compute", "load"), [("bfloat16", "float16"), ("float16", "bfloat16")])
@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_two_16_bit_dtypes_in_one_quantized_cell_are_refused(kind: str, compute: str, load: str) -> None:
    asked = parameters(quant_type=kind, compute_dtype=compute, load_dtype=load)

    with pytest.raises(Invalid, match=f"autocast to {compute} cannot mix with parameters in {load}") as caught:
        precision.check_supported(asked, CPU)
    assert caught.value.fix
    precision.check_supported(parameters(quant_type="none", compute_dtype=compute, load_dtype=load), CPU)
    precision.check_supported(parameters(quant_type=kind, compute_dtype=compute, load_dtype="float32"), CPU)


@pytest.mark.parametrize("load", ["bfloat16", "float16"])
def test_float32_products_of_unquantized_16_bit_weights_are_refused(load: str) -> None:
    with pytest.raises(Invalid, match=f"unquantized weights in {load}"):
        precision.check_supported(parameters(compute_dtype="float32", load_dtype=load), CPU)
    precision.check_supported(parameters(quant_type="nf4", compute_dtype="float32", load_dtype=load), CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
def test_a_gpu_that_torch_does_not_see_is_refused() -> None:
    with pytest.raises(Invalid, match="torch sees none"):
        precision.check_supported(parameters(), torch.device("cuda", 0))
