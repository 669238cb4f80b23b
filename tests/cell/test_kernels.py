from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell import kernels, peaks, weights
from bench.cell.failures import Invalid
from bench.cell.kernels import LinearShape, Operation, linear_shapes, prepare, rotated, shape_of
from bench.matrix.kernel_parameters import KernelParameters
from tests.cell.examples import CPU

QUANTIZED: list[dict[str, Any]] = [
    {"quant_type": "nf4", "double_quant": False},
    {"quant_type": "nf4", "double_quant": True},
    {"quant_type": "fp4", "double_quant": False},
    {"quant_type": "int8", "double_quant": False},
]
NONE: dict[str, Any] = {"quant_type": "none", "double_quant": False}
# Of int8, products of quantized inputs, whose rounding shows.
TOLERANCE = {"nf4": 1e-4, "fp4": 1e-4, "none": 1e-4, "int8": 2e-2}


def case(**given: Any) -> KernelParameters:
    return KernelParameters(**{"layer": "128x192", "rows": 6, "compute_dtype": "float32", **given})


def words(given: dict[str, Any]) -> str:
    return "-".join(str(value) for value in given.values())


def operands_of(operation: Operation) -> dict[str, torch.Tensor]:
    """Return what the first launch reads: inputs by name, and adapters by their shape."""
    return {
        name: tensor for (_, name), tensor in zip(operation.places, operation.sets[0], strict=True) if name != "data"
    }


def base_weight(p: KernelParameters, device: torch.device = CPU) -> torch.Tensor:
    """Return the weight that the layer computes with, as numbers."""
    shape, random = shape_of(p), torch.Generator(device).manual_seed(kernels.SEED)
    weight = weights.random_weight(shape.out_features, shape.in_features, torch.float32, random)
    return weight if p.quant_type == "none" else weights.dequantize(weights.quantize(weight, p), p)


def adapters_of(operation: Operation, p: KernelParameters) -> tuple[torch.Tensor, torch.Tensor]:
    found = [tensor for (_, name), tensor in zip(operation.places, operation.sets[0], strict=True)
             if name == "data" and p.lora_r in tensor.shape]  # fmt: skip
    a, b = found
    return a, b


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("lora_r", [0, 4])
@pytest.mark.parametrize("quantization", [*QUANTIZED, NONE], ids=words)
def test_forward_is_the_product_with_the_dequantized_weight(quantization: dict[str, Any], lora_r: int) -> None:
    p = case(**quantization, lora_r=lora_r)
    operation = prepare(p, CPU)

    y = operation.launch(0)

    x = operands_of(operation)["x"]
    expected = x @ base_weight(p).T
    if lora_r:
        a, b = adapters_of(operation, p)
        expected = expected + 2 * (x @ a.T) @ b.T  # lora_alpha is twice the rank
    assert y.shape == (6, 128)
    assert distance(y, expected) < TOLERANCE[p.quant_type]


@pytest.mark.parametrize("lora_r", [0, 4])
@pytest.mark.parametrize("quantization", [*QUANTIZED, NONE], ids=words)
def test_forward_and_backward_returns_the_gradients_of_input_and_adapters(
    quantization: dict[str, Any], lora_r: int
) -> None:
    p = case(**quantization, lora_r=lora_r, operation="forward_backward")
    operation = prepare(p, CPU)

    gradients = operation.launch(0)

    operands = operands_of(operation)
    x, dy, weight = operands["x"].detach(), operands["dy"], base_weight(p)
    expected = [dy @ weight]
    if lora_r:
        a, b = adapters_of(operation, p)
        expected = [dy @ weight + 2 * dy @ b @ a, 2 * (dy @ b).T @ x, 2 * dy.T @ (x @ a.T)]
    assert len(gradients) == len(expected)
    for ours, theirs in zip(gradients, expected, strict=True):
        assert distance(ours, theirs) < TOLERANCE[p.quant_type]


@pytest.mark.parametrize("quantization", QUANTIZED, ids=words)
def test_the_kernels_of_quantizing_are_launched_as_the_library_launches_them(quantization: dict[str, Any]) -> None:
    p = case(**quantization, operation="quantize")
    operation = prepare(p, CPU)

    packed, *_ = operation.launch(0)

    expected, _ = weights.quantize(operation.sets[0][0], p)
    assert torch.equal(packed, expected)


