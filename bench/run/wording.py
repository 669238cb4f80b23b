"""The lines that tell a person how a run goes, each within a given width."""

from __future__ import annotations

from bench.matrix.plan import Job
from bench.matrix.wording import again
from bench.run.progress import Activity
from bench.run.records import Record

SHORTEST_ID = 8


def finished_line(record: Record, counter: str, width: int, arrow: str, again: bool) -> str:
    """Say what became of an attempt: its key figures, or why it has none."""
    took = duration(record.wall_s)
    if record.status == "ok":
        rest = ", ".join(["ok", *key_figures(record, arrow), took])
        return fit(counter, record.id, f"{run_of(record)}: {rest}", width)
    note = ", will be tried again" if again else ""
    what = f"{run_of(record)}: {record.status} in {record.phase}, {took}{note}"
    reason = (record.message or "").partition("\n")[0]
    line = fit(counter, record.id, what, width) + (f": {reason}" if reason else "")
    return shorten(line, width)


def activity_line(slot: str, activity: Activity, elapsed_s: float, width: int) -> str:
    """Say what a slot is doing."""
    amount = f" {activity.done}/{activity.total}" if activity.total else ""
    rest = f"{run_of(activity.job)}: {activity.phase}{amount}, {duration(elapsed_s)}"
    return fit(slot, activity.job.cell.id, rest, width)


def run_of(run: Job | Record) -> str:
    """Tell the runs of a cell apart: `s0`, or `s0 again` where the baseline runs once more."""
    return f"s{run.seed}{again(run.repeat)}"


def key_figures(record: Record, arrow: str) -> list[str]:
    """Return storage, speed and accuracy before and after, as far as they were measured."""
    stored, speed, before, after = (
        record.measures.get(name) for name in ("stored_bytes", "tokens_per_s", "accuracy_before", "accuracy_after")
    )
    figures = []
    if stored is not None:
        figures.append(f"{stored / 1e9:.3g} GB")
    if speed is not None:
        figures.append(f"{speed:,.0f} tokens/s")
    if before is not None and after is not None:
        figures.append(f"{100 * before:.1f} {arrow} {100 * after:.1f} %")
    return figures


def duration(seconds: float) -> str:
    """Write seconds as `4:03` or `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def fit(before: str, name: str, after: str, width: int) -> str:
    """Join three texts, and shorten the one between to keep within `width` characters; it keeps a few in any case."""
    room = max(width - len(before) - len(after) - 2, SHORTEST_ID)
    return f"{before} {shorten(name, room)} {after}"


def shorten(text: str, width: int) -> str:
    """Cut a text that is longer than `width` characters, and mark the cut."""
    return text if len(text) <= width else text[: width - 2] + ".."
