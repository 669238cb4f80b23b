"""The folder of tasks that a run hands to its workers, checked before anything is written."""

from __future__ import annotations

import os
from pathlib import Path

from bench.errors import BenchError, Problem
from bench.matrix.plan import Plan
from bench.matrix.tasks import FILES, TASKS

DATA_VARIABLE = "QLORA_BENCH_DATA"


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
    asked = {parameters.task for parameters in cells if parameters.weights == "pretrained"}
    tasks = sorted(task.name for task in TASKS.values() if task.name in asked and not task.shipped)
    fix = f"put it there, or leave {source} out to take the task from the hub"
    files = [folder / task / name for task in tasks for name in FILES]
    if missing := [Problem(f"{source}: there is no {file}", fix) for file in files if not file.is_file()]:
        raise BenchError(missing)
    return folder
