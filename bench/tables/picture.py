"""Stacked bars as files, with matplotlib: the same records always give the same bytes."""

from __future__ import annotations

import io
import os
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bench.matrix.wording import counted
from bench.tables.bars import Bar, Bars
from bench.tables.figures import number
from bench.tables.palette import PALETTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INSTALL = "memory.svg and memory.png need matplotlib: pip install matplotlib"
MOST_BARS = 60  # more than these no reader takes in, and no format holds without end
# Characters of an id in a line of its own, in each of two smaller lines, and in all.
LONE_LINE, LONGEST_LINE = 40, 50
LONGEST_ID = 2 * LONGEST_LINE
LONGEST_HEADING = 80
SEPARATED = 4.0  # points; parts that are narrower touch, for a gap would hide them

# In inches, but for the last ones.
WIDTH = 9.0
ROW, BAR = 0.30, 0.21
MARGIN = 0.15
TITLE, LEGEND_ROW, HEADING, AXIS, CAPTION_ROW = 0.42, 0.24, 0.34, 0.55, 0.145
LEGEND_COLUMNS = 5
CAPTION_CHARACTERS = 142
DOTS_PER_INCH = 160
POINTS_PER_INCH = 72

INK, FAINT, RULE = "#222222", "#666666", "#dddddd"
STYLE = {
    "font.family": "DejaVu Sans",  # the one that matplotlib brings along
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "white",
    "svg.hashsalt": "qlora-bench",
    "svg.fonttype": "path",
}
# Neither a date nor a version: a file changes when what it shows does.
METADATA: dict[str, dict[str, Any]] = {
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


def can_draw() -> bool:
    """Tell whether matplotlib is here and works; a run that has its results is not to end over a picture."""
    # A notebook names its backend to all that it starts, where it need not be installed; a file needs none.
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import_module("matplotlib.figure")
    except Exception:  # whatever a broken installation raises
        return False
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return True


def draw(bars: Bars, kind: str) -> bytes:
    """Draw the bars as a file of a `kind`: svg or png. Needs matplotlib, and no display."""
    return saved(lambda: _figure(bars), kind)


def saved(make: Callable[[], Figure], kind: str) -> bytes:
    """Make a figure in the project's own style, and return its file of a `kind`: svg or png."""
    from matplotlib import style

    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        file = io.BytesIO()
        make().savefig(file, format=kind, dpi=DOTS_PER_INCH, metadata=METADATA[kind])
        return file.getvalue()


def _figure(bars: Bars) -> Figure:
    """Draw the panels below one another, each with its own axis, all between the same edges."""
    from matplotlib.figure import Figure

    panels = _first(bars.panels, MOST_BARS)
    caption = _caption(bars, sum(len(panel.bars) for panel in panels))
    handles = _handles(bars)
    legend_rows = -(-len(handles) // LEGEND_COLUMNS)
    above = MARGIN + TITLE + LEGEND_ROW * legend_rows + MARGIN
    heading = HEADING if len(bars.panels) > 1 else MARGIN
    heights = [heading + ROW * len(panel.bars) + AXIS for panel in panels]
    height = above + sum(heights) + CAPTION_ROW * len(caption) + MARGIN
    figure = Figure(figsize=(WIDTH, height))
    drawn = []
    top = height - above
    for panel, taken in zip(panels, heights, strict=True):
        axes = figure.add_axes((0.0, (top - taken + AXIS) / height, 1.0, (taken - heading - AXIS) / height))
        _stack(axes, panel)
        if panel.heading:
            text = _shortened(panel.heading, LONGEST_HEADING)
            figure.text(MARGIN / WIDTH, top / height, text, size=10.5, weight="bold", va="top", parse_math=False)
        drawn.append((axes, panel))
        top -= taken
    _settle(figure, drawn)
    figure.text(MARGIN / WIDTH, 1 - MARGIN / height, bars.title, size=13, weight="bold", va="top", parse_math=False)
    figure.legend(
        handles=handles,
        ncols=LEGEND_COLUMNS,
        loc="upper left",
        bbox_to_anchor=(MARGIN / WIDTH, 1 - (MARGIN + TITLE) / height),
        borderaxespad=0,
        borderpad=0,
        frameon=False,
        handlelength=1.2,
        handleheight=1.0,
        columnspacing=1.6,
    )
    text = "\n".join(caption)
    figure.text(MARGIN / WIDTH, MARGIN / height, text, size=7.5, color=FAINT, linespacing=1.35, parse_math=False)
    return figure


def _first(panels: Sequence[Bars], most: int) -> list[Bars]:
    """Keep the first `most` bars, and the panels that they are in."""
    kept = []
    for panel in panels:
        if most > 0:
            kept.append(replace(panel, bars=panel.bars[:most]))
        most -= len(panel.bars)
    return kept


def _stack(axes: Axes, bars: Bars) -> None:
    from matplotlib.ticker import MaxNLocator

    unit = bars.unit.bytes
    for row, bar in enumerate(bars.bars):
        left = 0.0
        for part in bars.parts:
            width = bar.sizes_bytes.get(part, 0) / unit
            if width:
                axes.barh(row, width, BAR / ROW, left, color=PALETTE[part].color, linewidth=0, zorder=2)
            left += width
        half = BAR / ROW / 2 + 0.08
        if bar.measured_bytes is not None:
            axes.plot([bar.measured_bytes / unit] * 2, [row - half, row + half], color="black", linewidth=1.8, zorder=4)
        if bar.cap_bytes is not None and bars.shows_cap(bar):
            axes.plot([bar.cap_bytes / unit] * 2, [row - 0.5, row + 0.5], color="black", linestyle=(0, (3, 2)),
                      linewidth=1.0, zorder=3)  # fmt: skip
    axes.set_xlim(0, bars.end_bytes / unit * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10]))
    axes.xaxis.set_visible(any(bar.total_bytes for bar in bars.bars))
    axes.set_ylim(len(bars.bars) - 0.5, -0.5)
    axes.set_xlabel(f"{bars.unit.name} ({bars.unit.about.rstrip('.').split(' = ')[1]})", loc="left")
    axes.set_yticks(range(len(bars.bars)), [_folded(bar.id) for bar in bars.bars], parse_math=False)
    for label in axes.get_yticklabels():
        label.set_fontsize(7 if "\n" in label.get_text() else 9)
    axes.tick_params(axis="both", length=0, pad=5)
    axes.grid(axis="x", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def _settle(figure: Figure, panels: Sequence[tuple[Axes, Bars]]) -> None:
    """Give the ids the room on the left that they need, the totals theirs on the right, and parts their figures."""
    totals = [
        axes.annotate(
            _end(bar, total), (1, row), (8, 0), ("axes fraction", "data"), "offset points",
            va="center_baseline", weight="bold" if bar.status == "ok" else "normal",
            annotation_clip=False, parse_math=False,
        )
        for axes, bars in panels
        for row, (bar, total) in enumerate(zip(bars.bars, bars.totals(), strict=True))
    ]  # fmt: skip
    for axes, bars in panels:
        what = f"total {bars.unit.name}"
        axes.annotate(what, (1, 1), (8, 4), "axes fraction", "offset points", size=7.5, color=FAINT)
    figure.draw_without_rendering()
    labels = [label for axes, _ in panels for label in axes.get_yticklabels()]
    ids = max(label.get_window_extent().width for label in labels) / figure.dpi
    ends = max(total.get_window_extent().width for total in totals) / figure.dpi
    left, right = 2 * MARGIN + ids, MARGIN + ends + 10 / POINTS_PER_INCH
    for axes, bars in panels:
        _, bottom, _, height = axes.get_position().bounds
        axes.set_position((left / WIDTH, bottom, (WIDTH - left - right) / WIDTH, height))
        _label(figure, axes, bars)


def _label(figure: Figure, axes: Axes, bars: Bars) -> None:
    """Write its size into every part that is wide enough for it."""
    points = axes.get_window_extent().width * POINTS_PER_INCH / figure.dpi / (axes.get_xlim()[1] * bars.unit.bytes)
    for row, bar in enumerate(bars.bars):
        start = 0.0
        for part in bars.parts:
            size = bar.sizes_bytes.get(part, 0)
            text = axes.text(
                (start + size / 2) / bars.unit.bytes, row, number(size / bars.unit.bytes, bars.decimals),
                size=7, ha="center", va="center_baseline", zorder=5, color=_readable_on(PALETTE[part].color),
            )  # fmt: skip
            if text.get_window_extent().width * POINTS_PER_INCH / figure.dpi + 4 > size * points:
                text.remove()
            start += size
            if size * points > SEPARATED:
                edge = start / bars.unit.bytes
                axes.plot([edge, edge], [row - BAR / ROW / 2, row + BAR / ROW / 2], color="white", linewidth=0.7,
                          solid_capstyle="butt", zorder=2.5)  # fmt: skip


def _readable_on(color: str) -> str:
    """Choose white or ink by the luminance of a colour (Rec. 709's weights)."""
    red, green, blue = (int(color[at : at + 2], 16) / 255 for at in (1, 3, 5))
    return "white" if 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.5 else INK


def _handles(bars: Bars) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [Patch(facecolor=PALETTE[part].color, label=part) for part in bars.parts]
    if bars.has_measured:
        handles.append(Line2D([], [], color="black", linestyle="", marker="|", markersize=10, markeredgewidth=1.8,
                              label="measured peak"))  # fmt: skip
    if bars.has_cap:
        handles.append(Line2D([], [], color="black", linestyle=(0, (3, 2)), linewidth=1.0, label="cap (vram_limit)"))
    # A legend is filled column by column, and read row by row.
    return [handle for column in range(LEGEND_COLUMNS) for handle in handles[column::LEGEND_COLUMNS]]


def _caption(bars: Bars, count: int) -> list[str]:
    lines = list(bars.caption)
    if count < len(bars.bars):
        lines.append(f"The first {count} of {counted(len(bars.bars), 'cell')}.")
    return [piece for line in lines for piece in textwrap.wrap(line, CAPTION_CHARACTERS)]


def _end(bar: Bar, total: str) -> str:
    return total if bar.status == "ok" else f"{total}  {bar.status}"


def _shortened(text: str, characters: int) -> str:
    """Write a text in one line, without its middle where it is longer than so many characters."""
    line = " ".join(text.split())
    half = characters // 2
    return line if len(line) <= characters else f"{line[: half - 1]}…{line[-half:]}"


def _folded(text: str) -> str:
    """Write a long id in two lines; the middle of one that is longer still is left out."""
    line = " ".join(text.split())
    if len(line) <= LONE_LINE:
        return line
    half = LONGEST_LINE - 1
    if len(line) > LONGEST_ID:
        return f"{line[:half]}…\n{line[-half:]}"
    middle = len(line) // 2
    # Between two settings, if there is a dash near the middle.
    near = min((at + 1 for at, char in enumerate(line) if char == "-"), key=lambda at: abs(at - middle), default=middle)
    at = near if max(near, len(line) - near) <= LONGEST_LINE else middle
    return f"{line[:at]}\n{line[at:]}"
