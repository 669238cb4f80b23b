"""What a matrix is of, as its `kind` says: cells, which is what it is of where it says nothing, or kernels."""

from __future__ import annotations

from bench.matrix.report import Report
from bench.matrix.tree import Entry, sort_of
from bench.matrix.wording import closest, listing

KIND = "kind"
CELLS, KERNELS = "cells", "kernels"
COMMANDS = {CELLS: "nox -s bench", KERNELS: "nox -s kernels"}


def check_subject(entry: Entry | None, wanted: str, report: Report) -> None:
    """Stop unless the `kind` of a file is the one that is wanted, or that was most likely meant.

    Raises:
        BenchError: the file is a matrix of something else.
    """
    if entry is None:
        if wanted != CELLS:
            fix = f"{_runs(CELLS, report)}; a matrix of {wanted} says {KIND}: {wanted}"
            report.fail(None, f"this matrix is of {CELLS}", fix)
        return
    kind, where = entry.node.value, entry.node.where
    if not isinstance(kind, str) or kind not in COMMANDS:
        meant = closest(kind, COMMANDS) if isinstance(kind, str) else None
        what = f"{KIND} takes {listing(tuple(COMMANDS))}, not {sort_of(entry.node)}"
        report.add(where, what, f"did you mean {meant}?" if meant else f"write {wanted}")
        if meant != wanted:
            report.stop()
    elif kind != wanted:
        report.fail(where, f"this matrix is of {kind}", _runs(kind, report))


def _runs(kind: str, report: Report) -> str:
    return f"{COMMANDS[kind]} -- {report.file} runs it"
