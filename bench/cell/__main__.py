"""`python -m bench.cell`: the worker of one cell. Reads a request on standard input, answers with JSON lines.

Started by `bench.run`; by hand it is useful to debug a cell: `python -m bench.cell < request.json`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from typing import Any

from bench.protocol import Request, finite

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def main() -> None:
    _die_with(os.environ.get("QLORA_BENCH_PARENT"))
    # Standard output is the channel to the run. Libraries that print go to the log instead, C code included.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(finite(message), allow_nan=False) + "\n")

    # Seconds of imports come first, so that a run can start a worker before it has a request for it.
    from bench.cell.worker import work

    work(Request.from_json(sys.stdin.read()), send)


def _die_with(parent: str | None) -> None:
    """Have the kernel kill this process when the run that started it ends: an orphan would hold GPU memory."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the run that started this worker has ended")


if __name__ == "__main__":
    main()
