from __future__ import annotations

import pytest

from bench.tables.kernel_settings import by_chance, settings_table
from bench.tables.kernels import load_kernels

from .kernel_examples import LAYERS, case, peaks, refused, whole_matrix, write_kernels


def table_of(folder, cases, drift=0.0, **about):
    return settings_table(load_kernels(write_kernels(folder / "r", cases, of_peaks=peaks(drift=drift), **about)))


def shown(table):
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return [dict(zip(headings, row, strict=True)) for row in table.texts()]


@pytest.mark.parametrize(
    ("first", "second", "change"),
    [
        (case("nf4", median_s=1e-5), case("fp4", median_s=2e-5), "nf4 → fp4"),
        (case("fp4", median_s=1e-5), case("fp4-dq", median_s=2e-5), "no double quant. → double quant."),
        (case("none", median_s=1e-5), case("none", compute_dtype="float16", median_s=2e-5), "bfloat16 → float16"),
        (case("nf4", median_s=1e-5), case("nf4", lora_r=8, median_s=2e-5), "no adapter → adapter, r=8"),
        (case(median_s=1e-5), case(operation="forward_backward", median_s=2e-5), "forward → with backward"),
    ],
)
def test_a_change_is_found_in_two_cases_that_differ_in_nothing_else(tmp_path, first, second, change):
    (row,) = shown(table_of(tmp_path, [first, second]))
    assert row["change"] == change
    assert (row["time"], row["lowest to highest"], row["pairs"]) == ("+100.0 %", "+100.0 % to +100.0 %", "1")
    assert row["shown"] == "all slower"


def test_cases_that_wait_for_the_host_are_left_out(tmp_path):
    waits, in_queue = {"launch": "eager"}, {"launch": "queued"}
    eager = [case("int8", info=waits), case("int8", info=waits, lora_r=8, median_s=1e-3)]
    queued = [case(name, info=in_queue, operation="quantize") for name in ("nf4", "fp4")]

    (row,) = shown(table_of(tmp_path, [*eager, *queued]))

    assert (row["change"], row["operation"]) == ("nf4 → fp4", "quantize")


@pytest.mark.parametrize(
    "others", [{"rows": 1}, {"lora_r": 16}, {"layer": "k_proj"}, {"model": "llama-3.1-8b"}, {"operation": "quantize"}]
)
def test_two_cases_that_differ_in_more_are_no_pair(tmp_path, others):
    table = table_of(tmp_path, [case("nf4"), case("fp4-dq"), case("fp4", **others), case("int8")])
    assert "nf4 → fp4" not in table.rows["change"].tolist()


def pairs(ratios, **about):
    """A pair of nf4 and fp4 for each ratio of their times, each of a layer of its own."""
    return [
        case(name, layer=f"{number + 1}x64", median_s=time, **about)
        for number, ratio in enumerate(ratios) for name, time in (("nf4", 1e-5), ("fp4", ratio * 1e-5))
    ]  # fmt: skip


def test_several_pairs_have_their_median_and_their_range(tmp_path):
    (row,) = shown(table_of(tmp_path, pairs([0.9, 1.1, 1.3])))
    assert (row["time"], row["lowest to highest"], row["pairs"]) == ("+10.0 %", "−10.0 % to +30.0 %", "3")  # noqa: RUF001
    assert row["shown"] == "2 slower, 1 faster"


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([1.0] * 4, "no difference shown"),
        ([1.2, 1, 1, 1], "no difference shown"),
        ([1.2, 1.2, 1, 1], "2 slower"),
        ([0.8, 0.8], "all faster"),
        ([1.2], "all slower"),
    ],
)
def test_so_many_as_chance_leaves_are_no_difference(tmp_path, ratios, words):
    assert shown(table_of(tmp_path, pairs(ratios)))[0]["shown"] == words


@pytest.mark.parametrize(("count", "most"), [(1, 0), (2, 1), (4, 1), (20, 3), (64, 6)])
def test_chance_leaves_one_pair_in_twenty(count, most):
    assert by_chance(count) == most


def test_a_difference_within_the_notches_of_both_is_none(tmp_path):
    # Notches of 1.57 * 4 % / sqrt(20) = 1.4 % on both sides.
    apart = {
        ratio: shown(table_of(tmp_path, pairs([ratio], spread=0.04, rounds=20)))[0]["shown"]
        for ratio in (1.02, 1.05, 0.98, 0.95)
    }
    assert apart == {1.02: "no difference shown", 1.05: "all slower", 0.98: "no difference shown", 0.95: "all faster"}


def test_a_difference_smaller_than_the_drift_of_the_peaks_is_none(tmp_path):
    assert shown(table_of(tmp_path, pairs([1.02]), drift=0.01))[0]["shown"] == "all slower"
    table = table_of(tmp_path, pairs([1.02]), drift=-0.03)
    assert shown(table)[0]["shown"] == "no difference shown"
    assert table.caption[-1] == (
        "Beyond what rounds vary, in this one session: medians that differ by more than their notches, "
        "± 1.57 IQR/√rounds (McGill et al. 1978), and by more than the peaks drifted (3.0 %). How a case varies when "
        "it is timed again was not measured: at many rows the GPU's clock moves single cases by more."
    )


def test_few_rounds_show_nothing(tmp_path):
    assert shown(table_of(tmp_path, pairs([2.0], rounds=4)))[0]["shown"] == "no difference shown"


def test_operations_and_rows_stand_apart_and_in_order(tmp_path):
    cases = [
        case(name, operation=operation, rows=rows)
        for operation, rows in (("forward", 512), ("forward", 4), ("forward_backward", 512), ("quantize", None))
        for name in ("nf4", "fp4")
    ]  # fmt: skip
    told = shown(table_of(tmp_path, cases))
    assert [(row["change"], row["operation"], row["rows"]) for row in told] == [
        ("nf4", "forward", "4"), ("→ fp4", "forward", "512"), ("", "forward_backward", "512"), ("", "quantize", "–"),  # noqa: RUF001
        ("forward → with backward", "forward_backward", "512"),
    ]  # fmt: skip


def test_without_a_pair_there_is_no_table(tmp_path):
    assert table_of(tmp_path, [case()]).rows.empty
    assert table_of(tmp_path, [], refusals=[refused()]).rows.empty


def test_the_whole_matrix_pairs_every_case_of_a_change(tmp_path):
    rows = table_of(tmp_path, whole_matrix()).rows.set_index(["change", "operation", "rows"])["pairs_count"]
    models_and_dtypes, ranks, doubles = 4, 2, 2
    assert rows["nf4 → fp4", "forward", 4096] == models_and_dtypes * len(LAYERS) * ranks * doubles
    assert rows["no double quant. → double quant.", "forward", 128] == len(LAYERS)
    assert rows["no adapter → adapter, r=16", "forward", 1] == models_and_dtypes * len(LAYERS) * 5  # int8 waits
