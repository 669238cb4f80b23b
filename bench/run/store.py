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
from bench.matrix.wording import again
from bench.protocol import EXAMPLES, LAYERS, LOG_LIKELIHOODS
from bench.run.records import Record, from_line, to_line

RECORDS = "records.jsonl"
MATRIX = "matrix.yaml"
PLAN = "plan.json"
ENVIRONMENT = "environment.json"
LOGS = "logs"
SHARED = "shared"  # what cells of this run leave for one another; made again where it is missing
EVIDENCE = (EXAMPLES, LOG_LIKELIHOODS, LAYERS)
# What a fresh start puts aside: the records, and what their runs kept beside them.
KEPT = (RECORDS, *EVIDENCE)

PLAN_SCHEMA = 1


@dataclass(frozen=True)
class Contents:
    """What a file of records holds: those that can be read, in their order, and a sentence on each that cannot."""

    records: tuple[Record, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Planned:
    """The cells of a matrix as it was last run, ids by their keys, the id of its baseline, and the labels to watch."""

    baseline: str | None
    ids: Mapping[str, str]
    watch_pairs: tuple[tuple[str, str], ...] = ()


def evidence_name(key: str, seed: int, repeat: int) -> str:
    """Name the files of a run in the folders `EXAMPLES`, `LOG_LIKELIHOODS` and `LAYERS`, without `.parquet`.

    Another attempt at the same job writes over them, or leaves those of an earlier one where it fails before. A file in
    `EXAMPLES` belongs to the record whose environment holds its hash (`examples_sha256`); of the others no record has
    a hash.
    """
    return f"{key}-s{seed}{again(repeat, '-')}"


def log_name(cell_id: str, seed: int, repeat: int) -> str:
    """Name the file in `LOGS` that the workers of a job write to, one attempt after the other."""
    return f"{cell_id}-s{seed}{again(repeat, '-')}.log"


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


def set_aside(folder: Path, now: datetime) -> Path | None:
    """Rename the records of a folder to `records-<date>-<time>-<number>.jsonl`, and what is kept beside them alike.

    `examples` becomes `examples-<date>-<time>-<number>`, and so on: the next runs would write over its files, which
    bear the same keys and seeds. Return where the records are now; None if there were none.
    """
    for number in count(1):
        stamp = f"{now:%Y%m%d-%H%M%S}-{number}"
        moves = {path: path.with_stem(f"{path.stem}-{stamp}") for path in (folder / name for name in KEPT)}
        if not any(aside.exists() for aside in moves.values()):
            break
    found = {path: aside for path, aside in moves.items() if path.exists()}
    for path, aside in found.items():
        path.rename(aside)
    return found.get(folder / RECORDS)


def remove_drafts(folder: Path) -> None:
    """Remove what workers that were killed left of files that they wrote; only who holds the folder's lock may.

    Raises:
        OSError: one cannot be removed.
    """
    for name in EVIDENCE:
        for draft in (folder / name).glob(".*.parquet.*"):
            draft.unlink(missing_ok=True)


def write_plan(path: Path, matrix: Matrix) -> None:
    """Write which cells a matrix has, for those who read its records later.

    Raises:
        OSError: the file cannot be written.
    """
    content = {
        "schema": PLAN_SCHEMA,
        "baseline": matrix.baseline,
        "watch_pairs": matrix.watch_pairs,
        "cells": [{"id": cell.id, "key": cell.key} for cell in matrix.cells],
    }
    write_atomically(path, json.dumps(content, indent=1) + "\n")


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
        ids = {str(cell["key"]): str(cell["id"]) for cell in plan["cells"]}
        pairs = tuple((str(one), str(other)) for one, other in plan.get("watch_pairs", ()))
        return Planned(plan["baseline"], ids, pairs)
    except (AttributeError, LookupError, TypeError, RecursionError) as error:
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
