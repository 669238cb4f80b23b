"""The roofline as a file, with matplotlib: the same result always gives the same bytes."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.tables.kernel_figures import UNQUANTIZED, flops_unit
from bench.tables.palette import OTHER, QUANTIZATIONS
from bench.tables.picture import (
    CAPTION_CHARACTERS,
    CAPTION_ROW,
    FAINT,
    MARGIN,
    POINTS_PER_INCH,
    RULE,
    TITLE,
    WIDTH,
    saved,
)
from bench.tables.roofline import MOST_LAYERS, Panel, Point, Roofline

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

INSTALL = "roofline.svg and roofline.png need matplotlib: pip install matplotlib"
ROOF = "#8c8c8c"
NO_BREAK = "\N{NO-BREAK SPACE}"
# In inches.
LEGEND, HEADING, PANEL, AXIS = 0.3, 0.4, 1.85, 0.48
LEFT, GAP = 0.62, 0.18
# How far the axes reach beyond the points, in decades.
AROUND = 0.22
ABOVE_ROOF = 0.3
FEW_DECADES = 10**1.7  # with ticks between them
LABEL_SIZE = 6.5
BETWEEN_LABELS = 3.0  # points
# A ring around a dot shows both where they coincide.
RINGS = ("fp4", "fp4-dq")


def draw(roofline: Roofline, kind: str) -> bytes:
    """Draw the roofline as a file of a `kind`: svg or png. Needs matplotlib, and no display."""
    return saved(lambda: _figure(roofline), kind)


def _figure(roofline: Roofline) -> Figure:
    """Draw a row of panels for each operation, a panel for each layer, all with the same axes within a row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = [line.replace(" %", f"{NO_BREAK}%") for line in roofline.caption]
    caption = [piece for line in lines for piece in textwrap.wrap(line, CAPTION_CHARACTERS)]
    rows = [[panel for panel in roofline.panels if panel.operation == name] for name in roofline.operations]
    above = MARGIN + TITLE + LEGEND
    height = above + len(rows) * (HEADING + PANEL + AXIS) + CAPTION_ROW * len(caption) + MARGIN
    figure = Figure(figsize=(WIDTH, height))
    columns = min(MOST_LAYERS, max(2, *map(len, rows)))
    width = (WIDTH - LEFT - MARGIN - GAP * (columns - 1)) / columns
    unit, unit_name = flops_unit(max(_speeds(roofline.panels)))
    labels = []
    top = height - above
    for panels in rows:
        bottom = top - HEADING - PANEL
        figure.text(MARGIN / WIDTH, top / height, panels[0].operation, size=10.5, weight="bold", va="top",
                    parse_math=False)  # fmt: skip
        for at, panel in enumerate(panels):
            left = LEFT + at * (width + GAP)
            axes = figure.add_axes((left / WIDTH, bottom / height, width / WIDTH, PANEL / height))
            _axes(axes, roofline, panels, unit)
            axes.set_title(panel.heading, size=8.5, loc="left", pad=4, parse_math=False)
            if at:
                axes.tick_params(labelleft=False)
            else:
                axes.set_ylabel(unit_name, labelpad=2)
                axes.set_xlabel("FLOP per byte", loc="left", labelpad=2)
            _plot(axes, panel, unit)
            labels.append(_label_rows(axes, roofline, panel, unit))
        top -= HEADING + PANEL + AXIS
    figure.text(MARGIN / WIDTH, 1 - MARGIN / height, roofline.title, size=13, weight="bold", va="top",
                parse_math=False)  # fmt: skip
    figure.legend(
        handles=_handles(roofline), ncols=len(roofline.quantizations) + 1, loc="upper left",
        bbox_to_anchor=(MARGIN / WIDTH, 1 - (MARGIN + TITLE) / height), borderaxespad=0, borderpad=0, frameon=False,
        handlelength=1.6, columnspacing=1.6,
    )  # fmt: skip
    renderer: RendererAgg = FigureCanvasAgg(figure).get_renderer()  # type: ignore[no-untyped-call]
    for of_panel in labels:
        _thin_out(renderer, of_panel)
    text = "\n".join(caption)
    figure.text(MARGIN / WIDTH, MARGIN / height, text, size=7.5, color=FAINT, linespacing=1.35, parse_math=False)
    return figure


