from __future__ import annotations

from io import StringIO

import pandas as pd
import pytest

from bench.tables.csv import to_csv
from bench.tables.kernel_overheads import overheads_table
from bench.tables.kernels import load_kernels

from .kernel_examples import SETTINGS, case, crossed, peaks, refused, whole_matrix, write_kernels


def table_of(folder, cases, **about):
    return overheads_table(load_kernels(write_kernels(folder / "r", cases, **about)))


def shown(table):
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return [dict(zip(headings, row, strict=True)) for row in table.texts()]


def us(**times):
    """One case a quantization, with its time in microseconds."""
    return [case(name.replace("_", "-"), median_s=time * 1e-6) for name, time in times.items()]


def test_quantizations_stand_side_by_side_against_16_bit_with_what_they_lose_above(tmp_path):
    table = table_of(
        tmp_path, [*us(none=10, nf4=12.5, nf4_dq=13), case("int8", median_s=3e-5, info={"launch": "host"})]
    )
    gaussian, smollm2, row = shown(table)
    assert row == {"layers of": "qwen2.5-7b forward", "rows": "512", "nf4": "+25.0 %", "nf4-dq": "+30.0 %",
                   "int8": "+200.0 %", "16-bit µs": "10.0"}  # fmt: skip
    assert (gaussian["layers of"], gaussian["nf4"], gaussian["int8"]) == ("RMSE/σ, Gaussian", "0.0932", "0.0089")  # noqa: RUF001
    assert smollm2["nf4"] == "0.0941"
    assert gaussian["rows"] == ""


def test_times_are_summed_over_the_layers_that_both_have(tmp_path):
    layers = {"q_proj": (10, 15), "k_proj": (2, 4)}
    cases = [
        case(name, layer=layer, median_s=time * 1e-6)
        for layer, times in layers.items() for name, time in zip(("none", "nf4"), times, strict=True)
    ]  # fmt: skip
    cases += [case("fp4", median_s=11e-6), case("none", layer="down_proj", median_s=1.0)]
    table = table_of(tmp_path, cases)
    row = shown(table)[-1]
    assert (row["nf4"], row["fp4"]) == ("+58.3 %", "+10.0 %")
    assert "Times are sums over the layers, each once: q_proj, k_proj and down_proj." in table.caption
    assert table.notes == ("Sums over fewer layers, since others have no time: fp4, qwen2.5-7b forward of 512 rows.",)


@pytest.mark.parametrize(("drift", "is_told"), [(0.0, False), (-0.027, True)])
def test_how_far_the_peaks_drifted_is_told_since_smaller_differences_mean_nothing(tmp_path, drift, is_told):
    table = table_of(tmp_path, us(none=10, nf4=12.5), of_peaks=peaks(drift=drift))
    line = "Differences of no more than the peaks drifted (2.7 %) are within the noise."
    assert (line in table.caption) == is_told


def test_the_csv_has_a_row_for_each_quantization_with_the_sums(tmp_path):
    table = table_of(tmp_path, us(none=10, nf4=12.5, fp4=13))
    rows = pd.read_csv(StringIO(to_csv(table)))
    assert rows["quantization"].tolist() == ["nf4", "fp4"]
    assert rows["time_ratio_16bit"].tolist() == pytest.approx([1.25, 1.3])
    assert rows["time_s"].tolist() == pytest.approx([12.5e-6, 13e-6])
    assert rows["layers_count"].tolist() == [1, 1]


def test_models_operations_ranks_and_rows_stand_in_order_under_one_another(tmp_path):
    cases = crossed(["llama-3.1-8b", "qwen2.5-7b"], ["q_proj"], (512, 16, 1), names=("none", "nf4"))
    told = shown(table_of(tmp_path, cases))[2:]
    assert [(row["layers of"], row["rows"], row["r"]) for row in told] == [
        ("llama-3.1-8b", "1", "0"), ("forward", "16", "0"), ("", "512", "0"),
        ("", "1", "16"), ("", "16", "16"), ("", "512", "16"),
        ("llama-3.1-8b", "512", "0"), ("forward_backward", "512", "16"),
        ("qwen2.5-7b", "1", "0"), ("forward", "16", "0"), ("", "512", "0"),
        ("", "1", "16"), ("", "16", "16"), ("", "512", "16"),
        ("qwen2.5-7b", "512", "0"), ("forward_backward", "512", "16"),
    ]  # fmt: skip


def test_a_dtype_is_named_where_there_are_several(tmp_path):
    dtypes = ("bfloat16", "float16")
    cases = [case(name, compute_dtype=dtype, rows=rows) for dtype in dtypes for rows in (1, 2, 3) for name in SETTINGS]
    labels = [row["layers of"] for row in shown(table_of(tmp_path, cases))[2:]]
    assert labels == ["qwen2.5-7b", "forward", "bfloat16", "qwen2.5-7b", "forward", "float16"]


@pytest.mark.parametrize(
    "cases", [[], [case("nf4"), case("fp4")], [case("none")], [case("nf4", operation="dequantize")]]
)
def test_without_two_cases_to_compare_there_is_no_table(tmp_path, cases):
    assert table_of(tmp_path, cases, refusals=[refused()]).rows.empty


def test_the_whole_matrix_fills_every_place_but_those_of_the_ladder(tmp_path):
    rows = table_of(tmp_path, whole_matrix()).rows[2:]
    assert rows[["nf4", "time_16bit_s"]].notna().all().all()
    assert rows["fp4"].isna().sum() == 5 + 1


def test_errors_are_means_over_the_layers_that_every_quantization_has(tmp_path):
    error = {"weight_error": 0.5, "smollm2_weight_error": 0.5}
    wide = case("nf4", compute_dtype="float32", info=error)  # of one quantization only

    gaussian, smollm2, *_ = shown(table_of(tmp_path, [*us(none=10, nf4=12.5, fp4=13), wide]))

    assert (gaussian["nf4"], smollm2["nf4"]) == ("0.0932", "0.0941")


def test_a_quantization_that_waits_for_the_host_has_its_error_and_no_time(tmp_path):
    gaussian, _, row = shown(table_of(tmp_path, us(none=10, nf4=12.5, int8=300)))

    assert (gaussian["int8"], row["int8"], row["nf4"]) == ("0.0089", "–", "+25.0 %")  # noqa: RUF001
