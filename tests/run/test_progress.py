from __future__ import annotations

import pytest

from bench.run.progress import Progress
from bench.run.scripted import ScriptedClock

from .examples import GPUS, plan_of, record


@pytest.fixture
def progress():
    return Progress(ScriptedClock())


def ended(id_, wall_s, **changes):
    return record(id=id_, key=f"key of {id_}", wall_s=wall_s, **changes)


def test_nothing_is_known_of_the_time_left_before_a_cell_has_ended_well(progress):
    progress.begin(plan_of("a").jobs, [ended("b", 2.0, status="invalid")], GPUS[:1])
    assert progress.left_s() is None


def test_the_time_left_is_that_of_the_same_cell_or_of_cells_on_average(progress):
    jobs = plan_of("a", "b", "c", seeds=(0, 1)).jobs
    progress.begin(jobs[3:], [ended("a", 10.0), ended("b", 40.0)], GPUS[:1])
    assert (progress.done, progress.total) == (2, 5)
    assert progress.left_s() == 10.0 + 40.0 + 25.0


def test_slots_share_the_time_left(progress):
    progress.begin(plan_of("a", "b").jobs, [ended("z", 30.0)], GPUS[:2])
    assert progress.left_s() == 30.0


def test_what_a_running_cell_has_done_is_taken_off_and_never_more(progress):
    (job,) = plan_of("a").jobs
    progress.begin([job], [ended("a", 30.0)], GPUS[:1])
    progress.start(GPUS[0], job)
    progress.clock.elapsed_s = 12.0
    assert progress.left_s() == 18.0
    progress.clock.elapsed_s = 99.0
    assert progress.left_s() == 0.0


def test_a_cell_that_is_tried_again_is_not_done(progress):
    (job,) = plan_of("a").jobs
    progress.begin([job], [], GPUS[:1])
    progress.start(GPUS[0], job)
    progress.finish(GPUS[0], ended("a", 5.0, status="crashed"), again=True)
    assert (progress.done, progress.statuses.total(), progress.activities) == (0, 0, {})
    progress.start(GPUS[0], job)
    progress.finish(GPUS[0], ended("a", 8.0), again=False)
    assert (progress.done, dict(progress.statuses), progress.left_s()) == (1, {"ok": 1}, 0.0)


def test_an_interrupted_cell_is_not_done(progress):
    (job,) = plan_of("a").jobs
    progress.begin([job], [], GPUS[:1])
    progress.start(GPUS[0], job)
    progress.finish(GPUS[0], ended("a", 5.0, status="interrupted"), again=False)
    assert (progress.done, progress.total) == (0, 1)


def test_a_slot_shows_phase_and_amount(progress):
    (job,) = plan_of("a").jobs
    progress.begin([job], [], GPUS[:1])
    progress.start(GPUS[0], job)
    activity = progress.activities["gpu0"]
    progress.hear(GPUS[0], {"kind": "progress", "phase": "train", "done": 3, "total": 9})
    assert (activity.phase, activity.done, activity.total) == ("train", 3, 9)
    progress.hear(GPUS[0], {"kind": "phase", "phase": "score_after"})
    assert (activity.phase, activity.done, activity.total) == ("score_after", 0, 0)
