"""Results with known truth for tests of what compares cells: `simulated` writes one, `evidence` has it gathered."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bench.tables.evidence import Evidence
from benchmarks.simulated import BASELINE, LABELS, Noise, SimulatedCell, evidence_of, simulated, true_loss

__all__ = [
    "BASELINE",
    "GRID",
    "LABELS",
    "QUIET",
    "Noise",
    "SimulatedCell",
    "alike",
    "evidence",
    "simulated",
    "true_loss",
]

# The default matrix, but for its rows of `include`: baseline first, nothing differs in truth.
GRID = (
    BASELINE,
    *(
        SimulatedCell(
            f"{quant}{'-dq' if double else ''}-{dtype}-{targets}",
            {"quant_type": quant, "double_quant": double, "compute_dtype": name, "target_modules": targets},
            stored_bytes=112_000_000 if double else 116_000_000,
            peak_bytes=4_400_000_000 if targets == "all-linear" else 3_770_000_000,
        )
        for quant, double, (dtype, name), targets in product(
            ("nf4", "fp4"), (False, True), (("bf16", "bfloat16"), ("fp16", "float16")), ("all-linear", "attention")
        )
    ),
)

# Hardly any noise: what differs in truth is found.
QUIET = Noise(seed=0.002, run=0.002, cell_example=0.01, run_example=0.01, log_speed_seed=1e-4, log_speed_run=1e-4)


def alike(count: int, **truth: Any) -> tuple[SimulatedCell, ...]:
    """The baseline and `count` other cells, which differ in `lora_r`."""
    return BASELINE, *(SimulatedCell(f"r{8 * n}", {"lora_r": 8 * n}, **truth) for n in range(1, count + 1))


def evidence(cells: Sequence[SimulatedCell] = GRID, **options: Any) -> Evidence:
    """What `gather` makes of a simulated result: seeds, examples, noise and random_seed as in `simulated`."""
    with TemporaryDirectory() as folder:
        return evidence_of(Path(folder), cells, **options)
