from __future__ import annotations

import json
import os
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
from hypothesis import given
from hypothesis import strategies as st

from bench.cell import precision, reference, scoring, trie
from bench.cell.reference import HeldOut, Unavailable
from bench.cell.scoring import Scores
from bench.cell.tasks import Example, Task, load_task
from bench.protocol import Request
from tests.cell.examples import CPU, load, parameters
from tests.models import tokenizer

ROOT = Path(__file__).parents[2]
TASK = {"task": "intents", "train_examples": 24, "eval_examples": 24, "max_length": 96}
KEY = "a" * 64
PATIENCE_S = 120


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
        scores = scoring.score(model, held_out().prompts, trie.build(held_out().labels))
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


def test_a_process_that_is_killed_is_told_as_such(
    tiny: Callable[[str], Path], tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    def kill() -> None:
        while not started:
            time.sleep(0.01)
        started[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Unavailable, match="its process was ended by SIGKILL"):
        reference.obtain(tmp_path, KEY, request(tiny("llama")))
    killer.join()


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
        of(asked=replace(whole, labels=whole.labels[::-1])),
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


# Comparison -----------------------------------------------------------------------------------------------------------


def test_the_divergence_of_known_distributions() -> None:
    reference_rows = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.25, 0.75]]).log()
    found = torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.75, 0.25]]).log()

    divergence = reference.divergences(reference_rows, found)

    expected = [0.0, 0.9 * np.log(1.8) + 0.1 * np.log(0.2), 0.25 * np.log(1 / 3) + 0.75 * np.log(3)]
    assert divergence.dtype == torch.float64
    np.testing.assert_allclose(divergence, expected, rtol=1e-6, atol=1e-12)
    assert divergence[0] == 0.0


@given(st.integers(0, 2**32 - 1), st.integers(2, 3000), st.sampled_from([1e-6, 1e-3, 1.0, 30.0]), st.floats(-50, 50))
def test_a_divergence_is_never_below_zero_and_does_not_change_with_a_constant(
    seed: int, outcomes: int, noise: float, constant: float
) -> None:
    random = torch.Generator().manual_seed(seed)
    one = torch.randn(3, outcomes, generator=random).log_softmax(-1)
    other = (one + noise * torch.randn(3, outcomes, generator=random)).log_softmax(-1)

    divergence = reference.divergences(one, other)

    assert (divergence >= 0).all()
    assert (reference.divergences(one, one) == 0).all()
    shifted = reference.divergences(one.double(), other.double() + constant)
    np.testing.assert_allclose(shifted, divergence, rtol=1e-6, atol=1e-12)


def test_labels_of_known_tables_are_compared() -> None:
    half = np.log([0.5, 0.5])
    of_reference = Scores(np.array([half, [0.0, -5.0], [-3.0, 0.0]], np.float32), np.array([1, 1]))
    found = Scores(np.array([half - 7, [-9.0, -8.0], [-3.0, 0.0]], np.float32), np.array([1, 1]))

    measures = reference.compare_labels(of_reference, found)

    p, q = 1 / (1 + np.exp(-5)), 1 / (1 + np.e)
    expected = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert measures["label_kl_before"] == pytest.approx(expected / 3, rel=1e-6)
    assert measures["label_agreement_before"] == pytest.approx(2 / 3)


@pytest.fixture
def next_tokens(tiny: Callable[[str], Path]) -> tuple[torch.Tensor, list[tuple[int, ...]]]:
    prompts = held_out().next_token_prompts
    found = torch.empty(24, 512)
    for rows, part in scoring.next_tokens(load(tiny("llama")), prompts):
        found[rows] = part
    return found, prompts


def test_a_model_agrees_with_itself(
    tiny: Callable[[str], Path], next_tokens: tuple[torch.Tensor, list[tuple[int, ...]]]
) -> None:
    found, prompts = next_tokens

    measures = reference.compare_next_tokens(load(tiny("llama")), prompts, found)

    assert measures == {"next_token_prompts_count": 24, "next_token_kl_before": 0.0, "next_token_agreement_before": 1.0}


def test_a_quantized_models_next_tokens_differ_by_what_numpy_finds(
    tiny: Callable[[str], Path], next_tokens: tuple[torch.Tensor, list[tuple[int, ...]]]
) -> None:
    of_reference, prompts = next_tokens
    model = load(tiny("llama"), quant_type="nf4")
    found = np.empty((24, 512))
    with torch.inference_mode():
        for row, prompt in enumerate(prompts):
            found[row] = model(input_ids=torch.tensor([prompt])).logits[0, -1].double().log_softmax(-1).numpy()

    measures = reference.compare_next_tokens(model, prompts, of_reference)

    log_p = of_reference.double().numpy()
    expected = (np.exp(log_p) * (log_p - found)).sum(1).mean()
    assert measures["next_token_kl_before"] == pytest.approx(expected, rel=1e-3)
    assert expected > 1e-3
    assert measures["next_token_agreement_before"] == (log_p.argmax(1) == found.argmax(1)).mean()
