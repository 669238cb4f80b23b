"""Seeds as `--seeds` takes them, and those that extend a result: those that it has, and the next ones."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.matrix.expand import Matrix
from bench.matrix.parameters import LARGEST_SEED
from bench.matrix.plan import plan
from bench.matrix.wording import counted, quoted
from bench.run.due import due_jobs
from bench.run.records import histories
from bench.run.store import RECORDS, Contents, read_records

MOST_SEEDS = 1000

_PART = re.compile(r"([0-9]{1,12})(?:-([0-9]{1,12}))?")


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
        BenchError: there is no such record, the records cannot be read, `select` chooses no cell, or the next seeds are
            beyond the largest that there is.
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
        raise BenchError(_nothing_to_extend(folder, contents), "run it without --add-seeds first")
    due = due_jobs(plan(matrix, select, present).jobs, history)
    unfinished = tuple(sorted({job.seed for job in due}))
    if unfinished:
        return Extension(present, unfinished, ())
    first, last = present[-1] + 1, present[-1] + count
    if last > LARGEST_SEED:
        what = f"--add-seeds {count}: {folder} has seeds up to {present[-1]}, and {LARGEST_SEED} is the largest"
        raise BenchError(what, "name seeds that it does not have with --seeds")
    return Extension(present, (), tuple(range(first, last + 1)))


def read_seeds(text: str) -> tuple[int, ...]:
    """Read what stands behind `--seeds`: `0,2,5-7` is (0, 2, 5, 6, 7).

    Raises:
        BenchError: a part is neither a number nor a range that has a number, or the seeds are more than `MOST_SEEDS`.
    """
    ranges = [_read_part(part.strip()) for part in text.split(",")]
    if (count := sum(map(len, ranges))) > MOST_SEEDS:
        raise BenchError(f"--seeds: {quoted(text)} is {count:,} seeds", f"give at most {MOST_SEEDS:,}")
    return tuple(seed for seeds in ranges for seed in seeds)


def written_seeds(seeds: Sequence[int]) -> str:
    """Write ascending seeds as `--seeds` takes them: `0-2,7`."""
    runs: list[list[int]] = []
    for seed in seeds:
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _read_part(text: str) -> range:
    match = _PART.fullmatch(text)
    if match is None:
        raise BenchError(f"--seeds: {quoted(text)} is no seed", "write numbers such as 0,1,2 or 0-4")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise BenchError(f"--seeds: {text} is an empty range", f"write {last}-{first}")
    return range(first, last + 1)


def _nothing_to_extend(folder: Path, contents: Contents) -> str:
    count = len(contents.records)
    others = [f"{counted(count, 'record')} of cells that the matrix does not have"] if count else []
    found = [*others, *contents.warnings]
    return f"{folder} has no records to add seeds to" + (f", but {', '.join(found)}" if found else "")
