from __future__ import annotations

from dataclasses import replace
from itertools import combinations, permutations

import numpy as np
import pytest

from bench.matrix.parameters import FOUR_BIT, Parameters
from bench.tables.contrasts import Contrast, Sample, estimates
from bench.tables.evidence import ACCURACY
from bench.tables.pairs import changes, choose, matches, mean_difference, ordered, settings_of
from bench.tables.table import entries

from .evidences import BASELINE, GRID, SimulatedCell, evidence

EXTRA = (
    SimulatedCell("no-upcast", {"double_quant": False, "kbit_upcast": False}),
    SimulatedCell("load-fp32", {"load_dtype": "float32"}),
    SimulatedCell("load-fp32-fp16", {"load_dtype": "float32", "compute_dtype": "float16"}),
    SimulatedCell("int8", {"quant_type": "int8"}),
    SimulatedCell("slow", {"timeout": 60.0}),
)


def changes_of(found):
    return changes(found, settings_of(found))


def by_name(found):
    ids = found.cells["id"].tolist()
    return {change.name: {tuple(ids[cell] for cell in pair) for pair in change.pairs} for change in changes_of(found)}


def small(*cells):
    return evidence(cells, seeds=(0,), examples=20)


def alike(name, one, other):
    """The rule as the module's docstring has it."""
    if name == "load_dtype" and all(row[name] == row["compute_dtype"] for row in (one, other)):
        return True
    if name == "double_quant" and not all(row["quant_type"] in FOUR_BIT for row in (one, other)):
        return True
    return one[name] == other[name]


def differ_in(axes, one, other):
    others = set(Parameters.model_fields) - {"timeout", *axes}
    return all(one[axis] != other[axis] for axis in axes) and all(alike(name, one, other) for name in others)


def test_the_default_grid_compares_each_choice_over_all_settings_of_the_others():
    found = by_name(small(*GRID))
    assert {name: len(pairs) for name, pairs in found.items()} == {
        "quant_type: nf4 → fp4": 8,
        "double_quant: false → true": 8,
        "compute_dtype: bfloat16 → float16": 8,
        "target_modules: all-linear → attention": 8,
        "quant_type + kbit_upcast: none → nf4, false → true": 1,
        "quant_type + kbit_upcast: none → fp4, false → true": 1,
    }
    assert ("nf4-fp16-attention", "nf4-dq-fp16-attention") in found["double_quant: false → true"]


def test_a_setting_is_told_apart_from_what_follows_it():
    found = by_name(small(*GRID, *EXTRA))
    assert found["quant_type: none → nf4"] == {("lora-bf16", "no-upcast")}
    assert found["kbit_upcast: false → true"] == {("no-upcast", "nf4-bf16-all-linear")}
    assert found["quant_type + kbit_upcast: none → nf4, false → true"] == {("lora-bf16", "nf4-bf16-all-linear")}
    assert found["quant_type + kbit_upcast: none → int8, false → true"] == {("lora-bf16", "int8")}
    assert [name for name in found if "+" in name] == [*found][-3:]


def test_the_values_of_settings_that_change_together_are_joined_as_text():
    change = next(change for change in changes_of(small(*GRID)) if change.along)
    assert change.joined == ("quant_type, kbit_upcast", "none, false", "nf4, true")
    assert (change.axis, change.since, change.to) == ("quant_type", "none", "nf4")


def test_where_the_values_changed_from_are_the_baseline_s_what_follows_changes_the_other_way():
    found = by_name(small(SimulatedCell("nf4", {"double_quant": False}), SimulatedCell("none", {"quant_type": "none"})))
    assert found == {"quant_type + kbit_upcast: nf4 → none, true → false": {("nf4", "none")}}


def test_an_upcast_that_was_set_otherwise_follows_nothing():
    cells = (
        SimulatedCell("none", {"quant_type": "none"}),
        SimulatedCell("nf4", {"kbit_upcast": False, "lora_r": 8}),
        SimulatedCell("fp4", {"quant_type": "fp4", "kbit_upcast": True, "lora_r": 8}),
    )
    assert by_name(small(*cells)) == {}


