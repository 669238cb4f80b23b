from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.matrix.cards import CARDS, Card, card_named, card_of, size_of, workspace_bytes
from bench.matrix.parameters import Parameters


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (123, 123), ("123B", 123), ("16GB", 16 * 10**9), ("16 GB", 16 * 10**9), ("14.5GiB", 29 * 2**29),
        ("512MiB", 2**29), ("1.5MB", 1_500_000), ("T4", 15360 * 2**20), ("rtx 4090", 24564 * 2**20),
        ("16gb", 16 * 10**9), ("24gib", 24 * 2**30), ("RTX A6000", 49140 * 2**20),
    ],
)  # fmt: skip
def test_a_limit_is_bytes_a_size_or_a_card(limit: int | str, size: int) -> None:
    assert card_of(limit).memory_bytes == size


@pytest.mark.parametrize(
    "limit", [0, -1, "0GB", "16Gb", "16Gib", "16b", "GB", "-1GB", "1e3GB", "T5", "", "9" * 400 + "GB"]
)
def test_anything_else_is_no_limit(limit: int | str) -> None:
    with pytest.raises(ValueError, match=r"neither a size|above zero"):
        card_of(limit)


@pytest.mark.parametrize("write", [str.lower, str.upper, "NVIDIA {}".format, lambda name: name.replace(" ", "")])
def test_a_card_is_found_however_its_name_is_spelled(write: Callable[[str], str]) -> None:
    assert [card_named(write(name)) for name in CARDS] == list(CARDS)
    assert all(card_of(write(name)) is card for name, card in CARDS.items())


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("NVIDIA GeForce RTX 4090", "RTX 4090"), ("Tesla V100-SXM2-16GB", "V100-16GB"), ("rtx-4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", "A100-80GB"), ("NVIDIA A100 80GB PCIe", "A100-80GB"), ("RTX A6000", "A6000"),
        ("NVIDIA RTX 6000 Ada Generation", "RTX 6000 Ada"), ("RTX3090Ti", "RTX 3090 Ti"), ("A4000", "RTX A4000"),
        ("16GB", None), ("4090", None), ("GTX 4090", None), ("RTX", None), ("NVIDIA", None), ("", None),
        ("RTX 6000", None), ("A100", None), ("T4!", None),
    ],
)  # fmt: skip
def test_the_makers_words_are_no_part_of_a_cards_name_and_all_else_is(text: str, name: str | None) -> None:
    assert card_named(text) == name


@pytest.mark.parametrize(
    ("limit", "written"),
    [("24gib", "24GiB"), ("16 GB", "16GB"), (" 16GB ", "16GB"), ("16.0GB", "16.0GB"), ("123B", "123B"),
     ("nvidia t4", "T4"), ("RTX 3090", "RTX 3090"), (16 * 10**9, 16 * 10**9)],
)  # fmt: skip
def test_a_limit_is_written_in_one_way_whatever_its_spelling(limit: int | str, written: int | str) -> None:
    assert Parameters(vram_limit=limit).vram_limit == Parameters(vram_limit=written).vram_limit == written


@given(st.text(max_size=20) | st.from_regex(r"[0-9]{1,3} ?[kKmMgG\u0131\u0130]?i?[bB]", fullmatch=True))
def test_a_size_as_it_is_written_is_a_size(text: str) -> None:
    size = size_of(text)
    assert size is None or (size_of(size.name) == size and size.name.lower() == "".join(text.lower().split()))


def test_a_card_is_named_as_it_is_listed_and_holds_what_its_name_says() -> None:
    assert all(card.name == name for name, card in CARDS.items())
    for name, gb in (("RTX 4060 Ti 16GB", 16), ("RTX 3050 6GB", 6), ("V100-32GB", 32), ("A100-80GB", 80)):
        assert CARDS[name].memory_bytes == pytest.approx(gb * 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("name", "has_it"),
    [("P100", False), ("V100-32GB", False), ("T4", False), ("RTX 2080 Ti", False), ("A30", True), ("RTX 3060", True),
     ("L4", True), ("H100", True), ("B200", True), ("RTX 5090", True)],
)  # fmt: skip
def test_bfloat16_and_flash_attention_2_begin_with_ampere(name: str, has_it: bool) -> None:
    assert CARDS[name].has_bfloat16 == CARDS[name].has_flash_attention_2 == has_it


def test_workspaces_are_torchs_defaults_and_those_of_a_mere_size_the_smaller_ones() -> None:
    assert {workspace_bytes(CARDS[name]) for name in ("T4", "A100-80GB", "L4")} == {2 * 8_519_680}
    assert {workspace_bytes(CARDS[name]) for name in ("H100", "GH200", "B200")} == {2 * 33_554_432}
    assert workspace_bytes(card_of("20GB")) == 2 * 8_519_680


def test_a_mere_size_is_a_card_of_which_nothing_else_is_known() -> None:
    assert card_of("20GB") == Card("20GB", 20 * 10**9)
    assert card_of("20gb") == card_of("20 GB") == card_of("20GB")
    assert card_of("20GB").has_bfloat16
    assert card_of("20GB").has_flash_attention_2
