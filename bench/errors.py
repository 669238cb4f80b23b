"""The project's one error type: what is wrong, where, and how to fix it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Location:
    """A place in a file. `line` and `column` count from 1, as editors do; 0 means the file as a whole."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True)
class Problem:
    """One mistake. Prints as `file:line:column: what; how to fix it`."""

    what: str
    fix: str | None = None
    where: Location | None = None

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.what}" + (f"; {self.fix}" if self.fix else "")


class BenchError(Exception):
    """A request that cannot be met as it stands, with every problem that was found in it.

    The command line prints the problems, a line each, and exits with 2; nothing has been written by then.
    """

    def __init__(self, problems: Iterable[Problem] | str, fix: str | None = None) -> None:
        self.problems = (Problem(problems, fix),) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
