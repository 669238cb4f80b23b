"""One run at a time in a folder of results."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from bench.errors import BenchError
from bench.run.clock import timestamp

LOCK = ".lock"


@contextmanager
def hold(folder: Path, now: datetime) -> Iterator[None]:
    """Hold the lock of a folder. The kernel lets go of it when this process ends, however it ends.

    Raises:
        BenchError: another process holds it; says which, where and since when.
        OSError: the file cannot be written, or the file system has no locks.
    """
    path = folder / LOCK
    descriptor = _acquire(path)
    try:
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": timestamp(now)}
        os.truncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(descriptor)
            raise BenchError(f"{path.parent} is in use by {_holder(path)}", "wait for it, or end it") from error
        except OSError:
            os.close(descriptor)
            raise
        # The last holder may have removed the file after it was opened here: a lock on that one guards nothing.
        if _is_still(path, descriptor):
            return descriptor
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_bytes())
        return f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
