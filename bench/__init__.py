"""qlora-bench: which 4-bit settings should I fine-tune with on my GPU, and what does each one cost me?

The same from Python as from the command line:

    from pathlib import Path
    from bench import load_matrix, load_results, plan, run_plan

    run_plan(plan(load_matrix("matrices/cpu.yaml")), Path("results"))
    frame = load_results("results/cpu")  # a tidy pandas DataFrame, a row for each cell and seed
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from bench.errors import BenchError as BenchError
    from bench.matrix.expand import expand as expand
    from bench.matrix.expand import load_matrix as load_matrix
    from bench.matrix.plan import plan as plan
    from bench.run.engine import run_plan as run_plan
    from bench.tables.load import load_results as load_results

# Imported when first asked for, so that planning a matrix does not wait for pandas.
HOMES = {
    "BenchError": "bench.errors",
    "expand": "bench.matrix.expand",
    "load_matrix": "bench.matrix.expand",
    "load_results": "bench.tables.load",
    "plan": "bench.matrix.plan",
    "run_plan": "bench.run.engine",
}

__all__ = list(HOMES)


def __getattr__(name: str) -> Any:
    if name in HOMES:
        return getattr(import_module(HOMES[name]), name)
    raise AttributeError(f"module 'bench' has no attribute {name!r}")