def test_double_quantization_means_nothing_where_a_base_is_not_4_bit_and_is_equal_where_it_can_be():
    double = SimulatedCell("nf4-dq", {"kbit_upcast": False})
    single = SimulatedCell("nf4", {"kbit_upcast": False, "double_quant": False})
    assert by_name(small(BASELINE, double)) == {"quant_type: none → nf4": {("lora-bf16", "nf4-dq")}}
    found = by_name(small(BASELINE, double, single))
    assert found["quant_type: none → nf4"] == {("lora-bf16", "nf4")}


def test_a_cell_without_results_does_not_stand_for_one_that_has_them():
    double = SimulatedCell("nf4-dq", {"kbit_upcast": False})
    single = SimulatedCell("nf4", {"kbit_upcast": False, "double_quant": False})
    found = small(BASELINE, double, single)
    unknown = found.cells["id"].tolist().index("nf4")
    groups = {
        name: [None if cell == unknown else group for cell, group in enumerate(of_cells)]
        for name, of_cells in found.groups.items()
    }
    pairs = by_name(replace(found, groups=groups))["quant_type: none → nf4"]
    assert ("lora-bf16", "nf4-dq") in pairs


def test_the_dtype_that_is_loaded_may_change_with_that_of_computing_and_not_with_anything_else():
    found = by_name(small(*GRID, *EXTRA))
    assert found["load_dtype: bfloat16 → float32"] == {
        ("nf4-dq-bf16-all-linear", "load-fp32"),
        ("slow", "load-fp32"),
    }
    assert ("load-fp32", "load-fp32-fp16") in found["compute_dtype: bfloat16 → float16"]
    assert ("nf4-bf16-attention", "nf4-fp16-attention") in found["compute_dtype: bfloat16 → float16"]
    only_loaded = SimulatedCell("a", {"load_dtype": "float32"}), SimulatedCell("b", {"lora_r": 8})
    assert by_name(small(*only_loaded)) == {}


def test_pairs_are_those_that_a_comparison_of_all_cells_with_all_finds():
    found = small(*GRID, *EXTRA)
    rows = entries(found.cells)
    listed = changes_of(found)
    assert {change.axis for change in listed} == {
        "quant_type", "double_quant", "compute_dtype", "load_dtype", "target_modules", "kbit_upcast"
    }  # fmt: skip
    for change in listed:
        axes = [value.axis for value in change.values]
        expected = {
            (since, to)
            for since, to in permutations(range(len(rows)), 2)
            if all((rows[since][axis], rows[to][axis]) == (before, after) for axis, before, after in change.values)
            and differ_in(axes, rows[since], rows[to])
        }
        equal = {pair for pair in expected if rows[pair[0]]["double_quant"] == rows[pair[1]]["double_quant"]}
        assert {tuple(pair) for pair in change.pairs.tolist()} == (equal or expected)


def test_changes_go_from_false_from_the_lowest_number_and_from_the_baseline_s_value():
    found = small(
        SimulatedCell("base", {"use_dora": True, "lora_r": 16, "optim": "sgd"}),
        SimulatedCell("a", {"use_dora": False, "lora_r": 16, "optim": "sgd"}),
        SimulatedCell("b", {"use_dora": True, "lora_r": 64, "optim": "sgd"}),
        SimulatedCell("c", {"use_dora": True, "lora_r": 8, "optim": "sgd"}),
        SimulatedCell("d", {"use_dora": True, "lora_r": 16, "optim": "adamw_torch"}),
        SimulatedCell("e", {"use_dora": True, "lora_r": 16, "optim": "adamw_8bit"}),
    )
    assert list(by_name(found)) == [
        "lora_r: 8 → 16",
        "lora_r: 8 → 64",
        "use_dora: false → true",
        "optim: sgd → adamw_torch",
        "optim: sgd → adamw_8bit",
    ]


def test_two_other_values_are_compared_where_one_of_them_has_no_pair_with_the_first():
    found = small(
        SimulatedCell("a8", {"lora_r": 8}),
        SimulatedCell("a16", {"lora_r": 16}),
        SimulatedCell("b16", {"lora_r": 16, "use_dora": True}),
        SimulatedCell("b64", {"lora_r": 64, "use_dora": True}),
    )
    assert list(by_name(found)) == ["lora_r: 8 → 16", "lora_r: 16 → 64", "use_dora: false → true"]


def test_of_an_axis_of_many_values_each_is_compared_with_the_first():
    found = small(*(SimulatedCell(f"r{rank}", {"lora_r": rank}) for rank in range(1, 31)))
    assert [(change.since, change.to) for change in changes_of(found)] == [(1, rank) for rank in range(2, 31)]


