from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from bench.tables.contrasts import Contrast
from bench.tables.effects import effects_table
from bench.tables.evidence import SPEED
from bench.tables.interactions import interactions, interactions_table

from .evidences import GRID, QUIET, SimulatedCell, evidence

SEEDS = (0, 1, 2, 3)


def grid(truth, ranks=(8, 16), optims=("adamw_torch", "sgd")):
    """All combinations of a rank, DoRA and an optimizer; `truth` tells a cell's by its number of each."""
    return [
        SimulatedCell(
            f"{rank}{'-dora' if dora else ''}-{optim}",
            {"lora_r": rank, "use_dora": dora, "optim": optim},
            **truth(ranks.index(rank), dora, optims.index(optim)),
        )
        for rank, dora, optim in product(ranks, (False, True), optims)
    ]


def found_in(cells, seeds=SEEDS):
    return evidence(cells, seeds=seeds, examples=40, noise=QUIET)


def of(frame, measure):
    return frame[frame["measure"] == measure].set_index(["axis", "by"])


def test_an_effect_that_turns_with_another_setting_is_shown_with_the_effect_at_both():
    found = found_in(grid(lambda rank, dora, optim: {"log_speed": 0.1 * dora * (1 - 2 * optim)}))
    table = interactions_table(found)
    assert table.rows[["axis", "by", "measure", "changes"]].to_numpy().tolist() == [
        ["use_dora", "optim", "tokens_per_s", "sign"]
    ]
    row = table.rows.iloc[0]
    assert (row["since"], row["to"], row["level"], row["other_level"]) == (False, True, "adamw_torch", "sgd")
    assert (row["effect"], row["other_effect"]) == pytest.approx((100 * np.expm1(0.1), 100 * np.expm1(-0.1)), abs=0.1)
    assert row["estimate"] == pytest.approx(100 * np.expm1(-0.2), abs=0.1)
    assert row["couples_count"] == 2
    (texts,) = table.texts()
    assert texts[:3] == ["use_dora: false → true\nby optim", "tokens/s", "adamw_torch\nsgd"]
    assert [line[0] for line in texts[3].split("\n")] == ["+", "−"]  # noqa: RUF001
    assert "Effects that depend on another setting: 1 of 15 interactions tested." in table.caption
    assert "Effects that depend on another setting: 1 of 15 interactions tested." in effects_table(found).notes


def test_an_effect_that_only_grows_changes_in_size():
    found = interactions(found_in(grid(lambda rank, dora, optim: {"log_speed": 0.1 * dora * (1 + optim)})))
    assert of(found, "tokens_per_s")["changes"].dropna().to_dict() == {("use_dora", "optim"): "size"}


def test_an_interaction_is_the_difference_of_two_averages_of_differences():
    found = found_in(grid(lambda rank, dora, optim: {}))
    ids = found.cells["id"].tolist()

    weights = {
        f"{rank}{dora}-{optim}": sign * of_optim / 2
        for (dora, sign), (optim, of_optim), rank in product(
            (("-dora", 1), ("", -1)), (("sgd", 1), ("adamw_torch", -1)), (8, 16)
        )
    }
    contrast = Contrast(tuple(map(ids.index, weights)), tuple(weights.values()))
    row = of(interactions(found), "tokens_per_s").loc[("use_dora", "optim")]
    expected = found.found(SPEED, [contrast]).iloc[0]
    names = ["estimate", "low", "high", "p"]
    assert row[names].tolist() == pytest.approx(expected[names].tolist())


def test_effects_at_two_levels_are_averaged_over_the_settings_that_both_have():
    cells = [cell for cell in grid(lambda rank, dora, optim: {}) if cell.id != "16-dora-sgd"]
    found = of(interactions(found_in(cells)), "tokens_per_s")
    assert found.loc[("use_dora", "optim"), "couples_count"] == 1
    assert found.loc[("lora_r", "use_dora"), "couples_count"] == 1


def test_nothing_planted_shows_nothing_but_a_sentence():
    found = evidence(GRID, examples=100, random_seed=1)
    table = interactions_table(found)
    assert table.rows.empty
    assert "No interaction shown (30 tested)." in table.caption
    assert "No interaction shown (30 tested)." in effects_table(found).notes


def test_the_interaction_of_two_settings_is_tested_once():
    found = of(interactions(evidence(GRID, examples=20)), "tokens_per_s")
    axes = ["quant_type", "double_quant", "compute_dtype", "target_modules"]
    assert found.index.tolist() == [(one, other) for place, one in enumerate(axes) for other in axes[place + 1 :]]


