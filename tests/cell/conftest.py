"""Fixtures of the cell's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    # A tiny model gains nothing from a second thread, and waits for it where the other cores are busy.
    torch.set_num_threads(1)


@pytest.fixture
def all_cores() -> Iterator[None]:
    """For the few tests that have real work to do."""
    torch.set_num_threads(torch.get_num_interop_threads())
    yield
    torch.set_num_threads(1)
