from __future__ import annotations

import pytest

from bench.protocol import PEAK_PARTS
from bench.tables.load import load_results
from bench.tables.memory import ASSUMED, NEEDS, OF_ALLOCATION, OF_NEED, memory_table
from bench.tables.parts import LIVE_AT_PEAK
from bench.tables.table import MISSING

from .examples import CAP, CPU, H100, NF4, T4, memory_matrix, predicted, record, training, write_result


def table_of(folder, records):
    return memory_table(load_results(write_result(folder / "r", records, baseline="nf4")))


def shown(table):
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return {row[0]: dict(zip(headings, row, strict=True)) for row in table.texts()}


def test_the_parts_of_the_predicted_peak_stand_before_it_and_the_measured_one_behind(tmp_path):
    table = table_of(tmp_path, memory_matrix())
    assert table.title == "default: training memory in GB"
    assert shown(table)["nf4 (baseline)"] == {
        "id": "nf4 (baseline)", "base": "8.032", "adapters": "0.161", "gradients": "0.161", "optimizer": "0.082",
        "activations": "0.700", "head & logits": "0.900", "dequantized": "0.136", "workspace & rounding": "0.076",
        "predicted": "10.249", "measured": "10.248", "residual %": "0.00", "short": "–",  # noqa: RUF001
        "cap": "15.397", "upcast": "2.181", "outside torch": "0.919", "context": "0.709", "status": "ok",
    }  # fmt: skip


def test_in_the_files_the_parts_add_up_to_the_predicted_peak_in_bytes(tmp_path):
    rows = table_of(tmp_path, memory_matrix()).rows.set_index("id").drop(index="nf4-dead")
    parts = [f"predicted_peak_{part}_bytes" for part in PEAK_PARTS]
    assert (rows[parts].sum(axis=1) == rows["predicted_train_peak_allocated_bytes"]).all()


@pytest.mark.parametrize(
    ("measured", "text"),
    [(1_000_000_000, "0.00"), (1_002_000_000, "−0.20"), (998_000_000, "+0.20"), (900_000_000, "+11.1")],  # noqa: RUF001
)
def test_the_residual_has_its_sign_and_two_decimals_below_one_percent(tmp_path, measured, text):
    measures = {**predicted(base=1_000_000_000), "train_peak_allocated_bytes": measured}
    assert shown(table_of(tmp_path, [record("a", measures=measures)]))["a"]["residual %"] == text


def test_a_cell_that_ran_out_of_memory_shows_what_it_missed_and_what_was_predicted_but_no_residual(tmp_path):
    row = shown(table_of(tmp_path, memory_matrix()))["nf4-long"]
    assert [row[name] for name in ("predicted", "measured", "residual %", "short", "status")] == [
        "17.049", "≥ 14.900", "–", "0.752", "oom",  # noqa: RUF001
    ]  # fmt: skip


def about(table, heading):
    (column,) = [column for column in table.columns if column.heading == heading]
    return column.about


def out_of_memory(cell_id, needed, *, note=None, **measures):
    """A cell that ran out of memory under a cap of 15.4 GB, and had asked for 10 MB too many."""
    return record(cell_id, parameters=T4, status="oom", phase="train", environment={**H100, "prediction_note": note},
                  measures={**predicted(base=15_000_000_000), **CAP, "short_bytes": 10_000_000,
                            "predicted_needed_bytes": needed, **measures})  # fmt: skip


def test_what_a_cell_is_short_of_is_its_need_less_the_cap_where_that_is_predicted(tmp_path):
    table = table_of(tmp_path, [out_of_memory("a", 49_878_663_168)])
    row = shown(table)["a"]
    assert [row[name] for name in ("needs", "context", "cap", "short")] == ["50.588", "0.709", "15.397", "34.481"]
    assert about(table, "short") == (
        "Short: what the cap lacks of the predicted need (needs less context and cap)."
    )  # fmt: skip
    rows = table.rows.set_index("id")
    assert rows.loc["a", ["short_bytes", "predicted_short_bytes", "need_bytes"]].tolist() == [
        10_000_000, 49_878_663_168 - 15_397_289_984, 49_878_663_168 + 708_837_376,
    ]  # fmt: skip


@pytest.mark.parametrize("needed", [None, 15_000_000_000])
def test_where_no_need_above_the_cap_is_predicted_it_is_what_the_allocation_missed(tmp_path, needed):
    table = table_of(tmp_path, [out_of_memory("a", needed)])
    assert shown(table)["a"]["short"] == "0.010"
    assert about(table, "short") == f"Short: {OF_ALLOCATION}."


