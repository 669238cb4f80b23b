"""Dtypes by name, and mixed precision as Transformers' `bf16=True` and `fp16=True` set it up."""

from __future__ import annotations

import torch

from bench.cell.autocast import MetaAutocast
from bench.cell.failures import Invalid
from bench.matrix.parameters import Parameters

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}


def autocast(parameters: Parameters, device: torch.device) -> torch.autocast | MetaAutocast:
    """Return the context in which a model of this cell computes: autocast to a 16-bit compute dtype, or none."""
    dtype = DTYPES[parameters.compute_dtype]
    if device.type == "meta":
        return MetaAutocast(dtype)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32)


def grad_scaler(parameters: Parameters, device: torch.device) -> torch.amp.GradScaler:
    """Return the loss scaler that float16 gradients need; it does nothing for the other dtypes."""
    return torch.amp.GradScaler(device.type, enabled=parameters.compute_dtype == "float16")


def check_supported(parameters: Parameters, device: torch.device) -> None:
    """Refuse dtypes that would not run, or whose speed would say nothing about the card.

    Raises:
        Invalid: torch sees no GPU, the card only emulates bfloat16, autocast would meet the other 16-bit dtype, or
            nothing would compute in float32.
    """
    if device.type == "cuda" and not torch.cuda.is_available():
        raise Invalid("the cell is to run on a GPU, and torch sees none", "install torch with CUDA (pytorch.org)")
    check_dtypes(parameters)
    dtypes = {parameters.compute_dtype, parameters.load_dtype}
    if device.type == "cuda" and "bfloat16" in dtypes and not torch.cuda.is_bf16_supported(including_emulation=False):
        name = torch.cuda.get_device_name(device)
        raise Invalid(f"{name} has no bfloat16 arithmetic", "set compute_dtype: float16 (and load_dtype: float16)")


def check_dtypes(parameters: Parameters) -> None:
    """Refuse dtypes that do not go together, whatever the device.

    Raises:
        Invalid: autocast would meet the other 16-bit dtype, or nothing would compute in float32.
    """
    if {parameters.compute_dtype, parameters.load_dtype} == {"bfloat16", "float16"} and parameters.quantized:
        # Quantized layers answer in the dtype they are asked in, which is the load dtype.
        raise Invalid(
            f"autocast to {parameters.compute_dtype} cannot mix with parameters in {parameters.load_dtype}",
            "set load_dtype as compute_dtype, or to float32",
        )
    if parameters.compute_dtype == "float32" != parameters.load_dtype and not parameters.quantized:
        raise Invalid(
            f"float32 products cannot be had from unquantized weights in {parameters.load_dtype}",
            "set load_dtype: float32",
        )
