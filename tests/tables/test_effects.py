from __future__ import annotations

import io
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from bench.tables.csv import to_csv
from bench.tables.effects import effects, effects_table
from bench.tables.evidence import ACCURACY, SPEED, gather
from bench.tables.load import load_results
from bench.tables.pairs import changes, mean_difference, settings_of
from bench.tables.terminal import print_table

from .evidences import BASELINE, GRID, QUIET, SimulatedCell, evidence
from .examples import CPU, H100, NF4, quality, record, training, write_result

ADAPTERS = [
    SimulatedCell(
        f"{rank}{'-dora' if dora else ''}",
        {"lora_r": rank, "use_dora": dora},
        accuracy=0.85 - 0.06 * dora,
        log_speed=-0.1 * dora + 0.02 * (rank == 16),
        peak_bytes=4_000_000_000 + 50_000_000 * dora + (rank - 8) * 1_000_000,
    )
    for rank, dora in product((8, 16), (False, True))
]


def named(frame):
    """Rows by axis, values and measure."""
    keys = frame[["axis", "since", "to", "measure"]].itertuples(index=False, name=None)
    return dict(zip(keys, frame.to_dict("records"), strict=True))


def shown(table):
    """Texts by heading, row by row."""
    headings = [column.heading.replace("\n", " ") for column in table.columns]
    return [dict(zip(headings, row, strict=True)) for row in table.texts()]


def lines_of(table, width):
    stream = io.StringIO()
    print_table(table, Console(file=stream, width=width))
    return stream.getvalue().splitlines()


def test_planted_effects_are_found_with_their_sign_on_the_value_changed_to():
    rows = named(effects(evidence(ADAPTERS, seeds=(0, 1, 2, 3), examples=2000, noise=QUIET)))
    speed = rows["use_dora", False, True, "tokens_per_s"]
    assert speed["estimate"] == pytest.approx(100 * np.expm1(-0.1), abs=0.05)
    assert speed["verdict"] == "worse"
    assert (speed["pairs_count"], speed["seeds_count"], speed["unit"]) == (2, 4, "%")
    accuracy = rows["use_dora", False, True, "accuracy_after"]
    assert accuracy["low"] < -6 < accuracy["high"]
    assert accuracy["verdict"] == "worse"
    assert rows["lora_r", 8, 16, "tokens_per_s"]["verdict"] == "better"
    assert rows["lora_r", 8, 16, "accuracy_after"]["low"] < 0 < rows["lora_r", 8, 16, "accuracy_after"]["high"]
    assert rows["use_dora", False, True, "stored_bytes"]["verdict"] == "no difference shown"


def test_an_effect_is_the_average_of_the_paired_differences_and_all_of_a_measure_are_one_family():
    found = evidence(examples=100)
    rows = effects(found)
    contrasts = [mean_difference(change.pairs) for change in changes(found, settings_of(found))]
    names = ["estimate", "low", "high", "p", "p_holm", "minimum_detectable", "seeds_count"]
    expected = found.found(ACCURACY, contrasts)
    of_accuracy = rows[rows["measure"] == "accuracy_after"].reset_index(drop=True)
    pd.testing.assert_frame_equal(of_accuracy[names], expected[names], check_dtype=False)
    assert of_accuracy["verdict"].tolist() == expected["verdict"].tolist()


def test_bytes_show_the_range_over_the_pairs_and_no_p_value():
    rows = named(effects(evidence(ADAPTERS, examples=40)))
    dora, rank = rows["use_dora", False, True, "train_peak_bytes"], rows["lora_r", 8, 16, "train_peak_bytes"]
    assert (dora["low"], dora["estimate"], dora["high"]) == pytest.approx((50, 50, 50))
    assert (rank["estimate"], rank["unit"], rank["verdict"]) == (pytest.approx(8), "MB", "worse")
    assert all(np.isnan(dora[name]) for name in ("p", "p_holm", "minimum_detectable"))


@pytest.mark.parametrize("count", [3, 7, 11])
def test_bytes_that_are_the_same_in_all_pairs_differ_by_nothing_at_all(count):
    # Thirds and sevenths of billions do not add up to zero in floating point.
    cells = [
        SimulatedCell(f"{rank}-{dora}", {"lora_r": rank, "use_dora": dora}, peak_bytes=4_390_000_123 + 977 * rank)
        for rank, dora in product(range(1, count + 1), (False, True))
    ]
    row = named(effects(evidence(cells, examples=20)))["use_dora", False, True, "train_peak_bytes"]
    assert (row["estimate"], row["low"], row["high"], row["verdict"]) == (0, 0, 0, "no difference shown")


