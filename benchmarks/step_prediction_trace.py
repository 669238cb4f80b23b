"""Which kernels of a step are its linear layers' own: those launched in their forward, and in the backward of it.

Forward, a range around each layer tells. Backward, autograd runs nodes of a graph on a thread of its own; torch's
profiler gives each of them the thread and the number that it was made under, and so the operator that made it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.profiler import record_function
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from benchmarks.step_time_cell import annotates, host_events

# The range around a linear layer with its adapter.
LINEAR = "a linear layer"

# torch's RecordScope::BACKWARD_FUNCTION, and how it names what surrounds a node: that adds up gradients.
BACKWARD_SCOPE = 1
EVALUATION = "autograd::engine::evaluate_function: "
# Nodes that no operator made. Only adapters gather gradients.
ACCUMULATION = "AccumulateGrad"


@contextmanager
def ranges(model: PreTrainedModel) -> Iterator[None]:
    """Have torch's profiler see the linear layers of a model, the output head not among them."""
    layers = linear_layers(model)
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        layer.forward = partial(_within, layer.forward)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward


def linear_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return a model's linear layers but for the output head, those with an adapter as a whole."""
    head = model.get_output_embeddings()
    found: list[nn.Module] = []

    def visit(module: nn.Module) -> None:
        if isinstance(module, nn.Linear | Conv1D | BaseTunerLayer):
            found.append(module)
        else:
            for child in module.children():
                visit(child)

    visit(model)
    return [module for module in found if module is not head]


def _within(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # Left also where checkpointing ends a forward in the middle, by an exception.
    with record_function(LINEAR):
        return forward(*args, **kwargs)


def told_runs(events: Sequence[Any], device: torch.device) -> Iterator[tuple[bool | None, str, float]]:
    """Yield of each kernel of a step within `ranges` whether a linear layer launched it, its name, and seconds.

    None is said of what a node launched of which nothing tells who made it; kernels of which nothing tells who launched
    them are left out. On a CPU, operators stand in for kernels.
    """
    is_linear = _tell(host_events(events))
    return ((is_linear(event), name, seconds) for event, name, seconds in launched(events, device))


def launched(events: Sequence[Any], device: torch.device) -> Iterator[tuple[Any, str, float]]:
    """Yield each kernel: the operator that launched it, name, and seconds. On a CPU, an operator stands for itself."""
    host = host_events(events)
    if device.type != "cuda":
        yield from ((event, event.name, event.self_cpu_time_total / 1e6) for event in host if not annotates(event))
        return
    names = {event.name for event in host}
    for event in host:
        for kernel in event.kernels:
            if kernel.name not in names:
                yield event, kernel.name, kernel.duration / 1e6


def _tell(host: Sequence[Any]) -> Callable[[Any], bool | None]:
    """Return what tells whether the host was at a linear layer's work in an event; None where it cannot be told.

    A node's own operators make no nodes, and bear no number; those that do run forward, in the first place or to
    compute once more what was not kept, so that the range around them tells, and not the node that asked for them.
    """
    made: dict[tuple[int, int], bool] = {}

    def is_linear(event: Any) -> bool | None:
        while event is not None:
            if event.name == LINEAR:
                return True
            if _is_backward(event):
                return True if ACCUMULATION in event.name else made.get((event.fwd_thread, event.sequence_nr))
            if event.sequence_nr >= 0:
                return _in_range(event)
            event = event.cpu_parent
        return False

    # A number stands for the node to be made next, so that the last operator that bears it has made the node.
    for event in sorted(host, key=lambda event: event.time_range.start):
        if event.sequence_nr >= 0 and not _is_backward(event):
            made[event.thread, event.sequence_nr] = _in_range(event)
    return is_linear


def _in_range(event: Any) -> bool:
    while event is not None and event.name != LINEAR and not _is_backward(event):
        event = event.cpu_parent
    return event is not None and bool(event.name == LINEAR)


def _is_backward(event: Any) -> bool:
    return bool(event.scope == BACKWARD_SCOPE or event.name.startswith(EVALUATION))
