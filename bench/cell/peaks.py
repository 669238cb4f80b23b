"""What a device can do at most: copy memory, and multiply large matrices."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch.nn.functional import linear

from bench.cell.kernels import SEED, Operation
from bench.cell.precision import DTYPES

# Products [m, k] x [k, n]; the best of them is the peak.
PRODUCTS: dict[str, tuple[tuple[int, int, int], ...]] = {
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192), (16384, 8192, 8192), (16384, 16384, 8192)),
    "cpu": ((256, 256, 256), (512, 512, 512)),
}
COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 27}


def copy(device: torch.device) -> Operation:
    """Return a copy from one place in a device's memory to another."""
    operands = SimpleNamespace(source=torch.ones(COPIED_BYTES[device.type], dtype=torch.uint8, device=device))
    target = torch.empty_like(operands.source)
    size = target.nbytes
    return Operation(
        lambda: target.copy_(operands.source), ((operands, "source"),), ((operands.source,),), stored_bytes=0,
        result_bytes=0, moved_bytes=2 * size, flops_count=0, launched="cuda_graph",
    )  # fmt: skip


def product(compute_dtype: str, size: tuple[int, int, int], device: torch.device) -> Operation:
    """Return a product of matrices [m, k] and [k, n], laid out as a linear layer has them."""
    m, k, n = size
    random = torch.Generator(device).manual_seed(SEED)
    # Random numbers: zeros switch fewer transistors, so that a GPU need not lower its clock.
    rows, weight = (
        torch.randn(length, k, device=device, dtype=DTYPES[compute_dtype], generator=random) for length in (m, n)
    )
    operands = SimpleNamespace(rows=rows)
    result_bytes = m * n * rows.itemsize
    return Operation(
        lambda: linear(operands.rows, weight), ((operands, "rows"),), ((rows,),), stored_bytes=weight.nbytes,
        result_bytes=result_bytes, moved_bytes=rows.nbytes + weight.nbytes + result_bytes, flops_count=2 * m * k * n,
        launched="cuda_graph",
    )  # fmt: skip