def test_double_quantization_launches_the_scales_too() -> None:
    p = case(quant_type="nf4", double_quant=True, operation="quantize")
    operation = prepare(p, CPU)

    _, offset, (scales, nested) = operation.launch(0)

    _, state = weights.quantize(operation.sets[0][0], p)
    assert torch.equal(offset, state.offset)
    assert torch.equal(scales, state.absmax)
    assert torch.equal(nested, state.state2.absmax)


@pytest.mark.parametrize("quantization", QUANTIZED, ids=words)
def test_dequantizing_gives_the_weight_back(quantization: dict[str, Any]) -> None:
    p = case(**quantization, operation="dequantize")

    assert torch.equal(prepare(p, CPU).launch(0), base_weight(p))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        # N = 128 * 192 / 64 = 384 blocks; `bench.cell.storage` has the formula.
        ({"quant_type": "nf4", "double_quant": False}, 128 * 192 // 2 + 4 * 384 + 64),
        ({"quant_type": "fp4", "double_quant": True}, 128 * 192 // 2 + 384 + 4 * 2 + 64 + 1024 + 4),
        ({"quant_type": "int8", "double_quant": False}, 128 * 192 + 4 * 128),
        (NONE, 4 * 128 * 192),
    ],
)
def test_stored_bytes_hold_the_quantization_state(given: dict[str, Any], expected: int) -> None:
    operations = ["forward"] if given == NONE else ["forward", "forward_backward", "quantize", "dequantize"]

    assert {prepare(case(**given, operation=name), CPU).stored_bytes for name in operations} == {expected}


def test_what_has_to_move_is_each_operand_in_each_pass_that_reads_it() -> None:
    x, y, w, adapter = 4 * 6 * 192, 4 * 6 * 128, 4 * 128 * 192, 4 * 8 * (128 + 192)

    def moved(**given: Any) -> int:
        return prepare(case(**NONE | given), CPU).moved_bytes

    assert moved() == w + x + y
    assert moved(lora_r=8) == w + x + y + adapter
    assert moved(operation="forward_backward") == (w + x + y) + (w + y + x)
    # Backward reads the adapters and the input again, and writes the adapters' gradients.
    assert moved(operation="forward_backward", lora_r=8) == (w + x + y + adapter) + (w + y + x + 2 * adapter + x)
    nf4 = {"quant_type": "nf4", "double_quant": False}
    stored = 128 * 192 // 2 + 4 * 384 + 64
    assert moved(operation="quantize", **nf4) == moved(operation="dequantize", **nf4) == w + stored


def test_products_are_counted_once() -> None:
    shape = LinearShape(128, 192)

    def flops(**given: Any) -> int:
        return kernels.flops_count(shape, case(**given))

    assert flops() == 2 * 6 * 128 * 192
    assert flops(lora_r=8) == 2 * 6 * 128 * 192 + 2 * 6 * 8 * (128 + 192)
    assert flops(operation="forward_backward") == 4 * 6 * 128 * 192
    assert flops(operation="forward_backward", lora_r=8) == 4 * 6 * 128 * 192 + 6 * 6 * 8 * (128 + 192)


@pytest.mark.parametrize(
    ("operation", "quantization"),
    [
        *itertools.product(["quantize", "dequantize"], QUANTIZED),
        *itertools.product(["forward", "forward_backward"], [*QUANTIZED, NONE]),
    ],
    ids=str,
)
def test_sets_of_operands_are_equal_and_lie_apart(operation: str, quantization: dict[str, Any]) -> None:
    once = prepare(case(**quantization, operation=operation, lora_r=4), CPU)

    turned = rotated(once, 3)

    def flat(result: Any) -> list[torch.Tensor]:
        parts = [result] if isinstance(result, torch.Tensor) else result
        return [part for part in parts if isinstance(part, torch.Tensor)]

    results = [flat(turned.launch(number)) for number in range(4)]
    assert all(torch.equal(a, b) for later in results[1:] for a, b in zip(results[0], later, strict=True))
    places = [[tensor.data_ptr() for tensor in tensors] for tensors in turned.sets]
    assert not any(set(a) & set(b) for a, b in itertools.combinations(places, 2))
    assert turned.set_bytes == once.set_bytes >= (once.stored_bytes if quantization != NONE else 4 * 128 * 192) * 0.9