def test_bytes_that_fall_in_one_pair_and_rise_in_another_are_worse_only_on_average():
    cells = [
        replace(cell, peak_bytes=peak)
        for cell, peak in zip(ADAPTERS, (10**9, 2 * 10**9, 10**9, 9 * 10**8), strict=True)
    ]
    table = effects_table(evidence(cells, examples=40))
    (row,) = [row for row in shown(table) if row["measure"] == "train peak" and row["change"] == "false → true"]
    assert (row["effect"], row["verdict"]) == ("−0.10 to +1.00 GB", "worse on average")  # noqa: RUF001
    assert "On average: not so in every pair." in " ".join(column.about for column in table.columns)


def test_the_default_grid_at_80_columns_shows_each_change_once_with_effect_and_verdict():
    table = effects_table(evidence(examples=200))
    lines = lines_of(table, 80)
    assert all(len(line) <= 80 for line in lines)
    assert lines[1].split() == ["change", "measure", "effect", "verdict"]
    assert [line.split()[0] for line in lines[3:13:5]] == ["quant_type", "double_quant"]
    assert lines[4].startswith("nf4 → fp4 ")
    assert sum(line.startswith("none, false → nf4, true ") for line in lines) == 1
    assert sum(line.startswith("bfloat16 → float16 ") for line in lines) == 1
    assert any("hidden at this width: pairs, seeds" in line for line in lines)
    assert table.caption[-1] == "p-values are corrected by Holm over all effects of a measure (n = 6)."
    assert (
        "n = 1 to 8 pairs of cells that differ as the change says, paired by seed (n = 3) and test example"
        in (table.caption[-2])
    )


def test_settings_that_change_together_have_rows_of_their_own_after_the_others():
    table = effects_table(evidence(examples=100))
    together = table.rows[table.rows["axis"] == "quant_type, kbit_upcast"]
    assert together.index.tolist() == list(range(len(table.rows) - 10, len(table.rows)))
    assert together[["since", "to"]].drop_duplicates().to_numpy().tolist() == [
        ["none, false", "nf4, true"],
        ["none, false", "fp4, true"],
    ]
    assert shown(table)[-5]["change"] == "quant_type, kbit_upcast"
    assert shown(table)[-4]["change"] == "none, false → fp4, true"


@pytest.mark.parametrize(
    ("cells", "legend"),
    [
        (ADAPTERS, "Change: of one setting; all others are equal."),
        (
            [BASELINE, SimulatedCell("a", {"kbit_upcast": False})],
            "Change: of one setting; all others are equal, but for double_quant where not both are 4-bit.",
        ),
        ([BASELINE, SimulatedCell("a", {"kbit_upcast": False, "double_quant": False})],
         "Change: of one setting; all others are equal."),
        (
            GRID,
            "Change: of one setting, or of two where both are named; all others are equal, but for load_dtype where it "
            "follows compute_dtype.",
        ),
    ],
)  # fmt: skip
def test_the_legend_says_what_is_not_equal(cells, legend):
    assert effects_table(evidence(cells, seeds=(0,), examples=20)).columns[0].about == legend


def test_the_csv_has_the_values_in_full_and_a_row_a_change_and_measure():
    table = effects_table(evidence(ADAPTERS, examples=40))
    lines = to_csv(table).splitlines()
    assert lines[0].startswith("axis,since,to,measure,unit,estimate,low,high,p,p_holm,verdict,minimum_detectable,")
    assert len(lines) == 1 + 2 * 5
    assert lines[1].startswith("lora_r,8,16,stored_bytes,MB,0.0,")


def test_the_same_settings_with_other_seeds_are_called_a_a():
    found = evidence([BASELINE, SimulatedCell("again", {"quant_type": "none", "seed_offset": 1000})], examples=100)
    table = effects_table(found)
    assert shown(table)[0]["change"] == "A/A (seed_offset)"
    assert shown(table)[1]["change"] == "0 → 1000"
    assert "A/A: the same settings with other seeds, which should show no difference." in table.columns[0].about


