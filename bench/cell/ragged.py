"""Rows of whole numbers of any length, kept in a file and mapped into memory, so that cells share one copy of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from bench.cell import files

Item_co = TypeVar("Item_co", covariant=True)


class Rows(Protocol[Item_co]):
    """What has a length and gives its rows by number, such as a list."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int, /) -> Item_co: ...


@dataclass(frozen=True)
class Ragged:
    """Rows behind each other in one array: `numbers`, int32, and for each row where it ends, int64."""

    numbers: np.ndarray
    ends: np.ndarray

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, row: int) -> tuple[int, ...]:
        if not 0 <= row < len(self):  # what ends an iteration
            raise IndexError(row)
        start = int(self.ends[row - 1]) if row else 0
        return tuple(self.numbers[start : int(self.ends[row])].tolist())


def keep(folder: Path, key: str, make: Callable[[], Sequence[tuple[int, ...]]]) -> Ragged:
    """Return the rows that a file of `folder` holds under `key`; where there is none, make them and write it.

    A damaged file is made again. Where the folder cannot be written, the rows stay in memory.
    """
    path = folder / f"{key}.safetensors"
    with suppress(OSError, SafetensorError, KeyError):
        found = load_file(path)
        return Ragged(found["numbers"].numpy(), found["ends"].numpy())
    rows = make()
    numbers = np.fromiter(chain.from_iterable(rows), np.int32)
    ends = np.fromiter(accumulate(map(len, rows)), np.int64)
    with suppress(OSError, SafetensorError):
        write(path, {"numbers": torch.from_numpy(numbers), "ends": torch.from_numpy(ends)})
    return Ragged(numbers, ends)


def write(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write tensors to a file that appears only when it is complete, whoever else writes the same one."""
    files.put(path, save(tensors))
