"""A record: all that is known of one attempt at one cell with one seed, and its line of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from bench.errors import BenchError, Location, Problem
from bench.protocol import PHASES, STATUSES, Phase, Status, finite

SCHEMA = 1

# From a schema to the next one: what turns a line's object of that schema into one of schema + 1.
UPGRADERS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}

# A cell of a plan, by its key, with a seed, and how often it had run in that seed's block before.
JobKey = tuple[str, int, int]


@dataclass(frozen=True)
class Record:
    """One attempt, counted from 1 over all runs.

    `started_at` is UTC in ISO 8601. `wall_s` is from the start of the process, or from its request where it had been
    prepared, to its result or its end. `slot` is where it ran (`gpu0`, `cpu`). `last_peak_allocated_bytes` is torch's
    peak in the phase in which it ended, null on a CPU. `losses` are those of each training step, nats per loss-bearing
    token, to six digits; a worker that was killed leaves none. Figures that are not finite are null. `repeat` is 1
    where the baseline ran once more at the end of its seed's block, to show drift, and otherwise 0. `position` is the
    place, from 1, in the block of the plan that the attempt was made from: a plan of selected cells has a shorter
    block, and on several GPUs others may have begun before. `started_at` tells the order in which attempts began.
    `position` is null in records of versions that had no blocks.
    """

    id: str
    key: str
    seed: int
    attempt: int
    status: Status
    phase: Phase
    message: str | None
    hint: str | None
    matrix: str
    parameters: Mapping[str, Any]
    protocol: int
    started_at: str
    wall_s: float
    slot: str
    last_peak_allocated_bytes: int | None
    measures: Mapping[str, Any]
    environment: Mapping[str, Any]
    warnings: Sequence[str] = ()
    losses: Sequence[float | None] = ()
    repeat: int = 0
    position: int | None = None

    @property
    def job(self) -> JobKey:
        return self.key, self.seed, self.repeat


FIELDS = tuple(field.name for field in fields(Record))
REQUIRED = tuple(field.name for field in fields(Record) if field.default is MISSING)
CHECKS: dict[str, Callable[[Any], bool]] = {
    "id": lambda value: isinstance(value, str),
    "key": lambda value: isinstance(value, str),
    "seed": lambda value: isinstance(value, int),
    "attempt": lambda value: isinstance(value, int),
    "status": lambda value: value in STATUSES,
    "phase": lambda value: value in PHASES,
    "parameters": lambda value: isinstance(value, dict),
    "measures": lambda value: isinstance(value, dict),
    "environment": lambda value: isinstance(value, dict),
    "warnings": lambda value: isinstance(value, list),
    "losses": lambda value: isinstance(value, list),
    "repeat": lambda value: isinstance(value, int),
    "position": lambda value: value is None or isinstance(value, int),
}


def to_line(record: Record) -> bytes:
    """Write a record as its line, the end of line included: ASCII, the schema first, null for what is not finite."""
    return (json.dumps(finite({"schema": SCHEMA, **asdict(record)}), allow_nan=False) + "\n").encode()


def from_line(line: bytes, where: Location | None = None) -> Record:
    """Read a line of this schema or of an older one; `where` it stands is for messages.

    Fields that this version does not know are left out.

    Raises:
        ValueError: it is damaged: no UTF-8, no JSON, or a field is missing or is not what it must be.
        BenchError: it is of a newer schema.
    """
    try:
        entry = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    entry = upgrade(entry, where)
    if missing := [name for name in REQUIRED if name not in entry]:
        raise ValueError(f"no {missing[0]}")
    if wrong := [name for name, check in CHECKS.items() if name in entry and not check(entry[name])]:
        raise ValueError(f"{wrong[0]} cannot be {entry[wrong[0]]!r:.40}")
    known = {name: entry[name] for name in FIELDS if name in entry}
    return Record(**known | {name: tuple(known.get(name) or ()) for name in ("warnings", "losses")})


def upgrade(entry: dict[str, Any], where: Location | None = None) -> dict[str, Any]:
    """Bring a line's object to this schema, step by step.

    Raises:
        ValueError: its schema is no number from 1 on.
        BenchError: its schema is newer than this program.
    """
    schema = entry.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise ValueError("no schema")
    if schema > SCHEMA:
        what = f"a record of schema {schema}, written by a newer qlora-bench; this one reads up to {SCHEMA}"
        raise BenchError([Problem(what, "upgrade qlora-bench, or give another --results folder", where)])
    for step in range(schema, SCHEMA):
        entry = UPGRADERS[step](entry)
    return entry


def histories(records: Iterable[Record]) -> dict[JobKey, list[Record]]:
    """Group records by their jobs, each group in the order of its attempts."""
    groups: dict[JobKey, list[Record]] = {}
    for record in records:
        groups.setdefault(record.job, []).append(record)
    return groups
