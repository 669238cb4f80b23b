from __future__ import annotations

from pathlib import Path

import pytest

from bench.errors import BenchError
from bench.matrix.expand import Matrix, load_matrix
from bench.matrix.kernels import Case, KernelMatrix, load_kernels

# The matrix of the design, whole.
DESIGN = """\
schema: 1
name: default
about: Which 4-bit settings should a QLoRA run use?
defaults:                     # one value each; any cell parameter
  model: smollm2-135m
  task: banking77
  batch_size: 32
axes:                         # any cell parameter with a list
  quant_type: [nf4, fp4]
  double_quant: [false, true]
  compute_dtype: [bfloat16, float16]
  target_modules: [attention, all-linear]
exclude:                      # partial matches; applied before include
  - {quant_type: fp4, double_quant: true}
overrides:                    # change matching cells; never create one
  - when: {compute_dtype: float16}
    set: {learning_rate: 1e-4}
include:                      # extra rows, one line each
  - {id: lora-bf16, quant_type: none}
baseline: lora-bf16           # the row that the others are compared with
seeds: [0, 1, 2]
"""

# The first three lines of a matrix that is right; what a test is about begins in line 4.
SMALL = """\
schema: 1
axes:
  quant_type: [nf4, fp4]
"""

# The same of kernels: what a test is about begins in line 5.
SMALL_KERNELS = """\
schema: 1
kind: kernels
axes:
  quant_type: [nf4, fp4]
"""


def load(folder: Path, text: str | bytes, max_cells: int = 10_000) -> Matrix:
    path = folder / "m.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_matrix(path, max_cells)


def mistakes(folder: Path, text: str | bytes, max_cells: int = 10_000) -> list[str]:
    """The problems of a file as they are printed, without the folder before the file's name."""
    with pytest.raises(BenchError) as caught:
        load(folder, text, max_cells)
    return _printed(caught.value, folder)


def ids(matrix: Matrix) -> list[str]:
    return [cell.id for cell in matrix.cells]


def kernels(folder: Path, text: str) -> KernelMatrix:
    path = folder / "k.yaml"
    path.write_text(text)
    return load_kernels(path)


def cases(folder: Path, text: str) -> dict[str, Case]:
    return {case.id: case for case in kernels(folder, text).cases}


def mistakes_of_kernels(folder: Path, text: str) -> list[str]:
    """As `mistakes`, of a matrix of kernels."""
    with pytest.raises(BenchError) as caught:
        kernels(folder, text)
    return _printed(caught.value, folder)


def _printed(error: BenchError, folder: Path) -> list[str]:
    return [str(problem).replace(f"{folder}/", "") for problem in error.problems]
