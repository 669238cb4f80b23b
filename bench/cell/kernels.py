"""One layer's work, ready to be launched again and again: quantize, dequantize, forward, and forward with backward."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from types import SimpleNamespace
from typing import Any, Literal

import bitsandbytes as bnb
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.cell import blueprint, meters, precision, quantize, sources, weights
from bench.cell.blueprint import BLOCK_SIZE
from bench.cell.failures import Invalid
from bench.cell.precision import DTYPES
from bench.matrix.kernel_parameters import WEIGHT_OPERATIONS, KernelParameters, dimensions_of
from bench.matrix.parameters import Parameters

# Transformers' default for int8 layers: columns of activations that exceed it are multiplied in 16 bits.
INT8_THRESHOLD = 6.0
SEED = 0

Launched = Literal["cuda_graph", "queued", "eager"]


@dataclass(frozen=True)
class LinearShape:
    """A linear layer: its weight is [out_features, in_features]."""

    out_features: int
    in_features: int
    bias: bool = False

    @property
    def weights_count(self) -> int:
        return self.out_features * self.in_features


@dataclass(frozen=True)
class Operation:
    """One launch of an operation, and the sets of tensors that launches read in turn.

    places: where `run` finds each tensor that it reads: an object and the name of its attribute.
    sets: tensors for those places; all sets are equal and lie at addresses of their own.
    stored_bytes: of the weight with its quantization state.
    result_bytes: of what a launch returns.
    moved_bytes: the fewest that a launch moves: each operand read once in each pass that needs it, each result written.
    flops_count: floating point operations of the products of a launch, none done twice.
    launched: how a GPU gets it: in a CUDA graph; queued from Python before it begins, where bitsandbytes insists on the
        default stream, which no graph records; or eagerly, where each launch waits for the host.
    adapted: whether the layer has an adapter, which is launched from Python kernel by kernel.
    multiply: the product with a 4-bit weight by itself, where there is one and no backward.
    """

    run: Callable[[], Any]
    places: tuple[tuple[Any, str], ...]
    sets: tuple[tuple[torch.Tensor, ...], ...]
    stored_bytes: int
    result_bytes: int
    moved_bytes: int
    flops_count: int
    launched: Launched
    adapted: bool = False
    multiply: Callable[[], torch.Tensor] | None = None

    @property
    def set_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.sets[0])

    def launch(self, number: int) -> Any:
        """Run on the set whose turn it is, and return the result."""
        for (owner, name), tensor in zip(self.places, self.sets[number % len(self.sets)], strict=True):
            setattr(owner, name, tensor)
        return self.run()


def rotated(operation: Operation, count: int) -> Operation:
    """Return the operation with `count` sets of tensors."""
    first = operation.sets[0]
    copies = [tuple(tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in first)
              for _ in range(count - 1)]  # fmt: skip
    return replace(operation, sets=(first, *copies))


def prepare(parameters: KernelParameters, device: torch.device) -> Operation:
    """Make the tensors of an operation on random weights and inputs, with one set of them.

    Raises:
        Invalid: the model has no such layer, or the device or the kernels cannot compute so.
        Exception: whatever the kernels raise.
    """
    p = parameters
    cell = _cell(p)
    precision.check_supported(cell, device)
    shape = shape_of(p)
    random = torch.Generator(device).manual_seed(SEED)
    weight = weights.random_weight(shape.out_features, shape.in_features, DTYPES[p.compute_dtype], random)
    if p.operation in WEIGHT_OPERATIONS:
        return _OF_WEIGHTS[p.operation](p, weight)
    return _of_layer(p, cell, shape, weight, random)


def random_error(parameters: KernelParameters, device: torch.device) -> float:
    """Return how far the weight of an operation is off once it is quantized; see `weights.error_of`.

    Raises:
        Invalid: the model has no such layer, or the device cannot compute so.
    """
    precision.check_supported(_cell(parameters), device)
    shape = shape_of(parameters)
    settings = {"operation": "quantize", "model": "", "layer": "", "rows": 1, "lora_r": 0}
    return _random_error(parameters.model_copy(update=settings), shape.out_features, shape.in_features, device)


@cache
def _random_error(p: KernelParameters, out_features: int, in_features: int, device: torch.device) -> float:
    dtype, random = DTYPES[p.compute_dtype], torch.Generator(device).manual_seed(SEED)
    return weights.error_of(weights.random_weight(out_features, in_features, dtype, random), p)


def scratch_bytes(operation: Operation, device: torch.device) -> int | None:
    """Return the most that a launch allocates beside its operands and results; None on a CPU."""
    most = _most_bytes(lambda: operation.launch(0), device)
    return None if most is None else max(0, most - operation.result_bytes)


def is_fused(operation: Operation, parameters: KernelParameters, device: torch.device) -> bool | None:
    """Tell whether a product takes its 4-bit weight as it is, and not by way of a copy in 16 or 32 bits.

    None where there is no such product, and on a CPU. What tells is memory: a copy has to be put somewhere.
    """
    if operation.multiply is None or (most := _most_bytes(operation.multiply, device)) is None:
        return None
    itemsize = DTYPES[parameters.compute_dtype].itemsize
    shape = shape_of(parameters)
    result_bytes = (parameters.rows or 0) * shape.out_features * itemsize
    return most - result_bytes < shape.weights_count * itemsize


def _most_bytes(run: Callable[[], Any], device: torch.device) -> int | None:
    """Return the most memory that a second run allocates; the first one may set up what stays."""
    if device.type != "cuda":
        return None
    run()
    gc.collect()  # which would otherwise free what earlier operations left, at any moment
    gc.disable()
    try:
        meters.reset_peaks(device)
        # As it was asked for: what the allocator rounds to whole blocks would hide a small copy.
        before = torch.cuda.memory_stats(device)["requested_bytes.all.current"]
        run()
        return int(torch.cuda.memory_stats(device)["requested_bytes.all.peak"] - before)
    finally:
        gc.enable()


# A layer's shape ------------------------------------------------------------------------------------------------------


def shape_of(parameters: KernelParameters) -> LinearShape:
    """Return the shape of the layer: as it is written, or as the model's configuration has it.

    Raises:
        Invalid: the model cannot be found, or has no such layer.
    """
    if dimensions := dimensions_of(parameters.layer):
        return LinearShape(*dimensions)
    found = linear_shapes(parameters.model)
    named = {name: shape for name, shape in found.items() if f".{name}".endswith(f".{parameters.layer}")}
    if len(shapes := dict.fromkeys(named.values())) > 1:
        first = (next(name for name in named if named[name] == shape) for shape in shapes)
        raise Invalid(
            f"layer: {parameters.model} has linear layers {parameters.layer!r} of {len(shapes)} shapes",
            f"write more of the name, as in {', '.join(first)}",
        )
    if not named:
        endings = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in found))
        raise Invalid(
            f"layer: {parameters.model} has no linear layer {parameters.layer!r}",
            f"it has {endings}; OUTxIN, such as 4096x11008, is a shape of its own",
        )
    return next(iter(shapes))


def linear_shapes(model: str) -> dict[str, LinearShape]:
    """Return the shape of each linear layer of a model by its full name, the output head's last of all.

    Raises:
        Invalid: the model cannot be found or read.
    """
    found = _looked_up(model)
    if isinstance(found, Invalid):
        raise found
    return found


@cache
def _looked_up(model: str) -> dict[str, LinearShape] | Invalid:
    """Return a model's layers, or why not: a hub that does not answer is asked once."""
    try:
        return _linear_shapes(model)
    except Invalid as refusal:
        return refusal


