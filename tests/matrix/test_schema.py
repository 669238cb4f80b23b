from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.expand import load_matrix

from .examples import SMALL, ids, load, mistakes

OVERRIDE = "write it like {when: {quant_type: nf4}, set: {lora_r: 8}}"
KEYS = "the keys are schema, name, about, defaults, axes, exclude, overrides, include, baseline, seeds and watch_pairs"
PAIR = "[card_arrival, card_delivery_estimate]"
NAME = "name becomes a folder's name and takes letters, digits and . _ -, not the text"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("axis: {}\n", "4:1: unknown key 'axis'; did you mean axes?"),
        ("matrix: {}\n", "4:1: unknown key 'matrix'; did you mean axes?"),
        ("foo: 1\n", f"4:1: unknown key 'foo'; {KEYS}"),
        ("lora_r: 8\n", "4:1: unknown key 'lora_r'; lora_r is a parameter: move it under defaults or axes"),
        ("name: a/b\n", f"4:7: {NAME} 'a/b'; write name: a-b"),
        ("name: ..\n", f"4:7: {NAME} '..'; write name: my-matrix"),
        ("name: .a\n", f"4:7: {NAME} '.a'; write name: a"),
        ("name: 8\n", "4:7: name takes text, not 8; write a short name in quotes"),
        ("name:\n", "4:6: name takes text, not an empty value (null); write a short name in quotes"),
        ("about: 8\n", "4:8: about takes text, not 8; write a sentence, in quotes"),
        ("seeds: 3\n", "4:8: seeds takes a list of whole numbers, not 3; write [3]"),
        ("seeds: []\n", "4:8: seeds has no values; write [0], or remove it"),
        (
            "seeds:\n",
            "4:7: seeds takes a list of whole numbers, not an empty value (null); "
            "write [0], or [0, 1, 2] to run each cell three times",
        ),
        ("seeds: [0, 1, 0]\n", "4:15: duplicate seed 0; remove one of the two"),
        ("seeds: [-1]\n", "4:9: a seed is a whole number from 0 to 4294967295, not -1; write 0, 1, 2 and so on"),
        ("seeds: [1.0]\n", "4:9: a seed is a whole number from 0 to 4294967295, not 1.0; write 0, 1, 2 and so on"),
        ("seeds: [true]\n", "4:9: a seed is a whole number from 0 to 4294967295, not true; write 0, 1, 2 and so on"),
        (
            "seeds: [4294967296]\n",
            "4:9: a seed is a whole number from 0 to 4294967295, not 4294967296; write 0, 1, 2 and so on",
        ),
        (
            "watch_pairs: card\n",
            f"4:14: watch_pairs takes a list of pairs of labels, not the text 'card'; write [{PAIR}]",
        ),
        ("watch_pairs: {a: b}\n", f"4:14: watch_pairs takes a list of pairs of labels, not a mapping; write [{PAIR}]"),
        (
            "watch_pairs: [[a, b, c]]\n",
            f"4:15: a pair of watch_pairs is a list of two labels, not a list of 3; write it like {PAIR}",
        ),
        (
            "watch_pairs: [[a, b], []]\n",
            f"4:23: a pair of watch_pairs is a list of two labels, not a list; write it like {PAIR}",
        ),
        (
            "watch_pairs: [a]\n",
            f"4:15: a pair of watch_pairs is a list of two labels, not the text 'a'; write it like {PAIR}",
        ),
        ("watch_pairs: [[8, b]]\n", "4:16: a label is text, not 8; put quotes around it"),
        ("watch_pairs: [[a, 1.5]]\n", "4:19: a label is text, not 1.5; put quotes around it"),
        ("watch_pairs: [[a, true]]\n", "4:19: a label is text, not true; put quotes around it"),
        (
            "watch_pairs: [[a, null]]\n",
            f"4:19: a label is text, not an empty value (null); write a label of the task, as in {PAIR}",
        ),
        (
            "watch_pairs: [[a, '']]\n",
            f"4:19: a label is text, not an empty text; write a label of the task, as in {PAIR}",
        ),
        ("watch_pairs: [[a, [b]]]\n", f"4:19: a label is text, not a list; write a label of the task, as in {PAIR}"),
        ("watch_pairs: [[a, a]]\n", "4:19: a pair takes two labels, not 'a' twice; write another label"),
        (
            "watch_pairs: [[a, b], [c, d], [b, a]]\n",
            "4:31: duplicate pair [b, a], first in line 4, column 15; remove one of the two",
        ),
        (
            "watch_pairs: [&pair [a, b], *pair]\n",
            "4:29: duplicate pair [a, b], first in line 4, column 15; remove one of the two",
        ),
        ("watch_pair: [[a, b]]\n", "4:1: unknown key 'watch_pair'; did you mean watch_pairs?"),
        (
            "defaults:\n  watch_pairs: [[a, b]]\n",
            "5:3: unknown parameter 'watch_pairs'; "
            "watch_pairs is a part of the matrix: move it to the left, to where axes stands",
        ),
        (
            "baseline: 8\n",
            "4:11: baseline takes the id of a cell, not 8; write one id, in quotes if it looks like a number",
        ),
        ("defaults: [a]\n", "4:11: defaults takes a mapping, not a list; write parameter: value, without -"),
        ("exclude: {quant_type: nf4}\n", "4:10: exclude takes a list of rows, not a mapping; begin each row with -"),
        (
            "exclude: [nf4]\n",
            "4:11: a row of exclude is a mapping, not the text 'nf4'; write it like {quant_type: nf4}",
        ),
        ("include: [[]]\n", "4:11: a row of include is a mapping, not a list; write it like {quant_type: nf4}"),
        ("overrides: [8]\n", f"4:13: a row of overrides is a mapping, not 8; {OVERRIDE}"),
        (
            "exclude: [{}]\n",
            "4:11: an empty row would exclude every cell; write what to leave out, like {quant_type: nf4}",
        ),
        ("include: [{}]\n", "4:11: an empty row says nothing; write an id or a parameter, like {quant_type: nf4}"),
        (
            "overrides: [{set: {lora_r: 8}}]\n",
            f"4:13: a row of overrides has a when and a set, and when is missing; {OVERRIDE}",
        ),
        (
            "overrides: [{when: {quant_type: nf4}}]\n",
            f"4:13: a row of overrides has a when and a set, and set is missing; {OVERRIDE}",
        ),
        (
            "overrides: [{if: {quant_type: nf4}, set: {lora_r: 8}}]\n",
            "4:14: unknown key 'if' in a row of overrides; did you mean when?",
        ),
        (
            "overrides: [{when: {quant_type: nf4}, set: {lora_r: 8}, foo: 1}]\n",
            "4:57: unknown key 'foo' in a row of overrides; the keys are when and set",
        ),
        (
            "overrides: [{when: {}, set: {lora_r: 8}}]\n",
            "4:20: an empty when matches every cell; put the values into defaults",
        ),
        (
            "overrides: [{when: {quant_type: nf4}, set: {}}]\n",
            "4:44: an empty set changes nothing; write parameter: value",
        ),
        (
            "overrides: [{when: nf4, set: {lora_r: 8}}]\n",
            "4:20: when takes a mapping, not the text 'nf4'; write it like {quant_type: nf4}",
        ),
        (
            "overrides: [{when: {quant_type: nf4}, set: {lora_r: '8'}}]\n",
            "4:53: lora_r takes a whole number above zero, not the text '8'; write 8",
        ),
    ],
)
def test_each_part_is_checked_and_its_mistake_said_once(tmp_path: Path, text: str, expected: str) -> None:
    assert mistakes(tmp_path, SMALL + text) == [f"m.yaml:{expected}"]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ("", "m.yaml: schema is missing; write schema: 1 in the first line"),
        (
            "schema: 2\n",
            "m.yaml:1:9: this program reads matrices of schema 1, not 2; "
            "write 1, or install the version that reads the other",
        ),
        ("schema: '1'\n", "m.yaml:1:9: schema takes a version number, not the text '1'; write 1"),
        ("schema: true\n", "m.yaml:1:9: schema takes a version number, not true; write 1"),
        ("schema: 1.0\n", "m.yaml:1:9: schema takes a version number, not 1.0; write 1"),
    ],
)
def test_the_schema_is_the_number_one(tmp_path: Path, schema: str, expected: str) -> None:
    assert mistakes(tmp_path, schema + "axes: {lora_r: [8]}\n") == [expected]


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
    matrix = load(tmp_path, SMALL)
    assert (matrix.name, matrix.about, matrix.baseline, matrix.seeds) == ("m", "", None, (0,))
    assert matrix.watch_pairs == ()


