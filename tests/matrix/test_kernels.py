from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix.ids import key_of
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.kernels import load_kernels

from .examples import SMALL_KERNELS, cases, kernels, mistakes_of_kernels

TAKES = "a matrix of kernels takes operation, model, layer, quant_type, double_quant, compute_dtype, rows and lora_r"
KEYS = "the keys are schema, name, about, defaults, axes, exclude, overrides and include"
FOUR_BIT = "double_quant: true needs 4-bit weights (quant_type nf4 or fp4)"
CHANGE = "change a parameter of it, or remove it"


def test_a_matrix_of_kernels_has_the_cases_it_says(tmp_path: Path) -> None:
    text = """\
schema: 1
kind: kernels
name: mine
about: What does it cost?
defaults: {model: smollm2-135m, rows: 16}
axes:
  layer: [q_proj, 64x32]
  operation: [forward, dequantize]
  lora_r: [0, 8]
  quant_type: [nf4, none]
exclude:
  - {operation: dequantize, quant_type: none}
overrides:
  - {when: {layer: 64x32}, set: {compute_dtype: float32}}
include:
  - {rows: 4096}
  - {id: nested, quant_type: fp4, double_quant: false}
"""
    matrix = kernels(tmp_path, text)
    assert (matrix.name, matrix.about, matrix.text) == ("mine", "What does it cost?", text)
    assert matrix.path == tmp_path / "k.yaml"
    assert [case.id for case in matrix.cases] == [
        "forward-q_proj-nf4-r0",
        "forward-q_proj-none-r0",
        "forward-q_proj-nf4-r8",
        "forward-q_proj-none-r8",
        "dequantize-q_proj-nf4",
        "forward-64x32-nf4-r0",
        "forward-64x32-none-r0",
        "forward-64x32-nf4-r8",
        "forward-64x32-none-r8",
        "dequantize-64x32-nf4",
        "forward-q_proj-nf4-4096-r0",
        "nested",
    ]
    found = {case.id: case.parameters for case in matrix.cases}
    assert found["forward-64x32-none-r8"] == KernelParameters(
        model="smollm2-135m", layer="64x32", quant_type="none", double_quant=False, compute_dtype="float32",
        rows=16, lora_r=8,
    )  # fmt: skip
    assert (found["nested"].quant_type, found["nested"].double_quant) == ("fp4", False)


@pytest.mark.parametrize(
    ("axes", "expected"),
    [
        (
            "{operation: [forward, quantize], model: [qwen2.5-7b, a/b], layer: [q_proj], quant_type: [nf4], "
            "double_quant: [true], compute_dtype: [bfloat16, float16], rows: [512, 1], lora_r: [16]}",
            "forward-qwen2.5-7b-bf16-512 forward-qwen2.5-7b-bf16-1 forward-qwen2.5-7b-fp16-512 "
            "forward-qwen2.5-7b-fp16-1 forward-b-bf16-512 forward-b-bf16-1 forward-b-fp16-512 forward-b-fp16-1 "
            "quantize-qwen2.5-7b-bf16 quantize-qwen2.5-7b-fp16 quantize-b-bf16 quantize-b-fp16",
        ),
        (
            "{operation: [forward_backward], model: [qwen2.5-7b], layer: [q_proj], quant_type: [nf4], "
            "double_quant: [true], compute_dtype: [bfloat16], rows: [512], lora_r: [16]}",
            "forward_backward-qwen2.5-7b-q_proj-nf4-dq-bf16-512-r16",
        ),
        ("{quant_type: [nf4, int8], rows: [1, 16], lora_r: [0, 16]}",
         "nf4-1-r0 nf4-1-r16 nf4-16-r0 nf4-16-r16 int8-1-r0 int8-1-r16 int8-16-r0 int8-16-r16"),
        ("{double_quant: [true, false]}", "dq no-dq"),
        ("{layer: [4096x11008, self_attn.q_proj]}", "4096x11008 self_attn.q_proj"),
    ],
)  # fmt: skip
def test_an_id_names_what_varies_and_makes_a_difference(tmp_path: Path, axes: str, expected: str) -> None:
    assert list(cases(tmp_path, f"schema: 1\nkind: kernels\naxes: {axes}\n")) == expected.split()


