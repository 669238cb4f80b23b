"""From a folder of results to what a reader sees: the terminal, and the files beside the records."""

from __future__ import annotations

import os
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from bench.errors import BenchError
from bench.run.store import write_atomically
from bench.tables.bars import memory_bars
from bench.tables.cells import cells_table
from bench.tables.csv import to_csv
from bench.tables.load import load_results, result_folders
from bench.tables.markdown import to_markdown
from bench.tables.memory import memory_table
from bench.tables.picture import INSTALL, can_draw, draw
from bench.tables.problems import problems_table
from bench.tables.storage import storage_table
from bench.tables.table import Table
from bench.tables.terminal import print_table
from bench.tables.terminal_bars import print_bars

FOLDER = "tables"
# In the order in which a reader meets them.
TABLES = (cells_table, storage_table, memory_table, problems_table)
EXPORTERS = {".md": to_markdown, ".csv": to_csv}
# The table that the bars stand below, and whose name their files have.
PICTURED = "memory"
PICTURES = ("svg", "png")


def write_tables(path: str | os.PathLike[str]) -> list[Path]:
    """Write the tables of every result at `path` into its folder `tables`, and return the files.

    A table without rows has no files; earlier ones of it are removed. Pictures need matplotlib, and stay as they are
    without it.

    Raises:
        BenchError: there is no result at `path`, or its tables cannot be written.
    """
    written: list[Path] = []
    for folder in result_folders(path):
        frame = load_results(folder)
        try:
            for table in _tables(frame):
                written += _write(table, folder / FOLDER)
            written += _draw(frame, folder / FOLDER)
        except OSError as error:
            what = f"the tables in {folder / FOLDER} cannot be written: {error.strerror}"
            raise BenchError(what, "see to its space and permissions; the records are unharmed") from error
    return written


def show(path: str | os.PathLike[str], console: Console) -> None:
    """Print the tables of every result at `path`.

    Raises:
        BenchError: there is no result at `path`.
    """
    for folder in result_folders(path):
        frame = load_results(folder)
        if frame.empty:
            for line in (f"{folder} holds no record yet: run its matrix to go on", *frame.attrs["warnings"]):
                console.print(line, markup=False, highlight=False)
        said: set[str] = set()
        for table in _tables(frame):
            if len(table.rows):
                print_table(_without(table, said), console, folder / FOLDER / f"{table.name}.md")
                console.print()
                if table.name == PICTURED:
                    _print_bars(frame, console)
                said.update(table.caption, table.notes)


def _tables(frame: pd.DataFrame) -> list[Table]:
    return [make(frame) for make in TABLES] if len(frame) else []


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
    bars = memory_bars(frame)
    for path, kind in zip(paths, PICTURES, strict=True):
        if bars:
            draft = path.with_name(f".{path.name}.draft")
            draft.write_bytes(draw(bars, kind))
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)
    return paths if bars else []


def _print_bars(frame: pd.DataFrame, console: Console) -> None:
    if bars := memory_bars(frame):
        print_bars(bars, console)
        if not can_draw():
            console.print(INSTALL, style="dim", markup=False, highlight=False)
        console.print()
