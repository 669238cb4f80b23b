from __future__ import annotations

from pathlib import Path

import pytest

from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.rules import Rule
from bench.matrix.vocabulary import Vocabulary

from .examples import SMALL, ids, load, mistakes

FOUR_BIT = "double_quant: true needs 4-bit weights (quant_type nf4 or fp4)"
FALSE = "set double_quant: false for this cell, or exclude it"
CHANGE = "change a parameter of it, or remove it"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "exclude: [{quant_type: int8}]\n",
            ["4:11: exclude matches nothing: no cell has quant_type: int8; correct it, or remove it"],
        ),
        (
            "exclude: [{quant_type: nf4, double_quant: false}, {lora_r: 4, lora_alpha: 4}]\n",
            [
                "4:11: exclude matches nothing: no cell has double_quant: false; correct it, or remove it",
                "4:51: exclude matches nothing: no cell has lora_r: 4 or lora_alpha: 4; correct it, or remove it",
            ],
        ),
        (
            "overrides: [{when: {quant_type: nf4, lora_r: 4}, set: {lora_r: 8}}]\n",
            ["4:20: when matches nothing: no cell has lora_r: 4; correct it, or remove it"],
        ),
        (
            "exclude: [{quant_type: none}]\ninclude: [{id: x, quant_type: none}]\n",
            ["4:11: exclude matches nothing: no cell has all of these values together; correct it, or remove it"],
        ),
        (
            "exclude: [{quant_type: nf4}, {quant_type: fp4}]\n",
            ["4:11: exclude leaves none of 2 cells; exclude fewer"],
        ),
        (
            "defaults: {double_quant: true}\ninclude: [{id: a, quant_type: none}]\n",
            [f"5:11: in cell a, {FOUR_BIT}; {FALSE}"],
        ),
        (
            "include: [{id: a, quant_type: none, double_quant: true}]\n",
            [f"4:37: in cell a, {FOUR_BIT}; {FALSE}"],
        ),
        (
            "overrides: [{when: {quant_type: nf4}, set: {quant_type: int8, double_quant: true}}]\n",
            [f"4:63: in cell int8, {FOUR_BIT}; {FALSE}"],
        ),
        (
            "defaults: {model: qwen2.5-7b}\n",
            [
                "4:12: in 2 cells such as nf4, model: qwen2.5-7b is a shape without weights; "
                "write model: Qwen/Qwen2.5-7B to download it, or weights: random"
            ],
        ),
        (
            "defaults: {init_lora_weights: pissa}\n",
            [
                "4:12: in 2 cells such as nf4, init_lora_weights: pissa rewrites the base's weights, "
                "which must be unquantized; use init_lora_weights: olora, or quant_type: none"
            ],
        ),
        (
            "defaults: {init_lora_weights: orthogonal, lora_r: 4}\n",
            [
                "4:12: in 2 cells such as nf4, init_lora_weights: orthogonal needs unquantized weights; "
                "use init_lora_weights: true, or quant_type: none"
            ],
        ),
        (
            "defaults: {attn_implementation: flash_attention_2, compute_dtype: float32}\n",
            [
                "4:12: in 2 cells such as nf4, attn_implementation: flash_attention_2 has no float32 kernel; "
                "use attn_implementation: sdpa, or a 16-bit compute_dtype"
            ],
        ),
        (
            "include: [{id: a, quant_type: fp4}]\n",
            [f"4:11: the row 'a' is the same cell as the crossed cell fp4; {CHANGE}"],
        ),
        (
            "include:\n  - {id: a, lora_r: 8}\n  - {id: b, quant_type: nf4, lora_r: 8}\n",
            [f"6:5: the row 'b' is the same cell as the row in line 5; {CHANGE}"],
        ),
        (
            "include:\n  - {id: a, lora_r: 8}\n  - {id: A, lora_r: 4}\n",
            ["6:10: the id 'A' is taken by the row in line 5; choose another"],
        ),
        ("include: [{id: fp4, lora_r: 8}]\n", ["4:16: the id 'fp4' is a crossed cell's already; choose another"]),
        (
            "overrides: [{when: {quant_type: nf4}, set: {quant_type: fp4}}]\n",
            ["4:13: this override makes 1 cell the same as another; exclude what is not to run, or narrow when"],
        ),
        ("baseline: fp5\n", ["4:11: the baseline 'fp5' is no cell's id; did you mean fp4?"]),
        ("baseline: zzzz\n", ["4:11: the baseline 'zzzz' is no cell's id; the ids are nf4, fp4"]),
        (
            "exclude: [{quant_type: fp4}]\nbaseline: fp4\n",
            ["5:11: the baseline 'fp4' is excluded in line 4; choose another, or keep it"],
        ),
    ],
)
def test_what_only_the_cells_show_is_reported_where_it_comes_from(
    tmp_path: Path, text: str, expected: list[str]
) -> None:
    assert mistakes(tmp_path, SMALL + text) == [f"m.yaml:{line}" for line in expected]


def test_a_cause_in_the_axes_is_reported_once_with_its_number_of_cells(tmp_path: Path) -> None:
    text = (
        "schema: 1\naxes:\n"
        "  quant_type: [nf4, int8, none]\n"
        "  double_quant: [true, false]\n"
        "  kbit_upcast: [true, false]\n"
    )
    assert mistakes(tmp_path, text) == [
        f"m.yaml:4:18: in 4 cells such as int8-dq-upcast, {FOUR_BIT}; {FALSE}",
        "m.yaml:5:17: in 2 cells such as none-dq-upcast, kbit_upcast: true needs quantized weights; "
        "set kbit_upcast: false for this cell, and load_dtype: float32 if it is to be in float32",
    ]


