from __future__ import annotations

import pytest

from bench.matrix.cards import CARD_MIB, card_named, memory_bytes


@pytest.mark.parametrize(
    ("limit", "size"),
    [
        (123, 123), ("123B", 123), ("16GB", 16 * 10**9), ("16 GB", 16 * 10**9), ("14.5GiB", 29 * 2**29),
        ("512MiB", 2**29), ("1.5MB", 1_500_000), ("T4", 15360 * 2**20), ("rtx 4090", 24564 * 2**20),
    ],
)  # fmt: skip
def test_a_limit_is_bytes_a_size_or_a_card(limit: int | str, size: int) -> None:
    assert memory_bytes(limit) == size


@pytest.mark.parametrize("limit", [0, -1, "0GB", "16gb", "GB", "-1GB", "1e3GB", "T5", "", "9" * 400 + "GB"])
def test_anything_else_is_no_limit(limit: int | str) -> None:
    with pytest.raises(ValueError, match=r"neither a size|above zero"):
        memory_bytes(limit)


def test_a_card_is_found_whatever_its_case() -> None:
    assert [card_named(name.lower()) for name in CARD_MIB] == list(CARD_MIB)
    assert card_named("16GB") is None
