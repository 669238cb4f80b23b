from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell.failures import Invalid
from bench.errors import BenchError
from bench.matrix.kernel_parameters import KernelParameters
from benchmarks.kernels.__main__ import command
from benchmarks.kernels.session import outcome
from tests.benchmarks.scripts import script

MATRIX = """\
schema: 1
kind: kernels
name: tiny
defaults: {layer: 128x192, rows: 4}
axes:
  operation: [quantize, dequantize, forward, forward_backward]
  lora_r: [0, 8]
  quant_type: [nf4, int8, none]
exclude:
  - {operation: quantize, quant_type: none}
  - {operation: dequantize, quant_type: none}
include:
  - {id: keys, model: smollm2-135m, layer: k_proj, double_quant: false}
"""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("matrix") / "tiny.yaml"
    path.write_text(MATRIX)
    return path


@pytest.fixture(scope="module")
def results(matrix: Path) -> Path:
    """Return the folder of a run of the tiny matrix, and of a case that is refused."""
    with matrix.open("a") as file:
        file.write("  - {id: unknown, model: qwen2.5-7b, layer: w1}\n")
    folder = matrix.parent / "results"
    done = script("kernels", matrix, "--device", "cpu", "--results", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "invalid" in done.stdout
    return folder / "tiny"


def found(results: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((results / "kernels.json").read_text())
    return content


def test_every_case_is_a_benchmark_with_what_it_computes_and_moves(results: Path) -> None:
    cases = {entry["extra_info"]["id"]: entry for entry in found(results)["benchmarks"] if "id" in entry["extra_info"]}

    assert len(cases) == 2 * 2 + 2 * 2 * 3 + 1
    info = cases["forward-nf4-r8"]["extra_info"]
    assert info["parameters"] == {
        "operation": "forward", "model": "qwen2.5-7b", "layer": "128x192", "quant_type": "nf4", "double_quant": True,
        "compute_dtype": "bfloat16", "rows": 4, "lora_r": 8,
    }  # fmt: skip
    assert (info["out_features"], info["in_features"]) == (128, 192)
    assert info["flops_count"] == 2 * 4 * (128 * 192 + 8 * (128 + 192))
    assert info["launch"] == "host"
    assert info["weight_error"] == pytest.approx(0.092, abs=2e-3)
    assert info["smollm2_weight_error"] is None  # which has no layer of that name
    assert cases["keys"]["extra_info"]["smollm2_weight_error"] == pytest.approx(0.0943, abs=1e-3)
    stats = cases["forward-nf4-r8"]["stats"]
    assert stats["rounds"] >= 5
    assert 0 < stats["min"] <= stats["median"] <= stats["max"] < 10
    quantize = cases["quantize-int8"]["extra_info"]["parameters"]
    assert quantize["rows"] is None
    assert quantize["lora_r"] is None


def test_peaks_are_measured_at_the_start_and_at_the_end(results: Path) -> None:
    entries = [entry["extra_info"] for entry in found(results)["benchmarks"]]

    peaks = [(entry["peak"], entry["compute_dtype"], entry["repeat"]) for entry in entries if "peak" in entry]
    once = [("copy", "uint8"), *[("matmul", "bfloat16")] * 2]
    assert peaks == [(*peak, repeat) for repeat in (0, 1) for peak in once]
    assert "peak" in entries[0]
    assert "peak" in entries[-1]


def test_a_case_that_cannot_run_is_a_row_that_says_so(results: Path) -> None:
    (row,) = found(results)["refused"]

    assert (row["id"], row["status"]) == ("unknown", "invalid")
    assert row["message"] == "layer: qwen2.5-7b has no linear layer 'w1'"
    assert row["hint"].startswith("it has q_proj")


def test_the_machine_is_said_and_not_named(results: Path) -> None:
    machine = found(results)["machine_info"]

    assert machine["gpu"] is None
    assert {"torch", "bitsandbytes", "peft", "transformers"} <= machine.keys()
    assert "node" not in machine


def test_tables_and_matrix_lie_beside_the_json(results: Path, matrix: Path) -> None:
    assert (results / "matrix.yaml").read_text() == matrix.read_text()
    assert (results / "tables" / "layers.csv").exists()
    assert not list(results.glob(".*"))


def test_an_earlier_run_is_set_aside_and_a_selection_runs_alone(results: Path, matrix: Path) -> None:
    before = (results / "kernels.json").read_text()

    done = script("kernels", matrix, "-k", "quantize and int8 and not de", "--device", "cpu",
                  "--results", results.parent, "--benchmark-autosave")  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    ids = [entry["extra_info"].get("id") for entry in found(results)["benchmarks"]]
    assert [id_ for id_ in ids if id_] == ["quantize-int8"]
    (aside,) = results.glob("kernels-*.json")
    assert aside.read_text() == before
    assert list((results / "benchmarks").rglob("*.json"))  # where pytest-benchmark compares from
    aside.replace(results / "kernels.json")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.yaml"], "missing.yaml"),
        (["matrices/cpu.yaml"], "nox -s bench"),
        (["-k", "nothing_like_it"], "nothing_like_it"),
        (["matrices/kernels.yaml", "matrices/kernels-cpu.yaml"], "two matrices are given; give one"),
    ],
)
def test_a_wrong_request_is_told_and_nothing_is_written(arguments: list[str], said: str, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=said):
        command(["--device", "cpu", *arguments, "--results", str(tmp_path / "results")], standalone_mode=False)
    assert not (tmp_path / "results").exists()


