from __future__ import annotations

import json
import math

import pytest

from bench.tables.json import to_json
from bench.tables.kernels import load_kernels

from .kernel_examples import CPU, case, document, peaks, refused, timed, whole_matrix, write_kernels

COLUMNS = [
    "id", "status", "message", "hint", "operation", "model", "layer", "quant_type", "double_quant", "compute_dtype",
    "rows", "lora_r", "p50_s", "p25_s", "p75_s", "iqr_s", "min_s", "rounds_count", "out_features", "in_features",
    "launches_count", "flops_count", "moved_bytes", "stored_bytes", "scratch_bytes", "rotated_bytes", "cache_bytes",
    "weight_error", "smollm2_weight_error", "fused", "launch", "warnings", "bytes_per_s", "flops_per_s",
    "copy_share", "matmul_share", "time_ratio_16bit",
]  # fmt: skip


def loaded(folder, cases, **about):
    return load_kernels(write_kernels(folder / "r", cases, **about))


def test_a_row_is_a_case_and_those_that_were_refused_come_last(tmp_path):
    refusals = [refused(status="oom", message="1 GB short", hint=None)]
    frame = loaded(tmp_path, [case("nf4"), case("none")], refusals=refusals)
    assert list(frame) == COLUMNS
    assert frame["status"].tolist() == ["ok", "ok", "oom"]
    last = frame.iloc[2]
    assert (last["message"], last["hint"], last["quant_type"], last["rows"]) == ("1 GB short", None, "nf4", 512)
    assert last[["p50_s", "flops_count", "copy_share", "time_ratio_16bit"]].isna().all()
    assert last["fused"] is None


def test_times_are_pytest_benchmark_s_own_in_seconds(tmp_path):
    one = case("nf4", rounds=7)
    (row,) = loaded(tmp_path, [one]).to_dict("records")
    names = {"p50_s": "median", "p25_s": "q1", "p75_s": "q3", "iqr_s": "iqr", "min_s": "min", "rounds_count": "rounds"}
    assert {name: row[name] for name in names} == {name: one["stats"][field] for name, field in names.items()}


def test_rates_are_shares_of_the_better_of_two_measurements_of_the_best_size(tmp_path):
    info = {"moved_bytes": 1_000_000, "flops_count": 2_000_000}
    told = peaks(drift=-0.1, copy=4e9, matmul={"bfloat16": 1e12})
    frame = loaded(tmp_path, [case(median_s=1e-3, spread=0, info=info)], of_peaks=told)
    row = frame.iloc[0]
    assert row["bytes_per_s"] == pytest.approx(1e9)
    assert row["copy_share"] == pytest.approx(0.25)
    assert row["flops_per_s"] == pytest.approx(2e9)
    assert row["matmul_share"] == pytest.approx(0.002)
    found = frame.attrs["peaks"]
    assert found.copy_bytes_per_s == pytest.approx(4e9)
    assert found.matmul_flops_per_s == pytest.approx({"bfloat16": 1e12})
    assert found.drift == pytest.approx({"copy": -0.1, "matmul bfloat16": -0.1})


def test_what_multiplies_nothing_has_no_flops_and_a_dtype_without_a_peak_has_no_share(tmp_path):
    frame = loaded(tmp_path, [case(operation="dequantize"), case(compute_dtype="float32")],
                   of_peaks=peaks(matmul={"bfloat16": 1e12}))  # fmt: skip
    assert frame["flops_per_s"].isna().tolist() == [True, False]
    assert frame["matmul_share"].isna().all()
    assert frame["copy_share"].notna().all()
    assert frame[["rows", "lora_r"]].isna().to_numpy().tolist() == [[True, True], [False, False]]


def test_without_peaks_there_are_no_shares(tmp_path):
    frame = loaded(tmp_path, [case()], of_peaks=[])
    assert frame[["copy_share", "matmul_share"]].isna().to_numpy().all()
    assert math.isnan(frame.attrs["peaks"].copy_bytes_per_s)
    assert frame.attrs["peaks"].drift == {}


@pytest.mark.parametrize(
    "others",
    [{"rows": 4}, {"lora_r": 16}, {"layer": "k_proj"}, {"compute_dtype": "float16"}, {"operation": "forward_backward"},
     {"model": "llama-3.1-8b"}],
)  # fmt: skip
def test_the_ratio_is_to_the_case_that_differs_in_being_unquantized_alone(tmp_path, others):
    cases = [case("nf4-dq", median_s=3e-6), case("none", median_s=1e-6, **others), case("none", median_s=2e-6)]
    ratios = loaded(tmp_path, cases)["time_ratio_16bit"]
    assert ratios.tolist() == pytest.approx([1.5, 1, 1], rel=1e-3)
    assert math.isnan(loaded(tmp_path, cases[:2])["time_ratio_16bit"].iloc[0])


def test_the_frame_says_where_and_with_what_it_was_measured(tmp_path):
    attrs = loaded(tmp_path, [case()]).attrs
    assert attrs["gpu"] == "NVIDIA H100 80GB HBM3"
    assert attrs["versions"] == {
        "torch": "2.11.0", "transformers": "5.17.0", "peft": "0.21.0", "bitsandbytes": "0.50.2"
    }  # fmt: skip
    assert (attrs["matrix"], attrs["datetime"][:10], attrs["warnings"]) == ("kernels", "2026-11-22", [])
    attrs = loaded(tmp_path, [case()], machine=CPU).attrs
    assert (attrs["gpu"], attrs["cpu"]) == (None, "Intel(R) Xeon(R) Platinum 8480C")


def test_a_benchmark_of_no_kernel_is_left_out_with_a_warning(tmp_path):
    (warning,) = loaded(tmp_path, [case(), timed({}, 1.0, "test_other")]).attrs["warnings"]
    assert warning.endswith("kernels.json: 1 benchmark of no kernel, left out.")


def test_the_rows_are_json_for_another_program(tmp_path):
    frame = loaded(tmp_path, [case("none", operation="forward", info={"scratch_bytes": None})], refusals=[refused()])
    (row, _) = json.loads(to_json(frame))
    assert (row["rows"], row["moved_bytes"], row["fused"]) == (512, frame["moved_bytes"].iloc[0], None)


def test_a_whole_matrix_keeps_its_order(tmp_path):
    cases = whole_matrix()
    frame = loaded(tmp_path, cases)
    assert frame["id"].tolist() == [one["extra_info"]["id"] for one in cases]
    assert len(frame) > 1_900
    assert frame["id"].is_unique
    eager = frame["launch"] == "eager"
    assert (frame.loc[frame["rows"].notna(), "time_ratio_16bit"].isna() == eager[frame["rows"].notna()]).all()
    assert frame.loc[eager, ["bytes_per_s", "flops_per_s", "copy_share", "matmul_share"]].isna().all(axis=None)


def test_the_examples_have_the_form_that_pytest_benchmark_writes():
    one = document([case()])["benchmarks"][0]
    assert set(one) == {
        "group", "name", "fullname", "params", "param", "extra_info", "options", "stats"
    }  # fmt: skip
    assert {"min", "max", "mean", "stddev", "rounds", "median", "iqr", "q1", "q3", "ops", "data", "iterations"} <= set(
        one["stats"]
    )
