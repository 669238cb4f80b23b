"""What a run asks of the machinery that starts its workers: this machine's processes, a script, or a cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.protocol import Request
from bench.run.slots import Slot

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Ending:
    """How a worker's process ended: its exit code, or minus the signal that killed it, and its last lines of stderr."""

    returncode: int
    last_words: tuple[str, ...] = ()


class Worker(Protocol):
    """One process that runs one cell. Nothing here waits, but for `kill`."""

    def messages(self) -> Sequence[Message]:
        """Take the messages that have come since the last call; after the worker's ending, all that are left."""

    def ending(self) -> Ending | None:
        """Tell how the process ended, or None while it runs."""

    def kill(self) -> None:
        """End the worker with all that it started, and let go of its pipes; harmless on one that has ended."""


class Executor(Protocol):
    def prepare(self, slot: Slot, log: Path) -> None:
        """Have a worker get ready for the next `start` with the same arguments: Python and libraries, not the GPU."""

    def start(self, request: Request, slot: Slot, log: Path) -> Worker:
        """Start a worker on a slot; what it says beside its messages is appended to the file `log`."""

    def discard(self, slot: Slot, log: Path) -> None:
        """End the worker that was prepared with these arguments; harmless where there is none."""

    def close(self) -> None:
        """End the workers that were prepared and never started."""

    def wait(self, timeout_s: float) -> None:
        """Wait until a worker has something to say, at most `timeout_s` seconds."""
