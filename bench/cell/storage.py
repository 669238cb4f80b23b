"""Count the bytes a model stores, tensor by tensor, quantization state included."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import bitsandbytes as bnb
import torch
from torch import nn

from bench.cell.quantize import linear4bit, linear8bit


def stored(model: nn.Module) -> dict[str, int]:
    """Return the bytes of a loaded model by component; `stored_bytes` is their sum, each tensor counted once.

    `get_memory_footprint()` counts parameters and buffers, and so misses the block scales, which live in a plain
    object beside each weight. For a layer of n weights in blocks of 64, N = ceil(n / 64) (QLoRA, section 3):
    4N + 64 bytes of scales and code without double quantization, N + 4 ceil(N / 256) + 64 + 1024 + 4 with it.
    """
    packed = {id(module.weight) for module in (*linear4bit(model), *linear8bit(model))}
    parameters = list(model.parameters())
    sizes = {
        "packed_bytes": sum(_bytes(p) for p in parameters if id(p) in packed),
        "unquantized_bytes": sum(_bytes(p) for p in parameters if id(p) not in packed),
        "quant_state_bytes": sum(_bytes(tensor) for tensor in quantization_state(model)),
        "buffer_bytes": sum(_bytes(buffer) for buffer in model.buffers()),
    }
    return {**sizes, "stored_bytes": sum(sizes.values())}


def counts(model: nn.Module) -> dict[str, int]:
    """Return how many parameters the model has, and how many of them are quantized (as numbers, not packed bytes)."""
    quantized = [*linear4bit(model), *linear8bit(model)]
    weights = sum(module.in_features * module.out_features for module in quantized)
    packed = {id(module.weight) for module in quantized}
    return {
        "parameters_count": weights + sum(p.numel() for p in model.parameters() if id(p) not in packed),
        "quantized_parameters_count": weights,
        "quantized_modules_count": len(quantized),
    }


def quantization_state(model: nn.Module) -> Iterator[torch.Tensor]:
    """Yield every tensor of the quantization state: scales, codes, and the nested scales of double quantization."""
    for module in linear4bit(model):
        state = module.weight.quant_state
        yield from (state.absmax, state.code)
        if state.nested:
            yield from (state.offset, state.state2.absmax, state.state2.code)
    for int8 in linear8bit(model):
        # Row scales sit on the weight until the first forward, then in the layer's state.
        weight: bnb.nn.Int8Params = int8.weight
        scales = weight.SCB if weight.SCB is not None else int8.state.SCB
        if scales is not None:
            yield scales


# Of a model on a GPU, so much is on its way to the host at a time.
HASHED_AT_ONCE_BYTES = 256 * 1024**2


def sha256(model: nn.Module) -> str:
    """Return a hash of every byte that the model computes with: parameters, buffers and quantization state."""
    digest = hashlib.sha256()
    named = (*model.named_parameters(), *model.named_buffers(), *enumerate(quantization_state(model)))
    for name, tensor in named:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        for piece in tensor.detach().contiguous().flatten().view(torch.uint8).split(HASHED_AT_ONCE_BYTES):
            digest.update(piece.cpu().numpy())
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
