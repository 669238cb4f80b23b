"""A clock whose unit is a loop that it runs itself, so that timings of different machines can be compared."""

from __future__ import annotations

import time
from collections.abc import Callable

UNIT = "reference loop"


class ReferenceClock:
    """A timer for pytest-benchmark that counts reference loops instead of seconds.

    Each reading times the loop, and the processor's time since the last reading is divided by the mean of the loop's
    then and now. So it matters little how fast the machine is, or how busy others keep it. Processor time is that of
    all threads of this process; waiting, for a core or for a disk, is not in it.
    """

    def __init__(self, loop: Callable[[], object]) -> None:
        self.__name__ = loop.__name__  # what pytest-benchmark calls its timer
        self._loop = loop
        self._loops_count = 0.0
        self._loop_s = self._time_loop()
        self._read_s = time.process_time()

    def __call__(self) -> float:
        passed_s = time.process_time() - self._read_s
        before_s, self._loop_s = self._loop_s, self._time_loop()
        self._loops_count += passed_s / ((before_s + self._loop_s) / 2)
        self._read_s = time.process_time()
        return self._loops_count

    def _time_loop(self) -> float:
        start_s = time.process_time()
        self._loop()
        return time.process_time() - start_s
