from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from io import StringIO

import pytest
import torch
from rich.console import Console

from bench.matrix.expand import load_matrix
from bench.protocol import Request
from benchmarks.step_prediction import MATRIX, differences
from benchmarks.step_prediction_cell import OPERAND_SETS, describe, launched_alone, linear_layers, noted
from benchmarks.step_prediction_tables import NOT_TRACED, show_cell, show_summary
from benchmarks.step_time_cell import COUNTS
from benchmarks.step_time_tables import NOT_MEASURED
from tests.benchmarks.scripts import ROOT, script
from tests.models import config
from tests.tables.kernel_examples import GPU, case, write_kernels

CPU = torch.device("cpu")
LAYERS_COUNT = 14  # seven in each of two blocks
SHAPES = {"q_proj": (64, 64), "k_proj": (32, 64), "gate_proj": (128, 64), "down_proj": (64, 128)}
MATRIX_TEXT = """\
schema: 1
name: tiny
about: Does it run?
defaults: {{model: {model}, weights: random, max_length: 15, batch_size: 2, kbit_upcast: false}}
include:
  - {{id: nf4-dq-checkpointing, quant_type: nf4, gradient_checkpointing: true}}
  - {{id: too-long, quant_type: none, max_length: 400}}
baseline: nf4-dq-checkpointing
"""


def test_its_own_matrix_has_the_cells_that_it_is_about():
    found = {cell.id: cell.parameters for cell in load_matrix(MATRIX).cells}

    assert list(found) == ["lora-bf16", "nf4", "nf4-dq", "fp4", "nf4-dq-checkpointing"]
    assert {(cell.model, cell.weights) for cell in found.values()} == {("qwen2.5-7b", "random")}
    assert {cell.batch_size * cell.max_length for cell in found.values()} == {4096}
    assert {cell.kbit_upcast for cell in found.values()} == {False}
    assert {(cell.lora_r, cell.target_modules) for cell in found.values()} == {(16, "all-linear")}
    assert {cell.optim for cell in found.values()} == {"paged_adamw_8bit"}
    assert {name for name, cell in found.items() if cell.double_quant} == {"nf4-dq", "nf4-dq-checkpointing"}
    assert {name for name, cell in found.items() if cell.gradient_checkpointing} == {"nf4-dq-checkpointing"}


def test_the_process_that_starts_others_does_without_torch():
    code = "import sys, benchmarks.step_prediction; sys.exit('torch' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60, check=False).returncode == 0


# Linear layers --------------------------------------------------------------------------------------------------------


def test_a_7b_model_has_196_linear_layers():
    cells = [cell.parameters.model_dump(mode="json") for cell in load_matrix(MATRIX).cells[:2]]

    found = describe(Request("layers", 0, {"cells": cells}, "cpu"), CPU, print)["cells"]

    assert [cell["rows"] for cell in found] == [4096, 4096]
    assert {
        layer["layer"]: (layer["out_features"], layer["in_features"], layer["bias"]) for layer in found[0]["layers"]
    } == {
        "q_proj": (3584, 3584, True),
        "k_proj": (512, 3584, True),
        "v_proj": (512, 3584, True),
        "o_proj": (3584, 3584, False),
        "gate_proj": (18944, 3584, False),
        "up_proj": (18944, 3584, False),
        "down_proj": (3584, 18944, False),
    }
    assert {layer["layers_count"] for layer in found[0]["layers"]} == {28}
    assert {layer["lora_r"] for layer in found[0]["layers"]} == {16}


def test_layers_of_one_name_are_told_apart_by_shape_and_adapter(tmp_path):
    config("gpt2").save_pretrained(tmp_path)

    found = [tuple(layer.values()) for layer in linear_layers(str(tmp_path), None, "attention", 8)]

    assert found == [
        ("c_attn", 2, 192, 64, True, 8),
        ("c_proj", 2, 64, 64, True, 8),
        ("c_fc", 2, 256, 64, True, 0),
        ("c_proj", 2, 64, 256, True, 0),
    ]


