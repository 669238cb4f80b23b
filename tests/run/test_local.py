from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest

import bench
from bench.protocol import Request
from bench.run.clock import SystemClock
from bench.run.gpus import Gpu
from bench.run.local import LocalExecutor, worker_environment
from bench.run.slots import Slot
from bench.run.supervise import Outcome, Supervision

from .examples import GPUS

REQUEST = Request("nf4", 3, {"lora_r": 8}, "cpu")
CPU = Slot("cpu")
GPU = GPUS[0].gpu

END = """
import json, os, sys, time
def send(**message):
    print(json.dumps(message), flush=True)
def end(**measures):
    send(kind="end", status="ok", phase="score_after", message=None, hint=None, measures=measures, environment={})
"""


class Started:
    """A real process that runs a few lines of Python in the place of a worker."""

    def __init__(self, tmp_path: Path, code: str, timeout_s: float = 30.0) -> None:
        self.log = tmp_path / "worker.log"
        self.executor = LocalExecutor((sys.executable, "-c", END + code))
        self.worker = self.executor.start(REQUEST, CPU, self.log)
        self.told: list = []
        self.supervision = Supervision(self.worker, SystemClock(), timeout_s, self.told.append)

    def follow(self, until=lambda: False, within_s: float = 30.0) -> Outcome | None:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline and not until():
            if outcome := self.supervision.check():
                return outcome
            self.executor.wait(0.05)
        return None

    @property
    def pid(self) -> int:
        return self.worker._process.pid


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def test_a_worker_gets_its_request_and_answers(tmp_path):
    started = Started(tmp_path, "request = json.load(sys.stdin); end(seed=request['seed'], **request['parameters'])")
    outcome = started.follow()
    assert (outcome.status, outcome.measures) == ("ok", {"seed": 3, "lora_r": 8})
    assert started.log.read_text() == ""


def test_what_is_no_json_object_goes_to_the_log(tmp_path):
    code = """
print("downloading ...")
sys.stdout.buffer.write(b"\\xff\\xfe broken\\n[1, 2]\\n17\\n" + b"[" * 100_000 + b"\\n")
sys.stderr.write("to stderr\\n")
send(kind="phase", phase="load")
end()
print("no newline at the end", end="")
"""
    started = Started(tmp_path, code)
    assert started.follow().status == "ok"
    assert [message["kind"] for message in started.told] == ["phase", "end"]
    log = started.log.read_bytes()
    for words in (b"downloading ...\n", b"\xff\xfe broken\n", b"[1, 2]\n", b"to stderr\n", b"no newline at the end\n"):
        assert words in log


def test_a_message_without_a_newline_at_the_very_end_counts(tmp_path):
    code = "print(json.dumps(dict(kind='end', status='diverged', phase='train')), end='')"
    assert Started(tmp_path, code).follow().status == "diverged"


def test_many_messages_arrive_whole_and_in_order(tmp_path):
    code = """
for number in range(20_000):
    send(kind="progress", phase="train", done=number, total=20_000)
end()
"""
    started = Started(tmp_path, code)
    assert started.follow().status == "ok"
    assert [message.get("done") for message in started.told] == [*range(20_000), None]


def test_a_worker_that_never_ends_a_line_cannot_stop_the_run(tmp_path):
    code = """
while True:
    os.write(1, b"x" * 65536)
"""
    started = Started(tmp_path, code, timeout_s=1.0)
    before = time.monotonic()
    assert started.follow().status == "timeout"
    assert time.monotonic() - before < 5


def test_a_killed_worker_is_told_by_its_signal(tmp_path):
    started = Started(tmp_path, "send(kind='phase', phase='train'); time.sleep(60)")
    started.follow(until=lambda: started.told)
    os.kill(started.pid, signal.SIGKILL)
    outcome = started.follow()
    assert (outcome.status, outcome.phase) == ("crashed", "train")
    assert outcome.message == "the worker was killed by SIGKILL in phase train"


