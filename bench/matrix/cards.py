"""Graphics cards: what they hold and can do, so that a cell can be run, or refused, as if on another one."""

from __future__ import annotations

import re
from dataclasses import dataclass

# GPU memory that CUDA and its libraries took before the model, outside of torch: by NVML, on an H200 with CUDA 13.0.
# Other cards and versions differ by some hundred MB.
CONTEXT_BYTES = 708_837_376
# A limit at or below that leaves torch nothing; this is it, rounded up to a million bytes.
LEAST_BYTES = (CONTEXT_BYTES // 10**6 + 1) * 10**6

# torch keeps a cuBLAS workspace for the forward pass's thread and one for the backward pass's. Its sizes, where
# CUBLAS_WORKSPACE_CONFIG does not set them, are parseChosenWorkspaceSize's (aten/src/ATen/cuda/CublasHandlePool.cpp):
# the larger one from Hopper on, though older versions of torch take the smaller one on Blackwell.
WORKSPACES = 2
WORKSPACE_BYTES = (4096 * 2 + 16 * 8) * 1024
HOPPER_WORKSPACE_BYTES = 32 * 2**20

AMPERE_CAPABILITY = (8, 0)
HOPPER_CAPABILITY = (9, 0)


@dataclass(frozen=True)
class Card:
    """A graphics card, or only a size of memory, which has no `compute_capability`."""

    name: str
    memory_bytes: int
    compute_capability: tuple[int, int] | None = None

    @property
    def has_bfloat16(self) -> bool:
        """Tell whether the card computes in bfloat16 (a mere size of memory is taken to)."""
        return self._is_ampere

    @property
    def has_flash_attention_2(self) -> bool:
        """Tell whether FlashAttention 2 runs on the card (on a mere size of memory it is taken to)."""
        return self._is_ampere

    @property
    def _is_ampere(self) -> bool:
        return self.compute_capability is None or self.compute_capability >= AMPERE_CAPABILITY


# Total memory in MiB, as NVML and nvidia-smi report it on the card (so with ECC's share already gone where it is on).
CARDS: dict[str, Card] = {
    name: Card(name, mib * 2**20, capability)
    for name, mib, capability in (
        ("GTX 1080 Ti", 11264, (6, 1)),
        ("GTX 1650", 4096, (7, 5)),
        ("RTX 2060", 6144, (7, 5)),
        ("RTX 2070", 8192, (7, 5)),
        ("RTX 2080", 8192, (7, 5)),
        ("RTX 2080 Ti", 11264, (7, 5)),
        ("RTX 3050", 8192, (8, 6)),
        ("RTX 3050 6GB", 6144, (8, 6)),
        ("RTX 3060", 12288, (8, 6)),
        ("RTX 3060 Ti", 8192, (8, 6)),
        ("RTX 3070", 8192, (8, 6)),
        ("RTX 3080", 10240, (8, 6)),
        ("RTX 3080 Ti", 12288, (8, 6)),
        ("RTX 3090", 24576, (8, 6)),
        ("RTX 3090 Ti", 24564, (8, 6)),
        ("RTX 4060", 8188, (8, 9)),
        ("RTX 4060 Ti", 8188, (8, 9)),
        ("RTX 4060 Ti 16GB", 16380, (8, 9)),
        ("RTX 4070", 12282, (8, 9)),
        ("RTX 4070 Ti SUPER", 16376, (8, 9)),
        ("RTX 4080", 16376, (8, 9)),
        ("RTX 4080 SUPER", 16376, (8, 9)),
        ("RTX 4090", 24564, (8, 9)),
        ("RTX 5060 Ti 16GB", 16311, (12, 0)),
        ("RTX 5070", 12227, (12, 0)),
        ("RTX 5070 Ti", 16303, (12, 0)),
        ("RTX 5080", 16303, (12, 0)),
        ("RTX 5090", 32607, (12, 0)),
        ("T4", 15360, (7, 5)),
        ("P100", 16384, (6, 0)),
        ("V100-16GB", 16384, (7, 0)),
        ("V100-32GB", 32768, (7, 0)),
        ("A10", 23028, (8, 6)),
        ("A10G", 23028, (8, 6)),
        ("A30", 24576, (8, 0)),
        ("A40", 46068, (8, 6)),
        ("L4", 23034, (8, 9)),
        ("L40", 46068, (8, 9)),
        ("L40S", 46068, (8, 9)),
        ("RTX A4000", 16376, (8, 6)),
        ("RTX A5000", 24564, (8, 6)),
        ("A6000", 49140, (8, 6)),
        ("RTX 6000 Ada", 49140, (8, 9)),
        ("RTX PRO 6000", 97887, (12, 0)),
        ("A100-40GB", 40960, (8, 0)),
        ("A100-80GB", 81920, (8, 0)),
        ("H100", 81559, (9, 0)),
        ("H100 NVL", 95830, (9, 0)),
        ("GH200", 97871, (9, 0)),
        ("H200", 143771, (9, 0)),
        ("B200", 183359, (10, 0)),
    )
}

UNIT_BYTES = {"B": 1, "MB": 10**6, "GB": 10**9, "MiB": 2**20, "GiB": 2**30}
_UNITS = {unit.lower(): unit for unit in UNIT_BYTES}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*(" + "|".join(UNIT_BYTES) + ")", re.ASCII | re.IGNORECASE)
# What the maker and nvidia-smi put around a card's name, as in `NVIDIA A100-SXM4-40GB`.
_MAKERS = re.compile(r"nvidia|geforce|tesla|quadro|generation|sxm[0-9]?|pcie")
_BETWEEN = re.compile(r"[\s_-]")
_SERIES = re.compile(r"^rtx(?=[a-z])")  # the workstation cards have a letter of their own: RTX A6000


def bare_name(text: str) -> str:
    """Write a card's name without what may differ between spellings: `NVIDIA GeForce RTX 4090` as `rtx4090`."""
    return _SERIES.sub("", _BETWEEN.sub("", without_maker(text)))


def without_maker(text: str) -> str:
    return _MAKERS.sub("", text.lower())


_NAMES = {bare_name(name): name for name in CARDS}


def card_named(text: str) -> str | None:
    """Find the name of a card as `CARDS` spells it, whatever the case, spaces, hyphens and maker's words of `text`."""
    return _NAMES.get(bare_name(text))


def size_of(text: str) -> Card | None:
    """Read a size as a card of that memory, named `14.5GiB` whatever the spaces and case; None where `text` is none.

    `Gb` and its like, which are bits elsewhere, are none.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        return None
    number, written = match.groups()
    if written.endswith("b") and (written == "b" or not written.islower()):
        return None
    unit = _UNITS[written.lower()]
    return Card(f"{number}{unit}", round(float(number) * UNIT_BYTES[unit]))


def card_of(limit: int | str) -> Card:
    """Turn a `vram_limit` into a card: the one it names, or a number of bytes or a size, without a capability.

    Raises:
        ValueError: the limit is none of these, or is not above zero.
    """
    if isinstance(limit, int):
        card: Card | None = Card(str(limit), limit)
    else:
        name = card_named(limit)
        card = CARDS[name] if name else size_of(limit)
    if card is None:
        raise ValueError(f"{limit!r} is neither a size such as 16GB or 14.5GiB nor a known card")
    if card.memory_bytes <= 0:
        raise ValueError(f"a memory limit is above zero, and {limit!r} is not")
    return card


def workspace_bytes(card: Card) -> int:
    """Return what torch's cuBLAS workspaces take on a card."""
    return WORKSPACES * one_workspace_bytes(card.compute_capability)


def one_workspace_bytes(compute_capability: tuple[int, int] | None = None) -> int:
    """Return the size of one cuBLAS workspace; where the capability is not known, of the smaller one."""
    large = compute_capability is not None and compute_capability >= HOPPER_CAPABILITY
    return HOPPER_WORKSPACE_BYTES if large else WORKSPACE_BYTES
