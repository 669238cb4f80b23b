"""Processes of their own for what is measured: one request in, JSON lines out, as between a run and its cells.

The messages are those of `bench.protocol`, so that `bench.run` starts, hears and ends these processes as it does cells.
"""

from __future__ import annotations

import math
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import click

from bench.cell.channel import Send, open_channel
from bench.errors import BenchError
from bench.protocol import WORTH_ANOTHER_TRY, Phase, Request
from bench.run.clock import SystemClock
from bench.run.executor import Message
from bench.run.local import LocalExecutor
from bench.run.records import Record
from bench.run.slots import Slot
from bench.run.supervise import Outcome, Supervision

if TYPE_CHECKING:  # torch belongs to the children; in the parent it would take GPU memory from them
    import torch

POLL_S = 0.2
LOG_LINES = 40


class Crashed(BenchError):
    """A process ended for a reason that is not the user's."""


# The parent -----------------------------------------------------------------------------------------------------------


def run(
    module: str,
    arguments: tuple[str, ...],
    request: Request,
    slot: Slot,
    *,
    timeout_s: float = math.inf,
    tell: Callable[[Message], None] = lambda message: None,
) -> Outcome:
    """Run `python -m MODULE ARGUMENTS` on a slot and return its outcome; where it crashed, show the end of its log.

    `tell` is called with every message as it comes.
    """
    with TemporaryDirectory(prefix="benchmarks-") as folder:
        log = Path(folder) / "log"
        executor = LocalExecutor((sys.executable, "-P", "-m", module, *arguments))
        worker = executor.start(request, slot, log)
        try:
            supervision = Supervision(worker, SystemClock(), timeout_s, tell)
            while (outcome := supervision.check()) is None:
                executor.wait(POLL_S)
        finally:
            worker.kill()
        if outcome.status == "crashed":
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            click.echo("\n".join(lines[-LOG_LINES:]), err=True)
    return outcome


def measures(name: str, ended: Outcome | Record) -> Mapping[str, Any]:
    """Return the measures of a process that ended well.

    Raises:
        Crashed: it ended for a reason that is not the user's.
        BenchError: it cannot run with these settings, or memory ran out.
    """
    if ended.status == "ok":
        return ended.measures
    error = Crashed if ended.status in WORTH_ANOTHER_TRY else BenchError
    raise error(f"{name}: {ended.status}: {ended.message}", ended.hint)


# The child ------------------------------------------------------------------------------------------------------------


def work(measure: Callable[[Request, torch.device, Send], Mapping[str, Any]]) -> None:
    """Be such a process: measure what the request on standard input asks for; the last message says how it ended.

    `measure` gets the request, its device and a function that sends a message, and returns the measures.
    """
    channel = open_channel()
    phase: Phase = "train"

    def send(message: dict[str, Any]) -> None:
        nonlocal phase
        phase = message.get("phase", phase)
        channel(message)

    request = Request.from_json(sys.stdin.read())
    import torch

    from bench.cell.failures import describe

    device = torch.device("cuda", 0) if request.device == "cuda" else torch.device("cpu")
    end: dict[str, Any] = {"kind": "end", "status": "ok", "message": None, "hint": None}
    try:
        end["measures"] = measure(request, device, send)
    except Exception as error:  # whatever went wrong is this process's result
        traceback.print_exc(file=sys.stderr)
        end |= dict(zip(("status", "message", "hint"), describe(error, phase), strict=True))
    send({**end, "phase": phase})
