"""How sure a share of right answers is, and the difference between two of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot

from scipy.stats import binomtest

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """How many of n examples were right, with the Wilson interval of their share."""

    right: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        return self.right / self.n

    def __str__(self) -> str:
        return f"{100 * self.value:.1f} % (n = {self.n:,}; {100 * self.low:.1f} to {100 * self.high:.1f})"


def share_of(accuracy: float, n: int) -> Share:
    """Return the share that an accuracy over n examples is, with its 95 % interval."""
    right = round(accuracy * n)
    interval = binomtest(right, n).proportion_ci(CONFIDENCE, method="wilson")
    return Share(right, n, float(interval.low), float(interval.high))


def difference(one: Share, other: Share) -> tuple[float, float]:
    """Return the 95 % interval of one share less another: the hybrid score method, method 10 of Newcombe (1998).

    It is made for independent samples. Where examples are common to both, it is wider than it need be.
    """
    between = one.value - other.value
    low = between - hypot(one.value - one.low, other.high - other.value)
    high = between + hypot(one.high - one.value, other.value - other.low)
    return low, high
