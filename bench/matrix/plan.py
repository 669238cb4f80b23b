"""What a run is going to do, in order: the cells of a matrix, once with each seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.matrix.expand import Cell, Matrix
from bench.matrix.schema import LARGEST_SEED
from bench.matrix.select import select_cells


@dataclass(frozen=True, slots=True)
class Job:
    """One cell with one seed."""

    cell: Cell
    seed: int


@dataclass(frozen=True)
class Plan:
    """The cells and seeds that were chosen, and the jobs in the order in which they are to run."""

    matrix: Matrix
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    jobs: tuple[Job, ...]


def plan(matrix: Matrix, select: str | None = None, seeds: Sequence[int] | None = None) -> Plan:
    """Order the jobs of a matrix: seed by seed, so that a run cut short has compared every cell at least once.

    Within a seed, the baseline comes first, then the other cells in the matrix's order. `select` is an expression
    over ids, `seeds` replaces the matrix's own.

    Raises:
        BenchError: `select` cannot be read or selects nothing, or `seeds` are not distinct numbers a seed may be.
    """
    cells = select_cells(matrix.cells, select) if select is not None else matrix.cells
    chosen = matrix.seeds if seeds is None else _checked(seeds)
    in_order = sorted(cells, key=lambda cell: cell.id != matrix.baseline)
    return Plan(matrix, cells, chosen, tuple(Job(cell, seed) for seed in chosen for cell in in_order))


def describe(plan: Plan) -> dict[str, Any]:
    """Turn a plan into what JSON can hold; a cell's parameters are all there, defaults included."""
    return {
        "name": plan.matrix.name,
        "about": plan.matrix.about,
        "baseline": plan.matrix.baseline,
        "seeds": list(plan.seeds),
        "cells": [
            {"id": cell.id, "key": cell.key, "parameters": cell.parameters.model_dump(mode="json")}
            for cell in plan.cells
        ],
        "jobs": [{"id": job.cell.id, "seed": job.seed} for job in plan.jobs],
    }


def _checked(seeds: Sequence[int]) -> tuple[int, ...]:
    if not seeds:
        raise BenchError("no seed is given", "give one or more, such as 0")
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise BenchError(f"a seed is a whole number from 0 to {LARGEST_SEED}, not {seed}", "give 0, 1, 2 and so on")
    if len(set(seeds)) < len(seeds):
        raise BenchError("a seed is given twice", "give each seed once")
    return tuple(seeds)
