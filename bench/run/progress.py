"""How far a run is: what is done, what each slot is doing, and how long the rest may take."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from bench.matrix.plan import Job
from bench.protocol import Status
from bench.run.clock import Clock
from bench.run.executor import Message
from bench.run.records import Record
from bench.run.slots import Slot


@dataclass
class Activity:
    """What a slot is doing: `done` of `total` units of work of a phase; a total of 0 says that there is no telling."""

    job: Job
    started: float
    phase: str = "start"
    done: int = 0
    total: int = 0


@dataclass
class Progress:
    """The state of a run, fed by its observer. `waiting` counts jobs by the key of their cell."""

    clock: Clock
    slots: tuple[Slot, ...] = ()
    total: int = 0
    done: int = 0
    statuses: Counter[Status] = field(default_factory=Counter)
    activities: dict[str, Activity] = field(default_factory=dict)
    waiting: Counter[str] = field(default_factory=Counter)
    walls_s: dict[str, list[float]] = field(default_factory=dict)

    def begin(self, due: Sequence[Job], kept: Sequence[Record], slots: Sequence[Slot]) -> None:
        self.slots = tuple(slots)
        self.total = len(due) + len(kept)
        self.waiting.update(job.cell.key for job in due)
        for record in kept:
            self._count(record)

    def start(self, slot: Slot, job: Job) -> None:
        self.waiting[job.cell.key] -= 1
        self.activities[slot.name] = Activity(job, self.clock.monotonic())

    def hear(self, slot: Slot, message: Message) -> None:
        activity = self.activities[slot.name]
        activity.phase = message.get("phase") or activity.phase
        activity.done, activity.total = message.get("done") or 0, message.get("total") or 0

    def finish(self, slot: Slot, record: Record, again: bool) -> None:
        del self.activities[slot.name]
        if again or record.status == "interrupted":
            self.waiting[record.key] += 1
        else:
            self._count(record)

    def elapsed_s(self, activity: Activity) -> float:
        return self.clock.monotonic() - activity.started

    def left_s(self) -> float | None:
        """Estimate the seconds to the end; None while none has ended well.

        A job takes what its cell took with other seeds, or else what cells take on average that end well.
        """
        if not self.walls_s:
            return None
        means = {key: fmean(walls) for key, walls in self.walls_s.items()}
        anyone = fmean(means.values())
        to_come = sum(number * means.get(key, anyone) for key, number in self.waiting.items())
        under_way = sum(
            max(0.0, means.get(activity.job.cell.key, anyone) - self.elapsed_s(activity))
            for activity in tuple(self.activities.values())
        )
        return (to_come + under_way) / len(self.slots)

    def _count(self, record: Record) -> None:
        self.done += 1
        self.statuses[record.status] += 1
        if record.status == "ok":
            self.walls_s.setdefault(record.key, []).append(record.wall_s)
