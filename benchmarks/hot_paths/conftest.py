"""Has pytest-benchmark say what its figures are here, and write nothing that differs from machine to machine."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.hot_paths.clock import UNIT


def pytest_benchmark_scale_unit(unit: str) -> tuple[str, float]:
    """Name the unit, where pytest-benchmark puts its plural: "time in reference loops"."""
    return (UNIT if unit == "seconds" else ""), 1.0


def pytest_benchmark_generate_machine_info() -> dict[str, str]:
    """Say that figures of two machines are alike; pytest-benchmark warns where this differs."""
    return {"unit": UNIT}


def pytest_benchmark_generate_commit_info() -> dict[str, str]:
    return {}


@pytest.hookimpl(trylast=True)
def pytest_benchmark_update_json(output_json: dict[str, Any]) -> None:
    for entry in output_json["benchmarks"]:
        del entry["stats"]["data"]
