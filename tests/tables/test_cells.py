from __future__ import annotations

import pytest

from bench.tables.cells import ON_FRONT, cells_table
from bench.tables.evidence import gather
from bench.tables.load import load_results
from bench.tables.table import MISSING

from .examples import (
    BF16,
    CPU,
    H100,
    NF4,
    default_matrix,
    quality,
    record,
    storage,
    training,
    write_result,
)


def table_of(folder, records, **kwargs):
    return cells_table(gather(load_results(write_result(folder / "r", records, **kwargs))))


def shown(table):
    """Texts by id, then by heading."""
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return {row[0].removesuffix(f" {ON_FRONT}"): dict(zip(headings, row, strict=True)) for row in table.texts()}


def test_known_figures_come_out_rounded_with_their_change_against_the_baseline(tmp_path):
    records = [
        record("nf4", measures={**storage(3_262_644_224, 407_843_136, 2_180_656_128),
                                **training(27_450_000_000, 6341.2, 1.292), **quality(0.865, 0.4123)}),
        record("lora", parameters={"quant_type": "none"},
               measures={**BF16, **training(32_210_000_000, 7823.4, 1.047), **quality(0.868, 0.3987)}),
    ]  # fmt: skip
    table = table_of(tmp_path, records, baseline="lora")
    assert table.title == "default: results by cell"
    assert list(shown(table)) == ["lora (baseline)", "nf4"]
    assert shown(table)["nf4"] == {
        "id": "nf4 ◆",
        "quant_type": "nf4",
        "stored GB": "5.851",
        "HF footprint GB": "5.443",
        "train peak GB": "27.4",
        "peak Δ %": "−14.8",  # noqa: RUF001
        "tokens/s": "6,341",
        "tokens/s Δ %": "−18.9",  # noqa: RUF001
        "step p50 ms": "1,292",
        "step p95 ms": "1,550",
        "accuracy % before → after": "11.2 → 86.5 ± 1.2",
        "verdict": "too few runs",
        "macro-F1": "0.863",
        "held-out loss": "0.412",
        "status": "ok",
    }
    assert shown(table)["lora (baseline)"]["peak Δ %"] == MISSING
    row = table.rows.set_index("id").loc["nf4"]
    assert row["train_peak_change_percent"] == pytest.approx(100 * (27.45 / 32.21 - 1))
    assert row["tokens_per_s_change_percent"] == pytest.approx(100 * (6341.2 / 7823.4 - 1))


def test_cells_that_failed_stay_as_rows_with_the_figures_that_exist_and_no_change(tmp_path):
    records = [
        record("base", measures={**BF16, **training(2_000_000_000, 100.0, 0.1), **quality(0.9)}),
        record("oom", status="oom", phase="train", last_peak_allocated_bytes=15_200_000_000,
               measures={**NF4, "accuracy_before": 0.112, "eval_examples_count": 3080}),
        record("fine", measures={**NF4, **training(1_000_000_000, 90.0, 0.1)}),
        record("dead", status="crashed", phase="load", environment={}),
    ]  # fmt: skip
    table = table_of(tmp_path, records, baseline="base")
    oom = shown(table)["oom"]
    assert (oom["stored GB"], oom["train peak GB"], oom["peak Δ %"]) == ("0.116", "≥ 15.20", MISSING)
    assert (oom["accuracy % before → after"], oom["status"]) == (f"11.2 → {MISSING}", "oom")
    assert {text for name, text in shown(table)["dead"].items() if name not in ("id", "status")} == {MISSING}
    assert any("≥" in column.about for column in table.columns)


def test_when_all_cells_failed_only_ids_settings_and_statuses_are_left(tmp_path):
    records = [record(name, status="crashed", phase="start", environment={}) for name in ("lora-bf16", "nf4")]
    table = table_of(tmp_path, records)
    assert [column.heading for column in table.columns] == ["id", "status"]
    assert table.notes == ("No Δ: the baseline ended crashed.",)


def test_across_gpus_and_versions_there_is_no_change_and_a_note_says_which_rows_differ(tmp_path):
    records = default_matrix()
    records[0]["environment"] = {**H100, "gpu_name": "Tesla T4"}
    table = table_of(tmp_path, records)
    rows = table.rows.set_index("id")
    assert rows.loc["nf4-bf16-all-linear", ["train_peak_change_percent", "tokens_per_s_change_percent"]].isna().all()
    assert rows["tokens_per_s_change_percent"].notna().sum() == 16
    assert table.notes == (
        "Not comparable: nf4-bf16-all-linear (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
    )  # fmt: skip
    assert "NVIDIA H100 80GB HBM3 and Tesla T4" in table.caption[-1]


@pytest.mark.parametrize(
    ("baseline", "reason"), [(None, "there is no record of a baseline"), ("gone", "there is no record of a baseline")]
)
def test_without_a_baseline_there_is_no_change_and_a_note_says_so(tmp_path, baseline, reason):
    table = table_of(tmp_path, default_matrix(), baseline=baseline)
    assert table.notes == (f"No Δ: {reason}.",)
    assert not any("Δ" in column.heading for column in table.columns)


