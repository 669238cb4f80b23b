"""How each part of memory is painted: a character that reads without colour, and a colour."""

from __future__ import annotations

from typing import NamedTuple


class Paint(NamedTuple):
    character: str
    color: str


# The colours are those of Okabe and Ito (2008), which readers who see few colours can tell apart, and a grey.
PALETTE: dict[str, Paint] = {
    "base": Paint("█", "#0072b2"),
    "adapters": Paint("╱", "#f0e442"),  # noqa: RUF001
    "gradients": Paint("╲", "#e69f00"),
    "optimizer": Paint("╳", "#d55e00"),  # noqa: RUF001
    "activations": Paint("▒", "#56b4e9"),
    "head & logits": Paint("▓", "#009e73"),
    "dequantized": Paint("░", "#cc79a7"),
    "workspace & rounding": Paint("·", "#999999"),
    "packed": Paint("█", "#0072b2"),
    "quantization state": Paint("╳", "#d55e00"),  # noqa: RUF001
    "embeddings": Paint("▒", "#56b4e9"),
    "output head": Paint("▓", "#009e73"),
    "unquantized linear": Paint("░", "#e69f00"),
    "norms, biases, others": Paint("╱", "#f0e442"),  # noqa: RUF001
    "unquantized": Paint("▚", "#cc79a7"),
    "buffers": Paint("·", "#999999"),
}

# How each quantization is painted: related ones alike, double quantization lighter.
QUANTIZATIONS: dict[str, str] = {
    "none": "#222222",
    "nf4": "#0072b2",
    "nf4-dq": "#56b4e9",
    "fp4": "#d55e00",
    "fp4-dq": "#e69f00",
    "int8": "#009e73",
}
OTHER = "#999999"
