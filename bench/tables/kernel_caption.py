"""What stands with every table of kernels: on what the times were taken, and how; and what to doubt."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pandas as pd

from bench.matrix.wording import counted, listing
from bench.tables.figures import MB, listed, number, signed
from bench.tables.kernel_figures import quantizations, rate_text
from bench.tables.kernels import PACKAGES, Peaks

UNKNOWN = "unknown"
WIDE_IQR = 0.05  # of the median
MUCH_DRIFT = 0.02
# What a GPU's times were taken around.
LAUNCHES = {
    "cuda_graph": "replays of a CUDA graph",
    "queued": "launches that wait in the GPU's queue until a round is complete",
    "eager": "eager launches where the operation waits for the host",
}
NO_COPY = "The copy bandwidth was not measured, so there is no share of it."
NO_MATMUL = "The peak of matmul was not measured for {}, so there is no share of it."


def conditions(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say of a result, a frame of `load_kernels`, what was timed, on what, how, and against which peaks."""
    return tuple(line for line in (_cases(frame), _machine(frame), _peaks(frame), _clocks(frame)) if line)


def doubts(frame: pd.DataFrame) -> tuple[str, ...]:
    """Say what a reader should know before a figure is trusted."""
    return (*_cache(frame), *_eager(frame), *_wide(frame), *_drift(frame), *_no_peaks(frame), *_told(frame),
            *frame.attrs["warnings"])  # fmt: skip


def largest_drift(frame: pd.DataFrame) -> float:
    """Return how far a peak at the session's end was from that at its start, as a share; 0 where that is not known."""
    return max((abs(change) for change in frame.attrs["peaks"].drift.values()), default=0.0)


def _cases(frame: pd.DataFrame) -> str:
    timed = frame[frame["status"] == "ok"]
    refused = f", {len(frame) - len(timed):,} refused" if len(timed) < len(frame) else ""
    said = f"{frame.attrs['matrix']}: {counted(len(timed), 'case')} timed{refused}"
    if timed.empty:
        return f"{said}."
    return f"{said}; n = {_span(timed['rounds_count'], 'round')} of {_span(timed['launches_count'], 'launch')}."


def _machine(frame: pd.DataFrame) -> str:
    attrs = frame.attrs
    hardware = attrs["gpu"] or f"CPU {attrs['cpu'] or UNKNOWN}"
    versions = ", ".join(f"{name} {attrs['versions'].get(name, UNKNOWN)}" for name in PACKAGES)
    return f"{hardware}; {versions}; {attrs['datetime'][:10]}."


def _peaks(frame: pd.DataFrame) -> str:
    peaks: Peaks = frame.attrs["peaks"]
    matmul = [f"{dtype} {rate_text(rate, 'FLOP/s')}" for dtype, rate in peaks.matmul_flops_per_s.items()]
    copy = f"copy {rate_text(peaks.copy_bytes_per_s, 'B/s')}" if peaks.copy_bytes_per_s > 0 else ""
    told = ", ".join(filter(None, [copy, f"matmul {listing(matmul, 'and')}" if matmul else ""]))
    if not told:
        return ""
    drift = f"; at the end of the session {_changes(peaks.drift)} against its start" if peaks.drift else ""
    return f"Measured peaks: {told}{drift}."


def _changes(drift: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {signed(100 * change, 1)} %" for name, change in drift.items())


def _clocks(frame: pd.DataFrame) -> str:
    around = [text for launch, text in LAUNCHES.items() if (frame["launch"] == launch).any()]
    if not around:
        return "Times by the host's clock." if (frame["launch"] == "host").any() else ""
    cache = number(frame["cache_bytes"].max() / MB, 0)
    return (
        f"Times by CUDA events around {listing(around, 'and')}, on operands that rotate through more than the L2 cache "
        f"({cache} MB)."
    )


def _cache(frame: pd.DataFrame) -> Iterator[str]:
    yield from _cases_where(
        frame,
        (frame["rotated_bytes"] < frame["cache_bytes"]) & (frame["launch"] != "eager"),
        "with operands that all fit into the L2 cache, so that they ran out of it, faster than in a model",
    )


def _eager(frame: pd.DataFrame) -> Iterator[str]:
    eager = frame[frame["launch"] == "eager"]
    for name, cases in eager.groupby(quantizations(eager), sort=False):
        yield (
            f"{name}: {counted(len(cases), 'case')} launched eagerly, since the operation waits for the host, which "
            "takes most of their time: they have no rates, and are compared with nothing."
        )


def _wide(frame: pd.DataFrame) -> Iterator[str]:
    wide = (frame["iqr_s"] > WIDE_IQR * frame["p50_s"]) & (frame["launch"] != "eager")
    yield from _cases_where(frame, wide, f"with an IQR above {WIDE_IQR:.0%} of the median".replace("%", " %"))


def _cases_where(frame: pd.DataFrame, which: pd.Series[bool], why: str) -> Iterator[str]:
    if which.any():
        yield f"{counted(int(which.sum()), 'case')} {why}: {listed(frame.loc[which, 'id'].tolist(), 3)}."


def _drift(frame: pd.DataFrame) -> Iterator[str]:
    far = {name: change for name, change in frame.attrs["peaks"].drift.items() if abs(change) > MUCH_DRIFT}
    if far:
        yield f"Peaks drifted during the session, so that times of its ends compare less well: {_changes(far)}."


def _no_peaks(frame: pd.DataFrame) -> Iterator[str]:
    peaks: Peaks = frame.attrs["peaks"]
    if not peaks.copy_bytes_per_s > 0:
        yield NO_COPY
    multiplied = frame.loc[frame["flops_per_s"].notna(), "compute_dtype"].unique()
    if missing := [dtype for dtype in multiplied if dtype not in peaks.matmul_flops_per_s]:
        yield NO_MATMUL.format(listing(missing, "and"))


def _told(frame: pd.DataFrame) -> Iterator[str]:
    """Pass on what the cases say themselves, each thing once."""
    told: dict[str, list[str]] = {}
    for case_id, warnings in frame.loc[frame["warnings"].notna(), ["id", "warnings"]].itertuples(index=False):
        for warning in warnings.splitlines():
            told.setdefault(warning, []).append(case_id)
    for warning, ids in told.items():
        yield f"{warning.rstrip('.')}: {listed(ids, 3)}."


def _span(counts: pd.Series[float], noun: str) -> str:
    low, high = int(counts.min()), int(counts.max())
    plural = f"{noun}{'es' if noun.endswith('h') else 's'}"
    return f"{low:,} to {high:,} {plural}" if low < high else f"{high:,} {noun if high == 1 else plural}"
