"""From results to what a reader sees: the terminal, and the files beside the records."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from rich.console import Console

from bench.errors import BenchError
from bench.run.store import write_atomically
from bench.tables import picture, roofline_picture
from bench.tables.bars import memory_bars
from bench.tables.cells import cells_table
from bench.tables.comparisons import comparisons_table
from bench.tables.confusions import confusions_table
from bench.tables.csv import to_csv
from bench.tables.effects import effects_table
from bench.tables.evidence import Evidence, gather
from bench.tables.html import to_html
from bench.tables.interactions import interactions_table
from bench.tables.kernel_file import kernels_files
from bench.tables.kernel_fused import fused_table
from bench.tables.kernel_layers import layers_table
from bench.tables.kernel_overheads import overheads_table
from bench.tables.kernel_refused import refused_table
from bench.tables.kernel_settings import settings_table
from bench.tables.kernels import load_kernels
from bench.tables.labels import labels_table
from bench.tables.load import first_runs, load_results, result_folders
from bench.tables.markdown import to_markdown
from bench.tables.memory import memory_table
from bench.tables.picture import can_draw
from bench.tables.problems import problems_table
from bench.tables.quantization import quantization_table
from bench.tables.roofline import roofline
from bench.tables.storage import storage_table
from bench.tables.table import Table
from bench.tables.terminal import print_note, print_table
from bench.tables.terminal_bars import print_bars
from bench.tables.watched import watched_table

FOLDER = "tables"
REPORT = "report.html"
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
KERNEL_TABLES: tuple[Callable[[pd.DataFrame], Table], ...] = (
    overheads_table,
    settings_table,
    fused_table,
    layers_table,
    refused_table,
)
EXPORTERS = {".md": to_markdown, ".csv": to_csv}
PICTURES = ("svg", "png")


@dataclass(frozen=True)
class Picture:
    """What is drawn of a result: the name of its files, and the table that it stands below.

    draw: makes the file of a kind (svg, png); None where there is nothing to draw. install: what to say where it cannot
    be drawn. print: shows it in a terminal, where it can.
    """

    name: str
    below: str
    draw: Callable[[str], bytes] | None
    install: str
    print: Callable[[Console], None] | None = None


@dataclass(frozen=True)
class Result:
    """A folder of results, their matrix, their frame, and the tables made of it: none where it holds no record yet."""

    folder: Path
    matrix: str
    frame: pd.DataFrame
    tables: tuple[Table, ...]
    picture: Picture | None = None


def results_at(path: str | os.PathLike[str]) -> list[Result]:
    """Load every result at `path`, of cells and of kernels, and make its tables.

    Raises:
        BenchError: there is no result at `path`, or one cannot be read.
    """
    folders, files = _found(path)
    return [*map(_of_cells, folders), *map(_of_kernels, files)]


def frame_at(path: str | os.PathLike[str]) -> pd.DataFrame:
    """Load the rows of all results of cells at `path`, or of the one result of kernels there.

    Raises:
        BenchError: there is no result at `path`, one cannot be read, or their rows make no single table.
    """
    folders, files = _found(path)
    if not files:
        return load_results(path)
    if folders or len(files) > 1:
        names = ", ".join(map(str, [*folders, *files]))
        raise BenchError(f"{path} holds results whose rows make no single table: {names}", "give one of them")
    return load_kernels(files[0])


def write_tables(results: Iterable[Result]) -> list[Path]:
    """Write the tables of results into their folders `tables`, and return the files.

    A table without rows has no files; earlier ones of it are removed. Pictures need matplotlib, and stay as they are
    without it. The report has all tables and the picture on one page.

    Raises:
        BenchError: they cannot be written.
    """
    written: list[Path] = []
    for result in results:
        folder = result.folder / FOLDER
        try:
            for table in result.tables:
                written += _write(table, folder)
            written += _draw(result.picture, folder)
            written += _report(result, folder)
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
        for table in _told_once(result.tables):
            print_table(table, console, result.folder / FOLDER / f"{table.name}.md")
            console.print()
            if result.picture and table.name == result.picture.below:
                _print_picture(result.picture, console)
        for note in _notes_besides(result.tables):
            print_note(note, console)
        if any(len(table.rows) for table in result.tables):
            where = f"All of it on one page: {result.folder / FOLDER / REPORT}"
            console.print(where, style="dim", markup=False, highlight=False)


def _found(path: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """List the folders of results of cells, and the files of those of kernels, that `path` means."""
    files = kernels_files(path)
    try:
        return result_folders(path), files
    except BenchError:
        if not files:
            raise
        return [], files


def _of_cells(folder: Path) -> Result:
    frame = load_results(folder)
    if frame.empty:
        return Result(folder, folder.name, frame, ())
    evidence = gather(frame)
    bars = memory_bars(first_runs(frame))
    return Result(
        folder,
        str(frame["matrix"].iloc[0]),
        frame,
        (*(make(evidence) for make in TABLES), problems_table(frame)),
        Picture(
            "memory",
            "memory",
            (lambda kind: picture.draw(bars, kind)) if bars else None,
            picture.INSTALL,
            (lambda console: print_bars(bars, console)) if bars else None,
        ),
    )


def _of_kernels(file: Path) -> Result:
    frame = load_kernels(file)
    roof, tables = roofline(frame), tuple(make(frame) for make in KERNEL_TABLES)
    below = next((table.name for table in tables if len(table.rows)), "")
    return Result(
        file.parent,
        frame.attrs["matrix"],
        frame,
        tables,
        Picture(
            "roofline",
            below,
            (lambda kind: roofline_picture.draw(roof, kind)) if roof else None,
            roofline_picture.INSTALL,
        ),
    )


def _told_once(tables: Sequence[Table]) -> Iterator[Table]:
    """Return the tables that have rows, each without the lines that stand with an earlier one."""
    said: set[str] = set()
    for table in tables:
        if len(table.rows):
            yield _without(table, said)
            said.update(table.caption, table.notes)


def _without(table: Table, said: Collection[str]) -> Table:
    caption = tuple(line for line in table.caption if line not in said)
    return replace(table, caption=caption, notes=tuple(line for line in table.notes if line not in said))


def _notes_besides(tables: Sequence[Table]) -> list[str]:
    """Return what only tables without rows say."""
    said = {line for table in tables if len(table.rows) for line in (*table.caption, *table.notes)}
    return [*dict.fromkeys(note for table in tables for note in table.notes if note not in said)]


def _write(table: Table, folder: Path) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{table.name}{suffix}" for suffix in EXPORTERS]
    for path, export in zip(paths, EXPORTERS.values(), strict=True):
        if len(table.rows):
            write_atomically(path, export(table))
        else:
            path.unlink(missing_ok=True)
    return paths if len(table.rows) else []


def _draw(picture: Picture | None, folder: Path) -> list[Path]:
    if picture is None or not can_draw():
        return []
    paths = [folder / f"{picture.name}.{kind}" for kind in PICTURES]
    for path, kind in zip(paths, PICTURES, strict=True):
        if picture.draw:
            draft = path.with_name(f".{path.name}.draft")
            draft.write_bytes(picture.draw(kind))
            draft.replace(path)
        else:
            path.unlink(missing_ok=True)
    return paths if picture.draw else []


def _report(result: Result, folder: Path) -> list[Path]:
    tables = [*_told_once(result.tables)]
    if not tables:
        return []
    drawn = result.picture
    is_drawn = drawn is not None and drawn.draw is not None and can_draw()
    pictures = {drawn.below: (folder / f"{drawn.name}.svg").read_text("utf-8")} if drawn and is_drawn else {}
    path = folder / REPORT
    write_atomically(path, to_html(result.matrix, tables, pictures, _notes_besides(result.tables)))
    return [path]


def _print_picture(picture: Picture, console: Console) -> None:
    if not picture.draw:
        return
    if picture.print:
        picture.print(console)
    if not can_draw():
        console.print(picture.install, style="dim", markup=False, highlight=False)
    if picture.print or not can_draw():
        console.print()
