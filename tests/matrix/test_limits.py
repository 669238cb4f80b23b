from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import BenchError
from bench.matrix.cards import CARDS, CONTEXT_BYTES, LEAST_BYTES, card_of
from bench.matrix.limits import A_SIZE, ABOVE_CONTEXT, ABOVE_ZERO, advice, cards_near, read_cards

from .examples import mistakes


@pytest.mark.parametrize(
    ("raw", "fix"),
    [
        (0, ABOVE_ZERO), (-1, ABOVE_ZERO), (-0.0, ABOVE_ZERO), (0.5, A_SIZE), (float("inf"), ABOVE_ZERO),
        (float("-inf"), ABOVE_ZERO), (float("nan"), ABOVE_ZERO), ("-4GB", ABOVE_ZERO), ("0GB", ABOVE_ZERO),
        (5e6, ABOVE_CONTEXT), (700_000_000, ABOVE_CONTEXT), ("500MB", ABOVE_CONTEXT), ("0.5 gigs", ABOVE_CONTEXT),
        ("5000000B", ABOVE_CONTEXT), (24, "write 24GB"), (7.5, "write 7.5GB"), (4095, A_SIZE),
        ("16 gigs", "write 16GB"), ("16,5GB", "write 16.5GB"), ("1,500 MB", "write 1500MB"), ("8 gib", "write 8GiB"),
        ("16Gb", "write 16GB"), ("1KB", A_SIZE), ("1e3GB", A_SIZE), ("16 potatoes", A_SIZE),
        ("MI300X", None), ("GTX 1080", None), ("RTX 2080 SUPER", None), ("RTX 4050", None), ("Q8", None),
        ("RTX 5060 Ti 8GB", None), ("RTX 3080 12GB", None), ("P4000", None), ("RTX 4090 Laptop GPU", None),
        ("Voodoo", None), ("RTX", None), ("", None), (None, None), (True, None), ([16], None),
    ],
)  # fmt: skip
def test_what_was_meant_by_a_limit_that_cannot_be_read(raw: Any, fix: str | None) -> None:
    assert advice(raw) == fix


@pytest.mark.parametrize(
    ("raw", "cards"),
    [
        ("T5", "T4"), ("T44", "T4"), ("RTX 4900", "RTX 4090"), ("RTX 409", "RTX 4090"), ("H10", "H100 or H100 NVL"),
        (4090, "RTX 4090"), ("4090", "RTX 4090"), ("GTX 4090", "RTX 4090"), ("RXT 4090", "RTX 4090"),
        ("T4 16GB", "T4"), ("NVIDIA L4 24GB", "L4"), ("RTX 4060 Ti 8GB", "RTX 4060 Ti"),
        ("RTX 5060 Ti", "RTX 5060 Ti 16GB"),
        ("V100", "V100-16GB or V100-32GB"), ("NVIDIA A100", "A100-40GB or A100-80GB"), ("H100 80GB", "H100"),
        ("NVIDIA H100 94GB", "H100 NVL"), ("RTX PRO 6000 Blackwell", "RTX PRO 6000"), ("RTX 6000", "RTX 6000 Ada"),
    ],
)  # fmt: skip
def test_a_card_that_is_near_has_the_same_number_and_its_memory_can_be_written_instead(raw: Any, cards: str) -> None:
    assert advice(raw) == f"did you mean {cards}? Or write its memory, such as 8GB"


