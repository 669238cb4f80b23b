"""From the timings of kernels, the step of a whole model: predicted, measured, and the gap between the two explained.

    python3 -m benchmarks.step_prediction KERNELS.json [MATRIX] [-k EXPR] [--device cuda|cpu] [--out FILE.json]

KERNELS.json is what `nox -s kernels` wrote. For each cell, the times of its linear layers are added up: that is the
prediction. Then the cell's step is measured as `benchmarks.step_time` does it, in a process of its own, its kernels are
parted into those of linear layers and others, and the same launches are made once more alone.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from bench.cli import CRASHED, select_option
from bench.matrix.expand import load_matrix
from bench.matrix.plan import Job, plan
from bench.protocol import Device, Request
from bench.run.slots import Slot
from bench.tables.kernels import load_kernels
from benchmarks import children
from benchmarks import step_prediction_timings as timings
from benchmarks.command import CONTEXT, console, main, out_option, slot_for, write
from benchmarks.step_prediction_gap import explain
from benchmarks.step_prediction_tables import show_cell, show_summary
from benchmarks.step_prediction_timings import Linear, Missing, Prediction

MATRIX = Path(__file__).with_suffix(".yaml")
SCHEMA = 1
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes")


@click.command(context_settings=CONTEXT)
@click.argument("kernels", required=False, type=click.Path(path_type=Path), metavar="KERNELS.json")
@click.argument("matrix", default=MATRIX, type=click.Path(path_type=Path))
@select_option
@click.option("--device", type=click.Choice(get_args(Device)), help="Default: cuda where there is a GPU.")
@out_option
@click.option("--cell", is_flag=True, hidden=True)
@click.option("--layers", is_flag=True, hidden=True)
def command(
    kernels: Path | None,
    matrix: Path,
    select: str | None,
    device: Device | None,
    out: Path | None,
    cell: bool,
    layers: bool,
) -> None:
    """Predict the step of each cell of MATRIX from the timings in KERNELS.json, measure it, and explain the gap."""
    if cell or layers:
        from benchmarks import step_prediction_cell

        children.work(step_prediction_cell.measure if cell else step_prediction_cell.describe)
        return
    if kernels is None:
        raise click.UsageError("name the kernels.json that nox -s kernels wrote")
    timed = load_kernels(kernels)
    chosen = load_matrix(matrix)
    jobs = [job for job in plan(chosen, select, chosen.seeds[:1]).jobs if not job.repeat]
    slot, terminal = slot_for(device), console()
    predictions = predict(kernels, timed, jobs)
    source = {"file": kernels.name, **{name: timed.attrs.get(name) for name in ("gpu", "versions", "datetime")}}
    cells: list[dict[str, Any]] = []
    for job, prediction in zip(jobs, predictions, strict=True):
        cells.append(run(job, slot, prediction, source))
        document = {"schema": SCHEMA, "matrix": chosen.name, "device": slot.device, "kernels": source, "cells": cells}
        write(out, document)
        show_cell(cells[-1], terminal)
    show_summary(cells, terminal)
    sys.exit(CRASHED if any(cell["status"] == "crashed" for cell in cells) else 0)


def predict(path: Path, timed: Any, jobs: Sequence[Job]) -> list[Prediction]:
    """Predict all cells before any is measured.

    Raises:
        BenchError: timings are missing, or a model cannot be described.
        Crashed: describing them failed for another reason.
    """
    asked = [job.cell.parameters for job in jobs]
    request = Request("linear layers", 0, {"cells": [cell.model_dump(mode="json") for cell in asked]}, "cpu")
    outcome = children.run("benchmarks.step_prediction", ("--layers",), request, Slot("cpu"))
    described = children.measures("linear layers", outcome)["cells"]
    found: list[Prediction] = []
    missing: dict[str, Missing] = {}
    needed: list[timings.Alternatives] = []
    for job, cell in zip(jobs, described, strict=True):
        linear = [Linear(**layer) for layer in cell["layers"]]
        needed += timings.alternatives(job.cell.parameters, cell["rows"], linear)
        try:
            found.append(timings.predict(job.cell.parameters, cell["rows"], linear, timed))
        except Missing as error:
            missing[job.cell.id] = error
    if missing:
        raise timings.refuse(path, missing, needed)
    return found


def run(job: Job, slot: Slot, prediction: Prediction, source: Mapping[str, Any]) -> dict[str, Any]:
    """Measure a cell in a process of its own; return the prediction, the measurement and the explanation of the gap."""
    parameters = job.cell.parameters
    stated = parameters.model_dump(mode="json")
    asked = {"cell": stated, "launches": [launch for launch, _ in prediction.launches]}
    request = Request(job.cell.id, job.seed, asked, slot.device)
    outcome = children.run("benchmarks.step_prediction", ("--cell",), request, slot, timeout_s=parameters.timeout)
    figures = outcome.measures
    gap = explain(prediction.linear_s, [count for _, count in prediction.launches], figures) if figures else None
    return {
        "id": job.cell.id,
        "seed": job.seed,
        "parameters": stated,
        "status": outcome.status,
        "message": outcome.message,
        "hint": outcome.hint,
        "prediction": prediction.as_json(),
        "measurement": dict(figures) or None,
        "explanation": gap.as_json() if gap else None,
        "notes": [*prediction.notes, *differences(source, figures)],
    }


def differences(source: Mapping[str, Any], figures: Mapping[str, Any]) -> list[str]:
    """Return how the machine of the kernel timings differs from that of the step."""
    if not figures:
        return []
    here = figures["environment"]
    pairs = [("on", source["gpu"] or "a CPU", here.get("gpu_name") or "a CPU")]
    versions = source["versions"] or {}
    pairs += [(f"with {name}", versions[name], here[name]) for name in PACKAGES if name in versions]
    return [f"the kernels were timed {how} {then}, the step {how} {now}" for how, then, now in pairs if then != now]


if __name__ == "__main__":
    main(command)
