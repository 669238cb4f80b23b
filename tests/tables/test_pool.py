from __future__ import annotations

import pytest

from bench.tables.load import load_results
from bench.tables.pool import chosen, pool_seeds, varying

from .examples import CPU, H100, default_matrix, quality, record, write_result


def pooled(folder, records, **kwargs):
    return pool_seeds(load_results(write_result(folder / "r", records, **kwargs))).reset_index().set_index("id")


def test_the_baseline_comes_first_and_the_others_keep_their_order(tmp_path):
    records = default_matrix()
    ids = [entry["id"] for entry in records]
    assert list(pooled(tmp_path, records).index) == ["lora-bf16", *(name for name in ids if name != "lora-bf16")]


def test_seeds_are_averaged_with_their_range_and_the_examples_that_each_scores_count_once(tmp_path):
    records = [
        record("a", 0, measures={**quality(0.80, examples=100), "tokens_per_s": 10.0}),
        record("a", 1, measures={**quality(0.90, examples=100), "tokens_per_s": 14.0}),
    ]
    row = pooled(tmp_path, records).loc["a"]
    assert row["accuracy_after"] == pytest.approx(0.85)
    assert (row["scored_count"], row["seeds_count"]) == (100, 2)
    assert (row["tokens_per_s"], row["tokens_per_s_min"], row["tokens_per_s_max"]) == (12, 10, 14)
    assert row["status"] == "ok"


def test_a_seed_on_another_gpu_is_in_no_mean_where_its_cell_has_others(tmp_path):
    t4 = {**H100, "gpu_name": "Tesla T4"}
    records = [record("lora-bf16", seed, measures={"tokens_per_s": 100.0}) for seed in range(3)]
    records += [record("a", seed, measures={"tokens_per_s": 90.0}) for seed in range(2)]
    records += [record("a", 2, environment=t4, measures={"tokens_per_s": 10.0})]
    records += [record("t4", seed, environment=t4, measures={"tokens_per_s": 20.0}) for seed in range(3)]
    rows = pooled(tmp_path, records)
    assert rows["tokens_per_s"].to_dict() == {"lora-bf16": 100, "a": 90, "t4": 20}
    assert rows["seeds_count"].tolist() == [3, 2, 3]
    assert rows.loc["a", ["tokens_per_s_min", "ok_count", "status"]].tolist() == [90, 2, "ok"]


def test_a_seed_that_failed_is_counted_but_its_figures_are_not_averaged(tmp_path):
    records = [
        record("a", 0, measures={"train_peak_allocated_bytes": 10, "tokens_per_s": 5.0}),
        record("a", 1, status="oom", phase="train", measures={"train_peak_allocated_bytes": 30}),
    ]
    row = pooled(tmp_path, records).loc["a"]
    assert (row["train_peak_bytes"], row["ok_count"], row["status"]) == (10, 1, "1 ok, 1 oom")


def test_the_execution_is_that_of_the_runs_whose_figures_count(tmp_path):
    records = [
        record("a", 0, environment={**H100, "execution_used": "cuda_graph"}),
        record("a", 1, status="oom", phase="train", environment={**H100, "execution_used": "eager"}),
    ]
    assert pooled(tmp_path, records).loc["a", "execution_used"] == "cuda_graph"


def test_a_cell_without_a_run_that_ended_ok_keeps_what_was_measured(tmp_path):
    row = pooled(tmp_path, [record("a", status="oom", phase="train", measures={"stored_bytes": 42})]).loc["a"]
    assert (row["stored_bytes"], row["ok_count"], row["status"]) == (42, 0, "oom")


def test_a_run_killed_in_training_has_the_last_peak_it_told_but_not_that_of_another_phase(tmp_path):
    records = [
        record("train", status="timeout", phase="train", last_peak_allocated_bytes=99),
        record("load", status="oom", phase="load", last_peak_allocated_bytes=99),
    ]
    peaks = pooled(tmp_path, records)["train_peak_bytes"]
    assert peaks["train"] == 99
    assert peaks.isna()["load"]


def test_what_a_killed_run_told_last_is_its_peak_of_allocations_too(tmp_path):
    records = [record("a", status="timeout", phase="train", last_peak_allocated_bytes=99)]
    assert pooled(tmp_path, records).loc["a", "train_peak_allocated_bytes"] == 99


def test_the_note_on_a_prediction_is_that_of_the_runs_whose_figures_count(tmp_path):
    records = [
        record("a", 0, environment={**H100, "prediction_note": "why"}),
        record("a", 1, environment={**H100, "prediction_note": "why"}),
        record("b", 0),
    ]
    notes = pooled(tmp_path, records)["prediction_note"]
    assert notes["a"] == "why"
    assert notes.isna()["b"]


def test_on_a_cpu_the_peak_is_host_memory(tmp_path):
    measures = {"train_peak_allocated_bytes": None, "train_peak_rss_bytes": 7}
    row = pooled(tmp_path, [record("a", environment=CPU, slot="cpu", measures=measures)]).loc["a"]
    assert row["train_peak_bytes"] == 7


def test_random_weights_have_no_quality_even_if_a_record_holds_some(tmp_path):
    records = [record("a", parameters={"weights": "random"}, measures=quality(0.01))]
    row = pooled(tmp_path, records).loc["a"]
    assert row[["accuracy_before", "accuracy_after", "macro_f1_after", "heldout_loss_after"]].isna().all()


def test_parameters_that_follow_from_another_are_no_choice(tmp_path):
    cells = pooled(tmp_path, default_matrix())
    names = varying(cells)
    assert {"quant_type", "load_dtype", "kbit_upcast"} <= set(names)
    assert chosen(cells, names) == ["quant_type", "double_quant", "compute_dtype", "target_modules"]
