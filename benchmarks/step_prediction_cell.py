"""What `benchmarks.step_prediction` asks of processes of their own: the linear layers of models, and a cell's step.

A step is measured as `benchmarks.step_time` does it. Then each of its linear layers' launches is made alone, as the
kernel benchmarks make it, so that its kernels can be told from those of the rest of the model.
"""

from __future__ import annotations

import gc
import math
import sys
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from bench.cell import adapters, blueprint, kernels, sources
from bench.cell.channel import Send
from bench.cell.devices import synchronize
from bench.cell.encoding import Batch, rounded_up
from bench.cell.failures import first_line
from bench.cell.steps import Trainee
from bench.matrix.kernel_parameters import KernelParameters
from bench.matrix.parameters import Parameters
from bench.protocol import Device, Request
from benchmarks import step_prediction_trace as trace
from benchmarks import step_time_cell
from benchmarks.kernel_groups import by_group, collect
from benchmarks.step_time_cell import Counts, kernel_runs, record_events

# Fewer than `benchmarks.step_time` takes: a large model's steps are long, and differ little.
COUNTS: dict[Device, Counts] = {"cuda": Counts(3, 6, 12), "cpu": Counts(1, 2, 0)}

# Launches of a layer alone: before those that are profiled, and those; and the sets of operands that they read in turn.
WARMUP_LAUNCHES = 5
PROFILED_LAUNCHES = 5
OPERAND_SETS = 2

# Where it can be told of a smaller share of the kernels' time whether linear layers launched them, it is not believed.
ENOUGH_TRACED = 0.98


def describe(request: Request, _device: torch.device, _send: Send) -> dict[str, Any]:
    """Return the linear layers of each of the request's `cells`, as `linear_layers` does, and the rows that they see.

    Raises:
        Invalid: a model cannot be found, or has no such target modules.
    """
    return {
        "cells": [
            {
                "rows": cell.batch_size * rounded_up(cell.max_length),
                "layers": linear_layers(cell.model, cell.revision, cell.target_modules, cell.lora_r),
            }
            for cell in map(Parameters.model_validate, request.parameters["cells"])
        ]
    }


@cache
def linear_layers(
    model: str, revision: str | None, target_modules: str | tuple[str, ...], lora_r: int
) -> list[dict[str, Any]]:
    """Return the linear layers of a model but for its output head; those that are alike and end in one name are one.

    Raises:
        Invalid: the model cannot be found, or has no such target modules.
    """
    parameters = Parameters(model=model, revision=revision, weights="random", quant_type="none")
    outline = blueprint.outline(parameters, sources.shape_config(parameters))
    modules = dict(outline.named_modules())
    adapted = set(adapters.target_names(outline, target_modules))
    found = Counter(
        (name.rpartition(".")[2], *_features(modules[name]), modules[name].bias is not None, name in adapted)
        for name in adapters.target_names(outline, "all-linear")
    )
    return [
        {
            "layer": layer,
            "layers_count": count,
            "out_features": out_features,
            "in_features": in_features,
            "bias": bias,
            "lora_r": lora_r if is_adapted else 0,
        }
        for (layer, out_features, in_features, bias, is_adapted), count in found.items()
    ]


def _features(module: nn.Module) -> tuple[int, int]:
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    in_features, out_features = module.get_parameter("weight").shape  # GPT-2's Conv1D
    return out_features, in_features


def measure(request: Request, device: torch.device, send: Send) -> dict[str, Any]:
    """Measure the step of the request's `cell`, as `step_time_cell.measure` does, and each of its `launches` alone.

    `linear_groups` are those of the kernels that the step's linear layers launched, None where they cannot be told from
    others, and `alone` the groups of each launch's kernels, None where it failed.

    Raises:
        Invalid: the cell asks for something that cannot be had.
        Diverged: a loss is not finite.
    """
    notes: list[str] = []
    linear: dict[str, Any] = {"traced_share": None, "linear_groups": None}

    def record(it: Trainee, step: Sequence[Batch]) -> list[Any]:
        with trace.ranges(it.model):
            events = step_time_cell.record_step(it, step)
        with noted("the kernels of linear layers were not told from others", notes):
            linear.update(linear_share(events, device))
        return events

    cell = replace(request, parameters=request.parameters["cell"])
    figures = step_time_cell.measure(cell, device, send, COUNTS[request.device], record)
    release(device)
    alone: list[dict[str, dict[str, float]] | None] = []
    for launch in request.parameters["launches"]:
        alone.append(None)
        with noted(f"{launch['operation']} of {launch['layer']} did not run alone", notes):
            alone[-1] = launched_alone(launch, device)
    return {**figures, **linear, "alone": alone, "notes": [*figures["notes"], *notes]}


@contextmanager
def noted(what: str, notes: list[str]) -> Iterator[None]:
    """Go on without what only explains the measured step, where it fails for whatever reason; say so in a note."""
    try:
        yield
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        notes.append(f"{what}: {type(error).__name__}: {first_line(error)}")


def linear_share(events: Sequence[Any], device: torch.device) -> dict[str, Any]:
    """Return the groups of the kernels that linear layers launched, and the share of all that it could be told of."""
    all_s = math.fsum(seconds for _, seconds in kernel_runs(events, device))
    told = [run for run in trace.told_runs(events, device) if run[0] is not None]
    share = math.fsum(seconds for *_, seconds in told) / all_s if all_s else 0.0
    groups = by_group(collect((name, seconds) for is_linear, name, seconds in told if is_linear))
    return {"traced_share": share, "linear_groups": groups if groups and share >= ENOUGH_TRACED else None}


def launched_alone(launch: Mapping[str, Any], device: torch.device) -> dict[str, dict[str, float]]:
    """Return the groups of the kernels of a launch, as the kernel benchmarks make it; the mean of some launches.

    Raises:
        Invalid: the layer does not exist, or cannot be computed so.
    """
    operation = kernels.rotated(kernels.prepare(KernelParameters.model_validate(launch), device), OPERAND_SETS)

    def run(count: int) -> None:
        for number in range(count):
            operation.launch(number)

    run(WARMUP_LAUNCHES)
    synchronize(device)
    groups = by_group(collect(kernel_runs(record_events(lambda: run(PROFILED_LAUNCHES), device), device)))
    return {
        group: {name: value / PROFILED_LAUNCHES for name, value in figures.items()} for group, figures in groups.items()
    }


def release(device: torch.device) -> None:
    """Give back the memory of what is gone, cycles among it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
