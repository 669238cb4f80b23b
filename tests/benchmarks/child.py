"""A child that does as the id of its request says, and knows only its arguments: `python -m tests.benchmarks.child`."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from typing import Any

from bench.protocol import Request
from benchmarks import children
from benchmarks.children import Send


def measure(request: Request, device: Any, send: Send) -> Mapping[str, Any]:
    os.write(1, b"what libraries print\n")
    send({"kind": "phase", "phase": "load", "figures": [float("nan")]})
    match request.id:
        case "invalid":
            from bench.cell.failures import Invalid

            raise Invalid("there is no such thing", "ask for another")
        case "oom":
            raise MemoryError("out of memory")
        case "crashed":
            raise RuntimeError("it broke")
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "slow":
            time.sleep(600)
    return {"arguments": sys.argv[1:], "device": str(device), "seed": request.seed}


if __name__ == "__main__":
    children.work(measure)
