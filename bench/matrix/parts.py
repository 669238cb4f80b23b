"""How ids write values that stand in matrices of more than one kind."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


def last_name(path: str) -> str:
    """Return what stands behind the last slash of a hub id or a path."""
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def short_dtype(value: str) -> str:
    return _DTYPES.get(value, value)


SHARED_PARTS: dict[str, Callable[[Any], str]] = {
    "model": last_name,
    "quant_type": str,
    "double_quant": lambda value: "dq" if value is True else "",
    "compute_dtype": short_dtype,
    "lora_r": lambda value: f"r{value}",
}
# What stands for false where the id would otherwise be empty.
SHARED_ABSENT = {"double_quant": "no-dq"}
