"""Where the time of a training step goes, cell by cell: kernels by what they do, the host's share, and the update.

    python3 -m benchmarks.step_time [MATRIX] [-k EXPR] [--device cuda|cpu] [--out FILE.json] [--top N]

Each cell is a process of its own. It loads and adapts as `bench.cell` does, then takes steps eagerly, one of them under
torch's profiler, and then as a CUDA graph. Every sequence is `max_length` random tokens, whatever the weights.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, get_args

import click

from bench.cli import CRASHED, select_option
from bench.matrix.expand import load_matrix
from bench.matrix.plan import Job, plan
from bench.protocol import Device, Request
from bench.run.slots import Slot
from benchmarks import children
from benchmarks.command import CONTEXT, console, main, out_option, slot_for, write
from benchmarks.step_time_tables import first_measured, show_cell, show_summary

MATRIX = Path(__file__).with_suffix(".yaml")
SCHEMA = 1


@click.command(context_settings=CONTEXT)
@click.argument("matrix", default=MATRIX, type=click.Path(path_type=Path))
@select_option
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: cuda where there is a GPU.")
@out_option
@click.option("--top", default=5, show_default=True, type=click.IntRange(0), metavar="N",
              help="Name the N kernels of each cell that take longest.")  # fmt: skip
@click.option("--cell", is_flag=True, hidden=True)
def command(matrix: Path, select: str | None, device: Device | None, out: Path | None, top: int, cell: bool) -> None:
    """Show where the time of a training step goes, for each cell of MATRIX with its first seed."""
    if cell:
        from benchmarks import step_time_cell

        children.work(step_time_cell.measure)
        return
    chosen = load_matrix(matrix)
    jobs = [job for job in plan(chosen, select, chosen.seeds[:1]).jobs if not job.repeat]
    slot, terminal = slot_for(device), console()
    cells: list[dict[str, Any]] = []
    for job in jobs:
        cells.append(run(job, slot))
        write(out, {"schema": SCHEMA, "matrix": chosen.name, "device": slot.device, "cells": cells})
        show_cell(cells[-1], first_measured(cells), top, terminal)
    show_summary(cells, terminal)
    sys.exit(CRASHED if any(cell["status"] == "crashed" for cell in cells) else 0)


def run(job: Job, slot: Slot) -> dict[str, Any]:
    """Measure a cell in a process of its own and return all that is known of it."""
    parameters = job.cell.parameters
    request = Request(job.cell.id, job.seed, parameters.model_dump(mode="json"), slot.device)
    outcome = children.run("benchmarks.step_time", ("--cell",), request, slot, timeout_s=parameters.timeout)
    return {
        "id": job.cell.id,
        "seed": job.seed,
        "parameters": request.parameters,
        "status": outcome.status,
        "message": outcome.message,
        "hint": outcome.hint,
        "environment": {},
        **outcome.measures,
    }


if __name__ == "__main__":
    main(command)
