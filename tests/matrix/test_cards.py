from __future__ import annotations

import pytest

from bench.matrix.cards import CARDS, Card, card_named, card_of, memory_bytes, workspace_bytes


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (123, 123), ("123B", 123), ("16GB", 16 * 10**9), ("16 GB", 16 * 10**9), ("14.5GiB", 29 * 2**29),
        ("512MiB", 2**29), ("1.5MB", 1_500_000), ("T4", 15360 * 2**20), ("rtx 4090", 24564 * 2**20),
    ],
)  # fmt: skip
def test_a_limit_is_bytes_a_size_or_a_card(limit: int | str, size: int) -> None:
    assert memory_bytes(limit) == size
    assert card_of(limit).memory_bytes == size


@pytest.mark.parametrize("limit", [0, -1, "0GB", "16gb", "GB", "-1GB", "1e3GB", "T5", "", "9" * 400 + "GB"])
def test_anything_else_is_no_limit(limit: int | str) -> None:
    with pytest.raises(ValueError, match=r"neither a size|above zero"):
        memory_bytes(limit)
    with pytest.raises(ValueError, match=r"neither a size|above zero"):
        card_of(limit)


def test_a_card_is_found_whatever_its_case() -> None:
    assert [card_named(name.lower()) for name in CARDS] == list(CARDS)
    assert all(card_of(name.upper()) is card for name, card in CARDS.items())
    assert card_named("16GB") is None


def test_a_card_is_named_as_it_is_listed_and_holds_what_its_name_says() -> None:
    assert all(card.name == name for name, card in CARDS.items())
    for name, gb in (("RTX 4060 Ti 16GB", 16), ("V100-32GB", 32), ("A100-80GB", 80)):
        assert CARDS[name].memory_bytes == pytest.approx(gb * 2**30, rel=0.01)


@pytest.mark.parametrize(
    ("name", "has_it"),
    [("P100", False), ("V100-32GB", False), ("T4", False), ("RTX 2080 Ti", False), ("A30", True), ("RTX 3060", True),
     ("L4", True), ("H100", True), ("B200", True), ("RTX 5090", True)],
)  # fmt: skip
def test_bfloat16_begins_with_ampere(name: str, has_it: bool) -> None:
    assert CARDS[name].has_bfloat16 == has_it


def test_workspaces_are_torchs_defaults_and_those_of_a_mere_size_the_smaller_ones() -> None:
    assert {workspace_bytes(CARDS[name]) for name in ("T4", "A100-80GB", "L4")} == {2 * 8_519_680}
    assert {workspace_bytes(CARDS[name]) for name in ("H100", "GH200", "B200")} == {2 * 33_554_432}
    assert workspace_bytes(card_of("20GB")) == 2 * 8_519_680


def test_a_mere_size_is_a_card_of_which_nothing_else_is_known() -> None:
    assert card_of("20GB") == Card("20GB", 20 * 10**9)
    assert card_of("20GB").has_bfloat16