def test_only_the_weights_matter_to_their_own_operations() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    assert outcome(error, KernelParameters())[2] == "take fewer rows, or a smaller layer"
    assert outcome(error, KernelParameters(operation="quantize"))[2] == "take a smaller layer"


def test_nothing_is_written_where_cells_have_theirs(matrix: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "records.jsonl").touch()

    with pytest.raises(BenchError, match="holds the result of a matrix of cells"):
        command([str(matrix), "--device", "cpu", "--results", str(tmp_path)], standalone_mode=False)
    assert [path.name for path in (tmp_path / "tiny").iterdir()] == ["records.jsonl"]


def test_a_file_is_no_folder_for_results(matrix: Path) -> None:
    with pytest.raises(BenchError, match="cannot be made: Not a directory; name another folder"):
        command([str(matrix), "--device", "cpu", "--results", str(matrix)], standalone_mode=False)


@pytest.mark.parametrize("option", ["--benchmark-json=mine.json", "--benchmark-disable"])
def test_options_that_would_leave_no_result_are_refused(option: str, matrix: Path, tmp_path: Path) -> None:
    with pytest.raises(BenchError, match=f"{option}: the results are kept in"):
        command([str(matrix), "--device", "cpu", "--results", str(tmp_path), option], standalone_mode=False)


def test_an_option_that_nobody_knows_writes_no_result(tmp_path: Path) -> None:
    done = script("kernels", "--no-such-option", "--device", "cpu", "--results", tmp_path / "results")

    assert done.returncode == 2
    assert "--no-such-option" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_mistake_in_a_matrix_has_its_place(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("schema: 1\nkind: kernels\naxes:\n  rows: [4, many]\n")

    with pytest.raises(BenchError) as raised:
        command([str(path), "--results", str(tmp_path / "results")], standalone_mode=False)

    assert str(raised.value).startswith(f"{path}:4:13: rows takes a whole number above zero, not the text 'many'")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Invalid("no such layer", "it has others"), "invalid", "no such layer"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), "oom",
         "out of memory: Tried to allocate 2.00 GiB"),
        (RuntimeError("inner dimension must be a multiple of 4\nmore"), "invalid",
         "the kernels refuse it: inner dimension must be a multiple of 4"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasGemmEx"), "invalid",
         "the kernels refuse it: CUDA error: CUBLAS_STATUS_NOT_SUPPORTED when calling cublasGemmEx"),
        (RuntimeError("CUDA error: an illegal memory access"), "crashed",
         "RuntimeError: CUDA error: an illegal memory access"),
        (KeyError("absmax"), "crashed", "KeyError: 'absmax'"),
    ],
)  # fmt: skip
def test_what_ends_a_case_decides_its_status(error: Exception, status: str, message: str) -> None:
    assert outcome(error, KernelParameters())[:2] == (status, message)
