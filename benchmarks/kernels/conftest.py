"""Turns a matrix of kernels into benchmarks, gives them the GPU's clock, and completes pytest-benchmark's JSON."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.cell.worker import provenance
from bench.errors import BenchError
from bench.matrix.kernels import load_kernels
from bench.matrix.select import select_cells
from bench.tables.kernel_file import SCHEMA
from benchmarks.kernels.session import Session

SESSION = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("kernels", "kernel benchmarks")
    group.addoption("--matrix", type=Path, default=Path("matrices/kernels.yaml"), help="a matrix of kernels")
    group.addoption("--cases", metavar="EXPR", help="only cases whose id matches")
    group.addoption("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=("cuda", "cpu"),
                    help="where the kernels run; default: cuda where torch sees a GPU")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    try:
        matrix = load_kernels(option.matrix)
        cases = select_cells(matrix.cases, option.cases, noun="case") if option.cases else matrix.cases
    except BenchError as error:
        raise pytest.UsageError(str(error)) from None
    if option.device == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError("torch sees no GPU: install torch with CUDA (pytorch.org), or give --device=cpu")
    config.stash[SESSION] = Session(matrix, cases, torch.device(option.device))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    session = metafunc.config.stash[SESSION]
    for name, values in (("case", session.cases), ("peak", session.peaks)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values, ids=[value.id for value in values])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    session = config.stash[SESSION]
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=session.clock))
    # What is there by now stays; looking through it again and again would take longer than some benchmarks.
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def session(pytestconfig: pytest.Config) -> Session:
    return pytestconfig.stash[SESSION]


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Say what the figures depend on, and not which machine it was."""
    cpu = machine_info["cpu"].get("brand_raw")
    kept = {name: machine_info[name] for name in ("system", "machine")}
    found = provenance(config.stash[SESSION].device)
    machine_info.clear()
    machine_info.update({**kept, "cpu": cpu, **found, "gpu": found.get("gpu_name")})


def pytest_benchmark_update_json(config: pytest.Config, output_json: dict[str, Any]) -> None:
    session = config.stash[SESSION]
    output_json["schema"] = SCHEMA
    output_json["matrix"] = {"name": session.matrix.name, "about": session.matrix.about}
    output_json["refused"] = session.refused
