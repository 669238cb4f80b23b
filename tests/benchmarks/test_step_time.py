from __future__ import annotations

import math
import subprocess
import sys
from statistics import median
from typing import Any

import pytest

from bench.matrix.expand import load_matrix
from benchmarks.kernel_groups import OTHER
from benchmarks.step_time import MATRIX
from benchmarks.step_time_cell import COUNTS
from tests.benchmarks.scripts import ROOT, script


def test_its_own_matrix_has_the_cells_that_it_is_about() -> None:
    matrix = load_matrix(MATRIX)

    assert matrix.cells[0].id == matrix.baseline == "lora-bf16"
    found = {cell.id: cell.parameters for cell in matrix.cells}
    assert {cell.weights for cell in found.values()} == {"random"}
    assert {cell.execution for cell in found.values()} == {"cuda_graph"}
    assert {name for name, cell in found.items() if cell.kbit_upcast} == {
        "nf4",
        "nf4-dq",
        "fp4",
        "nf4-paged-adamw-8bit",
    }
    assert {name for name, cell in found.items() if cell.double_quant} == {"nf4-dq"}
    assert {cell.optim for cell in found.values()} == {"adamw_torch_fused", "paged_adamw_8bit"}


def test_the_processes_that_start_others_do_without_torch() -> None:
    code = "import sys, benchmarks.large_shape, benchmarks.step_time; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-file.yaml"], "error: no-such-file.yaml"),
        (["-k", "nf5"], "error: -k 'nf5' selects none of 6 cells; did you mean nf4?"),
    ],
)
def test_a_mistake_is_told_in_a_line(arguments: list[str], message: str) -> None:
    done = script("step_time", *arguments)

    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.slow
def test_figures_agree_with_each_other(step_time: tuple[dict[str, Any], str]) -> None:
    document, _ = step_time

    assert (document["matrix"], document["device"]) == ("tiny", "cpu")
    (cell,) = document["cells"]
    assert (cell["id"], cell["status"], cell["seed"]) == ("nf4-8bit", "ok", 3)
    assert cell["parameters"]["optim"] == "paged_adamw_8bit"
    expected = {"dequantize", "dequantize scales", "matmul, 4-bit", "matmul", "optimizer", "attention"}
    assert expected <= set(cell["groups"])
    check_figures(cell)


def check_figures(cell: dict[str, Any]) -> None:
    groups, kernels, readings = cell["groups"], cell["kernels"], cell["readings_s"]
    assert sum(figures["count"] for figures in groups.values()) == cell["kernels_count"]
    assert math.fsum(figures["total_s"] for figures in groups.values()) == pytest.approx(cell["kernels_s"])
    for group, figures in groups.items():
        members = [kernel for kernel in kernels if kernel["group"] == group]
        assert figures["count"] == sum(kernel["count"] for kernel in members) > 0
        assert figures["total_s"] == pytest.approx(sum(kernel["total_s"] for kernel in members))
    unknown = groups.get(OTHER, {"count": 0})["count"]
    assert unknown < 0.01 * cell["kernels_count"], [k["name"] for k in kernels if k["group"] == OTHER]
    for name, values in readings.items():
        if name.startswith("graph_"):
            assert (values, cell[f"{name}_p50_s"]) == ([], None)
        else:
            assert len(values) == COUNTS["cpu"].eager
            assert cell[f"{name}_p50_s"] == median(values) > 0
    for part in ("eager_forward_backward", "eager_update"):
        assert all(host <= whole for host, whole in zip(readings[f"{part}_host"], readings[part], strict=True))
    assert cell["synchronizations_count"] is None
    assert cell["update_in_graph"] is None