@pytest.mark.parametrize("text", ["", "axes:\n", "axes: {}\n", "axes:\ninclude: []\n"])
def test_a_matrix_without_cells_is_refused(tmp_path: Path, text: str) -> None:
    assert mistakes(tmp_path, "schema: 1\n" + text) == [
        "m.yaml: the matrix has no cells; list values under axes, or rows under include"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "exclude: [{quant_typ: int8}]\n",
        "exclude: [{quant_type: nf5}]\nbaseline: nf4\n",
        "exclude: [{quant_type: nf4, double_quant: ture}]\ndefaults: {init_lora_weights: olora}\n",
        "defaults: {lora_rr: 8}\nexclude: [{quant_type: nf4, lora_r: 8}]\n",
        "defaults: {lora_r: '8'}\nexclude: [{lora_r: 8}]\n",
        "overrides: [{when: {quant_type: nf4}, set: {lora_r: '8'}}]\nexclude: [{quant_type: nf4, lora_r: 8}]\n",
        "overrides: [{when: {quant_type: nf4, lora_r: '16'}, set: {lora_r: 8}}]\n",
        "include: [{id: a, quant_typ: none}]\nbaseline: a\n",
        "include: [{id: a b, quant_type: none}]\nbaseline: a b\n",
        "defaults: {compute_dtype: fp16}\ninclude: [{id: a, load_dtype: float16}]\n",
    ],
)
def test_one_mistake_is_reported_as_one(tmp_path: Path, text: str) -> None:
    assert len(mistakes(tmp_path, SMALL + text)) == 1


def test_an_exclude_with_a_mistake_still_spares_what_it_was_to_spare(tmp_path: Path) -> None:
    text = "schema: 1\naxes:\n  quant_type: [nf4, none]\n  double_quant: [true, false]\n"
    assert mistakes(tmp_path, text + "exclude: [{quant_type: none, double_quant: yes}]\n") == [
        "m.yaml:5:44: double_quant takes true or false, not the text 'yes'; write true"
    ]


@pytest.mark.parametrize(
    ("vocabulary", "rule"),
    [(vocabulary, rule) for vocabulary in (CELLS, KERNELS) for rule in vocabulary.rules],
    ids=lambda value: value.what[:30] if isinstance(value, Rule) else value.subject,
)
def test_every_rule_looks_only_at_the_parameters_it_names(vocabulary: Vocabulary, rule: Rule) -> None:
    defaults = vocabulary.model()

    class Spy:
        def __init__(self) -> None:
            self.seen: set[str] = set()

        def __getattr__(self, name: str) -> object:
            self.seen.add({"four_bit": "quant_type", "quantized": "quant_type"}.get(name, name))
            return getattr(defaults, name)

    spy = Spy()
    rule.broken(spy)
    assert spy.seen <= set(rule.parameters) <= set(vocabulary.kinds)
    assert rule.what.startswith(f"{rule.parameters[0]}: ")
    assert not rule.broken(defaults)


def test_all_mistakes_of_a_file_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = """\
schema: 1
name: de/fault
defualts:
  lora_r: '8'
  bath_size: 4
axes:
  quant_type: [nf4, fp44, none]
  double_quant: [off, true]
  compute_dtype: float16
  lora_alpha: []
  lora_alpha: [1]
exclude:
  - {quant_type: nf4, compute_dtype: float32}
  - foo
overrides:
  - when: {compute_dtype: float32}
    sett: {learning_rate: 1e-4}
include:
  - {id: lora bf16, quant_type: none}
baseline: zero
seeds: 3
"""
    assert [line.split(";")[0] for line in mistakes(tmp_path, text)] == [
        "m.yaml:2:7: name becomes a folder's name and takes letters, digits and . _ -, not the text 'de/fault'",
        "m.yaml:3:1: unknown key 'defualts'",
        "m.yaml:4:11: lora_r takes a whole number above zero, not the text '8'",
        "m.yaml:5:3: unknown parameter 'bath_size'",
        "m.yaml:7:21: quant_type takes nf4, fp4, int8 or none, not the text 'fp44'",
        "m.yaml:8:18: double_quant takes true or false, not the text 'off'",
        f"m.yaml:8:23: in cell none-dq, {FOUR_BIT}",
        "m.yaml:9:18: the axis compute_dtype takes a list of values, not the text 'float16'",
        "m.yaml:10:15: the axis lora_alpha has no values",
        "m.yaml:11:3: duplicate key 'lora_alpha', first in line 10",
        "m.yaml:14:5: a row of exclude is a mapping, not the text 'foo'",
        "m.yaml:16:11: when matches nothing: no cell has compute_dtype: float32",
        "m.yaml:17:5: unknown key 'sett' in a row of overrides",
        "m.yaml:19:10: an id becomes a file name and takes letters, digits and . _ + = -, not the text 'lora bf16'",
        "m.yaml:20:11: the baseline 'zero' is no cell's id",
        "m.yaml:21:8: seeds takes a list of whole numbers, not 3",
    ]


def test_a_file_of_nothing_but_mistakes_ends_after_five_hundred(tmp_path: Path) -> None:
    lines = mistakes(tmp_path, SMALL + "defaults: {" + ", ".join(f"k{i}: 1" for i in range(5000)) + "}\n")
    assert len(lines) == 501
    assert lines[-1] == "500 problems found, and reading stopped there"


def test_cells_that_overrides_make_meaningful_are_fine(tmp_path: Path) -> None:
    text = (
        "schema: 1\naxes:\n  quant_type: [nf4, none]\ndefaults: {double_quant: true}\n"
        "overrides: [{when: {quant_type: none}, set: {double_quant: false}}]\n"
    )
    assert ids(load(tmp_path, text)) == ["nf4", "none"]
