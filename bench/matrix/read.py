"""Reads, checks and crosses a matrix file, whatever it is of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.matrix.checks import check_cells
from bench.matrix.cross import cross, size_of
from bench.matrix.document import read_document
from bench.matrix.ids import ids_of, key_of, varying
from bench.matrix.report import Report
from bench.matrix.schema import Declaration, read_declaration
from bench.matrix.subjects import KIND, check_subject
from bench.matrix.vocabulary import Vocabulary


@dataclass(frozen=True)
class Crossed:
    """A matrix file that holds no mistake: its text as it stands, and the id, key and values of each cell of it."""

    declaration: Declaration
    text: str
    cells: tuple[tuple[str, str, dict[str, Any]], ...]


def read_crossed(path: Path, vocabulary: Vocabulary, most: int) -> Crossed:
    """Read and check a matrix file of one vocabulary, and cross its axes.

    Raises:
        BenchError: with every mistake in the file, by position; the file is of another vocabulary; or the axes cross to
            more than `most` cells.
    """
    report = Report(str(path))
    document = read_document(path, report)
    check_subject(document.root.get(KIND), vocabulary.subject, report)
    declaration = read_declaration(document, vocabulary, report)
    _refuse_size(declaration, most, report)
    crossing = cross(declaration)
    ids = ids_of(crossing.drafts, varying(declaration.axes), vocabulary)
    check_cells(declaration, crossing, ids, report)
    report.stop_if_any()
    cells = [
        (id_, key_of(draft.values, vocabulary), draft.values) for id_, draft in zip(ids, crossing.drafts, strict=True)
    ]
    return Crossed(declaration, document.text, tuple(cells))


def _refuse_size(declaration: Declaration, most: int, report: Report) -> None:
    if (size := size_of(declaration.axes)) > most:
        vocabulary = declaration.vocabulary
        what = f"the axes cross to {size:,} {vocabulary.noun}s, and {most:,} is the limit"
        lift = f", or lift the limit with {vocabulary.limit_option} {size}" if vocabulary.limit_option else ""
        report.fail(declaration.axes_where, what, f"list fewer values{lift}")
