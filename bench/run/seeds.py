"""Which seeds extend a result: those that it has, and the next ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.matrix.expand import Matrix
from bench.matrix.plan import plan
from bench.run.engine import due_jobs
from bench.run.records import histories
from bench.run.store import RECORDS, read_records


@dataclass(frozen=True)
class Extension:
    """The seeds of a result, ascending: those of its records, and those that are new, the numbers after the largest.

    `unfinished` are those of its records with which some cell has no result yet; then none are new.
    """

    present: tuple[int, ...]
    unfinished: tuple[int, ...]
    new: tuple[int, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.present + self.new


def extend(matrix: Matrix, results: Path, count: int, select: str | None = None) -> Extension:
    """Find the seeds with which the records below `results` are to be extended by `count` seeds.

    Only records of cells that the matrix has now count. Seeds that are unfinished for the cells that `select` chooses
    are to be finished first: otherwise a command that is given again after an interruption would add more each time.

    Raises:
        BenchError: there is no such record, the records cannot be read, or `select` chooses no cell.
    """
    folder = results / matrix.name
    try:
        contents = read_records(folder / RECORDS)
    except OSError as error:
        raise BenchError(f"{folder / RECORDS} cannot be read: {error.strerror}", "see to its permissions") from error
    keys = {cell.key for cell in matrix.cells}
    history = histories(record for record in contents.records if record.key in keys)
    present = tuple(sorted({seed for _, seed, _ in history}))
    if not present:
        raise BenchError(f"{folder} has no records to add seeds to", "run it without --add-seeds first")
    due = due_jobs(plan(matrix, select, present).jobs, history)
    unfinished = tuple(sorted({job.seed for job in due}))
    return Extension(present, unfinished, () if unfinished else tuple(range(present[-1] + 1, present[-1] + 1 + count)))


def written_seeds(seeds: Sequence[int]) -> str:
    """Write ascending seeds as `--seeds` takes them: `0-2,7`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