def test_layers_are_those_of_the_model() -> None:
    assert shape_of(case(model="qwen2.5-7b", layer="q_proj")) == LinearShape(3584, 3584, bias=True)
    assert shape_of(case(model="qwen2.5-7b", layer="gate_proj")) == LinearShape(18944, 3584)
    assert shape_of(case(model="llama-3.1-8b", layer="k_proj")) == LinearShape(1024, 4096)
    assert shape_of(case(model="smollm2-135m", layer="mlp.down_proj")) == LinearShape(576, 1536)
    assert shape_of(case(layer="4096x11008")) == LinearShape(4096, 11008)


def test_layers_of_a_folder_are_read_off_its_configuration(tiny: Callable[[str], Path]) -> None:
    assert shape_of(case(model=str(tiny("qwen2")), layer="down_proj")) == LinearShape(64, 128)
    # A Conv1D keeps its weight the other way round.
    assert linear_shapes(str(tiny("gpt2")))["transformer.h.0.mlp.c_fc"] == LinearShape(256, 64, bias=True)


def test_an_unknown_layer_names_those_that_there_are() -> None:
    with pytest.raises(Invalid, match="smollm2-135m has no linear layer 'w1'") as raised:
        prepare(case(model="smollm2-135m", layer="w1"), CPU)
    assert raised.value.fix is not None
    assert raised.value.fix.startswith("it has q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, lm_head;")


def test_a_name_of_several_shapes_has_to_be_longer(tiny: Callable[[str], Path]) -> None:
    model = str(tiny("gpt2"))

    with pytest.raises(Invalid, match="linear layers 'c_proj' of 2 shapes") as raised:
        shape_of(case(model=model, layer="c_proj"))
    assert raised.value.fix == "write more of the name, as in transformer.h.0.attn.c_proj, transformer.h.0.mlp.c_proj"
    assert shape_of(case(model=model, layer="mlp.c_proj")) == LinearShape(64, 256, bias=True)


def test_the_same_case_is_the_same_to_the_last_digit() -> None:
    p = case(model="qwen2.5-0.5b", layer="k_proj", lora_r=4)

    assert torch.equal(prepare(p, CPU).launch(0), prepare(p, CPU).launch(0))


def test_an_unknown_model_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be loaded"):
        prepare(case(model=str(tmp_path), layer="q_proj"), CPU)


def test_a_bias_is_part_of_the_layer() -> None:
    operation = prepare(case(model="qwen2.5-0.5b", layer="k_proj", compute_dtype="float32"), CPU)

    zero = torch.zeros_like(operation.sets[0][0])
    answer = replace(operation, sets=((zero, *operation.sets[0][1:]),)).launch(0)
    assert answer.abs().sum() > 0


def test_errors_of_gaussian_weights_are_the_known_ones() -> None:
    def error(**given: Any) -> float:
        return kernels.random_error(case(layer="512x1024", **given), CPU)

    nf4 = error(quant_type="nf4", double_quant=False)
    assert nf4 == pytest.approx(0.0920, abs=5e-4)
    assert error(quant_type="fp4", double_quant=False) == pytest.approx(0.122, abs=1e-3)
    assert 0 < error(quant_type="nf4", double_quant=True) - nf4 < 5e-4
    assert error(quant_type="int8", double_quant=False) < 0.01
    assert error(**NONE) == 0


def test_errors_of_real_weights_are_those_of_the_packaged_layers() -> None:
    p = case(layer="k_proj", model="llama-3.1-8b", quant_type="nf4", double_quant=False, compute_dtype="bfloat16")
    packaged = {name: weight for name, weight in weights.packaged_weights(None).items() if "k_proj" in name}

    expected = [weights.error_of(weight, p) for weight in packaged.values()]

    assert len(expected) == 30
    assert weights.packaged_error(p, None, CPU) == pytest.approx(sum(expected) / 30)
    assert weights.packaged_error(p.model_copy(update={"layer": "64x64"}), None, CPU) is None


def test_on_a_cpu_nobody_tells_what_was_allocated() -> None:
    p = case()
    operation = prepare(p, CPU)

    assert kernels.scratch_bytes(operation, CPU) is None
    assert kernels.is_fused(operation, p, CPU) is None


def test_peaks_move_and_compute_what_they_say() -> None:
    copied = peaks.copy(CPU)
    target = copied.launch(0)
    assert copied.moved_bytes == 2 * target.nbytes
    assert target.min() == 1

    product = peaks.product("float32", (32, 48, 64), CPU)
    assert product.launch(0).shape == (32, 64)
    assert product.flops_count == 2 * 32 * 48 * 64
