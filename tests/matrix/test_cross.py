from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.matrix.parameters import Parameters

from .examples import DESIGN, SMALL, ids, load

AXES: dict[str, list[Any]] = {
    "quant_type": ["nf4", "fp4"],
    "double_quant": [False, True],
    "compute_dtype": ["bfloat16", "float16", "float32"],
    "lora_r": [4, 8, 16],
    "target_modules": ["attention", "mlp"],
}


def test_the_matrix_of_the_design_has_the_cells_it_says(tmp_path: Path) -> None:
    matrix = load(tmp_path, DESIGN)
    assert ids(matrix) == [
        "nf4-bf16-attention",
        "nf4-bf16-all-linear",
        "nf4-fp16-attention",
        "nf4-fp16-all-linear",
        "nf4-dq-bf16-attention",
        "nf4-dq-bf16-all-linear",
        "nf4-dq-fp16-attention",
        "nf4-dq-fp16-all-linear",
        "fp4-bf16-attention",
        "fp4-bf16-all-linear",
        "fp4-fp16-attention",
        "fp4-fp16-all-linear",
        "lora-bf16",
    ]
    assert (matrix.name, matrix.about) == ("default", "Which 4-bit settings should a QLoRA run use?")
    assert (matrix.baseline, matrix.seeds, matrix.text) == ("lora-bf16", (0, 1, 2), DESIGN)
    rates = {cell.parameters.compute_dtype: cell.parameters.learning_rate for cell in matrix.cells}
    assert rates == {"bfloat16": 5e-4, "float16": 1e-4}


def test_what_follows_from_other_parameters_follows_them_in_every_row(tmp_path: Path) -> None:
    cells = {cell.id: cell.parameters for cell in load(tmp_path, DESIGN).cells}
    baseline = cells["lora-bf16"]
    assert (baseline.double_quant, baseline.kbit_upcast, baseline.load_dtype) == (False, False, "bfloat16")
    assert cells["nf4-fp16-attention"].load_dtype == "float16"
    assert cells["nf4-fp16-attention"].kbit_upcast is True


def test_what_an_override_changes_other_values_follow(tmp_path: Path) -> None:
    text = SMALL + "overrides: [{when: {quant_type: fp4}, set: {quant_type: none, compute_dtype: float16}}]\n"
    changed = load(tmp_path, text).cells[1].parameters
    assert changed == Parameters(quant_type="none", compute_dtype="float16")  # type: ignore[call-arg]
    assert (changed.double_quant, changed.load_dtype) == (False, "float16")


def test_overrides_change_rows_of_include_and_the_later_one_wins(tmp_path: Path) -> None:
    text = SMALL + (
        "overrides:\n"
        "  - {when: {quant_type: fp4}, set: {lora_r: 4, lora_alpha: 4}}\n"
        "  - {when: {lora_r: 4}, set: {lora_dropout: 0.5}}\n"
        "  - {when: {quant_type: fp4, batch_size: 1}, set: {lora_r: 8}}\n"
        "include:\n  - {id: a, quant_type: fp4, batch_size: 1}\n  - {id: b, lora_r: 4}\n"
    )
    cells = {cell.id: cell.parameters for cell in load(tmp_path, text).cells}
    assert (cells["fp4"].lora_r, cells["fp4"].lora_alpha, cells["fp4"].lora_dropout) == (4, 4, 0.0)
    assert (cells["a"].lora_r, cells["a"].lora_alpha) == (8, 4)
    assert cells["b"].lora_dropout == 0.5


def test_exclude_sees_defaults_and_derived_values_but_no_rows_of_include(tmp_path: Path) -> None:
    text = "schema: 1\naxes:\n  quant_type: [nf4, none]\nexclude: [{double_quant: false, lora_r: 16}]\n"
    assert ids(load(tmp_path, text + "include: [{id: x, quant_type: none}]")) == ["nf4", "x"]


def test_a_matrix_of_rows_alone_needs_no_axes(tmp_path: Path) -> None:
    text = "schema: 1\ninclude: [{quant_type: none}, {quant_type: nf4, lora_r: 8}, {id: own}]\nbaseline: none\n"
    assert ids(load(tmp_path, text)) == ["none", "nf4-r8", "own"]


def yaml_of(value: Any) -> str:
    return {True: "true", False: "false"}.get(value, str(value)) if isinstance(value, bool) else str(value)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_there_are_as_many_cells_as_the_product_less_what_is_excluded_and_more_what_is_included(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, unique=True))
    axes = {name: data.draw(st.lists(st.sampled_from(AXES[name]), min_size=1, unique=True)) for name in names}
    every = [dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values())]
    assert len(every) == math.prod(map(len, axes.values()))
    rows = [
        {name: cell[name] for name in data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))}
        for cell in data.draw(st.lists(st.sampled_from(every), max_size=3))
    ]
    kept = [cell for cell in every if not any(row.items() <= cell.items() for row in rows)]
    included = data.draw(st.integers(0 if kept else 1, 3))
    lines = ["schema: 1", "axes:", *(f"  {name}: [{', '.join(map(yaml_of, axes[name]))}]" for name in names)]
    lines += ["exclude:", *(f"  - {{{', '.join(f'{k}: {yaml_of(v)}' for k, v in row.items())}}}" for row in rows)]
    lines += ["include:", *(f"  - {{weight_decay: 0.{number + 1}}}" for number in range(included))]
    matrix = load(tmp_path_factory.mktemp("cells"), "\n".join(lines))
    assert len(matrix.cells) == len(kept) + included
    crossed = matrix.cells[: len(kept)]
    assert [{name: getattr(cell.parameters, name) for name in names} for cell in crossed] == kept
    assert len({cell.id for cell in matrix.cells}) == len({cell.key for cell in matrix.cells}) == len(matrix.cells)