def test_a_limit_on_time_is_no_setting_and_a_missing_value_is_one():
    found = by_name(
        small(
            SimulatedCell("a"),
            SimulatedCell("b", {"timeout": 10.0}),
            SimulatedCell("c", {"max_steps": 5, "timeout": 20.0}),
        )
    )
    assert found == {"max_steps: null → 5": {("a", "c"), ("b", "c")}}


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([True, False, True], [False, True]),
        ([64, 8, 16], [8, 16, 64]),
        (["nf4", "none", "nf4"], ["nf4", "none"]),
        (["all", 100, 10], ["all", 100, 10]),
        ([5, None], [5, None]),
    ],
)
def test_the_order_of_values(values, expected):
    assert ordered(values) == expected


@pytest.mark.parametrize(
    ("seeds_of", "kept", "shared"),
    [
        (((0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3)), [True, True, True], (0, 1, 2, 3)),
        (((0, 1, 2, 3), (0, 1, 2), (0, 1, 2, 3)), [True, True, True], (0, 1, 2)),  # enough seeds for all
        (((0, 1, 2, 3), (0, 1, 2, 3), (0, 1)), [True, True, False], (0, 1, 2, 3)),  # one pair costs the verdict
        (((0, 1, 2, 3), (0, 1), (0, 1), (0, 1)), [True] * 4, (0, 1)),  # too few pairs have more
        (((0, 1), (2,), (1, 3)), [True, False, True], (1,)),  # none in common: the seed that most have
    ],
)
def test_pairs_are_averaged_over_seeds_that_all_have(seeds_of, kept, shared):
    cells = [
        SimulatedCell(f"{rank}-{dora}", {"lora_r": rank, "use_dora": dora}, seeds=seeds)
        for rank, seeds in enumerate(seeds_of, start=1)
        for dora in (False, True)
    ]
    found = evidence(cells, seeds=(0, 1, 2, 3), examples=20)
    (change,) = [change for change in changes_of(found) if change.axis == "use_dora"]
    chosen = choose(found, ACCURACY, change.pairs)
    assert chosen.kept.tolist() == kept
    assert tuple(np.array(found.seeds)[chosen.shared]) == shared


def test_pairs_without_any_seed_are_all_kept_and_share_none():
    found = evidence([SimulatedCell("a", seeds=(0,)), SimulatedCell("b", seeds=(1,))], seeds=(0, 1), examples=20)
    chosen = choose(found, ACCURACY, np.array([[0, 1]]))
    assert (chosen.kept.tolist(), chosen.shared.tolist()) == ([True], [False, False])


def test_the_mean_difference_is_the_average_of_differences():
    pairs = np.array([[0, 1], [0, 2], [3, 4]])
    values = np.random.default_rng(0).normal(size=(5, 3))
    found = estimates(Sample(values), [mean_difference(pairs)])
    assert found["estimate"][0] == pytest.approx((values[pairs[:, 1]] - values[pairs[:, 0]]).mean())


def test_cells_that_cancel_out_are_in_no_contrast():
    assert mean_difference(np.array([[0, 1], [0, 2]])) == Contrast((0, 1, 2), (-1.0, 0.5, 0.5))
    assert mean_difference(np.array([[0, 1], [1, 2]])) == Contrast((0, 2), (-0.5, 0.5))
    assert mean_difference(np.array([[0, 1], [1, 0]])) == Contrast((), ())


def test_matches_are_all_places_with_the_same_key():
    left, right = np.array([3, 1, 3, 9]), np.array([1, 3, 3, 7, 1])
    expected = {(i, j) for i, one in enumerate(left) for j, other in enumerate(right) if one == other}
    assert set(zip(*(places.tolist() for places in matches(left, right)), strict=True)) == expected


def test_a_grid_of_alike_cells_has_a_pair_for_any_two_values():
    cells = [BASELINE, *(SimulatedCell(f"r{rank}", {"quant_type": "none", "lora_r": rank}) for rank in (4, 8))]
    pairs = [pair for change in changes_of(small(*cells)) for pair in change.pairs.tolist()]
    assert sorted(map(sorted, pairs)) == [list(pair) for pair in combinations(range(3), 2) if pair != (0, 2)]
