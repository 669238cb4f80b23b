from __future__ import annotations

import pytest
import torch

from bench.cell import failures
from bench.cell.failures import Diverged, Invalid, describe
from bench.protocol import PHASES, STATUSES


@pytest.mark.parametrize(
    ("error", "status", "message", "hint"),
    [
        (Invalid("no such layer", "it has q_proj"), "invalid", "no such layer", "it has q_proj"),
        (Diverged("the loss of step 3 of 9 is nan"), "diverged", "the loss of step 3 of 9 is nan", "learning_rate"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), "oom", "CUDA out of memory. Tried", "batch_size"),
        (MemoryError(), "oom", "MemoryError", "batch_size"),
        (RuntimeError("CUDA error: out of memory"), "oom", "CUDA error: out of memory", "batch_size"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when"), "oom", "CUDA error: CUBLAS", "batch_size"),
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

    assert describe(caught.value, "load")[0] == "oom"


def test_every_phase_that_takes_memory_has_a_hint_of_its_own() -> None:
    error = torch.OutOfMemoryError("CUDA out of memory.")

    assert {phase for phase in PHASES if describe(error, phase)[2]} == {
        "load", "score_before", "adapt", "train", "score_after",
    }  # fmt: skip
    assert "quantize" in failures.OOM_HINTS["load"]


def test_the_first_line_of_an_error_is_what_is_wrong() -> None:
    assert failures.first_line(ValueError("\nNo such kind.\nOne of: a, b, c.")) == "No such kind."
    assert failures.first_line(ValueError()) == ""
