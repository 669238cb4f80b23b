from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix import document
from bench.matrix.expand import load_matrix
from bench.matrix.kernels import load_kernels

from .examples import DESIGN, SMALL, ids, load, mistakes

EMPTY = "m.yaml: the file is empty; a matrix begins with schema: 1"
TOP = "the top of a matrix is a mapping of keys, not"
BEGIN = "begin with schema: 1, and give every part its key"
TAB = "a tab stands in the indentation; YAML indents with spaces only"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", [EMPTY]),
        ("# only a comment\n", [EMPTY]),
        ("---\n", [EMPTY]),
        ("- a\n- b\n", [f"m.yaml:1:1: {TOP} a list; {BEGIN}"]),
        ("hello\n", [f"m.yaml:1:1: {TOP} the text 'hello'; {BEGIN}"]),
        ("8\n", [f"m.yaml:1:1: {TOP} 8; {BEGIN}"]),
        (
            "schema: 1\naxes:\n\tlora_r: [8]\n \tlora_alpha: [8]\n",
            [f"m.yaml:3:1: {TAB}", f"m.yaml:4:2: {TAB}"],
        ),
        (SMALL + "exclude:\n  -\t- a\n", [f"m.yaml:5:4: {TAB}"]),
        (
            SMALL + "about: a: b\n",
            [
                "m.yaml:4:9: this is not YAML: mapping values are not allowed in this context; "
                "indent keys of one mapping alike, and put quotes around text with ': ' in it"
            ],
        ),
        (
            "schema: 1\naxes: {quant_type: [nf4, fp4}\n",
            [
                "m.yaml:2:29: this is not YAML: did not find expected ',' or ']' while parsing a flow sequence; "
                "close the list with ]"
            ],
        ),
        (
            "schema: 1\nabout: 'x\naxes:\n",
            [
                "m.yaml:4:1: this is not YAML: found unexpected end of stream while scanning a quoted scalar "
                "that begins in line 2; close the quotes"
            ],
        ),
        (SMALL + "about: a\x07b\n", ["m.yaml:4:9: the character U+0007 cannot stand in YAML; remove it"]),
        (b"schema: 1\nabout: caf\xe9\n", ["m.yaml:2:11: byte 0xe9 at offset 20 is not UTF-8; save the file as UTF-8"]),
        (SMALL.encode("utf-16"), ["m.yaml: the file is UTF-16; save it as UTF-8"]),
        (
            b"#" * 1_000_001,
            [
                "m.yaml: the file is larger than 1 MB; "
                "a matrix is short: check that this is one, and cross values with axes"
            ],
        ),
    ],
)
def test_a_file_that_is_no_matrix_is_refused_with_its_place_and_a_fix(
    tmp_path: Path, content: str | bytes, expected: list[str]
) -> None:
    assert mistakes(tmp_path, content) == expected


def test_text_in_any_language_is_fine(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL + "about: Qu\u00e9 cuesta \u2014 \u4e00?\n").about == "Qu\u00e9 cuesta \u2014 \u4e00?"


def test_what_stood_before_a_syntax_error_is_reported_too(tmp_path: Path) -> None:
    assert [line.split(";")[0] for line in mistakes(tmp_path, "schema: 1\nschema: 1\n8: x\nabout: ]\n")] == [
        "m.yaml:2:1: duplicate key 'schema', first in line 1",
        "m.yaml:3:1: a key is text, not 8",
        "m.yaml:4:8: this is not YAML: did not find expected node content while parsing a block node",
    ]


def test_tabs_in_text_are_no_indentation(tmp_path: Path) -> None:
    assert load(tmp_path, SMALL + "about: |\n  a\n  \tb\n").about == "a\n\tb"


def test_a_missing_file_names_the_one_that_was_meant(tmp_path: Path) -> None:
    load(tmp_path, SMALL)
    with pytest.raises(BenchError) as caught:
        load_matrix(tmp_path / "m.yml")
    assert str(caught.value) == f"{tmp_path}/m.yml: there is no such file; did you mean {tmp_path}/m.yaml?"
    with pytest.raises(BenchError, match="there is no such file; check the path, and the folder you are in"):
        load_matrix(tmp_path / "nowhere" / "at-all.yaml")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (".", "this is a folder; name a matrix file in it, such as default.yaml"),
        ("a\0b", "the file cannot be read (embedded null byte); check its path and permissions"),
        ("x" * 300, "the file cannot be read (File name too long); check its path and permissions"),
    ],
)
def test_a_path_that_cannot_be_read_is_no_traceback(tmp_path: Path, name: str, expected: str) -> None:
    with pytest.raises(BenchError) as caught:
        load_matrix(tmp_path / name)
    assert str(caught.value).endswith(f": {expected}")


