"""A rehearsal: load, adapt and training steps of a cell on the meta device, with every allocation and free noted.

The cell's own code runs, on tensors that have shapes and no memory. What torch would allocate on a GPU is then known
from what it makes here, operator by operator; `bench.cell.allocator` tells what that takes. Three things do not show on
the meta device, and are added: the memory that a CUDA kernel takes while it runs (`HIDDEN`), cuBLAS's workspaces, and
the state of the optimizer.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from transformers import PretrainedConfig, PreTrainedModel

from bench.cell import adapters, blueprint, heads, optim, steps, storage
from bench.cell.blueprint import META
from bench.cell.encoding import Batch, Shape
from bench.cell.precision import autocast
from bench.cell.steps import Trainee
from bench.matrix.parameters import Parameters

aten = torch.ops.aten
FLASH, FLASH_BACKWARD = aten._scaled_dot_product_flash_attention, aten._scaled_dot_product_flash_attention_backward
EFFICIENT = aten._scaled_dot_product_efficient_attention
GEMM_4BIT, ADDMM = torch.ops.bitsandbytes.gemm_4bit.default, aten.addmm.default
MATMULS = frozenset({aten.mm.default, ADDMM, aten.bmm.default, aten.baddbmm.default})
# Products that add a bias go through cuBLASLt (torch, aten/src/ATen/cuda/CUDABlas.cpp; 1 MiB measured on an H200).
LT_WORKSPACE_BYTES = 1024**2


@dataclass(frozen=True)
class Kernels:
    """What of a GPU decides how much memory a step takes: its attention kernels, and the size of cuBLAS's workspace."""

    flash_attention: bool
    workspace_bytes: int


@dataclass(frozen=True)
class Rehearsal:
    """What was allocated: bytes and part (of `PEAK_PARTS`) of each allocation by number, and the events of each span.

    An event is an allocation's number + 1 where it is made, and the negative of that where it is freed. `load` ends
    with the adapters in place. `first` is the forward and backward pass of a step's first batch, `following` that of a
    further one, whose gradients add to what is there (nothing without gradient accumulation); `clear` is what
    `zero_grad` frees. `weights` are the shapes of what trains.
    """

    sizes: tuple[int, ...]
    parts: tuple[str, ...]
    load: tuple[int, ...]
    first: tuple[int, ...]
    following: tuple[int, ...]
    clear: tuple[int, ...]
    weights: tuple[torch.Size, ...]


@dataclass(frozen=True)
class Run:
    """A rehearsal with an optimizer: all events of two steps, after which nothing new happens."""

    sizes: tuple[int, ...]
    parts: tuple[str, ...]
    events: tuple[int, ...]


def rehearse(parameters: Parameters, config: PretrainedConfig, shape: Shape, kernels: Kernels) -> Rehearsal:
    """Rehearse a cell whose batches all have the given shape.

    Raises:
        Exception: whatever an architecture's code raises where there is no data to look at.
    """
    recorder = Recorder(config.get_text_config().vocab_size, kernels.workspace_bytes)
    model, weights, load = _loaded(parameters, config, recorder)
    it = _trainee(model, weights, parameters, kernels)
    with _OnGpu(kernels), recorder:
        first = _pass(it, shape, recorder)
        recorder.name((weight.grad for weight in weights if weight.grad is not None), "gradient")
        following = _pass(it, shape, recorder) if parameters.gradient_accumulation_steps > 1 else ()
        for weight in weights:
            weight.grad = None
        clear = recorder.cut()
    shapes = tuple(weight.shape for weight in weights)
    return Rehearsal(tuple(recorder.sizes), tuple(recorder.parts), load, first, following, clear, shapes)


def least(parameters: Parameters, config: PretrainedConfig, shape: Shape, kernels: Kernels) -> Rehearsal:
    """Return what a cell needs whatever happens within its layers: all but activations, and logits in float32."""
    vocabulary = config.get_text_config().vocab_size
    recorder = Recorder(vocabulary, kernels.workspace_bytes)
    _, weights, load = _loaded(parameters, config, recorder)
    with recorder:
        logits = torch.empty(shape.rows * shape.width, vocabulary, device=META)
        gradients = [torch.empty_like(weight) for weight in weights]
        recorder.name(gradients, "gradient")
        del logits
        first = recorder.cut()
        del gradients
        clear = recorder.cut()
    shapes = tuple(weight.shape for weight in weights)
    return Rehearsal(tuple(recorder.sizes), tuple(recorder.parts), load, first, (), clear, shapes)


