"""A difference as text: with its sign, its uncertainty and its unit, no finer than it is known."""

from __future__ import annotations

import math

from bench.matrix.wording import listing
from bench.tables.evidence import Compared, Evidence
from bench.tables.figures import GB, MB, number, signed
from bench.tables.table import MISSING

_DECIMALS_OF_BYTES = ((GB, "GB", 2), (MB, "MB", 1), (1e3, "kB", 1), (1.0, "B", 0))
_DECIMALS = {"%": 1, "points": 1, "nats": 3}  # where there is no uncertainty to round by
_MOST_DECIMALS = 3
_LARGE = 10  # from here on an uncertainty needs no decimals


def labels(evidence: Evidence) -> dict[str, str]:
    """Map the name of each measure to what a narrow column calls it; `about_watched` tells the confusions apart."""
    names = [pair.compared.name for pair in evidence.watched]
    confused = {name: "confused" if len(names) == 1 else f"confused {number}" for number, name in enumerate(names, 1)}
    return {measure.name: measure.label for measure in evidence.measures} | confused


def about_watched(evidence: Evidence) -> str:
    """Say for the legend which labels `labels` calls confused; nothing where none are watched."""
    label = labels(evidence)
    return " ".join(
        f"{label[pair.compared.name].capitalize()}: of the test examples of {listing(pair.names, 'and')}, "
        "the share taken for the other one."
        for pair in evidence.watched
    )


def difference_text(measure: Compared, estimate: float, low: float, high: float) -> str:
    """Write `+1.3 ± 0.4 points`; of an exact measure the range, in bytes; a dash where nothing is known."""
    if not math.isfinite(estimate):
        return MISSING
    if measure.kind == "exact":
        return bytes_text(low / measure.scale, high / measure.scale)
    half_width = (high - low) / 2
    places = _places(measure, half_width)
    uncertainty = f" ± {number(half_width, places)}" if math.isfinite(half_width) else ""
    return f"{signed(estimate, places)}{uncertainty} {measure.unit}"


def size_text(measure: Compared, size: float) -> str:
    """Write a size without a sign, such as `0.8 points`, rounded as an uncertainty is; a dash where it is not known."""
    return f"{number(size, _places(measure, size))} {measure.unit}" if math.isfinite(size) else MISSING


def bytes_text(low: float, high: float) -> str:
    """Write a change in bytes, in the unit that fits: `+304.1 MB`, or `+1.2 to +4.9 MB` where its ends differ."""
    largest = max(abs(low), abs(high))
    size, unit, decimals = next((entry for entry in _DECIMALS_OF_BYTES if largest >= entry[0]), _DECIMALS_OF_BYTES[-1])
    ends = [signed(end / size, decimals) for end in (low, high)]
    return f"{' to '.join(dict.fromkeys(ends))} {unit}"


def decimals_of(half_width: float) -> int:
    """Return the decimals for an uncertainty, more than 0: to its first figure, to its second where that is a 1."""
    if half_width >= _LARGE:
        return 0
    exponent = math.floor(math.log10(half_width))
    starts_with_one = half_width < 2 * 10.0**exponent
    return min(_MOST_DECIMALS, max(1, starts_with_one - exponent))


def _places(measure: Compared, half_width: float) -> int:
    return decimals_of(half_width) if half_width > 0 else _DECIMALS[measure.unit]
