from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.plan import Job, describe, plan

from .examples import DESIGN, SMALL, load, mistakes

TWO_SEEDS = SMALL + "include: [{id: base, quant_type: none}]\nbaseline: base\nseeds: [3, 1]\n"
RANKS = "[1, 2, 3, 4, 5, 6, 7, 8]"
MANY = f"schema: 1\naxes: {{lora_r: {RANKS}}}\nbaseline: r3\nseeds: [0, 1, 2]\n"


def jobs(tmp_path: Path, text: str, **options: object) -> list[Job]:
    return list(plan(load(tmp_path, text), **options).jobs)  # type: ignore[arg-type]


def order(tmp_path: Path, text: str, **options: object) -> list[tuple[str, int, int]]:
    return [(job.cell.id, job.seed, job.repeat) for job in jobs(tmp_path, text, **options)]


def blocks(tmp_path: Path, text: str, **options: object) -> list[list[str]]:
    """The ids of each block, in order."""
    return [
        [id_ for id_, *_ in block] for _, block in groupby(order(tmp_path, text, **options), key=lambda job: job[1])
    ]


def test_a_seed_is_a_block_that_the_baseline_begins_and_ends(tmp_path: Path) -> None:
    first, second = blocks(tmp_path, TWO_SEEDS)
    assert [seed for _, seed, _ in order(tmp_path, TWO_SEEDS)] == [3] * 4 + [1] * 4
    assert first[0] == first[-1] == second[0] == second[-1] == "base"
    assert sorted(first[1:-1]) == sorted(second[1:-1]) == ["fp4", "nf4"]
    assert [repeat for *_, repeat in order(tmp_path, TWO_SEEDS)] == [0, 0, 0, 1] * 2
    assert [job.position for job in jobs(tmp_path, TWO_SEEDS)] == [1, 2, 3, 4] * 2


def test_no_two_jobs_have_one_key(tmp_path: Path) -> None:
    keys = [job.key for job in jobs(tmp_path, MANY)]
    assert len(set(keys)) == len(keys) == 3 * 9


def test_the_cells_of_a_block_are_shuffled_and_each_seed_shuffles_them_anew(tmp_path: Path) -> None:
    shuffled = [tuple(block[1:-1]) for block in blocks(tmp_path, MANY)]
    assert len({*shuffled, tuple(f"r{rank}" for rank in (1, 2, 4, 5, 6, 7, 8))}) == 4
    assert all(sorted(block) == sorted(shuffled[0]) for block in shuffled)


def test_neither_the_order_of_the_file_nor_a_selection_nor_other_cells_change_which_of_two_cells_is_first(
    tmp_path: Path,
) -> None:
    whole = blocks(tmp_path, MANY)
    assert blocks(tmp_path, MANY.replace(RANKS, "[8, 3, 1, 2, 7, 6, 5, 4]")) == whole
    chosen = {"r1", "r3", "r6", "r8"}
    assert blocks(tmp_path, MANY, select=" or ".join(chosen)) == [
        [id_ for id_ in block if id_ in chosen] for block in whole
    ]
    more = blocks(tmp_path, MANY.replace("8]", "8, 9]"))
    assert [[id_ for id_ in block if id_ != "r9"] for block in more] == whole


def test_without_a_baseline_nothing_runs_twice(tmp_path: Path) -> None:
    assert sorted(order(tmp_path, SMALL)) == [("fp4", 0, 0), ("nf4", 0, 0)]


def test_a_selection_and_other_seeds_are_planned_instead(tmp_path: Path) -> None:
    chosen = order(tmp_path, TWO_SEEDS, select="fp4 or base", seeds=[7])
    assert chosen == [("base", 7, 0), ("fp4", 7, 0), ("base", 7, 1)]
    assert order(tmp_path, TWO_SEEDS, select="fp4", seeds=(0,)) == [("fp4", 0, 0)]


def test_a_baseline_alone_runs_once(tmp_path: Path) -> None:
    assert order(tmp_path, TWO_SEEDS, select="base", seeds=(0,)) == [("base", 0, 0)]


def test_a_seed_with_its_offset_stays_a_seed(tmp_path: Path) -> None:
    text = SMALL + "include: [{id: base, seed_offset: 4294967295}]\n"
    assert len(jobs(tmp_path, text)) == 3
    with pytest.raises(BenchError, match=r"^base: seed 1 with seed_offset 4294967295 is beyond 4294967295; lower"):
        plan(load(tmp_path, text), seeds=[0, 1])
    assert len(jobs(tmp_path, text, select="not base", seeds=[1])) == 2


@pytest.mark.parametrize("offset", [-1, 2**32])
def test_an_offset_that_is_no_seed_is_told_where_it_stands(tmp_path: Path, offset: int) -> None:
    assert mistakes(tmp_path, SMALL + f"defaults: {{seed_offset: {offset}}}\n") == [
        f"m.yaml:4:25: seed_offset takes a whole number from 0 to 4294967295, not {offset}; the default is 0"
    ]


def test_an_offset_that_makes_the_runs_of_another_cell_again_is_refused(tmp_path: Path) -> None:
    text = "schema: 1\ninclude: [{id: base}, {id: aa, seed_offset: 2}, {id: other, seed_offset: 2, lora_r: 8}]\n"
    matrix = load(tmp_path, text)
    assert len(plan(matrix, seeds=[0, 1]).jobs) == 6
    with pytest.raises(BenchError) as caught:
        plan(matrix, seeds=[0, 1, 2])
    assert str(caught.value) == (
        "base and aa would make the same run: seed + seed_offset is 2 in both; "
        "let seed_offset differ by more than the seeds do (2), such as by 1000"
    )
    with pytest.raises(BenchError, match=r"is 2002 in both; .* do \(2000\), such as by 2001$"):
        plan(load(tmp_path, text.replace("seed_offset: 2}", "seed_offset: 2000}")), seeds=[2, 2002])
    assert len(plan(matrix, "not base", seeds=[0, 1, 2]).jobs) == 6


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
    assert list(described) == ["name", "about", "baseline", "seeds", "watch_pairs", "cells", "jobs"]
    assert (described["name"], described["baseline"], described["seeds"]) == ("default", "lora-bf16", [0, 1, 2])
    assert [cell["id"] for cell in described["cells"]][-1] == "lora-bf16"
    assert described["cells"][0]["parameters"]["lora_r"] == 16
    assert len(described["cells"][0]["key"]) == 16
    assert described["jobs"][0] == {"id": "lora-bf16", "seed": 0, "repeat": 0, "position": 1}
    assert described["jobs"][-1] == {"id": "lora-bf16", "seed": 2, "repeat": 1, "position": 8}
    assert len(described["jobs"]) == (7 + 1) * 3


def test_the_description_names_the_pairs_to_watch(tmp_path: Path) -> None:
    assert describe(plan(load(tmp_path, SMALL + "watch_pairs: [[a, b]]\n")))["watch_pairs"] == [["a", "b"]]
