"""The worker's end of the line to the run that started it."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from bench.protocol import finite

Send = Callable[[dict[str, Any]], None]

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def open_channel() -> Send:
    """Take standard output for messages, die with the run from now on, and return what sends a message.

    Libraries that print go to the log instead, C code included.
    """
    _die_with(os.environ.get("QLORA_BENCH_PARENT"))
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(finite(message), allow_nan=False) + "\n")

    return send


def _die_with(parent: str | None) -> None:
    """Have the kernel kill this process when the run that started it ends: an orphan would hold GPU memory."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the run that started this worker has ended")
