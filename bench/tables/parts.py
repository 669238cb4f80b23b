"""The parts that memory is told apart into: at the peak of training, and in storage."""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd

from bench.protocol import DTYPE_NAMES, PLACES


class Part(NamedTuple):
    """What headings and legends call a part, and the measures that it sums."""

    name: str
    measures: tuple[str, ...]


def place(name: str, prefix: str = "") -> tuple[str, ...]:
    """Name the measures of the unquantized parameters that stand in one of `bench.protocol.PLACES`."""
    return tuple(f"{prefix}{name}_{dtype}_bytes" for dtype in DTYPE_NAMES)


# Every measure of unquantized parameters by place and dtype, as loaded.
PLACED = [name for where in PLACES for name in place(where)]

# The parts of the predicted peak; the last one sums two of `bench.protocol.PEAK_PARTS`.
AT_PEAK = (
    Part("base", ("predicted_peak_base_bytes",)),
    Part("adapters", ("predicted_peak_adapter_bytes",)),
    Part("gradients", ("predicted_peak_gradient_bytes",)),
    Part("optimizer", ("predicted_peak_optimizer_bytes",)),
    Part("activations", ("predicted_peak_activation_bytes",)),
    Part("head & logits", ("predicted_peak_head_bytes",)),
    Part("dequantized", ("predicted_peak_dequantized_bytes",)),
    Part("workspace & rounding", ("predicted_peak_workspace_bytes", "predicted_peak_rounding_bytes")),
)
LIVE_AT_PEAK = (
    "Parts are those live at the moment of the peak: gradients or optimizer state may be missing from them, and exist "
    "at other moments."
)
# The first of these as they were measured, for a cell whose peak was not predicted.
KNOWN_AT_PEAK = (
    Part("base", ("stored_bytes", "upcast_bytes")),
    Part("adapters", ("adapter_bytes",)),
    Part("gradients", ("gradient_bytes",)),
    Part("optimizer", ("optimizer_bytes",)),
)
# Where a record does not tell places, all that is unquantized is one part.
IN_STORAGE = (
    Part("packed", ("packed_bytes",)),
    Part("quantization state", ("quant_state_bytes",)),
    Part("embeddings", place("embedding")),
    Part("output head", place("head")),
    Part("unquantized linear", place("linear")),
    Part("norms, biases, others", (*place("norm"), *place("bias"), *place("other"))),
    Part("unquantized", ("unplaced_bytes",)),
    Part("buffers", ("buffer_bytes",)),
)


def with_unplaced(cells: pd.DataFrame) -> pd.DataFrame:
    """Add `unplaced_bytes`: the unquantized parameters of cells whose records do not tell where they stand."""
    return cells.assign(unplaced_bytes=cells["unquantized_bytes"].where(cells[PLACED].isna().all(axis=1)))


def size(rows: pd.DataFrame, part: Part) -> pd.Series[float]:
    """Return the bytes of a part in each row: NaN where none of its measures is known."""
    return rows[list(part.measures)].sum(axis=1, min_count=1)
