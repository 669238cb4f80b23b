"""The folder of a matrix's results: records that outlive whatever happens to the run, and the files beside them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from bench.errors import Location
from bench.matrix.expand import Matrix
from bench.run.records import Record, from_line, to_line

RECORDS = "records.jsonl"
MATRIX = "matrix.yaml"
PLAN = "plan.json"
ENVIRONMENT = "environment.json"
LOGS = "logs"
SHARED = "shared"  # what cells of this run leave for one another; made again where it is missing

PLAN_SCHEMA = 1


@dataclass(frozen=True)
class Contents:
    """What a file of records holds: those that can be read, in their order, and a sentence on each that cannot."""

    records: tuple[Record, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """The cells of a matrix as it was last run, ids by their keys, and the id of its baseline."""

    baseline: str | None
    ids: Mapping[str, str]


def read_records(path: Path) -> Contents:
    """Read a file of records; one that does not exist holds none. The file is left as it is.

    Raises:
        BenchError: a record is of a newer schema.
        OSError: the file cannot be read.
    """
    *lines, tail = path.read_bytes().split(b"\n") if path.exists() else [b""]
    records, warnings = [], []
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                records.append(from_line(line, Location(str(path), number, 1)))
        except ValueError as error:
            warnings.append(f"{path}:{number}: skipped a damaged record ({error}); its cell will run again")
    if tail and (last := _whole(tail)):
        records.append(last)
    elif tail:
        warnings.append(f"{path}:{len(lines) + 1}: dropped a record that was cut short; its cell will run again")
    return Contents(tuple(records), tuple(warnings))


def append_record(path: Path, record: Record) -> None:
    """Append a record with one write, and wait until the disk has it. A torn last line is cut off before.

    Raises:
        OSError: the disk is full, or the file cannot be written; what it held before is unharmed.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        _mend(path, descriptor)
        line = to_line(record)
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_records_aside(path: Path, now: datetime) -> Path | None:
    """Rename a file of records to `records-<date>-<time>-<number>.jsonl`; None if there is no file."""
    if not path.exists():
        return None
    names = (path.with_stem(f"{path.stem}-{now:%Y%m%d-%H%M%S}-{number}") for number in count(1))
    return path.rename(next(name for name in names if not name.exists()))


def write_plan(path: Path, matrix: Matrix) -> None:
    """Write which cells a matrix has, for those who read its records later.

    Raises:
        OSError: the file cannot be written.
    """
    cells = [{"id": cell.id, "key": cell.key} for cell in matrix.cells]
    plan = {"schema": PLAN_SCHEMA, "baseline": matrix.baseline, "cells": cells}
    write_atomically(path, json.dumps(plan, indent=1) + "\n")


def read_plan(path: Path) -> Planned | None:
    """Read what `write_plan` wrote; None if there is no file.

    Raises:
        ValueError: it is damaged, or of another schema.
        OSError: the file cannot be read.
    """
    if not path.exists():
        return None
    try:
        plan = json.loads(path.read_bytes())
        if plan["schema"] != PLAN_SCHEMA:
            raise ValueError(f"its schema is {plan['schema']}, not {PLAN_SCHEMA}")
        return Planned(plan["baseline"], {str(cell["key"]): str(cell["id"]) for cell in plan["cells"]})
    except (LookupError, TypeError, RecursionError) as error:
        raise ValueError("it holds no plan") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, finds the old text or the new one and nothing between."""
    draft = path.with_name(f".{path.name}.draft")
    with draft.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _mend(path: Path, descriptor: int) -> None:
    size = os.fstat(descriptor).st_size
    if size == 0 or os.pread(descriptor, 1, size - 1) == b"\n":
        return
    data = path.read_bytes()
    start = data.rfind(b"\n") + 1
    if _whole(data[start:]):
        os.write(descriptor, b"\n")
    else:
        os.ftruncate(descriptor, start)


def _whole(tail: bytes) -> Record | None:
    try:
        return from_line(tail)
    except ValueError:
        return None
