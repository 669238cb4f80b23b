"""Fixtures of the cell's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

THREADS = torch.get_num_threads()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    # A tiny model gains nothing from a second thread, and waits for it where the other cores are busy.
    torch.set_num_threads(1)


@pytest.fixture
def all_threads() -> Iterator[None]:
    """For the few tests with real work to do."""
    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(1)
