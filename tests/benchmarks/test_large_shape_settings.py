from __future__ import annotations

import re
from typing import Any

import pytest

from bench.cell import encoding
from bench.errors import BenchError
from benchmarks.large_shape_settings import PAD_MULTIPLE, settings_of


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_length": 100}, "--max-length: 100 is no multiple of 8, .*; take 104"),
        ({"quant_type": "none", "double_quant": True}, "double_quant: true needs 4-bit weights"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], message: str) -> None:
    asked = {"model": "qwen2.5-7b", "batch_size": 2, "max_length": 32, "quant_type": "nf4", "double_quant": None}

    with pytest.raises(BenchError) as caught:
        settings_of("cpu", 4, 1, **{**asked, "optim": "adamw_torch", **given})

    assert re.match(message, str(caught.value.problems[0]))


def test_sequences_are_whole_numbers_of_what_batches_are_padded_to() -> None:
    assert PAD_MULTIPLE == encoding.PAD_MULTIPLE
