"""What one quantized layer costs: quantizing, dequantizing, forward and backward, in each choice, shape and dtype.

    python3 -m benchmarks.kernels [MATRIX] [-k EXPR] [--device cuda|cpu] [--results DIR] [PYTEST OPTIONS]

Options that are not its own go to pytest, such as --benchmark-autosave and --benchmark-compare.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import pytest

from bench.cli import CRASHED, INTERRUPTED, WRONG, select_option
from bench.errors import BenchError
from bench.matrix.kernels import KernelMatrix, load_kernels
from bench.matrix.select import select_cells
from bench.protocol import Device
from bench.run.lock import hold
from bench.run.store import RECORDS
from bench.tables.kernel_file import KERNELS
from bench.tables.render import results_at, show, write_tables
from benchmarks.command import CONTEXT, console, main, slot_for

DEFAULTS: dict[Device, Path] = {"cuda": Path("matrices/kernels.yaml"), "cpu": Path("matrices/kernels-cpu.yaml")}
EXITS: dict[int, int] = {
    pytest.ExitCode.OK: 0,
    pytest.ExitCode.TESTS_FAILED: CRASHED,
    pytest.ExitCode.INTERNAL_ERROR: CRASHED,
    pytest.ExitCode.INTERRUPTED: INTERRUPTED,
}
# What would leave this command without its own file.
OWN = ("--benchmark-json", "--benchmark-disable", "--benchmark-skip")


@click.command(context_settings={**CONTEXT, "ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[MATRIX] [PYTEST OPTIONS]")
@select_option
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: cuda where there is a GPU.")
@click.option("--results", default="results", show_default=True, type=click.Path(path_type=Path), metavar="DIR",
              help="Where results go: into DIR/<name of the matrix>.")  # fmt: skip
def command(arguments: tuple[str, ...], select: str | None, device: Device | None, results: Path) -> None:
    """Time the kernels of MATRIX, and show the tables."""
    device = slot_for(device).device
    paths = [Path(argument) for argument in arguments if argument.endswith((".yaml", ".yml"))] or [DEFAULTS[device]]
    if len(paths) > 1:
        raise BenchError("two matrices are given", "give one")
    matrix = load_kernels(paths[0])
    if select is not None:
        select_cells(matrix.cases, select, noun="case")  # which refuses what selects nothing
    others = [argument for argument in arguments if not argument.endswith((".yaml", ".yml"))]
    if kept := next((option for option in others if option.startswith(OWN)), None):
        raise BenchError(f"{kept}: the results are kept in {results / matrix.name}", "leave it out")
    folder = prepared(results / matrix.name)
    with hold(folder, datetime.now(UTC)):
        code = run(matrix, folder, device, select, others)
    sys.exit(code)


def prepared(folder: Path) -> Path:
    """Return the folder of a result, made if need be.

    Raises:
        BenchError: it cannot be made, or holds the result of a matrix of cells.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BenchError(f"--results: {folder} cannot be made: {error.strerror}", "name another folder") from error
    if (folder / RECORDS).exists():
        raise BenchError(f"{folder} holds the result of a matrix of cells", "give the matrix another name")
    return folder


def run(matrix: KernelMatrix, folder: Path, device: Device, select: str | None, options: Sequence[str]) -> int:
    """Time the cases, keep what was measured, and show the tables; return the exit code."""
    draft, found = folder / f".{KERNELS}.draft", folder / KERNELS
    code = pytest.main([
        str(Path(__file__).parent), f"--matrix={matrix.path}", f"--device={device}", f"--benchmark-json={draft}",
        f"--benchmark-storage=file://{folder / 'benchmarks'}", "--benchmark-quiet", "--quiet",
        "--disable-warnings",
        *([f"--cases={select}"] if select is not None else []), *options,
    ])  # fmt: skip
    if code not in EXITS:
        draft.unlink(missing_ok=True)
        return WRONG
    if not draft.exists():
        raise BenchError(
            "nothing was measured", "run it outside of pytest-xdist, and leave out options that turn it off"
        )
    set_aside(found)
    draft.replace(found)
    (folder / "matrix.yaml").write_text(matrix.text)
    tables = results_at(folder)
    write_tables(tables)
    show(tables, console())
    return EXITS[code]


def set_aside(file: Path) -> None:
    """Rename an earlier file by when it was written."""
    if file.exists():
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        file.rename(file.with_stem(f"{file.stem}-{written:%Y%m%d-%H%M%S}"))


if __name__ == "__main__":
    main(command)
