from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.matrix.tree import scalar
from bench.matrix.wording import closest, counted, described, listing, quoted, short_float, written


@pytest.mark.parametrize(
    ("value", "text"),
    [(5e-4, "5e-4"), (2.5e-4, "2.5e-4"), (0.03, "0.03"), (1.0, "1"), (0.0, "0"), (3600.0, "3600"),
     (1e22, "1e22"), (1e-10, "1e-10")],
)  # fmt: skip
def test_floats_are_written_as_people_write_them(value: float, text: str) -> None:
    assert short_float(value) == text


@given(st.floats())
def test_a_written_float_reads_back_as_itself(value: float) -> None:
    back = scalar(short_float(value))
    assert isinstance(back, int | float)
    assert float(back) == value or (math.isnan(back) and math.isnan(value))


def test_words_for_values_and_lists() -> None:
    assert written([True, None, "a", 1e-4]) == "[true, null, a, 1e-4]"
    assert listing(["a"]) == "a"
    assert listing(["a", "b"], "and") == "a and b"
    assert listing(["a", "b", "c"]) == "a, b or c"
    assert (counted(1, "cell"), counted(1200, "cell")) == ("1 cell", "1,200 cells")
    assert quoted("x" * 50) == repr("x" * 39 + "…")
    assert described("a\nb") == r"the text 'a\nb'"


@pytest.mark.parametrize(
    ("word", "known", "meant"),
    [
        ("quant_typ", ["quant_type", "lora_r"], "quant_type"),
        ("LORA-R", ["quant_type", "lora_r"], "lora_r"),
        ("lr", ["learning_rate", "lora_r"], "learning_rate"),
        ("lr", ["lora_r"], None),
        ("bf16", ["bfloat16", "float16"], "bfloat16"),
        ("zzz", ["bfloat16", "float16"], None),
    ],
)
def test_the_closest_word_is_found_by_its_letters_or_its_other_names(word: str, known: list[str], meant: str) -> None:
    assert closest(word, known) == meant
