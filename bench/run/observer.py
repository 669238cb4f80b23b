"""What a run tells those who watch it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bench.matrix.plan import Job
from bench.run.executor import Message
from bench.run.records import Record
from bench.run.slots import Slot


class Observer(Protocol):
    """Called on the run's own thread, in order; what it raises ends the run."""

    def begun(self, due: Sequence[Job], kept: Sequence[Record], slots: Sequence[Slot]) -> None:
        """Hear that the run begins: it will do the jobs `due`; `kept` are the records of those that it need not do."""

    def started(self, slot: Slot, job: Job, attempt: int) -> None:
        """Hear that a worker has been started."""

    def told(self, slot: Slot, message: Message) -> None:
        """Hear a message of the protocol from the worker on a slot."""

    def finished(self, slot: Slot, record: Record, again: bool) -> None:
        """Hear that an attempt is over and recorded; `again`: the job will be tried once more."""

    def warned(self, warning: str) -> None:
        """Hear that something is odd with the folder of results, which does not stop the run."""


class Silent:
    """Watches and says nothing."""

    def begun(self, due: Sequence[Job], kept: Sequence[Record], slots: Sequence[Slot]) -> None: ...

    def started(self, slot: Slot, job: Job, attempt: int) -> None: ...

    def told(self, slot: Slot, message: Message) -> None: ...

    def finished(self, slot: Slot, record: Record, again: bool) -> None: ...

    def warned(self, warning: str) -> None: ...
