from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest

from bench.matrix.tree import scalar

from .examples import SMALL, ids, load, mistakes


@pytest.mark.parametrize(
    "text",
    ["off", "no", "yes", "On", "y", "012", "00", "1_000", "2024-01-31",
     "12:30:00", "0x", "0x1F", "0o17", "1e", "e5", ".", "-", "+", "none", "NaN", "inf"],
)  # fmt: skip
def test_what_yaml_1_1_would_turn_into_something_else_stays_text(text: str) -> None:
    assert scalar(text) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("0", 0), ("-3", -3), ("+12", 12),
        ("2e-4", 2e-4), ("1e3", 1000.0), ("1E+3", 1000.0), (".5", 0.5), ("5.", 5.0), ("-0.5", -0.5), (".inf", math.inf),
        ("-.INF", -math.inf),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema(text: str, value: object) -> None:
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_nan_is_a_number_and_a_number_without_end_is_text() -> None:
    assert math.isnan(scalar(".nan"))  # type: ignore[arg-type]
    assert scalar("9" * 5000) == "9" * 5000


def test_every_duplicate_key_is_reported_wherever_it_stands(tmp_path: Path) -> None:
    text = "schema: 1\naxes:\n  lora_r: [1]\n  lora_r: [2]\nschema: 1\ninclude: [{lora_r: 1, lora_r: 2}]\nschema: 1\n"
    assert mistakes(tmp_path, text)[:4] == [
        "m.yaml:4:3: duplicate key 'lora_r', first in line 3; remove one of the two",
        "m.yaml:5:1: duplicate key 'schema', first in line 1; remove one of the two",
        "m.yaml:6:11: this row is the same cell as the crossed cell r1; change a parameter of it, or remove it",
        "m.yaml:6:23: duplicate key 'lora_r', first in line 6; remove one of the two",
    ]


FIX = "write the name of a parameter or of a part of the matrix"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8: x\n", [f"m.yaml:4:1: a key is text, not 8; {FIX}"]),
        ("true: x\n", [f"m.yaml:4:1: a key is text, not true; {FIX}"]),
        ("? [a]\n: x\n", [f"m.yaml:4:3: a key is text, not a list; {FIX}"]),
        ("? {a: b}\n: x\n", [f"m.yaml:4:3: a key is text, not a mapping; {FIX}"]),
        ("~: x\n", [f"m.yaml:4:1: a key is text, not an empty value (null); {FIX}"]),
        (
            "about: !!python/object/apply:os.system ['true']\n",
            [
                "m.yaml:4:8: the tag '!!python/object/apply:os.system' has no meaning in a matrix; remove it",
                "m.yaml:4:8: about takes text, not a list; write a sentence, in quotes",
            ],
        ),
        ("about: !!str 8\n", ["m.yaml:4:8: the tag '!!str' has no meaning in a matrix; remove it"]),
        ("about: !mine x\n", ["m.yaml:4:8: the tag '!mine' has no meaning in a matrix; remove it"]),
        (
            "---\nschema: 1\n",
            [
                "m.yaml:4:1: a second YAML document begins here, and a matrix is one; "
                "remove the line ---, or put each matrix into a file of its own"
            ],
        ),
        (
            "about: *nothing\n",
            [
                "m.yaml:4:8: the alias *nothing has no anchor; "
                "name a value above with &nothing, or put quotes around text that begins with *"
            ],
        ),
        (
            "defaults: &a\n  lora_r: *a\n",
            ["m.yaml:5:11: the alias *a stands inside the value that it names; write the value out"],
        ),
        (
            "defaults: " + "[" * 40 + "]" * 40,
            ["m.yaml:4:26: lists and mappings are nested more than 16 deep; no part of a matrix needs that"],
        ),
    ],
)
def test_what_yaml_allows_and_a_matrix_does_not_is_reported(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert mistakes(tmp_path, SMALL + text) == expected


def test_a_merge_key_is_not_merged_in_silence(tmp_path: Path) -> None:
    text = SMALL + "defaults: &a {lora_r: 8}\ninclude:\n  - <<: *a\n    id: x\n    quant_type: none\n"
    assert mistakes(tmp_path, text) == [
        "m.yaml:6:5: unknown parameter '<<'; write the values out, or put them into defaults"
    ]


def test_aliases_work_where_they_are_harmless(tmp_path: Path) -> None:
    text = "schema: 1\naxes:\n  compute_dtype: &d [bfloat16, float16]\n  load_dtype: *d\n"
    assert ids(load(tmp_path, text)) == ["bf16-load-bf16", "bf16-load-fp16", "fp16-load-bf16", "fp16-load-fp16"]


def test_aliases_that_explode_are_stopped_before_they_do(tmp_path: Path) -> None:
    names = "abcdefghi"
    lines = [f"a: &a [{', '.join('x' * 10)}]"]
    lines += [f"{name}: &{name} [{', '.join(['*' + before] * 10)}]" for before, name in itertools.pairwise(names)]
    assert mistakes(tmp_path, "\n".join(lines)) == [
        "m.yaml:6:16: the file has more than 250,000 values, aliases written out; cross values with axes instead"
    ]


def test_depth_counts_what_aliases_hide(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [*a{i - 1}]" for i in range(1, 2000))]
    assert mistakes(tmp_path, "\n".join(lines)) == [
        "m.yaml:16:12: lists and mappings are nested more than 16 deep; no part of a matrix needs that"
    ]
