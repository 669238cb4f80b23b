from __future__ import annotations

from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from benchmarks.step_time_tables import NAME_CHARACTERS, NOT_MEASURED, first_measured, short, show_cell, show_summary
from tests.benchmarks.test_kernel_groups import ANONYMOUS


def test_a_long_name_keeps_what_tells_it_apart() -> None:
    name = f"{ANONYMOUS}multi_tensor_apply_kernel<{'x' * 500}>"

    assert short(name).startswith("multi_tensor_apply_kernel<")
    assert len(short(name)) == NAME_CHARACTERS


@pytest.mark.slow
def test_what_is_printed_is_what_was_measured(step_time: tuple[dict[str, Any], str]) -> None:
    (cell,), shown = step_time[0]["cells"], step_time[1]

    for group, figures in cell["groups"].items():
        assert f"{figures['count']:,}" in row(shown, group)
        assert f"{figures['total_s'] * 1e3:,.3f}" in row(shown, group)
    assert f"eager step: {cell['eager_step_p50_s'] * 1e3:,.3f} ms" in shown
    assert f"  update: {cell['eager_update_p50_s'] * 1e3:,.3f} ms, of which the host" in shown
    assert [shown.count(text) for text in ("graph step:", "longest:", "On a CPU there are no kernels")] == [0, 1, 1]
    assert all(short(kernel["name"]) in shown for kernel in cell["kernels"][:3])


@pytest.mark.slow
def test_cells_are_compared_with_the_first_that_has_figures(step_time: tuple[dict[str, Any], str]) -> None:
    (first,) = step_time[0]["cells"]
    failed = {"id": "too-large", "status": "oom", "message": "CUDA out of memory", "hint": "try less"}
    groups = {group: figures for group, figures in first["groups"].items() if group != "dequantize"}
    slower = {**first, "id": "slower", "groups": groups, "eager_step_p50_s": 1.5 * first["eager_step_p50_s"]}
    console = Console(width=120, record=True, file=StringIO(), highlight=False)
    cells = [failed, first, slower]

    for cell in cells:
        show_cell(cell, first_measured(cells), 0, console)
    shown = console.export_text()
    show_summary(cells, console)
    summary = console.export_text()

    assert "too-large: oom: CUDA out of memory; try less" in shown
    dequantize = first["groups"]["dequantize"]
    before, after = (row(shown, "dequantize", number).split()[1:] for number in range(2))
    assert before[1] == before[3] == NOT_MEASURED
    assert after == ["0", f"-{dequantize['count']}", "0.000", f"-{dequantize['total_s'] * 1e3:,.3f}"]
    assert row(shown, "matmul, 4-bit", 1).split()[3] == "+0"
    assert row(summary, "too-large").split() == ["too-large", "oom"]
    assert row(summary, "slower").split()[3] == "+50.0"


def row(text: str, start: str, number: int = 0) -> str:
    """Return the line of a table whose first column is `start`, of the `number`th table that has one."""
    return [line for line in text.splitlines() if line.strip().startswith(f"{start}  ")][number]
