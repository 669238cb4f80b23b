"""Run a plan: every job that has no result yet, one at a time on each slot, each attempt recorded as it ends."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.errors import BenchError
from bench.matrix.plan import Job, Plan
from bench.matrix.wording import again
from bench.protocol import PROTOCOL_VERSION, Request, Status
from bench.run.clock import Clock, SystemClock, timestamp
from bench.run.data import find_data
from bench.run.due import due_jobs, is_due
from bench.run.environment import machine_facts, slot_facts
from bench.run.executor import Executor, Worker
from bench.run.gpus import visible_gpus
from bench.run.local import LocalExecutor
from bench.run.lock import hold
from bench.run.observer import Observer, Silent
from bench.run.records import JobKey, Record, histories
from bench.run.slots import Slot, slots_for
from bench.run.store import (
    ENVIRONMENT,
    LOGS,
    MATRIX,
    PLAN,
    RECORDS,
    SHARED,
    append_record,
    evidence_name,
    log_name,
    read_records,
    remove_drafts,
    set_aside,
    write_atomically,
    write_plan,
)
from bench.run.supervise import Outcome, Supervision

TICK_S = 0.2  # how late a timeout, or a wish to stop, may be noticed


@dataclass(frozen=True)
class RunSummary:
    """What a run leaves. `records` are the last ones of the plan's jobs, in its order, whenever they were made."""

    folder: Path
    records: tuple[Record, ...]
    attempts_count: int
    interrupted: bool

    def count(self, status: Status) -> int:
        return sum(record.status == status for record in self.records)


def run_plan(
    plan: Plan,
    results: Path,
    *,
    slots: Sequence[Slot] | None = None,
    data_dir: Path | None = None,
    fresh: bool = False,
    retry: Collection[Status] = (),
    trust_remote_code: bool = False,
    observer: Observer | None = None,
    stop: Callable[[], bool] = lambda: False,
    executor: Executor | None = None,
    clock: Clock | None = None,
) -> RunSummary:
    """Run the jobs of `plan` that have no result yet.

    Records go to the folder of `results` that bears the matrix's name; the run writes nothing outside of it, and its
    workers nothing but what the user's cache keeps (the packaged checkpoint, tokens). A job with a result is left
    alone, unless its status is in `retry`; a crash is tried again once, an interrupted job with the next run. `fresh`
    puts earlier records aside, with the examples and layers kept beside them, and starts over. `data_dir` (or
    `QLORA_BENCH_DATA`) holds tasks by name. `trust_remote_code` lets models run code of their own. When `stop` turns
    true, the workers are killed and their jobs recorded as interrupted.

    Raises:
        BenchError: data is missing (nothing has been written then), another run holds the folder, its records are of a
            newer schema, or it cannot be written any more; what was finished is kept.
    """
    slots = slots_for(visible_gpus()) if slots is None else slots
    data_dir = find_data(plan, data_dir)
    clock = clock or SystemClock()
    folder = results / plan.matrix.name
    try:
        (folder / LOGS).mkdir(parents=True, exist_ok=True)
        with hold(folder, clock.now()):
            desk = _Desk(
                plan, folder, data_dir, trust_remote_code, executor or LocalExecutor(), clock, observer or Silent()
            )
            desk.open_folder(slots, fresh)
            return desk.work_through(slots, retry, stop)
    except OSError as error:
        what = f"the run in {folder} cannot go on: {error}"
        raise BenchError(what, "see to its space and permissions and run again: what was finished is kept") from error


@dataclass(frozen=True)
class _Next:
    """An attempt that is about to be made. `prepared`: its worker was started before its turn came."""

    job: Job
    slot: Slot
    number: int
    log: Path
    prepared: bool = False


@dataclass(frozen=True)
class _Attempt:
    """An attempt under way."""

    next: _Next
    started_at: str
    supervision: Supervision
    worker: Worker