def test_an_endless_file_is_refused() -> None:
    if not Path("/dev/zero").exists():
        pytest.skip("this system has no /dev/zero")
    with pytest.raises(BenchError, match="larger than 1 MB"):
        load_matrix("/dev/zero")


def test_a_large_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    def seconds(content: str) -> float:
        start = time.perf_counter()
        mistakes(tmp_path, content)
        return time.perf_counter() - start

    assert seconds("- 'a'\n" * 2_000_000) < seconds("- 'a'\n" * 160_000)


def test_byte_order_mark_and_line_ends_of_windows_are_fine_and_kept(tmp_path: Path) -> None:
    text = "\ufeff" + DESIGN.replace("\n", "\r\n")
    matrix = load(tmp_path, text)
    assert ids(matrix) == ids(load(tmp_path, DESIGN))
    assert matrix.text == text
    assert mistakes(tmp_path, "\ufeffschema: 2\r\naxes: {lora_r: [1]}\r\n")[0].startswith("m.yaml:1:9: this program")


def only_bench_errors(folder: Path, content: bytes) -> None:
    path = folder / "fuzz.yaml"
    path.write_bytes(content)
    for read in (load_matrix, load_kernels):
        try:
            outcome: object = read(path)
        except BenchError as error:
            outcome = error.problems
        assert outcome


@pytest.fixture(scope="module", params=["CSafeLoader", "SafeLoader"])
def fuzz_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    loader = getattr(yaml, request.param, None)
    if loader is None:
        pytest.skip(f"PyYAML has no {request.param} here")
    before = document._LOADER
    document._LOADER = loader
    yield tmp_path_factory.mktemp("fuzz")
    document._LOADER = before


@given(st.binary(max_size=200))
@settings(max_examples=150, deadline=None)
def test_whatever_bytes_a_file_holds_only_bench_errors_come_out(fuzz_folder: Path, content: bytes) -> None:
    only_bench_errors(fuzz_folder, content)


@given(st.text(alphabet="[]{}&*!|>'\"%@`#-?:,\\ \n\tab01.~<=xNU\u00e9\u2028", max_size=60))
@example('"\\UFFFFFFFF"')
@example("%YAML " + "9" * 5000 + ".1\n---\na")
@example("!<%ff> a")
@settings(max_examples=300, deadline=None)
def test_whatever_text_a_file_holds_only_bench_errors_come_out(fuzz_folder: Path, content: str) -> None:
    only_bench_errors(fuzz_folder, content.encode())


KERNELS = """\
schema: 1
kind: kernels
name: kernels
defaults: {model: smollm2-135m}
axes:
  layer: [q_proj, 4096x11008]
  operation: [forward, quantize]
  rows: [1, 16]
  quant_type: [nf4, none]
exclude:
  - {operation: quantize, quant_type: none}
overrides:
  - {when: {rows: 16}, set: {lora_r: 16}}
include:
  - {id: int8, quant_type: int8}
"""
PIECES = [
    "kind", "kernels", "cells", "operation", "layer", "rows", "quantize", "forward", "4x8", "0x8", "float16",
    "schema", "axes", "exclude", "include", "overrides", "when", "set", "seeds", "baseline", "defaults", "id", "lora_r",
    "quant_type", "double_quant", "model", "task", "vram_limit", "target_modules", "nf4", "none", "true", "off", "null",
    "~", "8", "-1", "1e-4", ".nan", ".inf", "1e999", "9" * 400, "[]", "{}", "[[a]]", "- ", ": ", ", ", "\n", "  ", "\t",
    "&a ", "*a", "!!str ", "'", '"', "#", "---\n", "<<", "\x00", "\ufeff", "16GB", "T4", "\u00e9",
]  # fmt: skip


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_matrix_changed_at_random_only_raises_bench_errors(fuzz_folder: Path, data: st.DataObject) -> None:
    text = data.draw(st.sampled_from([DESIGN, KERNELS]))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 30)))
        text = text[:start] + data.draw(st.sampled_from(PIECES)) + text[end:]
    only_bench_errors(fuzz_folder, text.encode())
