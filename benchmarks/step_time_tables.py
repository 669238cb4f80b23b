"""The tables of `benchmarks.step_time`: one a cell, beside the first, and one of all cells."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from benchmarks.kernel_groups import GROUP_NAMES, OTHER

LEGEND = (
    "Medians of steps; eager steps each begin on an idle device. vs first: of the graph step, where there is none of "
    "the eager step. Kernels: of one eager step under torch's profiler, outside of the timed ones. Update: clipping, "
    "optimizer and schedule, in the graph step or else the eager step."
)

NOT_MEASURED = "\N{EN DASH}"
OTHERS_SHOWN = 5
NAME_CHARACTERS = 120


def first_measured(cells: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the cell that the others are compared with: the first that has figures."""
    return next((cell for cell in cells if cell["status"] == "ok"), None)


def show_cell(cell: Mapping[str, Any], first: Mapping[str, Any] | None, top: int, console: Console) -> None:
    """Print a cell's kernels by group with the difference to the first cell, then its eager and its graph step."""
    console.print()
    if cell["status"] != "ok" or first is None:
        what = f"{cell['id']}: {cell['status']}: {cell['message']}"
        console.print(Text(what + (f"; {cell['hint']}" if cell["hint"] else ""), style="yellow"))
        return
    console.print(group_table(cell, None if cell is first else first))
    notes = [note for note in cell["notes"] if cell is first or note not in first["notes"]]
    for line in (*step_lines(cell), *notes, *kernel_lines(cell, top)):
        console.print(Text(line), soft_wrap=True)


def group_table(cell: Mapping[str, Any], first: Mapping[str, Any] | None) -> Table:
    """Return the table of a cell's kernels by group; groups that only the first cell has are there too."""
    unit = "operators" if on_cpu(cell) else "kernels"
    table = Table("group", title=cell["id"], title_justify="left", title_style="bold", header_style="bold", box=None)
    for heading in (unit, "Δ", "ms", "Δ ms"):
        table.add_column(heading, justify="right")
    ours, theirs = cell["groups"], first["groups"] if first else None
    nothing = {"count": 0, "total_s": 0.0}
    for group in GROUP_NAMES:
        if group in ours or (theirs and group in theirs):
            table.add_row(group, *figures(ours.get(group, nothing), theirs.get(group, nothing) if theirs else None))
    table.add_section()
    table.add_row("all", *figures(total(cell), total(first) if first else None), style="bold")
    return table


def figures(ours: Mapping[str, float], theirs: Mapping[str, float] | None) -> tuple[str, str, str, str]:
    """Write count and time, each with its difference where there is something to compare with."""
    return (
        f"{ours['count']:,}",
        f"{ours['count'] - theirs['count']:+,}" if theirs else NOT_MEASURED,
        ms(ours["total_s"]),
        f"{(ours['total_s'] - theirs['total_s']) * 1e3:+,.3f}" if theirs else NOT_MEASURED,
    )


def total(cell: Mapping[str, Any]) -> dict[str, float]:
    return {"count": cell["kernels_count"] or 0, "total_s": cell["kernels_s"] or 0.0}


def step_lines(cell: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an eager step, a graph step, and the update in each take."""
    eager, kernels = cell["eager_step_p50_s"], cell["kernels_s"]
    share = f"; kernels are {kernels / eager:.0%} of it" if kernels and not on_cpu(cell) else ""
    yield f"eager step: {ms(eager)} ms{share}"
    for part, words in (("eager_forward_backward", "forward and backward"), ("eager_update", "update")):
        yield f"  {words}: {ms(cell[f'{part}_p50_s'])} ms, of which the host {ms(cell[f'{part}_host_p50_s'])} ms"
    if (waits := cell["synchronizations_count"]) is not None:
        yield f"  the host synchronizes with the GPU {waits:,} times"
    if cell["graph_step_p50_s"] is not None:
        where = "a graph too" if cell["update_in_graph"] else "launched by the host, outside of the graph"
        yield f"graph step: {ms(cell['graph_step_p50_s'])} ms"
        yield f"  forward and backward: {ms(cell['graph_forward_backward_p50_s'])} ms"
        yield f"  update: {ms(cell['graph_update_p50_s'])} ms, {where}"


def kernel_lines(cell: Mapping[str, Any], top: int) -> Iterator[str]:
    """Yield the names that took longest, of all and of `other`."""
    kernels = cell["kernels"]
    others = [kernel for kernel in kernels if kernel["group"] == OTHER]
    for title, shown in (("longest", kernels[:top]), (f"longest of {OTHER}", others[:OTHERS_SHOWN])):
        if shown:
            yield f"{title}:"
        for kernel in shown:
            count = f"{kernel['count']:,} of"
            yield f"  {ms(kernel['total_s'])} ms, {count} [{kernel['group']}] {short(kernel['name'])}"


def short(name: str) -> str:
    """Leave out of a kernel's name what all have in common, and what follows after a line's length."""
    for common in ("void ", "at::native::", "(anonymous namespace)::"):
        name = name.replace(common, "")
    return name if len(name) <= NAME_CHARACTERS else name[: NAME_CHARACTERS - 1] + "…"


def show_summary(cells: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Print one row a cell, and what the columns mean."""
    first = first_measured(cells)  # type: ignore[arg-type]
    if first is None:
        return
    table = Table(title="all cells", title_justify="left", title_style="bold", header_style="bold", box=None)
    table.add_column("cell", no_wrap=True)
    for heading in ("eager ms", "graph ms", "vs first %", "kernels ms", "kernels", "update ms"):
        table.add_column(heading, justify="right")
    for cell in cells:
        if cell["status"] != "ok":
            table.add_row(cell["id"], cell["status"])
            continue
        execution = "eager" if cell["graph_step_p50_s"] is None else "graph"
        change = NOT_MEASURED
        if cell is not first and (base := first[f"{execution}_step_p50_s"]):
            change = f"{(cell[f'{execution}_step_p50_s'] / base - 1) * 100:+.1f}"
        table.add_row(
            cell["id"],
            ms(cell["eager_step_p50_s"]),
            ms(cell["graph_step_p50_s"]),
            change,
            ms(cell["kernels_s"]),
            NOT_MEASURED if cell["kernels_count"] is None else f"{cell['kernels_count']:,}",
            ms(cell[f"{execution}_update_p50_s"]),
        )
    console.print()
    console.print(table)
    console.print(Text(LEGEND, style="dim"))


def ms(seconds: float | None) -> str:
    return NOT_MEASURED if seconds is None else f"{seconds * 1e3:,.3f}"


def on_cpu(cell: Mapping[str, Any]) -> bool:
    return "gpu_name" not in cell["environment"]
