"""How messages name things: the closest known word, lists in plain English, values as the file writes them."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Sequence
from typing import Any

# What other programs call the same thing; too far from our spelling for a comparison of letters to find it.
ALSO_CALLED = {
    "lr": "learning_rate",
    "rank": "lora_r",
    "r": "lora_r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "bnb_4bit_quant_type": "quant_type",
    "bnb_4bit_use_double_quant": "double_quant",
    "use_double_quant": "double_quant",
    "bnb_4bit_compute_dtype": "compute_dtype",
    "dtype": "load_dtype",
    "torch_dtype": "load_dtype",
    "per_device_train_batch_size": "batch_size",
    "num_train_epochs": "epochs",
    "max_seq_length": "max_length",
    "matrix": "axes",
    "op": "operation",
    "tokens": "rows",
    "seed": "seeds",
    "if": "when",
    "then": "set",
    "adam": "adamw_torch",
    "adamw": "adamw_torch",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "8bit": "int8",
    "4bit": "nf4",
    "flash": "flash_attention_2",
}
_LONGEST_QUOTE = 40
_SMALL = 0.01  # below this, 5e-3 reads better than 0.005


def closest(word: str, known: Iterable[str]) -> str | None:
    """Find the known word that `word` most likely stands for, if one is close enough."""
    by_lower = {name.lower(): name for name in known}
    lower = word.lower()
    if ALSO_CALLED.get(lower) in by_lower:
        return ALSO_CALLED[lower]
    match = difflib.get_close_matches(lower, by_lower, n=1)
    return by_lower[match[0]] if match else None


def listing(words: Sequence[str], last: str = "or") -> str:
    """Join words: `a, b or c`."""
    return f" {last} ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def counted(count: int, noun: str) -> str:
    """Count things: `1 cell`, `1,200 cells`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def again(repeat: int, separator: str = " ") -> str:
    """Return what follows the seed of a run that repeats a baseline, ` again`, and nothing for other runs."""
    return f"{separator}again" * repeat


def quoted(text: str) -> str:
    """Put `text` in quotes, its control characters made visible and its length kept within a line."""
    return repr(_shortened(text))


def written(value: Any) -> str:
    """Write a value as YAML would: `true`, `null`, `5e-4`, `[a, b]`."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return short_float(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(written, value))}]"
    return str(value)


def short_float(value: float) -> str:
    """Write the shortest text that reads back as `value`: `5e-4`, `0.03`, `3600`."""
    if not math.isfinite(value):
        return {"nan": ".nan", "inf": ".inf", "-inf": "-.inf"}[str(value)]
    plain = repr(value).removesuffix(".0")
    if value == 0 or (abs(value) >= _SMALL and "e" not in plain):
        return plain
    exact = next(text for digits in range(17) if float(text := f"{value:.{digits}e}") == value)
    mantissa, exponent = exact.split("e")
    return f"{mantissa}e{int(exponent)}"


def described(value: Any) -> str:
    """Name a value as a message does: `the text 'off'`, `an empty value (null)`, `the list [a, b]`, `8`."""
    if value is None:
        return "an empty value (null)"
    if isinstance(value, str):
        return f"the text {quoted(value)}" if value else "an empty text"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"the list {_shortened(written(value))}" if value else "an empty list"
    if isinstance(value, float) and value.is_integer():
        return _shortened(repr(value))
    return _shortened(written(value))


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_QUOTE else text[: _LONGEST_QUOTE - 1] + "…"
