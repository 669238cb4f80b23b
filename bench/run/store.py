"""The folder of a matrix's results: records that outlive whatever happens to the run, and the files beside them."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from bench.errors import Location
from bench.run.records import Record, from_line, to_line

RECORDS = "records.jsonl"
MATRIX = "matrix.yaml"
ENVIRONMENT = "environment.json"
LOGS = "logs"


@dataclass(frozen=True)
class Contents:
    """What a file of records holds: those that can be read, in their order, and a sentence on each that cannot."""

    records: tuple[Record, ...]
    warnings: tuple[str, ...]


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
