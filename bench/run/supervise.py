"""Follow one worker to its outcome: its own last message, its death, or the end of its time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.protocol import PHASES, STATUSES, Phase, Status
from bench.run.clock import Clock
from bench.run.executor import Ending, Message, Worker

# A worker that has sent its result may take this long to leave; its result stands either way.
EXIT_GRACE_S = 10.0

LOG_HINT = "the worker's log may say more"
NATIVE_FAULT = "a native library failed; the worker's log may show where"
SIGNAL_HINTS: dict[int, str] = {
    signal.SIGKILL: "the host may have run out of memory (dmesg tells), or somebody killed it",
    signal.SIGTERM: "somebody, or the machine's job manager, ended it",
    signal.SIGSEGV: NATIVE_FAULT,
    signal.SIGBUS: NATIVE_FAULT,
    signal.SIGFPE: NATIVE_FAULT,
    signal.SIGABRT: NATIVE_FAULT,
    signal.SIGILL: "a package was built for another processor",
}
SIGNAL_NAMES: dict[int, str] = {number.value: number.name for number in signal.Signals}
TIMEOUT_HINT = "raise timeout, or lower max_steps, train_examples or eval_examples"


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt at a cell. `last_peak_allocated_bytes` is None where torch did not count it."""

    status: Status
    phase: Phase
    wall_s: float
    message: str | None = None
    hint: str | None = None
    measures: Mapping[str, Any] = field(default_factory=dict)
    losses: Sequence[float] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    last_peak_allocated_bytes: int | None = None


class Supervision:
    """Watches a worker that has just been started. `tell` is called with every message of the protocol."""

    def __init__(self, worker: Worker, clock: Clock, timeout_s: float, tell: Callable[[Message], None]) -> None:
        self._worker = worker
        self._clock = clock
        self._timeout_s = timeout_s
        self._tell = tell
        self._started = clock.monotonic()
        self._phase: Phase = "start"
        self._progress = ""
        self._peak: int | None = None
        self._replays = False
        self._result: Outcome | None = None

    @property
    def spares_the_host(self) -> bool:
        """Tell whether the worker is past what a busy host would slow: its eager steps, and all timings of training.

        Scoring after training is launched from the host too; that it may take a little longer is accepted.
        """
        return self._replays or self._phase == "score_after"

    def check(self) -> Outcome | None:
        """Take in what the worker has said; return its outcome once there is one.

        The worker is dead by then; its death is all that this ever waits for.
        """
        ending = self._worker.ending()  # asked first: what it said before its death is then all there
        self._listen()
        outcome = self._judge(ending)
        if outcome is not None:
            self._worker.kill()
        return outcome

    def interrupt(self) -> Outcome:
        """End the worker. A result that it has sent stands; else its outcome is `interrupted`."""
        self._listen()
        self._worker.kill()
        return self._result or self._outcome("interrupted", "stopped on request")

    def _listen(self) -> None:
        for message in self._worker.messages():
            self._take(message)

    def _take(self, message: Message) -> None:
        kind, phase = message.get("kind"), message.get("phase")
        if kind not in ("phase", "progress", "replay", "end") or self._result is not None:
            return
        self._replays |= kind == "replay"
        if phase in PHASES:
            self._phase = phase
        if isinstance(peak := message.get("peak_allocated_bytes"), int):
            self._peak = peak
        self._progress = f" ({message.get('done')} of {message.get('total')})" if kind == "progress" else ""
        if kind == "end" and message.get("status") in STATUSES:
            self._result = replace(
                self._outcome(message["status"], message.get("message"), message.get("hint")),
                measures=message.get("measures") or {},
                losses=tuple(message.get("losses") or ()),
                environment=message.get("environment") or {},
                warnings=tuple(message.get("warnings") or ()),
            )
        self._tell(message)

    def _judge(self, ending: Ending | None) -> Outcome | None:
        if self._result is not None:
            since_s = self._elapsed_s - self._result.wall_s
            return self._result if ending is not None or since_s > EXIT_GRACE_S else None
        if ending is not None:
            words = (f"{describe(ending.returncode)} in phase {self._where}", *ending.last_words)
            return self._outcome("crashed", "\n".join(words), SIGNAL_HINTS.get(-ending.returncode, LOG_HINT))
        if self._elapsed_s > self._timeout_s:
            return self._outcome(
                "timeout", f"not done after {self._timeout_s:g} s, in phase {self._where}", TIMEOUT_HINT
            )
        return None

    def _outcome(self, status: Status, message: str | None, hint: str | None = None) -> Outcome:
        return Outcome(status, self._phase, self._elapsed_s, message, hint, last_peak_allocated_bytes=self._peak)

    @property
    def _where(self) -> str:
        return self._phase + self._progress

    @property
    def _elapsed_s(self) -> float:
        return self._clock.monotonic() - self._started


def describe(returncode: int) -> str:
    """Say in words how a process ended that left no result."""
    if returncode >= 0:
        return f"the worker ended without a result (exit code {returncode})"
    return f"the worker was killed by {SIGNAL_NAMES.get(-returncode, f'signal {-returncode}')}"
