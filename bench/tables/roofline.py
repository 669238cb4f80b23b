"""The roofline of one model's layers: how fast they multiply, against how many operations there are for each byte.

What the picture draws.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import pandas as pd

from bench.matrix.wording import listing
from bench.tables.kernel_caption import conditions
from bench.tables.kernel_figures import UNQUANTIZED, in_order, quantizations
from bench.tables.kernels import Peaks
from bench.tables.table import printable

MOST_LAYERS = 4  # beside one another
HALF = ("bfloat16", "float16")
AXES = (
    "A point is a case at its median time. FLOP per byte: operations of the products over the fewest bytes to be "
    "moved. Grey: what the measured copy bandwidth and matmul peak allow; along it, rows stand above their points "
    "without quantization. Lines break at rows that were not measured."
)
NO_FLOPS = "Quantize and dequantize multiply nothing, and are not here."


@dataclass(frozen=True)
class Point:
    rows: int
    flops_per_byte: float
    flops_per_s: float


@dataclass(frozen=True)
class Line:
    """The cases of one quantization, by their rows."""

    quantization: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Panel:
    """One layer under one operation; the unquantized line, if there is one, comes last."""

    operation: str
    heading: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Roofline:
    """Panels by operation, then layer. The roof is NaN where it was not measured."""

    title: str
    panels: tuple[Panel, ...]
    copy_bytes_per_s: float
    matmul_flops_per_s: float
    caption: tuple[str, ...]

    @property
    def operations(self) -> list[str]:
        return list(dict.fromkeys(panel.operation for panel in self.panels))

    @property
    def quantizations(self) -> list[str]:
        """Name those drawn, unquantized first."""
        drawn = [line.quantization for panel in self.panels for line in panel.lines]
        return [UNQUANTIZED] * (UNQUANTIZED in drawn) + [name for name in in_order(drawn) if name != UNQUANTIZED]

    def roof(self, flops_per_byte: float) -> float:
        """Return the most operations in a second at so many for each byte, by the peaks that are known; else NaN."""
        limits = (self.copy_bytes_per_s * flops_per_byte, self.matmul_flops_per_s)
        return min(filter(math.isfinite, limits), default=float("nan"))

    @property
    def has_roof(self) -> bool:
        return math.isfinite(self.roof(1.0))


def roofline(frame: pd.DataFrame) -> Roofline | None:
    """Choose what to draw of a result, a frame of `load_kernels`: one model, one dtype, no adapters.

    They are the first model's, in its first 16-bit dtype (in its first one, if it has none), at the lowest rank. None
    where nothing multiplied.
    """
    cases = frame[frame["flops_per_s"].notna()]
    if cases.empty:
        return None
    cases = cases[cases["model"] == cases["model"].iloc[0]]
    dtypes = list(dict.fromkeys(cases["compute_dtype"]))
    dtype = next((name for name in dtypes if name in HALF), dtypes[0])
    cases = cases[cases["compute_dtype"] == dtype]
    rank = cases["lora_r"].min()
    cases = cases[cases["lora_r"] == rank].assign(quantization=quantizations(cases))
    layers = list(dict.fromkeys(cases["layer"]))
    peaks: Peaks = frame.attrs["peaks"]
    model = cases["model"].iloc[0]
    return Roofline(
        title=printable(f"{frame.attrs['matrix']}: roofline of {model} in {dtype}"),
        panels=tuple(_panels(cases[cases["layer"].isin(layers[:MOST_LAYERS])])),
        copy_bytes_per_s=peaks.copy_bytes_per_s,
        matmul_flops_per_s=peaks.matmul_flops_per_s.get(dtype, float("nan")),
        caption=(
            *conditions(frame),
            f"{AXES} {_which(frame, model, dtype, int(rank))}",
            *([f"Of {len(layers)} layers, {listing(layers[:MOST_LAYERS], 'and')}."] * (len(layers) > MOST_LAYERS)),
        ),
    )


def _panels(cases: pd.DataFrame) -> Iterator[Panel]:
    operations = list(dict.fromkeys(cases["operation"]))
    grouped = cases.groupby(["operation", "layer"], sort=False)
    for (operation, layer), of_panel in sorted(grouped, key=lambda group: operations.index(group[0][0])):
        names = in_order(of_panel["quantization"])
        names.sort(key=lambda name: name == UNQUANTIZED)
        first = of_panel.iloc[0]
        shape = f"{first['out_features']} × {first['in_features']}"  # noqa: RUF001
        heading = shape if layer == shape.replace(" × ", "x") else f"{layer}, {shape}"  # noqa: RUF001
        lines = tuple(Line(name, _points(of_panel[of_panel["quantization"] == name])) for name in names)
        yield Panel(str(operation), printable(heading), lines)


def _points(cases: pd.DataFrame) -> tuple[Point, ...]:
    ordered = cases.sort_values("rows")
    intensity = ordered["flops_count"] / ordered["moved_bytes"]
    return tuple(
        Point(int(rows), float(x), float(y))
        for rows, x, y in zip(ordered["rows"], intensity, ordered["flops_per_s"], strict=True)
    )


def _which(frame: pd.DataFrame, model: str, dtype: str, rank: int) -> str:
    adapters = "without adapters" if rank == 0 else f"with adapters of rank {rank}"
    of_weights = f" {NO_FLOPS}" if (frame["flops_count"] == 0).any() else ""
    return f"The cases of {model} in {dtype} {adapters}.{of_weights}"