def test_a_segmentation_fault_is_told_with_where_it_was(tmp_path):
    outcome = Started(tmp_path, "import ctypes; ctypes.string_at(0)").follow()
    assert outcome.status == "crashed"
    assert outcome.message.startswith("the worker was killed by SIGSEGV in phase start\n")
    assert "string_at" in outcome.message


def test_an_exception_is_told_with_the_end_of_its_traceback(tmp_path):
    outcome = Started(tmp_path, "raise ValueError('no such thing')").follow()
    assert "exit code 1" in outcome.message
    assert outcome.message.endswith("ValueError: no such thing")


def test_last_words_are_those_of_this_attempt(tmp_path):
    (tmp_path / "worker.log").write_text("=== the attempt before\nits words\n")
    outcome = Started(tmp_path, "sys.exit(4)").follow()
    assert outcome.message == "the worker ended without a result (exit code 4) in phase start"


def test_a_worker_that_does_not_read_its_request_is_no_trouble(tmp_path):
    assert "exit code 5" in Started(tmp_path, "os.close(0); sys.exit(5)").follow().message


def test_a_timeout_kills_the_worker(tmp_path):
    started = Started(tmp_path, "send(kind='phase', phase='load'); time.sleep(60)", timeout_s=0.5)
    assert started.follow().status == "timeout"
    assert not alive(started.pid)


def test_a_worker_that_hangs_after_its_result_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.run.supervise.EXIT_GRACE_S", 0.3)
    started = Started(tmp_path, "end(load_s=1); time.sleep(60)")
    assert started.follow().measures == {"load_s": 1}
    assert not alive(started.pid)


GRANDCHILD = """
import subprocess
child = subprocess.Popen(["sleep", "60"])
print(child.pid, file=open("{pid}", "w"))
"""


@pytest.mark.parametrize("ending", ["time.sleep(60)", "end()", "os._exit(3)"])
def test_nothing_that_a_worker_started_outlives_it(tmp_path, ending):
    started = Started(tmp_path, GRANDCHILD.format(pid=tmp_path / "pid") + ending, timeout_s=1.0)
    outcome = started.follow(within_s=10.0)
    assert outcome.status in ("timeout", "ok", "crashed")
    grandchild = int((tmp_path / "pid").read_text())
    assert wait_for(lambda: not alive(grandchild))


def test_killing_twice_and_after_the_end_is_harmless(tmp_path):
    started = Started(tmp_path, "end()")
    started.follow()
    started.worker.kill()
    assert list(started.worker.messages()) == []


def test_a_worker_that_was_killed_in_the_middle_of_a_line_has_nothing_more_to_say(tmp_path):
    started = Started(tmp_path, "send(kind='phase', phase='load'); os.write(1, b'half a line'); time.sleep(60)")
    started.follow(until=lambda: started.worker._unread)
    started.worker.kill()
    assert list(started.worker.messages()) == []


def test_no_descriptor_is_left_open(tmp_path):
    Started(tmp_path, "end()").follow()
    before = len(list(Path("/proc/self/fd").iterdir()))
    started = Started(tmp_path, "end()")
    started.follow()
    started.executor._selector.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_worker_has_a_session_of_its_own_so_that_ctrl_c_reaches_the_run_only(tmp_path):
    started = Started(tmp_path, "end(session=os.getsid(0), pid=os.getpid())")
    measures = started.follow().measures
    assert measures["session"] == measures["pid"]


