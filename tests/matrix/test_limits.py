from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix.cards import CARDS, card_of
from bench.matrix.limits import A_SIZE, ABOVE_ZERO, advice, cards_near, read_cards

from .examples import mistakes


@pytest.mark.parametrize(
    ("raw", "fix"),
    [
        (0, ABOVE_ZERO), (-1, ABOVE_ZERO), (-0.0, ABOVE_ZERO), (0.5, A_SIZE), (5e6, A_SIZE), (float("inf"), ABOVE_ZERO),
        (float("-inf"), ABOVE_ZERO), (float("nan"), ABOVE_ZERO), ("-4GB", ABOVE_ZERO), ("0GB", ABOVE_ZERO),
        (24, "write 24GB"), (7.5, "write 7.5GB"), (4090, "did you mean RTX 4090?"), (4095, A_SIZE),
        ("16 gigs", "write 16GB"), ("16,5GB", "write 16.5GB"), ("1,500 MB", "write 1500MB"), ("8 gib", "write 8GiB"),
        ("1KB", A_SIZE), ("1e3GB", A_SIZE), ("16 potatoes", A_SIZE),
        ("T5", "did you mean T4?"), ("Tesla T4", "did you mean T4?"), ("RTX 3090Ti", "did you mean RTX 3090?"),
        ("NVIDIA GeForce RTX 4090", "did you mean RTX 4090?"), ("RTX A6000", "did you mean A6000?"),
        ("V100", "did you mean V100-16GB or V100-32GB?"), ("NVIDIA A100", "did you mean A100-40GB or A100-80GB?"),
        ("H100 80GB", "did you mean H100?"), ("h100-nvl", "did you mean H100 NVL?"),
        ("Voodoo", None), ("RTX", None), ("", None), (None, None), (True, None), ([16], None),
    ],
)  # fmt: skip
def test_what_was_meant_by_a_limit_that_cannot_be_read(raw: Any, fix: str | None) -> None:
    assert advice(raw) == fix


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        ("0", "not 0; write a size above zero, such as 16GB"),
        ("-1", "not -1; write a size above zero, such as 16GB"),
        ("-4GB", "not the text '-4GB'; write a size above zero, such as 16GB"),
        ("0GB", "not the text '0GB'; write a size above zero, such as 16GB"),
        ("T5", "not the text 'T5'; did you mean T4?"),
        ("RTX 3090Ti", "not the text 'RTX 3090Ti'; did you mean RTX 3090?"),
        ("16 gigs", "not the text '16 gigs'; write 16GB"),
        (".inf", "not .inf; write a size above zero, such as 16GB"),
        ("16", "not 16; write 16GB"),
    ],
)
def test_a_bad_limit_in_a_matrix_is_told_with_its_place_and_a_fix(tmp_path: Path, written: str, fix: str) -> None:
    text = f"schema: 1\naxes:\n  quant_type: [nf4]\n  vram_limit: [L4, {written}]\n"
    takes = "vram_limit takes none, a million bytes or more, a size such as 16GB or a card such as T4"
    assert mistakes(tmp_path, text) == [f"m.yaml:4:20: {takes}, {fix}"]


@given(st.sampled_from(sorted(CARDS)), st.sampled_from(["NVIDIA {}", "{} ", "GeForce {}"]))
def test_a_cards_full_name_means_the_card(name: str, form: str) -> None:
    assert cards_near(form.format(name.lower())) == [name]


@given(st.text(max_size=60) | st.integers() | st.floats())
def test_advice_never_fails_and_is_printable(raw: Any) -> None:
    assert (advice(raw) or "").isprintable()


def test_cards_are_read_by_name_or_size_each_once() -> None:
    cards = read_cards(["t4", "20GB", "T4 ", "rtx 3090"])
    assert [card.name for card in cards] == ["T4", "20GB", "RTX 3090"]
    assert cards[1] == card_of("20GB")
    assert read_cards([]) == ()


@pytest.mark.parametrize(
    ("text", "fix"),
    [("T5", "did you mean T4?"), ("24", "write 24GB"), ("0", ABOVE_ZERO), ("Voodoo", "the cards are GTX 1080 Ti, "),
     ("9" * 5000, A_SIZE)],
)  # fmt: skip
def test_a_card_that_is_none_is_told_with_a_fix(text: str, fix: str) -> None:
    with pytest.raises(BenchError) as caught:
        read_cards(["T4", text])
    assert str(caught.value).startswith(f"--card: '{text[:30]}")
    assert f"; {fix}" in str(caught.value)