def test_of_a_baseline_whose_seeds_ran_on_two_gpus_those_on_one_are_the_measure_for_others(tmp_path):
    records = default_matrix(seeds=(0, 1, 2))
    records[-1]["environment"] = {**H100, "gpu_name": "Tesla T4"}
    records[-1]["measures"]["tokens_per_s"] = 2_000.0
    table = table_of(tmp_path, records)
    rows = table.rows.set_index("id")
    assert rows.loc["lora-bf16", ["tokens_per_s", "seeds_count"]].tolist() == [25_011 + 11 / 2, 2]
    assert rows["tokens_per_s_change_percent"].notna().sum() == 17
    assert table.notes == (
        "Left out, since they ran under other conditions: lora-bf16 s2 "
        "(GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
    )


def on_gpu(cell_id, execution, tokens_per_s, **fields):
    measures = training(2_000_000_000, tokens_per_s, 0.1)
    return record(cell_id, environment={**H100, "execution_used": execution}, measures=measures, **fields)


def test_a_cell_that_ran_otherwise_than_the_baseline_has_no_change_of_speed_and_a_note_says_why(tmp_path):
    records = [
        on_gpu("base", "cuda_graph", 1000.0),
        on_gpu("same", "cuda_graph", 900.0),
        on_gpu("slow", "eager", 200.0),
        on_gpu("slower", "eager", 100.0),
        on_gpu("unknown", None, 500.0),
        on_gpu("oom", "eager", None, status="oom", phase="train"),
    ]
    table = table_of(tmp_path, records, baseline="base")
    rows = table.rows.set_index("id")
    assert rows["tokens_per_s_change_percent"].dropna().to_dict() == {"same": pytest.approx(-10), "unknown": -50}
    assert rows["train_peak_change_percent"].dropna().to_dict() == dict.fromkeys(
        ["same", "slow", "slower", "unknown"], 0
    )
    assert table.notes == ("No tokens/s Δ for slow, slower: they ran eager, the baseline as cuda_graph.",)


def test_where_the_baseline_s_execution_is_not_known_speeds_are_compared(tmp_path):
    table = table_of(tmp_path, [on_gpu("base", None, 100.0), on_gpu("a", "eager", 50.0)], baseline="base")
    assert table.rows["tokens_per_s_change_percent"].dropna().tolist() == [-50]
    assert table.notes == ()


def test_cells_of_an_earlier_version_of_the_matrix_are_a_note_and_no_row(tmp_path):
    records = [record("base", measures={"tokens_per_s": 100.0}), record("a", measures={"tokens_per_s": 150.0})]
    old = record("base", key="old", parameters={"lora_r": 8}, measures={"tokens_per_s": 200.0})
    table = table_of(tmp_path, [old, *records], baseline="base", planned=records)
    assert table.rows["tokens_per_s_change_percent"].dropna().tolist() == [pytest.approx(50)]
    assert "lora_r" not in table.rows
    assert table.notes == ("1 record of an earlier version of the matrix is not shown.",)


def test_a_cpu_run_says_that_its_peak_is_host_memory(tmp_path):
    records = [record("a", environment=CPU, slot="cpu", measures=training(None, 150.0, 1.4))]
    table = table_of(tmp_path, records)
    assert shown(table)["a"]["train peak GB"] == "2.40"
    assert any("host memory (RSS)" in column.about for column in table.columns)
    assert "CPU Intel" in table.caption[-1]


def test_random_weights_show_no_accuracy_and_the_legend_says_why(tmp_path):
    records = [record("a", parameters={"weights": "random"}, measures={**NF4, **quality(0.5)})]
    table = table_of(tmp_path, records)
    assert not any("accuracy" in column.heading for column in table.columns)
    assert "no quality" in table.columns[0].about


def test_several_seeds_show_their_range_and_the_uncertainty_that_the_test_examples_of_one_seed_bear(tmp_path):
    table = table_of(tmp_path, default_matrix(seeds=(0, 1, 2)))
    row = shown(table)["nf4-bf16-all-linear"]
    assert row["tokens/s range"] == "24,105–24,119"  # noqa: RUF001
    assert row["accuracy % before → after"] == "11.2 → 86.2 ± 1.2"
    assert any("n = 3,080 test examples; with several seeds, of their mean" in column.about for column in table.columns)


def test_the_caption_names_matrix_cells_seeds_examples_recipe_gpu_versions_and_day(tmp_path):
    table = table_of(tmp_path, default_matrix(seeds=(0, 1)))
    assert table.caption == (
        "default: 18 cells, n = 2 seeds, 3,080 examples scored.",
        "smollm2-135m, banking77, batch 32, 1 epoch, max_length 256.",
        "NVIDIA H100 80GB HBM3; torch 2.13.0, transformers 5.23.0, peft 0.21.2, bitsandbytes 0.50.2; 2025-11-21.",
    )


def test_torn_records_are_noted(tmp_path):
    table = table_of(tmp_path, default_matrix(), tail='{"schema"')
    assert "cut short" in table.notes[-1]
