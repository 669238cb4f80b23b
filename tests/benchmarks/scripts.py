"""How the tests run a script: as a user would, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def script(name: str, *arguments: str | Path, columns: int = 400) -> subprocess.CompletedProcess[str]:
    # One thread: a second one waits for its core where others are busy, many times over.
    # Not a word of pytest-xdist either, under which pytest-benchmark measures nothing.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment = {**ours, "COLUMNS": str(columns), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
