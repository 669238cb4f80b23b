from __future__ import annotations

import pytest

from bench.protocol import Request
from bench.run.scripted import Script, ScriptedClock, ScriptedExecutor, ScriptedWorker, dies, finishes, hangs
from bench.run.slots import Slot
from bench.run.supervise import EXIT_GRACE_S, Outcome, Supervision

REQUEST = Request("nf4", 0, {}, "cpu")


class Watched:
    """A supervised worker that follows a script, and what its observer was told."""

    def __init__(self, script: Script, timeout_s: float = 100.0) -> None:
        self.clock = ScriptedClock()
        self.executor = ScriptedExecutor(self.clock, lambda request, attempt: script)
        self.worker: ScriptedWorker = self.executor.start(REQUEST, Slot("cpu"), log=None)
        self.told: list = []
        self.supervision = Supervision(self.worker, self.clock, timeout_s, self.told.append)

    def until(self, end_s: float) -> Outcome | None:
        while self.clock.elapsed_s < end_s:
            if outcome := self.supervision.check():
                return outcome
            self.executor.wait(min(0.2, end_s - self.clock.elapsed_s))
        return self.supervision.check()


def test_the_result_of_a_worker_becomes_its_outcome():
    end = {
        "message": "a note", "hint": "a hint", "measures": {"load_s": 1.5}, "losses": (2.0, 1.0),
        "environment": {"torch": "2.13"},
    }  # fmt: skip
    watched = Watched(finishes("oom", 8.0, "train", peak_allocated_bytes=99, **end))
    outcome = watched.until(20)
    assert outcome == Outcome("oom", "train", 8.0, last_peak_allocated_bytes=99, **end)
    assert [message["kind"] for message in watched.told] == ["phase", "phase", "end"]
    assert watched.clock.elapsed_s == 8.0


@pytest.mark.parametrize(
    ("returncode", "words"),
    [
        (-9, "the worker was killed by SIGKILL in phase train"),
        (-11, "the worker was killed by SIGSEGV in phase train"),
        (-50, "the worker was killed by signal 50 in phase train"),
        (3, "the worker ended without a result (exit code 3) in phase train"),
        (0, "the worker ended without a result (exit code 0) in phase train"),
    ],
)
def test_a_worker_that_ends_without_a_result_has_crashed_and_its_last_words_are_kept(returncode, words):
    outcome = Watched(dies(5.0, returncode, "one", "two")).until(20)
    assert (outcome.status, outcome.phase, outcome.wall_s) == ("crashed", "train", 5.0)
    assert outcome.message == f"{words}\none\ntwo"


def test_the_hint_of_a_killed_worker_speaks_of_memory():
    assert "out of memory" in Watched(dies(5.0, -9)).until(20).hint
    assert "native library" in Watched(dies(5.0, -11)).until(20).hint
    assert "log" in Watched(dies(5.0, 1)).until(20).hint


def test_a_death_is_told_with_the_progress_and_the_peak_before_it():
    progress = {"kind": "progress", "phase": "train", "done": 12, "total": 313, "peak_allocated_bytes": 7_000}
    outcome = Watched(Script(((1.0, progress),), 2.0, -9)).until(5)
    assert outcome.message == "the worker was killed by SIGKILL in phase train (12 of 313)"
    assert outcome.last_peak_allocated_bytes == 7_000


def test_a_worker_that_takes_too_long_is_killed():
    watched = Watched(hangs(), timeout_s=30.0)
    assert watched.until(29.9) is None
    outcome = watched.until(60)
    assert (outcome.status, outcome.phase) == ("timeout", "load")
    assert outcome.message == "not done after 30 s, in phase load"
    assert watched.worker.killed_s == pytest.approx(30.0, abs=0.5)


def test_a_worker_that_hangs_after_its_result_is_killed_and_the_result_stands():
    script = Script(finishes("ok", 4.0, measures={"load_s": 2.0}).messages)
    watched = Watched(script, timeout_s=5.0)
    outcome = watched.until(60)
    assert (outcome.status, outcome.wall_s, outcome.measures) == ("ok", 4.0, {"load_s": 2.0})
    assert watched.worker.killed_s == pytest.approx(4.0 + EXIT_GRACE_S, abs=0.5)


def test_a_result_stands_though_the_process_died_of_a_signal_afterwards():
    script = Script(finishes("ok", 4.0).messages, 5.0, -11)
    assert Watched(script).until(60).status == "ok"


def test_only_the_first_result_counts():
    ends = ({"kind": "end", "status": status, "phase": "train"} for status in ("diverged", "ok"))
    assert Watched(Script(tuple(enumerate(ends)), 3.0)).until(9).status == "diverged"


@pytest.mark.parametrize(
    "babble", [{}, {"loss": 0.3}, {"kind": 7}, {"kind": ["end"]}, {"kind": "end", "status": "fine", "phase": []}]
)
def test_what_is_no_message_of_the_protocol_is_no_result(babble):
    assert Watched(Script(((1.0, babble),), 2.0)).until(9).status == "crashed"


def test_an_interrupted_worker_is_killed():
    watched = Watched(dies(50.0, 1))
    assert watched.until(10) is None
    outcome = watched.supervision.interrupt()
    assert (outcome.status, outcome.phase, outcome.wall_s) == ("interrupted", "train", 10.0)
    assert watched.worker.killed_s == 10.0


def test_a_result_that_came_before_the_interruption_stands():
    watched = Watched(Script(finishes("ok", 4.0).messages))
    watched.clock.elapsed_s = 5.0
    assert watched.supervision.interrupt().status == "ok"
