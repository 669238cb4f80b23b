from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench.cell import precision, reference, scoring
from bench.cell.reference import HeldOut, Unavailable
from bench.cell.tasks import Example, Task, load_task
from bench.protocol import Request
from tests.cell.examples import CPU, load, parameters
from tests.models import tokenizer

ROOT = Path(__file__).parents[2]
TASK = {"task": "intents", "train_examples": 24, "eval_examples": 24, "max_length": 96}
KEY = "a" * 64
PATIENCE_S = 120

# What a module that Python imports at its start may print: no JSON, no message, no text.
NOISE = """
import os
os.write(1, b'hello\\n{"kind": "end"}\\n{"kind": "progress"}\\n[1, 2]\\n7\\n\\xff\\n')
"""


def held_out(eval_examples: int = 24, max_length: int = 96) -> HeldOut:
    return reference.encode(tokenizer(), load_task("intents", None, 24, eval_examples), max_length)


def request(folder: Path, **given: Any) -> Request:
    asked = parameters(model=str(folder), **{"quant_type": "nf4", **TASK, **given})
    return Request("cell", 0, asked.model_dump(mode="json"), "cpu")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen[str]]:
    """Return the processes that are started from now on."""
    processes: list[subprocess.Popen[str]] = []
    start = subprocess.Popen

    def note(*arguments: Any, **more: Any) -> subprocess.Popen[str]:
        processes.append(start(*arguments, **more))
        return processes[-1]

    monkeypatch.setattr(reference.subprocess, "Popen", note)
    return processes


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have every process of its own end at once, and say nothing."""
    monkeypatch.setattr(sys, "executable", "false")


# The process of its own -----------------------------------------------------------------------------------------------


def test_cells_that_need_a_reference_at_once_have_it_computed_once_as_they_would_themselves(
    tiny: Callable[[str], Path], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    told: list[tuple[int, int]] = []
    asked = request(tiny("llama"))

    def obtain(_: int) -> reference.Reference:
        return reference.obtain(tmp_path / "shared", KEY, asked, lambda done, total: told.append((done, total)))

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(obtain, range(2))

    assert len(started) == 1
    assert told[-1] == (24, 24)
    model = load(tiny("llama"), compute_dtype="bfloat16", load_dtype="bfloat16")
    with precision.autocast(reference.sixteen_bit(parameters(), CPU), CPU):
        scores = scoring.score(model, held_out().prompts, held_out().label_trie)
        ((rows, tokens), *_) = scoring.next_tokens(model, held_out().next_token_prompts)
    for found in (one, other):
        np.testing.assert_array_equal(found.scores.log_likelihoods, scores.log_likelihoods)
        np.testing.assert_array_equal(found.scores.label_lengths, scores.label_lengths)
        assert torch.equal(found.next_tokens()[rows], tokens)

    # A torn file is no reference: it is computed again.
    one.path.write_bytes(one.path.read_bytes()[:-3])
    again = obtain(0)
    assert len(started) == 2
    np.testing.assert_array_equal(again.scores.log_likelihoods, scores.log_likelihoods)


def test_a_model_that_cannot_be_loaded_is_tried_once_and_the_reason_is_kept(
    tiny: Callable[[str], Path], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny("llama").iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())

    for _ in range(2):
        with pytest.raises(Unavailable, match=f"model '{folder}' cannot be loaded") as caught:
            reference.obtain(tmp_path / "shared", KEY, request(folder))

    assert len(started) == 1
    (kept,) = (tmp_path / "shared").glob("*.json")
    assert str(caught.value).endswith(f"; remove {kept} to try again")
    assert "cannot be loaded" in json.loads(kept.read_text())["reason"]


@pytest.mark.usefixtures("failing")
def test_a_failure_that_was_removed_or_is_no_json_is_tried_again(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    def obtain() -> str:
        with pytest.raises(Unavailable) as caught:
            reference.obtain(tmp_path, KEY, request(tmp_path))
        return str(caught.value)

    first = obtain()
    (kept,) = tmp_path.glob("*.json")
    assert first == f"its process ended with code 1 (the cell's log may say why); remove {kept} to try again"
    assert (obtain(), len(started)) == (first, 1)
    kept.unlink()
    assert (obtain(), len(started)) == (first, 2)
    kept.write_text("{")
    assert (obtain(), len(started)) == (first, 3)


def test_where_nothing_can_be_written_there_is_no_reference(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(Unavailable, match=f"see to it that {tmp_path / 'file'} can be written"):
        reference.obtain(tmp_path / "file", KEY, request(tmp_path))


@pytest.mark.parametrize(
    ("number", "told", "is_kept"),
    [
        (signal.SIGKILL, "its process was ended by SIGKILL; the next cell that needs it tries again", False),
        (signal.SIGTERM, "its process was ended by SIGTERM; the next cell that needs it tries again", False),
        (signal.SIGABRT, "its process was ended by SIGABRT; remove", True),
        (signal.SIGRTMIN + 1, f"its process was ended by signal {signal.SIGRTMIN + 1}; remove", True),
    ],
    ids=str,
)
def test_a_process_that_a_signal_ends_is_told_as_such_and_tried_again_where_somebody_sent_it(
    tmp_path: Path, started: list[subprocess.Popen[str]], number: int, told: str, is_kept: bool
) -> None:
    def end() -> None:
        wait_for(lambda: started)
        started[0].send_signal(number)

    sender = threading.Thread(target=end)
    sender.start()
    with pytest.raises(Unavailable, match=f"^{told}"):
        reference.obtain(tmp_path, KEY, request(tmp_path))
    sender.join()
    assert [path.suffix for path in tmp_path.glob("*.json")] == [".json"] * is_kept


def test_what_others_print_in_the_process_is_passed_over(
    tiny: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    monkeypatch.syspath_prepend(tmp_path)
    told: list[tuple[int, int]] = []

    found = reference.obtain(
        tmp_path / "shared", KEY, request(tiny("llama")), lambda done, total: told.append((done, total))
    )

    assert len(found.scores.log_likelihoods) == 24
    assert told[-1] == (24, 24)


def test_a_process_that_takes_too_long_is_ended_and_not_tried_again(
    tiny: Callable[[str], Path], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    for _ in range(2):
        with pytest.raises(Unavailable, match=r"^it was not computed within half of a cell's timeout of 0.2 s; raise"):
            reference.obtain(tmp_path, KEY, request(tiny("llama"), timeout=0.2))

    assert [process.returncode for process in started] == [-signal.SIGKILL]


def test_a_cell_does_not_wait_too_long_for_another(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    with (tmp_path / f"reference-{KEY[:32]}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(
            Unavailable, match=r"^another cell did not have it within half of a cell's timeout of 0.2 s"
        ):
            reference.obtain(tmp_path, KEY, request(tmp_path, timeout=0.2))

    assert not started
    assert not list(tmp_path.glob("*.json"))


def test_a_process_that_cannot_be_started_is_not_put_down_to_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))

    with pytest.raises(Unavailable, match=r"its process cannot be started: .*no_python") as caught:
        reference.obtain(tmp_path, KEY, request(tmp_path))

    assert "written" not in str(caught.value)
    assert not list(tmp_path.glob("*.json"))


def test_a_worker_that_is_killed_takes_the_process_with_it_and_leaves_the_next_one_free_to_try(
    tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    asked = replace(request(tiny("llama")), shared_dir=str(tmp_path))
    worker = subprocess.Popen(
        [sys.executable, "-m", "bench.cell"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
    )
    assert worker.stdin is not None
    with worker.stdin:
        worker.stdin.write(asked.to_json())
    [child] = wait_for(lambda: children(worker.pid))

    wait_for(lambda: has_torch(child))  # by then it has asked the kernel to end with its parent
    worker.kill()
    worker.wait()

    wait_for(lambda: is_gone(child))
    assert not list(tmp_path.glob("*.json"))
    assert not list(tmp_path.glob("*.safetensors"))


def wait_for(what: Callable[[], Any]) -> Any:
    """Return what `what` returns, as soon as that is true."""
    end_s = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < end_s
        time.sleep(0.02)
    return found


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def has_torch(pid: int) -> bool:
    return "libtorch" in Path(f"/proc/{pid}/maps").read_text()


def is_gone(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


# What is asked --------------------------------------------------------------------------------------------------------


def test_next_tokens_are_compared_after_a_stratified_subset_in_the_tasks_order() -> None:
    labels = ("often", "seldom")
    examples = tuple(Example(7 * number, "text", labels[number % 4 == 0]) for number in range(400))
    task = Task("made up", labels, examples, examples)

    chosen = HeldOut(task, [(1,)] * 400, ((2, 0), (3, 0))).next_token_rows

    assert len(chosen) == reference.NEXT_TOKEN_PROMPTS == 256
    assert chosen == sorted(set(chosen))
    assert sum(examples[row].label == "seldom" for row in chosen) == pytest.approx(256 / 4, abs=1)


def test_all_prompts_are_compared_where_there_are_few() -> None:
    assert held_out().next_token_rows == list(range(24))
    assert held_out().next_token_prompts == [held_out().prompts[row] for row in range(24)]


def test_a_reference_is_unquantized_in_16_bits() -> None:
    asked = parameters(quant_type="nf4", compute_dtype="float32", vram_limit="16GB", max_length=40)

    found = reference.sixteen_bit(asked, CPU)

    assert not found.quantized
    assert (found.double_quant, found.kbit_upcast, found.vram_limit) == (False, False, None)
    assert found.compute_dtype == found.load_dtype == "bfloat16"
    assert found.max_length == 40


def test_a_key_does_not_change_with_quantization_and_training(tiny: Callable[[str], Path]) -> None:
    keys = {
        reference.key(parameters(model=str(tiny("llama")), **given), held_out(), CPU)
        for given in (
            {},
            {"quant_type": "nf4"},
            {"quant_type": "fp4", "double_quant": False, "compute_dtype": "bfloat16"},
            {"quant_type": "int8", "vram_limit": "16GB", "target_modules": "mlp", "learning_rate": 1.0},
        )
    }

    assert len(keys) == 1


def test_a_key_changes_with_all_that_a_reference_depends_on(
    tiny: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(name: str = "llama", asked: HeldOut | None = None, **given: Any) -> str:
        return reference.key(parameters(model=str(tiny(name)), **given), asked or held_out(), CPU)

    whole = held_out()
    keys = [
        of(),
        of("qwen2"),
        of(revision="main"),
        of(attn_implementation="eager"),
        of(asked=held_out(eval_examples=20)),
        of(asked=held_out(max_length=30)),
        of(asked=replace(whole, label_tokens=whole.label_tokens[::-1])),
    ]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    keys.append(of())
    monkeypatch.setattr(reference, "NEXT_TOKEN_PROMPTS", 8)
    keys.append(of())
    weights = tiny("llama") / "model.safetensors"
    stamps = weights.stat()
    os.utime(weights, ns=(stamps.st_atime_ns, stamps.st_mtime_ns + 1))
    keys.append(of())

    assert len(set(keys)) == len(keys)
