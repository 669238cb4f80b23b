"""The parameters of a kernel's case: what is timed, of which linear layer, and how that layer is stored.

What a cell has too goes by the same name and means the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bench.matrix.parameters import DERIVED, DOUBLE_QUANT_NEEDS, FOUR_BIT, Count, Dtype, QuantType, derive
from bench.matrix.rules import Rule

# A layer has fewer rows or columns than this; more are a slip of the keyboard.
LARGEST_DIMENSION = 10**7

# Of the weight alone: no input passes through the layer, so that rows and adapters make no difference.
WEIGHT_OPERATIONS = ("quantize", "dequantize")
SILENT_IN_WEIGHT_OPERATIONS = ("rows", "lora_r")

KERNEL_DERIVED = {"double_quant": DERIVED["double_quant"]}

_OUT_BY_IN = re.compile(r"([0-9]+)x([0-9]+)")
_LONGEST_DIMENSION = len(str(LARGEST_DIMENSION))


class KernelParameters(BaseModel):
    """Everything that decides what one case times."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    operation: Literal["forward", "forward_backward", "quantize", "dequantize"] = Field(
        "forward",
        description="what is timed: the layer forward as in inference, forward and backward as in training, "
        "or quantizing or dequantizing its weight",
    )
    model: str = Field("qwen2.5-7b", description="whose layer: shape name, hub id (owner/name), or local folder")
    layer: str = Field(
        "q_proj", description="linear layer, by the end of its module name; or its shape, as in 4096x11008"
    )
    quant_type: QuantType = Field("nf4", description="data type of the layer's weight")
    double_quant: bool = Field(True, description="quantize the block scales too (bnb_4bit_use_double_quant)")
    compute_dtype: Dtype = Field("bfloat16", description="dtype of inputs, of an unquantized weight, and of products")
    rows: Count = Field(
        512, description="tokens that the layer sees at once (batch x length); says nothing to quantize and dequantize"
    )
    lora_r: Annotated[int, Field(ge=0)] = Field(
        0, description="rank of the layer's adapter, 0: it has none; says nothing to quantize and dequantize"
    )

    @model_validator(mode="before")
    @classmethod
    def _derive(cls, given: Any) -> Any:
        return derive(given, KERNEL_DERIVED)

    @field_validator("layer")
    @classmethod
    def _check_layer(cls, value: str) -> str:
        dimensions_of(value)
        return value

    @property
    def quantized(self) -> bool:
        return self.quant_type != "none"

    @property
    def four_bit(self) -> bool:
        return self.quant_type in FOUR_BIT


def dimensions_of(layer: str) -> tuple[int, int] | None:
    """Return (out_features, in_features) of a layer that is written as OUTxIN; None for the name of one.

    Raises:
        ValueError: one of the two is zero, or larger than `LARGEST_DIMENSION`.
    """
    match = _OUT_BY_IN.fullmatch(layer)
    if match is None:
        return None
    out_features, in_features = map(_dimension, match.groups())
    return out_features, in_features


def _dimension(digits: str) -> int:
    significant = digits.lstrip("0")
    if not significant or len(significant) > _LONGEST_DIMENSION or int(significant) > LARGEST_DIMENSION:
        raise ValueError(f"a layer is OUTxIN with both from 1 to {LARGEST_DIMENSION}")
    return int(significant)


def silent(values: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the parameters that make no difference to the operation."""
    return SILENT_IN_WEIGHT_OPERATIONS if values["operation"] in WEIGHT_OPERATIONS else ()


KERNEL_RULES: tuple[Rule[KernelParameters], ...] = (
    Rule(
        ("double_quant", "quant_type"),
        lambda p: p.double_quant and not p.four_bit,
        DOUBLE_QUANT_NEEDS,
        "set double_quant: false for this case, or exclude it",
    ),
    *(
        Rule(
            ("operation", "quant_type"),
            lambda p, name=name: p.operation == name and not p.quantized,  # type: ignore[misc]
            f"operation: {name} needs a quantized weight",
            f"exclude it: {{operation: {name}, quant_type: none}}",
        )
        for name in WEIGHT_OPERATIONS
    ),
)
