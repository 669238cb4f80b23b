"""The memory of graphics cards, so that a cell can be run, or refused, as if on another one."""

from __future__ import annotations

import re

# Total memory in MiB, as NVML reports it on the card (so with ECC's share already gone where ECC is on).
CARD_MIB: dict[str, int] = {
    "GTX 1080 Ti": 11264,
    "RTX 2080 Ti": 11264,
    "RTX 3060": 12288,
    "RTX 3080": 10240,
    "RTX 3090": 24576,
    "RTX 4060 Ti 16GB": 16380,
    "RTX 4070": 12282,
    "RTX 4080": 16376,
    "RTX 4090": 24564,
    "RTX 5090": 32607,
    "T4": 15360,
    "P100": 16384,
    "V100-16GB": 16384,
    "V100-32GB": 32768,
    "A10G": 23028,
    "L4": 23034,
    "L40S": 46068,
    "A6000": 49140,
    "A100-40GB": 40960,
    "A100-80GB": 81920,
    "H100": 81559,
    "H200": 143771,
}

UNIT_BYTES = {"B": 1, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(" + "|".join(UNIT_BYTES) + ")")


def card_named(text: str) -> str | None:
    """Find the name of a card as `CARD_MIB` spells it, whatever the case of `text`."""
    return {name.lower(): name for name in CARD_MIB}.get(text.strip().lower())


def memory_bytes(limit: int | str) -> int:
    """Turn a `vram_limit` into bytes: a number of bytes, a size such as `16GB` or `14.5GiB`, or a card's name.

    Raises:
        ValueError: the limit is none of these, or is not above zero.
    """
    if isinstance(limit, int):
        size = limit
    elif card := card_named(limit):
        size = CARD_MIB[card] * 2**20
    elif match := _SIZE.fullmatch(limit.strip()):
        size = round(float(match[1]) * UNIT_BYTES[match[2]])
    else:
        raise ValueError(f"{limit!r} is neither a size such as 16GB or 14.5GiB nor a known card")
    if size <= 0:
        raise ValueError(f"a memory limit is above zero, and {limit!r} is not")
    return size