@dataclass
class _Desk:
    """Where attempts are handed out and their records come in."""

    plan: Plan
    folder: Path
    data_dir: Path | None
    trust_remote_code: bool
    executor: Executor
    clock: Clock
    observer: Observer
    machine: Mapping[str, Any] = field(default_factory=machine_facts)
    history: dict[JobKey, list[Record]] = field(default_factory=dict)
    running: list[_Attempt] = field(default_factory=list)
    prepared: dict[Slot, _Next] = field(default_factory=dict)
    attempts_count: int = 0

    def open_folder(self, slots: Sequence[Slot], fresh: bool) -> None:
        remove_drafts(self.folder)
        if fresh and (aside := set_aside(self.folder, self.clock.now())):
            self.observer.warned(f"earlier records are now in {aside}")
        if fresh:
            shutil.rmtree(self.folder / SHARED, ignore_errors=True)
        contents = read_records(self.folder / RECORDS)
        for warning in contents.warnings:
            self.observer.warned(warning)
        self.history = histories(contents.records)
        environment = {**self.machine, "slots": {slot.name: slot_facts(slot) for slot in slots}}
        write_atomically(self.folder / MATRIX, self.plan.matrix.text)
        write_plan(self.folder / PLAN, self.plan.matrix)
        write_atomically(self.folder / ENVIRONMENT, json.dumps(environment, indent=2) + "\n")

    def work_through(self, slots: Sequence[Slot], retry: Collection[Status], stop: Callable[[], bool]) -> RunSummary:
        keys = [job.key for job in self.plan.jobs]
        due = {job.key: job for job in due_jobs(self.plan.jobs, self.history, retry)}
        kept = [self.history[key][-1] for key in keys if key not in due and key in self.history]
        self.observer.begun(tuple(due.values()), kept, slots)
        queue = deque(due.values())
        try:
            while (queue or self.prepared or self.running) and not stop():
                self._fill(slots, queue)
                self.executor.wait(TICK_S)
                self._collect(queue)
                self._look_ahead(queue)
            ends = [self._conclude(attempt, attempt.supervision.interrupt()) for attempt in tuple(self.running)]
        finally:
            for attempt in self.running:
                attempt.worker.kill()
            self.executor.close()
        records = tuple(self.history[key][-1] for key in keys if key in self.history)
        interrupted = bool(queue or self.prepared) or any(record.status == "interrupted" for record in ends)
        return RunSummary(self.folder, records, self.attempts_count, interrupted)

    def _fill(self, slots: Sequence[Slot], queue: deque[Job]) -> None:
        taken = {attempt.next.slot for attempt in self.running}
        for slot in slots:
            if slot in taken:
                continue
            if slot in self.prepared:
                self._start(self.prepared.pop(slot))
            elif queue:
                self._start(self._next(queue.popleft(), slot))
            elif self.prepared:  # better at once here than behind what still runs there
                elsewhere, coming = self.prepared.popitem()
                self.executor.discard(elsewhere, coming.log)
                self._start(replace(coming, slot=slot, prepared=False))

    def _look_ahead(self, queue: deque[Job]) -> None:
        """Have a GPU's next worker import its libraries, which takes seconds, while the one before needs the GPU only.

        On the CPU the two would compete.
        """
        for slot in [attempt.next.slot for attempt in self.running if attempt.supervision.spares_the_host]:
            if queue and slot.gpu and slot not in self.prepared:
                self.prepared[slot] = coming = self._next(queue.popleft(), slot)
                with suppress(OSError):  # then it is started in its turn
                    self.executor.prepare(slot, coming.log)
                    self.prepared[slot] = replace(coming, prepared=True)

    def _next(self, job: Job, slot: Slot) -> _Next:
        number = 1 + max((record.attempt for record in self.history.get(job.key, ())), default=0)
        return _Next(job, slot, number, self.folder / LOGS / log_name(job.cell.id, job.seed, job.repeat))

    def _start(self, coming: _Next) -> None:
        job, cell, slot = coming.job, coming.job.cell, coming.slot
        request = Request(
            cell.id,
            job.seed + cell.parameters.seed_offset,  # the record keeps the seed of the plan, by which cells are paired
            cell.parameters.model_dump(mode="json"),
            slot.device,
            data_dir=str(self.data_dir) if self.data_dir else None,
            shared_dir=str((self.folder / SHARED).absolute()),
            evidence_dir=str(self.folder.absolute()),
            evidence_name=evidence_name(*job.key),
            trust_remote_code=self.trust_remote_code,
        )
        started_at = timestamp(self.clock.now())
        with coming.log.open("a", encoding="utf-8") as file:
            run = f"{cell.id}, seed {job.seed}{again(job.repeat)}, attempt {coming.number}"
            file.write(f"=== {run}, on {slot.name}, {started_at}\n")
        worker = self.executor.start(request, slot, coming.log)
        supervision = Supervision(
            worker, self.clock, cell.parameters.timeout, lambda message: self.observer.told(slot, message)
        )
        self.running.append(_Attempt(coming, started_at, supervision, worker))
        self.attempts_count += 1
        self.observer.started(slot, job, coming.number)

    def _collect(self, queue: deque[Job]) -> None:
        for attempt in tuple(self.running):
            if (outcome := attempt.supervision.check()) is None:
                continue
            record = self._conclude(attempt, outcome)
            if self._is_tried_again(record):
                queue.appendleft(attempt.next.job)

    def _is_tried_again(self, record: Record) -> bool:
        return record.status == "crashed" and is_due(self.history[record.job])

    def _conclude(self, attempt: _Attempt, outcome: Outcome) -> Record:
        made, cell = attempt.next, attempt.next.job.cell
        facts = {**self.machine, **slot_facts(made.slot), "worker_prepared": made.prepared}
        record = Record(
            id=cell.id,
            key=cell.key,
            seed=made.job.seed,
            attempt=made.number,
            matrix=self.plan.matrix.name,
            parameters=cell.parameters.model_dump(mode="json"),
            protocol=PROTOCOL_VERSION,
            started_at=attempt.started_at,
            slot=made.slot.name,
            repeat=made.job.repeat,
            position=made.job.position,
            **asdict(outcome) | {"environment": facts | dict(outcome.environment)},
        )
        append_record(self.folder / RECORDS, record)
        self.running.remove(attempt)
        self.history.setdefault(record.job, []).append(record)
        self.observer.finished(made.slot, record, self._is_tried_again(record))
        return record
