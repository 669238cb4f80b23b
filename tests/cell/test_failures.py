from __future__ import annotations

import pytest
import torch

from bench.cell import failures
from bench.cell.failures import Diverged, Invalid, Shortage, describe
from bench.protocol import PHASES, STATUSES, Phase

OOM = "out of memory in phase train"
GB, MB = 10**9, 10**6


@pytest.mark.parametrize(
    ("error", "status", "message", "hint"),
    [
        (Invalid("no such layer", "it has q_proj"), "invalid", "no such layer", "it has q_proj"),
        (Diverged("the loss of step 3 of 9 is nan"), "diverged", "the loss of step 3 of 9 is nan", "learning_rate"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom", f"{OOM}: the GPU has no more", "batch_size"),
        (MemoryError(), "oom", f"{OOM}: the host has no more", "batch_size"),
        (RuntimeError("CUDA error: out of memory"), "oom", f"{OOM}: the GPU has no more", "batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "oom", f"{OOM}: the GPU", "batch_size"),
        (RuntimeError("mat1 and mat2"), "crashed", "RuntimeError: mat1 and mat2", "log"),
        (ValueError("first\n\nmuch more"), "crashed", "ValueError: first", "log"),
        (KeyError("x"), "crashed", "KeyError: 'x'", "log"),
        (AssertionError(), "crashed", "AssertionError", "log"),
    ],
)
def test_an_error_becomes_a_status_a_message_and_a_hint(error: Exception, status: str, message: str, hint: str) -> None:
    found = describe(error, "train")

    assert found[0] == status
    assert found[1].startswith(message)
    assert "much more" not in found[1]
    assert hint in str(found[2])
    assert status in STATUSES


def test_memory_of_the_host_that_really_runs_out_is_told_as_such() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)

    assert describe(caught.value, "load")[:2] == ("oom", "out of memory in phase load: the host has no more")


@pytest.mark.parametrize(
    ("shortage", "short_bytes", "words"),
    [
        (
            Shortage(1_250 * MB, 13_200 * MB, 14_900 * MB, 15_400 * MB), 750 * MB,
            "1.25 GB more were asked for with 14.9 GB of 15.4 GB taken (13.2 GB by tensors), 750 MB short",
        ),
        (
            Shortage(20 * MB, 15_400 * MB, 15_400 * MB, 15_400 * MB), 20 * MB,
            "20 MB more were asked for with 15.4 GB of 15.4 GB taken (15.4 GB by tensors), 20 MB short",
        ),
        (
            Shortage(999_600_000, 0, 0, 999_598_464), 1536,
            "1 GB more were asked for with 0 bytes of 1 GB taken (0 bytes by tensors), 1.54 kB short",
        ),
    ],
)  # fmt: skip
def test_memory_that_torch_lacked_is_told_in_figures(shortage: Shortage, short_bytes: int, words: str) -> None:
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.16 GiB. GPU 0 has a total of")

    assert shortage.short_bytes == short_bytes
    assert describe(error, "train", shortage)[1] == f"{OOM}: {words}"


def test_every_phase_that_takes_memory_has_a_hint_of_its_own() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")

    assert {phase for phase in PHASES if describe(error, phase)[2]} == {*PHASES} - {"verify"}
    assert "quantize" in failures.OOM_HINTS["load"]
    assert "nvidia-smi" in failures.OOM_HINTS["start"]


@pytest.mark.parametrize("phase", ["start", "reference"])
def test_memory_that_the_host_lacks_is_not_put_down_to_others_on_the_gpu(phase: Phase) -> None:
    assert describe(MemoryError(), phase) == ("oom", f"out of memory in phase {phase}: the host has no more", None)


@pytest.mark.parametrize("phase", ["verify", "score_before"])  # a base that another cell has scored has no phase
def test_a_base_that_gives_no_number_is_not_put_down_to_training(phase: Phase) -> None:
    *_, hint = describe(Diverged("the held-out loss before training is nan"), phase)

    assert "learning_rate" not in str(hint)
    assert "load_dtype: bfloat16" in str(hint)


def test_the_first_line_of_an_error_is_what_is_wrong() -> None:
    assert failures.first_line(ValueError("\nNo such kind.\nOne of: a, b, c.")) == "No such kind."
    assert failures.first_line(ValueError()) == ""