def test_a_launch_alone_is_that_of_the_kernel_benchmarks(tmp_path):
    config("llama").save_pretrained(tmp_path)
    launch = {"operation": "forward_backward", "model": str(tmp_path), "layer": "q_proj", "rows": 8, "lora_r": 4,
              "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}  # fmt: skip

    found = launched_alone(launch, CPU)

    # The base is dequantized forward and backward, and so are its scales.
    assert OPERAND_SETS > 1
    assert {name: found[name]["count"] for name in ("dequantize", "dequantize scales")} == {
        "dequantize": 2,
        "dequantize scales": 2,
    }
    assert all(figures["total_s"] > 0 for figures in found.values())


def test_what_only_explains_may_fail():
    notes: list[str] = []

    with noted("forward of q_proj did not run alone", notes):
        raise RuntimeError("no kernel\nsome advice")

    assert notes == ["forward of q_proj did not run alone: RuntimeError: no kernel"]


def test_another_machine_is_noted():
    source = {"gpu": "NVIDIA H100", "versions": {"torch": "2.11.0", "peft": "0.21.0"}}
    here = {"gpu_name": "NVIDIA H200", "torch": "2.11.0", "peft": "0.20.0"}

    assert differences(source, {"environment": here}) == [
        "the kernels were timed on NVIDIA H100, the step on NVIDIA H200",
        "the kernels were timed with peft 0.21.0, the step with peft 0.20.0",
    ]
    assert differences({"gpu": None, "versions": {}}, {"environment": {}}) == []


# The command ----------------------------------------------------------------------------------------------------------


def kernels(model, rows, names):
    shapes = {layer: dict(zip(("out_features", "in_features"), shape, strict=True)) for layer, shape in SHAPES.items()}
    return [
        case(name, operation=operation, model=str(model), layer=layer, rows=count, lora_r=16, median_s=1e-3, info=info)
        for name, operation, count in ((name, *more) for name in names for more in rows)
        for layer, info in shapes.items()
    ]


@pytest.fixture(scope="module")
def prediction(tmp_path_factory):
    """The document of a run with two cells, one of which cannot run, and what it printed."""
    folder = tmp_path_factory.mktemp("step-prediction")
    config("qwen2").save_pretrained(folder / "model")
    (folder / "tiny.yaml").write_text(MATRIX_TEXT.format(model=folder / "model"))
    # 15 tokens are padded to 16.
    timed = kernels(folder / "model", [("forward_backward", 32), ("forward", 32)], ["nf4-dq"])
    write_kernels(folder, [*timed, *kernels(folder / "model", [("forward_backward", 800)], ["none"])], machine=GPU)
    ended = script(
        "step_prediction",
        folder / "kernels.json",
        folder / "tiny.yaml",
        "--device",
        "cpu",
        "--out",
        folder / "out.json",
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "out.json").read_text()), ended.stdout


@pytest.mark.slow
def test_figures_agree_with_each_other(prediction):
    document, _ = prediction

    assert (document["schema"], document["matrix"], document["device"]) == (1, "tiny", "cpu")
    assert document["kernels"]["file"] == "kernels.json"
    cell = document["cells"][0]
    assert (cell["id"], cell["status"]) == ("nf4-dq-checkpointing", "ok")
    assert cell["prediction"]["linear_s"] == pytest.approx(2 * LAYERS_COUNT * 1e-3)
    figures, gap = cell["measurement"], cell["explanation"]
    assert gap["step_s"] == figures["eager_step_p50_s"]
    assert gap["predicted_share"] == pytest.approx(cell["prediction"]["linear_s"] / gap["step_s"])
    assert gap["linear_s"] + gap["rest_s"] + gap["not_explained_s"] == pytest.approx(gap["step_s"])
    assert gap["idle_s"] is None
    assert gap["traced"] is True
    assert figures["traced_share"] == pytest.approx(1)
    assert gap["linear_s"] == pytest.approx(math.fsum(group["total_s"] for group in figures["linear_groups"].values()))
    (dequantize,) = [row for row in gap["rows"] if row["group"] == "dequantize" and row["linear"]]
    assert dequantize["count"] == dequantize["alone_count"] == 3 * LAYERS_COUNT
    assert len(figures["alone"]) == 2 * len(SHAPES)
    assert len(figures["readings_s"]["eager_step"]) < COUNTS["cpu"].eager


