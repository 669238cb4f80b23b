from __future__ import annotations

from math import inf

from bench.protocol import Request
from bench.run.executor import Ending
from bench.run.scripted import Script, ScriptedClock, ScriptedExecutor, dies, finishes, hangs

from .examples import CPU


def start(clock, *scripts):
    executor = ScriptedExecutor(clock, lambda request, attempt: scripts[request.seed])
    return executor, [executor.start(Request("a", seed, {}, "cpu"), CPU, log=None) for seed in range(len(scripts))]


def test_the_clock_moves_to_what_happens_next_in_any_worker():
    clock = ScriptedClock()
    executor, (early, late) = start(clock, dies(3.0, -9, "words"), finishes("ok", 8.0))
    times = []
    while late.ending() is None:
        executor.wait(100.0)
        times.append(clock.elapsed_s)
    assert times == [3.0, 4.0, 8.0]
    assert early.ending() == Ending(-9, ("words",))


def test_the_clock_moves_no_further_than_asked():
    clock = ScriptedClock()
    executor, _ = start(clock, hangs())
    executor.wait(0.5)
    assert clock.elapsed_s == 0.5


def test_each_message_is_given_once_when_it_is_due():
    clock = ScriptedClock()
    messages = ((1.0, {"kind": "phase"}), (2.0, {"kind": "end"}))
    _, (worker,) = start(clock, Script(messages))
    assert worker.messages() == []
    clock.elapsed_s = 1.0
    assert worker.messages() == [{"kind": "phase"}]
    clock.elapsed_s = 9.0
    assert worker.messages() == [{"kind": "end"}]
    assert worker.messages() == []


def test_a_killed_worker_has_nothing_more_to_come():
    clock = ScriptedClock()
    _, (worker,) = start(clock, finishes("ok", 8.0))
    worker.kill()
    assert (worker.killed_s, worker.next_event_s()) == (0.0, inf)


def test_attempts_at_a_job_are_counted():
    seen = []
    executor = ScriptedExecutor(ScriptedClock(), lambda request, attempt: seen.append(attempt) or hangs())
    for seed, name in ((0, "a-s0"), (0, "a-s0"), (1, "a-s1"), (0, "a-s0-again")):
        executor.start(Request("a", seed, {}, "cpu", evidence_name=name), CPU, log=None)
    assert seen == [1, 2, 1, 1]
