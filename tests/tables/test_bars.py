from __future__ import annotations

import pytest

from bench.tables.bars import Bar, Bars, memory_bars
from bench.tables.load import load_results
from bench.tables.parts import LIVE_AT_PEAK

from .examples import BF16, NF4, default_matrix, memory_matrix, record, seven_b, training, write_result


def bars_of(folder, records):
    return memory_bars(load_results(write_result(folder / "r", records)))


def by_id(bars):
    return {bar.id: bar for bar in bars.bars}


def test_a_bar_is_as_long_as_the_predicted_peak_and_has_the_measured_one_and_the_cap(tmp_path):
    bars = bars_of(tmp_path, memory_matrix())
    bar = by_id(bars)["nf4"]
    measures = memory_matrix()[0]["measures"]
    assert bar.total_bytes == measures["predicted_train_peak_allocated_bytes"]
    assert (bar.measured_bytes, bar.cap_bytes) == (10_248_170_688, 15_397_289_984)
    assert bar.sizes_bytes["workspace & rounding"] == 67_108_864 + 9_000_000
    assert bars.title == "default: predicted peak of training"


def test_a_run_that_failed_has_no_measured_peak_and_says_how_it_ended(tmp_path):
    bars = by_id(bars_of(tmp_path, memory_matrix()))
    long, dead = bars["nf4-long"], bars["nf4-dead"]
    assert (long.measured_bytes, long.status) == (None, "oom")
    assert (dead.total_bytes, dead.status) == (0, "crashed")


def test_totals_share_their_decimals_mark_bounds_and_are_a_dash_where_nothing_is_known(tmp_path):
    totals = bars_of(tmp_path, memory_matrix()).totals()
    assert totals == ["10.25", "9.94", "17.05", "≥ 10.25", "–"]  # noqa: RUF001


def test_among_predicted_cells_one_without_a_prediction_shows_what_was_counted_as_a_lower_bound(tmp_path):
    measures = {"stored_bytes": 5_000, "upcast_bytes": 2_000, "adapter_bytes": 100, "gradient_bytes": 100,
                "optimizer_bytes": 50, "train_peak_allocated_bytes": 9_000}  # fmt: skip
    bars = bars_of(tmp_path, [*memory_matrix(), record("no", measures=measures)])
    bar = by_id(bars)["no"]
    assert bar.sizes_bytes == {"base": 7_000, "adapters": 100, "gradients": 100, "optimizer": 50}
    assert bar.sign == "≥ "
    assert any(line.startswith("≥: a lower bound") for line in bars.caption)


def test_without_any_prediction_the_bars_are_those_of_storage_and_have_no_peak_beside_them(tmp_path):
    records = [record("nf4", measures={**NF4, **training(2e9, 1.0, 1.0)}), record("bf16", measures=BF16)]
    bars = bars_of(tmp_path, records)
    assert bars.title == "default: storage of the loaded base"
    assert bars.parts == ("packed", "quantization state", "unquantized", "buffers")
    assert [bar.total_bytes for bar in bars.bars] == [NF4["stored_bytes"], BF16["stored_bytes"]]
    assert (bars.has_measured, bars.has_cap) == (False, False)


def test_storage_by_place_adds_up_to_what_is_stored(tmp_path):
    measures = {
        name: size for name, size in seven_b(103_739_648, 10).items() if not name.startswith("predicted_")
    }  # fmt: skip
    bars = bars_of(tmp_path, [record("a", measures=measures)])
    assert bars.parts == (
        "packed", "quantization state", "embeddings", "output head", "norms, biases, others", "buffers",
    )  # fmt: skip
    assert bars.bars[0].total_bytes == measures["stored_bytes"]


def test_linear_layers_of_a_16_bit_base_are_told_apart_from_norms(tmp_path):
    measures = {"unquantized_bytes": 1_010, "linear_bfloat16_bytes": 1_000, "norm_bfloat16_bytes": 10}
    bars = bars_of(tmp_path, [record("a", measures=measures)])
    assert bars.bars[0].sizes_bytes == {"unquantized linear": 1_000, "norms, biases, others": 10}


def test_where_nothing_is_known_there_is_no_bar(tmp_path):
    assert bars_of(tmp_path, [record("a", status="crashed", phase="start")]) is None


@pytest.mark.parametrize(("cap", "end"), [(3_000_000_000, 3_000_000_000), (80_000_000_000, 2_000_000_000)])
def test_the_axis_reaches_to_a_cap_unless_it_would_leave_the_bars_no_room(tmp_path, cap, end):
    measures = {"predicted_train_peak_allocated_bytes": 2e9, "predicted_peak_base_bytes": 2e9, "cap_bytes": cap}
    bars = bars_of(tmp_path, [record("a", measures=measures)])
    assert bars.end_bytes == end
    assert bars.has_cap == (cap == end)


def test_every_cell_is_a_bar_the_baseline_first(tmp_path):
    bars = bars_of(tmp_path, default_matrix(seeds=(0, 1)))
    assert len(bars.bars) == 18
    assert bars.bars[0].id == "lora-bf16 (baseline)"


def test_that_parts_are_those_of_one_moment_is_said_of_the_peak_and_not_of_storage(tmp_path):
    assert LIVE_AT_PEAK in bars_of(tmp_path, memory_matrix()).caption
    assert LIVE_AT_PEAK not in bars_of(tmp_path, [record("a", measures=NF4)]).caption


def of_models(**largest):
    """Two bars of each model: the largest one, and half of it."""
    bars = [Bar(f"{model}-{half}", {"base": size / half}, model=model) for half in (1, 2)
            for model, size in largest.items()]  # fmt: skip
    return Bars("t", ("base",), tuple(bars), ())


@pytest.mark.parametrize("largest", [{"a": 1e9}, {"a": 1e9, "b": 4e9}, {"a": 1e9, "b": 0}])
def test_models_that_one_axis_can_show_share_it(largest):
    bars = of_models(**largest)
    assert bars.panels == (bars,)


def test_models_whose_largest_bars_differ_by_more_than_four_times_have_a_panel_each_in_order():
    bars = of_models(small=1e8, large=4.1e8, unknown=0)
    assert [panel.heading for panel in bars.panels] == ["small", "large", "unknown"]
    assert [bar.id for bar in bars.panels[1].bars] == ["large-1", "large-2"]
    assert [panel.end_bytes for panel in bars.panels] == [1e8, 4.1e8, 1]


def test_the_legend_of_several_panels_has_a_cap_if_one_of_them_shows_it():
    small = Bar("s", {"base": 1e9}, model="small", cap_bytes=16e9)
    assert not Bars("t", ("base",), (small, Bar("l", {"base": 9e9}, model="large")), ()).has_cap
    large = Bar("l", {"base": 9e9}, model="large", cap_bytes=16e9)
    assert Bars("t", ("base",), (small, large), ()).has_cap


def test_the_bars_of_a_result_know_their_models(tmp_path):
    small = record("small", parameters={"weights": "random"}, measures=training(2e9, 1.0, 1.0) | NF4)
    panels = bars_of(tmp_path, [*memory_matrix(), small]).panels
    assert [panel.heading for panel in panels] == ["qwen2.5-7b", "smollm2-135m"]