@pytest.mark.parametrize(
    ("of_cell", "changes"),
    [
        (lambda dora, optim: 100_000_000 * dora * (1 - 2 * optim), "sign"),
        (lambda dora, optim: 100_000_000 * dora * (1 + optim), "size"),
        (lambda dora, optim: 500_000_000 * dora + 40_000_000 * dora * optim, None),  # 7 % of the effect
        (lambda dora, optim: 1_000_000 * dora * (1 - 2 * optim), None),  # 0.05 % of the peak
        (lambda dora, optim: 100_000_000 * dora, None),
    ],
)
def test_bytes_differ_by_more_than_is_worth_a_word(of_cell, changes):
    found = found_in(grid(lambda rank, dora, optim: {"peak_bytes": 4_000_000_000 + of_cell(dora, optim)}))
    row = of(interactions(found), "train_peak_bytes").loc[("use_dora", "optim")]
    assert row["changes"] == changes
    assert np.isnan(row["p"])


def test_two_seeds_are_too_few_for_noise_and_enough_for_bytes():
    found = found_in(grid(lambda rank, dora, optim: {"log_speed": 0.2 * dora * optim}), seeds=(0, 1))
    assert set(of(interactions(found), "tokens_per_s")["verdict"]) == {"too few runs"}
    assert effects_table(found).notes == ("No interaction shown (6 tested; 9 more had too few runs).",)


def test_several_levels_are_each_compared_with_the_first():
    found = interactions(found_in(grid(lambda rank, dora, optim: {}, optims=("adamw_torch", "sgd", "adamw_8bit"))))
    rows = of(found, "tokens_per_s").loc[("use_dora", "optim")]
    assert rows[["level", "other_level"]].to_numpy().tolist() == [["adamw_torch", "sgd"], ["adamw_torch", "adamw_8bit"]]


def test_an_axis_of_many_values_takes_no_part_and_a_note_says_so():
    found = found_in(grid(lambda rank, dora, optim: {}, ranks=(1, 2, 4, 8, 16, 32, 64)), seeds=(0,))
    assert set(interactions(found)["axis"]) | set(interactions(found)["by"]) == {"use_dora", "optim"}
    note = "Interactions with lora_r are not tested: there are more than 6 values of each."
    assert note in effects_table(found).notes


def test_pairs_that_are_not_comparable_are_in_no_interaction():
    found = found_in(grid(lambda rank, dora, optim: {}))
    executions = ["eager" if cell == "16-dora-sgd" else "cuda_graph" for cell in found.cells["id"]]
    rows = of(interactions(replace(found, groups={**found.groups, SPEED.name: executions})), "tokens_per_s")
    assert rows.loc[("use_dora", "optim"), "couples_count"] == 1


def test_settings_that_change_together_are_in_no_interaction():
    cells = [
        SimulatedCell(f"{quant}-{rank}", {"quant_type": quant, "double_quant": False, "lora_r": rank})
        for quant, rank in product(("none", "nf4", "fp4"), (8, 16))
    ]
    found = interactions(found_in(cells))
    assert set(found["axis"]) == {"quant_type"}
    assert {(row.since, row.to) for row in found.itertuples()} == {("nf4", "fp4")}


def test_levels_are_compared_at_the_same_double_quantization_where_they_can_be():
    cells = [
        SimulatedCell(f"{name}-{rank}", {**quant, "lora_r": rank})
        for name, quant in {
            "int8": {"quant_type": "int8"},
            "nf4": {"double_quant": False},
            "nf4-dq": {"double_quant": True},
        }.items()
        for rank in (8, 16)
    ]
    rows = of(interactions(found_in(cells)), "tokens_per_s")
    assert rows["couples_count"].to_dict() == {("quant_type", "lora_r"): 1, ("double_quant", "lora_r"): 1}
    without_single = [cell for cell in cells if cell.id not in ("nf4-8", "nf4-16")]
    rows = of(interactions(found_in(without_single)), "tokens_per_s")
    assert rows.loc[("quant_type", "lora_r"), "couples_count"] == 1


def test_the_legend_says_what_may_differ_along():
    truth = {False: 0.0, True: 0.2}
    cells = [
        SimulatedCell(
            f"{dtype}-{dora}", {"compute_dtype": dtype, "use_dora": dora}, log_speed=truth[dora and dtype == "float16"]
        )
        for dtype, dora in product(("bfloat16", "float16"), (False, True))
    ]
    (about,) = (column.about for column in interactions_table(found_in(cells)).columns if column.heading == "effect")
    assert "over the same values of all others, but for load_dtype where it follows compute_dtype; ±" in about
    cells = grid(lambda rank, dora, optim: {"log_speed": 0.2 * dora * optim})
    (about,) = (column.about for column in interactions_table(found_in(cells)).columns if column.heading == "effect")
    assert "over the same values of all others; ±" in about


def test_with_a_single_axis_there_are_none_and_no_sentence():
    found = found_in([SimulatedCell("a"), SimulatedCell("b", {"lora_r": 8})])
    assert interactions(found).empty
    assert interactions_table(found).rows.empty
    assert effects_table(found).notes == ()
