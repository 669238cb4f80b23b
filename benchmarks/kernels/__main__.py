"""What one quantized layer costs: quantizing, dequantizing, forward and backward, in each choice, shape and dtype.

    python3 -m benchmarks.kernels [MATRIX] [-k EXPR] [--device cuda|cpu] [--results DIR] [PYTEST OPTIONS]

Options that are not its own go to pytest, such as --benchmark-autosave and --benchmark-compare.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import click
import pytest

from bench.cli import CRASHED, INTERRUPTED, WRONG, select_option
from bench.errors import BenchError
from bench.matrix.kernels import load_kernels
from bench.matrix.select import select_cells
from bench.protocol import Device
from bench.tables.kernel_file import KERNELS
from bench.tables.render import results_at, show, write_tables
from benchmarks.command import CONTEXT, console, main, slot_for

DEFAULTS: dict[Device, Path] = {"cuda": Path("matrices/kernels.yaml"), "cpu": Path("matrices/kernels-cpu.yaml")}
EXITS = {pytest.ExitCode.TESTS_FAILED: CRASHED, pytest.ExitCode.INTERRUPTED: INTERRUPTED}


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
    folder = results / matrix.name
    folder.mkdir(parents=True, exist_ok=True)
    draft, found = folder / f".{KERNELS}.draft", folder / KERNELS
    code = pytest.main([
        str(Path(__file__).parent), f"--matrix={paths[0]}", f"--device={device}", f"--benchmark-json={draft}",
        f"--benchmark-storage=file://{folder / 'benchmarks'}", "--benchmark-quiet", "--quiet",
        "--disable-warnings",
        *([f"--cases={select}"] if select is not None else []), *others,
    ])  # fmt: skip
    if code not in {pytest.ExitCode.OK, *EXITS}:
        draft.unlink(missing_ok=True)
        sys.exit(WRONG)
    if draft.exists():
        set_aside(found)
        draft.replace(found)
        (folder / "matrix.yaml").write_text(matrix.text)
        tables = results_at(folder)
        write_tables(tables)
        show(tables, console())
    sys.exit(EXITS.get(pytest.ExitCode(code), 0))


def set_aside(file: Path) -> None:
    """Rename an earlier file by when it was written."""
    if file.exists():
        written = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        file.rename(file.with_stem(f"{file.stem}-{written:%Y%m%d-%H%M%S}"))


if __name__ == "__main__":
    main(command)
