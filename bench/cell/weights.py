"""One weight quantized and back as loading does it, and how far off it is then."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

import bitsandbytes as bnb
import torch
from safetensors import safe_open
from transformers.utils import SAFE_WEIGHTS_NAME

from bench.cell import sources
from bench.cell.blueprint import BLOCK_SIZE
from bench.cell.precision import DTYPES
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.parameters import Parameters

# Block scales of double quantization are quantized in blocks of so many.
NESTED_BLOCK_SIZE = 256

# A quantized weight, packed, and its QuantState; of int8, its scales.
Stored = tuple[torch.Tensor, Any]


def random_weight(out_features: int, in_features: int, dtype: torch.dtype, random: torch.Generator) -> torch.Tensor:
    """Draw a Gaussian weight [out_features, in_features], as wide as a model's before it is trained."""
    return sources.RANDOM_STD * torch.randn(
        out_features, in_features, device=random.device, dtype=dtype, generator=random
    )


def quantize(weight: torch.Tensor, p: KernelParameters) -> Stored:
    """Quantize a weight as loading does."""
    if p.quant_type == "int8":
        packed, scales, _ = bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
        return packed, scales
    stored: Stored = bnb.functional.quantize_4bit(
        weight, blocksize=BLOCK_SIZE, compress_statistics=p.double_quant, quant_type=p.quant_type
    )
    return stored


def dequantize(stored: Stored, p: KernelParameters) -> torch.Tensor:
    """Return a quantized weight as numbers: in the dtype it was quantized from, int8 in float32."""
    restore = bnb.functional.int8_vectorwise_dequant if p.quant_type == "int8" else bnb.functional.dequantize_4bit
    whole: torch.Tensor = restore(*stored)
    return whole


def launch_quantize(weight: torch.Tensor, p: KernelParameters, code: torch.Tensor | None) -> Any:
    """Launch the kernels of `quantize`, without the tables of codes that `quantize_4bit` copies from the host.

    `code` is that of the nested scales, where there is double quantization.
    """
    if p.quant_type == "int8":
        return bnb.functional.int8_vectorwise_quant(weight.to(torch.float16))
    ops = torch.ops.bitsandbytes
    packed, absmax = ops.quantize_4bit(weight, BLOCK_SIZE, p.quant_type, torch.uint8)
    if code is None:
        return packed, absmax
    offset = absmax.mean()
    return packed, offset, ops.quantize_blockwise(absmax - offset, code, NESTED_BLOCK_SIZE)


def scales_of(state: Any) -> list[tuple[Any, str]]:
    """Return where a QuantState keeps its scales: an object and the name of its attribute, nested ones too."""
    return [(state, "absmax"), *([(state.state2, "absmax")] if state.nested else [])]


def stored_bytes(stored: Stored) -> int:
    """Return the bytes of a quantized weight: packed numbers, scales, codes, and the nested ones."""
    packed, state = stored
    tensors = [packed]
    if isinstance(state, torch.Tensor):
        tensors += [state]
    else:
        tensors += [state.absmax, state.code]
        tensors += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return sum(tensor.nbytes for tensor in tensors)


def error_of(weight: torch.Tensor, p: KernelParameters) -> float:
    """Return the root mean square of a weight's errors once it is quantized, over the weight's standard deviation."""
    if p.quant_type == "none":
        return 0.0
    error = dequantize(quantize(weight, p), p).float() - weight.float()
    return float(error.square().mean().sqrt() / weight.float().std())


def packaged_error(p: KernelParameters, cache_dir: Path | None, device: torch.device) -> float | None:
    """Return the mean error of the packaged model's layers of a name, weighted by their size; see `error_of`.

    None where it has no layer of that name, such as where a layer is written as OUTxIN.

    Raises:
        Invalid: the packaged model is not installed.
    """
    settings = p.model_copy(update={"operation": "quantize", "model": "", "rows": 1, "lora_r": 0})
    return _packaged_error(settings, cache_dir, device)


@cache
def _packaged_error(p: KernelParameters, cache_dir: Path | None, device: torch.device) -> float | None:
    named = [weight for name, weight in packaged_weights(cache_dir).items() if name.endswith(f".{p.layer}.weight")]
    if not named:
        return None
    errors = [(weight.numel(), error_of(weight.to(device, DTYPES[p.compute_dtype]), p)) for weight in named]
    return math.fsum(count * error for count, error in errors) / sum(count for count, _ in errors)


@cache
def packaged_weights(cache_dir: Path | None) -> dict[str, torch.Tensor]:
    """Return the weights of the packaged model's linear layers by their names, which all end in `_proj`.

    Raises:
        Invalid: the packaged model is not installed.
    """
    folder, _ = sources.checkpoint(Parameters(), cache_dir)
    with safe_open(Path(folder) / SAFE_WEIGHTS_NAME, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.endswith("_proj.weight")}  # noqa: SIM118