def test_a_worker_sees_the_gpu_of_its_slot_only():
    gpu = Gpu(1, "GPU-77", "NVIDIA L4", 24 * 10**9, "580.1", "GPU-77")
    environment = worker_environment(Slot("gpu1", gpu), {"CUDA_VISIBLE_DEVICES": "0,GPU-77", "HOME": "/home/me"})
    assert environment["CUDA_VISIBLE_DEVICES"] == "GPU-77"
    assert environment["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert environment["HOME"] == "/home/me"
    assert environment["QLORA_BENCH_PARENT"] == str(os.getpid())
    assert "PYTORCH_ALLOC_CONF" not in environment


def test_a_worker_on_the_cpu_sees_no_gpu():
    assert worker_environment(CPU, {"CUDA_VISIBLE_DEVICES": "0"})["CUDA_VISIBLE_DEVICES"] == ""


def test_the_users_own_order_of_gpus_is_kept():
    environment = worker_environment(CPU, {"CUDA_DEVICE_ORDER": "FASTEST_FIRST"})
    assert environment["CUDA_DEVICE_ORDER"] == "FASTEST_FIRST"


def test_a_worker_imports_this_bench_wherever_the_user_stands(tmp_path, monkeypatch):
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__init__.py").write_text("raise SystemError('the wrong one')")
    monkeypatch.chdir(tmp_path)
    code = "import json, bench; print(json.dumps(dict(kind='end', status='ok', phase='load', message=bench.__file__)))"
    executor = LocalExecutor((sys.executable, "-P", "-c", code))
    worker = executor.start(REQUEST, CPU, tmp_path / "log")
    assert wait_for(lambda: worker.ending() is not None)
    assert worker.messages()[0]["message"] == str(Path(bench.__file__).resolve())
    worker.kill()


def test_an_import_root_that_is_there_already_is_not_added_again():
    root = str(Path(bench.__file__).resolve().parent.parent)
    assert worker_environment(CPU, {"PYTHONPATH": f"/elsewhere:{root}"})["PYTHONPATH"] == f"/elsewhere:{root}"


def test_a_request_is_one_line_of_json(tmp_path):
    started = Started(tmp_path, "print(sys.stdin.read(), file=sys.stderr); end()")
    started.follow()
    assert Request.from_json(started.log.read_text()) == REQUEST
    assert json.loads(started.log.read_text())["seed"] == 3


# Workers that are prepared --------------------------------------------------------------------------------------------

READY = (
    END
    + """
send(kind="phase", phase="start")
request = json.loads(sys.stdin.read())
end(seed=request["seed"])
"""
)


def test_a_prepared_worker_takes_the_request_that_comes_later(tmp_path):
    executor, log = LocalExecutor((sys.executable, "-c", READY)), tmp_path / "worker.log"
    executor.prepare(CPU, log)
    (waiting,) = executor._prepared.values()
    time.sleep(0.3)
    assert waiting.ending() is None

    worker = executor.start(REQUEST, CPU, log)

    assert worker is waiting
    outcome = Supervision(worker, SystemClock(), 30.0, lambda message: None)
    while (result := outcome.check()) is None:
        executor.wait(0.05)
    assert (result.status, result.measures) == ("ok", {"seed": REQUEST.seed})


@pytest.mark.parametrize(("slot", "log"), [(Slot("gpu1", GPU), "worker.log"), (CPU, "other.log")])
def test_a_worker_prepared_for_something_else_is_not_taken(tmp_path, slot, log):
    executor = LocalExecutor((sys.executable, "-c", READY))
    executor.prepare(CPU, tmp_path / "worker.log")
    (waiting,) = executor._prepared.values()

    worker = executor.start(REQUEST, slot, tmp_path / log)

    assert worker is not waiting
    worker.kill()
    executor.close()


def test_prepared_workers_are_ended_with_all_that_they_started(tmp_path):
    executor = LocalExecutor((sys.executable, "-c", READY))
    executor.prepare(CPU, tmp_path / "worker.log")
    (waiting,) = executor._prepared.values()
    pid = waiting._process.pid
    assert alive(pid)

    executor.close()

    assert not alive(pid)


def test_a_prepared_worker_that_died_is_a_crash_and_does_not_keep_the_run_busy(tmp_path):
    executor = LocalExecutor((sys.executable, "-c", "raise SystemExit('no such library')"))
    executor.prepare(CPU, tmp_path / "worker.log")
    time.sleep(0.5)
    began = time.monotonic()
    executor.wait(0.2)
    assert time.monotonic() - began > 0.15, "its end is nothing to hear yet"

    worker = executor.start(REQUEST, CPU, tmp_path / "worker.log")

    supervision = Supervision(worker, SystemClock(), 30.0, lambda message: None)
    while (outcome := supervision.check()) is None:
        executor.wait(0.05)
    assert outcome.status == "crashed"
    assert outcome.message.splitlines()[-1] == "no such library"
