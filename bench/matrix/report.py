"""Collects the mistakes of one file, so that a reader learns of all of them at once."""

from __future__ import annotations

from typing import NoReturn

from bench.errors import BenchError, Location, Problem

# A file with more mistakes than this is not a matrix; listing them all would help nobody.
MOST_PROBLEMS = 500


class Report:
    """The problems found so far in the file called `file`."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[Problem] = []

    def add(self, where: Location | None, what: str, fix: str) -> None:
        self.problems.append(Problem(what, fix, where or Location(self.file)))
        if len(self.problems) >= MOST_PROBLEMS:
            self.problems.append(Problem(f"{MOST_PROBLEMS} problems found, and reading stopped there"))
            self.stop()

    def fail(self, where: Location | None, what: str, fix: str) -> NoReturn:
        """Add a problem after which reading on makes no sense."""
        self.add(where, what, fix)
        self.stop()

    def stop(self) -> NoReturn:
        raise BenchError(sorted(self.problems, key=_position))

    def stop_if_any(self) -> None:
        if self.problems:
            self.stop()


def _position(problem: Problem) -> tuple[bool, int, int]:
    where = problem.where
    return (where is None, where.line if where else 0, where.column if where else 0)