def test_where_both_stand_in_the_column_it_is_said_of_which_cells_it_was_measured(tmp_path):
    table = table_of(tmp_path, [out_of_memory("a", 20e9), out_of_memory("b", 15e9), out_of_memory("c", 20e9, note="x")])
    assert [row["short"] for row in shown(table).values()] == ["4.603", "0.010", "≥ 4.603"]
    assert shown(table)["c"]["needs"] == "≥ 20.709"
    assert about(table, "short") == f"Short: {OF_NEED}; {OF_ALLOCATION} (of b)."


def test_a_cell_that_did_not_run_out_of_memory_is_short_of_nothing(tmp_path):
    records = [out_of_memory("a", 20e9), record("b", parameters=T4, measures={**CAP, "predicted_needed_bytes": 20e9})]
    assert shown(table_of(tmp_path, records))["b"]["short"] == MISSING


def test_a_need_has_a_context_where_none_was_measured_and_that_is_said(tmp_path):
    known = {**predicted(base=2_000_000_000), "predicted_needed_bytes": 2_100_000_000, "context_bytes": 500_000_000}
    table = table_of(tmp_path, [record("a", measures=known), record("b", measures={**known, "context_bytes": None})])
    assert [row["needs"] for row in shown(table).values()] == ["2.600", "2.809"]
    assert about(table, "needs") == NEEDS + ASSUMED
    assert about(table_of(tmp_path, [record("a", measures=known)]), "needs") == NEEDS


def test_that_parts_are_those_of_one_moment_is_said_where_they_are_predicted(tmp_path):
    assert LIVE_AT_PEAK in table_of(tmp_path, memory_matrix()).caption
    assert LIVE_AT_PEAK not in table_of(tmp_path, [record("nf4", measures=NF4)]).caption


def test_a_lower_bound_is_marked_and_a_note_says_why(tmp_path):
    table = table_of(tmp_path, memory_matrix())
    row = shown(table)["nf4-dora"]
    assert (row["predicted"], row["measured"], row["residual %"]) == ("≥ 10.249", "10.500", "–")  # noqa: RUF001
    assert table.notes == (
        "Predicted peak is a lower bound: nf4-dora (a CUDA kernel without a meta counterpart).",
    )  # fmt: skip


def test_under_a_limit_the_caption_states_the_rule_with_its_figures(tmp_path):
    assert (
        "vram_limit T4: torch may hold 15.40 GB, the card's 16.11 GB less the 0.71 GB that CUDA took before the model; "
        "what CUDA loads later and managed memory come on top (up to 0.21 GB here)."
    ) in table_of(tmp_path, memory_matrix()).caption


def test_that_seeds_agree_to_the_byte_is_said_and_so_is_which_do_not(tmp_path):
    same = "Measured peaks are the same to the byte in all seeds of a cell."
    assert same not in table_of(tmp_path, memory_matrix()).caption
    records = memory_matrix(seeds=(0, 1, 2))
    assert same in table_of(tmp_path, records).caption
    records[1]["measures"]["train_peak_allocated_bytes"] += 512
    table = table_of(tmp_path, records)
    assert same not in table.caption
    assert "Peak allocated differs between seeds of: nf4." in table.notes


def test_a_seed_that_failed_has_no_part_in_the_agreement(tmp_path):
    records = memory_matrix(seeds=(0, 1, 2))
    records[2] |= {"status": "oom", "measures": {"train_peak_allocated_bytes": 1}}
    assert not any("differs" in note for note in table_of(tmp_path, records).notes)


def test_on_a_cpu_the_table_shows_host_memory_and_what_training_adds(tmp_path):
    added = {"upcast_bytes": 56_693_760, "gradient_bytes": 9_768_960, "optimizer_bytes": 5_000_000}
    host = {"load_peak_rss_bytes": 1_100_000_000, "score_peak_rss_bytes": 2_500_000_000}
    measures = {**NF4, **training(None, 200.0, 1.0), **added, **host}
    table = table_of(tmp_path, [record("nf4", environment=CPU, slot="cpu", measures=measures)])
    assert shown(table)["nf4 (baseline)"] == {
        "id": "nf4 (baseline)", "stored": "0.116", "upcast": "0.057", "adapters": "0.010", "gradients": "0.010",
        "optimizer": "0.005", "load RSS": "1.100", "score RSS": "2.500", "train RSS": "2.400", "status": "ok",
    }  # fmt: skip


def test_a_record_of_before_predictions_shows_what_was_measured(tmp_path):
    measures = {**NF4, **training(2_412_345_678, 24_105.3, 0.0281)}
    row = shown(table_of(tmp_path, [record("nf4", measures=measures)]))["nf4 (baseline)"]
    assert row == {
        "id": "nf4 (baseline)", "stored": "0.116", "adapters": "0.010", "measured": "2.412", "train RSS": "2.400",
        "status": "ok",
    }  # fmt: skip
