from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from bench.matrix.kernel_parameters import LARGEST_DIMENSION, KernelParameters, dimensions_of
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.tree import Node
from bench.matrix.values import Mistake, convert

from .test_values import HERE

A_LAYER = "layer takes the name of a layer, or OUTxIN, not the text"
SIZES = f"layer takes OUTxIN with both from 1 to {LARGEST_DIMENSION}, not the text"
BOTH = "write both, as in 4096x11008"


def test_a_case_is_a_forward_pass_of_an_nf4_layer_unless_more_is_said() -> None:
    assert KernelParameters().model_dump() == {
        "operation": "forward",
        "model": "qwen2.5-7b",
        "layer": "q_proj",
        "quant_type": "nf4",
        "double_quant": True,
        "compute_dtype": "bfloat16",
        "rows": 512,
        "lora_r": 0,
    }


@pytest.mark.parametrize(
    ("quant_type", "quantized", "four_bit"),
    [("nf4", True, True), ("fp4", True, True), ("int8", True, False), ("none", False, False)],
)
def test_double_quantization_follows_the_type(quant_type: Any, quantized: bool, four_bit: bool) -> None:
    made = KernelParameters(quant_type=quant_type)
    assert (made.quantized, made.four_bit, made.double_quant) == (quantized, four_bit, four_bit)
    assert KernelParameters(quant_type="nf4", double_quant=False).double_quant is False


@pytest.mark.parametrize(
    "given",
    [{"layer": "0x4"}, {"layer": "4x10000001"}, {"rows": 0}, {"lora_r": -1}, {"operation": "train"}, {"batch_size": 1}],
)
def test_what_is_no_case_cannot_be_made(given: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KernelParameters(**given)


@pytest.mark.parametrize(
    ("layer", "dimensions"),
    [("4096x11008", (4096, 11008)), ("1x10000000", (1, 10_000_000)), ("007x1", (7, 1)), ("q_proj", None),
     ("x4", None), ("4x", None), ("4x4x4", None), ("self_attn.q_proj", None)],
)  # fmt: skip
def test_a_layer_is_a_name_or_its_features_out_and_in(layer: str, dimensions: tuple[int, int] | None) -> None:
    assert dimensions_of(layer) == dimensions


@pytest.mark.parametrize("layer", ["0x4", "4x0", "000x000", "10000001x1", "1x" + "9" * 5000])
def test_a_layer_without_a_row_or_with_too_many_is_none(layer: str) -> None:
    with pytest.raises(ValueError, match=r"^a layer is OUTxIN with both from 1 to 10000000$"):
        dimensions_of(layer)


@pytest.mark.parametrize(
    ("name", "raw", "message"),
    [
        ("layer", "0x4", f"{SIZES} '0x4'; {BOTH}"),
        ("layer", "4096 x 0", f"{SIZES} '4096 x 0'; {BOTH}"),
        ("layer", "4096x10000001", f"{SIZES} '4096x10000001'; {BOTH}"),
        ("layer", "4096X11008", f"{A_LAYER} '4096X11008'; write 4096x11008"),
        ("layer", "64 * 32", f"{A_LAYER} '64 * 32'; write 64x32"),
        ("layer", "64\u00d732", f"{A_LAYER} '64\u00d732'; write 64x32"),
        ("layer", "064x32", f"{A_LAYER} '064x32'; write 64x32"),
        ("layer", 4096, "layer takes text, not 4096; put quotes around it"),
        ("rows", 0, "rows takes a whole number above zero, not 0; the default is 512"),
        ("rows", "4,096", "rows takes a whole number above zero, not the text '4,096'; write 4096"),
        ("lora_r", -1, "lora_r takes a whole number of zero or more, not -1; the default is 0"),
        ("lora_r", None, "lora_r takes a whole number of zero or more, not an empty value (null); the default is 0"),
        (
            "operation",
            "forward backward",
            "operation takes forward, forward_backward, quantize or dequantize, not the text 'forward backward'; "
            "did you mean forward_backward?",
        ),
        (
            "model",
            "qwen2.5-8b",
            "there is no model 'qwen2.5-8b'; did you mean qwen2.5-7b? A model of the hub is written owner/name",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_said_in_plain_words_with_a_fix(name: str, raw: Any, message: str) -> None:
    with pytest.raises(Mistake) as caught:
        convert(name, Node(raw, HERE), KERNELS)
    assert f"{caught.value.what}; {caught.value.fix}" == message


@pytest.mark.parametrize("layer", ["q_proj", "self_attn.q_proj", "4096x11008", "c_attn", "0", "x"])
def test_whether_a_model_has_a_layer_is_not_asked_before_it_runs(layer: str) -> None:
    assert convert("layer", Node(layer, HERE), KERNELS) == layer
