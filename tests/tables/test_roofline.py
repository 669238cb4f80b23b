from __future__ import annotations

import math

import pytest

from bench.tables.kernels import load_kernels
from bench.tables.roofline import MOST_LAYERS, NO_FLOPS, roofline

from .kernel_examples import case, crossed, peaks, refused, whole_matrix, write_kernels


def roof_of(folder, cases, **about):
    return roofline(load_kernels(write_kernels(folder / "r", cases, **about)))


def test_a_point_is_a_case_by_its_operations_for_each_byte_and_in_each_second(tmp_path):
    info = {"flops_count": 8_000, "moved_bytes": 1_000}
    (panel,) = roof_of(tmp_path, [case(median_s=2e-6, info=info)]).panels
    (point,) = panel.lines[0].points
    assert (point.rows, point.flops_per_byte) == (512, 8)
    assert point.flops_per_s == pytest.approx(4e9)


def test_of_a_whole_matrix_it_is_the_first_model_and_dtype_without_adapters(tmp_path):
    found = roof_of(tmp_path, whole_matrix())
    assert found.title == "kernels: roofline of qwen2.5-7b in bfloat16"
    assert found.operations == ["forward", "forward_backward"]
    assert [panel.heading for panel in found.panels[:2]] == ["q_proj, 3584 × 3584", "k_proj, 512 × 3584"]  # noqa: RUF001
    assert len(found.panels) == 8
    assert found.quantizations == ["none", "nf4", "nf4-dq", "fp4", "fp4-dq"]  # int8 waits for the host
    unquantized = found.panels[0].lines[-1]
    assert unquantized.quantization == "none"
    assert [point.rows for point in unquantized.points] == [1, 4, 8, 16, 32, 64, 128, 256, 512, 4096, 16384]
    assert f"The cases of qwen2.5-7b in bfloat16 without adapters. {NO_FLOPS}" in found.caption[-1]


def test_float32_is_drawn_only_where_there_is_no_16_bit_dtype(tmp_path):
    wide = case(compute_dtype="float32")
    assert "in float16" in roof_of(tmp_path, [wide, case(compute_dtype="float16")]).title
    found = roof_of(tmp_path, [wide])
    assert "in float32" in found.title
    assert found.matmul_flops_per_s == pytest.approx(49.147e12)


def test_the_roof_is_the_lower_of_both_peaks_and_what_is_known_of_them(tmp_path):
    def found(*kinds):
        told = [
            one for one in peaks(drift=0.0, copy=1e9, matmul={"bfloat16": 1e12}) if one["extra_info"]["peak"] in kinds
        ]
        return roof_of(tmp_path, [case()], of_peaks=told)

    assert [found("copy", "matmul").roof(x) for x in (10, 1000, 5000)] == pytest.approx([1e10, 1e12, 1e12])
    assert found("copy").roof(5000) == pytest.approx(5e12)
    assert found("matmul").roof(10) == pytest.approx(1e12)
    assert math.isnan(found().roof(10))
    assert [found(*kinds).has_roof for kinds in (("copy",), ("matmul",), ())] == [True, True, False]


def test_of_many_layers_the_first_are_drawn_and_the_caption_names_them(tmp_path):
    layers = [f"{number}x64" for number in range(1, 8)]
    found = roof_of(tmp_path, crossed(["qwen2.5-7b"], layers, (1,), ranks=(0,), names=("none",)))
    assert len(found.panels) == MOST_LAYERS
    assert found.caption[-1] == "Of 7 layers, 1x64, 2x64, 3x64 and 4x64."


def test_where_nothing_multiplies_there_is_nothing_to_draw(tmp_path):
    assert roof_of(tmp_path, [case(operation="dequantize")]) is None
    assert roof_of(tmp_path, [], refusals=[refused()]) is None


def test_the_lowest_rank_is_drawn_where_every_case_has_adapters(tmp_path):
    found = roof_of(tmp_path, [case(lora_r=16), case(lora_r=8)])
    assert "with adapters of rank 8" in found.caption[-1]
    assert len(found.panels[0].lines[0].points) == 1
