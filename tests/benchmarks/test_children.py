from __future__ import annotations

from typing import Any

import pytest

from bench.errors import BenchError
from bench.protocol import Request
from bench.run.slots import Slot
from bench.run.supervise import Outcome
from benchmarks import children
from benchmarks.children import Crashed


def run(what: str, **more: Any) -> Outcome:
    return children.run("tests.benchmarks.child", ("--some", "5"), Request(what, 7, {}, "cpu"), Slot("cpu"), **more)


def test_a_child_answers_with_messages_and_measures() -> None:
    heard: list[Any] = []

    outcome = run("ok", tell=heard.append)

    assert children.measures("part", outcome) == {"arguments": ["--some", "5"], "device": "cpu", "seed": 7}
    assert [message["kind"] for message in heard] == ["phase", "end"]
    assert heard[0]["figures"] == [None]  # JSON has no NaN


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        ("invalid", BenchError, "part: invalid: there is no such thing; ask for another"),
        ("oom", BenchError, "part: oom: out of memory in phase load: the host has no more; the weights"),
        ("crashed", Crashed, "part: crashed: RuntimeError: it broke"),
        ("killed", Crashed, "part: crashed: the worker was killed by SIGKILL in phase load"),
    ],
)
def test_failures_are_told_apart(
    what: str, kind: type[BenchError], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    outcome = run(what)

    with pytest.raises(BenchError) as caught:
        children.measures("part", outcome)

    assert type(caught.value) is kind
    assert str(caught.value).startswith(message)
    assert ("what libraries print" in capfd.readouterr().err) == (kind is Crashed)


def test_a_child_that_takes_too_long_is_ended() -> None:
    assert run("slow", timeout_s=0.5).status == "timeout"
