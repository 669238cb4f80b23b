from __future__ import annotations

from pathlib import Path

import pytest

from .examples import SMALL, SMALL_KERNELS, ids, kernels, load, mistakes, mistakes_of_kernels

OF_KERNELS = "m.yaml:2:7: this matrix is of kernels; nox -s kernels -- m.yaml runs it"
OF_CELLS = "this matrix is of cells; nox -s bench -- k.yaml runs it"


def of(kind: str) -> str:
    return SMALL.replace("schema: 1\n", f"schema: 1\nkind: {kind}\n")


def test_a_matrix_that_says_nothing_is_of_cells(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL).cells == load(tmp_path, of("cells")).cells


def test_a_matrix_of_something_else_is_told_with_the_command_that_runs_it(tmp_path: Path) -> None:
    assert mistakes(tmp_path, of("kernels")) == [OF_KERNELS]
    assert mistakes_of_kernels(tmp_path, of("cells")) == [f"k.yaml:2:7: {OF_CELLS}"]
    assert mistakes_of_kernels(tmp_path, SMALL) == [f"k.yaml: {OF_CELLS}; a matrix of kernels says kind: kernels"]


def test_what_else_is_in_a_matrix_of_something_else_is_not_judged(tmp_path: Path) -> None:
    assert mistakes(tmp_path, of("kernels") + "seeds: no\ndefaults: {rows: 8, wat: 1}\n") == [OF_KERNELS]
    assert mistakes_of_kernels(tmp_path, of("cells") + "baseline: nf4\ndefaults: {batch_size: x}\n") == [
        f"k.yaml:2:7: {OF_CELLS}"
    ]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kernel", ["k.yaml:2:7: kind takes cells or kernels, not the text 'kernel'; did you mean kernels?"]),
        ("Kernels", ["k.yaml:2:7: kind takes cells or kernels, not the text 'Kernels'; did you mean kernels?"]),
        ("cell", ["k.yaml:2:7: kind takes cells or kernels, not the text 'cell'; did you mean cells?"]),
        ("layers", ["k.yaml:2:7: kind takes cells or kernels, not the text 'layers'; write kernels"]),
        ("", ["k.yaml:2:6: kind takes cells or kernels, not an empty value (null); write kernels"]),
        ("[kernels]", ["k.yaml:2:7: kind takes cells or kernels, not a list; write kernels"]),
        ("true", ["k.yaml:2:7: kind takes cells or kernels, not true; write kernels"]),
    ],
)
def test_there_are_two_kinds(tmp_path: Path, kind: str, expected: list[str]) -> None:
    assert mistakes_of_kernels(tmp_path, of(kind)) == expected


def test_a_misspelt_kind_that_is_the_one_wanted_keeps_no_other_mistake_back(tmp_path: Path) -> None:
    wrong = "defaults: {row: 8}\n"
    assert [line.split(";")[0] for line in mistakes_of_kernels(tmp_path, of("kernal") + wrong)] == [
        "k.yaml:2:7: kind takes cells or kernels, not the text 'kernal'",
        "k.yaml:5:12: unknown parameter 'row'",
    ]
    assert len(mistakes(tmp_path, of("kernal") + wrong)) == 1


def test_a_kind_is_a_part_of_the_matrix(tmp_path: Path) -> None:
    fix = "kind is a part of the matrix: move it to the left, to where axes stands"
    assert mistakes(tmp_path, SMALL + "defaults: {kind: cells}\n") == [f"m.yaml:4:12: unknown parameter 'kind'; {fix}"]
    assert mistakes_of_kernels(tmp_path, SMALL_KERNELS + "defaults: {kind: kernels}\n") == [
        f"k.yaml:5:12: unknown parameter 'kind'; {fix}"
    ]


def test_both_kinds_can_stand_side_by_side(tmp_path: Path) -> None:
    assert ids(load(tmp_path, SMALL)) == [case.id for case in kernels(tmp_path, SMALL_KERNELS).cases] == ["nf4", "fp4"]