def _loaded(
    parameters: Parameters, config: PretrainedConfig, recorder: Recorder
) -> tuple[PreTrainedModel, list[nn.Parameter], tuple[int, ...]]:
    model = blueprint.outline(parameters, config)
    warmup = blueprint.warmup_bytes(model)
    with recorder:
        torch.empty(warmup, dtype=torch.uint8, device=META)
        blueprint.fill(model, parameters)
        blueprint.adapt(model, parameters)
    recorder.name((*model.parameters(), *model.buffers(), *storage.quantization_state(model)), "base")
    recorder.head = model.get_output_embeddings().weight.untyped_storage()._cdata
    weights = adapters.trainable(model)
    recorder.name(weights, "adapter")
    return model, weights, recorder.cut()


def with_optimizer(rehearsal: Rehearsal, parameters: Parameters) -> Run:
    """Add what the cell's optimizer allocates: its state when it is first used, and what every update takes."""
    recorder = Recorder()
    with recorder:
        weights = [nn.Parameter(torch.empty(shape, device=META)) for shape in rehearsal.weights]
        recorder.cut()
        state = _state(parameters, weights)
        recorder.name(state, "optimizer")
        if parameters.optim == "adamw_torch":  # unfused, it takes the roots of all second moments at a time
            roots = [torch.empty_like(weight) for weight in weights]
            del roots
        made = recorder.cut()
    start = len(rehearsal.sizes)
    update = [event + start if event > 0 else event - start for event in made]
    step = [*rehearsal.first, *rehearsal.following, *update, *rehearsal.clear]
    return Run(
        (*rehearsal.sizes, *recorder.sizes),
        (*rehearsal.parts, *recorder.parts),
        (*rehearsal.load, *step, *step),  # what is there already is not made again
    )


def _pass(it: Trainee, shape: Shape, recorder: Recorder) -> tuple[int, ...]:
    def zeros(width: int) -> torch.Tensor:
        return torch.zeros(shape.rows, width, dtype=torch.long, device=META)

    tokens = shape.rows * shape.length
    batch = Batch(zeros(shape.length), zeros(shape.width), zeros(shape.width), shape.rows, tokens, tokens)
    steps.forward_backward(it, batch, batch.loss_tokens)
    del batch
    return recorder.cut()


def _trainee(model: PreTrainedModel, weights: list[nn.Parameter], parameters: Parameters, kernels: Kernels) -> Trainee:
    model.train()
    if parameters.attn_implementation != "eager" and kernels.flash_attention:
        heads.take_no_masks(model)
    if parameters.gradient_checkpointing:
        model.gradient_checkpointing_enable(
            {
                "use_reentrant": False,
                "preserve_rng_state": False,
                "context_fn": lambda: (nullcontext(), _recomputing(parameters, kernels)),
            }
        )
    unused: Any = None
    return Trainee(model, weights, unused, unused, torch.amp.GradScaler("cpu", enabled=False), parameters)


# The optimizer --------------------------------------------------------------------------------------------------------


# bitsandbytes pages state of at least so many elements (Optimizer8bit.get_state_buffer).
PAGED_FROM = 100_000


