"""Autocast on the meta device, which torch's own leaves out: the casts that CUDA's autocast would make."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn import functional
from torch.overrides import TorchFunctionMode

SPACES = (torch, torch.Tensor, functional)


def _named(*names: str) -> frozenset[Any]:
    return frozenset(getattr(space, name) for name in names for space in SPACES if hasattr(space, name))


# CUDA's lists (docs.pytorch.org/docs/stable/amp.html): what runs in the lower precision, and what in float32.
LOWER = _named(
    "linear", "matmul", "__matmul__", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "einsum",
    "chain_matmul", "conv1d", "conv2d", "conv3d", "scaled_dot_product_attention",
)  # fmt: skip
FLOAT32 = _named(
    "pow", "__pow__", "__rpow__", "rsqrt", "reciprocal", "exp", "expm1", "log", "log10", "log1p", "log2", "softplus",
    "norm", "normalize", "layer_norm", "group_norm", "softmax", "log_softmax", "cross_entropy", "nll_loss", "mse_loss",
    "cosine_similarity", "cumprod",
)  # fmt: skip
# These take their input as it is and only answer in float32.
FLOAT32_RESULT = _named("sum", "prod", "cumsum")


class MetaAutocast(TorchFunctionMode):
    """Casts arguments as autocast does; float32 weights that train are cast once, and kept until the end."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        self._enabled = dtype != torch.float32
        self._kept: dict[int, torch.Tensor] = {}
        self._before: tuple[bool, torch.dtype] | None = None

    def __enter__(self) -> MetaAutocast:
        # PEFT looks here for whether autocast is on.
        self._before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
        torch.set_autocast_enabled("cuda", self._enabled)
        torch.set_autocast_dtype("cuda", self._dtype)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._kept.clear()
        if self._before:
            torch.set_autocast_enabled("cuda", self._before[0])
            torch.set_autocast_dtype("cuda", self._before[1])

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if self._enabled and func in LOWER:
            args, kwargs = [self._lower(value) for value in args], {k: self._lower(v) for k, v in kwargs.items()}
        elif self._enabled and func in FLOAT32:
            args, kwargs = [_float32(value) for value in args], {k: _float32(v) for k, v in kwargs.items()}
        elif self._enabled and func in FLOAT32_RESULT and isinstance(args[0], torch.Tensor) and _is_half(args[0]):
            kwargs.setdefault("dtype", torch.float32)
        return func(*args, **kwargs)

    def _lower(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.is_floating_point() or value.dtype == self._dtype:
            return value
        if value.requires_grad and value.is_leaf and value.dtype == torch.float32:
            if id(value) not in self._kept:
                self._kept[id(value)] = value.to(self._dtype)
            return self._kept[id(value)]
        return value.to(self._dtype)


def _float32(value: Any) -> Any:
    return value.float() if isinstance(value, torch.Tensor) and _is_half(value) else value


def _is_half(value: torch.Tensor) -> bool:
    return value.dtype in (torch.float16, torch.bfloat16)
