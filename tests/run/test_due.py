from __future__ import annotations

import pytest

from bench.run.due import due_jobs, is_due
from bench.run.records import histories

from .examples import plan_of, record


@pytest.mark.parametrize(
    ("statuses", "due"),
    [
        ([], True),
        (["ok"], False),
        (["oom"], False),
        (["timeout"], False),
        (["diverged"], False),
        (["invalid"], False),
        (["crashed"], True),
        (["crashed", "crashed"], False),
        (["crashed", "interrupted"], True),
        (["crashed", "interrupted", "crashed"], False),
        (["interrupted", "interrupted"], True),
        (["crashed", "ok"], False),
    ],
)
def test_what_is_due(statuses, due):
    history = [record(status=status) for status in statuses]
    assert is_due(history) is due
    assert is_due(history, {"ok", "oom", "timeout", "diverged", "invalid", "crashed", "interrupted"})


@pytest.mark.parametrize(
    ("ended", "due"),
    [
        ([], ["a", "b", "a again"]),
        (["a", "b"], []),
        (["a"], ["b", "a again"]),
        (["a 1", "b"], ["a again"]),
        (["a", "b 2"], ["a again"]),
        (["a 1", "b 2", "a again"], []),
        (["a", "b", "a again"], []),
    ],
)
def test_what_is_due_of_a_block(ended, due):
    """`a` is a record without a position, `a 1` one with it."""
    made = [
        record(key=f"key of {name[0]}", repeat=int("again" in name), position=3 if " " in name else None)
        for name in ended
    ]
    jobs = due_jobs(plan_of("a", "b", baseline="a").jobs, histories(made))
    assert [job.cell.id + " again" * job.repeat for job in jobs] == due