@pytest.mark.slow
def test_a_cell_that_cannot_run_keeps_its_prediction(prediction):
    cell = prediction[0]["cells"][1]

    assert (cell["id"], cell["status"]) == ("too-long", "invalid")
    assert cell["message"] == "the model has 256 positions, and max_length is 400"
    assert cell["prediction"]["linear_s"] == pytest.approx(LAYERS_COUNT * 1e-3)
    assert cell["measurement"] is cell["explanation"] is None


@pytest.mark.slow
def test_what_is_printed_is_what_was_measured(prediction):
    document, shown = prediction
    cell = document["cells"][0]
    gap, predicted_s = cell["explanation"], cell["prediction"]["linear_s"]

    assert re.search(r"q_proj, o_proj +64x64 +\S+ +1,000.0 +4 +4.000", shown)
    assert row(shown, "linear layers  ", 1) == [
        "linear layers", *(f"{1e3 * seconds:,.3f}" for seconds in (predicted_s, gap["alone_s"], gap["linear_s"])),
        f"{100 * gap['linear_s'] / gap['step_s']:.1f}",
    ]  # fmt: skip
    assert row(shown, "step (eager)  ")[:2] == ["step (eager)", f"{1e3 * predicted_s:,.3f}"]
    assert row(shown, "nf4-dq-checkpointing  ")[:4] == [
        "nf4-dq-checkpointing", f"{predicted_s:.4f}", f"{gap['step_s']:.4f}",
        f"{100 * predicted_s / gap['step_s']:.1f}",
    ]  # fmt: skip
    assert row(shown, "too-long  ")[2] == "invalid"
    for words in (
        "too-long: invalid: the model has 256 positions, and max_length is 400; lower max_length",
        "o_proj: by the timing of q_proj, which has a bias",
        "the kernels were timed on NVIDIA H100 80GB HBM3, the step on a CPU",
        "On a CPU there are no kernels and no graph",
    ):
        assert words in shown


@pytest.mark.slow
def test_what_is_not_known_is_not_shown(prediction):
    cell = prediction[0]["cells"][0]
    untraced = {**cell, "explanation": {**cell["explanation"], "traced": False}}
    unseen = {**cell, "id": "unseen", "explanation": None}
    nothing_alone = {**cell, "explanation": {**cell["explanation"], "alone_s": None}}

    assert NOT_TRACED.strip() in text(show_cell, untraced)
    assert "a step" not in text(show_cell, unseen)
    assert "linear layers in the step" in text(show_cell, nothing_alone)
    assert row(text(show_summary, [unseen]), "unseen  ")[4] == NOT_MEASURED


def text(show, what):
    console = Console(width=160, record=True, file=StringIO(), highlight=False)
    show(what, console)
    return console.export_text()


def row(text, start, number=0):
    """Return the columns of the `number`th line that begins so."""
    line = [line for line in text.splitlines() if line.strip().startswith(start)][number]
    return re.split(r"\s{2,}", line.strip())[:5]


@pytest.mark.slow
def test_nothing_runs_where_a_timing_is_missing(tmp_path):
    config("qwen2").save_pretrained(tmp_path / "model")
    (tmp_path / "tiny.yaml").write_text(MATRIX_TEXT.format(model=tmp_path / "model"))
    write_kernels(tmp_path, kernels(tmp_path / "model", [("forward_backward", 32)], ["nf4-dq"]))

    ended = script("step_prediction", tmp_path, tmp_path / "tiny.yaml", "--out", tmp_path / "out.json")

    assert ended.returncode == 2
    assert ended.stdout == ""
    first, second = ended.stderr.splitlines()
    assert first.startswith(f"error: {tmp_path} lacks timings for cell nf4-dq-checkpointing: q_proj, k_proj, v_proj, ")
    assert "(forward, nf4 with double quantization, bfloat16, 32 rows, lora_r 16)" in first
    assert "cell too-long" in second
    assert "with a matrix of kernels that has include: [{operation: forward_backward, " in second
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name the kernels.json that nox -s kernels wrote"),
        (["no-such.json"], "no-such.json: "),
    ],
)
def test_a_mistake_is_told_at_once(arguments, message):
    ended = script("step_prediction", *arguments)

    assert ended.returncode == 2
    assert message in ended.stderr
    assert "Traceback" not in ended.stderr
