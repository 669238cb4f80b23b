from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.cell import encoding
from tests.benchmarks.scripts import script
from tests.benchmarks.test_flops import TINY
from tests.models import config


@pytest.mark.slow
def test_the_script_measures_both_sides(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    config("llama").save_pretrained(tmp_path / "model")
    small = ("--model", tmp_path / "model", "--batch-size", "2", "--max-length", "32", "--steps", "4")

    done = script("large_shape", *small, "--device", "cpu", "--meter-rounds", "1", "--out", out)

    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert found["settings"]["parameters"]["weights"] == "random"
    assert found["environment"]["torch"] == torch.__version__
    assert found["ours"]["work"] == asdict(TINY)
    assert found["ours"]["logits_share"] == encoding.SYNTHETIC_LABEL_TOKENS / 32

    peak = found["matmul"]
    assert peak["tflops_per_s"] == max(size["tflops_per_s"] for size in peak["sizes"])
    assert all(
        size["tflops_per_s"] == pytest.approx(2e-12 * size["m"] * size["k"] * size["n"] / size["p50_s"])
        for size in peak["sizes"]
    )
    derived = found["derived"]
    for part in ("trainer", "ours"):
        side = found[part]
        assert len(side["steps_s"]) == side["timed_steps_count"] == 4
        assert side["step_p50_s"] == pytest.approx(np.median(side["steps_s"]))
        assert side["tokens_per_s"] == pytest.approx(2 * 32 / side["step_p50_s"])
        assert side["peak_bytes"] > 10**8
        flops_per_s = side["tokens_per_s"] * derived["model_flops_per_token"]
        assert derived["mfu"][part] == pytest.approx(flops_per_s / peak["tflops_per_s"] / 1e12)
        assert derived["hfu"][part] > derived["mfu"][part] > 0
    ratio = found["trainer"]["step_p50_s"] / found["ours"]["step_p50_s"]
    assert derived["tokens_per_s_over_trainer"] == {"ours": pytest.approx(ratio)}
    assert f"ours / Trainer in tokens/s: {ratio:.3f}" in done.stdout

    cost = found["ours"]["meters"]
    assert cost["ratios"] == pytest.approx([on / off for on, off in zip(cost["on_s"], cost["off_s"], strict=True)])
    assert len(cost["ratios"]) == 2
    assert cost["ratio_min"] <= cost["ratio_p50"] <= cost["ratio_max"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--device", "cpu", "--graph"), "error: --graph needs a CUDA GPU; leave it out"),
        (("--model", "qwen2.5-8b"), "'qwen2.5-8b' is no folder with a config.json, and none of smollm2-135m"),
    ],
)
def test_a_users_mistake_is_told_and_exits_with_2(arguments: tuple[str, ...], message: str) -> None:
    done = script("large_shape", *arguments)

    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
