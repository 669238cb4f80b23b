"""A matrix file in, its cells out: the front door of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.matrix.cell_vocabulary import CELLS
from bench.matrix.parameters import Parameters
from bench.matrix.read import read_crossed

MOST_CELLS = 10_000


@dataclass(frozen=True, slots=True)
class Cell:
    """One thing to run: its id is for people and unique in its matrix, its key for records and the same everywhere."""

    id: str
    key: str
    parameters: Parameters


@dataclass(frozen=True)
class Matrix:
    """A matrix file that holds no mistake, with its cells: crossed ones first, the rows of include after them.

    `text` is the file as it stands, byte order mark and line ends included; `baseline` is a cell's id. `watch_pairs`
    are labels that are easily confused, two at a time; a task need not have them.
    """

    name: str
    about: str
    path: Path
    text: str
    cells: tuple[Cell, ...]
    baseline: str | None
    seeds: tuple[int, ...]
    watch_pairs: tuple[tuple[str, str], ...] = ()


def load_matrix(path: str | Path, max_cells: int = MOST_CELLS) -> Matrix:
    """Read and check a matrix file, and cross its axes.

    Raises:
        BenchError: with every mistake in the file, by position; the matrix is of kernels; or the axes cross to more
            than `max_cells` cells.
    """
    path = Path(path)
    crossed = read_crossed(path, CELLS, max_cells)
    declaration = crossed.declaration
    return Matrix(
        name=declaration.name,
        about=declaration.about,
        path=path,
        text=crossed.text,
        cells=tuple(Cell(id_, key, Parameters(**values)) for id_, key, values in crossed.cells),
        baseline=declaration.baseline.value if declaration.baseline else None,
        seeds=declaration.seeds,
        watch_pairs=declaration.watch_pairs,
    )


def expand(matrix: Matrix) -> tuple[Cell, ...]:
    """Return the cells of a matrix, in order."""
    return matrix.cells
