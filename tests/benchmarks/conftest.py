"""Fixtures of the scripts' tests."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.benchmarks.scripts import script
from tests.models import config

MATRIX_TEXT = """\
schema: 1
name: tiny
about: Does it run?
defaults: {{model: {model}, weights: random, max_length: 16, batch_size: 2, execution: cuda_graph}}
include:
  - {{id: nf4-8bit, quant_type: nf4, optim: paged_adamw_8bit}}
seeds: [3, 4]
"""


@pytest.fixture(scope="session")
def step_time(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """Give the document of a run of `benchmarks.step_time` with one cell, and what it printed."""
    folder = tmp_path_factory.mktemp("step-time")
    config("llama").save_pretrained(folder / "model")
    (folder / "tiny.yaml").write_text(MATRIX_TEXT.format(model=folder / "model"))
    ended = script("step_time", folder / "tiny.yaml", "--device", "cpu", "--out", folder / "out.json", "--top", "3")
    assert ended.returncode == 0, ended.stderr
    return json.loads((folder / "out.json").read_text()), ended.stdout