def _linear_shapes(model: str) -> dict[str, LinearShape]:
    parameters = Parameters(model=model, weights="random", quant_type="none")
    outline = blueprint.outline(parameters, sources.shape_config(parameters))
    linear = {name: module for name, module in outline.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    return {name: _shape(module) for name, module in linear.items()}


def _shape(module: nn.Linear | Conv1D) -> LinearShape:
    # GPT-2's Conv1D keeps its weight as [in, out].
    out_features, in_features = module.weight.shape[:: 1 if isinstance(module, nn.Linear) else -1]
    return LinearShape(out_features, in_features, module.bias is not None)


# Quantize and dequantize ----------------------------------------------------------------------------------------------


def _quantizing(p: KernelParameters, weight: torch.Tensor) -> Operation:
    stored = weights.quantize(weight, p)
    stored_bytes = weights.stored_bytes(stored)
    operands = SimpleNamespace(weight=weight)
    code = stored[1].state2.code if p.double_quant else None
    return Operation(
        run=lambda: weights.launch_quantize(operands.weight, p, code),
        places=((operands, "weight"),),
        sets=((weight,),),
        stored_bytes=stored_bytes,
        result_bytes=stored_bytes,
        moved_bytes=weight.nbytes + stored_bytes,
        flops_count=0,
        launched="cuda_graph" if p.quant_type == "int8" else "queued",
    )


def _dequantizing(p: KernelParameters, weight: torch.Tensor) -> Operation:
    packed, state = stored = weights.quantize(weight, p)
    whole = weights.dequantize(stored, p)
    stored_bytes = weights.stored_bytes(stored)
    operands = SimpleNamespace(packed=packed, state=state)
    places, tensors = [(operands, "packed")], [packed]
    for owner, name in [(operands, "state")] if p.quant_type == "int8" else weights.scales_of(state):
        places.append((owner, name))
        tensors.append(getattr(owner, name))
    return Operation(
        run=lambda: weights.dequantize((operands.packed, operands.state), p),
        places=tuple(places),
        sets=(tuple(tensors),),
        stored_bytes=stored_bytes,
        result_bytes=whole.nbytes,
        moved_bytes=stored_bytes + whole.nbytes,
        flops_count=0,
        launched="cuda_graph",
    )


_OF_WEIGHTS = {"quantize": _quantizing, "dequantize": _dequantizing}


# A layer --------------------------------------------------------------------------------------------------------------


class _Holder(nn.Module):
    """A model of one layer, which is what PEFT puts adapters into."""

    def __init__(self, layer: nn.Module, p: KernelParameters) -> None:
        super().__init__()
        self.layer = layer
        # How PEFT tells which of its layers goes around a quantized one.
        self.is_loaded_in_4bit = p.four_bit
        self.is_loaded_in_8bit = p.quant_type == "int8"


def _of_layer(
    p: KernelParameters, cell: Parameters, shape: LinearShape, weight: torch.Tensor, random: torch.Generator
) -> Operation:
    device, dtype = weight.device, weight.dtype
    torch.manual_seed(SEED)  # by which PEFT draws adapters
    base, stored_bytes = _linear(p, shape, weight, random)
    layer = _adapted(base, p) if p.lora_r else base
    adapters = [parameter for parameter in layer.parameters() if parameter.requires_grad]
    training = p.operation == "forward_backward"
    layer.train(training)
    x = torch.randn(p.rows, shape.in_features, device=device, dtype=dtype, generator=random).requires_grad_(training)
    operands = SimpleNamespace(x=x)

    def forward(module: nn.Module = layer) -> torch.Tensor:
        with precision.autocast(cell, device):
            y: torch.Tensor = module(operands.x)
        return y

    def multiply() -> torch.Tensor:
        with torch.no_grad():
            return forward(base)

    def infer() -> torch.Tensor:
        with torch.no_grad():
            return forward()

    def train() -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(forward(), [operands.x, *adapters], operands.dy)

    y = infer()
    if training:
        operands.dy = torch.randn(y.shape, device=device, dtype=y.dtype, generator=random)
    places = _places(layer, base, operands)
    adapter_bytes = sum(adapter.nbytes for adapter in adapters)
    # A pass forward reads the weight and x, and writes y; backward reads the weight and dy, and writes dx. Adapters are
    # read in both, and have gradients; that of the first one takes x once more.
    moved_bytes = stored_bytes + x.nbytes + y.nbytes + adapter_bytes
    if training:
        moved_bytes += stored_bytes + y.nbytes + x.nbytes + 2 * adapter_bytes + (x.nbytes if adapters else 0)
    return Operation(
        run=train if training else infer,
        places=places,
        sets=(tuple(getattr(owner, name) for owner, name in places),),
        stored_bytes=stored_bytes,
        result_bytes=x.nbytes + adapter_bytes if training else y.nbytes,
        moved_bytes=moved_bytes,
        flops_count=flops_count(shape, p),
        launched="eager" if p.quant_type == "int8" else "cuda_graph",  # int8's outliers are counted on the host
        adapted=bool(adapters),
        multiply=None if training or not p.four_bit else multiply,
    )


def flops_count(shape: LinearShape, p: KernelParameters) -> int:
    """Return the floating point operations of a layer's products, none of them done twice.

    For each row a weight of a base takes 2 forward and 2 for the gradient of the input; an adapter's takes those, and 2
    for its own gradient (`benchmarks.flops` has the source).
    """
    base = p.rows * shape.weights_count
    adapter = p.rows * p.lora_r * (shape.in_features + shape.out_features)
    return 4 * base + 6 * adapter if p.operation == "forward_backward" else 2 * (base + adapter)


def _linear(
    p: KernelParameters, shape: LinearShape, weight: torch.Tensor, random: torch.Generator
) -> tuple[nn.Linear, int]:
    """Return the frozen layer of a weight as loading makes it, and the bytes that its weight is stored in."""
    with torch.device("meta"):
        base = _outline(p, shape)
    if shape.bias:
        bias = weights.random_weight(1, shape.out_features, weight.dtype, random)[0]
        base.bias = nn.Parameter(bias, requires_grad=False)
    if p.quant_type == "none":
        base.weight = nn.Parameter(weight, requires_grad=False)
        return base, weight.nbytes
    packed, state = stored = weights.quantize(weight, p)
    if p.quant_type == "int8":
        base.weight = bnb.nn.Int8Params(packed, requires_grad=False, CB=packed, SCB=state)
    else:
        base.weight = bnb.nn.Params4bit(
            packed, requires_grad=False, quant_state=state, blocksize=BLOCK_SIZE, compress_statistics=p.double_quant,
            quant_type=p.quant_type, bnb_quantized=True, module=base,
        )  # fmt: skip
        base.quant_state = state
        quantize.never_repack(base)
    return base, weights.stored_bytes(stored)


def _outline(p: KernelParameters, shape: LinearShape) -> nn.Linear:
    sizes = (shape.in_features, shape.out_features, shape.bias)
    if p.quant_type == "none":
        return nn.Linear(*sizes)
    if p.quant_type == "int8":
        quantize.quiet_int8()
        int8: nn.Linear = bnb.nn.Linear8bitLt(*sizes, has_fp16_weights=False, threshold=INT8_THRESHOLD)
        return int8
    four_bit: nn.Linear = bnb.nn.Linear4bit(
        *sizes, compute_dtype=DTYPES[p.compute_dtype], compress_statistics=p.double_quant, quant_type=p.quant_type
    )
    return four_bit


def _adapted(base: nn.Linear, p: KernelParameters) -> nn.Module:
    """Put a LoRA adapter around a layer, in float32 as PEFT keeps it; neither of its factors is zero."""
    config = LoraConfig(r=p.lora_r, lora_alpha=2 * p.lora_r, target_modules=["layer"], init_lora_weights=False)
    holder: Any = get_peft_model(_Holder(base, p), config)
    layer: nn.Module = holder.base_model.model.layer
    return layer


def _places(layer: nn.Module, base: nn.Linear, operands: SimpleNamespace) -> tuple[tuple[Any, str], ...]:
    """Return where a layer's launch finds the tensors that it reads, those beside its parameters included."""
    places: list[tuple[Any, str]] = [(operands, name) for name in vars(operands)]
    if isinstance(base, bnb.nn.Linear8bitLt):
        # It multiplies by its state's matrix, to which it points its parameter.
        places += [(base.state, "CB"), (base.state, "SCB")]
    places += [(parameter, "data") for parameter in layer.parameters() if parameter.dtype != torch.int8]
    if isinstance(base, bnb.nn.Linear4bit):
        places += weights.scales_of(base.weight.quant_state)
    return tuple(places)


def _cell(p: KernelParameters) -> Parameters:
    """Return the settings that a cell with such a layer would have, by which its precision is decided."""
    return Parameters(
        model=p.model, weights="random", quant_type=p.quant_type, double_quant=p.double_quant,
        compute_dtype=p.compute_dtype,
    )  # fmt: skip