def _axes(axes: Axes, roofline: Roofline, panels: Sequence[Panel], unit: float) -> None:
    """Set up the axes of a row of panels, with the roof as far as it is known."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    intensities = [point.flops_per_byte for panel in panels for line in panel.lines for point in line.points]
    speeds = _speeds(panels)
    left, right = min(intensities) / 10**AROUND, max(intensities) * 10**AROUND
    highest = max([*speeds, *filter(math.isfinite, (roofline.roof(right),))])
    axes.set(xscale="log", yscale="log", xlim=(left, right))
    axes.set_ylim(min(speeds) / unit / 10**AROUND, highest / unit * 10**ABOVE_ROOF)
    ridge = roofline.matmul_flops_per_s / roofline.copy_bytes_per_s
    corners = sorted({left, right, *([ridge] if left < ridge < right else [])})
    axes.plot(corners, [roofline.roof(x) / unit for x in corners], color=ROOF, linewidth=1.2, zorder=1.5)
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5) if high < FEW_DECADES * low else (1,)))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.tick_params(length=0, pad=4, labelsize=8)
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _plot(axes: Axes, panel: Panel, unit: float) -> None:
    """Draw the lines of a panel; one is broken where it has no point at rows that another has."""
    every = sorted({point.rows for line in panel.lines for point in line.points})
    for order, line in enumerate(panel.lines):
        of_rows = {point.rows: (point.flops_per_byte, point.flops_per_s / unit) for point in line.points}
        places = [of_rows.get(rows, (math.nan, math.nan)) for rows in every]
        axes.plot(*zip(*places, strict=True), **_look(line.quantization), zorder=2 + 0.1 * order)


def _look(quantization: str) -> dict[str, Any]:
    color = QUANTIZATIONS.get(quantization, OTHER)
    ring = quantization in RINGS
    return {
        "color": color, "linewidth": 0.9, "linestyle": "--" if quantization.endswith("-dq") else "-", "marker": "o",
        "markersize": 5 if ring else 2.8, "markerfacecolor": "none" if ring else color, "markeredgewidth": 0.9,
    }  # fmt: skip


def _label_rows(axes: Axes, roofline: Roofline, panel: Panel, unit: float) -> list[Annotation]:
    """Write rows above the roof, over the points of the unquantized line."""
    return [
        axes.annotate(
            f"{point.rows:,}", (point.flops_per_byte, _top(roofline, point) / unit), (-1.5, 2.5),
            textcoords="offset points", ha="center", va="bottom", size=LABEL_SIZE, color=FAINT,
        )
        for point in panel.lines[-1].points
    ]  # fmt: skip


def _top(roofline: Roofline, point: Point) -> float:
    return max(filter(math.isfinite, (roofline.roof(point.flops_per_byte), point.flops_per_s)))


def _thin_out(renderer: RendererAgg, labels: Sequence[Annotation]) -> None:
    """Remove the labels that would touch the one before; the last one stays."""
    gap = BETWEEN_LABELS * renderer.dpi / POINTS_PER_INCH
    left = math.inf
    for label in reversed(labels):
        box = label.get_window_extent(renderer)
        if box.x1 + gap > left:
            label.remove()
        else:
            left = box.x0


def _handles(roofline: Roofline) -> list[Any]:
    from matplotlib.lines import Line2D

    names = {UNQUANTIZED: "not quantized"}
    lines = [Line2D([], [], label=names.get(name, name), **_look(name)) for name in roofline.quantizations]
    roof = [Line2D([], [], color=ROOF, linewidth=1.2, label="measured peaks")]
    return [*lines, *(roof if roofline.has_roof else [])]


def _speeds(panels: Sequence[Panel]) -> list[float]:
    return [point.flops_per_s for panel in panels for line in panel.lines for point in line.points]
