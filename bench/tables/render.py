"""From a folder of results to what a reader sees: the terminal, and the files beside the records."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from bench.errors import BenchError
from bench.run.store import write_atomically
from bench.tables.bars import memory_bars
from bench.tables.cells import cells_table
from bench.tables.comparisons import comparisons_table
from bench.tables.confusions import confusions_table
from bench.tables.csv import to_csv
from bench.tables.effects import effects_table
from bench.tables.evidence import Evidence, gather
from bench.tables.interactions import interactions_table
from bench.tables.labels import labels_table
from bench.tables.load import first_runs, load_results, result_folders
from bench.tables.markdown import to_markdown
from bench.tables.memory import memory_table
from bench.tables.picture import INSTALL, can_draw, draw
from bench.tables.problems import problems_table
from bench.tables.quantization import quantization_table
from bench.tables.storage import storage_table
from bench.tables.table import Table
from bench.tables.terminal import print_note, print_table
from bench.tables.terminal_bars import print_bars
from bench.tables.watched import watched_table

FOLDER = "tables"
# In the order in which a reader meets them; the table of problems, which tells of every run, comes last.
TABLES: tuple[Callable[[Evidence], Table], ...] = (
    cells_table,
    effects_table,
    interactions_table,
    comparisons_table,
    watched_table,
    confusions_table,
    labels_table,
    quantization_table,
    lambda evidence: storage_table(evidence.runs),
    lambda evidence: memory_table(evidence.runs),
)
EXPORTERS = {".md": to_markdown, ".csv": to_csv}
# The table that the bars stand below, and whose name their files have.
PICTURED = "memory"
PICTURES = ("svg", "png")


@dataclass(frozen=True)
class Result:
    """A folder of results, its records, and the tables made of them: none where it holds no record yet."""

    folder: Path
    frame: pd.DataFrame
    tables: tuple[Table, ...]


def results_at(path: str | os.PathLike[str]) -> list[Result]:
    """Load every result at `path` and make its tables.

    Raises:
        BenchError: there is no result at `path`.
    """
    return [_result(folder) for folder in result_folders(path)]


def write_tables(results: Iterable[Result]) -> list[Path]:
    """Write the tables of results into their folders `tables`, and return the files.

    A table without rows has no files; earlier ones of it are removed. Pictures need matplotlib, and stay as they are
    without it.

    Raises:
        BenchError: they cannot be written.
    """
    written: list[Path] = []
    for result in results:
        folder = result.folder / FOLDER
        try:
            for table in result.tables:
                written += _write(table, folder)
            written += _draw(result.frame, folder)
        except OSError as error:
            what = f"the tables in {folder} cannot be written: {error.strerror}"
            raise BenchError(what, "see to its space and permissions; the records are unharmed") from error
    return written


def show(results: Iterable[Result], console: Console) -> None:
    """Print the tables of results; what a table without rows has to say stands at the end."""
    for result in results:
        if not result.tables:
            no_record = f"{result.folder} holds no record yet: run its matrix to go on"
            for line in (no_record, *result.frame.attrs["warnings"]):
                console.print(line, markup=False, highlight=False)
        said: set[str] = set()
        for table in (table for table in result.tables if len(table.rows)):
            print_table(_without(table, said), console, result.folder / FOLDER / f"{table.name}.md")
            console.print()
            if table.name == PICTURED:
                _print_bars(result.frame, console)
            said.update(table.caption, table.notes)
        for note in dict.fromkeys(note for table in result.tables for note in table.notes if note not in said):
            print_note(note, console)


def _result(folder: Path) -> Result:
    frame = load_results(folder)
    if frame.empty:
        return Result(folder, frame, ())
    evidence = gather(frame)
    return Result(folder, frame, (*(make(evidence) for make in TABLES), problems_table(frame)))


def _without(table: Table, said: Collection[str]) -> Table:
    """Leave out the lines that stand with an earlier table."""
    caption = tuple(line for line in table.caption if line not in said)
    return replace(table, caption=caption, notes=tuple(line for line in table.notes if line not in said))


def _write(table: Table, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{table.name}{suffix}" for suffix in EXPORTERS]
    for path, export in zip(paths, EXPORTERS.values(), strict=True):
        if len(table.rows):
            write_atomically(path, export(table))
        else:
            path.unlink(missing_ok=True)
    return paths if len(table.rows) else []


def _draw(frame: pd.DataFrame, folder: Path) -> list[Path]:
    if frame.empty or not can_draw():
        return []
    paths = [folder / f"{PICTURED}.{kind}" for kind in PICTURES]
    bars = memory_bars(first_runs(frame))
    for path, kind in zip(paths, PICTURES, strict=True):
        if bars:
            draft = path.with_name(f".{path.name}.draft")
            draft.write_bytes(draw(bars, kind))
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)
    return paths if bars else []


def _print_bars(frame: pd.DataFrame, console: Console) -> None:
    if bars := memory_bars(first_runs(frame)):
        print_bars(bars, console)
        if not can_draw():
            console.print(INSTALL, style="dim", markup=False, highlight=False)
        console.print()
