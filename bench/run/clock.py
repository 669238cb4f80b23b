"""Time as the run sees it, passed in so that tests need not wait."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    def monotonic(self) -> float:
        """Return seconds that only ever grow, counted from anywhere."""

    def now(self) -> datetime:
        """Return the date and time, in UTC."""


class SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()

    def now(self) -> datetime:
        return datetime.now(UTC)


def timestamp(moment: datetime) -> str:
    """Write a moment as records do: `2025-11-21T20:45:12Z`."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
