from __future__ import annotations

from itertools import combinations, permutations

import numpy as np
import pytest

from bench.matrix.parameters import DERIVED, Parameters
from bench.tables.contrasts import average, difference
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


def differ_in(axis, one, other):
    """The rule as the docstring of `changes` has it, pair by pair."""
    return one[axis] != other[axis] and all(
        one[name] == other[name]
        or (name in DERIVED and all(row[name] == DERIVED[name][1](row) for row in (one, other)))
        for name in Parameters.model_fields
        if name not in (axis, "timeout")
    )


def test_the_default_grid_compares_each_choice_over_all_settings_of_the_others():
    found = by_name(small(*GRID))
    assert {name: len(pairs) for name, pairs in found.items()} == {
        "quant_type: none → nf4": 2,
        "quant_type: none → fp4": 2,
        "quant_type: nf4 → fp4": 8,
        "double_quant: false → true": 8,
        "compute_dtype: bfloat16 → float16": 8,
        "target_modules: all-linear → attention": 8,
    }
    assert ("nf4-fp16-attention", "nf4-dq-fp16-attention") in found["double_quant: false → true"]


def test_what_follows_from_the_changed_setting_may_differ_and_what_was_set_otherwise_may_not():
    # The baseline has neither double quantization nor the upcast, as follows from quant_type: none.
    found = by_name(small(*GRID, *EXTRA))
    assert found["quant_type: none → nf4"] == {
        ("lora-bf16", "nf4-bf16-all-linear"),
        ("lora-bf16", "nf4-dq-bf16-all-linear"),
        ("lora-bf16", "no-upcast"),
        ("lora-bf16", "slow"),
    }
    assert found["load_dtype: bfloat16 → float32"] == {
        ("nf4-dq-bf16-all-linear", "load-fp32"),
        ("slow", "load-fp32"),
    }
    assert ("load-fp32", "load-fp32-fp16") in found["compute_dtype: bfloat16 → float16"]
    assert found["kbit_upcast: false → true"] == {("no-upcast", "nf4-bf16-all-linear")}


def test_pairs_are_those_that_a_comparison_of_all_cells_with_all_finds():
    found = small(*GRID, *EXTRA)
    rows = entries(found.cells)
    listed = changes_of(found)
    assert {change.axis for change in listed} == {
        "quant_type", "double_quant", "compute_dtype", "load_dtype", "target_modules", "kbit_upcast"
    }  # fmt: skip
    for change in listed:
        expected = {
            (since, to)
            for since, to in permutations(range(len(rows)), 2)
            if (rows[since][change.axis], rows[to][change.axis]) == (change.since, change.to)
            and differ_in(change.axis, rows[since], rows[to])
        }
        assert {tuple(pair) for pair in change.pairs.tolist()} == expected


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
    expected = average([difference(of=to, against=since) for since, to in pairs.tolist()])
    found = mean_difference(pairs)
    assert dict(zip(found.cells, found.weights, strict=True)) == pytest.approx(
        dict(zip(expected.cells, expected.weights, strict=True))
    )


def test_matches_are_all_places_with_the_same_key():
    left, right = np.array([3, 1, 3, 9]), np.array([1, 3, 3, 7, 1])
    expected = {(i, j) for i, one in enumerate(left) for j, other in enumerate(right) if one == other}
    assert set(zip(*(places.tolist() for places in matches(left, right)), strict=True)) == expected


def test_a_grid_of_alike_cells_has_a_pair_for_any_two_values():
    cells = [BASELINE, *(SimulatedCell(f"r{rank}", {"quant_type": "none", "lora_r": rank}) for rank in (4, 8))]
    pairs = [pair for change in changes_of(small(*cells)) for pair in change.pairs.tolist()]
    assert sorted(map(sorted, pairs)) == [list(pair) for pair in combinations(range(3), 2) if pair != (0, 2)]
