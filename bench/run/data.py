"""The folder of tasks that a run hands to its workers, checked before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from bench.errors import BenchError, Problem
from bench.matrix.plan import Plan

DATA_VARIABLE = "QLORA_BENCH_DATA"

# Tasks that are taken from this folder where there is one, and from the hub otherwise.
HUB_TASKS = frozenset({"banking77"})
FILES = ("train.csv", "test.csv")


def find_data(plan: Plan, data_dir: Path | None) -> Path | None:
    """Return the folder of tasks, absolute: `data_dir`, else what `QLORA_BENCH_DATA` says, else None.

    Raises:
        BenchError: a cell of the plan needs a task that the folder should hold and does not.
    """
    variable = os.environ.get(DATA_VARIABLE)
    if data_dir is None and not variable:
        return None
    source = "--data" if data_dir else DATA_VARIABLE
    folder = Path(data_dir or variable or "").expanduser().absolute()
    cells = {job.cell.key: job.cell.parameters for job in plan.jobs}.values()
    tasks = HUB_TASKS & {parameters.task for parameters in cells if parameters.weights == "pretrained"}
    fix = f"put it there, or leave {source} out to take the task from the hub"
    files = [folder / task / name for task in sorted(tasks) for name in FILES]
    if missing := [Problem(f"{source}: there is no {file}", fix) for file in files if not file.is_file()]:
        raise BenchError(missing)
    return folder
