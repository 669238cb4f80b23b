"""Small plans and records for the tests of this room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.matrix.expand import Cell, Matrix
from bench.matrix.parameters import Parameters
from bench.matrix.plan import Job, Plan
from bench.run.gpus import Gpu
from bench.run.records import Record
from bench.run.slots import Slot

CPU = Slot("cpu")
GPUS = tuple(
    Slot(f"gpu{index}", Gpu(index, str(index), "NVIDIA L4", 24_000_000_000, "580.1", f"GPU-{index}"))
    for index in range(3)
)

RECORD = Record(
    id="nf4",
    key="k1",
    seed=0,
    attempt=1,
    status="ok",
    phase="score_after",
    message=None,
    hint=None,
    matrix="default",
    parameters={"quant_type": "nf4", "vram_limit": None},
    protocol=1,
    started_at="2025-01-01T00:00:00Z",
    wall_s=12.5,
    slot="cpu",
    last_peak_allocated_bytes=None,
    measures={"load_s": 2.0},
    environment={"python": "3.11.9", "gpu_name": None},
)


def record(**changes: Any) -> Record:
    return Record(**{**vars(RECORD), **changes})


def plan_of(
    *ids: str,
    seeds: tuple[int, ...] = (0,),
    text: str = "name: small\n",
    baseline: str | None = None,
    **parameters: Any,
) -> Plan:
    """Plan cells of these ids, whose keys are `key of <id>`, all with the same parameters but for the rank.

    They are planned in the order given, unshuffled, with a `baseline` once more at the end.
    """
    cells = tuple(
        Cell(name, f"key of {name}", Parameters(**{"task": "intents", "lora_r": rank, **parameters}))
        for rank, name in enumerate(ids, start=1)
    )
    last = [(cell, len(ids) + 1, 1) for cell in cells if cell.id == baseline]
    block = [*((cell, position, 0) for position, cell in enumerate(cells, start=1)), *last]
    jobs = tuple(Job(cell, seed, position, repeat) for seed in seeds for cell, position, repeat in block)
    return Plan(Matrix("small", "", Path("small.yaml"), text, cells, baseline, seeds), cells, seeds, jobs)