def _state(parameters: Parameters, weights: Sequence[nn.Parameter]) -> list[torch.Tensor]:
    """Make the state that an optimizer holds in the allocator's memory; paged state lies in managed memory."""
    kind, arguments = optim.OPTIMIZERS[parameters.optim]
    if kind is torch.optim.SGD:
        return []
    if kind is torch.optim.AdamW:
        moments = [torch.empty_like(weight) for weight in weights for _ in range(2)]
        return [*moments, *(torch.empty((), device=META) for _ in weights if arguments.get("fused"))]
    optimizer: Any = kind(weights, lr=parameters.learning_rate, **arguments)

    def buffer(weight: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        paged = arguments.get("is_paged") and weight.numel() >= PAGED_FROM
        return torch.empty_like(weight, dtype=dtype, device="cpu" if paged else META)

    optimizer.get_state_buffer = buffer
    optimizer.check_overrides()
    for number, weight in enumerate(weights):
        optimizer.init_state(optimizer.param_groups[0], weight, 0, number)
    found = {id(value): value for state in optimizer.state.values() for value in state.values()}
    return [value for value in found.values() if isinstance(value, torch.Tensor) and value.is_meta]


# Kernels --------------------------------------------------------------------------------------------------------------


class _OnGpu(TorchFunctionMode):
    """Has functions take the kernel that torch would choose on a GPU, where the meta device would take another."""

    def __init__(self, kernels: Kernels) -> None:
        super().__init__()
        self._kernels = kernels
        self._instead: dict[Any, Callable[..., torch.Tensor]] = {
            functional.scaled_dot_product_attention: self._attend,
            functional.dropout: _dropout,
        }

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        run: Callable[..., Any] = self._instead.get(func, func)
        return run(*args, **(kwargs or {}))

    def _attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attn_mask: torch.Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> torch.Tensor:
        if self._kernels.flash_attention and attn_mask is None and query.dtype != torch.float32:
            flash: torch.Tensor = FLASH(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
            return flash
        if query.shape[1] != key.shape[1]:
            return torch._scaled_dot_product_attention_math(
                query, key, value, attn_mask, dropout_p, is_causal, None, scale=scale, enable_gqa=enable_gqa
            )[0]
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype)
        if attn_mask is not None:
            attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
        efficient: torch.Tensor = EFFICIENT(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]
        return efficient


def _dropout(values: torch.Tensor, p: float = 0.5, training: bool = True, **_: bool) -> torch.Tensor:
    """Drop out as CUDA does: what is kept for the backward pass is a byte an element."""
    return torch.native_dropout(values, p, training)[0] if training and p else values


@contextmanager
def _recomputing(parameters: Parameters, kernels: Kernels) -> Iterator[None]:
    """Compute as the forward pass did: torch would enter CUDA's autocast, and a backward pass has no function modes."""
    with _OnGpu(kernels), autocast(parameters, META):
        yield


def _gemm_4bit(given: Mapping[str, Any]) -> list[int]:
    """Return a 4-bit layer's: all of the weight in the input's dtype; with double quantization its scales, twice."""
    (rows, columns), nested = given["shapeB"], given.get("absmax_8bit")
    scales = [] if nested is None else [4 * nested.numel()] * 2
    return [*scales, rows * columns * given["A"].element_size()]


def _flash_backward(given: Mapping[str, Any]) -> list[int]:
    """Return FlashAttention 2's: row sums, the query's gradient in float32, and keys' and values' a query head each."""
    query, key = given["query"], given["key"]
    rows, query_heads, length, width = query.shape
    long, wide = ceil(length / 128) * 128, ceil(width / 32) * 32
    hidden = [4 * rows * query_heads * long, 4 * rows * query_heads * long * wide]
    if key.shape[1] != query_heads:
        hidden += [rows * query_heads * key.shape[2] * width * query.element_size()] * 2
    return hidden


def _int8_quantization(given: Mapping[str, Any]) -> list[int]:
    """Return what looking for outliers takes: magnitudes in 16 bits, and whether each is one."""
    return [2 * given["A"].numel(), given["A"].numel()]


def _int8_product(given: Mapping[str, Any]) -> list[int]:
    """Return the product's: whole numbers of 32 bits before they are scaled."""
    inputs, weight = given["A"], given["CB"]
    return [4 * inputs.numel() // inputs.shape[-1] * weight.shape[0]]


def _int8_vectorwise_quant(inputs: torch.Tensor, *_: float) -> tuple[torch.Tensor, ...]:
    """Quantize rows to int8, with no outlier columns: how many there are only data could tell."""
    rows = inputs.numel() // inputs.shape[-1]
    whole = torch.empty_like(inputs, dtype=torch.int8)
    return whole, inputs.new_empty(rows, dtype=torch.float32), inputs.new_empty(0, dtype=torch.int64)


def _int8_mixed_scaled_mm(
    inputs: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, *_: Any
) -> tuple[torch.Tensor, ...]:
    """Multiply, with no outlier columns."""
    return inputs.new_empty((*rows.shape[:-1], weight.shape[0])), inputs.new_empty(0)


# Operators whose result depends on data, and what takes their place.
STANDING_IN: dict[Any, Callable[..., Any]] = {
    torch.ops.bitsandbytes.int8_vectorwise_quant.default: _int8_vectorwise_quant,
    torch.ops.bitsandbytes.int8_mixed_scaled_mm.default: _int8_mixed_scaled_mm,
}

# What a kernel takes while it runs and gives back: part of the peak, and bytes of each piece by the kernel's arguments.
HIDDEN: dict[Any, tuple[str, Callable[[Mapping[str, Any]], list[int]]]] = {
    GEMM_4BIT: ("dequantized", _gemm_4bit),
    torch.ops.bitsandbytes.int8_vectorwise_quant.default: ("activation", _int8_quantization),
    torch.ops.bitsandbytes.int8_mixed_scaled_mm.default: ("activation", _int8_product),
    FLASH_BACKWARD.default: ("activation", _flash_backward),
}
# The part that the result of an operator is, where it is no activation.
PARTS = {
    torch.ops.bitsandbytes.dequantize_4bit.default: "dequantized",
    torch.ops.bitsandbytes.dequantize_blockwise.default: "dequantized",
}


# Recording ------------------------------------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Notes when the memory of every tensor on the meta device comes and goes.

    `head` is the storage of the output head's weight, once there is one.
    """

    def __init__(self, vocabulary: int = 0, workspace_bytes: int = 0) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[int] = []
        self.parts: list[str] = []
        self._vocabulary = vocabulary
        self._workspace_bytes = workspace_bytes
        self._events: list[int] = []
        self._numbers: dict[int, int] = {}
        self._threads: set[tuple[str, bool]] = set()
        self.head = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in MATMULS:
            self._make_workspace("cuBLAS", self._workspace_bytes)
        result = STANDING_IN.get(func, func)(*args, **kwargs)
        if func in HIDDEN:
            names = (argument.name for argument in func._schema.arguments)
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            if func is GEMM_4BIT and given.get("bias") is not None:
                self._make_workspace("cuBLASLt", LT_WORKSPACE_BYTES)
            part, hidden = HIDDEN[func]
            self._pass_by(hidden(given), part)
        if func is ADDMM:
            self._make_workspace("cuBLASLt", LT_WORKSPACE_BYTES)
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                self._note(tensor, func, args)
        return result

    def cut(self) -> tuple[int, ...]:
        """Return the events since the last cut."""
        events, self._events = tuple(self._events), []
        return events

    def name(self, tensors: Any, part: str) -> None:
        """Say what part of the peak tensors are."""
        for tensor in tensors:
            number = self._numbers.get(tensor.untyped_storage()._cdata)
            if number is not None:
                self.parts[number] = part

    def _note(self, tensor: torch.Tensor, func: Any, args: Sequence[Any]) -> None:
        memory = tensor.untyped_storage()
        key = memory._cdata
        if key not in self._numbers:
            part = "head" if self._is_of_the_head(tensor, func, args) else PARTS.get(func, "activation")
            self._numbers[key] = number = self._make(memory.nbytes(), part)
            weakref.finalize(memory, self._forget, key, number)

    def _is_of_the_head(self, tensor: torch.Tensor, func: Any, args: Sequence[Any]) -> bool:
        """Tell logits, and what is made of them, and the head's copy in another dtype."""
        copied = func is aten._to_copy.default and args[0].untyped_storage()._cdata == self.head
        return copied or tensor.shape[-1:] == (self._vocabulary,)

    def _forget(self, key: int, number: int) -> None:
        del self._numbers[key]
        self._events.append(-number - 1)

    def _make(self, size: int, part: str) -> int:
        self.sizes.append(size)
        self.parts.append(part)
        self._events.append(len(self.sizes))
        return len(self.sizes) - 1

    def _pass_by(self, sizes: Sequence[int], part: str) -> None:
        numbers = [self._make(size, part) for size in sizes]
        self._events += [-number - 1 for number in numbers]

    def _make_workspace(self, library: str, size: int) -> None:
        """Give a thread that calls a library its workspace; torch runs backward passes in a thread of their own."""
        backward = torch._C._current_graph_task_id() != -1
        if (library, backward) not in self._threads:
            self._threads.add((library, backward))
            self._make(size, "workspace")
