from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.plan import describe, plan

from .examples import DESIGN, SMALL, load

TWO_SEEDS = SMALL + "include: [{id: base, quant_type: none}]\nbaseline: base\nseeds: [3, 1]\n"


def order(tmp_path: Path, text: str, **options: object) -> list[tuple[str, int]]:
    return [(job.cell.id, job.seed) for job in plan(load(tmp_path, text), **options).jobs]  # type: ignore[arg-type]


def test_seeds_go_round_and_the_baseline_comes_first_in_each(tmp_path: Path) -> None:
    assert order(tmp_path, TWO_SEEDS) == [("base", 3), ("nf4", 3), ("fp4", 3), ("base", 1), ("nf4", 1), ("fp4", 1)]


def test_without_a_baseline_the_order_is_the_matrixs_own(tmp_path: Path) -> None:
    assert order(tmp_path, SMALL) == [("nf4", 0), ("fp4", 0)]


def test_a_selection_and_other_seeds_are_planned_instead(tmp_path: Path) -> None:
    assert order(tmp_path, TWO_SEEDS, select="fp4 or base", seeds=[7]) == [("base", 7), ("fp4", 7)]
    assert order(tmp_path, TWO_SEEDS, select="fp4", seeds=(0,)) == [("fp4", 0)]


@pytest.mark.parametrize(
    ("seeds", "message"),
    [
        ([], "no seed is given; give one or more, such as 0"),
        ([0, 0], "a seed is given twice; give each seed once"),
        ([-1], "a seed is a whole number from 0 to 4294967295, not -1; give 0, 1, 2 and so on"),
        ([2**32], "a seed is a whole number from 0 to 4294967295, not 4294967296; give 0, 1, 2 and so on"),
    ],
)
def test_seeds_that_make_no_sense_are_refused(tmp_path: Path, seeds: list[int], message: str) -> None:
    with pytest.raises(BenchError) as caught:
        plan(load(tmp_path, SMALL), seeds=seeds)
    assert str(caught.value) == message


def test_the_description_is_json_with_every_parameter_of_every_cell(tmp_path: Path) -> None:
    described = describe(plan(load(tmp_path, DESIGN), select="lora or attention"))
    assert json.loads(json.dumps(described, allow_nan=False)) == described
    assert list(described) == ["name", "about", "baseline", "seeds", "cells", "jobs"]
    assert (described["name"], described["baseline"], described["seeds"]) == ("default", "lora-bf16", [0, 1, 2])
    assert [cell["id"] for cell in described["cells"]][-1] == "lora-bf16"
    assert described["cells"][0]["parameters"]["lora_r"] == 16
    assert len(described["cells"][0]["key"]) == 16
    assert described["jobs"][:2] == [{"id": "lora-bf16", "seed": 0}, {"id": "nf4-bf16-attention", "seed": 0}]
    assert len(described["jobs"]) == 7 * 3