@pytest.mark.parametrize(
    ("written", "fix"),
    [
        ("0", "not 0; write a size above zero, such as 16GB"),
        ("-1", "not -1; write a size above zero, such as 16GB"),
        ("-4GB", "not the text '-4GB'; write a size above zero, such as 16GB"),
        ("0GB", "not the text '0GB'; write a size above zero, such as 16GB"),
        ("GTX 4090", "not the text 'GTX 4090'; did you mean RTX 4090? Or write its memory, such as 8GB"),
        ("500MB", f"not the text '500MB'; {ABOVE_CONTEXT}"),
        ("5000000", f"not 5000000; {ABOVE_CONTEXT}"),
        ("16 gigs", "not the text '16 gigs'; write 16GB"),
        (".inf", "not .inf; write a size above zero, such as 16GB"),
        ("16", "not 16; write 16GB"),
    ],
)
def test_a_bad_limit_in_a_matrix_is_told_with_its_place_and_a_fix(tmp_path: Path, written: str, fix: str) -> None:
    text = f"schema: 1\naxes:\n  quant_type: [nf4]\n  vram_limit: [L4, {written}]\n"
    takes = "vram_limit takes none, 709 million bytes or more, a size such as 16GB or a card such as T4"
    assert mistakes(tmp_path, text) == [f"m.yaml:4:20: {takes}, {fix}"]


@given(st.sampled_from(sorted(CARDS)), st.sampled_from(["NVIDIA {}", "{} ", "GeForce {}"]))
def test_a_cards_full_name_means_the_card(name: str, form: str) -> None:
    assert cards_near(form.format(name.lower())) == [name]


@given(st.text(max_size=60) | st.integers() | st.floats())
def test_advice_never_fails_and_is_printable(raw: Any) -> None:
    assert (advice(raw) or "").isprintable()


def test_cards_are_read_by_name_or_size_each_once() -> None:
    cards = read_cards(["t4", "20GB", "T4 ", "rtx3090", "20 gb", "NVIDIA T4"])
    assert [card.name for card in cards] == ["T4", "20GB", "RTX 3090"]
    assert cards[1] == card_of("20GB")
    assert read_cards([]) == ()


@pytest.mark.parametrize(
    ("text", "fix"),
    [("GTX 4090", "did you mean RTX 4090?"), ("24", "write 24GB"), ("0", ABOVE_ZERO), ("9" * 5000, A_SIZE),
     ("Q5", "the cards are GTX 1080 Ti, "), ("MI300X", "the cards are GTX 1080 Ti, ")],
)  # fmt: skip
def test_a_card_that_is_none_is_told_with_a_fix(text: str, fix: str) -> None:
    with pytest.raises(BenchError) as caught:
        read_cards(["T4", text])
    assert str(caught.value).startswith(f"--card: '{text[:30]}")
    assert f"; {fix}" in str(caught.value)


@pytest.mark.parametrize("text", ["Voodoo", "500MB"])
def test_a_wrong_card_is_told_with_the_option_it_stands_behind(text: str) -> None:
    with pytest.raises(BenchError, match=f"^--fits: .*'{text}'"):
        read_cards([text], "--fits")


@pytest.mark.parametrize("text", ["500MB", "0.5gib", "708837376", "708837376B", "5000000"])
def test_no_card_is_as_small_as_what_cuda_itself_takes(text: str) -> None:
    with pytest.raises(BenchError) as caught:
        read_cards([text])
    assert str(caught.value).endswith(f"; {ABOVE_CONTEXT}")


def test_the_least_limit_is_the_first_million_bytes_above_cudas_context(tmp_path: Path) -> None:
    assert 0 < LEAST_BYTES - CONTEXT_BYTES <= 10**6
    assert read_cards([str(LEAST_BYTES)])[0].memory_bytes == LEAST_BYTES
    for written in (LEAST_BYTES - 1, f"{LEAST_BYTES - 1}B"):
        text = f"schema: 1\naxes:\n  quant_type: [nf4]\n  vram_limit: [{LEAST_BYTES}, {LEAST_BYTES}B, {written}]\n"
        (told,) = mistakes(tmp_path, text)
        assert told.startswith("m.yaml:4:39: vram_limit takes ")
        assert told.endswith(f"; {ABOVE_CONTEXT}")


def test_what_is_known_of_no_card_is_answered_with_all_of_them_or_its_memory() -> None:
    with pytest.raises(BenchError) as caught:
        read_cards(["Voodoo"])
    assert all(name in str(caught.value) for name in CARDS)
    assert str(caught.value).endswith("; or write its memory, such as 8GB")
