"""A matrix file in, its cells out: the front door of this package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.matrix.checks import check_cells
from bench.matrix.cross import cross, size_of
from bench.matrix.document import read_document
from bench.matrix.ids import ids_of, key_of, varying
from bench.matrix.parameters import Parameters
from bench.matrix.report import Report
from bench.matrix.schema import Declaration, read_declaration

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
        BenchError: with every mistake in the file, by position; or the axes cross to more than `max_cells` cells.
    """
    path = Path(path)
    report = Report(str(path))
    document = read_document(path, report)
    declaration = read_declaration(document, report)
    _refuse_size(declaration, max_cells, report)
    crossing = cross(declaration)
    ids = ids_of(crossing.drafts, varying(declaration.axes))
    check_cells(declaration, crossing, ids, report)
    report.stop_if_any()
    return Matrix(
        name=declaration.name,
        about=declaration.about,
        path=path,
        text=document.text,
        cells=tuple(
            Cell(id_, key_of(draft.values), Parameters(**draft.values))
            for id_, draft in zip(ids, crossing.drafts, strict=True)
        ),
        baseline=declaration.baseline.value if declaration.baseline else None,
        seeds=declaration.seeds,
        watch_pairs=declaration.watch_pairs,
    )


def expand(matrix: Matrix) -> tuple[Cell, ...]:
    """Return the cells of a matrix, in order."""
    return matrix.cells


def _refuse_size(declaration: Declaration, max_cells: int, report: Report) -> None:
    if (size := size_of(declaration.axes)) > max_cells:
        what = f"the axes cross to {size:,} cells, and {max_cells:,} is the limit"
        report.fail(declaration.axes_where, what, f"list fewer values, or lift the limit with --max-cells {size}")
