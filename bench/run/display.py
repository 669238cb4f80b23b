"""A run on the terminal: a live view with rich, or plain lines where nobody watches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from bench.matrix.plan import Job
from bench.run.clock import Clock, SystemClock
from bench.run.executor import Message
from bench.run.observer import Observer
from bench.run.progress import Progress
from bench.run.records import Record
from bench.run.slots import Slot
from bench.run.wording import activity_line, duration, finished_line, run_of

REFRESHES_PER_S = 4
BAR_WIDTH = 24
STYLES = {"ok": "green", "crashed": "bold red", "interrupted": "yellow"}
OTHER_STYLE = "magenta"  # a result, though not the one that was hoped for


@contextmanager
def display(console: Console, clock: Clock | None = None) -> Iterator[Observer]:
    """Show a run on `console` for as long as the context lasts: live on a terminal, else in lines."""
    progress = Progress(clock or SystemClock())
    if not console.is_interactive:
        yield Display(console, progress, shows_starts=True)
        return
    with Live(
        console=console,
        get_renderable=lambda: render(progress, console.width),
        refresh_per_second=REFRESHES_PER_S,
        transient=True,
    ):
        yield Display(console, progress, shows_starts=False)


@dataclass(frozen=True)
class Display:
    """Prints a line for each attempt that ends, and where `shows_starts`, for each that begins."""

    console: Console
    progress: Progress
    shows_starts: bool

    def begun(self, due: Sequence[Job], kept: Sequence[Record], slots: Sequence[Slot]) -> None:
        self.progress.begin(due, kept, slots)
        if kept:
            self._print(f"{len(kept)} of {self.progress.total} runs have a result already", "dim")
        for status, count in Counter(record.status for record in kept if record.status != "ok").items():
            self._print(f"{count} of them ended as {status}: --retry {status} runs them again", "dim")

    def started(self, slot: Slot, job: Job, attempt: int) -> None:
        self.progress.start(slot, job)
        if self.shows_starts:
            again = f", attempt {attempt}" if attempt > 1 else ""
            self._print(f"{self._counter()} {job.cell.id} {run_of(job)}: started on {slot.name}{again}")

    def told(self, slot: Slot, message: Message) -> None:
        self.progress.hear(slot, message)

    def finished(self, slot: Slot, record: Record, again: bool) -> None:
        self.progress.finish(slot, record, again)
        arrow = "->" if self.console.options.ascii_only else "→"
        line = finished_line(record, self._counter(), self.console.width, arrow, again)
        self._print(line, STYLES.get(record.status, OTHER_STYLE))

    def warned(self, warning: str) -> None:
        self._print(f"warning: {warning}", "yellow")

    def _counter(self) -> str:
        total = str(self.progress.total)
        return f"[{self.progress.done:{len(total)}}/{total}]"

    def _print(self, line: str, style: str = "") -> None:
        # A worker's message may hold what the terminal's encoding does not.
        encoding = self.console.encoding
        printable = line.encode(encoding, "replace").decode(encoding)
        self.console.print(Text(printable, style), soft_wrap=True)


def render(progress: Progress, width: int) -> RenderableType:
    """Draw the state of a run: a line for each slot that is at work, and one for the whole."""
    at_work = [
        Text(activity_line(name, activity, progress.elapsed_s(activity), width), no_wrap=True, overflow="crop")
        for name, activity in sorted(progress.activities.items())
    ]
    left_s = progress.left_s()
    failures = [f"{number} {status}" for status, number in progress.statuses.items() if status != "ok"]
    whole = Table.grid(padding=(0, 1))
    for _ in range(4):
        whole.add_column(no_wrap=True, overflow="crop")
    whole.add_row(
        f"{progress.done}/{progress.total} runs",
        ProgressBar(total=max(progress.total, 1), completed=progress.done, width=BAR_WIDTH),
        "" if left_s is None else f"about {duration(left_s)} left",
        ", ".join(failures),
    )
    return Group(*at_work, whole)
