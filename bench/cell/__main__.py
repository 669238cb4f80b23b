"""`python -m bench.cell`: the worker of one cell. Reads a request on standard input, answers with JSON lines.

Started by `bench.run`; by hand it is useful to debug a cell: `python -m bench.cell < request.json`.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import sys
from typing import Any

PR_SET_PDEATHSIG = 1  # from <sys/prctl.h>


def main() -> None:
    _die_with(os.environ.get("QLORA_BENCH_PARENT"))
    # Standard output is the channel to the run. Libraries that print go to the log instead, C code included.
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    def send(message: dict[str, Any]) -> None:
        channel.write(json.dumps(_finite(message), allow_nan=False) + "\n")

    from bench.protocol import Request

    request = Request.from_json(sys.stdin.read())
    from bench.cell.worker import work

    work(request, send)


def _die_with(parent: str | None) -> None:
    """Have the kernel kill this process when the run that started it ends: an orphan would hold GPU memory."""
    if parent and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):
            sys.exit("the run that started this worker has ended")


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: what is not finite is null."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    main()
