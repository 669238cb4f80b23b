"""Count the bytes that a model and its training store, tensor by tensor, quantization state included."""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import bitsandbytes as bnb
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bench.cell.quantize import linear4bit, linear8bit

# What other sums are made of, by component.
QUANT_STATE = ("absmax_bytes", "nested_absmax_bytes", "code_bytes")
STORED = ("packed_bytes", "quant_state_bytes", "unquantized_bytes", "buffer_bytes")


def stored(model: PreTrainedModel) -> dict[str, int]:
    """Return the bytes of a model by component, each tensor counted once; adapters are left out.

    `stored_bytes` is the sum of `STORED`, `quant_state_bytes` that of `QUANT_STATE`, and `unquantized_bytes` that of
    the entries `{place}_{dtype}_bytes`, which are there where they are not zero. Only shapes and dtypes are looked at,
    so that a model on the meta device has its bytes too.

    `get_memory_footprint()` counts parameters and buffers, and so misses the block scales, which live in a plain
    object beside each weight. For a layer of n weights in blocks of 64, N = ceil(n / 64) (QLoRA, section 3):
    4N + 64 bytes of scales and code without double quantization, N + 4 ceil(N / 256) + 64 + 1024 + 4 with it.
    """
    packed = (module.weight for module in (*linear4bit(model), *linear8bit(model)))
    placed = unquantized(model)
    sizes = {
        "packed_bytes": _bytes(packed),
        **{name: _bytes(tensor for part, tensor in _state(model) if part == name) for name in QUANT_STATE},
        **placed,
        "unquantized_bytes": sum(placed.values()),
        "buffer_bytes": _bytes(model.buffers()),
    }
    sizes["quant_state_bytes"] = sum(sizes[name] for name in QUANT_STATE)
    return {**sizes, "stored_bytes": sum(sizes[name] for name in STORED)}


def unquantized(model: PreTrainedModel) -> dict[str, int]:
    """Return the bytes of unquantized parameters, adapters left out, as `{place}_{dtype}_bytes`; none is zero."""
    packed = (module.weight for module in (*linear4bit(model), *linear8bit(model)))
    elsewhere = {id(parameter) for parameter in (*packed, *adapter_parameters(model))}
    places = _places(model)
    sizes: Counter[str] = Counter()
    for parameter in _distinct(p for p in model.parameters() if id(p) not in elsewhere):
        dtype = str(parameter.dtype).removeprefix("torch.")
        sizes[f"{places.get(id(parameter), 'other')}_{dtype}_bytes"] += parameter.nbytes
    return dict(sizes)


def adapter_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield the parameters of adapters, told by where PEFT's layers keep them."""
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            for name in dict.fromkeys(layer.adapter_layer_names):  # DoRA names one twice
                yield from getattr(layer, name, nn.ModuleDict()).parameters()


def training_state(weights: Sequence[nn.Parameter], optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the bytes that training keeps beside the weights, each tensor counted once.

    To be asked when a step has been taken and its gradients are still there.

    gradient_bytes: gradients of the weights that have one.
    optimizer_bytes: optimizer state on the weights' device: moments, scales, the tables of 8-bit codes, and step counts
        and learning rates where they are tensors there.
    optimizer_managed_bytes: state in CUDA's managed memory, where bitsandbytes' paged optimizers keep what has at least
        100,000 elements; torch takes it for host memory.
    """
    tables = getattr(optimizer, "name2qmap", {})  # bitsandbytes': one for all weights
    kept = [
        value
        for entry in (*optimizer.state.values(), *optimizer.param_groups, tables)
        for value in entry.values()
        if torch.is_tensor(value)
    ]
    paged = [tensor for tensor in kept if getattr(tensor, "is_paged", False)]
    managed = {id(tensor) for tensor in paged}
    device = weights[0].device
    return {
        "gradient_bytes": _bytes(weight.grad for weight in weights if weight.grad is not None),
        "optimizer_bytes": _bytes(t for t in kept if t.device == device and id(t) not in managed),
        "optimizer_managed_bytes": _bytes(paged),
    }


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
    return (tensor for _, tensor in _state(model))


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


def _state(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the quantization state with the component that it counts as."""
    for module in linear4bit(model):
        state = module.weight.quant_state
        yield "absmax_bytes", state.absmax
        yield "code_bytes", state.code
        if state.nested:
            yield "code_bytes", state.offset
            yield "nested_absmax_bytes", state.state2.absmax
            yield "code_bytes", state.state2.code
    for int8 in linear8bit(model):
        # Row scales sit on the weight until the first forward, then in the layer's state.
        weight: bnb.nn.Int8Params = int8.weight
        scales = weight.SCB if weight.SCB is not None else int8.state.SCB
        if scales is not None:
            yield "absmax_bytes", scales


def _places(model: PreTrainedModel) -> dict[int, str]:
    """Return the place, one of `bench.protocol.PLACES`, of parameters by their ids; what is missing is `other`."""
    modules = list(model.modules())
    linear = [module for module in modules if isinstance(module, nn.Linear | Conv1D)]
    embeddings: list[nn.Module] = [module for module in modules if isinstance(module, nn.Embedding)]
    with contextlib.suppress(NotImplementedError):  # an architecture need not name them
        embeddings.append(model.get_input_embeddings())
    # A parameter belongs to the first place that has it: a tied head to the embedding.
    members: dict[str, Iterable[torch.Tensor | None]] = {
        "embedding": _own_parameters(embeddings),
        "head": _own_parameters([model.get_output_embeddings()]),
        "norm": _own_parameters(module for module in modules if "Norm" in type(module).__name__),
        "bias": (module.bias for module in linear),
        "linear": (module.weight for module in linear),
    }
    found: dict[int, str] = {}
    for place, parameters in members.items():
        for parameter in parameters:
            found.setdefault(id(parameter), place)
    return found


def _own_parameters(modules: Iterable[nn.Module | None]) -> Iterator[nn.Parameter]:
    return chain.from_iterable(module.parameters(recurse=False) for module in modules if module is not None)


def _distinct(tensors: Iterable[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Leave out tensors that start where one before does: in the same storage, which tensors without data have too."""
    seen = set()
    for tensor in tensors:
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset())
        if place not in seen:
            seen.add(place)
            yield tensor


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in _distinct(tensors))
