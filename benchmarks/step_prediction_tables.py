"""The tables of `benchmarks.step_prediction`: a cell's prediction, its step in parts, and one of all cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.step_prediction_gap import step_of
from benchmarks.step_time_tables import NOT_MEASURED, ms

LEGEND = (
    "Predicted: what the linear layers take by their kernel timings, the output head not among them. Measured: the "
    "median step, as a CUDA graph where there is one. Its parts: kernels of one eager step under torch's profiler, "
    "parted by what launched them, forward and backward. Alone: kernels of the same launches without the rest of the "
    "model, in the same process. In a step linear layers also add up the gradients of an input that they share; those "
    "that take the embeddings have no gradient of their input to compute."
)

NOT_TRACED = (
    "  the kernels of linear layers could not be told from others in the step: they are taken to be those of the same "
    "launches alone, so that what clocks and cache do to them counts as the rest of the model"
)

# What the rest of the model does in kernels of a group.
REST = {
    "matmul": "matmul: output head",
    "norm, reduction": "norm, reduction: norms, gradient norm",
    "elementwise": "elementwise: norms, rotary, SiLU",
    "optimizer": "optimizer: update, clipping",
    "indexing": "indexing: embeddings, label tokens",
}


def show_cell(cell: Mapping[str, Any], console: Console) -> None:
    """Print a cell's prediction, its step in parts, and what stands beside that."""
    console.print()
    console.print(prediction_table(cell))
    figures, gap = cell["measurement"], cell["explanation"]
    if cell["status"] != "ok":
        what = f"{cell['id']}: {cell['status']}: {cell['message']}"
        console.print(Text(what + (f"; {cell['hint']}" if cell["hint"] else ""), style="yellow"))
        return
    if gap:
        console.print()
        console.print(gap_table(cell["id"], gap))
    for line in (*(gap_lines(gap) if gap else ()), *step_lines(figures), *cell["notes"], *figures["notes"]):
        console.print(Text(line), soft_wrap=True)


def prediction_table(cell: Mapping[str, Any]) -> Table:
    """Return what each timing adds to the prediction."""
    table = new_table(f"{cell['id']}: predicted", "layers", "shape", "timing")
    add_numbers(table, "µs", "launches", "ms")
    found = cell["prediction"]
    for case, parts in by_case(found["layers"]).items():
        table.add_row(
            ", ".join(part["layer"] for part in parts),
            parts[0]["shape"],
            case,
            f"{parts[0]['p50_s'] * 1e6:,.1f}",
            f"{sum(part['launches_count'] for part in parts):,}",
            ms(math.fsum(part["total_s"] for part in parts)),
        )
    table.add_section()
    table.add_row("linear layers", "", "", "", "", ms(found["linear_s"]), style="bold")
    return table


def by_case(parts: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for part in parts:
        found.setdefault(part["case"], []).append(part)
    return found


def gap_table(name: str, gap: Mapping[str, Any]) -> Table:
    """Return the parts of a step, which add up to it."""
    table = new_table(f"{name}: a step", "part")
    add_numbers(table, "predicted ms", "alone ms", "measured ms", "% of step", "kernels alone", "kernels")
    linear, rest = ([row for row in gap["rows"] if row["linear"] is kind] for kind in (True, False))

    def add(part: str, s: float | None, predicted_s: float | None = None, alone_s: float | None = None,
            kernels: tuple[float | None, float | None] = (None, None), style: str | None = None) -> None:  # fmt: skip
        share = NOT_MEASURED if s is None else f"{100 * s / gap['step_s']:.1f}"
        table.add_row(part, ms(predicted_s), ms(alone_s), ms(s), share, *map(whole, kernels), style=style)

    add("linear layers", gap["linear_s"], gap["predicted_s"], gap["alone_s"], counts(linear), "bold")
    for row in linear:
        add(f"  {row['group']}", row["measured_s"], None, row["alone_s"], counts([row]))
    add("rest of the model", gap["rest_s"], kernels=counts(rest), style="bold")
    for row in rest:
        add(f"  {REST.get(row['group'], row['group'])}", row["measured_s"], kernels=counts([row]))
    waits = "GPU idle" if gap["execution"] == "eager" else "GPU idle: Python launches the update"
    add(waits, gap["idle_s"], style="bold")
    add("not explained", gap["not_explained_s"], style="bold")
    table.add_section()
    add(f"step ({gap['execution']})", gap["step_s"], gap["predicted_s"], style="bold")
    return table


def counts(rows: Sequence[Mapping[str, Any]]) -> tuple[float | None, float]:
    """Return how many kernels launches alone have (None where that is not known), and how many the step has."""
    alone = [row["alone_count"] for row in rows]
    return None if None in alone or not alone else sum(alone), sum(row["count"] for row in rows)


def gap_lines(gap: Mapping[str, Any]) -> Iterator[str]:
    """Yield what became of the prediction on its way into the step."""
    predicted_s, alone_s, linear_s = gap["predicted_s"], gap["alone_s"], gap["linear_s"]
    yield f"predicted {ms(predicted_s)} ms of {ms(gap['step_s'])} ms: {100 * gap['predicted_share']:.1f} % of the step"
    if alone_s is None:
        yield f"  linear layers in the step: {ms(linear_s)} ms, {change(linear_s, predicted_s)} against the prediction"
        return
    yield (
        f"  the same launches' kernels alone: {ms(alone_s)} ms, {change(alone_s, predicted_s)} against the prediction, "
        "which has the gaps between kernels in it"
    )
    if not gap["traced"]:
        yield NOT_TRACED
    else:
        yield f"  in the step: {ms(linear_s)} ms, {change(linear_s, alone_s)} against alone (clocks, power, cache)"
    yield f"  the rest of the model: {ms(gap['rest_s'])} ms, {100 * gap['rest_s'] / gap['step_s']:.1f} % of the step"


def step_lines(figures: Mapping[str, Any]) -> Iterator[str]:
    eager, graph, kernels = (figures[name] for name in ("eager_step_p50_s", "graph_step_p50_s", "kernels_s"))
    yield f"eager step: {ms(eager)} ms, graph step: {ms(graph)} ms, kernels of an eager step: {ms(kernels)} ms"


def show_summary(cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one row a cell, and what the columns mean."""
    table = new_table("all cells", "cell")
    add_numbers(table, "predicted linear s", "measured step s", "share %", "linear in step s", "launched")
    for cell in cells:
        predicted_s, gap = cell["prediction"]["linear_s"], cell["explanation"]
        if cell["status"] != "ok":
            table.add_row(cell["id"], seconds(predicted_s), cell["status"])
            continue
        step_s, execution = step_of(cell["measurement"])
        share = f"{100 * predicted_s / step_s:.1f}"
        in_step = seconds(gap["linear_s"]) if gap else NOT_MEASURED
        table.add_row(cell["id"], seconds(predicted_s), seconds(step_s), share, in_step, execution)
    console.print()
    console.print(table)
    console.print(Text(LEGEND, style="dim"))


def new_table(title: str, *headings: str) -> Table:
    return Table(*headings, title=title, title_justify="left", title_style="bold", header_style="bold", box=None)


def add_numbers(table: Table, *headings: str) -> None:
    for heading in headings:
        table.add_column(heading, justify="right")


def seconds(value: float) -> str:
    return f"{value:.4f}"


def change(now: float, before: float) -> str:
    return f"{100 * (now / before - 1):+.1f} %"


def whole(count: float | None) -> str:
    return NOT_MEASURED if count is None else f"{count:,.0f}"
