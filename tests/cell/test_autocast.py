from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from bench.cell.autocast import MetaAutocast
from bench.cell.blueprint import META

BF16, FP32 = torch.bfloat16, torch.float32


def meta(*shape: int, dtype: torch.dtype = FP32) -> torch.Tensor:
    return torch.empty(*shape, dtype=dtype, device=META)


# By CUDA's lists: what answers in the lower precision, what in float32, and what as it is asked.
CASES = {
    "linear": (lambda x, w: functional.linear(x, w), BF16),
    "matmul": (lambda x, w: x @ w, BF16),
    "bmm": (lambda x, w: torch.bmm(x[None], w[None]), BF16),
    "softmax": (lambda x, w: functional.softmax(x.bfloat16(), -1), FP32),
    "layer_norm": (lambda x, w: functional.layer_norm(x.bfloat16(), (8,)), FP32),
    "pow": (lambda x, w: x.bfloat16().pow(2), FP32),
    "operator": (lambda x, w: x.bfloat16() ** 2, FP32),
    "sum": (lambda x, w: x.bfloat16().sum(), FP32),
    "mean": (lambda x, w: x.bfloat16().mean(), BF16),
    "add": (lambda x, w: x + x, FP32),
    "silu": (lambda x, w: functional.silu(x.bfloat16()), BF16),
}


@pytest.mark.parametrize("name", CASES)
def test_results_have_the_dtypes_that_cuda_s_autocast_gives(name: str) -> None:
    run, dtype = CASES[name]

    with MetaAutocast(BF16):
        assert run(meta(8, 8), meta(8, 8)).dtype == dtype


def test_a_weight_that_trains_is_cast_once_and_anything_else_each_time() -> None:
    casts: list[torch.Tensor] = []

    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default:
                casts.append(result)
            return result

    weight, frozen, x = meta(8, 8).requires_grad_(), meta(8, 8), meta(4, 8)
    with Count(), MetaAutocast(BF16):
        for _ in range(3):
            functional.linear(x, weight)
        assert len(casts) == 3 + 1
        for _ in range(3):
            functional.linear(x, frozen)
        assert len(casts) == 4 + 6


def test_peft_is_told_and_all_is_as_before_afterwards() -> None:
    assert not torch.is_autocast_enabled()
    with MetaAutocast(BF16):
        assert torch.is_autocast_enabled()
        with MetaAutocast(torch.float16):
            assert torch.get_autocast_dtype("cuda") == torch.float16
        assert torch.get_autocast_dtype("cuda") == BF16
    assert not torch.is_autocast_enabled()


def test_float32_computes_as_it_is_asked() -> None:
    with MetaAutocast(FP32):
        assert functional.linear(meta(4, 8, dtype=BF16), meta(8, 8, dtype=BF16)).dtype == BF16
        assert functional.softmax(meta(4, 8, dtype=BF16), -1).dtype == BF16
        assert not torch.is_autocast_enabled()