def test_with_one_seed_effects_are_shown_and_too_few_runs_to_decide():
    table = effects_table(evidence(ADAPTERS, seeds=(0,), examples=500))
    texts = {(row["measure"], row["verdict"]) for row in shown(table)}
    assert {("tokens/s", "too few runs"), ("accuracy", "too few runs"), ("held-out loss", "too few runs")} <= texts
    assert all(row["effect"] != "–" for row in shown(table))  # noqa: RUF001
    assert "of one seed: of these runs, not of settings" in table.columns[2].about
    assert not any("Holm" in line for line in table.caption)
    assert table.notes == ("No interaction shown (2 tested; 3 more had too few runs).",)


def test_a_seed_that_a_cell_lacks_is_left_out_where_enough_are_left_and_a_note_says_so():
    cells = [replace(ADAPTERS[0], seeds=(0, 1, 2)), *ADAPTERS[1:]]
    table = effects_table(evidence(cells, seeds=(0, 1, 2, 3, 4), examples=40))
    assert set(table.rows["seeds_count"]) == {3}
    assert table.notes[0] == (
        "Seed 3, 4 left out of lora_r: 8 → 16, use_dora: false → true: no figure with it of 8."
    )  # fmt: skip


def test_a_figure_that_one_measure_lacks_is_told_of_that_measure_alone():
    found = evidence(ADAPTERS, seeds=(0, 1, 2, 3), examples=40)
    accuracy = found.samples["accuracy_after"]
    observed = accuracy.observed.copy()
    observed[0, 0] = np.nan
    lacking = {**found.samples, "accuracy_after": replace(accuracy, observed=observed)}
    table = effects_table(replace(found, samples=lacking))
    assert table.notes[0] == (
        "Seed 0 left out of accuracy of lora_r: 8 → 16, use_dora: false → true: no figure with it of 8."
    )
    speed = found.samples["tokens_per_s"]
    lacking["tokens_per_s"] = replace(speed, observed=np.where(np.isnan(observed), np.nan, speed.observed))
    notes = effects_table(replace(found, samples=lacking)).notes
    assert notes[0].startswith("Seed 0 left out of tokens/s and accuracy of lora_r: 8 → 16, use_dora")


def test_one_run_that_failed_costs_its_pair_and_not_the_verdict():
    cells = [*GRID[:-1], replace(GRID[-1], seeds=(0, 1))]
    table = effects_table(evidence(cells, examples=40))
    of_speed = table.rows[table.rows["measure"] == "tokens_per_s"].set_index(["axis", "since"])
    assert of_speed.loc[("double_quant", False), "pairs_count"] == 7
    assert set(of_speed["seeds_count"]) == {3}
    assert table.notes[0] == (
        "Left out of quant_type: nf4 → fp4, double_quant: false → true, compute_dtype: bfloat16 → float16, "
        "target_modules: all-linear → attention: pairs with fp4-dq-fp16-attention, without a figure with seed 2."
    )


def test_cells_without_a_common_seed_have_a_row_without_numbers():
    cells = [replace(ADAPTERS[0], seeds=(0,)), replace(ADAPTERS[1], seeds=(1,))]
    table = effects_table(evidence(cells, seeds=(0, 1), examples=40))
    assert {row["effect"] for row in shown(table)} == {"–"}  # noqa: RUF001
    assert set(table.rows["verdict"]) == {"too few runs"}
    assert table.notes == ("Seed 0, 1 left out of use_dora: false → true: no figure with it of 8, 8-dora.",)


def test_speed_is_not_compared_across_executions_and_a_note_says_why():
    found = evidence(ADAPTERS, examples=40)
    groups = {**found.groups, "tokens_per_s": ["cuda_graph", "eager", "cuda_graph", "cuda_graph"]}
    found = replace(found, groups=groups)
    table = effects_table(found)
    rows = named(table.rows)
    assert rows["use_dora", False, True, "tokens_per_s"]["pairs_count"] == 1
    assert rows["use_dora", False, True, "train_peak_bytes"]["pairs_count"] == 2
    reason = "one ran as {}, the other as {}."
    assert table.notes[0] == (
        "No tokens/s of 1 pair of cells (lora_r: 8 → 16): " + reason.format("eager", "cuda_graph")
    )  # fmt: skip
    assert table.notes[1] == (
        "No tokens/s of 1 pair of cells (use_dora: false → true): " + reason.format("cuda_graph", "eager")
    )


