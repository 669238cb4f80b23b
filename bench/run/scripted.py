"""Workers that follow a script on a clock of their own: a whole run in no time, without processes and without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path
from typing import Any

from bench.protocol import Phase, Request, Status
from bench.run.executor import Ending, Message
from bench.run.slots import Slot


@dataclass
class ScriptedClock:
    """A clock that stands still until it is moved."""

    elapsed_s: float = 0.0

    def monotonic(self) -> float:
        return self.elapsed_s

    def now(self) -> datetime:
        return datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=self.elapsed_s)


@dataclass(frozen=True)
class Script:
    """What a worker does: messages, each at its second after the start, and its ending, which may never come."""

    messages: tuple[tuple[float, Message], ...] = ()
    ends_at_s: float = inf
    returncode: int = 0
    last_words: tuple[str, ...] = ()


def finishes(status: Status, at_s: float, phase: Phase = "score_after", **end: Any) -> Script:
    """Script a worker that loads, trains, and sends a result; `end` are further fields of its last message."""
    return Script(
        (
            (0.0, {"kind": "phase", "phase": "load", "peak_allocated_bytes": None}),
            (at_s / 2, {"kind": "phase", "phase": "train", "peak_allocated_bytes": None}),
            (at_s, {"kind": "end", "status": status, "phase": phase, **end}),
        ),
        ends_at_s=at_s,
    )


def dies(at_s: float, returncode: int, *last_words: str) -> Script:
    """Script a worker that ends in the middle of training without a result."""
    return Script(((0.0, {"kind": "phase", "phase": "train"}),), at_s, returncode, last_words)


def hangs() -> Script:
    """Script a worker that starts to load and is never heard of again."""
    return Script(((0.0, {"kind": "phase", "phase": "load"}),))


@dataclass
class ScriptedWorker:
    """A worker that was started at `started_s` by `clock`; `killed_s` says when it was killed, if it was alive."""

    request: Request
    slot: Slot
    script: Script
    clock: ScriptedClock
    started_s: float
    killed_s: float | None = None
    _taken: int = 0

    def messages(self) -> list[Message]:
        due = [message for at_s, message in self.script.messages if self.started_s + at_s <= self.clock.elapsed_s]
        new, self._taken = due[self._taken :], len(due)
        return new

    def ending(self) -> Ending | None:
        ended = self.started_s + self.script.ends_at_s <= self.clock.elapsed_s
        return Ending(self.script.returncode, self.script.last_words) if ended else None

    def kill(self) -> None:
        if self.ending() is None and self.killed_s is None:
            self.killed_s = self.clock.elapsed_s

    def next_event_s(self) -> float:
        """Return the time at which it next says something or ends; infinite where nothing more is to come."""
        if self.killed_s is not None:
            return inf
        times = (self.started_s + at_s for at_s in (*(at_s for at_s, _ in self.script.messages), self.script.ends_at_s))
        return min((time for time in times if time > self.clock.elapsed_s), default=inf)


def _job(request: Request) -> tuple[str, int, str]:
    return request.id, request.seed, request.evidence_name


class ScriptedExecutor:
    """Starts workers that follow `script(request, attempt)`, attempts counted from 1; `started` keeps them in order.

    `prepared` are the slots and logs of the workers that were prepared, each with its second; `waiting` are those of
    them that were not started yet.
    """

    def __init__(self, clock: ScriptedClock, script: Callable[[Request, int], Script]) -> None:
        self._clock = clock
        self._script = script
        self.started: list[ScriptedWorker] = []
        self.prepared: list[tuple[float, Slot, Path]] = []
        self.waiting: set[tuple[Slot, Path]] = set()

    def prepare(self, slot: Slot, log: Path) -> None:
        self.prepared.append((self._clock.elapsed_s, slot, log))
        self.waiting.add((slot, log))

    def discard(self, slot: Slot, log: Path) -> None:
        self.waiting.discard((slot, log))

    def close(self) -> None:
        self.waiting.clear()

    def start(self, request: Request, slot: Slot, log: Path) -> ScriptedWorker:
        self.waiting.discard((slot, log))
        attempt = 1 + sum(_job(worker.request) == _job(request) for worker in self.started)
        worker = ScriptedWorker(request, slot, self._script(request, attempt), self._clock, self._clock.elapsed_s)
        self.started.append(worker)
        return worker

    def wait(self, timeout_s: float) -> None:
        """Move the clock to the next thing that happens, at most `timeout_s` seconds on."""
        until = self._clock.elapsed_s + timeout_s
        self._clock.elapsed_s = min([until, *(worker.next_event_s() for worker in self.started)])
