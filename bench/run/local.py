"""Workers as processes of this machine."""

from __future__ import annotations

import json
import os
import selectors
import signal
import site
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, cast

import bench
from bench.protocol import Question, Request
from bench.run.executor import Ending, Message
from bench.run.slots import Slot

# -P: a `bench` folder or a `random.py` where the user happens to stand is not ours.
WORKER_COMMAND = (sys.executable, "-P", "-m", "bench.cell")

READ_BYTES = 64 * 1024
LINE_BYTES = 8 * 1024 * 1024  # a longer line is no message
TAIL_BYTES = 4096
TAIL_LINES = 5
TAIL_LINE_CHARACTERS = 200
DEATH_S = 30.0  # a process that holds a GPU can take seconds to go


class LocalExecutor:
    """Starts `python -m bench.cell` in a session of its own for every cell. `command` replaces it in tests."""

    def __init__(self, command: Sequence[str] = WORKER_COMMAND) -> None:
        self._command = tuple(command)
        self._selector = selectors.DefaultSelector()
        self._prepared: dict[tuple[Slot, Path], LocalWorker] = {}

    def prepare(self, slot: Slot, log: Path) -> None:
        """Start a worker that waits for its request once its imports are done.

        Raises:
            OSError: the process cannot be started, or the log cannot be written.
        """
        self._prepared[slot, log] = self._spawn(slot, log)

    def start(self, request: Request, slot: Slot, log: Path) -> LocalWorker:
        """Start a worker, unless one is prepared, and hand it its request.

        Raises:
            OSError: the process cannot be started, or the log cannot be written.
        """
        worker = self._prepared.pop((slot, log), None) or self._spawn(slot, log)
        worker.take(request)
        return worker

    def discard(self, slot: Slot, log: Path) -> None:
        if worker := self._prepared.pop((slot, log), None):
            worker.kill()

    def close(self) -> None:
        for slot, log in tuple(self._prepared):
            self.discard(slot, log)

    def _spawn(self, slot: Slot, log: Path) -> LocalWorker:
        return LocalWorker(self._command, worker_environment(slot, os.environ), log, self._selector)

    def wait(self, timeout_s: float) -> None:
        self._selector.select(timeout_s)


class LocalWorker:
    """A process in its own session: messages on stdout, everything else in the log."""

    def __init__(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        selector: selectors.BaseSelector,
    ) -> None:
        self._selector = selector
        self._log_path = log
        self._log = log.open("ab", buffering=0)
        self._log_start = self._log.tell()
        self._unread = b""
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            bufsize=0,
            start_new_session=True,
        )
        self._ended = False
        self._stdout = cast(IO[bytes], self._process.stdout)
        os.set_blocking(self._stdout.fileno(), False)

    def take(self, request: Request | Question) -> None:
        """Hand over the request, which the worker reads when it is ready, and listen to it from now on."""
        self._selector.register(self._stdout, selectors.EVENT_READ)
        with suppress(BrokenPipeError), cast(IO[bytes], self._process.stdin) as stdin:
            stdin.write(request.to_json().encode())

    def messages(self) -> list[Message]:
        return [message for line in self._lines() if (message := self._understand(line)) is not None]

    def ending(self) -> Ending | None:
        if not self._has_ended():
            return None
        return Ending(self._process.returncode, self._last_words())

    def kill(self) -> None:
        if not self._has_ended():
            self._kill_group()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(DEATH_S)
            self._ended = True
        cast(IO[bytes], self._process.stdin).close()
        self._let_go()
        self._unread = b""
        self._log.close()

    def _has_ended(self) -> bool:
        if not self._ended and self._process.poll() is not None:
            self._ended = True
            self._kill_group()  # what it started and left behind
        return self._ended

    def _lines(self) -> Iterator[bytes]:
        ended = self._has_ended()  # asked first, so that a last line without an end is known to be whole
        for chunk in self._chunks():
            *lines, self._unread = (self._unread + chunk).split(b"\n")
            yield from lines
            if len(self._unread) > LINE_BYTES:
                yield self._take_unread()
        if ended and self._unread:
            yield self._take_unread()

    def _take_unread(self) -> bytes:
        line, self._unread = self._unread, b""
        return line

    def _chunks(self) -> Iterator[bytes]:
        # Bounded, so that a worker that never stops talking cannot keep the run from its timeout.
        for _ in range(LINE_BYTES // READ_BYTES):
            if self._stdout.closed:
                return
            try:
                chunk = os.read(self._stdout.fileno(), READ_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                self._let_go()
                return
            yield chunk

    def _understand(self, line: bytes) -> Message | None:
        with suppress(ValueError, RecursionError):
            message = json.loads(line)
            if isinstance(message, dict):
                return message
        self._log.write(line + b"\n")
        return None

    def _kill_group(self) -> None:
        # The group bears the worker's process id, which nothing else can get while a member of the group lives.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _let_go(self) -> None:
        if not self._stdout.closed:
            with suppress(KeyError):  # a worker that was never started
                self._selector.unregister(self._stdout)
            self._stdout.close()

    def _last_words(self) -> tuple[str, ...]:
        with self._log_path.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._log_start, size - TAIL_BYTES))
            text = log.read().decode(errors="replace")
        lines = [line.strip()[:TAIL_LINE_CHARACTERS] for line in text.splitlines() if line.strip()]
        return tuple(lines[-TAIL_LINES:])


def worker_environment(slot: Slot, base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker on `slot`: it sees that slot's GPU only, and dies with this process.

    The worker itself asks the kernel to end it with its parent, whose process id is `QLORA_BENCH_PARENT`.
    """
    roots = [path for path in base.get("PYTHONPATH", "").split(os.pathsep) if path]
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that a number means the GPU that nvidia-smi gives this number
        **base,
        "CUDA_VISIBLE_DEVICES": slot.gpu.device if slot.gpu else "",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONFAULTHANDLER": "1",
        "PYTHONPATH": os.pathsep.join([*_import_root(roots), *roots]),
        "PYTHONUNBUFFERED": "1",
        "QLORA_BENCH_PARENT": str(os.getpid()),
        "TOKENIZERS_PARALLELISM": "false",
    }


def _import_root(known: Sequence[str]) -> list[str]:
    """Return the folder that the worker must import from to find this `bench`, if it would not look there itself."""
    root = str(Path(bench.__file__).resolve().parent.parent)
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), site.getusersitepackages()}
    return [] if root in {str(Path(path).resolve()) for path in (*installed, *known)} else [root]
