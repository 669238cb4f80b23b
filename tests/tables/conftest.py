from __future__ import annotations

import pytest

from bench.matrix.expand import load_matrix
from bench.matrix.plan import plan

from .forecasts import MATRIX


@pytest.fixture
def chosen(tmp_path):
    path = tmp_path / "m.yaml"
    path.write_text(MATRIX)
    return plan(load_matrix(path))