def test_a_change_without_comparable_pairs_in_one_measure_says_so_in_its_row():
    found = evidence(ADAPTERS[:2], examples=40)
    table = effects_table(replace(found, groups={**found.groups, SPEED.name: ["eager", "cuda_graph"]}))
    row = named(table.rows)["use_dora", False, True, "tokens_per_s"]
    assert (row["verdict"], row["pairs_count"], row["seeds_count"]) == ("not comparable", 0, 0)
    assert np.isnan(row["estimate"])


def result(tmp_path, *records, baseline="a"):
    return gather(load_results(write_result(tmp_path / "r", records, baseline=baseline)))


def ok(name, seed=0, environment=H100, **parameters):
    measures = {**NF4, **training(2_000_000_000, 100.0, 0.1), **quality(0.9)}
    return record(name, seed, parameters=parameters, environment=environment, measures=measures)


def test_cells_that_failed_or_ran_elsewhere_are_in_no_effect_and_notes_name_them(tmp_path):
    table = effects_table(
        result(
            tmp_path,
            ok("a"),
            ok("b", lora_r=8),
            record("c", parameters={"lora_r": 32}, status="oom", phase="train"),
            ok("d", lora_r=64, environment={**H100, "gpu_name": "Tesla T4"}),
        )
    )
    assert set(table.rows["to"]) == {16}
    assert table.notes[:3] == (
        "In no effect: c (ended oom).",
        "In no effect: d (GPU Tesla T4 instead of NVIDIA H100 80GB HBM3).",
        "No effect of lora_r: 8 → 32, lora_r: 8 → 64: no pair of cells has two comparable results.",
    )


def test_values_that_no_pair_shows_are_named(tmp_path):
    table = effects_table(
        result(tmp_path, ok("a"), ok("b", lora_r=8), ok("c", lora_r=32, optim="sgd", learning_rate=0.1))
    )
    assert table.notes[:2] == (
        "No effect of optim, learning_rate: no two cells differ in that alone.",
        "No effect of lora_r 32: no other cell differs from it in lora_r alone.",
    )


def test_a_single_cell_has_no_effects_and_no_table_rows(tmp_path):
    table = effects_table(result(tmp_path, ok("a")))
    assert table.rows.empty
    assert table.notes == ()
    assert table.texts() == []


def test_when_all_cells_failed_there_are_no_rows(tmp_path):
    failed = [
        record(name, parameters={"lora_r": rank}, status="crashed", environment={})
        for name, rank in (("a", 8), ("b", 16))
    ]
    table = effects_table(result(tmp_path, *failed))
    assert table.rows.empty
    assert table.notes[0] == "In no effect: a, b (ended crashed)."


def test_random_weights_have_effects_on_memory_and_speed_alone(tmp_path):
    table = effects_table(result(tmp_path, ok("a", weights="random"), ok("b", weights="random", lora_r=8)))
    assert table.rows["measure"].tolist() == ["stored_bytes", "train_peak_bytes", "tokens_per_s"]


def test_where_it_is_not_known_how_cells_ran_a_note_says_so(tmp_path):
    table = effects_table(result(tmp_path, ok("a"), ok("b", lora_r=8)))
    assert table.notes == ("No tokens/s of 1 pair of cells (lora_r: 8 → 16): how they ran is not known.",)


def test_cells_that_were_scored_on_other_examples_are_not_compared_in_quality(tmp_path):
    other = {**H100, "execution_used": "eager"}
    table = effects_table(result(tmp_path, ok("a", environment=other), ok("b", environment=other, eval_examples=100)))
    verdicts = table.rows.set_index("measure")["verdict"]
    assert (verdicts["accuracy_after"], verdicts["tokens_per_s"]) == ("not comparable", "too few runs")
    assert table.notes[0] == "No accuracy of 1 pair of cells (eval_examples: all → 100): they were not scored alike."


def test_a_cpu_s_peak_is_noisy_and_so_in_percent(tmp_path):
    cells = [
        ok(name, seed, environment=CPU, lora_r=rank) | {"slot": "cpu"}
        for name, rank in (("a", 16), ("b", 8))
        for seed in (0, 1)
    ]  # fmt: skip
    rows = named(effects(result(tmp_path, *cells)))
    assert rows["lora_r", 8, 16, "train_peak_bytes"]["unit"] == "%"
