from __future__ import annotations

from pathlib import Path

import pytest

from .examples import SMALL, ids, load, mistakes


@pytest.mark.parametrize(
    ("axis", "expected"),
    [
        (
            "quant_type: nf4",
            "3:15: the axis quant_type takes a list of values, not the text 'nf4'; write [nf4]",
        ),
        ("lora_r: 8", "3:11: the axis lora_r takes a list of values, not 8; write [8]"),
        ("lora_r: {a: 8}", "3:11: the axis lora_r takes a list of values, not a mapping; list the values: [a, b]"),
        ("lora_r: []", "3:11: the axis lora_r has no values; list one or more, or remove the axis"),
        (
            "epochs: [1, 2, 1.0]",
            "3:18: duplicate value 1 in the axis epochs, first in line 3, column 12; remove one of the two",
        ),
        (
            "vram_limit: [T4, t4]",
            "3:20: duplicate value T4 in the axis vram_limit, first in line 3, column 16; remove one of the two",
        ),
        (
            "target_modules: [[a, b], [b, a]]",
            "3:28: duplicate value [a, b] in the axis target_modules, first in line 3, column 20; "
            "remove one of the two",
        ),
        (
            "target_modules: [q_proj]",
            "3:20: target_modules takes all-linear, attention, mlp or a list of module names, not the text 'q_proj'; "
            "write [q_proj]",
        ),
        ("quant_typ: [nf4]", "3:3: unknown parameter 'quant_typ'; did you mean quant_type?"),
        ("lr: [1e-4]", "3:3: unknown parameter 'lr'; did you mean learning_rate?"),
        ("wat: [1]", "3:3: unknown parameter 'wat'; qlora-bench params lists the parameters"),
        ("id: [a]", "3:3: unknown parameter 'id'; only rows of include have an id"),
        (
            "exclude: []",
            "3:3: unknown parameter 'exclude'; "
            "exclude is a part of the matrix: move it to the left, to where axes stands",
        ),
    ],
)
def test_a_mistake_in_an_axis_is_reported_once_and_nothing_follows_from_it(
    tmp_path: Path, axis: str, expected: str
) -> None:
    assert mistakes(tmp_path, f"schema: 1\naxes:\n  {axis}\n") == [f"m.yaml:{expected}"]


def test_a_list_under_defaults_is_sent_to_the_axes(tmp_path: Path) -> None:
    assert mistakes(tmp_path, SMALL + "defaults: {lora_r: [8, 16]}\n") == [
        "m.yaml:4:20: lora_r takes a whole number above zero, not the list [8, 16]; "
        "write one value; values to be crossed are listed under axes"
    ]


def test_off_is_text_and_the_fix_says_false(tmp_path: Path) -> None:
    assert mistakes(tmp_path, SMALL + "defaults:\n  double_quant: off\n") == [
        "m.yaml:5:17: double_quant takes true or false, not the text 'off'; write false"
    ]


@pytest.mark.parametrize(
    ("id_", "expected"),
    [
        ("a b", "an id becomes a file name and takes letters, digits and . _ + = -, not the text 'a b'; write a-b"),
        (".a", "an id becomes a file name and takes letters, digits and . _ + = -, not the text '.a'; write a"),
        ("../a", "an id becomes a file name and takes letters, digits and . _ + = -, not the text '../a'; write a"),
        (
            "'/'",
            "an id becomes a file name and takes letters, digits and . _ + = -, not the text '/'; "
            "write letters and digits, as in lora-bf16",
        ),
        ("8", "an id is text, not 8; put quotes around it"),
        ("[a]", "an id is text, not a list; write a short name"),
        ("", "an id is text, not an empty value (null); write a short name"),
        ("x" * 101, "the id is longer than 100 characters; shorten it"),
    ],
)
def test_an_id_has_to_do_for_a_file_name(tmp_path: Path, id_: str, expected: str) -> None:
    (problem,) = mistakes(tmp_path, SMALL + f"include:\n  - quant_type: int8\n    id: {id_}\n")
    assert problem.partition(": ")[2] == expected
    assert problem.startswith("m.yaml:6:")


def test_a_parameter_may_have_a_default_and_an_axis_and_the_axis_wins(tmp_path: Path) -> None:
    matrix = load(
        tmp_path, SMALL + "defaults: {quant_type: int8, lora_r: 4}\ninclude: [{id: i, compute_dtype: float16}]"
    )
    assert ids(matrix) == ["nf4", "fp4", "i"]
    assert [cell.parameters.quant_type for cell in matrix.cells] == ["nf4", "fp4", "int8"]
    assert {cell.parameters.lora_r for cell in matrix.cells} == {4}
