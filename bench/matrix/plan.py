"""What a run is going to do, in order: the cells of a matrix in blocks, one a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.errors import BenchError
from bench.matrix.expand import Cell, Matrix
from bench.matrix.parameters import LARGEST_SEED, Parameters
from bench.matrix.select import select_cells


@dataclass(frozen=True, slots=True)
class Job:
    """One cell with one seed. `position` is its place in the plan's block of that seed, from 1.

    On several GPUs jobs do not start in that order throughout; a selection makes a shorter block, counted by itself.
    `repeat` is 1 where the baseline runs once more at the end of a block, and otherwise 0.
    """

    cell: Cell
    seed: int
    position: int
    repeat: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        """The cell's key, the seed and the repeat, by which a record belongs to this job."""
        return self.cell.key, self.seed, self.repeat


@dataclass(frozen=True)
class Plan:
    """The cells and seeds that were chosen, and the jobs in the order in which they are to run."""

    matrix: Matrix
    cells: tuple[Cell, ...]
    seeds: tuple[int, ...]
    jobs: tuple[Job, ...]


def plan(matrix: Matrix, select: str | None = None, seeds: Sequence[int] | None = None) -> Plan:
    """Order the jobs of a matrix in blocks, one a seed: once the first block is through, every cell is compared.

    In a block the baseline runs first and the other cells are shuffled: in a fixed order, whatever drifts while a run
    goes on (clocks, temperature, what else the host does) would favour the same cells each time. Where there is
    another cell, the baseline runs once more at the end, so that its two timings show the drift. The shuffle depends
    on seeds and keys only: neither the order of the file nor a selection changes which of two cells is first. `select`
    is an expression over ids, `seeds` replaces the matrix's own.

    Raises:
        BenchError: `select` cannot be read or selects nothing, or `seeds` are not distinct numbers a seed may be, with
            each cell's seed_offset added; or two cells that differ in seed_offset only would make the same run.
    """
    cells = select_cells(matrix.cells, select) if select is not None else matrix.cells
    chosen = matrix.seeds if seeds is None else _checked(seeds)
    _check_offsets(cells, chosen)
    _check_repeats(cells, chosen)
    return Plan(matrix, cells, chosen, tuple(job for seed in chosen for job in _block(cells, matrix.baseline, seed)))


def describe(plan: Plan) -> dict[str, Any]:
    """Turn a plan into what JSON can hold; a cell's parameters are all there, defaults included."""
    return {
        "name": plan.matrix.name,
        "about": plan.matrix.about,
        "baseline": plan.matrix.baseline,
        "seeds": list(plan.seeds),
        "watch_pairs": [list(pair) for pair in plan.matrix.watch_pairs],
        "cells": [
            {"id": cell.id, "key": cell.key, "parameters": cell.parameters.model_dump(mode="json")}
            for cell in plan.cells
        ],
        "jobs": [
            {"id": job.cell.id, "seed": job.seed, "repeat": job.repeat, "position": job.position} for job in plan.jobs
        ],
    }


def _block(cells: Sequence[Cell], baseline: str | None, seed: int) -> list[Job]:
    shuffled = sorted(cells, key=lambda cell: hashlib.sha256(f"{seed} {cell.key}".encode()).digest())
    in_order = sorted(shuffled, key=lambda cell: cell.id != baseline)
    jobs = [Job(cell, seed, position) for position, cell in enumerate(in_order, start=1)]
    if len(jobs) > 1 and in_order[0].id == baseline:
        jobs.append(Job(in_order[0], seed, len(jobs) + 1, repeat=1))
    return jobs


def _checked(seeds: Sequence[int]) -> tuple[int, ...]:
    if not seeds:
        raise BenchError("no seed is given", "give one or more, such as 0")
    for seed in seeds:
        if not 0 <= seed <= LARGEST_SEED:
            raise BenchError(f"a seed is a whole number from 0 to {LARGEST_SEED}, not {seed}", "give 0, 1, 2 and so on")
    if len(set(seeds)) < len(seeds):
        raise BenchError("a seed is given twice", "give each seed once")
    return tuple(seeds)


def _check_offsets(cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    largest = max(seeds)
    for cell in cells:
        if largest + cell.parameters.seed_offset > LARGEST_SEED:
            what = f"{cell.id}: seed {largest} with seed_offset {cell.parameters.seed_offset} is beyond {LARGEST_SEED}"
            raise BenchError(what, "lower seed_offset, or the seed")


def _check_repeats(cells: Sequence[Cell], seeds: Sequence[int]) -> None:
    """Refuse a cell that would make a run of another one again, with the same sum of seed and seed_offset."""
    made: dict[tuple[Parameters, int], Cell] = {}
    for cell in cells:
        settings = cell.parameters.model_copy(update={"seed_offset": 0})
        for number in (seed + cell.parameters.seed_offset for seed in seeds):
            if (other := made.setdefault((settings, number), cell)) is not cell:
                what = f"{other.id} and {cell.id} would make the same run: seed + seed_offset is {number} in both"
                span = max(seeds) - min(seeds)
                fix = f"let seed_offset differ by more than the seeds do ({span}), such as by {max(1000, span + 1)}"
                raise BenchError(what, fix)
