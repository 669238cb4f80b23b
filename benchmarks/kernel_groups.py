"""GPU kernels by what they do, told by their names; without a GPU, torch's operators."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

OTHER = "other"

# Kernels by what they do, and torch's own operators where there is no GPU. The first expression found in a name wins:
# attention's kernels name cutlass too, and what gathers or copies is elementwise by its outer name.
GROUPS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile("|".join(expressions)))
    for name, *expressions in (
        ("memcpy, memset", r"^Mem(cpy|set)"),
        ("autograd, views (host)", r"^(torch::)?autograd::", r"Backward\d*$",
         r"^(aten::)?(detach|alias|t|transpose|permute|view|_unsafe_view|reshape|_reshape_alias|as_strided|slice"
         r"|slice_backward|narrow|select|expand|unsqueeze|squeeze|flatten|lift_fresh|result_type"
         r"|empty|empty_like|empty_strided|zeros|ones|zeros_like|ones_like|new_empty|new_zeros|scalar_tensor"
         r"|resize_|resolve_conj|resolve_neg|item|_local_scalar_dense|is_nonzero|_has_compatible_shallow_copy_type)$"),
        # Codes of bitsandbytes' DataType_t: 0 is 8 bit, as block scales are with double quantization.
        ("dequantize scales", r"kDequantizeBlockwise<[^>]*, (\(int\))?0>", r"^bitsandbytes::dequantize_blockwise"),
        ("dequantize", r"kDequantize", r"kdequant", r"^bitsandbytes::\w*dequant"),
        ("quantize", r"kQuantize", r"kInt8VectorQuant", r"^bitsandbytes::(quantize|int8_\w*quant)"),
        ("optimizer", r"kOptimizer", r"kPrecondition", r"kPercentileClipping", r"multi_tensor_apply",
         r"lpnorm_cleanup", r"amp_update_scale", r"_amp_foreach", r"^aten::(_foreach_|_fused_)",
         r"^bitsandbytes::optimizer_update"),
        ("loss", r"LogSoftMax", r"nll_loss", r"log_softmax", r"^aten::cross_entropy"),
        ("attention", r"flash", r"fmha", r"sdpa", r"AttentionKernel", r"cudnn::fusion", r"_scaled_dot_product",
         r"^aten::scaled_dot_product", r"softmax_warp", r"cunn_SoftMax", r"^aten::_?softmax", r"_safe_softmax"),
        ("matmul, 4-bit", r"gemm_4bit", r"gemv_4bit", r"^MatMul4Bit$"),
        ("matmul", r"gemm", r"gemv", r"cutlass", r"nvjet", r"xmma", r"cublas", r"splitK", r"mkldnn",
         r"^bitsandbytes::int8_\w*matmul", r"^aten::(mm|bmm|addmm|baddbmm|mv|addmv|dot|matmul|linear)$"),
        ("dropout, random", r"dropout", r"masked_scale", r"distribution_", r"[Bb]ernoulli",
         r"^aten::(normal_|uniform_|rand\w*)$"),
        ("norm, reduction", r"reduce_kernel", r"[Ll]ayer_?[Nn]orm", r"RMSNorm", r"rms_norm", r"GammaBeta",
         r"^aten::(sum|mean|norm|linalg_vector_norm|amax|amin|max|min|all|any|argmax)$"),
        ("indexing", r"index_elementwise", r"index_kernel", r"indexSelect", r"indexing_backward", r"[Gg]ather",
         r"[Ss]catter", r"[Ee]mbedding", r"cub::",
         r"^aten::(_?index\w*|_index_put_impl_|gather|sort|nonzero)$"),
        ("copy, cast", r"copy_kernel", r"CatArray", r"^aten::(copy_|_to_copy|to|cat|stack|clone|contiguous)$"),
        ("elementwise", r"elementwise_kernel", r"FillFunctor", r"triu_tril",
         r"^aten::(fill_|zero_|(add|sub|mul|div|pow|rsqrt|sqrt|neg|silu|silu_backward|sigmoid|gelu|gelu_backward"
         r"|tanh|exp|log|cos|sin|where|masked_fill|clamp|reciprocal|arange|eq|ne|ge|gt|le|lt|bitwise_and|logical_and"
         r"|addcmul|addcdiv|lerp|isfinite|abs)_?)$"),
    )
)  # fmt: skip
GROUP_NAMES = (*(name for name, _ in GROUPS), OTHER)


@dataclass(frozen=True)
class Kernel:
    """All runs of one kernel in one step; on a CPU, of one of torch's operators, without those that it calls."""

    name: str
    group: str
    count: int
    total_s: float


def group_of(name: str) -> str:
    """Return the group of a kernel, or of an operator, by its name; `other` where no expression finds it."""
    return next((group for group, expression in GROUPS if expression.search(name)), OTHER)


def collect(runs: Iterable[tuple[str, float]]) -> tuple[Kernel, ...]:
    """Add up runs, each a name and its seconds, by name; those that took longest come first."""
    counts: Counter[str] = Counter()
    totals_s: dict[str, float] = {}
    for name, seconds in runs:
        counts[name] += 1
        totals_s[name] = totals_s.get(name, 0.0) + seconds
    ordered = sorted(totals_s, key=lambda name: -totals_s[name])
    return tuple(Kernel(name, group_of(name), counts[name], totals_s[name]) for name in ordered)


def by_group(kernels: Iterable[Kernel]) -> dict[str, dict[str, float]]:
    """Return `count` and `total_s` of each group that occurs, in the order of `GROUP_NAMES`."""
    kernels = tuple(kernels)
    found = {}
    for group in GROUP_NAMES:
        if members := [kernel for kernel in kernels if kernel.group == group]:
            found[group] = {
                "count": sum(kernel.count for kernel in members),
                "total_s": math.fsum(kernel.total_s for kernel in members),
            }
    return found