def test_pairs_are_as_the_file_has_them_and_belong_to_no_cell(tmp_path: Path) -> None:
    matrix = load(tmp_path, SMALL + "watch_pairs:\n  - [b, a]\n  - ['8', 'on hold']\n")
    assert matrix.watch_pairs == (("b", "a"), ("8", "on hold"))
    assert matrix.cells == load(tmp_path, SMALL).cells


def test_both_labels_of_a_pair_are_checked(tmp_path: Path) -> None:
    assert mistakes(tmp_path, SMALL + "watch_pairs: [[1, true]]\n") == [
        "m.yaml:4:16: a label is text, not 1; put quotes around it",
        "m.yaml:4:19: a label is text, not true; put quotes around it",
    ]


def test_a_file_whose_name_makes_no_folder_needs_a_name(tmp_path: Path) -> None:
    path = tmp_path / "my matrix.yaml"
    path.write_text(SMALL)
    with pytest.raises(BenchError) as caught:
        load_matrix(path)
    assert str(caught.value) == f"{path}: {NAME} 'my matrix'; write name: my-matrix"


def test_parts_with_all_their_rows_commented_out_are_empty(tmp_path: Path) -> None:
    text = (
        SMALL + "defaults:\nexclude:\noverrides:\ninclude:\n  # - {quant_type: none}\nbaseline:\nabout:\nwatch_pairs:\n"
    )
    assert ids(load(tmp_path, text)) == ["nf4", "fp4"]
