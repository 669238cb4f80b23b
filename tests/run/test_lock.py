from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from bench.errors import BenchError
from bench.run.lock import LOCK, hold

NOW = datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC)
HOLDER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from bench.run.lock import hold
with hold(Path(sys.argv[1]), datetime(2025, 1, 2, tzinfo=UTC)):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path):
    """Another process that holds the lock of `tmp_path` until its stdin is closed."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with process:
        yield process
        process.kill()


def test_the_lock_says_who_holds_it_and_is_gone_afterwards(tmp_path):
    with hold(tmp_path, NOW):
        holder = json.loads((tmp_path / LOCK).read_text())
        assert (holder["pid"], holder["since"]) == (os.getpid(), "2025-01-02T03:04:05Z")
    assert list(tmp_path.iterdir()) == []


def test_a_second_run_is_told_who_holds_the_folder(tmp_path, other):
    message = rf"{tmp_path} is in use by process {other.pid} on .*, since 2025-01-02T"
    with pytest.raises(BenchError, match=message), hold(tmp_path, NOW):
        pytest.fail("held twice")
    assert json.loads((tmp_path / LOCK).read_text())["pid"] == other.pid


def test_the_lock_is_free_when_its_holder_has_ended(tmp_path, other):
    other.communicate()
    with hold(tmp_path, NOW):
        pass


def test_a_holder_that_was_killed_leaves_a_file_and_no_lock(tmp_path, other):
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert (tmp_path / LOCK).exists()
    with hold(tmp_path, NOW):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_the_lock_is_let_go_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path, NOW):
        raise ZeroDivisionError
    with hold(tmp_path, NOW):
        pass


def test_a_lock_on_a_file_that_was_removed_meanwhile_is_not_taken_for_one(tmp_path, monkeypatch):
    real_open, opened = os.open, []

    def open_and_lose_once(path, *arguments):
        descriptor = real_open(path, *arguments)
        opened.append(descriptor)
        if len(opened) == 1:
            path.unlink()  # as its holder does in the moment between
        return descriptor

    monkeypatch.setattr(os, "open", open_and_lose_once)
    with hold(tmp_path, NOW):
        monkeypatch.undo()
        assert len(opened) == 2
        with pytest.raises(BenchError), hold(tmp_path, NOW):
            pytest.fail("held twice")


def test_who_holds_it_may_be_unreadable(tmp_path, other):
    (tmp_path / LOCK).write_text("")
    with pytest.raises(BenchError, match="in use by another run"), hold(tmp_path, NOW):
        pytest.fail("held twice")


EAGER = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from bench.errors import BenchError
from bench.run.lock import hold
folder = Path(sys.argv[1])
for _ in range(300):
    try:
        with hold(folder, datetime.now(UTC)):
            (folder / "inside").touch(exist_ok=False)
            (folder / "inside").unlink()
    except BenchError:
        pass
"""


def test_never_are_two_inside_though_each_removes_the_file(tmp_path):
    rivals = [subprocess.Popen([sys.executable, "-c", EAGER, str(tmp_path)]) for _ in range(3)]
    assert [rival.wait() for rival in rivals] == [0, 0, 0]
