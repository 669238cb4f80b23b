"""Which jobs are still to be run, by the records that there are."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from bench.matrix.plan import Job
from bench.protocol import WORTH_ANOTHER_TRY, Status
from bench.run.records import JobKey, Record

MOST_CRASHES = 2


def is_due(history: Sequence[Record], retry: Collection[Status] = ()) -> bool:
    """Tell whether a job that has these records, in their order, is to be run."""
    if not history or history[-1].status in retry:
        return True
    status = history[-1].status
    crashes = sum(record.status == "crashed" for record in history)
    return status in WORTH_ANOTHER_TRY and (status != "crashed" or crashes < MOST_CRASHES)


def due_jobs(
    jobs: Sequence[Job], history: Mapping[JobKey, Sequence[Record]], retry: Collection[Status] = ()
) -> list[Job]:
    """Return the jobs that are to be run, in their order.

    A baseline that has no second result is run again only in a block that something else is due in, or that has
    records with a position. It could show no drift of a block which an earlier version, without blocks, completed.
    """
    due = [job for job in jobs if is_due(history.get(job.key, ()), retry)]
    open_blocks = {job.seed for job in due if not job.repeat} | {
        job.seed for job in jobs if any(record.position is not None for record in history.get(job.key, ()))
    }
    return [job for job in due if not job.repeat or job.seed in open_blocks]