def test_a_case_of_which_nothing_varies_but_what_makes_no_difference_still_has_an_id(tmp_path: Path) -> None:
    text = "schema: 1\nkind: kernels\ndefaults: {operation: quantize}\naxes: {rows: [16, 512]}\n"
    ((id_, case),) = cases(tmp_path, text).items()
    assert (id_, case.parameters.rows) == ("case", 16)


def test_of_cases_that_differ_only_in_what_makes_no_difference_the_first_one_stands(tmp_path: Path) -> None:
    text = SMALL_KERNELS + "  operation: [quantize, dequantize, forward]\n  rows: [16, 1]\n  lora_r: [8, 0]\n"
    found = cases(tmp_path, text)
    assert len(found) == 2 * (1 + 1 + 4)
    for operation, quant_type in itertools.product(("quantize", "dequantize"), ("nf4", "fp4")):
        parameters = found[f"{operation}-{quant_type}"].parameters
        assert (parameters.rows, parameters.lora_r) == (16, 8)
    excluded = cases(tmp_path, text + "exclude: [{rows: 16, lora_r: 8}]\n")
    assert excluded["quantize-nf4"].parameters.rows == 16
    assert excluded["quantize-nf4"].parameters.lora_r == 0


def test_what_an_override_does_to_them_all_leaves_one(tmp_path: Path) -> None:
    text = SMALL_KERNELS + "  operation: [quantize]\n  rows: [1, 16]\noverrides:\n"
    one = cases(tmp_path, text + "  - {when: {quant_type: fp4}, set: {compute_dtype: float16}}\n")
    assert [case.parameters.compute_dtype for case in one.values()] == ["bfloat16", "float16"]
    assert len(cases(tmp_path, text + "  - {when: {rows: 16}, set: {rows: 1}}\n")) == 2
    # Now those of 16 rows are others.
    assert len(set(cases(tmp_path, text + "  - {when: {rows: 16}, set: {compute_dtype: float16}}\n"))) == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "  operation: [quantize]\n  rows: [1, 16]\n"
            "overrides: [{when: {quant_type: fp4}, set: {quant_type: nf4}}]\n",
            ["7:13: this override makes 1 case the same as another; exclude what is not to run, or narrow when"],
        ),
        (
            "  rows: [1, 16]\noverrides: [{when: {quant_type: nf4}, set: {operation: quantize}}]\n",
            ["6:13: this override makes 1 case the same as another; exclude what is not to run, or narrow when"],
        ),
        (
            "  rows: [1, 16]\noverrides: [{when: {rows: 16}, set: {rows: 1}}]\n",
            ["6:13: this override makes 2 cases the same as another; exclude what is not to run, or narrow when"],
        ),
        (
            "  operation: [quantize]\ninclude: [{operation: quantize, rows: 4, lora_r: 8}]\n",
            [f"6:11: this row is the same case as the crossed case nf4; {CHANGE}"],
        ),
        (
            "include: [{id: a, operation: quantize, rows: 4}, {id: b, operation: quantize, rows: 8}]\n",
            [f"5:50: the row 'b' is the same case as the row in line 5; {CHANGE}"],
        ),
        ("include: [{id: a, rows: 512}]\n", [f"5:11: the row 'a' is the same case as the crossed case nf4; {CHANGE}"]),
        ("include: [{id: nf4, rows: 1}]\n", ["5:16: the id 'nf4' is a crossed case's already; choose another"]),
    ],
)  # fmt: skip
def test_other_cases_that_are_the_same_are_a_mistake(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert mistakes_of_kernels(tmp_path, SMALL_KERNELS + text) == [f"k.yaml:{line}" for line in expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("defaults: {batch_size: 8}\n", f"5:12: unknown parameter 'batch_size'; {TAKES}"),
        ("defaults: {load_dtype: float16}\n", f"5:12: unknown parameter 'load_dtype'; {TAKES}"),
        ("  lora_alpha: [8, 16]\n", f"5:3: unknown parameter 'lora_alpha'; {TAKES}"),
        ("defaults: {wat: 8}\n", f"5:12: unknown parameter 'wat'; {TAKES}"),
        ("defaults: {row: 8}\n", "5:12: unknown parameter 'row'; did you mean rows?"),
        ("defaults: {op: quantize}\n", "5:12: unknown parameter 'op'; did you mean operation?"),
        ("defaults: {tokens: 8}\n", "5:12: unknown parameter 'tokens'; did you mean rows?"),
        ("defaults: {rank: 8}\n", "5:12: unknown parameter 'rank'; did you mean lora_r?"),
        ("  layers: [q_proj]\n", "5:3: unknown parameter 'layers'; did you mean layer?"),
        ("defaults: {seeds: [0]}\n", f"5:12: unknown parameter 'seeds'; {TAKES}"),
        ("defaults: {id: a}\n", "5:12: unknown parameter 'id'; only rows of include have an id"),
        (
            "exclude: [{axes: 1}]\n",
            "5:12: unknown parameter 'axes'; axes is a part of the matrix: move it to the left, to where axes stands",
        ),
        ("rows: 8\n", "5:1: unknown key 'rows'; rows is a parameter: move it under defaults or axes"),
        ("batch_size: 8\n", f"5:1: unknown key 'batch_size'; {KEYS}"),
        ("axis: {}\n", "5:1: unknown key 'axis'; did you mean axes?"),
        ("id: a\n", f"5:1: unknown key 'id'; {KEYS}"),
        (
            "baseline: nf4\n",
            "5:1: a matrix of kernels has no baseline; "
            "remove it: every case is compared with the one of quant_type none",
        ),
        (
            "seeds: [0, 1]\n",
            "5:1: a matrix of kernels has no seeds; "
            "remove it: nothing is trained, and each case is timed again and again",
        ),
        ("watch_pairs: [[a, b]]\n", "5:1: a matrix of kernels has no watch_pairs; remove it: a case has no labels"),
        ("defaults: {rows: 0}\n", "5:18: rows takes a whole number above zero, not 0; the default is 512"),
        (
            "  layer: [q_proj, 0x4]\n",
            "5:19: layer takes OUTxIN with both from 1 to 10000000, not the text '0x4'; write both, as in 4096x11008",
        ),
        (
            "exclude: [{}]\n",
            "5:11: an empty row would exclude every case; write what to leave out, like {quant_type: nf4}",
        ),
        (
            "overrides: [{when: {}, set: {lora_r: 8}}]\n",
            "5:20: an empty when matches every case; put the values into defaults",
        ),
        (
            "exclude: [{quant_type: nf4}, {quant_type: fp4}]\n",
            "5:11: exclude leaves none of 2 cases; exclude fewer",
        ),
        (
            "exclude: [{rows: 4}]\n",
            "5:11: exclude matches nothing: no case has rows: 4; correct it, or remove it",
        ),
        (
            "defaults: {double_quant: true}\ninclude: [{id: a, quant_type: none}]\n",
            f"6:11: in case a, {FOUR_BIT}; set double_quant: false for this case, or exclude it",
        ),
        (
            "include: [{id: a, quant_type: none, operation: quantize}]\n",
            "5:37: in case a, operation: quantize needs a quantized weight; "
            "exclude it: {operation: quantize, quant_type: none}",
        ),
        (
            "  operation: [dequantize]\n  layer: [q_proj, k_proj]\n  rows: [1, 2]\n"
            "overrides: [{when: {quant_type: fp4}, set: {quant_type: none}}]\n",
            "5:15: in 2 cases such as q_proj-none, operation: dequantize needs a quantized weight; "
            "exclude it: {operation: dequantize, quant_type: none}",
        ),
    ],
)  # fmt: skip
def test_each_mistake_is_said_once_with_its_place_and_a_fix(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes_of_kernels(tmp_path, SMALL_KERNELS + text) == [f"k.yaml:{expected}"]


def test_all_mistakes_of_a_file_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
schema: 1
kind: kernals
seeds: [0]
defaults:
  lora_alpha: 16
  row: 8
axes:
  layer: [4x0]
  quant_type: [nf4, none]
  operation: [quantize]
exclude:
  - {rows: 4}
baseline: nf4
"""
    assert [line.split(";")[0] for line in mistakes_of_kernels(tmp_path, text)] == [
        "k.yaml:2:7: kind takes cells or kernels, not the text 'kernals'",
        "k.yaml:3:1: a matrix of kernels has no seeds",
        "k.yaml:5:3: unknown parameter 'lora_alpha'",
        "k.yaml:6:3: unknown parameter 'row'",
        "k.yaml:8:11: layer takes OUTxIN with both from 1 to 10000000, not the text '4x0'",
        "k.yaml:10:15: in case none, operation: quantize needs a quantized weight",
        "k.yaml:12:5: exclude matches nothing: no case has rows: 4",
        "k.yaml:13:1: a matrix of kernels has no baseline",
    ]


@pytest.mark.parametrize("text", ["", "axes:\n"])
def test_a_matrix_without_cases_is_refused(tmp_path: Path, text: str) -> None:
    assert mistakes_of_kernels(tmp_path, "schema: 1\nkind: kernels\n" + text) == [
        "k.yaml: the matrix has no cases; list values under axes, or rows under include"
    ]


def test_a_crossing_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    axes = f"  rows: {list(range(1, 301))}\n  lora_r: {list(range(100))}\n"
    assert mistakes_of_kernels(tmp_path, SMALL_KERNELS + axes) == [
        "k.yaml:3:1: the axes cross to 60,000 cases, and 50,000 is the limit; list fewer values"
    ]
    path = tmp_path / "k.yaml"
    path.write_text(SMALL_KERNELS)
    with pytest.raises(BenchError, match="the axes cross to 2 cases, and 1 is the limit"):
        load_kernels(path, max_cases=1)


def test_a_key_counts_what_makes_a_difference_and_nothing_else() -> None:
    values = KernelParameters().__dict__
    keys = {key_of({**values, **change}, KERNELS) for change in ({}, {"rows": 1}, {"lora_r": 8}, {"layer": "k_proj"})}
    assert len(keys) == 4
    for operation in ("quantize", "dequantize"):
        alone = {**values, "operation": operation}
        assert key_of(alone, KERNELS) == key_of({**alone, "rows": 1, "lora_r": 8}, KERNELS)
        assert key_of(alone, KERNELS) not in {*keys, key_of({**alone, "layer": "k_proj"}, KERNELS)}
    assert key_of(dict(reversed(values.items())), KERNELS) == key_of(values, KERNELS)


AXES: dict[str, list[Any]] = {
    "operation": ["forward", "quantize", "dequantize", "forward_backward"],
    "model": ["smollm2-135m", "a/b", "c/b"],
    "layer": ["q_proj", "4x8", "4x80"],
    "quant_type": ["nf4", "fp4"],
    "double_quant": [False, True],
    "compute_dtype": ["bfloat16", "float32"],
    "rows": [1, 16, 4096],
    "lora_r": [0, 8],
}


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_there_is_a_case_for_every_measurement_that_the_axes_cross_to(
    tmp_path_factory: Any, data: st.DataObject
) -> None:
    names = data.draw(st.lists(st.sampled_from(sorted(AXES)), min_size=1, max_size=5, unique=True))
    axes = {name: data.draw(st.lists(st.sampled_from(AXES[name]), min_size=1, unique=True)) for name in names}
    crossed = [
        {**KERNELS.built_in, **dict(zip(names, values, strict=True))} for values in itertools.product(*axes.values())
    ]
    row = data.draw(st.sampled_from(crossed))
    left_out = {name: row[name] for name in data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))}
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for values in crossed:
        if not left_out.items() <= values.items():
            alone = values["operation"] in ("quantize", "dequantize")
            first.setdefault(tuple(v for k, v in values.items() if not (alone and k in ("rows", "lora_r"))), values)
    lines = ["schema: 1", "kind: kernels", "axes:", *(f"  {name}: {as_list(values)}" for name, values in axes.items())]
    exclude = ", ".join(f"{name}: {written(value)}" for name, value in left_out.items())
    lines += ["exclude:", f"  - {{{exclude}}}", "include:", "  - {layer: own, rows: 3}"]
    found = kernels(tmp_path_factory.mktemp("kernels"), "\n".join(lines)).cases
    assert [case.parameters.model_dump() for case in found[:-1]] == list(first.values())
    assert len({case.id.lower() for case in found}) == len({case.key for case in found}) == len(found)
    assert all(re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._+=-]{0,99}", case.id) for case in found)


def as_list(values: list[Any]) -> str:
    return f"[{', '.join(map(written, values))}]"


def written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
