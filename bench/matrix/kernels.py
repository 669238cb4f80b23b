"""A matrix of kernels in, its cases out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.kernel_vocabulary import KERNELS
from bench.matrix.read import read_crossed

MOST_CASES = 50_000


@dataclass(frozen=True, slots=True)
class Case:
    """One thing to time: its id is for people and unique in its matrix, its key the same everywhere."""

    id: str
    key: str
    parameters: KernelParameters


@dataclass(frozen=True)
class KernelMatrix:
    """A matrix of kernels that holds no mistake, with its cases: crossed ones first, the rows of include after them.

    `text` is the file as it stands, byte order mark and line ends included. Of crossed cases that quantize or
    dequantize one weight, whatever their rows and adapters, the first stands for all.
    """

    name: str
    about: str
    path: Path
    text: str
    cases: tuple[Case, ...]


def load_kernels(path: str | Path, max_cases: int = MOST_CASES) -> KernelMatrix:
    """Read and check a matrix of kernels, and cross its axes.

    Raises:
        BenchError: with every mistake in the file, by position; the matrix is of cells; or the axes cross to more than
            `max_cases` cases.
    """
    path = Path(path)
    crossed = read_crossed(path, KERNELS, max_cases)
    declaration = crossed.declaration
    return KernelMatrix(
        name=declaration.name,
        about=declaration.about,
        path=path,
        text=crossed.text,
        cases=tuple(Case(id_, key, KernelParameters(**values)) for id_, key, values in crossed.cells),
    )
